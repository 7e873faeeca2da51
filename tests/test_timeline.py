"""Tests what the time bar is told, and what it can ask for: pure logic, no server."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from brax_viser.cli.replay import _follow
from brax_viser.host.control import Control
from brax_viser.host.metrics import STEPS_PER_SECOND
from brax_viser.host.state import SharedState
from brax_viser.page import timeline as timelines
from brax_viser.page.replay import Replay
from brax_viser.page.state import PageState
from brax_viser.page.timeline import Timeline
from brax_viser.panel.curve_lines import STEPWISE
from brax_viser.runs.folder import RunFolder
from brax_viser.runs.reader import open_run
from brax_viser.sandbox.trial import Trial
from tests.recorded import Kept, recording_of, run_of
from tests.test_replay import MODEL, at_once

PARTS = "curves", "plots", "marks", "holds"
LARGE = recording_of(MODEL, 0), recording_of(MODEL, 1000), recording_of(MODEL, 9000)


class Bar:
    """A time bar of a training that is not stepped, and a page that has been told of it."""

    def __init__(self, kept: Kept, **recorded: Any):
        self.shared = SharedState(Control())
        self.kept, self.replay = kept, Replay(kept, at_once)
        run = run_of(MODEL, 0.1) if recorded else None
        if run is not None:
            run.__dict__["settings"] = recorded
        self.state = PageState()
        self.timeline = Timeline(self.shared, self.state, self.replay, run)
        self.replay.update()
        self.has: dict[str, str] = {}  # versions

    def report(self, step: int, **rewards: float) -> None:
        names = {"training": "episode/sum_reward", "evaluation": "eval/episode_reward"}
        self.shared.progress.reported(step, {names[n]: x for n, x in rewards.items()}, 0.0)

    def log(self, step: int, **numbers: float) -> None:
        self.shared.progress.reported(step, numbers, 0.0)

    def told(self) -> dict[str, Any]:
        """What a page is told that has everything it was told before, as its browser reads it."""
        text = json.dumps(self.timeline.told(self.has, steers=True), allow_nan=False)
        assert len(text) < 150_000
        found = json.loads(text)
        for name in PARTS:
            if name in found:
                self.has[name] = found[name]["version"]
                found[name] = found[name]["of"]
        return found

    def do(self, name: str, **query: object) -> None:
        self.timeline.carry_out(name, {key: str(value) for key, value in query.items()})


@pytest.fixture
def bar() -> Bar:
    return Bar(Kept(episode for recording in LARGE for episode in recording))


def test_a_page_is_told_everything_once_and_then_only_what_has_changed(bar):
    bar.report(500, training=1.25, evaluation=2.0)
    told = bar.told()
    assert (told["live"], told["now"], told["end"], told["held"]) == (True, 500, None, False)
    lines = [["training", [[500, 1.25]]], ["evaluation", [[500, 2.0]]]]
    assert told["curves"] == {"what": "Reward", "lines": lines}
    assert told["plots"] == ["Reward", "episode/sum_reward", "eval/episode_reward"]
    assert [step for step, _ in told["marks"]] == [0, 1000, 9000] and told["holds"] == []
    assert not set(PARTS) & set(bar.told())
    bar.report(1000, training=3.5)
    assert bar.told().keys() & set(PARTS) == {"curves"}
    bar.kept.drop(LARGE[1][0].summary.key)
    bar.replay.update()
    again = bar.told()
    assert "curves" not in again
    assert [len(episodes) for _, episodes in again["marks"]] == [4, 3, 4]


def test_a_page_that_was_told_by_another_process_is_told_everything_again(bar):
    bar.report(500, training=1.0)
    bar.told()
    other = Bar(bar.kept)
    other.report(500, training=1.0)
    other.has = bar.has
    assert set(PARTS) <= other.told().keys()


def test_a_mark_says_how_its_episode_went(bar):
    (_, episodes), *_ = bar.told()["marks"]
    best, worst = LARGE[0][0].summary, LARGE[0][1].summary
    returns = [pytest.approx(s.episode_return, rel=1e-4) for s in (best, worst)]
    assert episodes[0] == [best.key, 1, returns[0], 50 * 0.02, "truncated", ["best"]]
    assert episodes[1] == [worst.key, 4, returns[1], 20 * 0.02, "terminated", ["worst"]]


def test_whatever_a_training_reports_is_bounded_and_json(bar, monkeypatch):
    for step in range(0, 30_000, 10):
        value = {700: math.nan, 11_000: math.inf}.get(step, float(step))
        bar.report(step, training=value, evaluation=math.nan)
    monkeypatch.setattr(timelines, "MOST_RECORDINGS", 2)
    told = bar.told()
    (name, points), (_, none) = told["curves"]["lines"]
    assert name == "training" and none == []
    assert 100 <= len(points) <= timelines.MOST_POINTS
    assert points[-1][0] > 29_900 and points == sorted(points)
    assert [step for step, _ in told["marks"]] == [0, 9000], "the first and the newest are there"
    bar.do("go", step=1100)
    assert bar.told()["replay"]["step"] == 1000, "one without a mark is found all the same"


def test_any_curve_is_drawn_once_chosen_and_the_first_one_if_it_no_longer_exists(bar):
    assert bar.told()["curves"] == {"what": "Reward", "lines": []}
    bar.log(500, loss=0.25)
    told = bar.told()
    assert told["curves"] == {"what": "loss", "lines": [["loss", [[500, 0.25]]]]}, (
        "there is no other"
    )
    bar.report(500, training=1.0)
    assert bar.told()["curves"]["what"] == "Reward"
    bar.do("curve", what="loss")
    assert bar.state.curve == "loss", "the tab draws it too"
    told = bar.told()
    assert told["curves"]["what"] == "loss" and "plots" not in told
    with pytest.raises(ValueError, match=r"what='nothing': must be one of Reward, "):
        bar.do("curve", what="nothing")
    bar.state.curve = STEPWISE  # what the tab alone can draw, over other times
    assert bar.told()["curves"]["what"] == "Reward"
    bar.do("curve", what="loss")
    bar.shared.progress.metrics.clear()
    assert bar.told()["curves"] == {"what": "Reward", "lines": []}


def test_the_speed_alone_is_offered_and_not_drawn(bar):
    bar.shared.progress.metrics.add(500, {STEPS_PER_SECOND: 9.0}, 0.0)
    told = bar.told()
    assert told["curves"] == {"what": "Reward", "lines": []}
    assert told["plots"][:2] == ["Reward", "Steps per second"]
    bar.do("curve", what="Steps per second")
    assert [label for label, _ in bar.told()["curves"]["lines"]] == ["Steps per second"]


def test_a_return_that_is_not_finite_is_sent_as_none(bar):
    summary = LARGE[0][2].summary
    summary.__dict__["episode_return"], finite = math.nan, summary.episode_return
    try:
        assert bar.told()["marks"][0][1][2][2] is None
    finally:
        summary.__dict__["episode_return"] = finite


@pytest.mark.parametrize(
    ("step", "shown"), [(-5, 0), (499, 0), (501, 1000), (4999, 1000), (5001, 9000), (1e12, 9000)]
)
def test_a_step_leads_to_the_recording_that_began_nearest_to_it(bar, step, shown):
    bar.do("go", step=step)
    told = bar.told()["replay"]
    assert told["active"] and told["playing"] and (told["step"], told["only"]) == (shown, None)
    assert [mark[0] for mark in told["episodes"]] == [
        episode.summary.key
        for recording in LARGE
        for episode in recording
        if recording[0].summary.recording == shown
    ]


def test_a_mark_leads_to_its_episode_alone_and_a_paused_replay_stays_paused(bar):
    key = LARGE[0][2].summary.key
    bar.do("go", episode=key)
    assert bar.told()["replay"]["only"] == key and [e.summary.key for e in bar.replay.shown()] == [
        key
    ]
    bar.do("toggle")
    bar.do("go", step=9000)
    told = bar.told()["replay"]
    assert (told["step"], told["only"], told["playing"]) == (9000, None, False)
    bar.kept.drop(key)
    bar.replay.update()
    with pytest.raises(ValueError, match="not kept any more"):
        bar.do("go", episode=key)


def test_compared_policies_are_named_by_their_steps_until_a_recording_is_chosen(bar):
    bar.replay.present(Trial(("Newest", "At the start"), (LARGE[2][0], LARGE[0][0])))
    assert bar.told()["replay"]["policies"] == [9010, 10]
    bar.do("go", step=1000)
    told = bar.told()["replay"]
    assert told["policies"] is None and told["step"] == 1000


def test_the_moment_the_speed_and_the_loop_are_set_and_told(bar):
    bar.do("toggle")
    bar.do("seek", seconds=1.25)
    bar.do("speed", speed=0.1)
    bar.do("loop", on=0)
    told = bar.told()["replay"]
    assert (told["position"], told["playing"], told["speed"], told["loop"]) == (
        1.25,
        False,
        0.1,
        False,
    )
    assert told["seconds"] == pytest.approx(5.0)
    assert not bar.told()["replay"]["backwards"]
    bar.do("play", backwards=1)
    told = bar.told()["replay"]
    assert told["playing"] and told["backwards"]
    bar.do("seek", seconds=1.25)
    bar.do("step", n=-1)
    assert bar.told()["replay"]["position"] == pytest.approx(1.1), "the step before 1.2 s"
    bar.do("turn", by=-1)
    assert bar.told()["replay"]["step"] == 1000
    bar.do("turn", by=-7)
    assert bar.told()["replay"]["step"] == 0, "no further than the first"
    bar.do("live")
    assert not bar.told()["replay"]["active"]


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf", "1e400", "9" * 400, "x", None])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("go", "step"),
        ("seek", "seconds"),
        ("step", "n"),
        ("turn", "by"),
        ("speed", "speed"),
        ("loop", "on"),
        ("play", "backwards"),
    ],
)
def test_a_number_that_cannot_be_used_changes_nothing(bar, name, argument, value):
    bar.do("toggle")
    before = bar.told()["replay"]
    with pytest.raises(ValueError, match="must be"):
        bar.do(name, **({} if value is None else {argument: value}))
    assert bar.told()["replay"] == before


def test_nothing_can_be_played_before_there_is_an_episode():
    bar = Bar(Kept())
    told = bar.told()
    assert told["marks"] == [] and told["replay"]["step"] is None
    for name, query in (("go", {"step": 5}), ("toggle", {}), ("turn", {"by": 1})):
        with pytest.raises(ValueError, match=r"No episode has been recorded yet|0 are kept"):
            bar.do(name, **query)


def test_holds_are_marked_where_they_began_and_go_with_their_training(bar):
    hold, timeline = bar.shared.hold, bar.timeline
    for step in range(10, 10 + 3 * timelines.MOST_HOLDS):
        bar.report(step)
        hold._stand_still()
        timeline.update()
        timeline.update()
        hold._stand_still_no_more()
        timeline.update()
    holds = bar.told()["holds"]
    assert timelines.MOST_HOLDS / 2 <= len(holds) <= timelines.MOST_HOLDS
    assert holds[0] == 10 and holds == sorted(set(holds))
    bar.shared.progress.begun += 1
    timeline.update()
    assert bar.told()["holds"] == []


def test_a_replay_of_a_run_directory_marks_where_its_training_was_held(tmp_path):
    folder = RunFolder(tmp_path, run_of(MODEL, 0.1))
    folder.set_holds([300, 20])
    assert folder.close()
    bar = Bar(Kept(LARGE[1]), num_timesteps=50_000)
    viewer: Any = SimpleNamespace(
        look=lambda: None, show_curves=lambda _: None, show_holds=bar.timeline.show_holds
    )

    looks = iter([False, True])  # of whether Ctrl-C was pressed
    ctrl_c: Any = type("Pressed", (), {"heard": property(lambda _: next(looks))})()
    _follow(open_run(tmp_path), viewer, ctrl_c)
    assert bar.told()["holds"] == [20, 300]
    bar.timeline.update()
    assert bar.timeline.holds == (20, 300), "they stay"


def test_a_training_that_is_over_spans_from_its_first_step_to_its_last():
    bar = Bar(Kept(LARGE[1]), num_timesteps=50_000)
    told = bar.told()
    assert (told["live"], told["now"], told["end"]) == (False, 1000, 50_000)
    bar.report(20_000, training=1.0)
    assert bar.told()["now"] == 20_000
    bar.log(10_000, loss=1.0)
    bar.do("curve", what="loss")
    assert bar.told()["now"] == 20_000, "whichever curve is drawn"
