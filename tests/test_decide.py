"""What the host decides, over random settings and sequences of steps, on both ways."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brax_viser.host.budget import SENDING_SHARE
from brax_viser.host.control import MODES, SHOWS, Control
from brax_viser.host.decide import Drawn, decide, wish
from brax_viser.host.pacing import Answer
from brax_viser.host.selection import RANKED, Selection
from brax_viser.records.decision import Decision, RowRequest
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    BEST,
    FOREVER,
    GIVEN,
    GRANTED,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    WATCHED,
    WATCHED_MOST,
    WORST,
    Origin,
)
from tests.conftest import eventually
from tests.deciding import COORDINATES, DETAIL, NUM_ENVS, ROWS, WAYS, Training

NO_CHANCE = np.random.default_rng(0)  # for rules that draw nothing at random

controls = st.builds(
    Control,
    streaming=st.booleans(),
    watched=st.booleans(),
    mode=st.sampled_from(MODES),
    max_overhead=st.floats(0.001, 0.5),
    stretch_seconds=st.floats(0.5, 30.0),
    show=st.sampled_from(SHOWS),
    twins=st.sampled_from([0, 2]),
    hold_on_nan=st.booleans(),
    recording=st.booleans(),
    replayed=st.booleans(),
)
selections = st.one_of(
    st.sampled_from(["first", "best", "worst", ("page", 2)]),
    st.lists(st.integers(0, NUM_ENVS - 1), min_size=1, max_size=ROWS, unique=True),
).map(Selection.of)
origins = st.builds(
    Origin,
    st.sampled_from(["train", "eval"]),
    st.just(NUM_ENVS),
    st.integers(1, 3),
    st.just(ROWS),
    model=st.sampled_from([(), (("mass", ()),)]),
    detail=st.sampled_from([(), DETAIL]),
    coordinates=st.sampled_from([(), COORDINATES]),
)
answers = st.builds(Answer, st.booleans(), st.integers(0, 1000), st.booleans())


@st.composite
def requests(draw: Any, origin: Origin) -> tuple[int, RowRequest]:
    """Returns a device and the rows asked of it."""
    shard = draw(st.integers(0, origin.num_shards - 1))
    index = st.integers(0, origin.num_envs * origin.num_shards - 1)
    drawn = np.array(draw(st.lists(index, max_size=ROWS, unique=True)), np.int32)
    return shard, RowRequest.of(origin, shard, drawn, drawn, 1)


# Single steps.


@given(controls, answers, st.booleans(), st.booleans())
def test_only_a_page_a_recording_or_a_hold_wants_a_step(control, answer, shown, stepped):
    paced = answer._replace(push=answer.push and shown and control.wants("train"))
    wanted = wish(control, "train", paced, shown, stepped)
    nothing = not (control.streaming and shown)
    if nothing or not (control.wants("train") or control.recording or stepped):
        assert not wanted.page and not wanted.recorded
    if stepped or wanted.recorded:
        assert wanted.skip == 0  # a held training is asked at each of its steps
    assert not wish(control, "eval", paced, shown, stepped).recorded
    closed = wish(replace(control, closed=True), "train", paced, shown, stepped)
    assert closed == (False, False, FOREVER)


@settings(max_examples=50)
@given(st.data(), origins, st.integers(0, 100), st.booleans(), st.none() | st.integers(0, 23))
def test_a_push_has_only_what_is_drawn_and_what_the_device_can_give(
    data, origin, skip, coordinates, env
):
    _, request = data.draw(requests(origin))
    models = frozenset(data.draw(st.sets(st.integers(0, 23))))
    drawn = Drawn(GIVEN, request, models, coordinates, env)
    decision = decide(origin, skip, drawn)
    assert decision == decide(origin, skip, drawn) and decision.skip == skip
    assert (decision.push > 0) == bool(request.envs)
    if decision.push == PUSH_MODEL:
        assert origin.model and not request.envs <= models
    elif decision.push:
        assert not origin.model or request.envs <= models, "drawn without its own model"
        assert (decision.push == PUSH_COORDINATES) == bool(coordinates and origin.coordinates)
    assert decision.detail_env in (None, env)
    assert decision.detail_env is None or (origin.detail and env in request.envs)
    # What is granted is a push of rows that are asked of every device in the same way.
    assert decision.grant is None or (decision.detail_env is None and decision.push != PUSH_MODEL)
    assert decide(origin, skip, drawn._replace(request=None)) == Decision(skip)
    ranked = decide(origin, skip, drawn._replace(rule=WORST))
    assert (ranked.push, ranked.rule, ranked.request) == (PUSH, WORST, None)


@given(st.data(), origins)
def test_a_packed_decision_says_the_same(data, origin):
    shard, request = data.draw(requests(origin))
    decision = Decision(
        skip=data.draw(st.integers(0, WATCHED_MOST) | st.sampled_from([FOREVER, GRANTED])),
        push=data.draw(st.sampled_from([0, PUSH, PUSH_MODEL, PUSH_COORDINATES])),
        rule=data.draw(st.sampled_from([GIVEN, BEST, WORST])),
        request=data.draw(st.sampled_from([None, request])),
        detail_env=data.draw(st.none() | st.sampled_from([*request.envs, None])),
    )
    watched = decision.skip <= WATCHED_MOST and data.draw(st.booleans())
    answer = decision._replace(watched=watched).packed(origin)
    assert answer.dtype == np.int32 and answer.shape == (ANSWER_HEAD + ROWS,)
    push, skip, rule, detail, *rows = answer.tolist()
    assert (skip >= WATCHED) == watched
    assert (push, skip - WATCHED * watched, rule) == decision[1:2] + decision[:1] + decision[2:3]
    first = shard * origin.num_envs
    assert decision.detail_env == (first + detail if detail >= 0 else None)
    envs = [] if decision.request is None else decision.request.mine.tolist()
    assert [first + row for row in rows[: len(envs)]] == envs


# Sequences of steps.

EVERY_STEP = Control(watched=True, mode="every_step")  # in which steps follow without asking
changes = st.one_of(
    st.one_of(controls, st.just(EVERY_STEP)).map(lambda control: ("control", control)),
    selections.map(lambda selection: ("selection", selection)),
    st.tuples(st.just("selected_env"), st.none() | st.integers(0, NUM_ENVS - 1)),
    st.just(("reset", None)),
)
sequences = st.lists(st.tuples(changes, st.integers(1, 60)), min_size=1, max_size=6)
rates = st.floats(5.0, 5_000.0)
both_ways = pytest.mark.parametrize("way", WAYS)
models = st.sampled_from([(), (("mass", (1,)),)])


def play(training: Training, sequence: list[tuple[tuple[str, Any], int]]) -> None:
    """Changes something, and takes some steps, again and again."""
    for (what, value), steps in sequence:
        if what != "reset":
            setattr(training.shared, what, value)
        for step in range(steps):
            training.step(fresh=what == "reset" and step == 0)


@both_ways
@settings(max_examples=30)
@given(sequence=sequences, rate=rates, model=models)
def test_the_same_steps_get_the_same_decisions(way, sequence, rate, model):
    def played() -> tuple[Any, ...]:
        training = Training(way, Control(), rate=rate, tick=1e-6, model=model)
        play(training, sequence)
        sent = [(p.env_steps, p.env_index.tolist(), p.detail_env) for p in training.packets]
        return training.device.skips, getattr(training.device, "answers", None), sent

    assert played() == played()


@both_ways
@settings(max_examples=25)
@given(sequence=sequences, rate=rates, model=models)
def test_each_packet_is_wanted_and_of_its_own_step(way, sequence, rate, model):
    training = Training(way, EVERY_STEP, rate=rate, model=model)
    shared = training.shared
    for _ in range(5):
        training.step()
    training.packets.clear()
    begun = True
    for change, steps in sequence:
        # By countdown, it is seen once the steps are over that were let pass before.
        begun = way == "launch" or (begun and change[0] != "control")
        for step in range(steps):
            play(training, [(change, 1)] if step == 0 else [])
            sent = training.packets if step == 0 else training.step()
            control = shared.control
            assert control.wants("train") or control.records("train") or not sent
            for packet in sent:
                assert packet.env_steps == training.taken
                assert control.wants("train") or not packet.shown
                assert packet.detail_env in (None, shared.selected_env)
                assert COORDINATES[0] not in packet.layout or control.twins or control.recording
            plain = [p for p in sent if not p.ranked]
            assert len(plain) <= 1, "a step is sent twice"
            if shared.selection.rule not in RANKED and plain:
                # The last place may have the selected environment instead.
                chosen = shared.selection.given(NUM_ENVS, ROWS, NO_CHANCE)[: ROWS - 1]
                assert plain[0].env_index[: len(chosen)].tolist() == chosen.tolist()
            # Launched steps are ranked as they arrive: others' models come with the next one.
            late = way == "launch" and model and shared.selection.rule in RANKED
            if control.mode == "every_step" and control.wants("train") and not late:
                assert sent or not begun, "a step is missing"
                begun |= bool(sent)
            training.packets.clear()


@both_ways
@settings(max_examples=30)
@given(sequence=sequences, rate=st.floats(5.0, 1_000.0), mode=st.sampled_from(MODES))
def test_no_decision_lets_so_many_steps_pass_that_a_switch_takes_longer(way, sequence, rate, mode):
    training = Training(way, Control(), rate=rate)
    for change, steps in sequence:
        play(training, [(change, steps)])
        training.shared.control = Control(mode=mode)
        training.run(0.3)
        assert max(training.device.skips) <= 0.2 * rate + 1
        training.shared.control = Control(watched=True, mode=mode)
        training.packets.clear()
        before = training.now
        while not training.packets:
            training.step()
            assert training.now - before <= max(0.2, 1.5 / rate)


@both_ways
@settings(max_examples=15)
@given(
    rate=st.floats(20.0, 500.0),
    call=st.floats(1e-5, 2e-3),
    tight=st.floats(1.3, 8.0),
    sequence=st.lists(
        st.tuples(
            st.sampled_from(["realtime", "latest"]),
            st.booleans(),
            st.floats(1.0, 10.0),
            selections,
            st.none() | st.integers(0, NUM_ENVS - 1),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_a_long_random_sequence_stays_within_the_budget(way, rate, call, tight, sequence):
    # Noticing the switch in time takes a part of the budget: a smaller one cannot be kept. Of what
    # is left, the page could use several times as much.
    budget = min(tight * call / 0.05 / (1 - SENDING_SHARE), 0.5)
    control = Control(max_overhead=budget, speed=4.0, fps=60.0, stretch_seconds=1.0)
    # An ask looks at the clock that often, and a push up to three times as often.
    training = Training(way, control, rate=rate, tick=call / 4)
    shared = training.shared
    training.run(3.0 + 3 / rate)  # until the rate is known
    start, spent = training.now, shared.meter.spent
    saved = max(training.host.rollouts["train"].pacer._budget.credit, 0.0)
    for mode, watched, seconds, selection, env in sequence:
        shared.control = replace(shared.control, mode=mode, watched=watched)
        shared.selection, shared.selected_env = selection, env
        training.run(seconds)
    # Each page that opens gets a step at once, and so does each choice.
    allowed = budget * (training.now - start) + saved + (5 + 4 * len(sequence)) * 3 * call
    assert shared.meter.spent - spent <= allowed


# The hold, which waits: the training has a thread of its own.


class Held:
    """A training that steps in a thread, and is held."""

    def __init__(self, way: str, control: Control, **origin: Any):
        self.training = Training(way, control, **origin)
        self.hold = self.training.shared.hold
        self.hold.pause()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            self.training.step()

    def at(self, step: int) -> bool:
        """Whether the training waits at this step."""
        return self.hold.parts() == {("train", 0): (step, True)} and self.training.taken == step

    def stop(self) -> None:
        self._over = True
        self.hold.close()
        self._thread.join(60)
        assert not self._thread.is_alive() and self.training.shared.fault is None


@both_ways
@settings(max_examples=40)
@given(
    control=controls.map(lambda control: replace(control, hold_on_nan=False)),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(1, 5)),
            selections.map(lambda selection: ("selection", selection)),
            st.tuples(st.just("selected_env"), st.none() | st.integers(0, NUM_ENVS - 1)),
        ),
        min_size=1,
        max_size=6,
    ),
    model=models,
)
def test_a_held_training_takes_and_shows_no_step_beyond_its_own(way, control, moves, model):
    held = Held(way, control, model=model)
    training, shared, step = held.training, held.training.shared, 1
    try:
        eventually(lambda: held.at(1), "held at the first step")
        for what, value in moves:
            if what == "step":
                held.hold.step(value)
                step += value
            else:
                setattr(shared, what, value)
                held.hold.refresh()
            eventually(lambda step=step: held.at(step), f"held at step {step}")
            sent = [*training.packets, *shared.mailbox.take()]
            assert all(p.env_steps <= step for p in sent if hasattr(p, "env_steps"))
            assert control.streaming or not sent
    finally:
        held.stop()
