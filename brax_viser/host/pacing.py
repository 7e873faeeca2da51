"""Decides which steps are sent to the host, within the budget: pure logic, the clock injected."""

from dataclasses import dataclass, field
from typing import NamedTuple

from brax_viser.host.budget import Budget, Rate
from brax_viser.host.control import REACTION_SECONDS, Control
from brax_viser.host.modes import EveryStep, Latest, Moment, Realtime, stretch_of
from brax_viser.host.steps import ShardSteps, Steps
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
class Pacer:
    """Decides for one rollout when its devices ask again and which steps they send.

    They send stretches of consecutive steps: a single step in "latest", `stretch_seconds` in
    "realtime", one endless stretch in "every_step". One shard plans them, far enough ahead that
    all devices send the same steps. Not thread-safe: the caller locks.
    """

    dt: float  # s of robot time per step
    leader: int = 0  # the shard that plans
    steps: Steps = field(default_factory=Steps)
    _last_ask: float | None = None
    _rate: "Rate" = field(default_factory=lambda: Rate())
    _pace: "Rate" = field(default_factory=lambda: Rate(PACE_SECONDS))
    _budget: "Budget" = field(default_factory=lambda: Budget())
    _start: int = 0  # the stretch has the steps start <= step < stop
    _stop: int = 0
    _spent_at_start: float | None = None  # s; None once the stretch's cost is accounted for
    _step_cost: float = 150e-6  # s per step that is sent, running mean
    _realtime: Realtime = field(default_factory=Realtime)
    _active: bool = False
    _restarts: bool = False

    def __post_init__(self) -> None:
        self._modes: dict[str, EveryStep | Latest | Realtime] = {
            "every_step": EveryStep(),
            "latest": Latest(),
            "realtime": self._realtime,
        }

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
        return self._stop > min([s.env_steps + 1 for s in list(self.steps.of.values())], default=0)

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
        steps = self.steps.count(shard, countdown)
        own = self.steps.of[shard]
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
        own = self.steps.of[shard]
        if own.skip or not self._start <= own.env_steps + 1 < self._stop - 1:
            return False
        self.steps.go_on(own)
        return True

    def is_next(self, shard: int) -> bool:
        """Whether the step after a shard's last reported one belongs to the planned stretch."""
        return self._start <= self.steps.of[shard].env_steps + 1 < self._stop

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
        # A stretch that took far longer than the others was delayed by something else. One that
        # took nothing was sent for a recording, and says nothing about the others.
        cost = min((spent - self._spent_at_start) / sent, 10 * self._step_cost)
        if cost > 0:
            self._step_cost += (0.3 if over else 0.05) * (cost - self._step_cost)
        if over:
            self._spent_at_start = None

    def _begin(self, length: int, spent: float | None = None) -> None:
        # Start where the last of the shards asks next; with a single shard, at this step.
        known = self.steps.of
        self._start = known[self.leader].env_steps
        if len(known) > 1:
            self._start = max(
                self._start,
                *(s.env_steps + s.skip + 1 for i, s in known.items() if i != self.leader),
            )
        self._stop = self._start + length
        self._spent_at_start = spent

    def _answer(self, own: ShardSteps, push: bool, skip: int, begins: bool = False) -> Answer:
        own.skip = skip
        return Answer(push, skip, push and begins)

    def _within(self, own: ShardSteps, seconds: float) -> int:
        """Returns the steps that pass in `seconds`. They at most double (plus 1) from one call to
        the next, so that one odd interval (a compilation, an update) can't stall the stream."""
        own.idle_skip = min(int(self.rate * seconds), 2 * own.idle_skip + 1, FOREVER)
        return own.idle_skip
