"""Hears of Ctrl-C while the main thread is inside of XLA, and Python runs no handler of its own."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable


class InterruptWatch:
    """Calls back when SIGINT comes, on a thread of its own; Python's handling goes on beside it.

    A training that is held keeps the main thread within a compiled program, and Python runs signal
    handlers on the main thread alone, when that comes back. But its C handler writes a byte to
    the wakeup descriptor at once.

    `start` and `close` belong to the main thread; elsewhere, and where another has taken the
    descriptor meanwhile, they do nothing.
    """

    def __init__(self, heard: Callable[[], object]):
        self._heard = heard
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._before = -1  # who was woken before us: an event loop, say

    def start(self) -> None:
        """Begins to listen."""
        if threading.current_thread() is not threading.main_thread():
            return
        ours, signals = socket.socketpair()
        signals.setblocking(False)
        self._ends = ours, signals
        self._before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()

    def close(self) -> None:
        """Stops listening, and leaves the descriptor to whom it belonged."""
        if self._ends is None:
            return
        _, signals = self._ends
        if threading.current_thread() is threading.main_thread():
            now = signal.set_wakeup_fd(-1)
            theirs = self._before if now == signals.fileno() else now
            with contextlib.suppress(ValueError, OSError):  # it may be closed by now
                signal.set_wakeup_fd(theirs)
            signals.close()
            self._ends = None
        # Elsewhere the descriptor must stay open: signals are still written to it.

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while numbers := ours.recv(64):
                if self._before >= 0:
                    with contextlib.suppress(OSError):
                        os.write(self._before, numbers)
                if signal.SIGINT in numbers:
                    self._heard()
