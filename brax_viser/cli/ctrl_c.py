"""Turns Ctrl-C and SIGTERM into a flag."""

import os
import signal
import time
from typing import Any

from brax_viser.process import last_words

STOPPED: int = 130
"""Exit code after Ctrl-C, as shells define it: 128 + SIGINT."""

IMPATIENCE: float = 2.0
"""s after the first Ctrl-C from which on another one ends the process at once."""


class CtrlC:
    """A context in which Ctrl-C, and SIGTERM of schedulers and containers, set a flag.

    A KeyboardInterrupt could be raised anywhere, even while the policy is saved, and is lost where
    Python ignores exceptions.
    """

    def __init__(self) -> None:
        self.heard = False
        self.code = STOPPED  # exit code: 128 + the first signal's number, as in a shell
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            # A shell makes background processes ignore Ctrl-C: leave that as it is.
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._hear)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _hear(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self.heard:
            self.heard, self._since, self.code = True, now, 128 + number
        elif now - self._since > IMPATIENCE:
            # The main thread may hold the lock of the standard output, for example while it waits
            # for a disk that does not answer.
            last_words(2, "\nStopped at once: nothing more is saved.\n")
            os._exit(self.code)
