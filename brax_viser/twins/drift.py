"""Records how far twins have drifted from their environments over the last seconds on screen."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from brax_viser.records.frame import Frame
from brax_viser.twins.verdict import Judge, Verdict

MOST_POINTS = 300
"""Maximum points of a curve: the page is sent the whole curve each time."""

GAP_SECONDS = 1.0
"""s of robot time: two steps on screen this far apart belong to different stretches."""

_NO_ENVS = np.zeros(0, np.int32)

MEASURES = ("root", "bodies", "joints")
"""The distances measured: see `frame.Ghost`."""


@dataclass(frozen=True, eq=False)
class Drift:
    """The distances between environments and their twins at one step: arrays [T]."""

    env_steps: int  # batched steps of the rollout
    env_index: np.ndarray  # int32
    seconds: np.ndarray  # s of robot time since both had the same state
    root: np.ndarray  # m, between the links that roam, or the first links
    bodies: np.ndarray  # m, mean over all links of a robot
    joints: np.ndarray  # rad, mean over all hinge and ball joints of a robot
    passed: np.ndarray  # s after which `bodies` passed the threshold; inf: not yet

    @classmethod
    def of(cls, frame: Frame) -> "Drift | None":
        """Reads the drift off a frame; None if no environment has a twin."""
        ghost = frame.ghost
        if ghost is None or not ghost.there.any():
            return None
        names = ("seconds", *MEASURES, "passed")
        values = {name: getattr(ghost, name)[ghost.there] for name in names}
        return cls(frame.env_steps, frame.env_index[ghost.there], **values)


@dataclass(frozen=True, eq=False)
class _Point:
    seconds: float  # s of robot time shown so far
    env_index: np.ndarray  # int32 [K], environments that have a twin
    values: np.ndarray  # float32 [3, K], of `MEASURES`
    # float [3], over all K; kept because the panel asks for whole curves again and again.
    median: np.ndarray


@dataclass(frozen=True, eq=False)
class Curves:
    """The drift over the last P steps on screen; NaN where there is a gap."""

    seconds: np.ndarray  # float [P], s of robot time relative to the newest (<= 0), oldest first
    median: np.ndarray  # float [3, P], of `MEASURES`, over all environments that have a twin
    selected: np.ndarray  # float [3, P], of the selected environment


class DriftLog:
    """The drift curves of one rollout. Used only by the page's loop."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque(maxlen=MOST_POINTS)
        self._last: Frame | None = None
        self._judge, self._as_made = Judge(MOST_POINTS), False

    def add(self, frame: Frame, dt: float, *, as_made: bool = False) -> None:
        """Adds a frame that is on screen.

        Args:
            frame: with the twins' ghosts, if there are any.
            dt: s of robot time that one batched step takes.
            as_made: whether the twins have the physics of the model's file: with others, they are
                judged from the start.
        """
        if as_made != self._as_made:
            self._judge, self._as_made = Judge(MOST_POINTS), as_made
        last, self._last = self._last, frame
        if frame.ghost is None or frame is last:
            return
        self._judge.add(frame.env_index, frame.ghost)
        there = frame.ghost.there
        before = self._points[-1].seconds if self._points else 0.0
        passed = 0.0 if last is None else dt * (frame.env_steps - last.env_steps)
        if passed == 0.0 and self._points:
            return  # the training is held, and the same step is shown again
        if self._points and not 0.0 < passed < GAP_SECONDS:
            # Another stretch: break the curve, as no steps connect the two.
            before, passed = before + dt, dt
            self._append(before, _NO_ENVS, np.zeros((len(MEASURES), 0), np.float32))
        seconds = before + passed
        values = np.stack([getattr(frame.ghost, name)[there] for name in MEASURES])
        self._append(seconds, frame.env_index[there], values)

    def verdict(self, limit: float) -> Verdict | None:
        """Says whether robots and twins agree; None if there is nothing to judge.

        Args:
            limit: m, mean distance of the links from which on robot and twin count as parted.
        """
        return self._judge.verdict(limit)

    def curves(self, selected_env: int | None) -> Curves | None:
        """Returns the curves to plot; None if there are no points."""
        if not self._points:
            return None
        seconds = np.array([point.seconds for point in self._points])
        median = np.array([point.median for point in self._points]).T
        selected = np.full_like(median, np.nan)
        if selected_env is not None:
            for index, point in enumerate(self._points):
                column = np.flatnonzero(point.env_index == selected_env)
                if len(column):
                    selected[:, index] = point.values[:, column[0]]
        return Curves(seconds - seconds[-1], median, selected)

    def _append(self, seconds: float, env_index: np.ndarray, values: np.ndarray) -> None:
        self._points.append(_Point(seconds, env_index, values, _median(values)))


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the medians [3] of the finite values in [3, K]; NaN for a row that has none."""
    if values.size and np.isfinite(values).all():
        return np.median(values, axis=1)  # takes a third of the time of the loop below
    found = np.full(len(values), np.nan)
    for row, numbers in enumerate(values):
        known = numbers[np.isfinite(numbers)]
        if len(known):
            found[row] = np.median(known)
    return found
