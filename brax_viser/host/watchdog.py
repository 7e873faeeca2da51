"""Lets a held training go before a watchdog of XLA or NCCL ends the process."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from brax_viser.host.hold import Hold

WATCHDOGS = (
    "xla_gpu_execution_terminate_timeout",
    "xla_gpu_executable_terminate_timeout",
    "xla_gpu_executable_terminate_timeout_seconds",
    "xla_gpu_nccl_termination_timeout_seconds",
)
"""Flags of XLA after whose time a program that still runs ends the process. A held training is such
a program: it waits within a step. Without the flags XLA waits for ever."""

SHARE = 0.5
"""Share of that time that a hold may take, as the program's own work counts too."""

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
    """Returns a duration in s; infinite if it is none."""
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        return math.inf
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)


def usual() -> Watchdog | None:
    """Returns the strictest watchdog of this process."""
    return watchdog_of(os.environ.get("XLA_FLAGS", ""))


@dataclass
class HoldLimit:
    """Ends holds that last too long. Steps in between do not prolong one: the program goes on."""

    hold: Hold
    watchdog: Watchdog | None
    tell: Callable[[str], object]
    """Called when a hold is ended, with the reason."""
    _since: float | None = None

    def update(self, now: float) -> str | None:
        """Ends the hold if it must; to be called about every second, or more often.

        Args:
            now: s, a clock that does not stand still while the training is held.

        Returns:
            How long the hold may last, in words; None if there is no hold, or no limit.
        """
        if self.watchdog is None or not self.hold.paused:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        flag, seconds = self.watchdog
        left = self._since + SHARE * seconds - now
        if left > 0:
            return f"The training goes on by itself in {left:.0f} s: XLA_FLAGS has {flag}"
        self.hold.resume()
        self._since = None
        self.tell(
            f"The training goes on after {SHARE * seconds:.0f} s: by {flag} in XLA_FLAGS, "
            f"XLA ends a process whose program runs for {seconds:g} s"
        )
        return None
