"""Steering while thousands of environments are stepped: selection, hold, streams."""

import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.episode import EpisodeLog
from brax_viser.device.host_call import LAUNCH, VARIABLE
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.host.mailbox import CAPACITY
from brax_viser.host.selection import Selection
from brax_viser.page import server as page_server
from brax_viser.page.channel import ProcessPlayback
from brax_viser.page.playback import Player
from brax_viser.panel.words import cost, drawn, head, notices
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import HEADER_COLUMNS, HEADER_HEAD
from brax_viser.twins.worker import TwinSettings
from tests.conftest import Page, eventually
from tests.sample import FallingCartPole
from tests.support import Probe

NUM_ENVS, NUM_DRAWN = 4096, 64
ROW = 2 * 7 + 8
"""Numbers per env in a push: 2 links of 7; reward, return, length, termination, return and length
of the last episode, whether it was reset, finite."""


class Training:
    """A rollout of 4,096 environments, stepped on request or continuously, in one viewer."""

    def __init__(self, viewer: Viewer, *, launched: bool = False):
        self.viewer, self.launched = viewer, launched
        env = VisualizedEnv(FallingCartPole("positional"), grid=(8, 8), viewer=viewer)
        self.env = envs.training.wrap(env, episode_length=100)
        self._reset = jax.jit(self.env.reset)
        self._steps = jax.jit(self._take)
        self._keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
        self.state: Any = self._reset(self._keys)
        self.page: Page | None = None
        self._stop = False
        self._thread: threading.Thread | None = None

    def _take(self, state: envs.State, count: jax.Array) -> envs.State:
        def body(i: jax.Array, state: envs.State) -> envs.State:
            action = jnp.full((NUM_ENVS, 1), jnp.sin(0.3 * i))
            return self.env.step(state, action)

        return jax.lax.fori_loop(0, count, body, state)

    def steps(self, count: int = 1) -> None:
        """Takes steps, and waits until they are done."""
        self.state = jax.block_until_ready(self._steps(self.state, count))

    def log(self) -> Any:
        """Returns the record of all environments after the last step, in numpy."""
        return EpisodeLog(**jax.device_get(self.state.info[INFO_KEY]))

    def run(self) -> None:
        """Steps continuously on a thread, in compiled loops of 50 steps."""

        def on_and_on() -> None:
            while not self._stop:
                self.steps(50)

        self._stop = False
        self._thread = threading.Thread(target=on_and_on, daemon=True)
        self._thread.start()

    def halt(self) -> None:
        """Ends the thread that `run` started, even if it is held."""
        self._stop = True
        self.viewer.resume()
        if self._thread is not None:
            self._thread.join(timeout=60)
            assert not self._thread.is_alive()
            self._thread = None

    def restart(self) -> None:
        self.state = self._reset(self._keys)


@pytest.fixture(scope="module", params=["countdown", pytest.param(LAUNCH, marks=pytest.mark.full)])
def the_training(request) -> Iterator[Training]:
    with pytest.MonkeyPatch.context() as patch, Viewer(port=0, mode="every_step") as viewer:
        if request.param == LAUNCH:
            patch.setenv(VARIABLE, LAUNCH)
        yield Training(viewer, launched=request.param == LAUNCH)


@pytest.fixture
def training(the_training) -> Iterator[Training]:
    """The training in its initial state, whatever the previous test did."""
    viewer = the_training.viewer
    viewer.mode, viewer.streaming, viewer.selected_env = "every_step", True, None
    viewer.rank_by = "last_episode"
    viewer.select("first")
    the_training.restart()
    the_training.page = Page(viewer)
    the_training.steps()
    eventually(lambda: on_screen(the_training) == list(range(64)), "the first ones are drawn")
    yield the_training
    the_training.halt()
    the_training.page.close()


def on_screen(training: Training) -> list[int]:
    return list(training.viewer.stats().drawn_envs)


def test_only_the_64_drawn_of_4096_envs_are_transferred(training):
    before = training.viewer.stats()
    training.steps(10)
    after = training.viewer.stats()
    assert after.streams["train"].num_envs == NUM_ENVS
    assert after.frames - before.frames == 10
    header = 0 if training.launched else HEADER_HEAD + len(HEADER_COLUMNS) * NUM_DRAWN
    assert after.bytes_moved - before.bytes_moved == 10 * 4 * (NUM_DRAWN * ROW + header)


def ranked(log: EpisodeLog, rule: str, rank_by: str) -> np.ndarray:
    """Returns the envs that should be drawn, in order, from the record of all environments."""
    if rule == "terminated":
        return np.argsort(log.since_termination, kind="stable")[:NUM_DRAWN]
    sign = -1.0 if rule == "best" else 1.0
    value, without = log.episode_return, np.zeros(NUM_ENVS, bool)
    rate = log.episode_return / log.episode_length
    if rank_by == "last_episode":
        without = log.finished_length == 0
        value = np.where(without, rate, log.finished_return)
    elif rank_by == "per_second":
        value = rate
    assert len(np.unique(value)) > 20  # the order means something
    return np.lexsort((np.arange(NUM_ENVS), sign * value, without))[:NUM_DRAWN]


@pytest.mark.parametrize(
    ("rule", "rank_by"),
    [
        ("worst", "last_episode"),
        ("best", "last_episode"),
        ("worst", "so_far"),
        ("best", "per_second"),
        ("terminated", "last_episode"),
    ],
)
def test_the_true_worst_best_or_just_terminated_of_4096_envs_are_drawn(training, rule, rank_by):
    training.steps(40)  # by now some have fallen, and returns differ
    training.viewer.rank_by = rank_by
    training.viewer.select(rule)
    before = training.viewer.stats()
    training.steps()
    log = training.log()
    expected = ranked(log, rule, rank_by)
    eventually(lambda: on_screen(training) == expected.tolist(), f"the {rule} are drawn")
    moved = training.viewer.stats().bytes_moved - before.bytes_moved
    if training.launched:  # all are copied, and ranked by the host
        assert moved == 4 * (NUM_ENVS + NUM_DRAWN) * ROW
        return
    # Ranking costs a second push: the envs that the device ranks first, to compare over devices.
    # A third one had already been granted for the envs that were drawn before.
    assert moved == 3 * 4 * (NUM_DRAWN * ROW + HEADER_HEAD + len(HEADER_COLUMNS) * NUM_DRAWN)


def test_terminated_envs_are_shown_as_they_fell_until_the_selection_changes(training):
    viewer, cart_pole = training.viewer, 2

    def shown() -> Any:
        return Probe(viewer).channels["train"].view

    training.steps(40)
    viewer.select("terminated", sticky=True)
    training.steps()
    log = training.log()
    expected = ranked(log, "terminated", "")
    eventually(lambda: on_screen(training) == expected.tolist(), "the last to fall are drawn")

    def as_it_fell() -> bool:
        np.testing.assert_array_equal(shown().frame.env_index, expected)
        fallen = training.log().last_pos[expected]
        return np.allclose(shown().link_pos, fallen, atol=1e-6)

    assert (log.last_pos[expected].shape) == (NUM_DRAWN, cart_pole, 3)
    eventually(as_it_fell, "each is as it fell")
    tilt = 2 * np.arcsin(np.abs(shown().link_rot[:, 1, 2]))
    out = np.abs(shown().link_pos[:, 0, 0]) > 1.5
    assert ((tilt > 0.4 - 1e-3) | out).all()  # not one of them is upright
    where = shown().frame.env_steps
    training.steps(3)
    eventually(lambda: shown().frame.env_steps > where and as_it_fell(), "it stays so")
    viewer.select("first")
    training.steps()
    eventually(lambda: on_screen(training) == list(range(64)), "the first ones are drawn")
    eventually(lambda: shown().frame.fell is None, "and as they are")


def test_no_env_is_drawn_until_some_have_a_nan_and_then_only_those(training):
    training.steps()
    training.viewer.select("nan")
    training.steps()
    eventually(lambda: on_screen(training) == [], "none is drawn")
    panel = Probe(training.viewer).panel_view
    words = "None of 4,096 envs has a NaN"
    eventually(lambda: words in drawn(panel(0.0)), "the panel says so")

    broken = [7, 1234, 4000]

    def found() -> bool:
        # At every step, because an env's NaN ends with its episode.
        pipeline_state = training.state.pipeline_state
        qd = pipeline_state.qd.at[jnp.array(broken)].set(jnp.nan)
        pipeline_state = pipeline_state.replace(qd=qd)
        training.state = training.state.replace(pipeline_state=pipeline_state)
        training.steps()
        return on_screen(training) == broken

    # The device is not asked at every step while no env is drawn.
    eventually(found, "those with a NaN are drawn")
    training.viewer.select("first")
    training.steps()
    eventually(lambda: len(on_screen(training)) == 64, "robots are back")


def test_pages_indices_and_the_selected_env_decide_which_envs_are_drawn(training):
    viewer = training.viewer
    viewer.select(("page", 64))
    training.steps()
    eventually(lambda: on_screen(training) == list(range(4032, 4096)), "the last page")
    viewer.selected_env = 5
    training.steps()
    eventually(lambda: on_screen(training) == [*range(4032, 4095), 5], "it is drawn too")
    viewer.select([100, 3, 77])
    training.steps()
    eventually(lambda: on_screen(training) == [100, 3, 77, 5], "those, in this order")
    viewer.selected_env = 77
    training.steps()
    eventually(lambda: on_screen(training) == [100, 3, 77], "the one before is drawn no more")


def test_a_random_selection_changes_with_each_stretch_unless_it_is_sticky(training):
    viewer = training.viewer
    viewer.stretch_seconds = 0.5
    viewer.select("random", sticky=True)
    training.steps()
    eventually(lambda: on_screen(training) != list(range(64)), "others than the first")
    kept = on_screen(training)
    threading.Event().wait(0.7)  # longer than a stretch
    training.steps(2)
    eventually(lambda: viewer.stats().frames and on_screen(training) == kept, "kept")
    viewer.select("random")
    threading.Event().wait(0.7)
    training.steps(2)
    eventually(lambda: on_screen(training) != kept, "chosen again")
    viewer.stretch_seconds = 3.0


def held_at(training: Training) -> int:
    eventually(lambda: training.viewer.stats().held, "held", timeout=30)
    return training.viewer.stats().env_steps


def test_a_training_is_held_stepped_inspected_and_resumed(training):
    viewer = training.viewer
    training.run()
    eventually(lambda: viewer.stats().env_steps > 50, "it runs", timeout=30)
    viewer.pause()
    at = held_at(training)
    assert not threading.Event().wait(0.3) and viewer.stats().env_steps == at
    assert "Held at step" in head(Probe(viewer).panel_view(0.0))
    overhead = viewer.stats().overhead

    # The page is live: it can show other environments at this same step.
    frames = viewer.stats().frames
    viewer.select("worst")
    eventually(lambda: on_screen(training) != list(range(64)), "the worst of this step")
    eventually(lambda: viewer.stats().frames > frames, "which were sent")  # counted afterwards
    assert viewer.stats().env_steps == at and viewer.stats().held
    viewer.select([9, 8, 7])
    eventually(lambda: on_screen(training) == [9, 8, 7], "chosen ones of this step")
    assert viewer.stats().env_steps == at

    viewer.step()
    eventually(lambda: viewer.stats().env_steps == at + 1 and viewer.stats().held, "one step")
    frame = lambda: Probe(viewer).scene.blocks["train"].frame  # noqa: E731
    eventually(lambda: frame().env_steps == at + 1, "on screen is the step where it is held")
    viewer.step(10)
    eventually(lambda: viewer.stats().env_steps == at + 11 and viewer.stats().held, "ten more")
    eventually(lambda: frame().env_steps == at + 11, "and that is shown")
    # The time during which the training is held does not count as a cost of watching.
    assert viewer.stats().overhead < overhead + 0.5

    viewer.resume()
    eventually(lambda: viewer.stats().env_steps > at + 30, "it runs on", timeout=30)
    assert not viewer.stats().held


def test_a_training_runs_to_the_selected_envs_termination_and_is_held_there(training):
    viewer = training.viewer
    with pytest.raises(ValueError, match="no env is selected"):
        viewer.run_to_termination()
    training.run()
    viewer.run_to_termination(2000)
    assert viewer.selected_env == 2000
    for _ in range(2):
        held_at(training)
        block = Probe(viewer).scene.blocks["train"]

        def fallen(block=block) -> bool:
            frame = block.frame
            if frame is None or frame.env_steps != viewer.stats().env_steps:
                return False  # the previous fall may still be on screen
            if 2000 not in frame.env_index:
                return False
            return frame.since_termination[list(frame.env_index).index(2000)] == 0

        eventually(fallen, "the fallen robot is on screen")
        at = viewer.stats().env_steps
        assert viewer.stats().env_steps == block.frame.env_steps
        viewer.run_to_termination()
        eventually(lambda: viewer.stats().env_steps > at, "on to the next")  # noqa: B023
    viewer.resume()


def test_closing_the_last_page_resumes_a_held_training_and_says_so(training, monkeypatch, caplog):
    monkeypatch.setattr(page_server, "RELOAD_SECONDS", 600.0)
    viewer = training.viewer
    training.run()
    viewer.pause()
    at = held_at(training)
    training.page.close()
    eventually(lambda: Probe(viewer).reload is not None, "it waits for a page to come back")
    waiting = Probe(viewer).reload
    assert waiting is not None
    reloaded = Page(viewer)
    waiting.join(timeout=60)
    assert not waiting.is_alive()  # a page came back in time: the training stays held
    assert viewer.stats().held
    monkeypatch.setattr(page_server, "RELOAD_SECONDS", 0.5)
    with caplog.at_level(logging.WARNING, "brax_viser"):
        reloaded.close()
        eventually(lambda: viewer.stats().env_steps > at + 10, "it goes on", timeout=60)
        eventually(lambda: "The last page was closed" in caplog.text, "it says so")
    assert not viewer.stats().held
    training.page = Page(viewer)
    assert "The last page was closed while" in notices(Probe(viewer).panel_view(0.0))
    viewer.pause()
    held_at(training)
    assert "The last page was closed" not in notices(Probe(viewer).panel_view(0.0))


def test_closing_the_viewer_resumes_a_held_training_and_says_so(caplog):
    viewer = Viewer(port=0)
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    viewer.pause()
    done = threading.Event()

    def one_step() -> None:
        jax.block_until_ready(step(state, jnp.zeros((4, 1))))
        done.set()

    threading.Thread(target=one_step, daemon=True).start()
    eventually(lambda: viewer.stats().held, "held", timeout=60)
    assert not done.wait(0.3)
    with caplog.at_level(logging.WARNING, "brax_viser"):
        viewer.close()
        assert done.wait(10)
    assert "the viewer was closed" in caplog.text


def test_without_streaming_a_held_training_sends_no_frames_until_it_is_on_again(training):
    viewer = training.viewer
    training.run()
    viewer.pause()
    held_at(training)
    viewer.streaming = False
    frames = viewer.stats().frames
    viewer.step(5)
    threading.Event().wait(0.3)
    eventually(lambda: viewer.stats().held, "stepped unseen")
    assert viewer.stats().frames == frames
    viewer.streaming = True
    eventually(lambda: viewer.stats().frames > frames, "the step at which it is held is shown")


def test_evaluation_and_training_are_distinguished_and_shown_side_by_side(training):
    viewer = training.viewer
    blocks = lambda: Probe(viewer).scene.blocks  # noqa: E731
    shown = blocks()["train"]
    wrapped = VisualizedEnv(FallingCartPole(), grid=(4, 2), viewer=viewer, role="eval")
    evaluation = envs.training.wrap(wrapped, episode_length=100)
    step = jax.jit(evaluation.step)
    state = jax.jit(evaluation.reset)(jax.random.split(jax.random.PRNGKey(1), 6))

    def evaluate(state: envs.State) -> envs.State:
        return jax.block_until_ready(step(state, jnp.zeros((6, 1))))

    # The training is shown by default, and an evaluation's first step does not replace it.
    assert viewer.show == "train"
    frames = viewer.stats().frames
    state = evaluate(state)
    threading.Event().wait(0.2)
    assert viewer.stats().frames == frames
    assert blocks() == {"train": shown} and len(on_screen(training)) == 64
    assert viewer.stats().streams["eval"].num_envs == 6
    assert viewer.stats().streams["train"].num_envs == NUM_ENVS

    viewer.show = "eval"
    training.steps(10)
    state = evaluate(state)
    assert viewer.stats().frames == frames + 1  # the evaluation's frame
    eventually(lambda: list(b := blocks()) == ["eval"] and b["eval"].frame, "it is shown")
    assert on_screen(training) == list(range(6))
    # Changes of the display are drawn at once, whether or not frames arrive.
    viewer.streaming = False
    viewer.selected_env = 3
    eventually(lambda: blocks()["eval"].ring.handle is not None, "the selected env is marked")
    click = Probe(viewer).commands.click
    Probe(viewer).enqueue(lambda: click(np.zeros(3), np.array([0.0, 0.0, 1.0])))
    eventually(lambda: viewer.selected_env is None, "a click on nothing clears the selection")
    viewer.streaming = True
    # The rollout that is shown is the one that is held and stepped.
    viewer.pause()
    for_it = threading.Thread(target=evaluate, args=(state,), daemon=True)
    for_it.start()
    eventually(lambda: viewer.stats().held, "held in the evaluation")
    viewer.resume()
    for_it.join(timeout=20)

    viewer.show = "both"
    eventually(lambda: list(blocks()) == ["train", "eval"], "room for both")
    for _ in range(3):
        training.steps()
        state = evaluate(state)
    eventually(lambda: all(b.frame is not None for b in blocks().values()), "both have come")
    assert {role: b.frame.role for role, b in blocks().items()} == {
        "train": "train",
        "eval": "eval",
    }
    spans = [block._origins[:, 1] for block in blocks().values()]
    assert spans[0].min() > spans[1].max()  # side by side, without overlap

    def titled() -> bool:  # titles are updated after the robots
        titles = [block.title._label.text for block in blocks().values()]
        return all(map(str.startswith, titles, ("Training · step", "Evaluation · step")))

    eventually(titled, "each says what it is")
    viewer.show = "train"
    training.steps()
    eventually(lambda: list(blocks()) == ["train"], "training alone again")
    assert not blocks()["train"].title._label.visible


@pytest.mark.parametrize(
    ("control", "value", "outcome"),
    [
        ("watch._streaming", False, lambda v: not v.streaming),
        ("watch._mode", "Latest", lambda v: v.mode == "latest"),
        ("watch._speed", 2.5, lambda v: v.speed == 2.5),
        ("pace._budget", 10, lambda v: v.max_overhead == pytest.approx(0.1)),
        ("pace._stretch", 7.0, lambda v: v.stretch_seconds == 7.0),
        ("choice._show", "Both, side by side", lambda v: v.show == "both"),
        ("choice._rule", "Worst return", lambda v: selection(v).rule == "worst"),
        ("choice._rule", "Chosen by index", lambda v: selection(v).indices == (0, 1, 2, 3)),
        ("choice._rank_by", "Episode so far", lambda v: v.rank_by == "so_far"),
        ("choice._indices", "3, 1", lambda v: selection(v).indices == (3, 1)),
        ("choice._indices", "three", lambda v: "'three'" in str(Probe(v).state.complaint)),
        ("choice._sticky", True, lambda v: selection(v).sticky),
        ("selected._others", "Hide", lambda v: Probe(v).state.look.others == "hide"),
        ("inside._numbers_wanted", True, lambda v: Probe(v).state.look.numbers),
        ("look._in_cells", False, lambda v: not Probe(v).state.look.in_cells),
        ("look._labels", True, lambda v: Probe(v).state.look.labels),
        ("look._colour", "Return", lambda v: Probe(v).state.look.colour_by == "return"),
        ("look._surroundings", "Dark", lambda v: Probe(v).scene.surroundings == "dark"),
        ("parts._sites", False, lambda v: not Probe(v).state.parts.sites),
        ("training._hold", True, lambda v: Probe(v).shared.hold.paused),
        ("training._step", "1 step", lambda v: Probe(v).shared.hold.paused),
        ("watch._hold_on_nan", True, lambda v: v.hold_on_nan),
        ("twins._on", True, lambda v: v.twins == 16),
        ("twins._count", 4, lambda v: v.twins == 4),
        ("twins._place", "Beside them", lambda v: v.twin_settings.beside),
        ("twins._physics", "As the model's file", lambda v: v.twin_settings.as_made),
        ("twins._every", 7, lambda v: v.twin_settings.every == 7),
        ("twins._limit", 0.5, lambda v: v.twin_settings.limit == 0.5),
    ],
    ids=lambda x: str(x) if not callable(x) else "",
)
def test_a_control_of_the_page_takes_effect(one_viewer, control, value, outcome):
    folder, name = control.split(".")
    Probe(one_viewer).use(getattr(getattr(Probe(one_viewer).panel, folder), name), value)
    eventually(lambda: outcome(one_viewer), str(control))
    assert Probe(one_viewer).shared.fault is None


def selection(viewer: Viewer) -> Selection:
    return Probe(viewer).shared.selection


def test_a_key_has_the_effect_of_its_control(one_viewer):
    Probe(one_viewer).enqueue(Probe(one_viewer).commands.toggle_streaming)
    eventually(lambda: not one_viewer.streaming, "it is off")
    Probe(one_viewer).enqueue(Probe(one_viewer).commands.toggle_streaming)
    eventually(lambda: one_viewer.streaming, "and on")


def test_a_refused_action_becomes_the_pages_notice_and_not_a_fault(one_viewer):
    probe = Probe(one_viewer)
    probe.enqueue(lambda: probe.steering.set_max_overhead(7.0))
    eventually(lambda: "at most 1" in str(probe.state.notice), "the page says why")
    assert probe.shared.fault is None and one_viewer.max_overhead == 0.02


@pytest.fixture(scope="module")
def a_viewer():
    with Viewer(port=0) as viewer:
        VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
        yield viewer


@pytest.fixture
def one_viewer(a_viewer):
    yield a_viewer
    a_viewer.streaming, a_viewer.mode, a_viewer.speed = True, "realtime", 1.0
    a_viewer.max_overhead, a_viewer.stretch_seconds, a_viewer.show = 0.02, 3.0, "train"
    a_viewer.select("first")
    a_viewer.rank_by, a_viewer.hold_on_nan = "last_episode", False
    a_viewer.twins, a_viewer.twin_settings = 0, TwinSettings()
    a_viewer.resume()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("speed", 0.05, "0.1 to 4.0 robot seconds"),
        ("stretch_seconds", 31, "0.5 to 30"),
        ("max_overhead", 0, "above 0"),
        ("show", "all", "must be one of 'train', 'eval', 'both'"),
        ("selected_env", -1, "must be an env index"),
        ("selected_env", 1.5, "must be an env index"),
    ],
)
def test_a_bad_value_is_refused_and_the_error_gives_the_limit(one_viewer, name, value, words):
    with pytest.raises(ValueError, match=words):
        setattr(one_viewer, name, value)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_a_bad_number_of_steps_is_refused(one_viewer, n):
    with pytest.raises(ValueError, match="at least 1"):
        one_viewer.step(n)


@pytest.mark.parametrize(
    ("typed", "expected", "wrong"),
    [
        ((0.0, 0.5), 0.005, None),
        ((5.0, 50.0, 500.0), 0.02, "500 is not used, 2 is: it must be 0.1 to 100."),
        ((5.0, 0.0), 0.02, "0 is not used, 2 is: it must be 0.1 to 100."),
    ],
)
def test_a_budget_takes_effect_once_typed_and_a_wrong_one_is_reported(
    one_viewer, typed, expected, wrong
):
    probe = Probe(one_viewer)
    budget = probe.panel.pace._budget
    # The page must first show the value set from code, which would overwrite the typed one later.
    eventually(lambda: probe.panel.pace._numbers.get(budget.label) == 2.0, "the budget is shown")
    for value in typed:
        probe.use(budget, value)
    note = probe.panel.pace._notes[budget.label]
    if wrong is not None:
        eventually(lambda: note.visible and wrong in note.content, "the note says what is wrong")
    eventually(lambda: one_viewer.max_overhead == expected, "it is obeyed")
    assert one_viewer.max_overhead == expected and probe.shared.fault is None
    assert budget.value == typed[-1]  # the typed number is not replaced
    probe.use(budget, 2.0)
    eventually(lambda: not note.visible and one_viewer.max_overhead == 0.02, "the note goes")


def test_next_fall_without_a_robot_is_refused_with_a_notice_until_another_action(one_viewer):
    probe = Probe(one_viewer)
    probe.enqueue(probe.commands.run_to_next_fall)
    eventually(lambda: "click on a robot first" in str(probe.state.notice), "the page says why")
    assert not probe.shared.hold.paused
    probe.enqueue(lambda: probe.commands.look(labels=True))
    eventually(lambda: probe.state.notice is None, "it is no longer said")


def test_on_its_way_to_the_next_fall_a_training_can_be_held_at_once(one_viewer):
    probe = Probe(one_viewer)
    hold, button = probe.shared.hold, probe.panel.training._hold
    one_viewer.pause()
    eventually(lambda: button.label == "Resume training", "the button lets it go on")
    hold.run_to_termination(3)
    eventually(lambda: button.label == "Hold training", "while it moves, the button holds it")
    assert hold.until_env == 3
    probe.enqueue(probe.commands.toggle_hold)
    eventually(lambda: hold.until_env is None and hold.paused, "it is held, and no fall awaited")
    eventually(lambda: button.label == "Resume training", "the button lets it go on")
    probe.enqueue(probe.commands.toggle_hold)
    eventually(lambda: not hold.paused, "it goes on")


def test_a_selected_robots_folder_says_where_it_can_be_pushed(one_viewer):
    probe = Probe(one_viewer)
    told = probe.panel.selected._sandbox
    assert told.content == ""
    one_viewer.selected_env = 0
    eventually(lambda: "sandbox under Twins" in told.content, "the tab is named")
    one_viewer.selected_env = None
    eventually(lambda: told.content == "", "nothing is selected")


def test_packets_of_one_step_are_joined_over_devices_when_the_selection_changes():
    layout = (("link_pos", (1, 3)), ("link_rot", (1, 4)), ("reward", ()), ("episode_return", ()))
    layout += (("episode_length", ()), ("since_termination", ()), ("finite", ()))

    def packet(shard: int, drawn: np.ndarray) -> Packet:
        mine = drawn[drawn // 10 == shard]
        rows = np.ones((len(mine), 12), np.float32)
        return Packet(None, "train", shard, 7, mine, drawn, 20, layout, rows)

    old, new = np.array([0, 1, 12], np.int32), np.array([15, 3, 11], np.int32)
    playback = ProcessPlayback(Player(0.05))
    for one in (packet(0, old), packet(1, new), packet(1, new)):
        assert playback.receive(one) is None
    frame = playback.receive(packet(0, new))
    assert frame is not None and frame.env_index.tolist() == [15, 3, 11]


HELD = """
    import signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their jobs ignore it
    from brax.training.agents.ppo import train as ppo
    from brax_viser import Viewer, VisualizedEnv
    from tests.toy import BraxToy

    viewer = Viewer(port=0)

    def hold():
        while viewer.stats().env_steps < 20:
            time.sleep(0.01)
        viewer.pause()
        while not viewer.stats().held:
            time.sleep(0.01)
        print("held", flush=True)

    threading.Thread(target=hold, daemon=True).start()
    env = VisualizedEnv(BraxToy(), grid=(2, 2), viewer=viewer)
    ppo.train(
        environment=env, num_timesteps=10**9, num_envs=8, episode_length=100, unroll_length=5,
        batch_size=8, num_minibatches=2, run_evals=False,
    )
"""


def test_ctrl_c_ends_a_training_that_is_held():
    """The main thread is then inside XLA, where Python runs no signal handler."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HELD)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "held\n":
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode not in (0, None), errors
    assert "KeyboardInterrupt" in errors


SIGNALLED = """
    import asyncio, signal, threading
    import jax, numpy as np
    from brax.training.agents.ppo import train as ppo
    from brax_viser import Viewer, VisualizedEnv
    from tests.conftest import eventually
    from tests.support import Probe
    from tests.toy import BraxToy

    def trained(env):
        _, params, _ = ppo.train(
            environment=env, num_timesteps=4000, num_envs=8, episode_length=100, unroll_length=5,
            batch_size=8, num_minibatches=2, run_evals=False,
        )
        return jax.tree.leaves(params)

    def tell():
        eventually(lambda: viewer.stats().held, "it is held", timeout=600)
        print("held", flush=True)

    async def main():  # the event loop takes the wakeup descriptor from the viewer
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
        return trained(env)

    viewer, handled = Viewer(port=0), []
    signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
    alone = trained(BraxToy())
    env = VisualizedEnv(BraxToy(), grid=(2, 2), viewer=viewer)
    viewer.pause()
    threading.Thread(target=tell, daemon=True).start()
    watched = asyncio.run(main())
    assert handled and all(map(np.array_equal, watched, alone))
    print(Probe(viewer).state.notice)
    viewer.close()
"""


def test_another_signal_lets_a_held_training_go_on_and_its_handler_runs():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIGNALLED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "held\n":
                break
        process.send_signal(signal.SIGUSR1)
        words, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "The training goes on: SIGUSR1 has come" in words


class CountingLock:
    """A lock that counts the functions called while it is held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.most = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._calls = 0
        sys.setprofile(self._count)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self.most = max(self.most, self._calls - 1)  # without `__exit__`
        self._lock.release()

    def _count(self, frame: Any, event: str, arg: Any) -> None:
        self._calls += event == "call"


def test_few_functions_are_called_while_the_shared_states_lock_is_held(training, monkeypatch):
    viewer, probe = training.viewer, Probe(training.viewer)
    viewer.twins, viewer.selected_env = 4, 3
    training.steps(20)
    page, lock = training.page, CountingLock()
    assert page is not None
    monkeypatch.setattr(Probe(viewer).shared, "lock", lock)
    probe.now(lambda: probe.panel_view(time.monotonic()))
    assert 0 < lock.most <= 5
    lock.most = 0
    viewer.stats()
    # It reads the progress and the speed of each rollout.
    assert 0 < lock.most <= 6 + 4 * sum(len(source.rollouts) for source in Probe(viewer).sources)
    viewer.twins = 0


def test_the_panel_says_that_the_training_waits_for_the_viewer(training, monkeypatch):
    probe = Probe(training.viewer)
    words = lambda: cost(probe.panel_view(time.monotonic()))  # noqa: E731
    assert "waits for the viewer" not in words()
    shown: list[str] = []
    show = probe.panel.show
    monkeypatch.setattr(probe.panel, "show", lambda v: (shown.append(cost(v)), show(v)))
    busy = threading.Event()
    probe.events.soon(lambda: busy.wait(60))
    begun = time.monotonic()
    training.run()
    eventually(lambda: len(probe.shared.mailbox._packets) == CAPACITY, "there is no room left")
    time.sleep(0.2 + 0.2 * (time.monotonic() - begun))  # so that the training has waited
    busy.set()
    eventually(lambda: any("The training waits for the viewer" in text for text in shown), "said")
    training.halt()
