"""Robots that have just terminated are shown as they fell."""

from dataclasses import replace

import numpy as np
import pytest

from brax_viser.page.falls import SECONDS, Falls
from brax_viser.records.frame import Detail, Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View

DT = 0.02


def frame_at(step: int, envs=(3, 4), since=None, length=None, place=None, **fields) -> Frame:
    """Returns a frame with one link per env, at x = `place` or its step, and y = its env."""
    count = len(envs)
    pos = np.zeros((count, 1, 3), np.float32)
    pos[:, 0, 0], pos[:, 0, 1] = step if place is None else place, envs
    return Frame(
        role="train",
        env_steps=step,
        env_index=np.array(envs, np.int32),
        num_envs=10,
        link_pos=pos,
        link_rot=np.tile(np.float32([1, 0, 0, 0]), (count, 1, 1)),
        reward=np.ones(count, np.float32),
        episode_return=np.full(count, 10.0 * step, np.float32),
        episode_length=np.array(length if length is not None else [step] * count, np.int32),
        since_termination=np.array(since if since is not None else [NEVER] * count, np.int32),
        finite=np.ones(count, bool),
        finished_return=np.full(count, 77.0, np.float32),
        finished_length=np.full(count, 5, np.int32),
        **fields,
    )


def view_of(frame: Frame) -> View:
    hidden = np.ones(len(frame.env_index), bool)
    return View(frame, frame.link_pos, frame.link_rot, hidden, 0.0, 0.0)


def test_a_fall_reported_by_the_device_is_shown_until_the_next_fall():
    falls = Falls(DT)
    told = frame_at(50, envs=(3, 7), since=[12, 20], length=[12, 30], place=[38, 30])
    falls.learn(told)
    now = frame_at(50, since=[12, NEVER], length=[12, 50])
    view = falls.shown(view_of(now), 0.0, 1.0)
    assert view.link_pos[:, 0, 0].tolist() == [38, 50]  # env 4 has not fallen, and moves on
    assert view.frame.fell is not None and view.frame.fell.tolist() == [True, False]
    assert view.hidden.tolist() == [False, True]
    assert view.frame.fell_return is not None
    assert view.frame.fell_return[0] == 77.0 and np.isnan(view.frame.fell_return[1])
    assert falls.shown(view_of(now), 9.0, 1.0) is view  # there is nothing to draw again
    later = falls.shown(view_of(frame_at(60, since=[22, NEVER], length=[22, 60])), 9.0, 1.0)
    assert later.link_pos[:, 0, 0].tolist() == [38, 60]
    assert later.frame.since_termination[0] == 22
    # Another episode has ended since, without a fall: its return is not the fall's.
    other = falls.shown(view_of(frame_at(50, envs=(7, 3), since=[20, 12])), 9.0, 1.0)
    assert other.frame.fell_return is not None and np.isnan(other.frame.fell_return[0])
    falls.learn(frame_at(70, envs=(3,), since=[1], length=[1], place=[69]))
    again = falls.shown(view_of(frame_at(70, since=[1, NEVER], length=[1, 70])), 9.0, 1.0)
    assert again.link_pos[:, 0, 0].tolist() == [69, 70]


def test_the_steps_received_before_a_fall_are_played_up_to_it():
    falls = Falls(DT)
    for step in range(1, 200):
        since = [NEVER if step < 150 else step - 150, NEVER]
        falls.add(frame_at(step, since=since, length=[step if step <= 150 else step - 150, step]))
    first = round(150 - SECONDS / DT)
    first = max(first, 200 - 1 - round(SECONDS / DT))
    now = view_of(frame_at(199, since=[49, NEVER], length=[49, 199]))
    at = [falls.shown(now, t, 1.0).link_pos[0, 0, 0] for t in (5.0, 5.0 + 2.5 * DT, 6.0, 99.0)]
    assert at[0] <= first + 1 and at[1] == pytest.approx(at[0] + 2.5)
    assert at[2:] == [min(at[0] + 1.0 / DT, 150), 150]
    shown = falls.shown(now, 99.0, 1.0)
    assert shown.frame.fell_return is not None and shown.frame.fell_return[0] == 1500.0
    assert shown.link_pos[1, 0, 0] == 199


def test_steps_of_an_earlier_episode_or_before_a_gap_are_not_played():
    falls = Falls(DT)
    falls.wanted = True
    for step in (1, 2, 3, 6, 7, 8):
        falls.add(frame_at(step, since=[step - 6 if step >= 6 else NEVER, NEVER], length=[1, step]))
    assert len(falls._falls[3].poses) == 1  # the steps before it were not received
    falls = Falls(DT)
    falls.wanted = True
    for step, length in ((1, 8), (2, 9), (3, 1), (4, 2), (5, 3)):
        falls.add(frame_at(step, since=[0 if step == 5 else NEVER, NEVER], length=[length, step]))
    assert [float(pos[0, 0, 0]) for pos, _ in falls._falls[3].poses] == [3, 4, 5]


def test_an_env_that_is_reset_within_the_step_is_shown_as_it_was_before():
    falls, reset = Falls(DT), np.array([True, False])
    falls.add(frame_at(4))
    falls.add(frame_at(5, since=[0, NEVER], was_reset=reset))
    view = falls.shown(view_of(frame_at(5, since=[0, NEVER])), 99.0, 1.0)
    assert view.link_pos[:, 0, 0].tolist() == [4, 5]


def test_falls_are_looked_for_once_they_are_shown_and_from_then_on_none_is_missed():
    falls, many = Falls(DT), 3 * round(SECONDS / DT)
    for step in range(1, many):
        since = [step % 5, max(step - 3, 0) if step >= 3 else NEVER]
        falls.add(frame_at(step, since=since, length=[1 + step % 5, step]))
    assert not falls._falls
    last = view_of(frame_at(many - 1, since=[(many - 1) % 5, many - 4]))
    shown = falls.shown(last, 0.0, 1.0)
    # The second one fell too long ago, but the device tells its last fall.
    assert shown.frame.fell is not None and shown.frame.fell.tolist() == [True, False]
    falls.add(frame_at(many, since=[many % 5, 0], length=[1, many]))
    for step in range(many + 1, 3 * many):
        falls.add(frame_at(step, since=[NEVER, step - many], length=[step, step]))
    last = view_of(frame_at(3 * many, since=[NEVER, 2 * many]))
    falls.shown(last, 50.0, 1.0)
    shown = falls.shown(last, 99.0, 1.0)
    assert shown.link_pos[1, 0, 0] == many


def test_a_fallen_robot_is_shown_without_its_present_details_and_ghost():
    falls = Falls(DT)
    falls.learn(frame_at(50, envs=(3,), since=[12], length=[12], place=[38]))
    none = np.zeros(1, np.float32)
    detail = Detail(3, none, none, None, None, None, None, None, {})
    frame = replace(frame_at(50, since=[12, NEVER]), detail=detail)
    ghost = frame.link_pos, frame.link_rot
    view = falls.shown(replace(view_of(frame), ghost=ghost), 99.0, 1.0)
    assert view.frame.detail is None and view.ghost is not None
    assert np.isnan(view.ghost[0][0]).all() and np.isfinite(view.ghost[0][1]).all()
