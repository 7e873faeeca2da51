"""Queues what XLA's threads push until the page's loop fetches it."""

import threading
import time
from collections import deque
from collections.abc import Callable

from brax_viser.records.packet import ModelPacket, Packet

CAPACITY = 256
"""Pushes that may wait. At 60 fetches per second that is room for 15,000 steps per second."""


class Mailbox:
    """A bounded queue. XLA's threads call `put`, the viewer's threads the rest."""

    def __init__(self) -> None:
        self.ring: Callable[[], object] = lambda: None
        """Called on any thread when the page's loop should fetch at once; set by that loop."""
        self.clock: Callable[[], float] = time.monotonic  # s; set by the shared state
        self._waiting = 0  # devices that wait for room
        self._since = 0.0  # s, when they began to wait
        self._waited = 0.0  # s, total of earlier waits
        self._models: deque[ModelPacket] = deque()
        self._packets: deque[Packet] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False

    def put_model(self, packet: ModelPacket) -> None:
        """Leaves a packet of models. It is pushed only once, so it is never dropped."""
        with self._changed:
            if not self._closed:
                self._models.append(packet)

    def put(self, packet: Packet, *, wait: bool) -> None:
        """Leaves a packet.

        Args:
            packet: what to leave.
            wait: when full, wait until the page's loop has fetched; otherwise drop the oldest.
        """
        with self._changed:
            if wait and self._is_full():
                self._wait_for_room()
            if self._closed:
                return
            if len(self._packets) >= CAPACITY:
                self._packets.popleft()
            self._packets.append(packet)
            # Don't ring for each packet: the page's loop would run at once and make this callback
            # wait for the interpreter. It fetches as often as a page is sent frames by itself;
            # ring only when room runs short.
            half_full = len(self._packets) == CAPACITY // 2
        if half_full:
            self.ring()

    @property
    def waited(self) -> float:
        """s, total time that devices, and so the training, have waited for room."""
        with self._changed:
            return self._waited + (self.clock() - self._since if self._waiting else 0.0)

    def _is_full(self) -> bool:
        return len(self._packets) >= CAPACITY and not self._closed

    def _wait_for_room(self) -> None:
        if not self._waiting:
            self._since = self.clock()
        self._waiting += 1
        try:
            self._changed.wait_for(lambda: not self._is_full())
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._waited += self.clock() - self._since

    def take(self) -> list[Packet | ModelPacket]:
        """Fetches all packets, oldest first; models before the frames that they belong to."""
        with self._changed:
            packets = [*self._models, *self._packets]
            self._models.clear()
            self._packets.clear()
            self._changed.notify_all()
            return packets

    def wake(self) -> None:
        """Rings, because there is something other than packets to handle."""
        with self._changed:
            rung, self._woken = self._woken, True
        if not rung:
            self.ring()

    def woken(self) -> bool:
        """Whether `wake` was called since this method was last called."""
        with self._changed:
            woken, self._woken = self._woken, False
            return woken

    def close(self) -> None:
        """Releases the threads that wait, and drops all packets put from then on."""
        with self._changed:
            self._closed = True
            self._packets.clear()
            self._changed.notify_all()
        self.ring()
