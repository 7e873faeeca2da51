"""Carries out requests of a person, one at a time."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Wish = TypeVar("Wish")

log = logging.getLogger("brax_viser")


class Newest(Generic[Wish]):
    """Carries out wishes on one thread, which exists only while there is work. Of those that come
    meanwhile, only the newest is carried out: many clicks make neither many threads nor a queue."""

    def __init__(self, work: Callable[[Wish], object], name: str):
        """Starts nothing yet.

        Args:
            work: called on the thread with each wish that is carried out.
            name: of the thread, which inherits its priority from the one that wishes.
        """
        self._work, self._name = work, name
        self._lock = threading.Lock()  # guards the next two
        self._waits: list[Wish] = []  # none or one
        self._works = False

    def wish(self, wish: Wish) -> None:
        """Has a wish carried out next, in place of one that waits. Called on any thread."""
        with self._lock:
            self._waits, begins = [wish], not self._works
            self._works = True
        if begins:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waits:
                    self._works = False
                    return
                wish = self._waits.pop()
            try:
                self._work(wish)
            # The next wish must be carried out even if this one has failed.
            except Exception as error:
                log.error("%s failed", self._name, exc_info=error)
