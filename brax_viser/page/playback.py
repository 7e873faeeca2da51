"""Plays received frames: decides what the page shows at a time. Pure logic, the clock injected."""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.control import REACTION_SECONDS
from brax_viser.records.frame import Frame
from brax_viser.records.view import View

MAX_TICK = 0.25
"""s: longest advance at once; after a longer standstill (a suspended laptop) playback must not
leap."""

BLINK_SECONDS = 0.06
"""s of wall-clock time before and after its reset for which a robot is hidden."""

MAX_LAG = 2.0
"""s of robot time by which playback may lag behind steps that are shown as they come. If the
training was run to a fall, this much of the way there is shown."""

CLOSE = 1e-3
"""rad, half of the angle between two rotations, below which linear and spherical interpolation are
equal in float32."""


@dataclass
class _Stretch:
    """Frames of consecutive steps of the same environments."""

    frames: list[Frame]
    came: list[float]  # s, arrival of each frame
    began: float  # s, when the stretch was due, or its first frame's arrival if that was earlier
    resets: list[np.ndarray] = field(default_factory=list)  # bool [K]: between frames i and i + 1

    def follows(self, frame: Frame) -> bool:
        """Whether `frame` is the next step of the same environments."""
        last = self.frames[-1]
        return frame.env_steps == last.env_steps + 1 and np.array_equal(
            frame.env_index, last.env_index
        )

    def append(self, frame: Frame, now: float) -> None:
        last = self.frames[-1]
        self.frames.append(frame)
        self.came.append(now)
        self.resets.append(frame.episode_length != last.episode_length + 1)

    def forget_before(self, index: int) -> None:
        """Drops frames that playback has passed."""
        del self.frames[:index], self.came[:index], self.resets[:index]


@dataclass
class Player:
    """Plays one rollout. Used on the page's loop only.

    Stretches are played one after the other at the robot's own pace; when one ends, the newest
    follows. `due` is when the next one must begin to be sent in order to arrive in time.
    """

    dt: float  # s of robot time per step
    due: float = -math.inf  # s
    _stretches: deque[_Stretch] = field(default_factory=deque)  # the first is being played
    _head: float = 0.0  # s of robot time since the first kept frame of the first stretch
    _time: float = 0.0  # s of robot time since that stretch began, dropped frames included
    _last: float | None = None  # s, of the last call
    _lead: float = REACTION_SECONDS  # s, estimated time from requesting a stretch to its end
    _started: bool = False  # whether the first stretch is being played
    _learning: bool = False
    _restarts: bool = False

    def add(self, frame: Frame, now: float) -> None:
        """Adds a frame; frames must come in the order of their steps."""
        if self._stretches and self._stretches[-1].follows(frame):
            self._stretches[-1].append(frame, now)
        else:
            # The trainer may have updated its policy between the request and the first step.
            wanted = now if self.due == -math.inf else max(self.due, now - MAX_LAG)
            self._stretches.append(_Stretch([frame], [now], min(wanted, now)))

    def restart(self) -> None:
        """Makes the next stretch play as soon as possible, without waiting for this one's end."""
        self._restarts = True

    def clear(self) -> None:
        """Drops all frames."""
        self._stretches.clear()
        self._started, self.due = False, -math.inf

    def newest(self, now: float) -> View | None:
        """Returns the newest frame as it is, and drops all earlier ones."""
        if not self._stretches:
            return None
        stretch = self._stretches[-1]
        self._stretches = deque([stretch])
        self._last, self._started, self.due = now, True, -math.inf
        index = len(stretch.frames) - 1
        self._forget(stretch, index)
        self._head = 0.0
        return self._view(stretch, 0, 0.0, 1.0)

    def play(self, now: float, speed: float, *, sending: bool, following: bool) -> View | None:
        """Returns what to show now; None if there is no frame.

        Args:
            now: s.
            speed: robot seconds per second.
            sending: whether more frames of the newest stretch will come.
            following: whether all steps come as they are taken. Playback then stays within
                `MAX_LAG` of the newest instead of playing each stretch to its end.
        """
        tick = 0.0 if self._last is None else min(max(now - self._last, 0.0), MAX_TICK)
        self._last = now
        if not self._stretches:
            self.due = now
            return None
        self._learn(now, sending)
        if not self._started or (self._restarts and len(self._stretches) > 1):
            if self._take_newest(now, speed, sending, following):
                self._restarts = False
        if self._started:
            self._advance(tick * speed, now, speed, sending, following)
        self._plan(now, speed, sending)
        stretch = self._stretches[0]
        index = min(int(self._head / self.dt + 1e-9), len(stretch.frames) - 1)
        part = min(max(self._head / self.dt - index, 0.0), 1.0)
        if index == len(stretch.frames) - 1:
            part = 0.0
        view = self._view(stretch, index, part, speed)
        # The resets of the last moments are needed to know which robots still blink.
        self._forget(stretch, index - math.ceil(BLINK_SECONDS * speed / self.dt) - 1)
        return view

    def _advance(
        self, step: float, now: float, speed: float, sending: bool, following: bool
    ) -> None:
        """Moves on by `step` s of robot time, into the next stretch if this one ends."""
        self._head += step
        self._time += step
        end = self._length(self._stretches[0])
        if following and len(self._stretches) > 1:
            # Steps are missing between the played stretch and the newest one: jump.
            self._take_newest(now, speed, sending, following)
            return
        if following and end - self._head > MAX_LAG:
            self._time += end - MAX_LAG - self._head
            self._head = end - MAX_LAG
        if self._head < end:
            return
        over, self._time = self._head - end, self._time - (self._head - end)
        self._head = end
        if len(self._stretches) > 1 and self._take_newest(now, speed, sending, following):
            # Carries over one tick at most, so that playback does not leap after a wait.
            self._head = self._time = min(over, step, self._length(self._stretches[0]))

    def _take_newest(self, now: float, speed: float, sending: bool, following: bool) -> bool:
        """Switches to the newest stretch that can be played without a stop. Returns whether there
        was one."""
        candidates = [s for s in self._stretches if s is not self._playing]
        for stretch in reversed(candidates):
            newest = stretch is self._stretches[-1]
            if following or not (newest and sending) or self._enough(stretch, now, speed):
                while self._stretches[0] is not stretch:
                    self._stretches.popleft()
                self._head = self._time = 0.0
                self._started = True
                return True
        return False

    @property
    def _playing(self) -> _Stretch | None:
        return self._stretches[0] if self._started and self._stretches else None

    def _enough(self, stretch: _Stretch, now: float, speed: float) -> bool:
        """Whether the rest of a stretch is expected to arrive before playback needs it.

        Estimated from how long earlier stretches took, the trainer's updates included.
        """
        age = now - stretch.began
        return self._length(stretch) / speed >= self._lead - age

    def _learn(self, now: float, sending: bool) -> None:
        """Updates the time that a stretch takes to arrive: the longest, less 5 % per stretch."""
        newest = self._stretches[-1]
        took = newest.came[-1] - newest.began
        if sending:
            self._lead = max(self._lead, took + REACTION_SECONDS)
            self._learning = True
        elif self._learning:
            self._lead = max(took + REACTION_SECONDS, 0.95 * self._lead)
            self._learning = False

    def _plan(self, now: float, speed: float, sending: bool) -> None:
        """Sets when the next stretch must begin to arrive, to be there when this one ends."""
        if len(self._stretches) > 1 or sending:
            self.due = math.inf
            return
        if self._restarts:
            self.due = now
            return
        remaining = (self._length(self._stretches[0]) - self._head) / speed
        self.due = now + remaining - self._lead

    def _length(self, stretch: _Stretch) -> float:
        """Length of a stretch, in s of robot time."""
        return (len(stretch.frames) - 1) * self.dt

    def _forget(self, stretch: _Stretch, before: int) -> None:
        if before > 0:
            stretch.forget_before(before)
            self._head = max(self._head - before * self.dt, 0.0)

    def _view(self, stretch: _Stretch, index: int, part: float, speed: float) -> View:
        frame = stretch.frames[index]
        hidden = self._blinking(stretch, index + part, speed, len(frame.env_index))
        pos, rot = frame.link_pos, frame.link_rot
        twins = None if frame.ghost is None else (frame.ghost.link_pos, frame.ghost.link_rot)
        if part > 0.0:
            after, stays = stretch.frames[index + 1], stretch.resets[index]
            pos, rot = between((pos, rot), (after.link_pos, after.link_rot), part, stays=stays)
            if twins is not None and after.ghost is not None:
                poses = after.ghost.link_pos, after.ghost.link_rot
                # A restarted twin jumps: do not interpolate across the jump.
                twins = between(twins, poses, part, stays=after.ghost.seconds == 0)
        return View(frame, pos, rot, hidden, self._time, stretch.came[index], twins)

    def _blinking(self, stretch: _Stretch, at: float, speed: float, count: int) -> np.ndarray:
        """Returns bool [K]: environments reset within `BLINK_SECONDS` of frame `at`. None are at
        the stretch's end, where playback may stand still, as in a training that is held."""
        hidden = np.zeros(count, bool)
        if at >= len(stretch.frames) - 1:
            return hidden
        reach = BLINK_SECONDS * speed / self.dt
        # The reset between frames i and i + 1 shows with frame i + 1.
        first, last = math.ceil(at - reach - 1), math.floor(at + reach - 1)
        for resets in stretch.resets[max(first, 0) : max(last + 1, 0)]:
            hidden |= resets
        return hidden


Poses = tuple[np.ndarray, np.ndarray]
"""Link positions, float32 [K, L, 3], m, and rotations, float32 [K, L, 4], wxyz."""


def between(one: Poses, other: Poses, part: float, *, stays: np.ndarray) -> Poses:
    """Interpolates between the poses of two consecutive frames.

    Args:
        one: the earlier poses.
        other: the later poses.
        part: fraction of the way, 0 to 1.
        stays: bool [K]: environments that keep the earlier pose because they were reset in
            between: an episode's last pose and the next one's first are not connected.
    """
    pos = other[0] - one[0]
    pos *= np.float32(part)
    pos += one[0]
    rot = slerp(one[1], other[1], part)
    if stays.any():
        pos[stays], rot[stays] = one[0][stays], one[1][stays]
    return pos, rot


def slerp(one: np.ndarray, other: np.ndarray, part: float) -> np.ndarray:
    """Interpolates unit quaternions, float32 [..., 4], spherically along the shorter arc.

    K. Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    # One contiguous plane per component: operations along a last axis of length 4 take several
    # times as long.
    a, b = (np.ascontiguousarray(np.moveaxis(q, -1, 0)) for q in (one, other))
    cosine = np.einsum("i...,i...->...", a, b)
    # Smaller angles are raised to CLOSE, which changes nothing in float32 and avoids 0 / 0.
    angle = np.maximum(np.arccos(np.minimum(np.abs(cosine), 1.0)), np.float32(CLOSE))
    sine = np.sin(angle)
    left = np.sin(np.float32(1.0 - part) * angle) / sine
    right = np.copysign(np.sin(np.float32(part) * angle) / sine, cosine)
    mixed = np.empty(one.shape, np.float32)
    for axis in range(4):
        mixed[..., axis] = left * a[axis] + right * b[axis]
    return mixed
