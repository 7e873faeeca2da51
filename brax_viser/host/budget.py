"""Measures the cost of watching and budgets it: pure logic, with the clock injected."""

import math
from collections import deque
from dataclasses import dataclass

RATE_SECONDS = 1.0
"""Time constant of the step rate. Longer than a rollout-and-update cycle of PPO on a small env:
a rate measured within the rollout alone would skip past the update and notice a switch late."""

COST_SECONDS = 20.0
"""Span over which the cost of watching is averaged: several stretches, so that one stretch more or
less within the span makes little difference."""

BIN_SECONDS = 0.1

SAVED_SECONDS = 1.0
"""At least this many seconds of unspent budget can be saved up, so that a newly opened page shows
its first stretch at once."""

SENDING_SHARE = 0.2
"""Share of the budget reserved for sending. Asking can't stop, since it notices the switch; where
it costs more than the whole budget, the page must still be updated now and then."""

RECORDING_SHARE = 0.0025
"""Share of the training's time that calls may take for recordings. With what calls don't show, such
as the page's loop that takes the steps, it is below a hundredth: see docs/performance.md."""


class Rate:
    """Events per second, averaged with weights that fade over some seconds."""

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._fade_seconds = seconds
        self._events = 0.0
        self._seconds = 0.0

    def add(self, seconds: float, events: int) -> None:
        """Counts `events` that happened in the last `seconds`."""
        fade = math.exp(-max(seconds, 0.0) / self._fade_seconds)
        self._events = self._events * fade + events
        self._seconds = self._seconds * fade + max(seconds, 0.0)

    @property
    def value(self) -> float:
        return self._events / self._seconds if self._seconds > 0 else 0.0


class Budget:
    """The credit left for watching: it grows with wall-clock time and shrinks with each cost.

    A stretch is begun when the credit covers it, so over any time from the first step on, the share
    is exceeded by at most the call that finds the budget used up. Two costs are forgiven, so that
    nothing starves: the cost of asking alone beyond its part of the budget, and debt above
    `COST_SECONDS` of budget, e.g. after the process was stopped (SIGSTOP) during a call.
    """

    def __init__(self) -> None:
        self.credit = 0.0  # s
        self._now: float | None = None
        self._spent = self._polling = 0.0
        self._unpaid = 0.0  # s of asking, still to be paid

    def update(
        self, now: float, spent: float, polling: float, share: float, at_once: float
    ) -> None:
        """Brings the credit up to date.

        Args:
            now: s.
            spent: s, total cost of watching so far.
            polling: s, the part of `spent` that went into asks without a push.
            share: share of wall-clock time that watching may take.
            at_once: s, the largest single cost that must be affordable.
        """
        if self._now is None:
            self._now, self._spent, self._polling = now, spent, polling
        passed = max(now - self._now, 0.0)
        granted = share * passed
        polled = polling - self._polling
        self._unpaid = min(self._unpaid + polled, share * COST_SECONDS)
        paid = min(self._unpaid, (1 - SENDING_SHARE) * granted)
        self._unpaid -= paid
        spending = spent - self._spent - polled + paid
        most, least = max(share * SAVED_SECONDS, 1.25 * at_once), share * COST_SECONDS
        self.credit = max(min(self.credit + granted - spending, most), -max(least, at_once))
        self._now, self._spent, self._polling = now, spent, polling


class CostMeter:
    """Measures what watching costs the training: time spent in calls to the host, and bytes moved.

    The share is of the training thread's wall-clock time. It leaves out the processor time of the
    viewer's own threads; `benchmarks.overhead` measures everything together.
    """

    def __init__(self) -> None:
        self._bins: deque[_Bin] = deque()
        self._since: float | None = None
        self.spent = 0.0  # s, total
        self.polling = 0.0  # s, the part of `spent` that went into asks without a push
        self.calls = 0  # total
        self.recording = False  # whether steps are recorded now: then all of them are sent
        self.recorded = 0.0  # s, the part of `spent` meanwhile
        # s, the other part: what the page's own requests have cost. While steps are recorded, they
        # are free: the cost of a recording must not delay the page's next stretch. A separate sum,
        # as the difference of the other two can shrink by rounding.
        self.watching = 0.0
        self._gaps = deque([20e-6], maxlen=32)  # s, between the call before and each recent push
        # s: cost of a call outside our function. The smallest of the recent gaps is used: a gap
        # before a push is longer where the processor is busy with something else, which is not a
        # cost that every call has.
        self.crossing = min(self._gaps)

    def asked(self, start: float, stop: float, *, pushes: bool = True) -> None:
        """Counts an `ask` that ran from `start` to `stop`, plus one crossing to get there."""
        cost = stop - start + self.crossing
        if not pushes:
            self.polling += cost
        self._add(stop, cost)

    def pushed(
        self, before: float | None, start: float, stop: float, nbytes: int, *, frame: bool = True
    ) -> None:
        """Counts a `push` that ran from `start` to `stop`; the call before it ended at `before`.

        The gap between the two is the gather, the transfer and one crossing into Python: all of it
        counts as cost, and no other crossing can be timed from inside. If the call before was for
        another step, `before` is None, and `crossing` stands in for the gap.
        """
        if before is None:
            before = start - self.crossing
        elif start > before:  # while the training is held, the clock stands still
            self._gaps.append(start - before)
            self.crossing = min(self._gaps)
        self._add(stop, max(stop - before, 0.0), nbytes, int(frame))

    def copied(self, now: float, seconds: float, nbytes: int, frames: int) -> None:
        """Counts copies that a device made beside the calls, which took it `seconds`."""
        self._add(now, seconds, nbytes, frames, calls=0)

    def went_on(self, now: float, seconds: float, nbytes: int, frames: int) -> None:
        """Counts consecutive pushes without an `ask` that took `seconds` in total until `now`."""
        self._add(now, seconds + frames * self.crossing, nbytes, frames, calls=frames)

    def reading(self) -> "Cost":
        """Copies the measurements, so that they are evaluated after the lock is released."""
        return Cost(self._since, list(self._bins))

    def _add(
        self, when: float, seconds: float, nbytes: int = 0, frames: int = 0, calls: int = 1
    ) -> None:
        if self._since is None:
            self._since = when - seconds
        self.spent += seconds
        if self.recording:
            self.recorded += seconds
        else:
            self.watching += seconds
        self.calls += calls
        if not self._bins or abs(when - self._bins[-1].since) > BIN_SECONDS:
            self._bins.append(_Bin(when))
            self._forget(when)
        newest = self._bins[-1]
        newest.seconds += seconds
        newest.nbytes += nbytes
        newest.frames += frames

    def _forget(self, now: float) -> None:
        while self._bins and self._bins[0].since < now - COST_SECONDS:
            self._bins.popleft()


@dataclass
class _Bin:
    """The sum of calls that came close together."""

    since: float  # s
    seconds: float = 0.0
    nbytes: int = 0
    frames: int = 0


@dataclass(frozen=True, eq=False)
class Cost:
    """One reading of a `CostMeter`."""

    _since: float | None  # s, when the first call was made
    _bins: list[_Bin]

    def share(self, now: float) -> float:
        """Share of wall-clock over the last `COST_SECONDS`, 0 to 1."""
        return min(self._per_second(now, "seconds"), 1.0)

    def bytes_per_second(self, now: float) -> float:
        """Device to host, over the last `COST_SECONDS`."""
        return self._per_second(now, "nbytes")

    def frames_per_second(self, now: float) -> float:
        """Frames pushed, over the last `COST_SECONDS`."""
        return self._per_second(now, "frames")

    def _per_second(self, now: float, what: str) -> float:
        span = min(now - self._since, COST_SECONDS) if self._since is not None else 0.0
        if span <= 0:
            return 0.0
        return sum(getattr(b, what) for b in self._bins if b.since >= now - COST_SECONDS) / span
