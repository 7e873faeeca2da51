"""Decides which steps are sent to the host, within the budget: pure logic, the clock injected."""

from dataclasses import dataclass, field
from typing import NamedTuple

from brax_viser.host.budget import Budget, Rate
from brax_viser.host.control import REACTION_SECONDS, Control
from brax_viser.host.modes import EveryStep, Latest, Moment, Realtime, stretch_of
from brax_viser.records.protocol import FOREVER, FRESH

PACE_SECONDS = 10.0
"""Time constant of the step rate that is compared with the robot's pace: longer than `Rate`'s own,
so that an update or a short evaluation does not change what is shown."""


class Answer(NamedTuple):
    """The answer to a device that asks."""

    push: bool  # send the chosen environments of this step
    skip: int  # steps to let pass before asking again
    begins: bool = False  # whether a stretch begins with this step


@dataclass
class _Shard:
    """One device's part of a rollout."""

    env_steps: int = 0  # batched steps reported so far
    skip: int = 0  # as granted by the last answer
    went_on: int = 0  # part of env_steps: since the last ask, see `go_on`
    idle_skip: int = 0  # as last granted outside a stretch
    resets: int = 0


@dataclass
class Pacer:
    """Decides for one rollout when its devices ask again and which steps they send.

    They send stretches of consecutive steps: a single step in "latest", `stretch_seconds` in
    "realtime", one endless stretch in "every_step". One shard plans them, far enough ahead that
    all devices send the same steps. Not thread-safe: the caller locks.
    """

    dt: float  # s of robot time per step
    leader: int = 0  # the shard that plans
    _shards: dict[int, _Shard] = field(default_factory=dict)
    _reset_steps: list[int] = field(default_factory=lambda: [0])
    _last_ask: float | None = None
    _rate: "Rate" = field(default_factory=lambda: Rate())
    _pace: "Rate" = field(default_factory=lambda: Rate(PACE_SECONDS))
    _budget: "Budget" = field(default_factory=lambda: Budget())
    _start: int = 0  # the stretch has the steps start <= step < stop
    _stop: int = 0
    _spent_at_start: float | None = None  # s; None once the stretch's cost is accounted for
    _step_cost: float = 150e-6  # s per step that is sent, running mean
    _realtime: Realtime = field(default_factory=Realtime)
    _latest: Latest = field(default_factory=Latest)
    _every_step: EveryStep = field(default_factory=EveryStep)
    _active: bool = False
    _restarts: bool = False

    @property
    def env_steps(self) -> int:
        """Batched steps reported so far."""
        # A copy: another device may add itself by its first `ask` during this iteration.
        return max([shard.env_steps for shard in list(self._shards.values())], default=0)

    @property
    def last_reset(self) -> tuple[int, int]:
        """How often the rollout was reset, and its steps at the last reset."""
        resets = max([shard.resets for shard in list(self._shards.values())], default=0)
        return resets, self._reset_steps[resets]

    @property
    def rate(self) -> float:
        """Batched steps per second of training clock, averaged over about 1 s; 0 if unknown."""
        return self._rate.value

    @property
    def following(self) -> bool:
        """Whether the training is so slow that "realtime" sends every step as it comes."""
        return self._realtime.slow

    @property
    def stretch_due(self) -> float:
        """s, when the next stretch is wanted in "realtime": set by the player."""
        return self._realtime.due

    @stretch_due.setter
    def stretch_due(self, due: float) -> None:
        self._realtime.due = due

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
            countdown: the state's countdown; FRESH right after a reset.
            control: the page's settings.
            spent: s, total cost of watching so far.
            active: whether this rollout's steps are wanted at all.
            shard: the device that asks.
            polling: s, the part of `spent` that went into asks without a push.
        """
        own = self._shards.setdefault(shard, _Shard())
        steps = self._count(own, countdown)
        if shard == self.leader:
            if self._last_ask is not None and countdown != FRESH:
                # A gap of an hour means that the laptop was asleep; don't let it count for long.
                gap = min(now - self._last_ask, PACE_SECONDS)
                self._rate.add(gap, steps)
                self._pace.add(gap, steps)
            self._last_ask = now
        if control.closed:
            return self._answer(own, False, FOREVER)
        at_once = stretch_of(control, self.dt) * self._step_cost
        self._budget.update(now, spent, polling, control.max_overhead, at_once)
        if active and not self._active:
            self.restart()
        self._active = active
        if not active:
            self._stop = min(self._stop, own.env_steps)
            return self._answer(own, False, self._within(own, REACTION_SECONDS))
        wait = REACTION_SECONDS
        if shard == self.leader:
            wait = self._plan(own.env_steps, now, control, spent)
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
        """Counts one more step of a stretch, in place of `ask`, if the next step belongs to that
        stretch too and nothing must be planned. Returns whether it did."""
        own = self._shards[shard]
        if own.skip or not self._start <= own.env_steps + 1 < self._stop - 1:
            return False
        own.env_steps += 1
        own.went_on += 1
        return True

    def skip_of(self, shard: int) -> int:
        """Returns the steps that the last answer to a shard lets pass; 0 before the first one."""
        return self._shards[shard].skip if shard in self._shards else 0

    def set_skip(self, shard: int, skip: int) -> None:
        """Replaces the number of steps that the last answer to a shard lets pass."""
        self._shards[shard].skip = skip

    def is_next(self, shard: int) -> bool:
        """Whether the step after a shard's last reported one belongs to the planned stretch."""
        return self._start <= self._shards[shard].env_steps + 1 < self._stop

    def steps_of(self, shard: int) -> int:
        """Returns the batched steps that one device has reported."""
        return self._shards[shard].env_steps

    def restart(self) -> None:
        """Begins another stretch at once, with as many steps as the credit covers."""
        self._restarts, self._stop = True, self._start
        for mode in self._modes.values():
            mode.restart()

    def abandon(self, now: float, seconds: float) -> None:
        """Ends the stretch and begins none for `seconds`: there is nothing to send."""
        self._stop = self._start
        for mode in self._modes.values():
            mode.abandon(now + seconds)

    def _count(self, own: _Shard, countdown: int) -> int:
        """Adds the steps taken since this shard's last call and returns their number."""
        if countdown == FRESH:
            # The number of granted steps taken before the reset is unknown: none is counted. All
            # shards are reset at the same step and must agree on its number.
            own.resets += 1
            if own.resets == len(self._reset_steps):
                self._reset_steps.append(self.env_steps)
            own.env_steps, steps = self._reset_steps[own.resets] + 1, 1
        else:
            # The countdown is above 0 when the device calls early because something turned NaN.
            early = countdown if 0 < countdown <= own.skip else 0
            steps = own.skip + 1 - early
            own.env_steps += steps
            steps += own.went_on
        own.went_on = 0
        return steps

    @property
    def _modes(self) -> dict[str, EveryStep | Latest | Realtime]:
        return {
            "every_step": self._every_step,
            "latest": self._latest,
            "realtime": self._realtime,
        }

    def _plan(self, step: int, now: float, control: Control, spent: float) -> float:
        """Begins or ends a stretch where due; returns the s until one may be due again."""
        mode = self._modes[control.mode]
        endless = control.mode == "every_step"
        if step < self._start and not endless:
            return REACTION_SECONDS
        if not endless:
            self._account(step, spent)
        pace = self._pace.value * self.dt / control.speed
        at = Moment(now, control, self._budget, self._step_cost, pace, self.dt, self._restarts)
        if step < self._stop:
            if mode.goes_on(self._stop - self._start, at):
                return 0.0
            self._stop = step
        plan = mode.plan(at)
        if plan.length:
            self._restarts &= endless
            self._begin(plan.length, None if endless else spent)
        return plan.wait

    def _account(self, step: int, spent: float) -> None:
        """Updates the cost of sending a step from the stretch under way or just finished."""
        sent = min(step, self._stop) - self._start
        if self._spent_at_start is None or sent <= 0:
            return
        over = step >= self._stop
        # A stretch that took far longer than the others was delayed by something else.
        cost = min((spent - self._spent_at_start) / sent, 10 * self._step_cost)
        self._step_cost += (0.3 if over else 0.05) * (cost - self._step_cost)
        if over:
            self._spent_at_start = None

    def _begin(self, length: int, spent: float | None = None) -> None:
        # Start where the last of the shards asks next; with a single shard, at this step.
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
        """Returns the steps that pass in `seconds`. They at most double (plus 1) from one call to
        the next, so that one odd interval (a compilation, an update) can't stall the stream."""
        own.idle_skip = min(int(self.rate * seconds), 2 * own.idle_skip + 1, FOREVER)
        return own.idle_skip
