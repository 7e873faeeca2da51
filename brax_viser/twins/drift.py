"""How far twins have gone from their environments, over the last seconds that were on screen."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from brax_viser.records.frame import Frame

MOST_POINTS = 300
"""Of a curve: the page is sent all of it each time."""

GAP_SECONDS = 1.0
"""s of robot time between two steps on screen, from which on they are of two stretches."""

_NOBODY = np.zeros(0, np.int32)

MEASURES = ("root", "bodies", "joints")
"""What is measured: see `frame.Ghost`."""


@dataclass(frozen=True, eq=False)
class Drift:
    """Of the environments that have a twin, at one step: arrays [T]."""

    env_steps: int  # batched, of the rollout
    env_index: np.ndarray  # int32, which environments
    seconds: np.ndarray  # s of robot time since both were the same
    root: np.ndarray  # m, between the links that roam, or the first ones
    bodies: np.ndarray  # m, between links, the mean over all of a robot
    joints: np.ndarray  # rad, between hinges and balls, the mean over all of a robot
    passed: np.ndarray  # s after which `bodies` passed the threshold; inf: not yet

    @classmethod
    def of(cls, frame: Frame) -> "Drift | None":
        """None where nobody has a twin."""
        ghost = frame.ghost
        if ghost is None or not ghost.there.any():
            return None
        names = ("seconds", *MEASURES, "passed")
        values = {name: getattr(ghost, name)[ghost.there] for name in names}
        return cls(frame.env_steps, frame.env_index[ghost.there], **values)


@dataclass(frozen=True, eq=False)
class _Point:
    seconds: float  # s of robot time shown so far
    env_index: np.ndarray  # int32 [K], of those that have a twin
    values: np.ndarray  # float32 [3, K], of `MEASURES`
    # float [3], over all; kept, because the panel asks for all of a curve again and again.
    median: np.ndarray


@dataclass(frozen=True, eq=False)
class Curves:
    """Over the last P steps that were on screen; NaN where there is a gap."""

    seconds: np.ndarray  # float [P], s of robot time before the newest, the oldest first
    median: np.ndarray  # float [3, P], of `MEASURES`, over all that have a twin
    selected: np.ndarray  # float [3, P], of one environment


class DriftLog:
    """Of one rollout. Used by the page's loop alone."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque(maxlen=MOST_POINTS)
        self._last: Frame | None = None

    def add(self, frame: Frame, dt: float) -> None:
        """A frame is on screen, `dt` s of robot time after the step before it."""
        last, self._last = self._last, frame
        if frame.ghost is None or frame is last:
            return
        there = frame.ghost.there
        before = self._points[-1].seconds if self._points else 0.0
        passed = 0.0 if last is None else dt * (frame.env_steps - last.env_steps)
        if passed == 0.0 and self._points:
            return  # the training is held, and is looked at again
        if self._points and not 0.0 < passed < GAP_SECONDS:
            # Another stretch: the curve is broken off, for nothing leads from the one to the other.
            before, passed = before + dt, dt
            self._append(before, _NOBODY, np.zeros((len(MEASURES), 0), np.float32))
        seconds = before + passed
        values = np.stack([getattr(frame.ghost, name)[there] for name in MEASURES])
        self._append(seconds, frame.env_index[there], values)

    def curves(self, selected_env: int | None) -> Curves | None:
        """What there is to plot; None if nothing is."""
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
    """float [3], of [3, K], of those that are finite; NaN where none is."""
    if values.size and np.isfinite(values).all():
        return np.median(values, axis=1)  # a third of the time of one row after the other
    found = np.full(len(values), np.nan)
    for row, numbers in enumerate(values):
        known = numbers[np.isfinite(numbers)]
        if len(known):
            found[row] = np.median(known)
    return found
