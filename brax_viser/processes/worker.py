"""In another process than the first: in place of a page, the way to the first process's."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brax_viser.host.findings import Finding
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import Choice, Ranking, Selection
from brax_viser.host.source import Source, Sources
from brax_viser.host.state import Switchboard, log
from brax_viser.processes import messages, rendezvous
from brax_viser.processes.rendezvous import Place
from brax_viser.processes.sockets import Spoke
from brax_viser.records.parcel import ModelParcel, Parcel
from brax_viser.records.protocol import GIVEN

TURN_SECONDS = 0.02
"""How often there is a look at what has come from the devices."""

REPORT_SECONDS = 0.05
"""How often the first process is told how things are here, at most; at least every `LIFE_SECONDS`,
which tell it that there is somebody."""

LIFE_SECONDS = 0.5

LOST_SECONDS = 5.0
"""How long to hear nothing before the other end counts as lost."""


@dataclass
class Assigned(Choice):
    """A choice that is made in the first process. This one ranks when told to, and is told."""

    rank: Callable[[int, int, int, Ranking], None] = lambda *_: None
    """(round, rule, shard, ranking): where to say what a device ranks first."""
    _rule: int = GIVEN  # to rank by in this round
    _told: np.ndarray | None = None  # int32 [K], not yet in use
    _ranked: set[int] = field(default_factory=set)  # shards, in this round
    _at_once: bool = False

    def tell(self, task: messages.Task) -> bool:
        """What the first process has decided. Returns whether it wants devices to rank now."""
        begins = task.round != self.round
        if begins:
            self.round, self._rule, self._ranked = task.round, task.rule, set()
        if task.drawn is not None:
            drawn = task.drawn.open()
            if self._told is None or not np.array_equal(drawn, self._told):
                self._told = drawn
        return begins and task.rule != GIVEN

    @property
    def is_told_anew(self) -> bool:
        """Whether what is told is not yet drawn."""
        return self._told is not self.env_index

    def hurry(self) -> None:
        """What is told is to be drawn at once, not when the next stretch begins."""
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
        if self._told is None or not self.is_told_anew:
            return False
        return self.env_index is None or self._at_once or begins or np.isfinite(seconds)

    def keep(self, env: int | None, num_envs: int, capacity: int) -> bool:
        return False


class Relay:
    """Sends what the devices of this process push to the first one, and obeys it.

    Has a thread of its own. Stands where the first process has a `publisher.Publisher`.
    """

    def __init__(self, board: Switchboard, feeds: Sources, place: Place, viewer: int):
        """`start` starts the thread.

        Args:
            board: what is shared with the device's calls.
            feeds: the environments of the viewer, in the order in which all processes make them.
            place: which process this is.
            viewer: which of the process's viewers.
        """
        self.url: str | None = None  # of the first process's page, once it is known
        self._board, self._feeds, self._place, self._viewer = board, feeds, place, viewer
        self._thread = threading.Thread(target=self._run, name="brax_viser relay", daemon=True)
        self._backlog: deque[bytes] = deque()
        self._rankings: deque[messages.Ranked] = deque()
        self._hurries = 0
        self._refused: str | None = None  # why the first process takes nothing of what is sent
        self._heard: float | None = None  # s, when the first process was heard of last
        self._reported: tuple[float, messages.Report | None] = (-np.inf, None)
        # By role: how much further the first process counts the steps.
        self._ahead: dict[str, int] = {}
        board.new_choice = self._new_choice

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def show_model(self, feed: Source, role: str, num_envs: int | None) -> None:
        """The first process has the same robots."""

    def drawn_envs(self) -> tuple[int, ...]:
        """Indices of those that are this process's and drawn in the first one's page."""
        rollout = self._rollouts().get(self._board.hold.orders.stepped)
        with self._board.lock:
            orders = list(rollout.asked_for.values()) if rollout else []
        return tuple(sorted(int(i) for order in orders for i in order.mine))

    def _new_choice(self) -> Choice:
        return Assigned()

    def _rollouts(self) -> dict[str, Rollout]:
        """By role: those that this process has a part of. One that is not sharded at all is
        stepped by each process for itself, and the first process shows its own."""
        return {
            role: rollout
            for role, (_, rollout) in self._board.rollouts_shown().items()
            if rollout.num_shards > 1
        }

    def _run(self) -> None:
        spoke = None
        try:
            while spoke is None and not self._board.control.closed:
                found = rendezvous.find_first(self._viewer, seconds=1.0)
                if found is not None:
                    address, secret, self.url = found
                    spoke = Spoke(secret, address, self._place.process)
            while spoke is not None and not self._board.control.closed:
                for data in spoke.receive(TURN_SECONDS):
                    self._obey(messages.decode_wishes(data))
                self._look_for_first()
                self._send(spoke)
            if spoke is not None:
                spoke.send(messages.encode(messages.changed(self._report(), leaves=True)))
        # The training goes on, whatever it is; nobody would see it in a thread of its own.
        except Exception as error:
            self._board.failed("the relay", error)
            self._board.hold.close()
            self._board.mailbox.close()
        finally:
            if spoke is not None:
                spoke.close()

    def _obey(self, wishes: messages.Wishes) -> None:
        board, orders = self._board, wishes.orders
        self._heard = board.wall_clock()
        if wishes.refused != self._refused:
            self._refused = wishes.refused
            if wishes.refused is not None:
                log.error("nothing of this process is shown: %s", wishes.refused)
        if wishes.control.closed:
            self._board.hold.disobey()
            log.warning("the first process's viewer was closed: nothing is sent to it any more")
        again = wishes.hurries != self._hurries
        for role, task in wishes.tasks.items():
            rollout = self._rollouts().get(role)
            if rollout is None:
                continue
            with board.lock:
                pacer = rollout.pacer
                resets, reset_step = pacer.last_reset
                if resets == task.resets:
                    self._ahead[role] = task.reset_step - reset_step
                choice = rollout.choice
                assert isinstance(choice, Assigned)
                choice.rank = self._ranker(role)
                ranks = choice.tell(task)
                pacer.stretch_due = board.clock() + task.due
                # While the training is held, no stretch begins with which to change them.
                if wishes.hurries != self._hurries or (orders.paused and choice.is_told_anew):
                    choice.hurry()
                    again = True
                if ranks or wishes.hurries != self._hurries:
                    pacer.hurry()
        self._hurries = wishes.hurries
        if again:
            board.hold.refresh()
        with board.lock:
            if wishes.control.hold_on_nan and not board.control.hold_on_nan:
                board.findings.rearm()
            if not wishes.control.streaming:
                board.fault = None  # switched off and on again, it may be tried anew
            board.control = replace(
                wishes.control,
                closed=board.control.closed,
                streaming=wishes.control.streaming and board.fault is None,
            )
        if wishes.control.closed:
            board.set(streaming=False, watched=False)
            return
        if wishes.selected_env != board.selected_env:
            board.selected_env = wishes.selected_env
            board.hold.refresh()
        ahead = self._ahead.get(orders.stepped, 0)
        board.hold.obey(replace(orders, target=orders.target - ahead, since=orders.since - ahead))

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
        board = self._board
        if self._heard is None or board.wall_clock() - self._heard < LOST_SECONDS:
            return
        log.warning("the first process is not heard of: the training goes on unseen")
        self._heard = None
        board.set(watched=False)
        board.hold.disobey()
        self._backlog.clear()

    def _send(self, spoke: Spoke) -> None:
        board = self._board
        while self._rankings:
            self._backlog.appendleft(messages.encode(self._rankings.popleft()))
        # In "every_step" what is not fetched makes the devices wait, and they are to.
        if not self._backlog or board.control.mode != "every_step":
            self._backlog.extend(self._messages(board.mailbox.take()))
        if self._heard is None:
            self._backlog.clear()
        while self._backlog and spoke.send(self._backlog[0]):
            self._backlog.popleft()
        if board.control.mode != "every_step":
            self._backlog.clear()  # no room: what follows will be newer
        now = board.wall_clock()
        then, before = self._reported
        if now - then < REPORT_SECONDS:
            return
        report = self._report()
        if now - then >= LIFE_SECONDS or before is None or not same_but_for_cost(report, before):
            if spoke.send(messages.encode(report)):
                self._reported = now, report

    def _messages(self, parcels: Sequence[Parcel | ModelParcel]) -> list[bytes]:
        rollouts, encoded = self._rollouts(), []
        for parcel in parcels:
            rollout = rollouts.get(parcel.role)
            if rollout is None:
                continue
            if isinstance(parcel, ModelParcel):
                encoded.append(messages.encode(messages.models_of(parcel)))
                continue
            ahead = self._ahead.get(parcel.role, 0)
            parcel = replace(parcel, env_steps=parcel.env_steps + ahead)
            sending = rollout.pacer.sending
            encoded.append(messages.encode(messages.step_of(parcel, sending=sending)))
        return encoded

    def _report(self) -> messages.Report:
        board, held = self._board, self._board.hold.parts()

        def as_first_counts(finding: Finding) -> Finding:
            return replace(finding, env_steps=finding.env_steps + self._ahead.get(finding.role, 0))

        fell = board.hold.fell
        rollouts, cost = board.rollouts_shown(), board.reading().cost
        with board.lock:
            parts = {}
            for role, (feed, rollout) in rollouts.items():
                if rollout.num_shards == 1:
                    continue
                ahead = self._ahead.get(role, 0)
                shards = {}
                for shard in rollout.called:
                    steps, waits = held.get((role, shard), (0, False))
                    steps = steps if waits else rollout.pacer.steps_of(shard)
                    shards[shard] = (steps + ahead, waits)
                parts[role] = messages.Part(
                    feed.number,
                    feed.kind,
                    rollout.num_envs,
                    rollout.pacer.sending,
                    rollout.pacer.following,
                    shards,
                )
            return messages.Report(
                parts,
                cost.share(board.clock()),
                board.frames,
                board.bytes_moved,
                fell and (fell[0], fell[1] + self._ahead.get(fell[0], 0)),
                board.fault,
                found=tuple(
                    (feed.number, as_first_counts(finding))
                    for feed, finding in board.findings.by_feed
                    if self._feeds.get(feed.number) is feed
                ),
            )


def same_but_for_cost(one: messages.Report, other: messages.Report) -> bool:
    """Whether there is nothing in it that could not wait."""
    same = one.found == other.found
    return same and one.parts == other.parts and one.terminated == other.terminated
