"""Which steps are sent to the host, and what that costs: pure logic, the clock injected."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from brax_viser.host.budget import Budget, Rate
from brax_viser.host.control import REACTION_SECONDS, Control
from brax_viser.records.protocol import FOREVER, FRESH

SAVING_SECONDS = 0.05
"""How often it is looked whether the budget suffices by now, at most: asking costs as well."""

PACE_SECONDS = 10.0
"""Time constant of the step rate that is compared with the robot's pace: longer, so that an update
or a short evaluation does not change what is shown."""

SLOW, FAST = 1.1, 1.5
"""Training steps per step of the robot's own pace, below which "realtime" shows every step as it
comes, and above which it goes back to stretches."""


class Answer(NamedTuple):
    """What the device is told when it asks."""

    push: bool  # send the chosen environments of this very step
    skip: int  # steps to let pass before asking again
    begins: bool = False  # whether a stretch begins with this step


@dataclass
class _Shard:
    """One device's part of a rollout."""

    env_steps: int = 0  # batched steps known of
    skip: int = 0  # what the last answer granted
    went_on: int = 0  # of env_steps, those since the last ask: see `go_on`
    idle_skip: int = 0  # the last time that it was not within a stretch
    resets: int = 0


@dataclass
class Pacer:
    """Decides for one rollout when to ask again and when to send.

    What is sent are stretches of consecutive steps: one step in "latest", a stretch in "realtime",
    one stretch without an end in "every_step". One shard plans them, far enough ahead that all
    devices send the very same steps. Not thread-safe: the caller locks.
    """

    dt: float  # s of robot time per step
    stretch_due: float = -math.inf  # s, when the next stretch is wanted: set by the player
    leader: int = 0  # the shard that plans
    _shards: dict[int, _Shard] = field(default_factory=dict)
    _reset_steps: list[int] = field(default_factory=lambda: [0])
    _last_ask: float | None = None
    _rate: "Rate" = field(default_factory=lambda: Rate())
    _pace: "Rate" = field(default_factory=lambda: Rate(PACE_SECONDS))
    _budget: "Budget" = field(default_factory=lambda: Budget())
    _start: int = 0  # the stretch is of steps start <= step < stop
    _stop: int = 0
    _spent_at_start: float | None = None  # s; None once what the stretch cost has been accounted
    _step_cost: float = 150e-6  # s, running mean, of a step that is sent
    _earliest: float = -math.inf  # s, before which no other stretch is begun
    _next_frame: float = -math.inf  # s, when "latest" sends again
    _slow: bool = True
    _rests: bool = False  # until something has been saved
    _active: bool = False
    _restarts: bool = False

    @property
    def env_steps(self) -> int:
        """Batched steps known of."""
        # A copy: it is read while another device asks for the first time.
        return max([shard.env_steps for shard in list(self._shards.values())], default=0)

    @property
    def last_reset(self) -> tuple[int, int]:
        """How often the rollout was reset, and the steps known of when it was last."""
        resets = max([shard.resets for shard in list(self._shards.values())], default=0)
        return resets, self._reset_steps[resets]

    @property
    def rate(self) -> float:
        """Batched steps per second of wall-clock, averaged over about a second; 0 if unknown."""
        return self._rate.value

    @property
    def following(self) -> bool:
        """Whether "realtime" sends every step as it comes, the training being that slow."""
        return self._slow

    @property
    def sending(self) -> bool:
        """Whether a stretch is under way or planned."""
        return self._stop > min([s.env_steps + 1 for s in list(self._shards.values())], default=0)

    def ask(
        self,
        now: float,
        countdown: int,
        control: Control,
        spent: float,
        *,
        active: bool,
        shard: int = 0,
        polling: float = 0.0,
    ) -> Answer:
        """Answers one due step.

        Args:
            now: s, a clock that stands still while the training is held.
            countdown: what the state held: FRESH right after a reset.
            control: what is wanted.
            spent: s, what watching has cost so far, in all.
            active: whether this rollout's steps are wanted at all.
            shard: which device asks.
            polling: s, the part of `spent` that went on asking in vain.
        """
        own = self._shards.setdefault(shard, _Shard())
        steps = self._count(own, countdown)
        if shard == self.leader:
            if self._last_ask is not None and countdown != FRESH:
                # A gap of an hour is a laptop that was asleep, and is to be forgotten soon.
                gap = min(now - self._last_ask, PACE_SECONDS)
                self._rate.add(gap, steps)
                self._pace.add(gap, steps)
            self._last_ask = now
        if control.closed:
            return self._answer(own, False, FOREVER)
        stretch = max(round(control.stretch_seconds / self.dt), 2)
        at_once = stretch * self._step_cost
        self._budget.update(now, spent, polling, control.max_overhead, at_once)
        if active and not self._active:
            self.restart()
        self._active = active
        if not active:
            self._stop = min(self._stop, own.env_steps)
            return self._answer(own, False, self._within(own, REACTION_SECONDS))
        wait = REACTION_SECONDS
        if shard == self.leader:
            wait = self._plan(own.env_steps, now, control, spent, stretch)
        step = own.env_steps
        push = self._start <= step < self._stop
        if self._start <= step + 1 < self._stop:
            skip = 0
        elif step < self._start < self._stop:
            skip = self._start - step - 1
        else:
            skip = self._within(own, wait)
        return self._answer(own, push, skip, begins=step == self._start)

    def go_on(self, shard: int) -> bool:
        """Counts one more step of a stretch, in place of `ask`, where the step after it is of that
        stretch as well and nothing is to be planned. Returns whether."""
        own = self._shards[shard]
        if own.skip or not self._start <= own.env_steps + 1 < self._stop - 1:
            return False
        own.env_steps += 1
        own.went_on += 1
        return True

    def granted(self, shard: int) -> int:
        """Steps that the last answer to a shard lets pass; 0 before there was any."""
        return self._shards[shard].skip if shard in self._shards else 0

    def grant(self, shard: int, skip: int) -> None:
        """Lets another number of steps pass than the last answer said."""
        self._shards[shard].skip = skip

    def is_next(self, shard: int) -> bool:
        """Whether the step after the last that a shard asked at is sent, as far as is planned."""
        return self._start <= self._shards[shard].env_steps + 1 < self._stop

    def steps_of(self, shard: int) -> int:
        """Batched steps known of, of one device."""
        return self._shards[shard].env_steps

    def restart(self) -> None:
        """Something else is to be shown: begins anew at once, with as much as can be afforded."""
        self._restarts, self._stop = True, self._start
        self.stretch_due = self._earliest = -math.inf

    def abandon(self, now: float, seconds: float) -> None:
        """There is nothing to send: ends the stretch, and begins none for a while."""
        self._stop = self._start
        self.stretch_due = max(self.stretch_due, now + seconds)
        self._next_frame = max(self._next_frame, now + seconds)

    def _count(self, own: _Shard, countdown: int) -> int:
        """Adds the steps taken since this shard's last call, and returns how many."""
        if countdown == FRESH:
            # Nobody knows how many of the granted steps were still taken: none counts. All
            # shards are reset at one and the same step, and must agree on its number.
            own.resets += 1
            if own.resets == len(self._reset_steps):
                self._reset_steps.append(self.env_steps)
            own.env_steps, steps = self._reset_steps[own.resets] + 1, 1
        else:
            # Above 0 where something has turned NaN: the step has come before its time.
            early = countdown if 0 < countdown <= own.skip else 0
            steps = own.skip + 1 - early
            own.env_steps += steps
            steps += own.went_on
        own.went_on = 0
        return steps

    def _plan(self, step: int, now: float, control: Control, spent: float, stretch: int) -> float:
        """Begins or ends a stretch where it is time; returns s until it can be time again."""
        if control.mode == "every_step":
            if step >= self._stop:
                self._begin(1 << 60)
            return 0.0
        if step < self._start:
            return REACTION_SECONDS
        self._account(step, spent)
        if step < self._stop:
            # A stretch left over from every_step is not to go on; one that turns out dearer than
            # what was saved up for it ends here, and what has come is shown.
            if self._stop - self._start <= stretch and self._budget.credit >= 0:
                return 0.0
            self._stop = step
        if control.mode == "latest":
            return self._plan_frame(now, control, spent)
        pace = self._pace.value * self.dt / control.speed
        self._slow = pace < (FAST if self._slow else SLOW)
        length = 1 if self._slow else stretch
        if self._restarts:
            affordable = self._budget.credit / self._step_cost
            length = max(min(length, int(min(affordable, stretch))), 1)
        playing = length * self.dt / control.speed
        self._earliest = min(self._earliest, now + playing)  # a clock can be set back
        due = now if self._slow else max(self.stretch_due, self._earliest)
        # Twins go on from step to step. Where the budget does not pay for all of them, many that
        # follow each other and then none are worth more than every other one.
        needed = stretch if self._rests and control.twins else length
        wait = max(due - now, self._saving(needed * self._step_cost, control))
        self._rests = wait > due - now
        if wait <= 0 or self._restarts:
            self._restarts = self._rests = False
            # What the player wants may have been said before this stretch was begun.
            self._earliest = now + 0.5 * playing
            self._begin(length, spent)
        return min(max(wait, 0.0), REACTION_SECONDS)

    def _plan_frame(self, now: float, control: Control, spent: float) -> float:
        self._next_frame = min(self._next_frame, now + 1 / control.fps)  # a clock can be set back
        wait = max(self._next_frame - now, self._saving(self._step_cost, control))
        if wait <= 0 or self._restarts:
            self._restarts = False
            self._next_frame = now + 1 / control.fps
            self._begin(1, spent)
            wait = 1 / control.fps
        return min(wait, REACTION_SECONDS)

    def _saving(self, cost: float, control: Control) -> float:
        """s until something can be paid for; long enough that asking costs less than is saved."""
        missing = cost - self._budget.credit
        return max(missing / control.max_overhead, SAVING_SECONDS) if missing > 0 else 0.0

    def _account(self, step: int, spent: float) -> None:
        """Learns from the stretch that is under way, or just over, what sending a step costs."""
        sent = min(step, self._stop) - self._start
        if self._spent_at_start is None or sent <= 0:
            return
        over = step >= self._stop
        # One that took far longer than the others was stopped by something else.
        cost = min((spent - self._spent_at_start) / sent, 10 * self._step_cost)
        self._step_cost += (0.3 if over else 0.05) * (cost - self._step_cost)
        if over:
            self._spent_at_start = None

    def _begin(self, length: int, spent: float | None = None) -> None:
        # The step at which the last of the shards asks next; this very step if there is one.
        self._start = self._shards[self.leader].env_steps
        if len(self._shards) > 1:
            self._start = max(
                self._start,
                *(s.env_steps + s.skip + 1 for i, s in self._shards.items() if i != self.leader),
            )
        self._stop = self._start + length
        self._spent_at_start = spent

    def _answer(self, own: _Shard, push: bool, skip: int, begins: bool = False) -> Answer:
        own.skip = skip
        return Answer(push, skip, push and begins)

    def _within(self, own: _Shard, seconds: float) -> int:
        """Steps that pass in `seconds`, growing at most twofold so that one odd interval between
        two calls (a compilation, an update) cannot make the stream deaf."""
        own.idle_skip = min(int(self.rate * seconds), 2 * own.idle_skip + 1, FOREVER)
        return own.idle_skip
