"""Lets a held training go before a watchdog of XLA or NCCL ends the process."""

import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from brax_viser.host.hold import Hold

WATCHDOGS = (
    "xla_gpu_execution_terminate_timeout",
    "xla_gpu_executable_terminate_timeout",
    "xla_gpu_executable_terminate_timeout_seconds",
    "xla_gpu_nccl_termination_timeout_seconds",
)
"""XLA flags whose timeout ends the process while a program is still running. A held training is
such a program: it waits within a step. Without these flags XLA waits for ever."""

SHARE = 0.5
"""Share of that timeout that a hold may take, as the program's own work counts too."""

LOOK_SECONDS = 0.25
"""s between two checks whether a hold must end."""

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|us|ns|m|s)?")


class Watchdog(NamedTuple):
    """A flag that limits how long a program may run."""

    flag: str
    seconds: float


def watchdog_of(flags: str) -> Watchdog | None:
    """Returns the strictest watchdog.

    Args:
        flags: as in the environment variable XLA_FLAGS. Durations are numbers of seconds, or such
            as "90s", "1m30s" or "infinite".
    """
    found = []
    for name, value in re.findall(r"--(\w+)=(\S+)", flags):
        seconds = _seconds(value)
        if name in WATCHDOGS and 0 < seconds < math.inf:
            found.append(Watchdog(name, seconds))
    return min(found, key=lambda watchdog: watchdog.seconds, default=None)


def _seconds(value: str) -> float:
    """Returns a duration in s; infinite if it is not one."""
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return math.inf
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)


def usual() -> Watchdog | None:
    """Returns the strictest watchdog of this process."""
    return watchdog_of(os.environ.get("XLA_FLAGS", ""))


class HoldLimit:
    """Ends holds that last too long. Steps in between do not prolong one: the program goes on.

    Runs on a separate thread, if there is a limit: whatever the page's loop does or waits for, the
    process must survive.
    """

    def __init__(self, hold: Hold, watchdog: Watchdog | None):
        """Ends nothing until `start`.

        Args:
            hold: the training's.
            watchdog: the strictest one; None: a hold may last for ever.
        """
        self._hold, self._watchdog = hold, watchdog
        self._ends: float | None = None  # s, when the hold must end; None: there is none
        self._closed = threading.Event()
        self._tell: Callable[[str], object] = lambda why: None

    @property
    def seconds(self) -> float | None:
        """How long a hold may last, s; None: for ever."""
        return None if self._watchdog is None else SHARE * self._watchdog.seconds

    @property
    def left(self) -> float | None:
        """How long this hold may still last, s; None if there is no hold, or no limit."""
        ends = self._ends
        return None if ends is None else max(ends - time.monotonic(), 0.0)

    def start(self, tell: Callable[[str], object]) -> None:
        """Begins to watch; `tell` is called with the reason when a hold is ended."""
        self._tell = tell
        if self._watchdog is not None:
            threading.Thread(target=self._watch, name="brax_viser hold limit", daemon=True).start()

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        self._closed.set()
        # Compiled programs keep this object alive; it must not keep the page alive.
        self._tell = lambda why: None

    def _watch(self) -> None:
        assert self._watchdog is not None
        while not self._closed.wait(min(LOOK_SECONDS, SHARE * self._watchdog.seconds / 10)):
            self.update(time.monotonic())

    def update(self, now: float) -> None:
        """Ends the hold if it must.

        Args:
            now: s, of `time.monotonic`: it does not stand still while the training is held.
        """
        if self._watchdog is None or not self._hold.paused:
            self._ends = None
            return
        flag, seconds = self._watchdog
        if self._ends is None:
            self._ends = now + SHARE * seconds
        if now < self._ends:
            return
        self._hold.resume()
        self._ends = None
        self._tell(
            f"The training goes on after {SHARE * seconds:.0f} s: by {flag} in XLA_FLAGS, "
            f"XLA ends a process whose program runs for {seconds:g} s"
        )

    def words(self) -> str | None:
        """Says how long the hold may still last; None if there is no hold, or no limit."""
        left = self.left
        if left is None or self._watchdog is None:
            return None
        return (
            f"The training goes on by itself in {left:.0f} s: XLA_FLAGS has {self._watchdog.flag}"
        )
