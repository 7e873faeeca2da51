"""Answers the device's calls, on XLA's threads: the host's end of the wire."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from brax_viser.host.findings import Finding, fields_of
from brax_viser.host.pacing import Pacer
from brax_viser.host.rollout import Grant, Rollout, grant_of, granted_by, request_of
from brax_viser.host.selection import Ranking
from brax_viser.host.source import Source
from brax_viser.host.state import IDLE_SECONDS, SharedState
from brax_viser.records.environment import Environment
from brax_viser.records.grid import Grid
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    FOREVER,
    FRESH,
    GIVEN,
    GRANTED,
    HEADER_COLUMNS,
    HEADER_HEAD,
    NOBODY,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    TERMINATED,
    UNASKED,
    WATCHED,
    WATCHED_MOST,
    Layout,
    Origin,
)
from brax_viser.records.trainer_call import TrainerCall

log = logging.getLogger("brax_viser")

GRANT_SECONDS = 0.05
"""For this long, "every_step" grants pushes and checks only whether anything has changed: pace,
progress and cost lag by up to as much."""

AFTER_FAULT = 1000
"""Steps to skip after a fault of our own before the device asks again."""


class Callbacks(Source):
    """Receives the calls of one `VisualizedEnv`, traced and running: an `emit.Host`."""

    def __init__(
        self,
        shared: SharedState,
        adapter: Environment,
        grid: Grid,
        role: str | None,
        on_new_training: Callable[["Callbacks", TrainerCall], None],
    ):
        super().__init__(adapter, grid, role)
        self._shared = shared
        self._on_new_training = on_new_training

    def traced(self, call: TrainerCall | None) -> None:
        """Notes that `reset` or `step` is being traced, by a trainer that is getting ready."""
        if self._shared.progress.traced(call, self._shared.clock()):
            assert call is not None
            self._shared.hold.forget()
            with self._shared.lock:
                self.rollouts.clear()
                self._shared.findings.forget()
            self._on_new_training(self, call)

    def leave(self) -> None:
        """Drops the reference to the page, as the viewer is closed: compiled programs keep this
        object alive, and must not keep the page alive too."""
        self._on_new_training = lambda source, call: None

    def ask(self, origin: Origin, query: object) -> np.ndarray:
        """See `emit.Host.ask`."""
        shared, start = self._shared, self._shared.clock()
        answer = _quiet(origin)
        try:
            countdown, shard, *found = np.asarray(query).tolist()
            refreshed = shared.hold.refreshes
            with shared.lock:
                rollout = self._rollout(origin, countdown)
                self._settle(rollout, shard, start)
                push, new = self._paced(rollout, origin, countdown, shard, start, found)
                self._fill(answer, rollout, origin, shard, push=push)
                rollout.called[shard] = shared.clock()
                shared.meter.asked(start, rollout.called[shard], pushes=answer[0] > 0)
            if new is not None:
                shared.tell(new)
            self._hold_here(answer, rollout, origin, shard, refreshed)
            self._watch(answer, rollout, shard)
        # Catch everything: raising here would end the user's training.
        except Exception as error:
            shared.failed("ask", error)
        return answer

    def push(self, origin: Origin, layout: Layout, header: Any, rows: Any) -> np.ndarray:
        """See `emit.Host.push`."""
        shared, start = self._shared, self._shared.clock()
        try:
            numbers = np.asarray(header)
            shard, rule = numbers[:HEADER_HEAD].tolist()
            columns = numbers[HEADER_HEAD:].reshape(len(HEADER_COLUMNS), -1)
            refreshed = shared.hold.refreshes
            rollout = self.rollouts.get(origin.role)
            if rule == UNASKED:
                if rollout is not None and shard in rollout.grants:
                    granted = self._go_on(rollout, origin, layout, shard, numbers, rows, start)
                    if granted is not None:
                        return granted
                answer = _quiet(origin)
                with shared.lock:
                    rollout = self._rollout(origin, GRANTED)
                    push, _ = self._paced(rollout, origin, GRANTED, shard, start)
                    self._fill(answer, rollout, origin, shard, push=push)
                wanted = grant_of(answer) == granted_by(origin, layout) and np.array_equal(
                    answer[ANSWER_HEAD:], columns[0]
                )
            elif rollout is None or _is_stale(rollout, shard, rule, columns[0]):
                return _quiet(origin, skip=0)  # another training has begun
            else:
                answer, wanted = _quiet(origin), rule == GIVEN
            if wanted:
                self._deliver(rollout, origin, layout, shard, columns, rows)
            elif rule == TERMINATED:
                self._tell_falls(rollout, origin, layout, shard, columns[0], rows)
            with shared.lock:
                if rule > GIVEN:
                    self._rank(rollout, origin, shard, rule, columns)
                if wanted or rule > GIVEN:
                    answer[0] = 0
                    self._fill(answer, rollout, origin, shard, push=not wanted)
                if wanted:
                    self._grant(answer, rollout, origin, layout, shard)
                nbytes = rows.nbytes + header.nbytes
                shared.bytes_moved += nbytes
                shared.frames += wanted
                before, rollout.called[shard] = rollout.called.get(shard), shared.clock()
                shared.meter.pushed(
                    None if rule == UNASKED else before,
                    start,
                    rollout.called[shard],
                    nbytes,
                    frame=wanted,
                )
            self._hold_here(answer, rollout, origin, shard, refreshed)
            self._watch(answer, rollout, shard)
        # As in `ask`: never raise into the user's training.
        except Exception as error:
            shared.failed("push", error)
            return _quiet(origin)
        return answer

    def push_model(self, origin: Origin, shard: object, rows: Any) -> np.ndarray:
        """See `emit.Host.push_model`."""
        shared, start = self._shared, self._shared.clock()
        answer = _quiet(origin)
        try:
            device = int(np.asarray(shard))
            refreshed = shared.hold.refreshes
            rollout = self.rollouts.get(origin.role)
            if rollout is None or _is_stale(rollout, device, GIVEN):
                return _quiet(origin, skip=0)  # another training has begun
            with shared.lock:
                order = rollout.asked_for[device]
                rollout.models |= order.envs
                packet = ModelPacket(
                    source=self,
                    role=origin.role,
                    env_index=order.mine,
                    num_envs=rollout.num_envs,
                    layout=origin.model,
                    rows=rows.copy() if isinstance(rows, np.ndarray) else rows,
                )
            shared.mailbox.put_model(packet)
            with shared.lock:
                self._fill(answer, rollout, origin, device, push=True)
                nbytes = rows.nbytes
                shared.bytes_moved += nbytes
                before, rollout.called[device] = rollout.called[device], shared.clock()
                shared.meter.pushed(before, start, rollout.called[device], nbytes, frame=False)
            self._hold_here(answer, rollout, origin, device, refreshed)
            self._watch(answer, rollout, device)
        # As in `ask`: never raise into the user's training.
        except Exception as error:
            shared.failed("push_model", error)
        return answer

    def _rollout(self, origin: Origin, countdown: int) -> Rollout:
        num_envs = origin.num_envs * origin.num_shards
        rollout = self.rollouts.get(origin.role)
        begins = rollout is None
        if rollout is None or rollout.num_envs != num_envs:
            rollout = Rollout(
                Pacer(self.adapter.dt), num_envs, origin.num_shards, self._shared.new_choice()
            )
            self.rollouts[origin.role] = rollout
        if countdown == FRESH:
            rollout.models.clear()  # the reset may have changed the models
        self._take_the_page(origin.role, begins=begins)
        return rollout

    def _take_the_page(self, role: str, *, begins: bool) -> None:
        """Shows this environment if, among several of one viewer, it has begun last. If they are
        stepped in turn, the shown one stays, whichever is reset, until it is no longer stepped."""
        shared, shown = self._shared, self._shared.shown.get(role)
        if shown is self:
            return
        rollout, now = shown.rollouts.get(role) if shown is not None else None, shared.clock()
        if begins or rollout is None or self._alone(role, rollout, now):
            shared.show_source(role, self)
        else:
            shared.beside.setdefault(role, {})[self] = now

    def _alone(self, role: str, shown: Rollout, now: float) -> bool:
        """Whether the shown environment is no longer stepped while this one is."""
        last = max(shown.called.values(), default=now)
        own = max(self.rollouts[role].called.values(), default=-np.inf)
        return own > last and now - last > IDLE_SECONDS

    def _paced(
        self,
        rollout: Rollout,
        origin: Origin,
        countdown: int,
        shard: int,
        now: float,
        report: Sequence[int] = (),
    ) -> tuple[bool, Finding | None]:
        """Counts the step and plans the next call. Returns whether to push this step, and the
        finding in `report`, the device's report of NaN and Inf, if it must be reported."""
        shared, pacer, role = self._shared, rollout.pacer, origin.role
        last_skip = pacer.skip_of(shard)
        control = shared.control
        shown = shared.shown[role] is self
        if shared.num_processes > 1:
            self._find_leader(rollout, shard)
        plan = pacer.ask(
            now,
            countdown,
            shared.pacing,
            shared.meter.spent,
            active=shown and control.wants(role),
            shard=shard,
            polling=shared.meter.polling,
        )
        if shard == pacer.leader:
            shared.tell_steps(role, rollout, now)
        new = None
        if report:
            consecutive = countdown == FRESH or last_skip == 0
            new = self._found(rollout, origin, shard, report, consecutive=consecutive)
            control = shared.control
            shown = shared.shown[role] is self
        push = plan.push
        if shared.hold.counts(role) and not control.closed:
            # Single-stepping: push each step, whether or not a page is open.
            pacer.set_skip(shard, 0)
            push = shown and control.streaming
        if push:
            stretches = control.mode == "realtime" and not pacer.following
            stale = rollout.choice.is_stale(
                shared.selection,
                now,
                begins=plan.begins and stretches and shard == pacer.leader,
                seconds=np.inf if stretches or shard != pacer.leader else control.stretch_seconds,
            )
            if stale:
                self._choose(rollout, now)
        return push, new

    def _found(
        self,
        rollout: Rollout,
        origin: Origin,
        shard: int,
        report: Sequence[int],
        *,
        consecutive: bool,
    ) -> Finding | None:
        """Handles a NaN or Inf at this step (see `watch.report`), and holds the training if so set.
        Returns the finding if it must be reported. The caller holds `shared.lock`."""
        shared, role = self._shared, origin.role
        row, count, watching, *kinds = report
        fields = fields_of(origin.watched, kinds)
        env_steps = rollout.pacer.steps_of(shard)
        step = env_steps * rollout.num_envs
        if role == "train":  # continue from the trainer's own count
            ahead = max(env_steps - rollout.progressed, 0)
            step = shared.progress.view(shared.clock()).num_steps + ahead * rollout.num_envs
        finding = Finding(
            role,
            shard * origin.num_envs + row,
            fields,
            env_steps,
            step,
            others=count - 1,
            exact=bool(watching) or consecutive or {name for name, _ in fields} == {"reward"},
        )
        return finding if shared.found(self, finding) else None

    def _watch(self, answer: np.ndarray, rollout: Rollout, shard: int) -> None:
        """Has the device check all fields at each step until it asks again, if that is wanted and
        the answer is the last one for this step."""
        if answer[0] or self._shared.control.closed or answer[1] >= FOREVER:
            return
        watched = self._is_watched(rollout, shard)
        rollout.rearmed[shard] = self._shared.findings.rearmed
        if watched:
            answer[1] = min(answer[1], WATCHED_MOST) + WATCHED

    def _is_watched(self, rollout: Rollout, shard: int) -> bool:
        """Whether the device must check all fields at each step: to hold at the first NaN, or
        once, to forget reported fields that are finite again."""
        anew = self._shared.findings.rearmed
        return self._shared.control.hold_on_nan or rollout.rearmed.get(shard, anew) != anew

    def _find_leader(self, rollout: Rollout, shard: int) -> None:
        """Lets the lowest shard seen here plan: this process's shards aren't known beforehand."""
        if not rollout.called:
            rollout.pacer.leader = shard
        rollout.pacer.leader = min(rollout.pacer.leader, shard)

    def _choose(self, rollout: Rollout, now: float) -> None:
        selection, kept = self._shared.selection, self._shared.kept_env
        rollout.choice.begin(selection, rollout.num_envs, self.capacity, now, kept)

    def _fill(
        self, answer: np.ndarray, rollout: Rollout, origin: Origin, shard: int, *, push: bool
    ) -> None:
        """Writes into the answer whether to push, and which rows."""
        answer[1] = rollout.pacer.skip_of(shard)
        if self._shared.control.closed:
            answer[1] = FOREVER
        elif push:
            rule, drawn = rollout.choice.rule_for(shard), rollout.choice.env_index
            if rule != GIVEN:
                answer[0], answer[2], answer[3] = PUSH, rule, NOBODY
            elif drawn is not None and not rollout.choice.pending:
                # Include this shard, which may be seen for the first time, in this process's.
                order, known = rollout.asked_for.get(shard), len(rollout.called)
                if order is None or order.drawn is not drawn or order.known != known:
                    here = drawn
                    if self._shared.num_processes > 1:
                        shards = [*rollout.called, shard]
                        here = drawn[np.isin(drawn // origin.num_envs, shards)]
                    order = rollout.asked_for[shard] = request_of(origin, shard, drawn, here, known)
                granted, answer[:] = answer[1], order.answer
                answer[1] = granted
                if not answer[0]:
                    return
                if self._shared.wants_twins(origin.role) and origin.coordinates:
                    answer[0] = PUSH_COORDINATES
                if origin.model and not order.envs <= rollout.models:
                    answer[0] = PUSH_MODEL
                env = self._shared.detailed_env(origin.role)
                if not (origin.detail and env in order.envs):
                    env = None
                rollout.detailed[shard] = env
                if env is not None:
                    answer[3] = env % origin.num_envs

    def _grant(
        self, answer: np.ndarray, rollout: Rollout, origin: Origin, layout: Layout, shard: int
    ) -> None:
        """Lets the next step be pushed like this one, without an `ask`, where it is planned. If
        the choice changes before that, the answer to that push asks for other rows."""
        shared = self._shared
        if answer[0] or answer[1] or shared.hold.paused or not rollout.pacer.is_next(shard):
            return
        if self._is_watched(rollout, shard):
            return
        self._fill(answer, rollout, origin, shard, push=True)
        grant = grant_of(answer)
        if grant is not None:
            answer[0], answer[1] = 0, grant
            if shared.control.mode == "every_step":
                rollout.grants[shard] = Grant(
                    rollout.asked_for[shard],
                    layout,
                    answer.copy(),
                    answer[ANSWER_HEAD:].tobytes(),
                    shared.clock() + GRANT_SECONDS,
                    shared.control,
                    shared.selection,
                    shared.selected_env,
                )
        answer[0] = 0

    def _go_on(
        self,
        rollout: Rollout,
        origin: Origin,
        layout: Layout,
        shard: int,
        header: np.ndarray,
        rows: Any,
        start: float,
    ) -> np.ndarray | None:
        """Returns the previous answer for a granted push if it still holds; None where the answer
        must be computed."""
        shared, grant = self._shared, rollout.grants[shard]
        pushed = header[HEADER_HEAD : HEADER_HEAD + origin.num_rows]
        with shared.lock:
            if not (
                start < grant.until
                and shared.control is grant.control
                and shared.selection is grant.selection
                and shared.selected_env == grant.selected_env
                and not shared.hold.paused
                and shared.shown.get(origin.role) is self
                and rollout.num_envs == origin.num_envs * origin.num_shards
                and rollout.choice.env_index is grant.order.drawn
                and len(rollout.called) == grant.order.known
                and layout is grant.layout
                and pushed.tobytes() == grant.rows
                and rollout.pacer.go_on(shard)
            ):
                self._settle(rollout, shard, start)
                return None
            packet = self._packet(rollout, origin, layout, shard, rows)
            nbytes = rows.nbytes + header.nbytes
            shared.bytes_moved += nbytes
            shared.frames += 1
            grant.nbytes += nbytes
            grant.frames += 1
        shared.mailbox.put(packet, wait=True)
        grant.spent += shared.clock() - start
        return grant.answer

    def _settle(self, rollout: Rollout, shard: int, now: float) -> None:
        """Adds a grant's cost to the meter and forgets it. The caller holds `shared.lock`."""
        grant = rollout.grants.pop(shard, None)
        if grant is not None and grant.frames:
            self._shared.meter.went_on(now, grant.spent, grant.nbytes, grant.frames)

    def _tell_falls(
        self,
        rollout: Rollout,
        origin: Origin,
        layout: Layout,
        shard: int,
        ranked: np.ndarray,
        rows: Any,
    ) -> None:
        """Hands on the rows of the terminated environments that a device has ranked."""
        env_index = shard * origin.num_envs + ranked  # a new array, kept beyond this call
        with self._shared.lock:
            wait = self._shared.control.mode == "every_step"
            packet = Packet(
                source=self,
                role=origin.role,
                shard=shard,
                env_steps=rollout.pacer.steps_of(shard),
                env_index=env_index,
                drawn=env_index,
                num_envs=rollout.num_envs,
                layout=layout,
                rows=rows.copy() if isinstance(rows, np.ndarray) else rows,
                ranked=True,
            )
        self._shared.mailbox.put(packet, wait=wait)

    def _rank(
        self, rollout: Rollout, origin: Origin, shard: int, rule: int, columns: np.ndarray
    ) -> None:
        """Reports a device's ranking of its environments to the shared state."""
        row, since_termination, bits, finite, tier = columns.copy()  # kept beyond this call
        ranking = Ranking(
            shard * origin.num_envs + row,
            bits.view(np.float32),
            since_termination,
            finite > 0,
            tier,
        )
        self._shared.ranked(self, origin.role, rollout, shard, rule, ranking)

    def _deliver(
        self,
        rollout: Rollout,
        origin: Origin,
        layout: Layout,
        shard: int,
        columns: np.ndarray,
        rows: Any,
    ) -> None:
        """Hands a frame on to the page's loop."""
        shared = self._shared
        with shared.lock:
            packet = self._packet(rollout, origin, layout, shard, rows)
            wait = shared.control.mode == "every_step"
        if shared.hold.until_env is not None:
            ended = columns[1][: len(packet.env_index)] == 0
            if shared.hold.until_env in packet.env_index[ended]:
                shared.hold.terminated(origin.role, packet.env_steps)
        shared.mailbox.put(packet, wait=wait)

    def _packet(
        self, rollout: Rollout, origin: Origin, layout: Layout, shard: int, rows: Any
    ) -> Packet:
        order = rollout.asked_for[shard]
        return Packet(
            source=self,
            role=origin.role,
            shard=shard,
            env_steps=rollout.pacer.steps_of(shard),
            env_index=order.mine,
            drawn=order.here,
            num_envs=rollout.num_envs,
            layout=layout,
            # In a direct call, this is XLA's own memory, valid only until we return.
            rows=rows.copy() if isinstance(rows, np.ndarray) else rows,
            # A flat array has a detail after its rows.
            detail_env=rollout.detailed.get(shard) if rows.ndim == 1 else None,
            detail_layout=origin.detail,
        )

    def _hold_here(
        self, answer: np.ndarray, rollout: Rollout, origin: Origin, shard: int, refreshed: int
    ) -> None:
        """Waits if the training is held at this step and nothing more must be pushed."""
        shared, role = self._shared, origin.role
        if answer[0] or not shared.hold.paused:
            return
        while not answer[0] and shared.hold.wait(
            role, shard, rollout.pacer.steps_of(shard), refreshed
        ):
            refreshed = shared.hold.refreshes
            with shared.lock:
                push = shared.shown.get(role) is self and shared.control.streaming
                push = push and shared.control.show in (role, "both")
                # The clock stands still: only another selection makes a choice stale.
                if push and rollout.choice.is_stale(
                    shared.selection, shared.clock(), begins=False, seconds=np.inf
                ):
                    self._choose(rollout, shared.clock())
                self._fill(answer, rollout, origin, shard, push=push)
        if shared.hold.counts(role):
            with shared.lock:
                rollout.pacer.set_skip(shard, 0)
            answer[1] = 0


def _is_stale(rollout: Rollout, shard: int, rule: int, rows: np.ndarray | None = None) -> bool:
    """Whether a device's push was asked for before this rollout began, as happens when a training
    ends while another one begins.

    Args:
        rollout: the newest of its role.
        shard: the device.
        rule: the rule by which the rows were chosen.
        rows: int32 [K], indices of the pushed rows, where known.
    """
    if shard not in rollout.called:
        return True
    order = rollout.asked_for.get(shard)
    if rule != GIVEN:
        return False  # `Choice.report` ignores rankings that are no longer wanted
    return order is None or not (rows is None or np.array_equal(rows, order.answer[ANSWER_HEAD:]))


def _quiet(origin: Origin, skip: int = AFTER_FAULT) -> np.ndarray:
    """Returns an answer that asks for nothing, and for no call before `skip` steps have passed."""
    answer = np.zeros(ANSWER_HEAD + origin.num_rows, np.int32)
    answer[3] = NOBODY
    answer[1] = skip
    return answer
