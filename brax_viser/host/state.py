"""What the device's calls, the page's loop and the user share."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from brax_viser.host.budget import Cost, CostMeter
from brax_viser.host.control import Control
from brax_viser.host.findings import Finding, Findings
from brax_viser.host.hold import Hold
from brax_viser.host.mailbox import Mailbox
from brax_viser.host.progress import Progress
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import NOTHING_SECONDS, Choice, Ranking, Selection
from brax_viser.host.source import Source

log = logging.getLogger("brax_viser")

IDLE_SECONDS = 2.0
"""s: an environment that nobody has stepped for as long gives way on the page to one that is."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What is shared, at one moment."""

    control: Control
    selection: Selection
    selected_env: int | None
    shown: dict[str, Source]  # by role
    cost: Cost
    frames: int
    bytes_moved: int
    fault: str | None
    findings: tuple[Finding, ...]  # what has turned NaN or Inf


@dataclass
class SharedState:
    """What the device's calls, the page's loop and the user share. `lock` guards the plain fields;
    `hold`, `mailbox` and `progress` have locks of their own.

    Each call from the device takes `lock`, and threads that let the training go first take it as
    well: a thread that waits for a processor while it has it keeps the training waiting. So nothing
    is worked out under it that can be worked out of a `reading`.
    """

    control: Control
    wall_clock: Callable[[], float] = time.monotonic
    lock: threading.Lock = field(default_factory=threading.Lock)
    selection: Selection = field(default_factory=Selection)
    selected_env: int | None = None  # of the training, drawn in any case
    meter: CostMeter = field(default_factory=CostMeter)
    hold: Hold = field(default_factory=Hold)
    mailbox: Mailbox = field(default_factory=Mailbox)
    progress: Progress = field(default_factory=Progress)
    shown: dict[str, Source] = field(default_factory=dict)  # by role
    # By role, other environments of this viewer: s, when each was last stepped.
    beside: dict[str, dict[Source, float]] = field(default_factory=dict)
    frames: int = 0  # pushed
    bytes_moved: int = 0  # pushed, device to host
    fault: str | None = None
    findings: Findings = field(default_factory=Findings)  # of what has turned NaN or Inf
    num_processes: int = 1  # of the training
    # Among how many processes the budget is shared. They wait for each other, so what watching
    # costs each of them adds up.
    budget_parts: int = 1
    # How a rollout's environments are chosen; in other processes than the first it is told.
    new_choice: Callable[[], Choice] = Choice
    # How many of a rollout's shards, by its role, are of processes that are not heard of.
    absent: Callable[[str, Rollout], int] = lambda role, rollout: 0

    def __post_init__(self) -> None:
        self.hold.clock = self.mailbox.clock = self.wall_clock

    def clock(self) -> float:
        """s; stands still while the training is held, so that nothing counts the pause."""
        return self.hold.training_clock()

    @property
    def pacing(self) -> Control:
        """The control, with this process's share of the budget."""
        if self.budget_parts == 1:
            return self.control
        return replace(self.control, max_overhead=self.control.max_overhead / self.budget_parts)

    @property
    def kept_env(self) -> int | None:
        """The environment that is drawn in any case: the one that is run to its end, if any."""
        until = self.hold.until_env
        return self.selected_env if until is None else until

    def detailed_env(self, role: str) -> int | None:
        """The environment of a rollout of which all is wanted: the one that a person has selected,
        of the training unless only the evaluation is shown."""
        return self.selected_env if role == self.looked_into else None

    def wants_twins(self, role: str) -> bool:
        """Whether environments of a rollout are to have twins in MuJoCo: those of the training,
        unless only the evaluation is shown."""
        consecutive = self.control.mode != "latest"
        return self.control.twins > 0 and consecutive and role == self.looked_into

    @property
    def looked_into(self) -> str:
        """The rollout in which a person selects, looks and steps: the training, unless only the
        evaluation is shown."""
        return "eval" if self.control.show == "eval" else "train"

    def show_source(self, role: str, source: Source) -> None:
        """Shows one of several environments of a role. `shared.lock` is held."""
        before, self.shown[role] = self.shown.get(role), source
        since, known = self.clock() - IDLE_SECONDS, self.beside.get(role, {})
        beside = {f: at for f, at in known.items() if at >= since and f is not source}
        self.beside[role] = beside
        if before is not None and before is not source and role in before.rollouts:
            beside[before] = max(before.rollouts[role].called.values(), default=self.clock())

    def choose_source(self, role: str, label: str) -> None:
        """Shows the environment of a role that has this label, if it is still stepped."""
        with self.lock:
            for source in self.stepped_beside(role):
                if source.label == label:
                    self.show_source(role, source)

    def stepped_beside(self, role: str) -> tuple[Source, ...]:
        """Environments of a role that are being stepped and not shown, in the order in which they
        were made. `shared.lock` is held."""
        since = self.clock() - IDLE_SECONDS
        beside = [source for source, at in self.beside.get(role, {}).items() if at >= since]
        return tuple(sorted(beside, key=lambda source: source.number))

    def stepped(self, role: str) -> tuple[str, ...]:
        """Labels of the environments of a role that are being stepped, and of the one that is
        shown."""
        since = self.clock() - IDLE_SECONDS
        with self.lock:
            shown, beside = self.shown.get(role), dict(self.beside.get(role, ()))
        sources = {source for source, at in beside.items() if at >= since}
        if shown is not None:
            sources.add(shown)
        return tuple(source.label for source in sorted(sources, key=lambda source: source.number))

    def reading(self) -> Reading:
        """What is shared, at this moment."""
        with self.lock:
            return self._read()

    def _read(self) -> Reading:
        """The same, where the lock is had already."""
        return Reading(
            self.control,
            self.selection,
            self.selected_env,
            dict(self.shown),
            self.meter.reading(),
            self.frames,
            self.bytes_moved,
            self.fault,
            self.findings.told,
        )

    def sources_shown(self) -> dict[str, Source]:
        """By role: a copy of `shown`, to which XLA's threads add."""
        with self.lock:
            return dict(self.shown)

    def rollouts_shown(self) -> dict[str, tuple[Source, Rollout]]:
        """By role: those of `shown` of which a step is known, at one moment."""
        with self.lock:
            return {
                role: (source, source.rollouts[role])
                for role, source in self.shown.items()
                if role in source.rollouts
            }

    def found(self, source: Source, finding: Finding) -> bool:
        """Something has turned NaN or Inf, here or in another process. Returns whether it is to be
        told. `shared.lock` is held."""
        holds = self.control.hold_on_nan and self.findings.holds(finding)
        is_new = self.findings.add(source, finding, holds=holds)
        if holds:
            self.hold.pause(finding.role)
            self.show_source(finding.role, source)
            self.point_at(source, finding)
        return is_new

    def point_at(self, source: Source, finding: Finding) -> None:
        """Has the environment shown and selected. `shared.lock` is held."""
        role = finding.role
        self.selected_env = finding.env
        if self.looked_into != role:
            self.control = replace(self.control, show=role)
        rollout = source.rollouts.get(role)
        if rollout is not None:
            rollout.choice.keep(self.kept_env, rollout.num_envs, source.capacity)
        self.mailbox.wake()

    def tell_progress(self, source: Source) -> None:
        """Tells of steps that were gone on with, before what the trainer reports. `shared.lock` is
        held."""
        for role, rollout in source.rollouts.items():
            if rollout.pacer.env_steps > rollout.progressed:
                self.tell_steps(role, rollout, self.clock())

    def tell_steps(self, role: str, rollout: Rollout, now: float) -> None:
        known = rollout.pacer.env_steps
        steps, rollout.progressed = known - rollout.progressed, known
        self.progress.stepped(role, steps * rollout.num_envs, now)

    def ranked(
        self, source: Source, role: str, rollout: Rollout, shard: int, rule: int, ranking: Ranking
    ) -> None:
        """A device of any process has ranked its environments. `shared.lock` is held."""
        rollout.choice.report(
            shard,
            rule,
            ranking,
            rollout.num_shards - self.absent(role, rollout),
            rollout.num_envs,
            source.capacity,
            self.kept_env,
        )
        if not rollout.choice.pending and self.hold.paused:
            self.hold.refresh()  # devices that have ranked before and wait now
        if not rollout.choice.pending and rollout.choice.found_nobody:
            # Nobody to draw: let the page know, and do not rank at each and every step.
            self.mailbox.wake()
            if not self.hold.counts(role):
                rollout.pacer.abandon(self.clock(), NOTHING_SECONDS)

    def set(self, **changes: object) -> None:
        """Changes the control; the device learns of it with its next call."""
        with self.lock:
            self.control = replace(self.control, **changes)  # type: ignore[arg-type]

    def tell(self, finding: Finding) -> None:
        """Something has turned NaN or Inf: the terminal says so, and the page."""
        held = "; the training is held there" if self.hold.paused else ""
        log.error("%s%s", finding, held)
        self.mailbox.wake()

    def failed(self, where: str, error: Exception) -> None:
        """Switches streaming off after a fault of our own. Logged once; training goes on."""
        with self.lock:
            first, self.fault = self.fault is None, f"{type(error).__name__} in {where}: {error}"
            self.control = replace(self.control, streaming=False)
        if first:
            log.error("streaming stopped, training goes on", exc_info=error)
