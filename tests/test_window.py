"""Whole episodes are put together from single steps, and some of each recording are kept."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.records.episode import Episode, Summary
from brax_viser.records.packet import Packet
from brax_viser.runs.recorder import Recorder
from brax_viser.runs.window import MOST_FALLEN, Window, choose

LAYOUT = (
    ("link_pos", (1, 3)),
    ("link_rot", (1, 4)),
    *((name, ()) for name in ("reward", "episode_return", "episode_length", "since_termination")),
    *((name, ()) for name in ("finished_return", "finished_length", "was_reset", "finite")),
    ("qpos", (1,)),
    ("qvel", (1,)),
    ("action", (1,)),
    ("metrics/height", ()),
    ("before/qpos", (1,)),
    ("before/qvel", (1,)),
)


class Robot:
    """An environment whose qpos counts its steps from a reset at 100, and its episodes in
    hundreds."""

    def __init__(self, falls_after: int | None = None, limit: int = 5, age: int = 0):
        self.falls_after, self.limit = falls_after, limit
        self.length, self.finished, self.episode = age, 0, 1
        self.over = False

    def step(self) -> list[float]:
        if self.over:
            self.finished, self.length, self.over = self.length, 0, False
            self.episode += 1
        before = 100 * self.episode + self.length
        self.length += 1
        fell = self.length == self.falls_after
        self.over = fell or self.length == self.limit
        pose = [before + 1, 0, 0, 1, 0, 0, 0]
        since = 0 if fell else 9
        numbers = [1.0, self.length, self.length, since, self.finished, self.finished, 0, 1]
        return [*pose, *numbers, before + 1, -before - 1, 0.5, 7, before, -before]


def packets(
    robots: list[Robot], steps: int, *, first: int = 0, without: tuple[int, ...] = ()
) -> list[Packet]:
    drawn = np.arange(len(robots), dtype=np.int32)
    made = []
    for step in range(first, first + steps):
        rows = np.array([robot.step() for robot in robots], np.float32)
        if step not in without:
            made.append(Packet(None, "train", 0, step, drawn, drawn, 64, LAYOUT, rows))
    return made


def window(*sent: Packet, most_steps: int = 1000, most_envs: int = 16) -> Window:
    made = Window(most_steps, most_envs, most_bytes=2**20)
    for packet in sent:
        made.receive(packet, 64 * packet.env_steps, float(packet.env_steps))
    return made


def episodes(made: Window) -> dict[int, Episode]:
    def links_of(qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[qpos[0], 0, 0]], np.float32), np.array([[1, 0, 0, 0]], np.float32)

    found = made.episodes(0.1, links_of, {0: {"body_mass": np.ones(2)}})
    return {episode.summary.env: episode for episode in found}


def test_an_episode_has_its_reset_all_its_steps_and_the_state_in_which_it_fell():
    found = episodes(window(*packets([Robot(falls_after=3)], 5)))[0]
    assert found.summary == Summary(
        0, 0, 0, 2.0, 3, 3.0, "terminated", ("best", "worst", "fell", "random")
    )
    assert found.qpos.ravel().tolist() == [100, 101, 102, 103]
    assert found.qvel.ravel().tolist() == [-100, -101, -102, -103]
    assert found.link_pos[:, 0, 0].tolist() == [100, 101, 102, 103]
    assert found.link_rot.shape == (4, 1, 4)
    assert {name: x.shape for name, x in found.steps.items()} == {
        "reward": (3,),
        "action": (3, 1),
        "metrics/height": (3,),
    }
    assert found.model["body_mass"].tolist() == [1, 1] and found.dt == 0.1
    assert all(x.dtype == np.float32 for x in (found.qpos, found.link_pos, found.steps["reward"]))


def test_metrics_are_sums_over_episodes_and_means_over_all_that_have_finished():
    lengths = [2, 3, 5, 4, 4, 4, 4, 4, 4]
    robots = [Robot(falls_after=length) for length in lengths]
    made = window(*packets(robots, 6))
    assert len(episodes(made)) == 3 + MOST_FALLEN
    assert made.metrics() == {"height": pytest.approx(7 * np.mean(lengths))}
    assert window(*packets([Robot()], 2)).metrics() == {}, "none has finished"


def test_a_time_limit_is_told_from_a_fall():
    found = episodes(window(*packets([Robot(limit=4), Robot(falls_after=2)], 6)))
    assert [(found[i].summary.ended, found[i].summary.length) for i in (0, 1)] == [
        ("truncated", 4),
        ("terminated", 2),
    ]


def test_an_episode_whose_beginning_was_not_seen_is_left_out_and_the_next_one_kept():
    found = episodes(window(*packets([Robot(age=2)], 12, first=40)))[0]
    assert found.qpos[0, 0] == 200 and found.summary.length == 5
    assert found.summary.num_steps == 64 * 43 and found.summary.recording == 64 * 43


@pytest.mark.parametrize("missing", range(1, 5))
def test_an_episode_with_a_missing_step_is_left_out(missing):
    found = episodes(window(*packets([Robot()], 11, without=(missing,))))[0]
    assert found.qpos.ravel().tolist() == [200, 201, 202, 203, 204, 205]


def test_two_episodes_with_steps_missing_in_between_are_not_taken_for_one():
    sent = packets([Robot()], 16, without=tuple(range(3, 8)))  # the fourth step is the second's
    assert episodes(window(*sent))[0].qpos.ravel().tolist() == [300, 301, 302, 303, 304, 305]


def test_a_step_that_is_sent_twice_counts_once():
    sent = [packet for packet in packets([Robot()], 6) for _ in range(2)]
    assert episodes(window(*sent))[0].summary.length == 5


def test_a_reset_of_the_whole_rollout_ends_no_episode():
    sent = [*packets([Robot()], 3), *packets([Robot()], 6, first=3)]
    assert episodes(window(*sent))[0].qpos.ravel().tolist() == [100, 101, 102, 103, 104, 105]


@pytest.mark.parametrize("length", [1, 3])
def test_an_environment_that_resets_itself_within_its_step_is_left_out(length):
    sent = packets([Robot(falls_after=length)], 9)
    place = [name for name, _ in LAYOUT].index("was_reset") + 2 + 3
    for packet in sent:
        packet.rows[:, place] = packet.env_steps % length == length - 1
    assert episodes(window(*sent)) == {}


def test_it_is_finished_once_each_environment_has_ended_an_episode_or_after_enough_steps():
    robots = [Robot(falls_after=2), Robot(limit=4)]
    sent = packets(robots, 5)
    assert not window(*sent[:4]).finished and window(*sent).finished
    assert window(*sent[:4], most_steps=4).finished
    assert not window().finished


def test_only_the_first_environments_are_recorded_and_fewer_where_steps_are_large():
    robots = [Robot(falls_after=2) for _ in range(8)]
    assert window(*packets(robots, 2), most_envs=3).finished
    made = Window(1000, 16, most_bytes=4 * 24 * 1000 * 2)
    for packet in packets([Robot(falls_after=2) for _ in range(8)], 2):
        made.receive(packet, 0, 0.0)
    assert made.finished and set(episodes(made)) == {0, 1}


def test_packets_without_coordinates_and_rankings_are_ignored():
    plain = Packet(
        None,
        "train",
        0,
        3,
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        64,
        LAYOUT[:10],
        np.zeros((1, 15)),
    )
    made = window(plain)
    assert not made.finished and episodes(made) == {}


def summaries(returns: list[float], fell: list[bool]) -> list[Episode]:
    nothing = np.zeros((1, 1), np.float32)
    made = []
    for env, (total, ended) in enumerate(zip(returns, fell, strict=True)):
        summary = Summary(0, env, 0, 0.0, 1, total, "terminated" if ended else "truncated", ())
        made.append(Episode(summary, 0.1, nothing, nothing, nothing, nothing, {}))
    return made


@given(st.lists(st.tuples(st.floats(width=32), st.booleans()), min_size=1, max_size=20))
def test_the_best_the_worst_some_fallen_and_another_one_are_kept(robots):
    returns, fell = [r for r, _ in robots], [f for _, f in robots]
    kept = choose(summaries(returns, fell), np.random.default_rng(0))
    why = {name: e.summary for e in kept for name in e.summary.kept_as}
    finite = [r for r in returns if np.isfinite(r)]
    assert 1 <= len(kept) == min(len(robots), len(kept)) <= 3 + MOST_FALLEN
    assert len(kept) >= min(len(robots), 3)
    if finite:
        assert why["best"].episode_return == max(finite)
        lowest = why["worst"].episode_return
        assert lowest == min(finite) or not np.isfinite(lowest)
    assert ("fell" in why) == any(fell)
    fallen = [e.summary for e in kept if "fell" in e.summary.kept_as]
    ends = {why["best"].env, why["worst"].env}
    others = [env for env, ended in enumerate(fell) if ended and env not in ends]
    assert len(fallen) == (min(len(others), MOST_FALLEN) or any(fell))
    assert all(summary.ended == "terminated" for summary in fallen)
    assert [e.summary.env for e in kept] == sorted({e.summary.env for e in kept})


class Pace:
    """A recorder, and what its recordings cost."""

    def __init__(self, after: float, every: float | None, share: float):
        self.recorder, self.now, self.spent = Recorder(after), 0.0, 0.0
        self.every, self.share = every, share
        self.evaluated: Callable[[float], int] = lambda now: 0  # number of evaluations by then
        self.begun: list[float] = []

    def run(self, seconds: float, cost: float) -> None:
        """Lets each recording take 8 s, and cost so many s."""
        end = self.now + seconds
        while self.now < end:
            before = self.recorder.window
            rhythm = self.every, self.evaluated(self.now)
            self.recorder.update(self.now, *rhythm, self.spent, self.share, training=True)
            if before is None and (window := self.recorder.window) is not None:
                self.begun.append(self.now)
                window._most_steps = 0  # finished when it is next asked
                self.now, self.spent = self.now + 8, self.spent + cost
            self.now += 0.1


def test_recordings_keep_their_rhythm_and_their_share_of_the_training():
    cheap = Pace(after=10.0, every=60.0, share=0.01)
    cheap.run(300, cost=0.1)
    assert np.allclose(cheap.begun, [10, 70, 130, 190, 250], atol=1.0)
    dear = Pace(after=0.0, every=60.0, share=0.01)
    dear.run(1000, cost=2.0)
    assert np.allclose(np.diff(dear.begun), 208, atol=1.0)


def test_a_recording_follows_each_evaluation_where_these_are_the_rhythm():
    pace = Pace(after=10.0, every=None, share=0.01)
    pace.evaluated = lambda now: int(now // 150)
    pace.run(700, cost=0.1)
    assert np.allclose(pace.begun, [10, 150, 300, 450, 600], atol=1.0)
    dear = Pace(after=0.0, every=None, share=0.01)
    dear.evaluated = lambda now: int(now // 50)
    dear.run(1000, cost=2.0)  # for 208 s each recording leaves the training alone
    assert np.allclose(np.diff(dear.begun), 208, atol=50) and min(np.diff(dear.begun)) >= 207
    never = Pace(after=0.0, every=None, share=0.01)
    never.run(500, cost=0.0)
    assert len(never.begun) == 1, "the first waits for none"


def test_the_next_training_is_recorded_from_its_beginning():
    recorder = Recorder(after=5.0)

    def update(now: float, *, training: bool) -> None:
        recorder.update(now, 60.0, 0, 0.0, 0.01, training=training)

    update(100.0, training=True)
    update(106.0, training=True)
    assert recorder.window is not None
    update(107.0, training=False)
    assert recorder.window is None
    update(110.0, training=True)
    update(114.9, training=True)
    assert recorder.window is None
    update(115.1, training=True)
    assert recorder.window is not None
