"""Tests which pose is shown when: stretches, their pace, resets and following."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from brax_viser.host.control import Control
from brax_viser.page.playback import BLINK_SECONDS, MAX_LAG, MAX_TICK, Player, slerp
from brax_viser.records.frame import Frame, joined
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View
from tests.test_stream import Device, play

DT = 0.05
TICK = 1 / 60


def frame(step: int, *, envs=(0, 1, 2), lengths=None, x=None) -> Frame:
    """Returns a frame with env i at (step, i, 0), or at `x`, not reset unless `lengths` says so."""
    count = len(envs)
    pos = np.zeros((count, 1, 3), np.float32)
    pos[:, 0, 0] = step if x is None else x
    pos[:, 0, 1] = np.arange(count)
    return Frame(
        role="train",
        env_steps=step,
        env_index=np.array(envs, np.int32),
        num_envs=100,
        link_pos=pos,
        link_rot=np.tile(np.float32([1, 0, 0, 0]), (count, 1, 1)),
        reward=np.zeros(count, np.float32),
        episode_return=np.full(count, float(step), np.float32),
        episode_length=np.array(lengths if lengths is not None else [step] * count, np.int32),
        since_termination=np.full(count, NEVER, np.int32),
        finite=np.ones(count, bool),
    )


class Page:
    """A page that looks at a player 60 times a second."""

    def __init__(self, dt: float = DT):
        self.player, self.now = Player(dt), 50.0
        self.speed, self.sending, self.following = 1.0, False, False

    def add(self, *frames: Frame) -> None:
        for one in frames:
            self.player.add(one, self.now)

    def look(self, seconds: float = TICK) -> View:
        self.now += seconds
        view = self.player.play(
            self.now, self.speed, sending=self.sending, following=self.following
        )
        assert view is not None
        return view

    def watch(self, seconds: float) -> list[View]:
        return [self.look() for _ in range(round(seconds / TICK))]


def x_of(view: View) -> float:
    """Returns the x of env 0, which counts in steps."""
    return float(view.link_pos[0, 0, 0])


@given(
    rate=st.floats(80.0, 5_000.0),
    speed=st.sampled_from([0.25, 1.0, 2.0]),
    pause=st.floats(0.0, 1.0),
    every=st.integers(20, 400),
)
@settings(deadline=None, max_examples=8)
def test_shown_robot_time_advances_evenly(rate, speed, pause, every):
    """Plays a training that pauses for an update every so many steps: if it is faster than the
    robot on average, no stretch stutters and none is late twice."""
    device = Device(rate, call_cost=1e-5, dt=DT)
    step = device.step

    def with_updates(control, *, active=True, steps=1):
        before = device.steps
        step(control, active=active, steps=steps)
        if device.steps // every > before // every:
            device.now += pause

    device.step = with_updates
    pace = every / (every / rate + pause) * DT
    if pace < 2.5 * speed or pause > 0.5 * 2.0 / speed:
        return  # not faster than the robot, or an update takes about as long as a stretch
    control = Control(watched=True, speed=speed, stretch_seconds=2.0)
    play(device, control, 12.0 / speed)  # it learns how long a stretch takes to arrive
    shown = play(device, control, 20.0 / speed)
    moving = [
        (now - before, view.robot_time - earlier.robot_time)
        for (before, earlier), (now, view) in itertools.pairwise(shown)
        if view.robot_time > earlier.robot_time
    ]
    for passed, advanced in moving:
        # A tick that reaches the end of a stretch is cut short there.
        assert advanced <= passed * speed + 1e-6 or passed > MAX_TICK
    even = [abs(a - min(p, MAX_TICK) * speed) < 1e-6 for p, a in moving]
    stretches = 20.0 / 2.0
    assert len(moving) - sum(even) <= 2 * stretches + 2
    # Nor does playback stand still: all but the time lost between two stretches is played.
    assert sum(a for _, a in moving) >= 0.85 * 20.0


def test_poses_between_two_steps_are_interpolated():
    page = Page()
    page.add(*(frame(step) for step in range(10, 71)))
    shown = [x_of(view) for view in page.watch(2.0)]
    assert np.diff(shown) == pytest.approx(TICK / DT, abs=1e-3)
    assert shown[0] == pytest.approx(10.0)


def test_after_a_stretch_the_newest_one_follows_by_a_jump_and_not_a_slide():
    page = Page()
    page.add(*(frame(step) for step in range(100, 121)))
    page.watch(0.5)
    page.add(*(frame(step) for step in range(300, 321)))
    page.add(*(frame(step) for step in range(700, 721)))
    shown = [x_of(view) for view in page.watch(2.0)]
    jumps = np.flatnonzero(np.diff(shown) > 2)
    assert len(jumps) == 1
    before, after = shown[jumps[0]], shown[jumps[0] + 1]
    assert before == pytest.approx(120.0, abs=0.4) and 700.0 <= after <= 700.7
    assert max(shown) == 720.0  # and stays there


def test_a_late_stretch_is_awaited_at_the_last_pose_and_shown_from_its_start():
    page = Page()
    page.add(*(frame(step) for step in range(21)))
    page.watch(2.0)
    assert x_of(page.look()) == 20.0
    page.add(*(frame(step) for step in range(500, 521)))
    assert 500.0 <= x_of(page.look()) <= 500.4


def test_a_stretch_begins_once_the_rest_of_it_will_arrive_in_time():
    page = Page()
    page.sending = True
    # Frames arrive at the robot's own pace: playing them at once would soon run out of them.
    for step in range(60):
        page.add(frame(step))
        page.look(DT)
    page.sending = False
    page.watch(5.0)
    lead = page.player._lead
    assert lead == pytest.approx(59 * DT, abs=0.2)
    # Now the duration is known: no stretch begins that would stop on its way.
    page.sending = True
    begun = None
    for step in range(1000, 1060):
        page.add(frame(step))
        if x_of(page.look(DT / 2)) >= 1000 and begun is None:
            begun = step
    assert begun is not None and begun > 1012
    page.sending = False
    shown = [x_of(view) for view in page.watch(2.0)]
    assert np.diff(shown).max() <= TICK / DT + 1e-3


def test_the_next_stretch_is_requested_in_time_for_the_end_of_this_one():
    page = Page()
    page.add(*(frame(step) for step in range(61)))
    page.look()
    due = page.player.due
    assert page.now < due < page.now + 3.0
    assert due == pytest.approx(page.now + 3.0 - page.player._lead, abs=0.02)
    page.speed = 0.5
    page.look()
    assert page.player.due == pytest.approx(page.now + 6.0 - page.player._lead, abs=0.1)
    page.sending = True
    page.look()
    assert page.player.due == np.inf


def test_a_reset_makes_that_robot_blink_and_not_slide():
    page = Page()
    steps = list(range(100, 131))
    # Env 1 falls at step 110: its next episode's first step is 111, back at the start.
    for step in steps:
        again = step - 110
        lengths = [step, step if again < 1 else again, step]
        page.add(frame(step, lengths=lengths, x=[step, step if again < 1 else again, step]))
    views = page.watch(1.4)
    at = [x_of(view) for view in views]
    fallen = [float(view.link_pos[1, 0, 0]) for view in views]
    # It stays where it fell until the next step, and is then at its start.
    assert not [x for x in fallen if 21 < x < 99]
    assert 110.0 in fallen
    blinks = [a for a, view in zip(at, views, strict=True) if view.hidden[1]]
    reach = BLINK_SECONDS / DT
    assert min(blinks) == pytest.approx(111 - reach, abs=0.4)
    assert max(blinks) == pytest.approx(111 + reach, abs=0.4)
    assert not any(view.hidden[0] or view.hidden[2] for view in views)


def test_a_robot_that_was_just_reset_is_shown_where_playback_stands_still():
    page = Page()
    page.following = page.sending = True
    for step in range(100, 112):  # env 1 is reset in the last one, at which the training is held
        page.add(frame(step, lengths=[step, step if step < 111 else 0, step]))
    last = page.watch(2.0)[-1]
    assert x_of(last) == 111.0 and not last.hidden.any()


def test_following_shows_every_step_as_it_arrives():
    page = Page()
    page.following = page.sending = True
    seen = []
    for step in range(40):
        page.add(frame(step))
        # Each step takes four times as long as the robot would.
        seen += [x_of(view) for view in page.watch(4 * DT)]
    assert seen[-1] == 39.0
    assert np.diff(seen).max() <= TICK / DT + 1e-3
    # A step is reached one robot step after it has arrived.
    assert seen.count(20.0) >= 8


def test_following_stays_near_the_newest_step_and_plays_on_to_the_last():
    page = Page()
    page.following = True
    for step in range(1000):
        page.add(frame(step))
        if step % 50 == 0:
            page.look()  # 150 times faster than the robot
    first = x_of(page.look())
    assert first >= 999 - MAX_LAG / DT - 1
    shown = [x_of(view) for view in page.watch(2.5)]
    # The last seconds before the training stopped are played at the robot's pace.
    assert np.diff(shown).max() <= TICK / DT + 1e-2
    assert shown[-1] == 999.0


def test_following_jumps_over_a_gap_at_once():
    page = Page()
    page.add(*(frame(step) for step in range(61)))
    page.watch(0.5)
    page.following = True
    page.add(frame(5000))
    assert x_of(page.look()) == 5000.0


def test_other_environments_begin_another_stretch():
    page = Page()
    page.following = True
    page.add(frame(1), frame(2), frame(3, envs=(7, 8)))
    assert page.look().frame.env_index.tolist() == [7, 8]


def test_after_a_restart_the_next_stretch_replaces_this_one_before_its_end():
    page = Page()
    page.add(*(frame(step) for step in range(61)))
    page.watch(0.5)
    page.player.restart()
    page.look()
    assert page.player.due <= page.now
    page.add(frame(400, envs=(5, 6)))
    assert page.look().frame.env_index.tolist() == [5, 6]


def test_the_newest_frame_is_shown_unchanged():
    player = Player(DT)
    assert player.newest(0.0) is None
    for step in range(10):
        player.add(frame(step), 0.0)
    view = player.newest(1.0)
    assert view is not None and view.frame.env_steps == 9
    assert view.link_pos is view.frame.link_pos
    again = player.newest(1.1)
    assert again is not None and again.is_same_picture(view)
    player.add(frame(10), 1.2)
    other = player.newest(1.2)
    assert other is not None and not other.is_same_picture(view)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_causes_neither_a_leap_nor_a_freeze(jump):
    page = Page()
    page.add(*(frame(step) for step in range(201)))
    before = x_of(page.watch(1.0)[-1])
    page.now += jump
    after = x_of(page.look())
    assert before <= after <= before + MAX_TICK / DT + 1
    shown = [x_of(view) for view in page.watch(1.0)]
    assert np.diff(shown) == pytest.approx(TICK / DT, abs=1e-3)


def test_memory_stays_bounded_while_following():
    page = Page()
    page.following = True
    for step in range(5000):
        page.add(frame(step))
        page.look(DT)
    assert sum(len(s.frames) for s in page.player._stretches) < MAX_LAG / DT + 10


@given(
    one=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    other=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    part=st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_slerp_agrees_with_scipy(one, other, part):
    a, b = np.array(one), np.array(other)
    if min(np.linalg.norm(a), np.linalg.norm(b)) < 0.1:
        return
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    if abs(a @ b) < 1e-3:
        return  # half a turn: both ways round are equally short
    rotations = Rotation.from_quat(np.stack([a, b])[:, [1, 2, 3, 0]])
    expected = Slerp([0.0, 1.0], rotations)(part)
    got = slerp(np.float32(a), np.float32(b), part)
    difference = Rotation.from_quat(np.float64(got)[[1, 2, 3, 0]]).inv() * expected
    assert difference.magnitude() < 2e-3
    assert np.linalg.norm(got) == pytest.approx(1.0, abs=1e-5)


def test_frames_of_several_devices_are_joined_in_the_requested_order():
    parts = [frame(5, envs=(2, 0)), frame(5, envs=(9, 7))]
    whole = joined(parts, np.array([9, 0, 7, 2]))
    assert whole is not None
    assert whole.env_index.tolist() == [9, 0, 7, 2]
    assert whole.link_pos[:, 0, 1].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert joined(parts[:1], np.array([9, 0, 7, 2])) is None
    assert joined(parts, np.array([9, 0, 7, 3])) is None
    assert joined(parts[:1], np.array([2, 0])) is parts[0]
