"""Where XLA's threads leave what they pushed, for the publisher to fetch."""

import threading
import time
from collections import deque
from collections.abc import Callable

from brax_viser.records.parcel import ModelParcel, Parcel

CAPACITY = 256
"""Pushes that may wait. At 60 fetches a second that is room for 15,000 steps a second."""


class Mailbox:
    """A bounded queue. `put` is called on XLA's threads, all else by the viewer's."""

    def __init__(self) -> None:
        self.ring: Callable[[], object] = lambda: None
        """Called on any thread when the publisher should look in at once. Set by the publisher."""
        self.clock: Callable[[], float] = time.monotonic  # s; set by the switchboard
        self._waiting = 0  # devices that wait for room
        self._since = 0.0  # s, from when on
        self._waited = 0.0  # s, that any has waited before
        self._models: deque[ModelParcel] = deque()
        self._parcels: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False

    def put_model(self, parcel: ModelParcel) -> None:
        """Leaves what comes but once: it is never lost for want of room."""
        with self._changed:
            if not self._closed:
                self._models.append(parcel)

    def put(self, parcel: Parcel, *, wait: bool) -> None:
        """Leaves a parcel.

        Args:
            parcel: what to leave.
            wait: when full, wait until the publisher has fetched; otherwise the oldest is lost.
        """
        with self._changed:
            if wait and self._is_full():
                self._wait_for_room()
            if self._closed:
                return
            if len(self._parcels) >= CAPACITY:
                self._parcels.popleft()
            self._parcels.append(parcel)
            # The publisher is not rung for: it would run right now, and make this callback wait
            # for the interpreter. It looks in by itself, as often as a page is sent frames; only
            # when room runs out is it called.
            half_full = len(self._parcels) == CAPACITY // 2
        if half_full:
            self.ring()

    @property
    def waited(self) -> float:
        """s, in all, that devices have waited for room, and the training with them."""
        with self._changed:
            return self._waited + (self.clock() - self._since if self._waiting else 0.0)

    def _is_full(self) -> bool:
        return len(self._parcels) >= CAPACITY and not self._closed

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

    def take(self) -> list[Parcel | ModelParcel]:
        """Fetches all, oldest first; models before the frames that they belong to."""
        with self._changed:
            parcels = [*self._models, *self._parcels]
            self._models.clear()
            self._parcels.clear()
            self._changed.notify_all()
            return parcels

    def wake(self) -> None:
        """Rings: there is something other than parcels to do."""
        with self._changed:
            rung, self._woken = self._woken, True
        if not rung:
            self.ring()

    def woken(self) -> bool:
        """Whether `wake` was called since this was asked last."""
        with self._changed:
            woken, self._woken = self._woken, False
            return woken

    def close(self) -> None:
        """Releases everybody who waits; what is put from now on is dropped."""
        with self._changed:
            self._closed = True
            self._parcels.clear()
            self._changed.notify_all()
        self.ring()
