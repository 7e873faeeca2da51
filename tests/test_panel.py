"""Tests the panel's head and its notes: what they say, and that nothing below them moves."""

import gzip
import html
import re
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
import pytest
import viser
from websockets.datastructures import Headers
from websockets.http11 import Response

from brax_viser import Viewer, VisualizedEnv
from brax_viser.host.metrics import SEEN_LENGTH, SEEN_REWARD
from brax_viser.host.progress import Progress
from brax_viser.model.physics import touching_nothing
from brax_viser.page import browser
from brax_viser.panel import figures, trial_words, twin_words, words
from brax_viser.panel.view import PanelView, ReplayView, TrialView
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER
from brax_viser.sandbox.session import ForkView
from brax_viser.sandbox.trial import Trial
from brax_viser.twins.verdict import Verdict
from tests.conftest import eventually
from tests.recorded import recording_of, run_of
from tests.support import Probe
from tests.toy import Toy

RECORDING = recording_of(Toy().model, 0)


@pytest.fixture
def view(viewer) -> PanelView:
    return Probe(viewer).panel_view()


def test_the_training_reward_comes_before_the_evaluations_and_before_what_is_on_screen():
    progress, told = Progress(), []
    progress.metrics.add(100, {SEEN_REWARD: 1.0, SEEN_LENGTH: 7.0}, 0.0)
    told.append(progress.view(0.0).rewards)
    progress.reported(200, {"eval/episode_reward": 2.0}, 0.0)
    told.append(progress.view(0.0).rewards)
    progress.reported(300, {"episode/sum_reward": 3.0, "episode/length": 8.0}, 0.0)
    told.append(progress.view(0.0).rewards)
    assert [(r.kind, r.newest, r.episode_length) for r in told if r is not None] == [
        ("seen", 1.0, 7.0),
        ("evaluation", 2.0, 7.0),
        ("training", 3.0, 8.0),
    ]


def test_the_kind_of_return_is_there_while_something_goes_by_it(viewer):
    probe = Probe(viewer)
    choice, looks = probe.panel.choice, probe.panel.look
    eventually(lambda: not choice._rank_by.visible, "the first ones have nothing to do with it")
    for control, value, usual in (
        (choice._rule, "Best return", "First ones"),
        (looks._colour, "Return", "As the model"),
        (looks._labels, True, False),
    ):
        probe.use(control, value)
        eventually(lambda: choice._rank_by.visible, "it is there")
        probe.use(control, usual)
        eventually(lambda: not choice._rank_by.visible, "it is gone")


def boxes(view: PanelView) -> list[str]:
    """Returns the heights of the head's lines, in order."""
    html = words.head(view) + figures.figures(view) + words.hold_note(view)
    return re.findall(r"[;\"]height:([\d.]+(?:em|px|%))", html.replace("height:100%", ""))


def test_the_head_is_as_high_with_figures_as_without_and_however_long_its_words_are(view):
    progress = Progress()
    for step in range(20):
        progress.reported(step, {"episode/sum_reward": 1e6 * step, "episode/length": 1e3}, 0.0)
    known = replace(progress.view(9.0), num_timesteps=10**9, elapsed=8.0, algorithm="PPO")
    full = replace(view, progress=known, env="A very long name" * 9, selected_env=3)
    views = [view, full, replace(full, held=True), replace(full, fault="something " * 40)]
    assert len({tuple(boxes(each)) for each in views}) == 1 and len(boxes(view)) > 7
    assert "something " * 40 in words.notices(views[-1]), "the fault can be read in full"
    assert "<polyline" in figures.figures(full) and "Training reward" in figures.figures(full)


def test_before_the_first_step_no_speed_and_no_cost_are_told(view):
    told = [replace(view, progress=replace(view.progress, elapsed=x)) for x in (0.0, 9.0)]
    for words_of in ("steps/s", "Watching costs"):
        assert [words_of in figures.figures(one) for one in told] == [False, True]


@pytest.mark.parametrize("value", [0.0, 1e-9, -12.345, 1234.5, np.nan, -np.inf, 1e12])
def test_any_reward_can_be_written_and_drawn(view, value):
    progress = Progress()
    for step in range(3):
        progress.reported(step, {"episode/sum_reward": value}, 0.0)
    html = figures.figures(replace(view, progress=progress.view(0.0)))
    assert "nan," not in html and ",inf" not in html


def frame(length: int, since: int, finished: int, fell: bool | None = None) -> Frame:
    one = np.ones(1, np.float32)
    return Frame(
        "train",
        env_steps=9,
        env_index=np.array([5], np.int32),
        num_envs=8,
        link_pos=np.zeros((1, 1, 3), np.float32),
        link_rot=np.zeros((1, 1, 4), np.float32),
        reward=one,
        episode_return=one,
        episode_length=np.array([length], np.int32),
        since_termination=np.array([since], np.int32),
        finite=one > 0,
        finished_return=one,
        finished_length=np.array([finished], np.int32),
        fell=None if fell is None else np.array([fell]),
    )


@pytest.mark.parametrize(
    ("shown", "words_"),
    [
        (frame(12, 12, 40), "ended in a termination, after 40 steps"),
        (frame(40, 0, 7), "ended in a termination with this step"),
        (frame(12, 300, 1000), "without a termination (a time limit), after 1,000 steps"),
        (frame(12, NEVER, 1000), "without a termination (a time limit), after 1,000 steps"),
        (frame(12, 13, 40), ""),  # cannot be told for certain
        (frame(12, NEVER, 0), ""),  # none has been seen
        (frame(-5, NEVER, 40), ""),
        (frame(12, 12, 40, fell=True), ""),
    ],
)
def test_the_reason_of_an_episodes_end_is_told_only_where_it_is_known(shown, words_):
    told = words.last_end(shown, 5)
    assert words_ in told and bool(told) == bool(words_)
    assert words.last_end(shown, 6) == ""


def test_each_control_says_what_it_is_for_and_no_label_is_there_twice(viewer):
    gui = Probe(viewer).server.gui
    handles = [handle for handle in gui._gui_input_handle_from_uuid.values()]
    inputs = [handle for handle in handles if getattr(handle, "label", None)]
    assert len(inputs) > 30
    assert not [handle.label for handle in inputs if len(handle.hint or "") < 20]
    labels = [handle.label for handle in inputs]
    assert not {label for label in labels if labels.count(label) > 1}


def test_the_hint_of_each_number_gives_its_limits(viewer):
    gui = Probe(viewer).server.gui
    hints = {
        handle.label: handle.hint or ""
        for handle in gui._gui_input_handle_from_uuid.values()
        if isinstance(handle, viser.GuiSliderHandle | viser.GuiNumberHandle)
    }
    assert len(hints) > 10
    lacking = [label for label, hint in hints.items() if not re.search("From .* to .*[.]$", hint)]
    assert lacking == ["How many"], "whose limit depends on the room that there is"
    assert hints["Smoothing"].endswith("From 0 to 0.99.")
    assert hints["Number of twins"].endswith("From 1 to 256.")


@pytest.mark.parametrize("typed", [500.0, -3.0])
@pytest.mark.parametrize(("tab", "name"), [("watch", "speed"), ("curves", "smooth")])
def test_a_number_beyond_a_sliders_limits_is_not_used_and_its_replacement_is_told(
    viewer, tab, name, typed
):
    probe = Probe(viewer)
    controls = getattr(probe.panel, tab)
    slider = getattr(controls, f"_{name}")
    used = (lambda: viewer.speed) if tab == "watch" else (lambda: controls._weight)
    before, note = used(), controls._notes[slider.label]
    probe.use(slider, typed)
    said = f"{typed:g} is not used: it must be {slider.min:g} to {slider.max:g}."
    eventually(lambda: note.visible and said in note.content, "it is named")
    assert used() == before
    nearest = min(max(typed, slider.min), slider.max)
    probe.use(slider, nearest)  # as viser's client does when the box is left
    said = f"{nearest:g} is used instead of {typed:g}"
    eventually(lambda: note.visible and said in note.content, "what is in its place is named")
    eventually(lambda: used() == nearest, "and used")
    probe.use(slider, 0.5)
    eventually(lambda: used() == 0.5 and not note.visible, "the note goes")


def stepped(viewer: Viewer) -> Callable[[], object]:
    """Steps 8 environments, of which 4 are drawn; returns a function that steps them once more."""
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    states = [jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 8))]

    def advance() -> None:
        states.append(jax.block_until_ready(step(states.pop(), np.zeros((8, 1)))))

    advance()
    eventually(lambda: viewer.stats().env_steps > 0, "the number of envs is known")
    return advance


@pytest.mark.usefixtures("page")
def test_fewer_robots_are_drawn_if_a_person_wants_fewer_whatever_the_rule(viewer):
    probe, advance = Probe(viewer), stepped(viewer)
    field, shown = probe.panel.choice._most, lambda: probe.panel_view().drawn

    def drawn(count: int) -> bool:
        advance()
        return shown() == count

    def envs(*expected: int) -> bool:
        advance()
        frame = probe.panel_view().frame
        return frame is not None and frame.env_index.tolist() == [*expected]

    eventually(lambda: drawn(4) and field.visible and field.value == 4, "there are four cells")
    probe.use(field, 2)
    eventually(lambda: drawn(2), "two are drawn")
    note = probe.panel.choice._notes["How many"]
    probe.use(field, 5)
    eventually(lambda: "5 is not used, 2 is: it must be 1 to 4." in note.content, "no room")
    for rule, expected in ((("page", 3), (4, 5)), ("first", (0, 1))):
        viewer.select(rule)
        eventually(lambda expected=expected: envs(*expected), f"two are drawn: {rule}")
    viewer.selected_env = 7
    eventually(lambda: envs(0, 7), "the selected one is one of them")
    viewer.select([1, 2, 3])
    eventually(lambda: envs(1, 2, 3, 7), "those that are listed are drawn, and the selected one")
    eventually(lambda: not field.visible, "without a limit")


@pytest.mark.usefixtures("page")
def test_indices_that_no_env_has_are_refused_beside_the_field_and_the_robots_stay(viewer):
    probe = Probe(viewer)
    stepped(viewer)
    probe.use(probe.panel.choice._rule, "Chosen by index")
    eventually(lambda: probe.shared.selection.rule == "indices", "the first ones are listed")
    shown = probe.shared.selection
    probe.use(probe.panel.choice._indices, "1, 900")
    refused = "There is no env 900: there are 8, 0 to 7"
    eventually(lambda: refused in words.drawn(probe.panel_view()), "the panel says so")
    assert probe.shared.selection == shown
    for typed in ("1", "1, ", "1, 3"):
        probe.use(probe.panel.choice._indices, typed)
    eventually(lambda: probe.shared.selection.indices == (1, 3), "others are chosen")
    assert refused not in words.drawn(probe.panel_view())
    viewer.select([2, 900])  # a script is not refused, as it may choose before the first step
    eventually(lambda: "There is no env 900" in words.drawn(probe.panel_view()), "but told")


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_the_page_is_served_with_our_script_and_style_and_all_else_as_viser_serves_it(
    viewer, encoding
):
    asked = urllib.request.Request(viewer.url, headers={"Accept-Encoding": encoding})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        body = answer.read()
        assert int(answer.headers["Content-Length"]) == len(body)
        assert answer.headers["Content-Encoding"] == encoding
    page = gzip.decompress(body) if encoding == "gzip" else body
    before, added, after = page.partition(browser.additions())
    assert added and b'<div id="root">' in before and after.startswith(b"</body>")
    real = Path(viser.__file__).parent / "client" / "build" / "index.html"
    assert before + after == real.read_bytes()
    assert browser.add_to(None) is None


def test_a_page_that_is_not_as_expected_is_served_as_it_is_and_one_line_is_logged(caplog):
    def page() -> Response:
        body = b"<html><body><div>another viser"
        return Response(
            200, "OK", Headers({"Content-Type": "text/html", "Content-Length": "1"}), body
        )

    for _ in range(3):
        assert browser.add_to(page()).body == page().body
    assert [record.message for record in caplog.records] == [
        "viser's page has no closing body tag, so the time bar can't be added"
    ]


def test_a_sandbox_says_which_parts_touch_nothing_and_how_its_episode_is_started_again(view):
    spheres = """
    <mujoco><worldbody>
      <geom name="floor" type="plane" size="5 5 1"/>
      <body name="feet" pos="0 0 1"><freejoint/><geom size="0.1"/>
        <body name="trunk"><geom size="0.2" contype="0" conaffinity="0"/></body>
        <body name="head"><geom size="0.1" contype="0" conaffinity="0"/></body>
        <body name="marker"><geom size="0.1" contype="0" conaffinity="0" group="4"/></body>
      </body>
    </worldbody>%s</mujoco>"""
    model = mujoco.MjModel.from_xml_string(spheres % "")
    assert touching_nothing(model) == ["trunk", "head"]
    runs = replace(view, model=model, fork=ForkView(env=1, time=2.0, done=True, driver="still"))
    through = "touch nothing, not even the floor, as the model says: trunk, head"
    told = twin_words.fork_facts(runs)
    assert through in told and f"would have ended here: {twin_words.BACK} starts it again" in told
    before = replace(runs, fork=ForkView())
    assert through in twin_words.fork_facts(replace(before, selected_env=1)), "before the fork, too"
    assert not twin_words.fork_facts(replace(before, selected_env=None))
    paired = '<contact><pair geom1="floor" geom2="a"/><pair geom1="floor" geom2="b"/></contact>'
    named = spheres.replace('"0.2"', '"0.2" name="a"').replace(
        '"head"><geom', '"head"><geom name="b"'
    )
    assert touching_nothing(mujoco.MjModel.from_xml_string(named % paired)) == []


def test_a_hold_at_the_end_of_the_selected_robots_episode_says_so(view):
    held = replace(view, held=True, paused=True, selected_env=5, frame=frame(40, 0, 7))
    assert words.state(held)[1] == "env 5 terminated: see Robot"
    told = replace(held, why_ended="torso height 1.02 above 1")
    assert words.state(told)[1] == "env 5 terminated: torso height 1.02 above 1"
    for other in (
        replace(held, frame=frame(12, 12, 40)),  # it has begun another one
        replace(held, selected_env=6),  # which is not on screen
        replace(held, selected_env=None),
    ):
        assert words.state(other)[1] == "the training waits for you"
    replayed = replace(held, replay=ReplayView(active=True))
    assert "env 5" not in words.state(replayed)[1], "the frame is not that of the hold"


@pytest.mark.parametrize(("phase", "what"), [("training", "the next steps"), ("done", "is over")])
def test_twins_are_not_promised_once_the_training_is_over(view, phase, what):
    on = replace(view.control, twins=16)
    asked = replace(view, control=on, progress=replace(view.progress, phase=phase), frame=None)
    assert what in twin_words.twins(asked)


def test_the_end_says_how_robots_go_on_and_where_the_policy_is_in_whole(view):
    path = "/home/a/" + 6 * "long-folder/" + "policy"

    def ended(plays_on: str | None = None, **changes: Any) -> PanelView:
        progress = replace(view.progress, phase="done", saved=path, plays_on=plays_on)
        return replace(view, env="Ant · spring", progress=progress, **changes)

    sandbox = ForkView(env=3, driver="policy")
    for shown, state, line in (
        (ended("soon"), "Finished", "plays on in a moment."),
        (ended("now"), "Finished, the policy plays on", "nothing is recorded."),
        (ended("now", fork=sandbox), "Finished, the policy plays on", "nothing is recorded."),
        (ended(fork=sandbox), "Finished, the policy plays on", "may do worse here."),
        (ended(), "Finished", "nothing to hold."),
    ):
        assert words.state(shown)[0] == state
        assert line in words.hold_note(shown)
        place = words.hold_note(shown).partition(path)[0].rpartition("<div")[2]
        assert words.WHOLE in place, "it is broken, not cut off"
    learned_there = replace(ended(fork=sandbox), env="Ant · mjx")
    assert "worse" not in words.hold_note(learned_there)
    replayed = replace(ended("now"), replay=ReplayView(active=True, steps=(0,)))
    assert words.state(replayed)[1] == f"policy saved to {path}", "no line more than live"


@pytest.mark.parametrize(
    "phase, word, detail",
    [
        (
            "compiling",
            "Compiling a step of the robots",
            "for 3 s: a minute or two is normal",
        ),
        ("training", "The policy plays", "on screen: step 2 k"),
        ("quiet", "The policy plays", "on screen: step 2 k"),
    ],
)
def test_a_policy_that_is_played_is_called_no_training(view, phase, word, detail):
    progress = replace(view.progress, phase=phase, phase_seconds=3.0, rewards=None)
    stream = replace(view.stream, step=2_000)
    control = replace(view.control, mode="every_step")
    trained = replace(view, progress=progress, stream=stream, control=control, waits=1.0)
    played = replace(trained, progress=replace(progress, plays=True))
    assert words.state(played) == (word, detail) != words.state(trained)
    assert "training" in figures.figures(trained)
    assert "no return yet" in figures.figures(played) and "time left" not in figures.figures(played)
    assert words.cost(played) == words.lines_of(["Costs nothing: no training runs"])


def test_a_training_that_took_more_steps_than_asked_for_says_how_many(view):
    for taken, said in ((64_000, "64 k of 100 k steps"), (102_400, ">102 k steps")):
        progress = replace(view.progress, num_steps=taken, num_timesteps=100_000)
        told = figures.figures(replace(view, progress=progress))
        assert said in told and ("100 k were asked for" in told) == (taken > 100_000)


@pytest.mark.parametrize(
    ("backend", "verdict", "sentence"),
    [
        ("mjx", None, ""),
        ("mjx", Verdict(16, 0, 3, 1.2, 0.02), "MuJoCo agrees: all 16 robots stay within 2 cm of "
         "their twins for the first 1.2 s."),
        ("mjx", Verdict(1, 0, 3, 1.2, 4e-4), "MuJoCo agrees: env 3 and its twin stay within 0.4 mm "
         "for the first 1.2 s."),
        ("spring", Verdict(16, 14, 5, 0.6, 1.21), "MuJoCo disagrees: 14 of 16 robots part from "
         "their twins by up to 1.3 m, env 5 first, after 0.6 s."),
        ("mjx", Verdict(1, 1, 5, 0.6, np.inf), "MuJoCo disagrees: env 5 parts from its twin, after "
         "0.6 s."),
    ],
)  # fmt: skip
def test_twins_say_in_one_sentence_whether_mujoco_agrees_and_if_not_why(
    view, backend, verdict, sentence
):
    on = replace(view.control, twins=16)
    shown = replace(view, control=on, verdict=verdict, env=f"Ant · {backend}")
    said = re.sub("<[^>]*>|&#9679;", "", twin_words.verdict(shown)).strip()
    assert html.unescape(said).startswith(sentence) and bool(said) == bool(sentence)
    parted = verdict is not None and verdict.parted > 0
    assert ("Brax's spring physics" in html.unescape(said)) == (parted and backend == "spring")
    assert ("the solver few iterations" in said) == (parted and backend == "mjx")
    for silent in (
        replace(shown, control=replace(on, mode="latest")),
        replace(shown, twin_fault="ValueError"),
        replace(shown, controls_known=False),
    ):
        assert twin_words.verdict(silent) == ""


@pytest.mark.parametrize(
    ("metres", "words_"),
    [(0.0, "0.1 mm"), (4e-4, "0.4 mm"), (0.0095, "9.5 mm"), (0.00999, "1 cm"), (0.07, "7 cm"),
     (0.0701, "8 cm"), (0.989, "99 cm"), (0.995, "1.0 m"), (1.01, "1.1 m"), (12.3, "12.3 m")],
)  # fmt: skip
def test_a_distance_is_rounded_up_so_that_within_it_stays_true(metres, words_):
    assert twin_words.length(metres) == words_


def test_the_numbers_are_the_first_box_to_look_inside_and_frames_the_last(viewer):
    inside = Probe(viewer).panel.inside
    boxes = {inside._numbers_wanted.order: "numbers"}
    boxes |= {handle.order: name for name, handle in inside._overlays.items()}
    names = [boxes[order] for order in sorted(boxes)]
    assert names[:3] == ["numbers", "contacts", "contact_forces"]
    assert names[-2:] == ["body_frames", "geom_frames"] and len(names) == 13
    assert min(boxes) < inside._inside.order < inside._overlays["contacts"].order


@pytest.mark.parametrize(("drawn", "verb"), [(1, "is"), (2, "are")])
def test_one_env_is_drawn_and_two_are(view, drawn, verb):
    stream = replace(view.stream, num_envs=256)
    assert f"{drawn} of 256 envs {verb} drawn" in words.drawn(
        replace(view, drawn=drawn, stream=stream)
    )


@pytest.mark.parametrize(
    ("backend", "recorded", "told"),
    [("spring", None, True), ("mjx", None, False), ("mjx", "positional", True)],
)
def test_two_policies_that_learned_in_braxs_own_physics_are_said_to_run_in_mujocos(
    view, backend, recorded, told
):
    trial = Trial(("Newest", "At the start"), (RECORDING[0], RECORDING[1]))
    run = recorded and replace(run_of(Toy().model, 0.05), backend=recorded)
    shown = replace(
        view,
        env=f"Ant · {backend}",
        recorded=run or None,
        trials=TrialView(choices=("Newest", "At the start")),
        replay=ReplayView(active=True, trial=trial),
    )
    note = trial_words.told(shown)
    assert (recorded or backend) in note if told else note == ""
    assert trial_words.told(replace(shown, replay=ReplayView())) == ""


def test_the_sandbox_says_in_which_physics_its_policy_has_learned_unless_it_is_mujocos(view):
    fork = ForkView(env=1, time=2.0, reward=0.5, driver="policy", policy_steps=3000)
    shown = replace(view, fork=fork, env="Ant · spring")
    learned = "Driven by the policy of step 3 k, learned in spring physics"
    assert learned in twin_words.fork_facts(shown)
    assert "learned" not in twin_words.fork_facts(replace(shown, env="Ant · mjx"))
