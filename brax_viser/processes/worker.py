"""Runs a worker: in place of a page, sends pushes to the leader and obeys it."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brax_viser.host.findings import Finding
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import Choice, Ranking, Selection
from brax_viser.host.source import Source, Sources
from brax_viser.host.state import SharedState, log
from brax_viser.processes import messages, rendezvous
from brax_viser.processes.rendezvous import ProcessInfo
from brax_viser.processes.sockets import SocketClient
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import GIVEN

TURN_SECONDS = 0.02
"""How long one turn waits for messages; the devices' pushes are sent once per turn."""

REPORT_SECONDS = 0.05
"""Minimum interval between reports to the leader. Without changes there is one per `LIFE_SECONDS`,
as a sign of life."""

LIFE_SECONDS = 0.5

LOST_SECONDS = 5.0
"""How long without messages until the other end counts as lost."""


@dataclass
class RemoteChoice(Choice):
    """A choice made by the leader. This process only has its devices rank when told to."""

    rank: Callable[[int, int, int, Ranking], None] = lambda *_: None
    """(round, rule, shard, ranking): passes a device's ranking on to the leader."""
    _rule: int = GIVEN  # to rank by in this round
    _told: np.ndarray | None = None  # int32 [K], the leader's choice; `begin` applies it
    _ranked: set[int] = field(default_factory=set)  # shards, in this round
    _at_once: bool = False

    def tell(self, task: messages.Task) -> bool:
        """Takes the leader's decision. Returns whether it wants the devices to rank now."""
        begins = task.round != self.round
        if begins:
            self.round, self._rule, self._ranked = task.round, task.rule, set()
        if task.drawn is not None:
            drawn = task.drawn.open()
            if self._told is None or not np.array_equal(drawn, self._told):
                self._told = drawn
        return begins and task.rule != GIVEN

    @property
    def has_news(self) -> bool:
        """Whether the leader's choice is not yet applied."""
        return self._told is not self.env_index

    def restart(self) -> None:
        """Applies the leader's choice at once, not when the next stretch begins."""
        self._at_once = True

    def begin(
        self, selection: Selection, num_envs: int, capacity: int, now: float, keep: int | None
    ) -> None:
        self.env_index, self._at_once = self._told, False

    def rule_for(self, shard: int) -> int:
        return GIVEN if shard in self._ranked else self._rule

    @property
    def pending(self) -> bool:
        return False

    def report(
        self,
        shard: int,
        rule: int,
        ranking: Ranking,
        num_shards: int,
        num_envs: int,
        capacity: int,
        keep: int | None,
    ) -> None:
        if rule == self.rule_for(shard):
            self._ranked.add(shard)
            self.rank(self.round, rule, shard, ranking)

    def is_stale(self, selection: Selection, now: float, *, begins: bool, seconds: float) -> bool:
        if self._told is None or not self.has_news:
            return False
        return self.env_index is None or self._at_once or begins or np.isfinite(seconds)

    def keep(self, env: int | None, num_envs: int, capacity: int) -> bool:
        return False


class Worker:
    """Sends the pushes of this process's devices to the leader, and obeys it.

    Runs on a separate thread. Takes the place of the leader's `page.page.Page`.
    """

    def __init__(self, shared: SharedState, sources: Sources, place: ProcessInfo, viewer: int):
        """Prepares the thread, which `start` starts.

        Args:
            shared: the state shared with the device's calls.
            sources: the environments of the viewer, in the order in which all processes make them.
            place: gives the number of this process.
            viewer: number of the viewer in its process.
        """
        self.url: str | None = None  # of the leader's page, once known
        self._shared, self._sources, self._place, self._viewer = shared, sources, place, viewer
        self._thread = threading.Thread(target=self._run, name="brax_viser worker", daemon=True)
        self._queue: deque[bytes] = deque()
        self._rankings: deque[messages.Ranked] = deque()
        self._restarts = 0
        self._refused: str | None = None  # why the leader ignores this worker's messages
        self._heard: float | None = None  # s, last message; None: none yet, or lost
        self._reported: tuple[float, messages.Report | None] = (-np.inf, None)
        self._let_go = 0, ""  # how often `_ask` was called, and why it was last
        # By role: the leader's step count minus this process's.
        self._ahead: dict[str, int] = {}
        shared.new_choice, shared.let_go = self._new_choice, self._ask

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _ask(self, why: str) -> None:
        """Asks the leader, whose hold it is, to let the held training go on. On any thread."""
        self._let_go = self._let_go[0] + 1, why

    def show_model(self, source: Source, role: str, num_envs: int | None) -> None:
        """Does nothing: the leader shows the same robots."""

    def drawn_envs(self) -> tuple[int, ...]:
        """Returns the indices of this process's environments drawn in the leader's page."""
        rollout = self._rollouts().get(self._shared.hold.orders.stepped)
        with self._shared.lock:
            requests = [d.request for d in rollout.decisions.values()] if rollout else []
        return tuple(sorted(int(i) for request in requests if request for i in request.mine))

    def _new_choice(self) -> Choice:
        return RemoteChoice()

    def _rollouts(self) -> dict[str, Rollout]:
        """Returns the rollouts that this process shares with others, by role. Each process steps
        an unsharded rollout for itself, and the leader shows its own."""
        return {
            role: rollout
            for role, (_, rollout) in self._shared.rollouts_shown().items()
            if rollout.num_shards > 1
        }

    def _run(self) -> None:
        client = None
        try:
            while client is None and not self._shared.control.closed:
                found = rendezvous.find_first(self._viewer, seconds=1.0)
                if found is not None:
                    address, secret, self.url = found
                    client = SocketClient(secret, address, self._place.process)
            while client is not None and not self._shared.control.closed:
                for data in client.receive(TURN_SECONDS):
                    self._obey(messages.decode_wishes(data))
                self._look_for_first()
                self._send(client)
            if client is not None:
                client.send(messages.encode(messages.changed(self._report(), leaves=True)))
        # Catch everything: an error that ends this thread must not keep the training waiting.
        except Exception as error:
            self._shared.failed("the worker process", error)
            self._shared.hold.close()
            self._shared.mailbox.close()
        finally:
            if client is not None:
                client.close()

    def _obey(self, wishes: messages.Wishes) -> None:
        shared, orders = self._shared, wishes.orders
        self._heard = shared.wall_clock()
        if wishes.refused != self._refused:
            self._refused = wishes.refused
            if wishes.refused is not None:
                log.error("nothing of this process is shown: %s", wishes.refused)
        if wishes.control.closed:
            self._shared.hold.disobey()
            log.warning("the first process's viewer was closed: nothing is sent to it any more")
        again = wishes.restarts != self._restarts
        for role, task in wishes.tasks.items():
            rollout = self._rollouts().get(role)
            if rollout is None:
                continue
            with shared.lock:
                pacer = rollout.pacer
                resets, reset_step = rollout.steps.last_reset
                if resets == task.resets:
                    self._ahead[role] = task.reset_step - reset_step
                choice = rollout.choice
                assert isinstance(choice, RemoteChoice)
                choice.rank = self._ranker(role)
                ranks = choice.tell(task)
                pacer.stretch_due = shared.clock() + task.due
                # While the training is held, no stretch begins that would apply the choice.
                if wishes.restarts != self._restarts or (orders.paused and choice.has_news):
                    choice.restart()
                    again = True
                if ranks or wishes.restarts != self._restarts:
                    pacer.restart()
        self._restarts = wishes.restarts
        if again:
            shared.hold.refresh()
        with shared.lock:
            if wishes.control.hold_on_nan and not shared.control.hold_on_nan:
                shared.findings.rearm()
            if not wishes.control.streaming:
                shared.fault = None  # switching off and on again retries
            shared.control = replace(
                wishes.control,
                closed=shared.control.closed,
                streaming=wishes.control.streaming and shared.fault is None,
            )
        if wishes.control.closed:
            shared.set(streaming=False, watched=False)
            return
        if wishes.selected_env != shared.selected_env:
            shared.selected_env = wishes.selected_env
            shared.hold.refresh()
        ahead = self._ahead.get(orders.stepped, 0)
        shared.hold.obey(replace(orders, target=orders.target - ahead, since=orders.since - ahead))

    def _ranker(self, role: str) -> Callable[[int, int, int, Ranking], None]:
        def rank(round: int, rule: int, shard: int, ranking: Ranking) -> None:
            self._rankings.append(
                messages.Ranked(
                    role,
                    round,
                    rule,
                    shard,
                    messages.Array.of(ranking.env_index.astype(np.int32)),
                    messages.Array.of(ranking.measure),
                    messages.Array.of(ranking.since_termination),
                    messages.Array.of(ranking.finite),
                    messages.Array.of(ranking.tier),
                )
            )

        return rank

    def _look_for_first(self) -> None:
        shared = self._shared
        if self._heard is None or shared.wall_clock() - self._heard < LOST_SECONDS:
            return
        log.warning("the first process is not heard of: the training goes on unseen")
        self._heard = None
        shared.set(watched=False)
        shared.hold.disobey()
        self._queue.clear()

    def _send(self, client: SocketClient) -> None:
        shared = self._shared
        while self._rankings:
            self._queue.appendleft(messages.encode(self._rankings.popleft()))
        # In "every_step" devices must wait when the leader is slow: leave packets in the mailbox.
        if not self._queue or shared.control.mode != "every_step":
            self._queue.extend(self._messages(shared.mailbox.take()))
        if self._heard is None:
            self._queue.clear()
        while self._queue and client.send(self._queue[0]):
            self._queue.popleft()
        if shared.control.mode != "every_step":
            self._queue.clear()  # the socket has no room: later packets are newer
        now = shared.wall_clock()
        then, before = self._reported
        if now - then < REPORT_SECONDS:
            return
        report = self._report()
        if now - then >= LIFE_SECONDS or before is None or not same_but_for_cost(report, before):
            if client.send(messages.encode(report)):
                self._reported = now, report

    def _messages(self, packets: Sequence[Packet | ModelPacket]) -> list[bytes]:
        rollouts, encoded = self._rollouts(), []
        for packet in packets:
            rollout = rollouts.get(packet.role)
            if rollout is None:
                continue
            if isinstance(packet, ModelPacket):
                encoded.append(messages.encode(messages.models_of(packet)))
                continue
            ahead = self._ahead.get(packet.role, 0)
            packet = packet._replace(env_steps=packet.env_steps + ahead)
            sending = rollout.pacer.sending
            encoded.append(messages.encode(messages.step_of(packet, sending=sending)))
        return encoded

    def _report(self) -> messages.Report:
        shared, held = self._shared, self._shared.hold.parts()

        def as_first_counts(finding: Finding) -> Finding:
            return replace(finding, env_steps=finding.env_steps + self._ahead.get(finding.role, 0))

        fell = shared.hold.fell
        rollouts, cost = shared.rollouts_shown(), shared.reading().cost
        with shared.lock:
            parts = {}
            for role, (source, rollout) in rollouts.items():
                if rollout.num_shards == 1:
                    continue
                ahead = self._ahead.get(role, 0)
                shards = {}
                for shard in rollout.called:
                    _, waits = held.get((role, shard), (0, False))
                    shards[shard] = (rollout.steps.of[shard].env_steps + ahead, waits)
                parts[role] = messages.Part(
                    source.number,
                    source.kind,
                    rollout.num_envs,
                    rollout.pacer.sending,
                    rollout.pacer.following,
                    shards,
                )
            return messages.Report(
                parts,
                cost.share(shared.clock()),
                shared.frames,
                shared.bytes_moved,
                fell and (fell[0], fell[1] + self._ahead.get(fell[0], 0)),
                shared.fault,
                found=tuple(
                    (source.number, as_first_counts(finding))
                    for source, finding in shared.findings.by_source
                    if self._sources.get(source.number) is source
                ),
                let_go=self._let_go,
            )


def same_but_for_cost(one: messages.Report, other: messages.Report) -> bool:
    """Whether both reports are equal in all that must be reported without delay."""
    same = one.found == other.found and one.let_go == other.let_go
    return same and one.parts == other.parts and one.terminated == other.terminated
