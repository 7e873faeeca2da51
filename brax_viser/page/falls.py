"""Remembers how environments fell: the last pose, and the steps before it. Pure logic."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from brax_viser.page.playback import Poses, between
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View

SECONDS = 2.0
"""s of robot time before a fall that are played, if these steps were sent."""

MOST_BYTES = 1 << 26
"""Limit on the size of the frames kept, at least one of them."""

MOST_FALLS = 4096
"""Falls remembered; more robots could not be told apart."""


@dataclass(eq=False)
class Fall:
    """One environment's last termination."""

    step: int  # batched step of the rollout at which it fell
    total: float  # return of the episode that ended there, NaN: not known
    poses: list[Poses]  # [1, L, ...] each: the steps before the fall, then the fall
    began: float | None = None  # s, when playing them began


class Falls:
    """The falls of one rollout. Used on the page's loop only."""

    def __init__(self, dt: float):
        self._dt = dt  # s per step
        # Whether falls are shown. Until they are, none are looked for: robots fall often, and the
        # device knows the last fall of each.
        self.wanted = False
        self._frames: deque[Frame] = deque()  # the last ones received
        self._new = 0  # how many of them have not been looked through, the newest
        self._falls: dict[int, Fall] = {}  # by environment; the oldest first
        self._shown: tuple[View, View] | None = None  # the last view, without and with falls

    def add(self, frame: Frame) -> None:
        """Adds a step's frame, and learns the falls in it if falls are shown."""
        self._frames.append(frame)
        self._new += 1
        size = frame.link_pos.nbytes + frame.link_rot.nbytes
        most = min(round(SECONDS / self._dt) + 1, max(MOST_BYTES // max(size, 1), 1))
        while len(self._frames) > most:
            self._frames.popleft()
        self._new = min(self._new, len(self._frames))
        if self.wanted:
            self._learn_new()

    def _learn_new(self) -> None:
        """Learns the falls in the frames that have not been looked through."""
        for index in range(len(self._frames) - self._new, len(self._frames)):
            frame = self._frames[index]
            if (frame.since_termination == 0).any():
                self.learn(frame, ranked=False)
        self._new = 0

    def learn(self, frame: Frame, *, ranked: bool = True) -> None:
        """Remembers falls.

        Args:
            frame: the frame to look for falls in.
            ranked: True if its poses are those of the last terminations, as when the device ranks
                by termination; False if they are the step's own.
        """
        fallen = frame.since_termination < NEVER if ranked else frame.since_termination == 0
        fallen = fallen & np.isfinite(frame.link_pos).all(axis=(1, 2))
        fallen &= frame.link_rot.any(axis=(1, 2))  # all 0: pose not known
        for row in np.flatnonzero(fallen).tolist():
            env, since = int(frame.env_index[row]), int(frame.since_termination[row])
            step, known = frame.env_steps - since, self._falls.get(env)
            if known is not None and known.step >= step:
                continue
            poses = self._before(env, step)
            if ranked or frame.was_reset is None or not frame.was_reset[row]:
                pose = frame.link_pos[row : row + 1].copy(), frame.link_rot[row : row + 1].copy()
                poses.append(pose)
            if poses:
                self._falls.pop(env, None)
                self._falls[env] = Fall(step, _total(frame, row), poses)
        while len(self._falls) > MOST_FALLS:
            self._falls.pop(next(iter(self._falls)))

    def clear(self) -> None:
        """Forgets all falls, as for another training, which counts its steps from 0 again."""
        self._frames.clear()
        self._new = 0
        self._falls.clear()
        self._shown = None

    def shown(self, view: View, now: float, speed: float) -> View:
        """Returns a view in which robots that have fallen are shown as they fell.

        The steps before the fall are played once, if they are known; then the robot keeps the pose
        of its fall until it falls again.

        Args:
            view: the robots' current poses.
            now: s.
            speed: robot seconds per second.
        """
        self.wanted = True
        self._learn_new()
        frame, plays = view.frame, False
        fell = np.array([int(env) in self._falls for env in frame.env_index], bool)
        if not fell.any():
            return view
        pos, rot = view.link_pos.copy(), view.link_rot.copy()
        totals = np.full(len(fell), np.nan, np.float32)
        since = frame.since_termination.copy()
        for row in np.flatnonzero(fell).tolist():
            fall = self._falls[int(frame.env_index[row])]
            fall.began = now if fall.began is None else fall.began
            at = max(now - fall.began, 0.0) * speed / self._dt
            plays |= at < len(fall.poses) - 1
            pos[row], rot[row] = _pose_at(fall.poses, at)
            totals[row] = fall.total
            since[row] = max(frame.env_steps - fall.step, 0)
        if self._shown is not None and not plays:
            before, same = self._shown
            still = before.frame is frame and np.array_equal(same.link_pos, pos)
            if still and np.array_equal(same.hidden, view.hidden & ~fell):
                return same
        detail = frame.detail
        if detail is not None and fell[frame.env_index == detail.env].any():
            detail = None  # the detail is of the robot's current step, not of its fall
        ghost = view.ghost
        if ghost is not None:
            ghost = tuple(np.where(fell[:, None, None], np.nan, x) for x in ghost)
        changed = replace(
            view,
            frame=replace(
                frame, fell=fell, fell_return=totals, since_termination=since, detail=detail
            ),
            link_pos=pos,
            link_rot=rot,
            hidden=view.hidden & ~fell,
            ghost=ghost,
        )
        self._shown = view, changed
        return changed

    def _before(self, env: int, step: int) -> list[Poses]:
        """Returns the poses of the consecutive steps of one episode up to a step, excluding it."""
        found: list[Poses] = []
        length: int | None = None
        for frame in reversed(self._frames):
            wanted = step - len(found) - 1
            if frame.env_steps > wanted:
                continue
            if frame.env_steps < wanted:
                break
            rows = np.flatnonzero(frame.env_index == env)
            if not len(rows):
                continue  # of another process
            row = int(rows[0])
            own = int(frame.episode_length[row])
            if frame.since_termination[row] == 0 or (length is not None and own != length - 1):
                break  # of an earlier episode
            length = own
            found.append((frame.link_pos[row : row + 1], frame.link_rot[row : row + 1]))
        return found[::-1]


def _total(frame: Frame, row: int) -> float:
    """Looks up the return of the episode that the last termination ended; NaN if it is not known or
    another episode has ended since."""
    since, length = int(frame.since_termination[row]), int(frame.episode_length[row])
    if since == 0:
        return float(frame.episode_return[row]) if length > 0 else np.nan
    if since != length or frame.finished_return is None:
        return np.nan
    return float(frame.finished_return[row])


def _pose_at(poses: list[Poses], at: float) -> Poses:
    """Interpolates the pose at `at` steps after the first; stays at the last, the fall."""
    index = min(int(at), len(poses) - 1)
    if index == len(poses) - 1:
        pos, rot = poses[-1]
    else:
        stays = np.zeros(1, bool)
        pos, rot = between(poses[index], poses[index + 1], at - index, stays=stays)
    return pos[0], rot[0]
