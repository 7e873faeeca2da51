"""Holds the state that the device's calls, the page's loop and the user share."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from brax_viser.host import watchdog
from brax_viser.host.budget import RECORDING_SHARE, Cost, CostMeter
from brax_viser.host.control import Control
from brax_viser.host.findings import Finding, Findings
from brax_viser.host.hold import Hold
from brax_viser.host.mailbox import Mailbox
from brax_viser.host.progress import Progress
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import NOTHING_SECONDS, Choice, Ranking, Selection
from brax_viser.host.source import Source
from brax_viser.host.watchdog import HoldLimit

log = logging.getLogger("brax_viser")

IDLE_SECONDS = 2.0
"""s: an environment not stepped for this long gives way on the page to one that is."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A copy of the shared state at one moment."""

    control: Control
    selection: Selection
    selected_env: int | None
    shown: dict[str, Source]  # by role
    cost: Cost
    frames: int
    bytes_moved: int
    fault: str | None
    findings: tuple[Finding, ...]  # of NaN and Inf


@dataclass
class SharedState:
    """The state shared by the device's calls, the page's loop and the user. `lock` guards the plain
    fields; `hold`, `mailbox` and `progress` have their own locks.

    Each call from the device takes `lock`, and so do low-priority threads. One that loses its
    processor while it holds the lock keeps the training waiting, so nothing is computed under the
    lock that can be computed from a `reading`.
    """

    control: Control
    wall_clock: Callable[[], float] = time.monotonic
    lock: threading.Lock = field(default_factory=threading.Lock)
    selection: Selection = field(default_factory=Selection)
    selected_env: int | None = None  # always drawn
    meter: CostMeter = field(default_factory=CostMeter)
    hold: Hold = field(default_factory=Hold)
    mailbox: Mailbox = field(default_factory=Mailbox)
    progress: Progress = field(default_factory=Progress)
    shown: dict[str, Source] = field(default_factory=dict)  # by role
    # By role, the environments of this viewer that aren't shown: s, when each was last stepped.
    beside: dict[str, dict[Source, float]] = field(default_factory=dict)
    frames: int = 0  # pushed
    bytes_moved: int = 0  # pushed, device to host
    fault: str | None = None
    findings: Findings = field(default_factory=Findings)  # of NaN and Inf
    num_processes: int = 1  # of the training
    # Number of processes that share the budget. They wait for each other, so the costs of watching
    # in each of them add up.
    budget_parts: int = 1
    # Makes the object that chooses a rollout's environments; a worker's takes the leader's choice.
    new_choice: Callable[[], Choice] = Choice
    # Given a role and its rollout: number of its shards in processes that no longer report.
    absent: Callable[[str, Rollout], int] = lambda role, rollout: 0
    # Given why, lets a held training go on: the page says why, and a worker asks the leader.
    let_go: Callable[[str], None] = lambda why: None

    def __post_init__(self) -> None:
        self._pacing: tuple[tuple[object, ...], Control] = ((), self.control)
        self.hold.clock = self.mailbox.clock = self.wall_clock
        self.hold_limit = HoldLimit(self.hold, watchdog.usual())

    def signalled(self, number: int) -> None:
        """Ends a held training at Ctrl-C. Lets it go on at any other signal, whose handler Python
        runs once the main thread is back from XLA. Called on a separate thread."""
        if number == signal.SIGINT:
            self.hold.interrupt()
        elif self.hold.paused:
            name = next((s.name for s in signal.Signals if s == number), f"signal {number}")
            self.let_go(
                f"The training goes on: {name} has come, and the script's handler of that signal "
                "could not run during the hold"
            )

    def clock(self) -> float:
        """Returns s; the clock stands still while the training is held, so no pause is counted."""
        return self.hold.training_clock()

    @property
    def pacing(self) -> Control:
        """The control, with `max_overhead` reduced to this process's share of the budget, and by
        what recordings take of it, if there are any. After the training there is no budget."""
        recorded, over = self.meter.recorded > 0, self.progress.playing_on
        made_of = self.control, self.budget_parts, recorded, over
        if made_of != self._pacing[0]:  # each call from the device asks, and a copy takes time
            share = self.control.max_overhead
            share -= self.recording_share if recorded else 0.0
            share = 1.0 if over else share
            self._pacing = made_of, replace(self.control, max_overhead=share / self.budget_parts)
        return self._pacing[1]

    @property
    def recording_share(self) -> float:
        """Share of the training's time that recordings may take: at most half of the budget."""
        return min(RECORDING_SHARE, self.control.max_overhead / 2)

    @property
    def kept_env(self) -> int | None:
        """The environment that must be drawn: the one run to its end, or else the selected one."""
        until = self.hold.until_env
        return self.selected_env if until is None else until

    def detailed_env(self, role: str) -> int | None:
        """Returns the environment of a rollout whose details are wanted: the selected one, if
        the rollout is `looked_into`."""
        return self.selected_env if role == self.looked_into else None

    def wants_twins(self, role: str) -> bool:
        """Whether environments of a rollout should have twins in MuJoCo: in the training, unless
        only the evaluation is shown."""
        consecutive = self.control.mode != "latest"
        return self.control.twins > 0 and consecutive and role == self.looked_into

    @property
    def looked_into(self) -> str:
        """The rollout in which the user selects, inspects and steps environments: the training,
        unless only the evaluation is shown."""
        return "eval" if self.control.show == "eval" else "train"

    def show_source(self, role: str, source: Source) -> None:
        """Shows one of several environments of a role. The caller holds `lock`."""
        before, self.shown[role] = self.shown.get(role), source
        since, known = self.clock() - IDLE_SECONDS, self.beside.get(role, {})
        beside = {f: at for f, at in known.items() if at >= since and f is not source}
        self.beside[role] = beside
        goes_on = not self.progress.playing_on  # else the shown one is no longer stepped
        if before is not None and before is not source and role in before.rollouts and goes_on:
            beside[before] = max(before.rollouts[role].called.values(), default=self.clock())

    def choose_source(self, role: str, label: str) -> None:
        """Shows the environment of a role that has this label, if it is still being stepped."""
        with self.lock:
            for source in self.stepped_beside(role):
                if source.label == label:
                    self.show_source(role, source)

    def stepped_beside(self, role: str) -> tuple[Source, ...]:
        """Returns a role's environments that are stepped but not shown, in the order in which they
        were made. The caller holds `lock`."""
        since = self.clock() - IDLE_SECONDS
        beside = [source for source, at in self.beside.get(role, {}).items() if at >= since]
        return tuple(sorted(beside, key=lambda source: source.number))

    def stepped(self, role: str) -> tuple[str, ...]:
        """Returns the labels of a role's environments that are being stepped or shown."""
        since = self.clock() - IDLE_SECONDS
        with self.lock:
            shown, beside = self.shown.get(role), dict(self.beside.get(role, ()))
        sources = {source for source, at in beside.items() if at >= since}
        if shown is not None:
            sources.add(shown)
        return tuple(source.label for source in sorted(sources, key=lambda source: source.number))

    def reading(self) -> Reading:
        """Copies the shared state."""
        with self.lock:
            return self._read()

    def _read(self) -> Reading:
        """Copies the shared state. The caller holds `lock`."""
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
        """Returns a copy of `shown`, as XLA's threads add to it: sources by role."""
        with self.lock:
            return dict(self.shown)

    def rollouts_shown(self) -> dict[str, tuple[Source, Rollout]]:
        """Returns those of `shown` that have been stepped, with their rollouts, by role."""
        with self.lock:
            return {
                role: (source, source.rollouts[role])
                for role, source in self.shown.items()
                if role in source.rollouts
            }

    def found(self, source: Source, finding: Finding) -> bool:
        """Adds a finding of this or another process, and holds the training if it must. Returns
        whether to report the finding. The caller holds `lock`."""
        if self.progress.playing_on:
            return False  # it is not the training's, and there is nothing left to hold
        holds = self.control.hold_on_nan and self.findings.holds(finding)
        is_new = self.findings.add(source, finding, holds=holds)
        if holds:
            self.hold.pause(finding.role, here=True)  # other devices may be further
            self.show_source(finding.role, source)
            self.point_at(source, finding)
        return is_new

    def point_at(self, source: Source, finding: Finding) -> None:
        """Shows and selects the environment of a finding. The caller holds `lock`."""
        role = finding.role
        self.selected_env = finding.env
        if self.looked_into != role:
            self.control = replace(self.control, show=role)
        rollout = source.rollouts.get(role)
        if rollout is not None:
            rollout.choice.keep(self.kept_env, rollout.num_envs, source.capacity)
        self.mailbox.wake()

    def tell_progress(self, source: Source) -> None:
        """Counts the steps taken under grants, before the trainer's own report is counted. The
        caller holds `lock`."""
        for role, rollout in source.rollouts.items():
            if rollout.steps.env_steps > rollout.steps.told:
                self.tell_steps(role, rollout, self.clock())

    def tell_steps(self, role: str, rollout: Rollout, now: float) -> None:
        self.progress.stepped(role, rollout.steps.tell() * rollout.num_envs, now)

    def ranked(
        self, source: Source, role: str, rollout: Rollout, shard: int, rule: int, ranking: Ranking
    ) -> None:
        """Takes the ranking of one device of any process. The caller holds `lock`."""
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
            self.hold.refresh()  # wakes the devices that have ranked already and wait
        if not rollout.choice.pending and rollout.choice.found_none:
            # Nothing to draw: let the page know, and don't rank at every step.
            self.mailbox.wake()
            if not self.hold.counts(role):
                rollout.pacer.abandon(self.clock(), NOTHING_SECONDS)

    def set(self, **changes: object) -> None:
        """Changes the control; it takes effect in the answer to the device's next call."""
        with self.lock:
            self.control = replace(self.control, **changes)  # type: ignore[arg-type]

    def tell(self, finding: Finding) -> None:
        """Logs a finding and wakes the page to show it."""
        held = "; the training is held there" if self.hold.paused else ""
        log.error("%s%s", finding, held)
        self.mailbox.wake()

    def failed(self, where: str, error: Exception) -> None:
        """Switches streaming off after a fault of our own. Logs it once; the training goes on."""
        with self.lock:
            first, self.fault = self.fault is None, f"{type(error).__name__} in {where}: {error}"
            self.control = replace(self.control, streaming=False)
        if first:
            log.error("streaming stopped, training goes on", exc_info=error)
