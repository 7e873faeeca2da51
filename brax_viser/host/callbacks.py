"""Answers the device's calls, on XLA's threads: the host's end of the wire."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from brax_viser.host.deliveries import Deliveries
from brax_viser.host.rollout import Grant, Rollout
from brax_viser.records.decision import Decision, granted_by
from brax_viser.records.packet import ModelPacket
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


def _never_raising(call: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Has a call that fails answer `QUIET`: raising would end the user's training."""

    @functools.wraps(call)
    def answering(self: "Callbacks", origin: Origin, *args: Any) -> np.ndarray:
        try:
            return call(self, origin, *args)
        # Catch everything, for the same reason.
        except Exception as error:
            self._shared.failed(call.__name__, error)
            return QUIET.packed(origin)

    return answering


class Callbacks(Deliveries):
    """Receives the calls of one `VisualizedEnv`: an `emit.Host`."""

    @_never_raising
    def ask(self, origin: Origin, query: object) -> np.ndarray:
        """See `emit.Host.ask`."""
        countdown, shard, *report = np.asarray(query).tolist()
        return self.decide(origin, countdown, shard, report).packed(origin)

    @_never_raising
    def push(self, origin: Origin, layout: Layout, header: Any, rows: Any) -> np.ndarray:
        """See `emit.Host.push`."""
        shared, start, header = self._shared, self._shared.clock(), np.asarray(header)
        shard, rule = header[:HEADER_HEAD].tolist()
        rollout, decision, asked = self.rollouts.get(origin.role), QUIET, rule != UNASKED
        if not asked and rollout is not None and shard in rollout.grants:
            granted = self._go_on(rollout, origin, layout, shard, header, rows, start)
            if granted is not None:
                return granted
        columns = header[HEADER_HEAD:].reshape(len(HEADER_COLUMNS), -1)
        refreshed = shared.hold.refreshes
        if not asked:
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
            shipment = self._shipment(origin, rollout, shard, rollout.decisions[shard])
            if self.stops_within(shipment):
                self._end(shipment, columns[1])
            self._put(shipment, layout, _kept(rows))
        elif rule == TERMINATED:
            shipment = self._shipment(origin, rollout, shard, decision)
            self._put(shipment, layout, _kept(rows), shard * origin.num_envs + columns[0])
        with shared.lock:
            if rule > GIVEN:
                self._rank(rollout, origin, shard, rule, columns)
            if wanted or rule > GIVEN:
                decision = self._decision(rollout, origin, shard, push=not wanted)
            if wanted:
                decision = self._granting(decision, rollout, origin, layout, shard)
            wanted &= shard not in rollout.unshown  # only frames of the page count as frames
            nbytes = rows.nbytes + header.nbytes
            self._count_push(rollout, shard, start, nbytes, asked=asked, frame=wanted)
        return self._held(decision, rollout, origin, shard, refreshed).packed(origin)

    @_never_raising
    def push_model(self, origin: Origin, shard: object, rows: Any) -> np.ndarray:
        """See `emit.Host.push_model`."""
        shared, start, shard = self._shared, self._shared.clock(), int(np.asarray(shard))
        refreshed = shared.hold.refreshes
        rollout = self.rollouts.get(origin.role)
        if rollout is None or _is_outdated(rollout, shard, GIVEN):
            return OUTDATED.packed(origin)
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
                rows=_kept(rows),
            )
        shared.mailbox.put_model(packet)
        with shared.lock:
            decision = self._decision(rollout, origin, shard, push=True)
            self._count_push(rollout, shard, start, rows.nbytes)
        return self._held(decision, rollout, origin, shard, refreshed).packed(origin)

    def _count_push(
        self,
        rollout: Rollout,
        shard: int,
        start: float,
        nbytes: int,
        *,
        asked: bool = True,
        frame: bool = False,
    ) -> None:
        """Counts a push and its cost. The caller holds `shared.lock`."""
        shared = self._shared
        shared.bytes_moved += nbytes
        shared.frames += frame
        before, now = rollout.called.get(shard) if asked else None, shared.clock()
        rollout.called[shard] = now
        shared.meter.pushed(before, start, now, nbytes, frame=frame)

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
            shipment = self._shipment(origin, rollout, shard, rollout.decisions[shard])
            nbytes = rows.nbytes + header.nbytes
            shared.bytes_moved += nbytes
            shared.frames += 1
            grant.nbytes += nbytes
            grant.frames += 1
        self._put(shipment, layout, _kept(rows))
        grant.spent += shared.clock() - start
        return grant.answer

    def _settle(self, rollout: Rollout, shard: int, now: float) -> None:
        """Adds a grant's cost to the meter and forgets it. The caller holds `shared.lock`."""
        grant = rollout.grants.pop(shard, None)
        if grant is not None and grant.frames:
            self._shared.meter.went_on(now, grant.spent, grant.nbytes, grant.frames)


def _kept(rows: Any) -> Any:
    """Returns rows that can be kept beyond a direct call, in which they are XLA's own memory."""
    return rows.copy() if isinstance(rows, np.ndarray) else rows


def _asks_for(decision: Decision, rows: np.ndarray) -> bool:
    """Whether these are the rows, int32 [K], that a decision on given rows asks for."""
    request = decision.request
    return request is not None and rows.tobytes() == request.rows.tobytes()


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
