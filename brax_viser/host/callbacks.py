"""Answers the device's calls, on XLA's threads: the host's end of the wire."""

import logging
from typing import Any

import numpy as np

from brax_viser.host.deliveries import Deliveries
from brax_viser.host.rollout import Grant, Rollout
from brax_viser.records.decision import Decision, granted_by
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import (
    GIVEN,
    GRANTED,
    HEADER_COLUMNS,
    HEADER_HEAD,
    TERMINATED,
    UNASKED,
    Layout,
    Origin,
)

log = logging.getLogger("brax_viser")

GRANT_SECONDS = 0.05
"""For this long, "every_step" grants pushes and checks only whether anything has changed: pace,
progress and cost lag by up to as much."""

AFTER_FAULT = 1000
"""Steps to skip after a fault of our own before the device asks again."""

QUIET = Decision(AFTER_FAULT)
OUTDATED = Decision(0)
"""Answers a push for a training that another one has replaced."""


class Callbacks(Deliveries):
    """Receives the calls of one `VisualizedEnv`: an `emit.Host`."""

    def ask(self, origin: Origin, query: object) -> np.ndarray:
        """See `emit.Host.ask`."""
        decision = QUIET
        try:
            countdown, shard, *report = np.asarray(query).tolist()
            decision = self.decide(origin, countdown, shard, report)
        # Catch everything: raising here would end the user's training.
        except Exception as error:
            self._shared.failed("ask", error)
        return decision.packed(origin)

    def push(self, origin: Origin, layout: Layout, header: Any, rows: Any) -> np.ndarray:
        """See `emit.Host.push`."""
        try:
            return self._push(origin, layout, np.asarray(header), rows)
        # As in `ask`: never raise into the user's training.
        except Exception as error:
            self._shared.failed("push", error)
            return QUIET.packed(origin)

    def push_model(self, origin: Origin, shard: object, rows: Any) -> np.ndarray:
        """See `emit.Host.push_model`."""
        decision = QUIET
        try:
            decision = self._push_model(origin, int(np.asarray(shard)), rows)
        # As in `ask`: never raise into the user's training.
        except Exception as error:
            self._shared.failed("push_model", error)
        return decision.packed(origin)

    def _push(self, origin: Origin, layout: Layout, header: np.ndarray, rows: Any) -> np.ndarray:
        shared, start = self._shared, self._shared.clock()
        shard, rule = header[:HEADER_HEAD].tolist()
        columns = header[HEADER_HEAD:].reshape(len(HEADER_COLUMNS), -1)
        refreshed = shared.hold.refreshes
        rollout, decision = self.rollouts.get(origin.role), QUIET
        if rule == UNASKED:
            if rollout is not None and shard in rollout.grants:
                granted = self._go_on(rollout, origin, layout, shard, header, rows, start)
                if granted is not None:
                    return granted
            with shared.lock:
                rollout = self._rollout(origin, GRANTED)
                push, _ = self._paced(rollout, origin, GRANTED, shard, start)
                decision = self._decision(rollout, origin, shard, push=push)
            wanted = decision.grant == granted_by(origin, layout) and _asks_for(
                decision, columns[0]
            )
        elif rollout is None or _is_outdated(rollout, shard, rule, columns[0]):
            return OUTDATED.packed(origin)
        else:
            wanted = rule == GIVEN
        if wanted:
            self._deliver(rollout, origin, layout, shard, columns, rows)
        elif rule == TERMINATED:
            self._tell_falls(rollout, origin, layout, shard, columns[0], rows)
        with shared.lock:
            if rule > GIVEN:
                self._rank(rollout, origin, shard, rule, columns)
            if wanted or rule > GIVEN:
                decision = self._decision(rollout, origin, shard, push=not wanted)
            if wanted:
                decision = self._granting(decision, rollout, origin, layout, shard)
            nbytes = rows.nbytes + header.nbytes
            shared.bytes_moved += nbytes
            wanted &= shard not in rollout.unshown  # as far as frames of the page go
            shared.frames += wanted
            before, rollout.called[shard] = rollout.called.get(shard), shared.clock()
            shared.meter.pushed(
                None if rule == UNASKED else before,
                start,
                rollout.called[shard],
                nbytes,
                frame=wanted,
            )
        return self._held(decision, rollout, origin, shard, refreshed).packed(origin)

    def _push_model(self, origin: Origin, shard: int, rows: Any) -> Decision:
        shared, start = self._shared, self._shared.clock()
        refreshed = shared.hold.refreshes
        rollout = self.rollouts.get(origin.role)
        if rollout is None or _is_outdated(rollout, shard, GIVEN):
            return OUTDATED
        with shared.lock:
            request = rollout.decisions[shard].request
            assert request is not None
            rollout.models |= request.envs
            packet = ModelPacket(
                source=self,
                role=origin.role,
                env_index=request.mine,
                num_envs=rollout.num_envs,
                layout=origin.model,
                rows=rows.copy() if isinstance(rows, np.ndarray) else rows,
            )
        shared.mailbox.put_model(packet)
        with shared.lock:
            decision = self._decision(rollout, origin, shard, push=True)
            nbytes = rows.nbytes
            shared.bytes_moved += nbytes
            before, rollout.called[shard] = rollout.called[shard], shared.clock()
            shared.meter.pushed(before, start, rollout.called[shard], nbytes, frame=False)
        return self._held(decision, rollout, origin, shard, refreshed)

    def _granting(
        self, decision: Decision, rollout: Rollout, origin: Origin, layout: Layout, shard: int
    ) -> Decision:
        """Lets the next step be pushed like this one, without an `ask`, where it is planned. If
        the choice changes before that, the answer to that push asks for other rows."""
        shared = self._shared
        goes_on = rollout.pacer.is_next(shard) or shared.control.records(origin.role)
        if decision.skip or shared.hold.paused or not goes_on:
            return decision
        if self._is_watched(rollout, shard):
            return decision
        next_one = self._decision(rollout, origin, shard, push=True)
        if next_one.grant is None:
            return decision
        assert next_one.request is not None
        granting = next_one._replace(push=0, skip=next_one.grant)
        if shared.control.mode == "every_step":
            rollout.grants[shard] = Grant(
                next_one.request,
                layout,
                granting.packed(origin),
                next_one.request.rows.tobytes(),
                shared.clock() + GRANT_SECONDS,
                shared.control,
                shared.selection,
                shared.selected_env,
            )
        return granting

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
                and rollout.choice.env_index is grant.request.drawn
                and len(rollout.called) == grant.request.known
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
        decision = rollout.decisions[shard]
        assert decision.request is not None
        return Packet(
            source=self,
            role=origin.role,
            shard=shard,
            env_steps=rollout.pacer.steps_of(shard),
            env_index=decision.request.mine,
            drawn=decision.request.here,
            num_envs=rollout.num_envs,
            layout=layout,
            # In a direct call, this is XLA's own memory, valid only until we return.
            rows=rows.copy() if isinstance(rows, np.ndarray) else rows,
            # A flat array has a detail after its rows.
            detail_env=decision.detail_env if rows.ndim == 1 else None,
            detail_layout=origin.detail,
            shown=shard not in rollout.unshown,
        )


def _asks_for(decision: Decision, rows: np.ndarray) -> bool:
    """Whether these are the rows, int32 [K], that a decision on given rows asks for."""
    return decision.request is not None and np.array_equal(rows, decision.request.rows)


def _is_outdated(rollout: Rollout, shard: int, rule: int, rows: np.ndarray | None = None) -> bool:
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
    if rule != GIVEN:
        return False  # `Choice.report` ignores rankings that are no longer wanted
    last = rollout.decisions.get(shard)
    return last is None or not (rows is None or _asks_for(last, rows))
