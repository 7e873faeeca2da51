"""Remembers why robots on screen were terminated."""

from collections.abc import Sequence

import numpy as np

from brax_viser.model.ending import last_pose, why_ended
from brax_viser.records.environment import Limit
from brax_viser.records.frame import Frame


class Reasons:
    """Why each robot of one rollout was last terminated. Only terminations that were on screen are
    known: the pose is there for one step only. Used on the page's loop only."""

    def __init__(self, limits: Sequence[Limit]):
        """Knows nothing yet.

        Args:
            limits: the environment's limits of termination.
        """
        self._limits = limits
        self._known: dict[int, tuple[int, str]] = {}  # by environment: batched step, and why

    def add(self, frame: Frame) -> None:
        """Records the terminations in a frame on screen."""
        if not self._limits or frame.fell is not None:
            return
        for row in np.flatnonzero(frame.since_termination == 0).tolist():
            if frame.was_reset is None or not frame.was_reset[row]:
                why = why_ended(self._limits, last_pose(frame, row))
                self._known[int(frame.env_index[row])] = frame.env_steps, why

    def of(self, frame: Frame | None, env: int | None) -> str:
        """Says why an environment was last terminated by the time of a frame; empty if it is not
        known."""
        if frame is None or env not in self._known or env not in frame.env_index:
            return ""
        row = int(np.flatnonzero(frame.env_index == env)[0])
        step, why = self._known[env]
        return why if frame.env_steps - int(frame.since_termination[row]) == step else ""
