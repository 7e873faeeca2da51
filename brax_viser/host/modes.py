"""Decides when a stretch of steps begins and ends, in each of the three modes: pure logic."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from brax_viser.host.budget import Budget
from brax_viser.host.control import REACTION_SECONDS, Control

SAVING_SECONDS = 0.05
"""Minimum wait before checking again whether the budget suffices: asking costs as well."""

SLOW, FAST = 1.1, 1.5
"""Pace of the training relative to playback: below SLOW, "realtime" sends every step as it comes;
above FAST, it goes back to stretches."""

ENDLESS = 1 << 60
"""Steps of the stretch of "every_step"."""


class Moment(NamedTuple):
    """The circumstances by which a mode plans."""

    now: float  # s
    control: Control
    budget: Budget
    step_cost: float  # s per step that is sent
    pace: float  # robot's s per s of playback that the training takes
    dt: float  # s of robot time per step
    restarts: bool  # whether a stretch must begin at once, with as many steps as the credit covers

    @property
    def stretch(self) -> int:
        """Steps of a full stretch."""
        return stretch_of(self.control, self.dt)

    def saving(self, steps: int) -> float:
        """Returns the s until so many steps are affordable; if they are not yet, at least
        `SAVING_SECONDS`."""
        missing = steps * self.step_cost - self.budget.credit
        return max(missing / self.control.max_overhead, SAVING_SECONDS) if missing > 0 else 0.0


class Plan(NamedTuple):
    """What a mode has planned, outside of a stretch."""

    length: int  # steps of the stretch that begins now; 0: none begins
    wait: float  # s until one may be due again


def stretch_of(control: Control, dt: float) -> int:
    return max(round(control.stretch_seconds / dt), 2)


class EveryStep:
    """One endless stretch."""

    def goes_on(self, length: int, at: Moment) -> bool:
        """Whether a stretch of `length` steps that is under way goes on."""
        return True

    def plan(self, at: Moment) -> Plan:
        """Plans at a step that belongs to no stretch."""
        return Plan(ENDLESS, 0.0)

    def restart(self) -> None:
        """Lets the next stretch begin at once."""

    def abandon(self, until: float) -> None:
        """Begins none before `until`, s."""


@dataclass
class Latest:
    """Single steps, as many per second as the page shows."""

    next_frame: float = -math.inf  # s

    def goes_on(self, length: int, at: Moment) -> bool:
        return _is_affordable(length, at)

    def plan(self, at: Moment) -> Plan:
        now, fps = at.now, at.control.fps
        self.next_frame = min(self.next_frame, now + 1 / fps)  # a clock can be set back
        wait = max(self.next_frame - now, at.saving(1))
        if wait > 0 and not at.restarts:
            return Plan(0, min(wait, REACTION_SECONDS))
        self.next_frame = now + 1 / fps
        return Plan(1, min(1 / fps, REACTION_SECONDS))

    def restart(self) -> None:
        pass

    def abandon(self, until: float) -> None:
        self.next_frame = max(self.next_frame, until)


@dataclass
class Realtime:
    """Stretches as the player needs them, or each step where the training is slower than
    playback."""

    due: float = -math.inf  # s, when the next stretch is wanted: set by the player
    slow: bool = True
    _earliest: float = -math.inf  # s, start of the next stretch at the earliest
    _rests: bool = False  # whether to wait until the credit suffices again

    def goes_on(self, length: int, at: Moment) -> bool:
        return _is_affordable(length, at)

    def plan(self, at: Moment) -> Plan:
        now, control, stretch = at.now, at.control, at.stretch
        self.slow = at.pace < (FAST if self.slow else SLOW)
        length = 1 if self.slow else stretch
        if at.restarts:
            affordable = at.budget.credit / at.step_cost
            length = max(min(length, int(min(affordable, stretch))), 1)
        playing = length * at.dt / control.speed
        self._earliest = min(self._earliest, now + playing)  # a clock can be set back
        due = now if self.slow else max(self.due, self._earliest)
        # Twins need consecutive steps. Where the budget does not cover every step, a whole stretch
        # followed by a pause is worth more than every other step.
        needed = stretch if self._rests and control.twins else length
        wait = max(due - now, at.saving(needed))
        self._rests = wait > due - now
        if wait > 0 and not at.restarts:
            return Plan(0, min(wait, REACTION_SECONDS))
        self._rests = False
        # The player may have set `due` before this stretch was begun.
        self._earliest = now + 0.5 * playing
        return Plan(length, min(max(wait, 0.0), REACTION_SECONDS))

    def restart(self) -> None:
        self.due = self._earliest = -math.inf

    def abandon(self, until: float) -> None:
        self.due = max(self.due, until)


def _is_affordable(length: int, at: Moment) -> bool:
    """Whether a stretch goes on. One left over from "every_step" must end. One that costs more than
    was saved for it ends too, and the steps already sent are shown."""
    return length <= at.stretch and at.budget.credit >= 0
