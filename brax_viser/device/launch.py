"""Calls the host when XLA *enqueues* a step: the way of CUDA, where asking the device would stall.

The program has no branch, and the host returns nothing to it. Each step passes its buffers to
`Launch`, on the thread that enqueues the program, usually before the device has begun the step:

    the step isn't wanted   return
    wanted                  have the device copy the rows to pinned memory, after this step
    held                    wait: what was enqueued is finished, the next step is not begun

The copies arrive on another thread, which passes them on (`memory.Arrivals`). As the host decides
without a predicate on the device, nothing waits for the device, unless a step's own contents may
hold the training there (a NaN, or the end of an episode).
"""

import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

from brax_viser.device import watch
from brax_viser.device.cuda import CudaDriver
from brax_viser.device.host_call import run_by_itself
from brax_viser.device.lead import Lead
from brax_viser.device.memory import Arrivals, HostMemory, Memory, Take, Then
from brax_viser.device.packing import Payload
from brax_viser.records.decision import Decision
from brax_viser.records.protocol import (
    FOREVER,
    GIVEN,
    PUSH_COORDINATES,
    PUSH_MODEL,
    TERMINATED,
    Layout,
    Origin,
)

POLL_SECONDS = 0.2
"""How often all environments are looked through for NaN and Inf."""

NUMBERS = (
    "since_termination",
    "episode_return",
    "episode_length",
    "finished_return",
    "finished_length",
)
"""Fields of a payload by which environments are ranked."""

FLAGS = ("flags", "ever")
"""Buffers that say what is NaN or Inf: in this step, and in all steps since the reset."""


class Host(Protocol):
    """The functions that a launch calls: see `host.deliveries.Deliveries`. None may raise."""

    capacity: int
    lanes: dict[tuple[str, int], Any]
    waits: bool

    def is_held(self) -> bool: ...
    def basis(self, role: str) -> tuple[object, ...]: ...
    def decide(self, origin: Origin, countdown: int, shard: int, *, hidden: bool) -> Decision: ...
    def shipment(self, origin: Origin, shard: int, decision: Decision, ahead: int = 0) -> Any: ...
    def stops_within(self, shipment: Any) -> bool: ...
    def sent(self, shipment: Any) -> Decision: ...
    def arrived(
        self,
        shipment: Any,
        layout: Layout,
        rows: np.ndarray,
        detail: np.ndarray | None,
        seconds: float,
    ) -> None: ...
    def models_arrived(
        self, shipment: Any, leaves: Mapping[str, np.ndarray], seconds: float
    ) -> None: ...
    def rank(
        self,
        shipment: Any,
        layout: Layout,
        rows: np.ndarray,
        numbers: Mapping[str, np.ndarray],
        last: tuple[Layout, np.ndarray] | None,
        seconds: float,
    ) -> None: ...
    def counted(self, shipment: Any, count: int) -> None: ...
    def looked_through(
        self, shipment: Any, flags: np.ndarray, ever: np.ndarray, *, watching: bool
    ) -> None: ...
    def failed(self, where: str, error: Exception) -> None: ...


def offer(
    host: Host,
    origin: Origin,
    layout: Layout,
    shard: jax.Array,
    count: jax.Array,
    ever: jax.Array,
    payload: Payload,
    inspected: Payload,
    model: Payload,
    detail: Payload,
    coordinates: Payload,
    last: Payload,
    *,
    kept_alive: bool,
) -> tuple[jax.Array, jax.Array]:
    """Offers one step of a whole batch to the host.

    Args:
        host: receives the calls.
        origin: the origin of the call.
        layout: of the rows: the payload's, and "finite".
        shard: int32 [], the device's part of the batch.
        count: int32 [N], steps since the reset, or `protocol.FRESH`.
        ever: int32 [N], flags of all steps since the reset: see `protocol.MOST_WATCHED`.
        payload: arrays [N, ...], as for `emit.emit`; likewise `inspected` to `last`.
        kept_alive: whether the surrounding program uses the results.

    Returns:
        The next step's `count` and `ever`.
    """
    flags = watch.flags(watch.watched(payload, inspected)) if origin.watched else 0 * ever
    ever = ever | flags
    sound = (flags == 0) & jnp.isfinite(payload["episode_return"])
    groups = {
        "rows": {**payload, "finite": sound},
        "model": model,
        "detail": detail,
        "places": coordinates,
        "last": last,
    }
    # As they are: to pack them would take the device's time in each step.
    buffers = {"shard": shard, "count": count + 1, "flags": flags, "ever": ever}
    for group, fields in groups.items():
        buffers |= {f"{group}/{name}": _plain(x) for name, x in fields.items()}
    layouts = {
        "rows": layout,
        "places": origin.coordinates,
        "detail": origin.detail,
        "last": tuple((name, x.shape[1:]) for name, x in last.items()),
    }
    names = tuple(buffers)
    count = _launch_p.bind(
        *buffers.values(),
        launch=lambda memory: Launch(host, origin, layouts, names, memory),
        counted=names.index("count"),
        kept_alive=kept_alive,
    )
    return count, ever


def _plain(x: jax.Array) -> jax.Array:
    """Returns the array, as float32 if its type is one that numpy does not know, as bfloat16 is:
    such buffers do not tell their addresses."""
    return x if x.dtype.kind in "biuf" else x.astype(jnp.float32)


@dataclass
class _Lane:
    """What is kept between the steps of one device."""

    shard: int
    skip: int = 0  # steps that the last decision lets pass
    left: int = 0  # those of them that are still to come
    watched: bool = False  # whether each of them must be looked through for NaN and Inf
    basis: tuple[object, ...] = ()  # what the last decision depends on
    polled: float = -np.inf  # s, when all environments were last looked through
    lead: Lead = field(default_factory=Lead)


class Launch:
    """Receives the buffers of one traced step each time that XLA enqueues it."""

    def __init__(
        self,
        host: Host,
        origin: Origin,
        layouts: Mapping[str, Layout],
        names: Sequence[str],
        memory: Callable[[Any], Memory],
    ):
        self._host, self._origin, self._layouts = host, origin, layouts
        self._names, self._memory = names, memory

    def __call__(self, context: Any, out: Any, *buffers: Any) -> None:
        # Catch everything: raising here would end the user's training.
        try:
            self._step(self._memory(context), dict(zip(self._names, buffers, strict=True)))
        except Exception as error:
            self._failed(error)

    def _step(self, memory: Memory, buffers: dict[str, Any]) -> None:
        host, origin = self._host, self._origin
        key = origin.role, memory.device_of(buffers["shard"])
        lane = host.lanes.get(key)
        if lane is None:
            lane = host.lanes[key] = _Lane(int(memory.read(buffers["shard"])))
        if lane.skip < FOREVER:  # else the viewer is closed
            # A device that waits for another must come to the hold, to tell it where to stop.
            memory.follow(lane.lead, host.is_held)
        basis = host.basis(origin.role)
        if lane.watched and basis[-1] is lane.basis[-1]:
            # The steps since that of the last decision, this one included.
            self._look_through(memory, buffers, lane, ahead=lane.skip - lane.left + 1)
            memory.finish()
            basis = host.basis(origin.role)
        if lane.left > 0 and basis == lane.basis:
            lane.left -= 1
            return
        decision = host.decide(origin, lane.left, lane.shard, hidden=memory.is_ahead)
        # At once, as the host counts by it: what follows may fail.
        lane.left = lane.skip = decision.skip
        if not lane.watched and time.monotonic() - lane.polled > POLL_SECONDS:
            self._look_through(memory, buffers, lane)
        while decision.push:
            shipment = host.shipment(origin, lane.shard, decision)
            self._send(memory, buffers, decision, shipment)
            if host.stops_within(shipment):
                memory.finish()
            decision = host.sent(shipment)
        lane.left = lane.skip = decision.skip
        lane.watched, lane.basis = decision.watched, basis

    def _look_through(
        self, memory: Memory, buffers: Mapping[str, Any], lane: _Lane, ahead: int = 0
    ) -> None:
        """Looks through all environments; `ahead`: steps since the last decision."""
        host, watching = self._host, lane.watched
        lane.polled = time.monotonic()
        if not self._origin.watched:
            return
        shipment = host.shipment(self._origin, lane.shard, Decision(), ahead)

        def then(arrays: Sequence[np.ndarray], seconds: float) -> None:
            host.looked_through(shipment, *arrays, watching=watching)

        takes = [Take(buffers[name]) for name in FLAGS]
        memory.send(takes, then, self._failed, wait=watching)

    def _send(
        self, memory: Memory, buffers: Mapping[str, Any], decision: Decision, shipment: Any
    ) -> None:
        """Has the device copy what a decision asks for."""
        if decision.push == PUSH_MODEL:
            send = self._models
        elif decision.rule == GIVEN:
            send = self._chosen
        else:
            send = self._all
        takes, then = send(buffers, decision, shipment)
        # Models are sent once, so they are never dropped.
        wait = self._host.waits or decision.push == PUSH_MODEL
        memory.send(takes, then, self._failed, wait=wait)

    def _failed(self, error: Exception) -> None:
        self._host.failed("launch", error)

    def _fields(
        self, buffers: Mapping[str, Any], group: str, rows: np.ndarray | None = None
    ) -> list[Take]:
        return [Take(buffers[f"{group}/{name}"], rows) for name, _ in self._layouts[group]]

    def _chosen(
        self, buffers: Mapping[str, Any], decision: Decision, shipment: Any
    ) -> tuple[list[Take], Then]:
        host, origin, request = self._host, self._origin, decision.request
        assert request is not None
        local, layout = request.rows[: len(request.mine)], self._layouts["rows"]
        takes = self._fields(buffers, "rows", local)
        if decision.push == PUSH_COORDINATES:
            takes += self._fields(buffers, "places", local)
            layout = (*layout, *origin.coordinates)
        env = decision.detail_env
        beside = len(takes)
        if env is not None:
            takes += self._fields(buffers, "detail", np.array([env % origin.num_envs]))

        def then(arrays: Sequence[np.ndarray], seconds: float) -> None:
            count, *fields = arrays
            detail = None if env is None else _packed(fields[beside:])[0]
            host.arrived(shipment, layout, _packed(fields[:beside]), detail, seconds)
            host.counted(shipment, int(count[0]))

        return [Take(buffers["count"], np.zeros(1, int)), *takes], then

    def _all(
        self, buffers: Mapping[str, Any], decision: Decision, shipment: Any
    ) -> tuple[list[Take], Then]:
        host, layout, fallen = self._host, self._layouts["rows"], self._layouts["last"]
        takes = self._fields(buffers, "rows")
        falls = decision.rule == TERMINATED and bool(fallen)
        if falls:
            takes += self._fields(buffers, "last")

        def then(arrays: Sequence[np.ndarray], seconds: float) -> None:
            fields, others = arrays[: len(layout)], arrays[len(layout) :]
            named = {name: x for (name, _), x in zip(layout, fields, strict=True)}
            numbers = {name: named[name] for name in (*NUMBERS, "finite") if name in named}
            last = (fallen, _packed(others)) if falls else None
            host.rank(shipment, layout, _packed(fields), numbers, last, seconds)

        return takes, then

    def _models(
        self, buffers: Mapping[str, Any], decision: Decision, shipment: Any
    ) -> tuple[list[Take], Then]:
        host, names = self._host, [name for name, _ in self._origin.model]

        def then(arrays: Sequence[np.ndarray], seconds: float) -> None:
            host.models_arrived(shipment, dict(zip(names, arrays, strict=True)), seconds)

        return [Take(buffers[f"model/{name}"]) for name in names], then


def _packed(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Packs arrays [K, ...] into float32 [K, D]."""
    flat = [x.reshape(len(x), math.prod(x.shape[1:])) for x in fields]
    return np.concatenate([x.astype(np.float32, copy=False) for x in flat], axis=1)


_launch_p = Primitive("brax_viser_launch")


def _abstract(*operands: Any, counted: int, **_: Any) -> ShapedArray:
    count = operands[counted]
    return ShapedArray(count.shape, count.dtype)


def _lower(
    ctx: Any,
    *operands: Any,
    launch: Callable[..., Launch],
    counted: int,
    kept_alive: bool,
    **_: Any,
) -> Any:
    # Where it is missing, `host_call.launches_are_known` has said so.
    from jax.experimental.buffer_callback import buffer_callback

    (platform,) = ctx.module_context.platforms
    memory = on_cpu if platform == "cpu" else on_cuda

    def call(*arrays: jax.Array) -> jax.Array:
        count = arrays[counted]
        callback = buffer_callback(
            launch(memory()),
            jax.ShapeDtypeStruct(count.shape, count.dtype),
            has_side_effect=not kept_alive,
            # The host writes nothing: the result is the count itself.
            input_output_aliases={counted: 0},
        )
        return callback(*arrays)

    return mlir.lower_fun(call, multiple_results=False)(ctx, *operands)


_launch_p.def_impl(run_by_itself(_launch_p))
_launch_p.def_abstract_eval(_abstract)
mlir.register_lowering(_launch_p, _lower, cacheable=False)


def on_cpu() -> Callable[[Any], Memory]:
    """Returns a function from a call's context to its memory, for programs on the CPU."""
    memory = HostMemory()
    return lambda context: memory


@functools.cache
def on_cuda() -> Callable[[Any], Memory]:
    """Returns such a function for programs on CUDA. All share the threads for what arrives."""
    arrivals, lock = functools.cache(lambda: Arrivals(CudaDriver())), threading.Lock()

    def memory(context: Any) -> Memory:
        # When first called, as programs are also lowered where there is no CUDA.
        with lock:
            found = arrivals()
        return found.on(context.stream)

    return memory
