"""Adds to the curves what can be told from the steps that are seen anyway."""

from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.metrics import SEEN_LENGTH, SEEN_REWARD, STEPS_PER_SECOND, Metrics
from brax_viser.host.progress import ProgressView
from brax_viser.records.frame import Frame

SAMPLE_SECONDS = 2.0
"""s of training between two points."""


@dataclass
class Sampler:
    """Takes samples of a training, at most one in `SAMPLE_SECONDS`."""

    metrics: Metrics
    _next: float = field(default=0.0)
    _frame: Frame | None = None

    def sample(self, progress: ProgressView, frame: Frame | None, now: float) -> None:
        """Adds a point.

        Args:
            progress: of the training.
            frame: of the training, on screen; None if there is none.
            now: s, a clock that stands still while the training is held.
        """
        if progress.phase != "training" or now < self._next:
            return
        self._next = now + SAMPLE_SECONDS
        found = {STEPS_PER_SECOND: progress.steps_per_second}
        if frame is not None and frame is not self._frame and frame.finished_return is not None:
            known = np.isfinite(frame.finished_return)
            if known.any() and frame.finished_length is not None:
                found[SEEN_REWARD] = float(frame.finished_return[known].mean())
                found[SEEN_LENGTH] = float(frame.finished_length[known].mean())
        self._frame = frame
        self.metrics.add(progress.num_steps, found, now)
