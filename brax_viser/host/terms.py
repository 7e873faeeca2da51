"""Keeps what the selected robot's rewards were made of over the last seconds on screen."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from brax_viser.records.frame import Detail, Frame

T = TypeVar("T")

MOST_POINTS = 400
"""Maximum points of a curve: the page is sent the whole curve each time."""

GAP_SECONDS = 1.0
"""s of robot time: two steps on screen this far apart belong to different stretches."""

REWARD = "reward"
"""The step's whole reward, beside its terms."""


def terms_among(metrics: Mapping[str, T]) -> dict[str, T]:
    """Returns the terms of the reward among an environment's metrics, as far as their names show;
    if none does, all metrics."""
    return {name: x for name, x in metrics.items() if "reward" in name} or dict(metrics)


@dataclass(frozen=True, eq=False)
class Terms:
    """A robot's reward and its terms over the last P steps on screen; NaN where there is a gap."""

    env: int
    seconds: np.ndarray  # float [P], s of robot time relative to the newest (<= 0), oldest first
    values: dict[str, np.ndarray]  # by name, float [P]


class TermLog:
    """The terms of one rollout's selected robot. Used only by the page's loop."""

    def __init__(self) -> None:
        # Per step: (s of robot time shown so far, values by name, empty in a gap).
        self._points: deque[tuple[float, dict[str, float]]] = deque(maxlen=MOST_POINTS)
        self._env: int | None = None
        self._steps = 0

    def add(self, frame: Frame, dt: float) -> None:
        """Adds a frame that is on screen; one batched step takes `dt` s of robot time."""
        detail = frame.detail
        if detail is None:
            return
        if detail.env != self._env:
            self._points.clear()
        passed = dt * (frame.env_steps - self._steps)
        if passed == 0.0 and self._points:
            return  # the same step is shown again
        self._env, self._steps = detail.env, frame.env_steps
        before = self._points[-1][0] if self._points else 0.0
        if self._points and not 0.0 < passed < GAP_SECONDS:
            before, passed = before + dt, dt
            self._points.append((before, {}))
        self._points.append((before + passed, _values(frame, detail)))

    def is_of(self, env: int | None) -> bool:
        """Whether the terms are known, and are those of an environment."""
        return self._env is not None and self._env == env

    def terms(self) -> Terms | None:
        """Returns the terms; None if there are none."""
        if not self._points or self._env is None:
            return None
        names = list(dict.fromkeys(name for _, values in self._points for name in values))
        seconds = np.array([at for at, _ in self._points])
        return Terms(
            self._env,
            seconds - seconds[-1],
            {name: np.array([v.get(name, np.nan) for _, v in self._points]) for name in names},
        )


def _values(frame: Frame, detail: Detail) -> dict[str, float]:
    row = int(np.flatnonzero(frame.env_index == detail.env)[0])
    return {REWARD: float(frame.reward[row]), **{k: float(x) for k, x in detail.metrics.items()}}
