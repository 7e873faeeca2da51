"""In the first process: what is known of the others, and what they are told."""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import zmq

from brax_viser.feed import Feed, log
from brax_viser.hosts import meeting, wire
from brax_viser.hosts.link import Hub
from brax_viser.hosts.meeting import Place
from brax_viser.hosts.relay import LIFE_SECONDS, LOST_SECONDS, TURN_SECONDS
from brax_viser.protocol import GIVEN
from brax_viser.rollout import Rollout
from brax_viser.selection import RANKED
from brax_viser.switchboard import Switchboard


@dataclass(eq=False)
class Other:
    """Another process of the training."""

    process: int
    report: wire.Report
    heard: float  # s
    lost: bool = False
    sending: dict[str, bool] = field(default_factory=dict)  # by role
    due: dict[str, float] = field(default_factory=dict)  # by role: s, when a stretch is wanted


class Others:
    """All processes but the first, as seen from there. Has a thread of its own."""

    def __init__(
        self,
        board: Switchboard,
        feeds: Sequence[Feed],
        place: Place,
        viewer: int,
        url: str,
    ):
        """`start` starts the thread.

        Args:
            board: what is shared with the device's calls.
            feeds: the environments of the viewer, in the order in which all processes make them.
            place: how many processes there are.
            viewer: which of the process's viewers.
            url: of the page.

        Raises:
            zmq.ZMQError: the address that was asked for is none of this machine's.
        """
        self._board, self._feeds, self._place = board, feeds, place
        secret, host = meeting.secret_of_first(viewer), meeting.coordinator_host()
        given = os.environ.get(meeting.ADDRESS)
        try:
            self._hub = Hub(secret, given or host)
        except zmq.ZMQError:  # the coordinator's address is one that others see, not this machine
            if given is not None:
                raise
            self._hub = Hub(secret, "*")
        meeting.announce(viewer, f"{host}:{self._hub.port}", url)
        self._thread = threading.Thread(target=self._run, name="brax_viser others", daemon=True)
        self._known: dict[int, Other] = {}
        self._hurries = 0
        self._told: dict[int, tuple[float, object]] = {}  # by process: (s, what)
        board.absent = self._absent

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Once the board is closed."""
        self._thread.join(timeout)

    def hurry(self) -> None:
        """Called on any thread: something else is wanted at once."""
        self._hurries += 1

    def living(self) -> list[Other]:
        """Those that are heard of."""
        return [other for other in list(self._known.values()) if not other.lost]

    def lost(self) -> tuple[int, ...]:
        """Processes that were heard of and are not any more."""
        return tuple(sorted(o.process for o in list(self._known.values()) if o.lost))

    def share(self) -> float:
        """Of wall-clock, what watching costs them, added up: they wait for each other."""
        return sum(other.report.share for other in self.living())

    def moved(self) -> tuple[int, int]:
        """(frames, bytes) from their devices to their hosts."""
        known = list(self._known.values())
        return sum(o.report.frames for o in known), sum(o.report.bytes_moved for o in known)

    def _absent(self, role: str, rollout: Rollout) -> int:
        living = self.living()
        if len(living) == self._place.num_processes - 1:
            return 0
        theirs = {s for o in living for s in self._shards(o, role)}
        return rollout.num_shards - len(theirs | set(rollout.called))

    def _shards(self, other: Other, role: str) -> Iterable[int]:
        part = other.report.parts.get(role)
        return part.shards if part else ()

    def _run(self) -> None:
        try:
            while not self._board.control.closed:
                for process, data in self._hub.receive(TURN_SECONDS):
                    self._hear(process, data)
                self._look_for_lost()
                self._tell_all()
            self._tell_all()
        # Whoever watches is to see it; the training goes on.
        except Exception as error:
            self._board.failed("listening to the other processes", error)
        finally:
            self._hub.close()

    def _hear(self, process: int, data: bytes) -> None:
        try:
            message = wire.decode_from_others(data)
            if isinstance(message, wire.Report):
                self._hear_report(process, message)
            elif process in self._known:
                self._known[process].heard = self._board.wall_clock()
                self._hear_data(process, message)
        except (wire.DecodeError, ValueError, IndexError) as error:
            log.warning("process %d sent what makes no sense: %s", process, error)

    def _hear_report(self, process: int, report: wire.Report) -> None:
        board, now = self._board, self._board.wall_clock()
        known = self._known.get(process)
        if known is None:
            known = self._known[process] = Other(process, report, now)
        elif known.lost and not report.leaves:
            log.warning("process %d is heard of again", process)
            known.lost = False
            self._told.pop(process, None)
        if report.fault is not None and report.fault != known.report.fault:
            log.error("streaming stopped in process %d: %s", process, report.fault)
        known.report, known.heard = report, now
        for role, part in report.parts.items():
            known.sending[role] = part.sending
        if report.leaves:
            self._lose(known)
            return
        if report.terminated is not None:
            board.hold.terminated(*report.terminated)
        board.hold.heard(self._held(report))
        if not known.lost:
            board.mailbox.wake()

    def _hear_data(self, process: int, message: wire.Step | wire.Models | wire.Ranked) -> None:
        board = self._board
        if isinstance(message, wire.Ranked):
            feed = board.shown.get(message.role)
            rollout = feed and feed.rollouts.get(message.role)
            if feed is None or rollout is None:
                return
            with board.lock:
                if message.round == rollout.choice.round:
                    ranking = message.ranking()
                    feed.ranked(message.role, rollout, message.shard, message.rule, ranking)
            return
        feed = self._feeds[message.feed]
        if isinstance(message, wire.Models):
            board.mailbox.put_model(wire.model_parcel_of(message, feed))
            return
        self._known[process].sending[message.role] = message.sending
        parcel = wire.parcel_of(message, feed, process)
        board.mailbox.put(parcel, wait=board.control.mode == "every_step")

    def _held(self, report: wire.Report) -> dict[tuple[str, int], tuple[int, bool]]:
        return {
            (role, shard): where
            for role, part in report.parts.items()
            for shard, where in part.shards.items()
        }

    def _look_for_lost(self) -> None:
        now = self._board.wall_clock()
        for other in self.living():
            if now - other.heard > LOST_SECONDS:
                self._lose(other)

    def _lose(self, other: Other) -> None:
        board = self._board
        if other.lost or board.control.closed:
            return
        log.warning("process %d is not heard of: its robots are not drawn", other.process)
        other.lost = True
        board.hold.heard({}, gone=self._held(other.report))
        with board.lock:
            for feed in self._feeds:
                for rollout in feed.rollouts.values():
                    if rollout.choice.pending:  # it waits for what will not come
                        rollout.choice.made_of = None
        board.mailbox.wake()

    def _tell_all(self) -> None:
        board, now = self._board, self._board.wall_clock()
        board.budget_parts = self._count_drawn()
        with board.lock:
            control = replace(board.control, max_overhead=board.pacing.max_overhead)
            facts = {r: self._task(r) for r, feed in board.shown.items() if r in feed.rollouts}
        for process in range(1, self._place.num_processes):
            other = self._known.get(process)
            tasks, due = {}, {}
            for role, task in facts.items():
                due[role] = other.due.get(role, -float("inf")) if other else -float("inf")
                tasks[role] = wire.changed(task, due=due[role] - now)
            selected = board.selected_env
            what = (control, board.hold.orders, self._hurries, facts, due, selected)
            then, before = self._told.get(process, (-float("inf"), None))
            if what != before or now - then >= LIFE_SECONDS:
                wishes = wire.Wishes(control, board.hold.orders, self._hurries, tasks, selected)
                if self._hub.send(process, wire.encode(wishes)):
                    self._told[process] = now, what

    def _count_drawn(self) -> int:
        """How many processes have environments that are drawn; the others send nothing."""
        drawn = set()
        for role, feed in self._board.shown.items():
            rollout = feed.rollouts.get(role)
            if rollout is None or rollout.choice.env_index is None:
                continue
            shards = set((rollout.choice.env_index // rollout.envs_per_shard).tolist())
            drawn |= {o.process for o in self.living() if shards & set(self._shards(o, role))}
            drawn |= {0} if shards & set(rollout.called) else set()
        return max(len(drawn), 1)

    def _task(self, role: str) -> wire.Task:
        rollout = self._board.shown[role].rollouts[role]
        choice = rollout.choice
        rule = GIVEN
        if choice.pending and choice.made_of is not None:
            rule = RANKED[choice.made_of.rule]
        drawn = choice.env_index
        resets, reset_step = rollout.pacer.last_reset
        return wire.Task(
            drawn=None if drawn is None else wire.Array.of(drawn),
            round=choice.round,
            rule=rule,
            due=0.0,
            resets=resets,
            reset_step=reset_step,
        )
