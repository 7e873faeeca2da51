"""Adds points to the curves from the steps that are on screen anyway."""

from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.metrics import SEEN_LENGTH, SEEN_REWARD, STEPS_PER_SECOND, Metrics
from brax_viser.host.progress import ProgressView
from brax_viser.host.selection import RANKED
from brax_viser.records.frame import Frame

SAMPLE_SECONDS = 2.0
"""s of training between two points."""


@dataclass
class Sampler:
    """Takes samples of a training, at most one in `SAMPLE_SECONDS`."""

    metrics: Metrics
    _next: float = field(default=0.0)
    _frame: Frame | None = None

    def sample(self, progress: ProgressView, frame: Frame | None, rule: str, now: float) -> None:
        """Adds a point. Robots that are drawn because they do well or badly are not representative:
        their episodes are left out.

        Args:
            progress: of the training.
            frame: of the training, on screen; None if there is none.
            rule: the rule by which its robots were chosen, see `selection.Selection`.
            now: s, a clock that stands still while the training is held.
        """
        if progress.phase != "training" or now < self._next:
            return
        self._next = now + SAMPLE_SECONDS
        found = {STEPS_PER_SECOND: progress.steps_per_second}
        if frame is not None and frame is not self._frame and rule not in RANKED:
            found |= _episodes(frame)
        self._frame = frame
        self.metrics.add(progress.num_steps, found, now)


def _episodes(frame: Frame) -> dict[str, float]:
    """Returns the means over the last finished episodes of a frame's environments, where known."""
    returns, lengths = frame.finished_return, frame.finished_length
    if returns is None or lengths is None:
        return {}
    known = (lengths > 0) & np.isfinite(returns)
    if not known.any():
        return {}
    return {
        SEEN_REWARD: float(returns[known].mean()),
        SEEN_LENGTH: float(lengths[known].mean()),
    }
