"""Calls the host once per *batched* environment step, inside any `vmap`s that the trainer uses.

A plain `io_callback` under `vmap` runs once per environment. `emit` has its own batching rule,
which first gathers the whole batch, and then offers the step to the host, in one of two ways:
`countdown` on CPUs and TPUs, `launch` on CUDA. Which one is decided where a program is lowered, so
that a program for the CPU takes the CPU's way in a process that also has a GPU.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from brax_viser.device import countdown as by_countdown
from brax_viser.device import launch, watch
from brax_viser.device.countdown import Host
from brax_viser.device.packing import Payload
from brax_viser.device.platforms import by_platform
from brax_viser.records.protocol import Layout, Origin


def emit(
    host: Host,
    role: str,
    countdown: jax.Array,
    granted_rows: jax.Array,
    shard: jax.Array,
    num_shards: int,
    payload: Payload,
    *,
    inspected: Any = (),
    model: Payload | None = None,
    detail: Payload | None = None,
    coordinates: Payload | None = None,
    last: Payload | None = None,
    nonfinite: jax.Array | None = None,
    state_is_kept: bool = False,
) -> tuple[jax.Array, ...]:
    """Offers one step to the host and returns the values to store in the state for the next one.

    Args:
        host: receives the calls.
        role: "train" or "eval".
        countdown: int32 [*batch], as returned at the last step, or `protocol.FRESH`.
        granted_rows: int32 [*batch], as returned at the last step, or `protocol.NO_ROW`.
        shard: int32 [], index of this device's part of the batch.
        num_shards: number of parts.
        payload: arrays [*batch, ...] of any real dtype, sent as float32. Must have the fields
            that `ranking.top` needs, except "finite", which is added.
        inspected: a pytree of arrays [*batch, ...] that are checked for NaN and Inf, like the
            payload, but not sent.
        model: arrays [*batch, ...] in which the environments' models differ; sent when the host
            requests them, which is not at every step.
        detail: arrays [*batch, ...] that are sent for one environment on request.
        coordinates: arrays [*batch, ...] that are sent with the rows on request.
        last: arrays [*batch, ...] that replace the payload's arrays of the same names when the
            rule is `protocol.TERMINATED`.
        nonfinite: int32 [*batch], as returned at the last step, 0 at first: bits of the fields
            known not to be finite. None: NaN and Inf are not reported.
        state_is_kept: whether the surrounding program returns the state. Its countdown then keeps
            the call alive, which is cheaper: see `host_call.call_host`. If it does not, the host
            sees no steps. If False, tie what the program uses to the countdown: see `tie.tied`.

    Returns:
        int32 [*batch], the countdown, with all elements equal; and int32 [*batch], the granted
        rows: the first K elements, flattened, hold them; the others are unused. If `nonfinite`
        is given, its new value too.
    """
    # A callback has no derivative, and APG differentiates through steps.
    arrays = jax.lax.stop_gradient(
        (
            dict(payload),
            _named(inspected),
            *(dict(parts or {}) for parts in (model, detail, coordinates, last)),
        )
    )
    reports = nonfinite is not None
    call = functools.partial(_emit_batch, host, role, num_shards, state_is_kept, reports)
    known = jnp.zeros_like(countdown) if nonfinite is None else nonfinite
    kept = swallow_batch_axes(call)(shard, countdown, granted_rows, known, *arrays)
    return kept[:2] if nonfinite is None else kept


def _named(tree: Any) -> dict[str, jax.Array]:
    """Returns the leaves by their paths: "qvel", "observation/state"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def swallow_batch_axes(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `call(shard, *arrays)` such that a `vmap` adds one leading axis to its arrays."""

    def swallowing(*args: Any) -> Any:
        traced, out_shape = jax.make_jaxpr(call, return_shape=True)(*args)
        out_tree = jax.tree.structure(out_shape)

        # Pass the constants of `call` as arguments: as closed-over operands of `custom_vmap` they
        # would be batched under a batched `cond` or `switch`, which JAX refuses.
        @custom_vmap
        def once(_constants: Sequence[jax.Array], *args: Any) -> Any:
            evaluate = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, _constants))
            flat = evaluate(*jax.tree.leaves(args))
            return jax.tree.unflatten(out_tree, flat)

        @once.def_vmap
        def batched(axis_size, in_batched, _constants, shard, *arrays):
            def spread(x, is_batched):
                return x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))

            _, shard_batched, *arrays_batched = in_batched
            arrays = jax.tree.map(spread, arrays, tuple(arrays_batched))
            shard = shard[0] if shard_batched else shard
            # Wrap again, so that the next outer vmap adds an axis too.
            results = swallow_batch_axes(call)(shard, *arrays)
            return results, jax.tree.map(lambda _: True, results)

        return once(traced.consts, *args)

    return swallowing


def _emit_batch(
    host: Any,
    role: str,
    num_shards: int,
    state_is_kept: bool,
    is_watched: bool,
    shard: jax.Array,
    *arrays: Any,
) -> tuple[jax.Array, ...]:
    """Implements `emit` for the whole batch at once: all arrays are [*batch, ...]."""
    countdown, _, _, payload, inspected, model, detail, coordinates, _ = arrays
    batch = countdown.shape
    num_envs = math.prod(batch)

    def layout_of(arrays: Payload) -> Layout:
        return tuple((name, x.shape[len(batch) :]) for name, x in arrays.items())

    layouts = (layout_of(fields) for fields in (model, detail, coordinates))
    names = tuple(watch.watched(payload, inspected)) if is_watched else ()
    num_rows = min(host.capacity, num_envs)
    origin = Origin(role, num_envs, num_shards, num_rows, *layouts, watched=names)
    layout = (*layout_of(payload), ("finite", ()))
    arguments = shard, *arrays

    counted = functools.partial(by_countdown.offer, host, origin, layout)
    counted = functools.partial(counted, state_is_kept=state_is_kept)
    launched = functools.partial(_launched, host, origin, layout, state_is_kept)
    return tuple(by_platform(counted, launched, *arguments))


def _launched(
    host: Any,
    origin: Origin,
    layout: Layout,
    state_is_kept: bool,
    shard: jax.Array,
    countdown: jax.Array,
    granted_rows: jax.Array,
    nonfinite: jax.Array,
    *fields: Payload,
) -> tuple[jax.Array, ...]:
    """Offers the step by `launch.offer`: the countdown counts up, and rows stay as they are."""
    batch = countdown.shape
    flat = jax.tree.map(lambda x: x.reshape(origin.num_envs, *x.shape[len(batch) :]), fields)
    count, ever = launch.offer(
        host,
        origin,
        layout,
        shard,
        countdown.ravel(),
        nonfinite.ravel(),
        *flat,
        kept_alive=state_is_kept,
    )
    return count.reshape(batch), granted_rows, ever.reshape(batch)


def shard_of_this_device() -> tuple[jax.Array, int]:
    """Returns (index, count) over the manual (pmap, shard_map) axes around the caller, in tracing.

    Folds all axes into one, so that no trainer's axis name need be known. Without axes: (0, 1).
    """
    mesh = jax.sharding.get_abstract_mesh()
    index, count = jnp.zeros((), jnp.int32), 1
    for name in mesh.axis_names:
        if name in mesh.manual_axes:
            size = mesh.shape[name]
            index = index * size + jax.lax.axis_index(name).astype(jnp.int32)
            count *= size
    return index, count
