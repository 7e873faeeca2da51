"""Which steps and which environments are sent to the host: pure logic, the clock injected."""

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from brax_viser.emit import FRESH

MODES = ("latest", "every_step")
FOREVER = 2**30
"""Steps to skip once nobody will ever ask again (the viewer is closed)."""

REACTION_SECONDS = 0.1
"""How often an idle stream asks: half of the 0.2 s within which a switch must be noticed."""

RATE_SECONDS = 1.0
"""Time constant of the step rate. Longer than a rollout-and-update cycle of PPO on a small env:
a rate taken within the rollout alone would skip across the update and notice a switch late."""

COST_SECONDS = 10.0
"""Span over which the cost of watching is averaged."""


@dataclass(frozen=True)
class Control:
    """What the person who watches wants at the moment."""

    streaming: bool = True  # the switch
    watched: bool = False  # whether a page is open
    mode: str = "latest"  # one of MODES
    fps: float = 30.0  # frames per second of mode "latest"
    max_overhead: float = 0.02  # share of wall-clock that mode "latest" may take
    closed: bool = False


class Answer(NamedTuple):
    """What the device is told when it asks."""

    push: bool  # send the chosen environments of this very step
    skip: int  # steps to let pass before asking again


class Pacer:
    """Decides for one stream of batched steps when to ask again and when to send.

    One per rollout (training, evaluation) and device. Not thread-safe: the viewer locks.
    """

    def __init__(self) -> None:
        self.env_steps = 0  # batched steps known of
        self.last_ask: float | None = None  # s
        self._skip = 0  # what the last answer granted
        self._rate = Rate()
        self._next_frame = -math.inf  # s, when mode "latest" sends again
        self._spent = 0.0  # s, what watching had cost in all when the last frame was sent

    @property
    def rate(self) -> float:
        """Batched steps per second of wall-clock, averaged over about a second; 0 if unknown."""
        return self._rate.value

    def ask(self, now: float, countdown: int, control: Control, spent: float) -> Answer:
        """Answers one due step.

        Args:
            now: s, any monotonic clock.
            countdown: what the state held: FRESH right after a reset.
            control: what is wanted.
            spent: s, what watching has cost so far, in all.
        """
        fresh = countdown == FRESH
        # After a reset nobody knows how many of the granted steps were still taken: none counts.
        steps = 1 if fresh else self._skip + 1
        self.env_steps += steps
        if self.last_ask is not None and not fresh:
            self._rate.add(now - self.last_ask, steps)
        self.last_ask = now
        if control.closed:
            return self._grant(False, FOREVER)
        if not (control.streaming and control.watched):
            return self._grant(False, self._within(REACTION_SECONDS))
        if control.mode == "every_step":
            return self._grant(True, 0)
        push = now >= self._next_frame
        if push:
            # What the last frame cost, and the asking around it, may be spent again only when
            # enough time has passed for it to be `max_overhead` of that time.
            self._next_frame = now + max(
                1 / control.fps, (spent - self._spent) / control.max_overhead
            )
            self._spent = spent
        wait = min(self._next_frame - now, REACTION_SECONDS)
        return self._grant(push, self._within(wait))

    def _grant(self, push: bool, skip: int) -> Answer:
        self._skip = skip
        return Answer(push, skip)

    def _within(self, seconds: float) -> int:
        """Steps that pass in `seconds`, growing at most twofold so that one odd interval between
        two calls (a compilation, an update) cannot make the stream deaf."""
        return min(int(self.rate * seconds), 2 * self._skip + 1, FOREVER)


class Rate:
    """Events per second, averaged with weights that fade over some seconds."""

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._fade_seconds = seconds
        self._events = 0.0
        self._seconds = 0.0

    def add(self, seconds: float, events: int) -> None:
        """`events` happened in the last `seconds`."""
        fade = math.exp(-max(seconds, 0.0) / self._fade_seconds)
        self._events = self._events * fade + events
        self._seconds = self._seconds * fade + max(seconds, 0.0)

    @property
    def value(self) -> float:
        return self._events / self._seconds if self._seconds > 0 else 0.0


class CostMeter:
    """What watching costs the training: time spent in calls to the host, and bytes moved.

    The share is that of the training thread's wall-clock. What the viewer's own threads take of
    the processor beside it is not in it; `benchmarks.overhead` measures everything together.
    """

    def __init__(self) -> None:
        self._calls: deque[tuple[float, float, int]] = deque()  # (when, s, bytes), a call each
        self._since: float | None = None
        self.spent = 0.0  # s, in all
        self.crossing = 150e-6  # s, running mean of what a call costs outside of our function

    def asked(self, start: float, stop: float) -> None:
        """An `ask` ran from `start` to `stop`; getting there cost a crossing as well."""
        self._add(stop, stop - start + self.crossing, 0)

    def pushed(self, asked: float, start: float, stop: float, nbytes: int) -> None:
        """A `push` ran from `start` to `stop`, after its `ask` had ended at `asked`.

        Between the two lie the gather, the transfer and one crossing into Python: all of it is
        ours, and it is the one crossing that can be timed from inside.
        """
        self.crossing += 0.1 * (start - asked - self.crossing)
        self._add(stop, stop - asked, nbytes)

    def share(self, now: float) -> float:
        """Share of wall-clock over the last `COST_SECONDS`, 0 to 1."""
        span = self._forget(now)
        return min(sum(s for _, s, _ in self._calls) / span, 1.0) if span > 0 else 0.0

    def bytes_per_second(self, now: float) -> float:
        """Device to host, over the last `COST_SECONDS`."""
        span = self._forget(now)
        return sum(b for _, _, b in self._calls) / span if span > 0 else 0.0

    def frames_per_second(self, now: float) -> float:
        """Pushes, over the last `COST_SECONDS`."""
        span = self._forget(now)
        return sum(b > 0 for _, _, b in self._calls) / span if span > 0 else 0.0

    def _add(self, when: float, seconds: float, nbytes: int) -> None:
        if self._since is None:
            self._since = when - seconds
        self.spent += seconds
        self._calls.append((when, seconds, nbytes))
        self._forget(when)

    def _forget(self, now: float) -> float:
        while self._calls and self._calls[0][0] < now - COST_SECONDS:
            self._calls.popleft()
        return min(now - self._since, COST_SECONDS) if self._since is not None else 0.0


class Selection:
    """Which environments are drawn, in the order of the grid's cells.

    Given as a rule, because how many environments there are is known with the first step.
    """

    def __init__(self, rule: str | tuple[int, ...] = "first"):
        self.rule = rule

    @classmethod
    def of(cls, what: object) -> "Selection":
        """Checks what a user passed.

        Raises:
            ValueError: neither "first" nor a sequence of distinct indices of 0 or more.
        """
        if isinstance(what, str) and what == "first":
            return cls("first")
        if isinstance(what, str) or not isinstance(what, (list, tuple, range, np.ndarray)):
            raise ValueError(f"select({what!r}): must be 'first' or a list of env indices")
        indices = tuple(int(i) for i in what)
        if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
            raise ValueError(
                f"select({what!r}): must be at least one env index, each 0 or more, none twice"
            )
        return cls(indices)

    def drawn(self, num_envs: int, capacity: int) -> np.ndarray:
        """int32 [K <= capacity]: global indices; those that do not exist are left out."""
        if self.rule == "first":
            return np.arange(min(num_envs, capacity), dtype=np.int32)
        chosen = [i for i in self.rule if isinstance(i, int) and i < num_envs]
        return np.asarray(chosen[:capacity], np.int32)
