"""Keeps the last details of the selected environment, from which a sandbox may start."""

from collections import deque
from dataclasses import replace

import numpy as np

from brax_viser.records.frame import Detail, Frame

MOST_DETAILS = 512
"""Number of steps of the selected environment kept for a replay."""


class RecentDetails:
    """The details of the selected environment's last steps."""

    def __init__(self) -> None:
        # (batched step, episode length, details).
        self._steps: deque[tuple[int, int, Detail]] = deque(maxlen=MOST_DETAILS)

    def add(self, frame: Frame) -> None:
        """Adds a frame's detail, if it has one."""
        if frame.detail is None:
            return
        row = int(np.flatnonzero(frame.env_index == frame.detail.env)[0])
        detail = replace(frame.detail, images={})  # large, and nothing can start from them
        self._steps.append((frame.env_steps, int(frame.episode_length[row]), detail))

    def until(self, frame: Frame) -> list[Detail]:
        """Returns the consecutive steps of one episode that end with a frame's detail."""
        assert frame.detail is not None
        found: list[Detail] = []
        wanted: tuple[int, int] | None = None
        for env_steps, length, detail in reversed(self._steps):
            if env_steps > frame.env_steps or detail.env != frame.detail.env:
                continue
            if wanted is not None and (env_steps, length) != wanted:
                break
            found.append(detail)
            wanted = env_steps - 1, length - 1
        return found[::-1] or [frame.detail]
