"""One host call per *batched* environment step, from inside whatever `vmap`s the trainer uses.

A plain `io_callback` under `vmap` runs once per environment. `emit` carries a batching rule of
its own that swallows every batch axis first, and then asks the host with one call:

    skipped step    countdown - 1, nothing else: one compare
    due step        ask(...)  -> push?, skip, rows     two integers go out, 2 + K come back
      if push       push(...) -> skip                  K rows gathered on the device go out

The integer that comes back is how many steps to let pass before the next call. It is stored in
the environment's state, so no call is dead code, and it is how the switch, the pacing and the
selection work without recompiling anything.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

FRESH = -1
"""Countdown of a state that `reset` has just made: its first step asks, and says it is fresh."""

Payload = Mapping[str, jax.Array]
"""What one step shows, name -> [*batch, ...] array."""

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""(name, shape of one row) of each payload field, in the order in which `push` packs them."""


class Origin(NamedTuple):
    """Where a call comes from: fixed when the step is traced, so it costs nothing at run time."""

    role: str  # "train" | "eval"
    num_envs: int  # environments in this shard's batch
    num_shards: int  # devices that step a batch each


class Host(Protocol):
    """The two functions that the device calls. They run on XLA's threads and must not raise."""

    capacity: int
    """K: rows that one `push` may carry; the grid's number of cells."""

    def ask(self, origin: Origin, query: jax.Array) -> np.ndarray:
        """`query` int32 [2]: (countdown or FRESH, shard) -> int32 [2 + K]: (push?, skip, *rows)."""
        ...

    def push(
        self, origin: Origin, layout: Layout, header: jax.Array, rows: jax.Array
    ) -> np.ndarray:
        """`header` int32 [2]: (skip, shard); `rows` float32 [K, D] -> int32 []: skip."""
        ...


def emit(
    host: Host,
    role: str,
    countdown: jax.Array,
    shard: jax.Array,
    num_shards: int,
    payload: Payload,
    *,
    state_is_kept: bool = False,
) -> jax.Array:
    """Offers one step to the host and returns the countdown to store in the state.

    The call is an `io_callback`, whose side effect keeps it alive where the final state is thrown
    away. But a side effect also stops XLA from moving loop invariants out of the trainer's loop,
    which makes the whole training slower, watched or not: by 4 to 8 % for 64 ants on two cores.
    Where the caller's program returns the state, the countdown in it keeps the call alive, and a
    `pure_callback` does without.

    Args:
        host: who is asked.
        role: "train" or "eval".
        countdown: int32 [*batch], the value that the last call returned, or `FRESH`.
        shard: int32 [], index of this device's part of the batch.
        num_shards: how many parts there are.
        payload: arrays [*batch, ...] of any real dtype; float32 is what travels.
        state_is_kept: whether the program around returns the state. If it says so and does not,
            nothing is seen; what is computed is the same in any case.

    Returns:
        int32 [*batch], all elements alike.
    """
    # A callback has no derivative and must not ask for one: APG differentiates through steps.
    payload = {name: jax.lax.stop_gradient(jnp.asarray(x)) for name, x in payload.items()}
    callback = jax.pure_callback if state_is_kept else io_callback
    call = functools.partial(_emit_batch, callback, host, role, num_shards)
    return _swallow_batch_axes(call)(countdown, shard, payload)


def _swallow_batch_axes(call: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`call(countdown, shard, payload)` that sees a `vmap` as one more leading axis."""
    once = custom_vmap(call)

    @once.def_vmap
    def batched(axis_size, in_batched, countdown, shard, payload):
        def spread(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))

        countdown_batched, shard_batched, payload_batched = in_batched
        countdown = spread(countdown, countdown_batched)
        payload = jax.tree.map(spread, payload, payload_batched)
        shard = shard[0] if shard_batched else shard
        # Wrapped again, because the vmap outside of this one must be swallowed too.
        return _swallow_batch_axes(call)(countdown, shard, payload), True

    return once


def _emit_batch(
    callback: Callable[..., jax.Array],
    host: Host,
    role: str,
    num_shards: int,
    countdown: jax.Array,
    shard: jax.Array,
    payload: Payload,
) -> jax.Array:
    """The whole batch at once: countdown [*batch], payload [*batch, ...]."""
    batch = countdown.shape
    num_envs = math.prod(batch)
    origin = Origin(role, num_envs, num_shards)
    num_rows = min(host.capacity, num_envs)
    layout = tuple((name, x.shape[len(batch) :]) for name, x in payload.items())

    # A scalar predicate keeps `cond` a real branch; a batched one would run both sides. The
    # maximum, because a reset of some environments must not call the host for all of them.
    left = jnp.max(countdown)

    def due(operands: Payload) -> jax.Array:
        answer = callback(
            functools.partial(host.ask, origin),
            jax.ShapeDtypeStruct((2 + num_rows,), jnp.int32),
            jnp.stack([left, shard]),
        )
        push, skip, rows = answer[0] > 0, answer[1], answer[2:]

        def send(operands: Payload) -> jax.Array:
            return callback(
                functools.partial(host.push, origin, layout),
                jax.ShapeDtypeStruct((), jnp.int32),
                jnp.stack([skip, shard]),
                # One packed array: each argument of a callback costs a transfer of its own.
                jnp.concatenate([_rows(x, len(batch), rows) for x in operands.values()], axis=1),
            )

        return jax.lax.cond(push, send, lambda _: skip, operands)

    skip = jax.lax.cond(left <= 0, due, lambda _: left - 1, dict(payload))
    return jnp.broadcast_to(skip, batch)


def _rows(x: jax.Array, num_batch_axes: int, rows: jax.Array) -> jax.Array:
    """The chosen environments of a [*batch, ...] array, as float32 [K, D]."""
    flat = x.reshape(math.prod(x.shape[:num_batch_axes]), -1)
    return jnp.take(flat, rows, axis=0, mode="clip").astype(jnp.float32)


def unpack(layout: Layout, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Undoes the packing of `push`: float32 [K, D] -> name -> [K, ...] views."""
    fields, start = {}, 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        fields[name] = rows[:, start:stop].reshape(len(rows), *shape)
        start = stop
    return fields


def shard_of_this_device() -> tuple[jax.Array, int]:
    """(index, count) of the manual (pmap, shard_map) axes around the caller, while tracing.

    Folds all of them, so that no trainer's axis name needs to be known. Outside: (0, 1).
    """
    mesh = jax.sharding.get_abstract_mesh()
    index, count = jnp.zeros((), jnp.int32), 1
    for name in mesh.axis_names:
        if name in mesh.manual_axes:
            size = mesh.shape[name]
            index = index * size + jax.lax.axis_index(name).astype(jnp.int32)
            count *= size
    return index, count
