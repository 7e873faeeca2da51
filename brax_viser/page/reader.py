"""Reads models on a separate thread: large meshes would block the page's loop for seconds."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Reading:
    """A model or episodes to read, and the function that uses them."""

    role: str  # the scene's block that it is for; "episodes" and so on if it is not a model
    read: Callable[[], Any]  # called on any thread
    use: Callable[[Any], object]  # called on viser's loop with the result of `read`


class Reader:
    """A thread that reads models in order; a newer request for a role replaces a waiting one.

    It runs at normal priority: it holds Python's lock most of the time, and at low priority the
    training would wait for the lock while this thread waits for a processor.
    """

    def __init__(
        self,
        on_loop: Callable[[Callable[[], object]], object],
        failed: Callable[[Exception], object],
    ):
        """Reads nothing yet.

        Args:
            on_loop: schedules a function on viser's loop; called on the reader's thread.
            failed: gets the exception that reading has raised; called on the reader's thread.
        """
        self._on_loop, self._failed = on_loop, failed
        self._changed = threading.Condition()
        self._waiting: dict[str, Reading] = {}  # by role
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="brax_viser reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the current reading; waiting ones are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self, reading: Reading) -> None:
        """Queues a reading, replacing a waiting one of the same role. Called on any thread."""
        with self._changed:
            self._waiting.pop(reading.role, None)
            self._waiting[reading.role] = reading
            self._changed.notify_all()

    def _run(self) -> None:
        while (reading := self._next()) is not None:
            try:
                found = reading.read()
            # The page and the training go on with the previous model.
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
