"""Keeps the numbers that a training reports, over the whole training, within a fixed memory."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_POINTS = 512
"""Maximum points of a curve, a power of two. A full curve averages its points two by two."""

MOST_CURVES = 400
"""Maximum number of curves: further names, such as those with a counter in them, are dropped."""

SEEN_REWARD, SEEN_LENGTH = "seen/episode_reward", "seen/episode_length"
"""Means over the environments on screen, of each one's last finished episode."""

RECORDED = "recorded/episode_"
"""Begins the names of the reward's terms in recorded episodes: sums over each episode, means over
those that were recorded together."""

EVALUATION = "eval/episode_reward"
"""The mean return of evaluations, as Brax's trainers report it."""

STEPS_PER_SECOND = "steps_per_second"
"""Steps over all environments per second of training."""


@dataclass(frozen=True, eq=False)
class CurveView:
    """A curve at one moment: arrays [P], oldest first."""

    steps: np.ndarray  # float64, env steps over all envs, as the trainer counts them
    seconds: np.ndarray  # float64, s of training since the curves began
    values: np.ndarray  # float64, means of the values reported around each step


@dataclass(eq=False)
class _Curve:
    """The means of equally many consecutive values each, so that points stay evenly spread."""

    _points: np.ndarray = field(default_factory=lambda: np.zeros((3, MOST_POINTS)))
    _full: int = 0  # points with all their values
    _each: int = 1  # values per point
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of the newest point
    _count: int = 0  # values in the newest point

    def add(self, step: float, seconds: float, value: float) -> None:
        self._sum += (step, seconds, value)
        self._count += 1
        if self._count < self._each:
            return
        self._points[:, self._full] = self._sum / self._count
        self._full, self._count = self._full + 1, 0
        self._sum[:] = 0
        if self._full == MOST_POINTS:
            self._full, self._each = MOST_POINTS // 2, 2 * self._each
            pairs = self._points.reshape(3, MOST_POINTS // 2, 2)
            self._points[:, : self._full] = pairs.mean(axis=2)

    def view(self) -> CurveView:
        points = self._points[:, : self._full]
        if self._count:
            points = np.column_stack([points, self._sum / self._count])
        return CurveView(*points.copy())


@dataclass(eq=False)
class Metrics:
    """The curves of one training, by the names of its metrics. Thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _curves: dict[str, _Curve] = field(default_factory=dict)
    _start: float | None = None
    _version: int = 0
    _evaluations: int = 0

    @property
    def evaluations(self) -> int:
        """Number of evaluations that were reported: numbers whose names begin with "eval/"."""
        return self._evaluations

    @property
    def version(self) -> int:
        """Grows whenever a curve does."""
        return self._version

    def add(self, num_steps: float, metrics: Mapping[str, Any], now: float) -> None:
        """Adds a point to each curve.

        Args:
            num_steps: env steps over all envs.
            metrics: values by name. Those that are not single numbers are left out.
            now: s, any monotonic clock.
        """
        numbers = {str(name): x for name, x in metrics.items() if not isinstance(x, str)}
        values = {name: number_of(x) for name, x in numbers.items()}
        with self._lock:
            if self._start is None:
                self._start = now
            self._evaluations += any(name.startswith("eval/") for name in values)
            for name, value in values.items():
                if value is None:
                    continue
                if name not in self._curves and len(self._curves) >= MOST_CURVES:
                    continue
                curve = self._curves.setdefault(name, _Curve())
                curve.add(num_steps, now - self._start, value)
            self._version += 1

    def replace(self, curves: Mapping[str, np.ndarray]) -> None:
        """Replaces all curves.

        Args:
            curves: by name, float [3, P]: env steps over all envs, s of training, values.
        """
        found = {}
        for name in sorted(curves)[:MOST_CURVES]:
            found[name] = _Curve()
            for point in curves[name].T:
                found[name].add(*point)
        with self._lock:
            self._curves = found
            self._version += 1

    def names(self) -> tuple[str, ...]:
        """Returns the names of all curves, in alphabetical order."""
        with self._lock:
            return tuple(sorted(self._curves))

    def curve(self, name: str) -> CurveView | None:
        """Returns a copy of a curve; None if nothing of that name was reported."""
        with self._lock:
            curve = self._curves.get(name)
            return None if curve is None else curve.view()

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns copies of all curves, by name, float64 [3, P]: env steps over all envs, s of
        training, values."""
        views = {name: self.curve(name) for name in self.names()}
        return {
            name: np.stack([view.steps, view.seconds, view.values])
            for name, view in views.items()
            if view is not None
        }

    def best_step(self, name: str) -> int | None:
        """Returns the env steps at a curve's highest value; None if it has no finite one."""
        curve = self.curve(name)
        if curve is None or not np.isfinite(curve.values).any():
            return None
        return round(curve.steps[np.nanargmax(curve.values)])

    def clear(self) -> None:
        """Forgets everything: another training begins."""
        with self._lock:
            self._curves.clear()
            self._start, self._evaluations = None, 0
            self._version += 1


def number_of(value: Any) -> float | None:
    """Returns a reported value as a number, NaN if it is infinite; None if it is not a single
    number."""
    try:
        array = np.asarray(value)
        number = float(array.reshape(())) if array.size == 1 else None
    except (TypeError, ValueError):  # such as a name, or a library's image
        return None
    return math.nan if number is not None and math.isinf(number) else number


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Returns the exponential moving average of a curve, [P]; NaN where it is NaN.

    Args:
        values: [P], may contain NaN.
        weight: of the past, 0 (not smoothed) to below 1. Early values are corrected for their
            missing past, as TensorBoard does it.
    """
    found, mean, norm = np.full(len(values), np.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if np.isfinite(value):
            mean = weight * mean + (1 - weight) * value
            norm = weight * norm + (1 - weight)
            found[i] = mean / norm
    return found
