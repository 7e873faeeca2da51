"""The last details of the selected environment, from which a sandbox may start."""

from collections import deque

import numpy as np

from brax_viser.records.frame import Detail, Frame

MOST_DETAILS = 512
"""Steps of the selected environment that are kept, to be replayed."""


class RecentDetails:
    """What is known of the selected environment's last steps."""

    def __init__(self) -> None:
        # (batched step, length of its episode, all that is known).
        self._steps: deque[tuple[int, int, Detail]] = deque(maxlen=MOST_DETAILS)

    def add(self, frame: Frame) -> None:
        """A frame has come."""
        if frame.detail is None:
            return
        row = int(np.flatnonzero(frame.env_index == frame.detail.env)[0])
        self._steps.append((frame.env_steps, int(frame.episode_length[row]), frame.detail))

    def until(self, frame: Frame) -> list[Detail]:
        """The consecutive steps of one episode that led to a frame's detail, that one the last."""
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
