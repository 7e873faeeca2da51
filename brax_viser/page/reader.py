"""Reads models beside the page's loop: of a robot of large meshes it takes seconds."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Reading:
    """Something that has yet to be read, and what is to become of it."""

    role: str  # whose block of the scene it is for
    read: Callable[[], Any]  # on any thread
    use: Callable[[Any], object]  # on viser's loop, with what `read` has returned


class Reader:
    """One thread that reads, in order. Of what is wanted for one role, the newest alone is read.

    The thread does not let the training go first, as others of ours do: it would have Python's lock
    most of the time, and the training would wait for that as long as it waits for a processor.
    """

    def __init__(
        self,
        on_loop: Callable[[Callable[[], object]], object],
        failed: Callable[[Exception], object],
    ):
        """Reads nothing yet.

        Args:
            on_loop: called on the reader's thread: has a function called on viser's loop.
            failed: called on the reader's thread with what reading has raised.
        """
        self._on_loop, self._failed = on_loop, failed
        self._changed = threading.Condition()
        self._waiting: dict[str, Reading] = {}  # by role
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="brax_viser reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after what it is at; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self, reading: Reading) -> None:
        """Called on any thread: has it read, in place of what waits for the same role."""
        with self._changed:
            self._waiting.pop(reading.role, None)
            self._waiting[reading.role] = reading
            self._changed.notify_all()

    def _run(self) -> None:
        while (reading := self._next()) is not None:
            try:
                found = reading.read()
            # The page and the training go on with what there was.
            except Exception as error:
                self._failed(error)
                continue
            self._on_loop(lambda reading=reading, found=found: reading.use(found))

    def _next(self) -> Reading | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            return self._waiting.pop(next(iter(self._waiting)))
