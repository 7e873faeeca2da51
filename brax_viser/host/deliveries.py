"""Passes on what is copied from a device while its next steps are already under way."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from brax_viser.host.decider import Decider
from brax_viser.host.rollout import Rollout
from brax_viser.host.selection import Ranking
from brax_viser.records.decision import Decision
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import (
    FINITE,
    GIVEN,
    INF,
    MOST_WATCHED,
    NAN,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    TERMINATED,
    Layout,
    Origin,
    unpack,
)
from brax_viser.records.ranking import keys, measured


class Shipment(NamedTuple):
    """One step of one device of which something is sent, as it was when that was decided."""

    origin: Origin
    rollout: Rollout
    shard: int
    env_steps: int
    decision: Decision
    refreshed: int  # `hold.refreshes` before anything was sent
    shown: bool = True  # see `Packet.shown`
    until_env: int | None = None
    """The environment whose end of episode, in this step, holds the training at this very step."""


class Deliveries(Decider):
    """The host's end of `launch.Launch`. XLA's thread calls `decide`, `shipment` and `sent` while
    it enqueues a step; another thread calls the rest once the copies have arrived."""

    def is_held(self) -> bool:
        """Whether the training must stop, or is advanced by steps."""
        return self._shared.hold.paused

    def basis(self, role: str) -> tuple[object, ...]:
        """Returns all that a decision to let steps pass depends on, besides time."""
        shared = self._shared
        return (
            shared.control,
            shared.selection,
            shared.selected_env,
            shared.hold.paused,
            shared.findings.rearmed,
            self.rollouts.get(role),
        )

    @property
    def waits(self) -> bool:
        """Whether the training waits, rather than steps be dropped, when many copies are under way:
        a stretch has all of its steps, and the step of a hold is not sent again. Others are
        dropped in "latest"."""
        control = self._shared.control
        return control.mode != "latest" or control.recording or self._shared.hold.paused

    def shipment(self, origin: Origin, shard: int, decision: Decision, ahead: int = 0) -> Shipment:
        """Notes what a decision was made for; `ahead`: steps since the last decision."""
        return self._shipment(origin, self.rollouts[origin.role], shard, decision, ahead)

    def _shipment(
        self, origin: Origin, rollout: Rollout, shard: int, decision: Decision, ahead: int = 0
    ) -> Shipment:
        env_steps = rollout.steps.of[shard].env_steps + ahead
        hold = self._shared.hold
        refreshed, until_env = hold.refreshes, hold.until_env
        shown = shard not in rollout.unshown
        return Shipment(origin, rollout, shard, env_steps, decision, refreshed, shown, until_env)

    def stops_within(self, shipment: Shipment) -> bool:
        """Whether what a step contains may hold the training at that very step."""
        return shipment.until_env is not None

    def sent(self, shipment: Shipment) -> Decision:
        """Decides what else to copy of a step, once the copies decided on so far are enqueued.
        Holds the training there if it must."""
        shared, rollout, shard = self._shared, shipment.rollout, shipment.shard
        origin, decision = shipment.origin, shipment.decision
        with shared.lock:
            if decision.push == PUSH_MODEL and decision.request is not None:
                rollout.models |= decision.request.envs
            decision = self._decision(rollout, origin, shard, push=decision.push == PUSH_MODEL)
        return self._held(decision, rollout, origin, shard, shipment.refreshed)

    def _decision(self, rollout: Rollout, origin: Origin, shard: int, *, push: bool) -> Decision:
        """See `Decider`. A device sends all of its models at once, and need not send them again."""
        decision = super()._decision(rollout, origin, shard, push=push)
        if decision.push != PUSH_MODEL or shard not in rollout.model_rows:
            return decision
        self._put_models(rollout, origin, shard, decision)
        assert decision.request is not None
        rollout.models |= decision.request.envs
        return super()._decision(rollout, origin, shard, push=push)

    def failed(self, where: str, error: Exception) -> None:
        """Reports a fault of our own; the training goes on."""
        self._shared.failed(where, error)

    def arrived(
        self,
        shipment: Shipment,
        layout: Layout,
        rows: np.ndarray,
        detail: np.ndarray | None,
        seconds: float,
    ) -> None:
        """Passes on a frame.

        Args:
            shipment: the step.
            layout: of `rows`.
            rows: float32 [K', D], of the environments that were asked for.
            detail: float32 [E], of the environment whose details were asked for; None if none were.
            seconds: s, duration of the copies.
        """
        if self._is_over(shipment):
            return
        if self.stops_within(shipment):
            self._end(shipment, unpack(layout, rows)["since_termination"])
        flat = rows if detail is None else np.concatenate([rows.ravel(), detail])
        self._put(shipment, layout, flat)
        self._count(flat.nbytes, seconds, frames=int(shipment.shown))

    def models_arrived(
        self, shipment: Shipment, leaves: Mapping[str, np.ndarray], seconds: float
    ) -> None:
        """Passes on the fields in which models differ, arrays [N, ...] of all environments."""
        if self._is_over(shipment):
            return
        rollout, shard, origin = shipment.rollout, shipment.shard, shipment.origin
        # Kept, so that another choice of environments needs no further copy.
        rollout.model_rows[shard] = _packed([leaves[name] for name, _ in origin.model])
        self._put_models(rollout, origin, shard, shipment.decision)
        self._count(sum(x.nbytes for x in leaves.values()), seconds)

    def _put_models(self, rollout: Rollout, origin: Origin, shard: int, decision: Decision) -> None:
        """Passes on those of a device's models that a decision asks for."""
        request = decision.request
        assert request is not None
        packet = ModelPacket(
            source=self,
            role=origin.role,
            env_index=request.mine,
            num_envs=rollout.num_envs,
            layout=origin.model,
            rows=rollout.model_rows[shard][request.rows[: len(request.mine)]],
        )
        self._shared.mailbox.put_model(packet)

    def rank(
        self,
        shipment: Shipment,
        layout: Layout,
        rows: np.ndarray,
        numbers: Mapping[str, np.ndarray],
        last: tuple[Layout, np.ndarray] | None,
        seconds: float,
    ) -> None:
        """Ranks all environments of a device, and passes on the frame if that completes a choice.

        Args:
            shipment: the step.
            layout: of `rows`.
            rows: float32 [N, D], of all environments.
            numbers: arrays [N], for `ranking.keys`.
            last: layout and values, float32 [N, C], that replace those of the same names where
                terminated environments are shown; None if these are not wanted.
            seconds: s, duration of the copies.
        """
        if self._is_over(shipment):
            return
        shared, origin, rollout = self._shared, shipment.origin, shipment.rollout
        shard, rule = shipment.shard, shipment.decision.rule
        tier, key = keys(np, rule, numbers)
        index = np.lexsort((np.arange(len(key)), key, tier))[: origin.num_rows].astype(np.int32)
        first = {name: x[index] for name, x in numbers.items()}
        tier, measure = measured(np, rule, first)
        env_index = shard * origin.num_envs + index
        if rule == TERMINATED and last is not None:
            fallen = rows[index]
            fields = unpack(layout, fallen)
            for name, x in unpack(last[0], last[1][index]).items():
                fields[name][...] = x
            self._put(shipment, layout, fallen, env_index)
        ranking = Ranking(
            env_index,
            measure.astype(np.float32),
            first["since_termination"],
            first["finite"],
            tier,
        )
        with shared.lock:
            shared.ranked(self, origin.role, rollout, shard, rule, ranking)
            # While it is held, the device is asked again, by `hold.refresh`.
            decision = self._decision(rollout, origin, shard, push=not shared.hold.paused)
        self._count(rows.nbytes, seconds)
        if decision.rule == GIVEN and decision.push in (PUSH, PUSH_COORDINATES):
            request = decision.request
            assert request is not None
            shown = rows[request.rows[: len(request.mine)]]
            self.arrived(shipment._replace(decision=decision), layout, shown, None, 0.0)

    def counted(self, shipment: Shipment, count: int) -> None:
        """Notices a reset, after which models may differ from those before.

        Args:
            shipment: the step.
            count: steps since the reset, as the state counts them.
        """
        counts, shard = shipment.rollout.counts, shipment.shard
        before, at = counts.get(shard, (count, shipment.env_steps))
        counts[shard] = count, shipment.env_steps
        if count < before + shipment.env_steps - at:
            with self._shared.lock:
                shipment.rollout.models.clear()
                shipment.rollout.model_rows.clear()

    def looked_through(
        self, shipment: Shipment, flags: np.ndarray, ever: np.ndarray, *, watching: bool
    ) -> None:
        """Looks for NaN and Inf that are not known yet.

        Args:
            shipment: the step.
            flags: int32 [N], see `protocol.MOST_WATCHED`, of this step.
            ever: int32 [N], of all steps since the reset.
            watching: whether each step is looked through.
        """
        if self._is_over(shipment):
            return
        shared, rollout, shard = self._shared, shipment.rollout, shipment.shard
        none = np.zeros_like(flags)
        known, known_ever = rollout.nonfinite.get(shard, (none, none))
        new = (flags & ~known) | (ever & ~known_ever)
        rollout.nonfinite[shard] = (flags.copy() if watching else known | flags), ever.copy()
        if not new.any():
            return
        names = shipment.origin.watched
        shifts = [2 * min(i, MOST_WATCHED - 1) for i in range(len(names))]
        # An Inf in an observation may be there by design.
        grave = [
            (NAN if name.startswith("observation") else NAN | INF) << shift
            for name, shift in zip(names, shifts, strict=True)
        ]
        graver = (new & np.bitwise_or.reduce(grave)) != 0
        row = int(np.argmax((new != 0).astype(int) + graver))
        kinds = [_kind(int(new[row]) >> shift) for shift in shifts]
        report = [row, int((new != 0).sum()), int(watching), *kinds]
        with shared.lock:
            found = self._found(
                rollout,
                shipment.origin,
                shard,
                report,
                shipment.env_steps,
                consecutive=False,
                each_reward=False,
            )
        if found is not None:
            shared.tell(found)

    def _is_over(self, shipment: Shipment) -> bool:
        """Whether another training has begun since."""
        return self.rollouts.get(shipment.origin.role) is not shipment.rollout

    def _put(
        self,
        shipment: Shipment,
        layout: Layout,
        rows: np.ndarray,
        ranked: np.ndarray | None = None,
    ) -> None:
        """Passes on the rows that were asked for, or those of the environments that were `ranked`
        first, int32 [K], by their indices over all devices."""
        origin, rollout, shard, env_steps, decision, _, shown, _ = shipment
        if ranked is not None:
            mine = here = ranked
        else:
            assert decision.request is not None
            mine, here = decision.request.mine, decision.request.here
        packet = Packet(
            source=self,
            role=origin.role,
            shard=shard,
            env_steps=env_steps,
            env_index=mine,
            drawn=here,
            num_envs=rollout.num_envs,
            layout=layout,
            rows=rows,
            # A flat array has a detail after its rows.
            detail_env=decision.detail_env if rows.ndim == 1 else None,
            detail_layout=origin.detail,
            ranked=ranked is not None,
            shown=shown,
        )
        self._shared.mailbox.put(packet, wait=self._shared.control.mode == "every_step")

    def _end(self, shipment: Shipment, since_termination: np.ndarray) -> None:
        """Holds the training if an awaited episode has ended; `since_termination` is int32 [K], of
        the drawn environments."""
        hold, request = self._shared.hold, shipment.decision.request
        assert request is not None
        ended = since_termination[: len(request.mine)] == 0
        # Another one may be awaited since.
        awaited = shipment.until_env == hold.until_env
        if awaited and shipment.until_env in request.mine[ended].tolist():
            hold.terminated(shipment.origin.role, shipment.env_steps)

    def _count(self, nbytes: int, seconds: float, *, frames: int = 0) -> None:
        shared = self._shared
        with shared.lock:
            shared.bytes_moved += nbytes
            shared.frames += frames
            shared.meter.copied(shared.clock(), seconds, nbytes, frames)


def _kind(bits: int) -> int:
    """Returns the worst kind that two bits stand for."""
    return NAN if bits & NAN else INF if bits & INF else FINITE


def _packed(fields: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.reshape(len(x), -1).astype(np.float32) for x in fields], axis=1)
