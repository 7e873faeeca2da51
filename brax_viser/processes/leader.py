"""Runs the leader: hears the training's workers and tells them what to send."""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import zmq

from brax_viser.host.findings import Finding
from brax_viser.host.hold import HoldCommand
from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState, log
from brax_viser.processes import messages, rendezvous
from brax_viser.processes.rendezvous import ProcessInfo
from brax_viser.processes.sockets import SocketServer
from brax_viser.processes.worker import LIFE_SECONDS, LOST_SECONDS, TURN_SECONDS
from brax_viser.records.protocol import GIVEN

REFUSED_SECONDS = 1.0
"""How long a worker may step an environment that doesn't match before that is logged."""


@dataclass(eq=False)
class RemoteWorker:
    """A worker, as the leader knows it."""

    process: int
    report: messages.Report
    heard: float  # s, when it was last heard
    lost: bool = False
    refused: str | None = None  # why its messages are ignored
    since: float = 0.0  # s, start of the refusal
    told_of: str | None = None  # the reason for refusal that was last logged
    sending: dict[str, bool] = field(default_factory=dict)  # by role
    due: dict[str, float] = field(default_factory=dict)  # by role: s, when a stretch is wanted
    found: set[tuple[int, Finding]] = field(default_factory=set)  # of its last report


class Leader:
    """The leader's view of all workers. Runs on a separate thread."""

    def __init__(
        self,
        shared: SharedState,
        sources: Sources,
        place: ProcessInfo,
        viewer: int,
        url: str,
    ):
        """Binds and announces the address; `start` starts the thread.

        Args:
            shared: the state shared with the device's calls.
            sources: the environments of the viewer, in the order in which all processes make them.
            place: gives the number of processes.
            viewer: number of the viewer in its process.
            url: of the page.

        Raises:
            zmq.ZMQError: the address given by `rendezvous.ADDRESS` can't be bound.
        """
        self._shared, self._sources, self._place = shared, sources, place
        secret, host = rendezvous.secret_of_first(viewer), rendezvous.coordinator_host()
        given = os.environ.get(rendezvous.ADDRESS)
        try:
            self._server = SocketServer(secret, given or host)
        except zmq.ZMQError:  # the coordinator's address may be visible only from outside
            if given is not None:
                raise
            self._server = SocketServer(secret, "*")
        rendezvous.announce(viewer, f"{host}:{self._server.port}", url)
        self._thread = threading.Thread(target=self._run, name="brax_viser leader", daemon=True)
        self._known: dict[int, RemoteWorker] = {}
        self._restarts = 0
        self._told: dict[int, tuple[float, object]] = {}  # by process: (s, content last sent)
        shared.absent = self._absent

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Waits for the thread, which ends once `shared.control` is closed."""
        self._thread.join(timeout)

    def restart(self) -> None:
        """Has the workers begin another stretch at once. Called on any thread."""
        self._restarts += 1

    def living(self) -> list[RemoteWorker]:
        """Returns the workers that report and whose environments match this process's."""
        return [o for o in list(self._known.values()) if not o.lost and o.refused is None]

    def lost(self) -> tuple[int, ...]:
        """Returns the numbers of workers that no longer report."""
        return tuple(sorted(o.process for o in list(self._known.values()) if o.lost))

    def refused(self) -> tuple[str, ...]:
        """Returns the reasons why workers are refused, in the order of their numbers."""
        known = sorted(list(self._known.values()), key=lambda worker: worker.process)
        return tuple(worker.refused for worker in known if worker.refused is not None)

    def share(self) -> float:
        """Returns the sum of the workers' shares of cost: processes wait for each other."""
        return sum(worker.report.share for worker in self.living())

    def moved(self) -> tuple[int, int]:
        """Returns (frames, bytes) sent from the workers' devices to their hosts."""
        known = list(self._known.values())
        return sum(o.report.frames for o in known), sum(o.report.bytes_moved for o in known)

    def _absent(self, role: str, rollout: Rollout) -> int:
        living = self.living()
        if len(living) == self._place.num_processes - 1:
            return 0
        theirs = {s for o in living for s in self._shards(o, role)}
        return rollout.num_shards - len(theirs | set(rollout.called))

    def _shards(self, worker: RemoteWorker, role: str) -> Iterable[int]:
        part = worker.report.parts.get(role)
        return part.shards if part else ()

    def _run(self) -> None:
        try:
            while not self._shared.control.closed:
                for process, data in self._server.receive(TURN_SECONDS):
                    if 0 < process < self._place.num_processes:
                        self._hear(process, data)
                self._look_for_lost()
                self._tell_all()
            self._tell_all()
        # Catch everything: the page shows the fault, and the training goes on.
        except Exception as error:
            self._shared.failed("listening to the worker processes", error)
        finally:
            self._server.close()

    def _hear(self, process: int, data: bytes) -> None:
        try:
            message = messages.decode_from_worker(data)
            if isinstance(message, messages.Report):
                self._hear_report(process, message)
            elif process in self._known:
                self._known[process].heard = self._shared.wall_clock()
                self._hear_data(process, message)
        except (messages.DecodeError, ValueError, IndexError) as error:
            log.warning("process %d sent an invalid message: %s", process, error)

    def _hear_report(self, process: int, report: messages.Report) -> None:
        shared, now = self._shared, self._shared.wall_clock()
        known = self._known.get(process)
        if known is None:
            known = self._known[process] = RemoteWorker(process, report, now)
        elif known.lost and not report.leaves:
            log.warning("process %d is heard of again", process)
            known.lost = False
            self._told.pop(process, None)
        if report.fault is not None and report.fault != known.report.fault:
            log.error("streaming stopped in process %d: %s", process, report.fault)
        self._hear_found([found for found in report.found if found not in known.found])
        if report.let_go[0] > known.report.let_go[0] and shared.hold.paused:
            shared.let_go(f"{report.let_go[1]} (process {process})")
        known.found, known.report, known.heard = set(report.found), report, now
        known.sending |= {role: part.sending for role, part in report.parts.items()}
        if report.leaves:
            self._lose(known)
            return
        found = [self._mismatch(process, part.source, part.kind) for part in report.parts.values()]
        self._refuse(known, next(filter(None, found), None))
        if known.refused is not None:
            return
        if report.terminated is not None:
            shared.hold.terminated(*report.terminated)
        shared.hold.heard(self._held(report))
        if not known.lost:
            shared.mailbox.wake()

    def _hear_found(self, found: Sequence[tuple[int, Finding]]) -> None:
        """Reports findings of a worker, by the number of their source."""
        for index, finding in found:
            source = self._sources.get(index)
            if source is None:  # garbage-collected
                continue
            with self._shared.lock:
                is_new = self._shared.found(source, finding)
            if is_new:
                self._shared.tell(finding)

    def _hear_data(
        self, process: int, message: messages.Step | messages.Models | messages.Ranked
    ) -> None:
        shared, known = self._shared, self._known[process]
        if not isinstance(message, messages.Ranked):
            mismatch = self._mismatch(process, message.source, message.kind)
            if mismatch is not None:
                self._refuse(known, mismatch)
        if known.refused is not None:
            return
        if isinstance(message, messages.Ranked):
            source = shared.shown.get(message.role)
            rollout = source and source.rollouts.get(message.role)
            if source is None or rollout is None:
                return
            ranking = message.ranking()
            with shared.lock:
                if message.round == rollout.choice.round:
                    shared.ranked(
                        source, message.role, rollout, message.shard, message.rule, ranking
                    )
            return
        source = self._sources.get(message.source)
        if source is None:  # garbage-collected
            return
        if isinstance(message, messages.Models):
            shared.mailbox.put_model(messages.model_packet_of(message, source))
            return
        known.sending[message.role] = message.sending
        packet = messages.packet_of(message, source, process)
        shared.mailbox.put(packet, wait=shared.control.mode == "every_step")

    def _mismatch(self, process: int, number: int, kind: str) -> str | None:
        """Returns how a worker's environment differs from this process's; None if it doesn't.
        Viewers and environments are paired in the order in which each process makes them, so an
        extra one in a worker would have its robots drawn in place of others."""
        mine = self._sources.get(number)
        if mine is not None and mine.kind == kind:
            return None
        here = "is none" if mine is None else f"it is {mine.kind}"
        return (
            f"Process {process} steps {kind} as environment {number} of this viewer; in the first "
            f"process there {here}. Make the same viewers and environments, in the same order, in "
            "each process"
        )

    def _refuse(self, worker: RemoteWorker, why: str | None) -> None:
        """Ignores a worker's messages for the reason `why`; None accepts them again."""
        before, worker.refused = worker.refused, why
        if before is None and why is not None:
            worker.since = self._shared.wall_clock()
            self._give_up(worker)
        if (before is None) != (why is None):
            self._shared.mailbox.wake()

    def _held(self, report: messages.Report) -> dict[tuple[str, int], tuple[int, bool]]:
        return {
            (role, shard): where
            for role, part in report.parts.items()
            for shard, where in part.shards.items()
        }

    def _look_for_lost(self) -> None:
        now = self._shared.wall_clock()
        for worker in list(self._known.values()):
            if not worker.lost and now - worker.heard > LOST_SECONDS:
                self._lose(worker)
            # A worker may be ahead for a moment and step what will soon be made here as well.
            why = worker.refused if now - worker.since > REFUSED_SECONDS else None
            if why is not None and why != worker.told_of:
                worker.told_of = why
                log.error(why)

    def _lose(self, worker: RemoteWorker) -> None:
        shared = self._shared
        if worker.lost or shared.control.closed:
            return
        log.warning("process %d is not heard of: its robots are not drawn", worker.process)
        worker.lost = True
        self._give_up(worker)
        shared.mailbox.wake()

    def _give_up(self, worker: RemoteWorker) -> None:
        """Stops waiting for a worker's part of the training."""
        shared = self._shared
        shared.hold.heard({}, gone=self._held(worker.report))
        with shared.lock:
            for source in self._sources:
                for rollout in source.rollouts.values():
                    if rollout.choice.pending:  # it may wait for this worker's ranking: restart it
                        rollout.choice.made_of = None

    def _tell_all(self) -> None:
        shared, now = self._shared, self._shared.wall_clock()
        shared.budget_parts = self._count_drawn()
        with shared.lock:
            control = replace(shared.control, max_overhead=shared.pacing.max_overhead)
            known = {
                r: self._task(source.rollouts[r])
                for r, source in shared.shown.items()
                if r in source.rollouts
            }
        facts = {
            role: task if drawn is None else messages.changed(task, drawn=messages.Array.of(drawn))
            for role, (drawn, task) in known.items()
        }
        for process in range(1, self._place.num_processes):
            worker = self._known.get(process)
            tasks, due = {}, {}
            for role, task in facts.items():
                due[role] = worker.due.get(role, -float("inf")) if worker else -float("inf")
                tasks[role] = messages.changed(task, due=due[role] - now)
            selected = shared.selected_env
            what = (control, shared.hold.orders, self._restarts, facts, due, selected)
            wishes = messages.Wishes(control, shared.hold.orders, self._restarts, tasks, selected)
            if worker is not None and worker.refused is not None:
                unwatched = replace(control, watched=False, recording=False)
                what = (unwatched, worker.refused)
                wishes = messages.Wishes(unwatched, HoldCommand(), 0, {}, refused=worker.refused)
            then, before = self._told.get(process, (-float("inf"), None))
            if what != before or now - then >= LIFE_SECONDS:
                if self._server.send(process, messages.encode(wishes)):
                    self._told[process] = now, what

    def _count_drawn(self) -> int:
        """Returns the number of processes with drawn environments; the others send nothing."""
        drawn = set()
        for role, (_, rollout) in self._shared.rollouts_shown().items():
            env_index = rollout.choice.env_index
            if env_index is None:
                continue
            shards = set((env_index // rollout.envs_per_shard).tolist())
            drawn |= {o.process for o in self.living() if shards & set(self._shards(o, role))}
            drawn |= {0} if shards & set(rollout.called) else set()
        return max(len(drawn), 1)

    def _task(self, rollout: Rollout) -> tuple[np.ndarray | None, messages.Task]:
        """Returns (drawn environments, task without them). The caller holds `shared.lock`."""
        choice = rollout.choice
        rule = GIVEN
        if choice.pending and choice.made_of is not None:
            rule = choice.made_of.code
        resets, reset_step = rollout.steps.last_reset
        return choice.env_index, messages.Task(
            drawn=None,
            round=choice.round,
            rule=rule,
            due=0.0,
            resets=resets,
            reset_step=reset_step,
        )
