"""Keeps the host near the device: XLA would enqueue hundreds of steps ahead of it."""

import time
from collections import deque
from collections.abc import Callable

from brax_viser.device.driver import Driver

LEAD, LEAST_LEAD, LEAD_SECONDS = 8, 2, 0.1
"""Steps that the host may enqueue ahead of the device, or fewer if they were enqueued more than so
many s ago. The switch and a choice act that much later."""

LOOK_SECONDS = 2e-4
"""How often the host looks whether the device has come nearer."""


class Lead:
    """The steps of one rollout on one device that it may not have reached yet."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()  # s, when enqueued; event
        self._spare: list[int] = []  # events

    def add(self, driver: Driver, stream: int, is_free: Callable[[], bool]) -> None:
        """See `memory.Memory.follow`."""
        steps = self._steps
        while steps and not is_free():
            if driver.has_reached(steps[0][1]):
                self._spare.append(steps.popleft()[1])
            elif self._is_long():
                time.sleep(LOOK_SECONDS)
            else:
                break
        event = self._spare.pop() if self._spare else driver.event()
        driver.record(event, stream)
        steps.append((time.monotonic(), event))

    def _is_long(self) -> bool:
        steps = self._steps
        if len(steps) < LEAST_LEAD:
            return False
        return len(steps) >= LEAD or time.monotonic() - steps[0][0] > LEAD_SECONDS
