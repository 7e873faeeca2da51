"""Calls the host once per *batched* environment step, inside any `vmap`s that the trainer uses.

A plain `io_callback` under `vmap` runs once per environment. `emit` has its own batching rule,
which first gathers the whole batch, and then calls the host:

    skipped step    countdown - 1, nothing else: one compare
    due step        ask(...)  -> answer              two integers go out, 4 + K come back
    granted step    the answer to the last push replaces the `ask`; the state has kept its K rows
      while push    push(...) -> answer              K rows gathered on the device go out, with
                                                     all details of one of them, or with the
                                                     coordinates of all of them
           or model push_model(...) -> answer        the fields in which K envs' models differ

An answer says whether to push rows of this step, which rows, and how many steps to let pass before
the next call. That number is stored in the environment's state, so the call is never dead code, and
the switch, the pacing, the selection and the hold work without recompiling anything. While only
rows (or rows and coordinates) are streamed step after step, the answer to a push authorises the
next push, so a step costs one call instead of two. A training is held by delaying an answer; since
an answer to a push may request another push, the page can switch environments during the hold.

A new NaN or Inf in the reward of any environment makes a step due; all other fields are checked
whenever a step is due, or at every step if an answer says so by `protocol.WATCHED`. New findings
are reported with the `ask`, and the host can hold the training at that very step.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from brax_viser.device import watch
from brax_viser.device.host_call import call_host
from brax_viser.device.ranking import finite, measured, top
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    FOREVER,
    GRANTED,
    GRANTED_COORDINATES,
    NO_ROW,
    NOBODY,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    TERMINATED,
    UNASKED,
    WATCHED,
    Layout,
    Origin,
)

Payload = Mapping[str, jax.Array]
"""The fields to show of one step, name -> [*batch, ...] array."""


class Host(Protocol):
    """The functions that the device calls. They run on XLA's threads and must not raise.

    All return an answer, int32 [4 + K]: (push?, skip, rule, detail, *rows), where push? is 0,
    `protocol.PUSH`, `protocol.PUSH_MODEL` or `protocol.PUSH_COORDINATES`. `skip` is the number of
    steps to let pass before the next `ask`; only that of the last answer, the one without a push,
    counts.

    If `skip` is `protocol.GRANTED`, the device pushes the next step without an `ask`: the rows of
    that answer, with the rule `protocol.UNASKED`. If it is `protocol.GRANTED_COORDINATES`, their
    coordinates are pushed too. If a reset discards the stored rows, the device falls back to `ask`.

    The rows are indices into the shard's batch if `rule` is `protocol.GIVEN`. Otherwise they are
    ignored, and the device chooses the K environments that the rule ranks first. `detail` is the
    index of the one environment whose details are wanted too, or -1.
    """

    capacity: int
    """K: the most rows that one `push` may carry; the grid's number of cells."""

    def ask(self, origin: Origin, query: jax.Array) -> np.ndarray:
        """Receives `query`, int32 [2]: countdown, which may be `protocol.FRESH`; shard.

        If a field has become NaN or Inf, the report follows, int32 [3 + F]: see `watch.report`.
        The countdown may then be above 0, because the finding made the step due early.
        """
        ...

    def push(
        self, origin: Origin, layout: Layout, header: jax.Array, rows: jax.Array
    ) -> np.ndarray:
        """Receives `header`, int32 [2 + 5 K]: shard, rule, `protocol.HEADER_COLUMNS`; and `rows`,
        float32 [K, D]. A numpy array is only valid until the function returns.

        With the rule `protocol.UNASKED`, the push also takes the place of an `ask`: the answer may
        request other rows of this step instead.

        If a detail was requested, `rows` is float32 [K * D + E]: the rows one after the other,
        then the detail with the layout `origin.detail`. If coordinates were requested, the rows and
        their `layout` include them, and a detail always follows if `origin.detail` has fields: of
        an arbitrary environment if none was requested.
        """
        ...

    def push_model(self, origin: Origin, shard: jax.Array, rows: jax.Array) -> np.ndarray:
        """Receives `shard`, int32 [], and `rows`, float32 [K, D], with the layout `origin.model`.

        Only for rows given by the host (`protocol.GIVEN`). Arrays are valid as in `push`.
        """
        ...


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
            the call alive, which is cheaper: see `host_call.call_host`. If this is wrongly True,
            the host sees no steps; the computed values are the same in any case.

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
            dict(model or {}),
            dict(detail or {}),
            dict(coordinates or {}),
            dict(last or {}),
        )
    )
    call = functools.partial(
        _emit_batch, host, role, num_shards, state_is_kept, nonfinite is not None
    )
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
    host: Host,
    role: str,
    num_shards: int,
    state_is_kept: bool,
    is_watched: bool,
    shard: jax.Array,
    countdown: jax.Array,
    granted_rows: jax.Array,
    nonfinite: jax.Array,
    payload: Payload,
    inspected: Payload,
    model: Payload,
    detail: Payload,
    coordinates: Payload,
    last: Payload,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Implements `emit` for the whole batch at once: all arrays are [*batch, ...]."""
    batch = countdown.shape
    num_envs = math.prod(batch)
    num_rows = min(host.capacity, num_envs)

    def layout_of(arrays: Payload) -> Layout:
        return tuple((name, x.shape[len(batch) :]) for name, x in arrays.items())

    layouts = (layout_of(arrays) for arrays in (model, detail, coordinates))
    names = tuple(watch.watched(payload, inspected)) if is_watched else ()
    origin = Origin(role, num_envs, num_shards, num_rows, *layouts, watched=names)
    layout = (*layout_of(payload), ("finite", ()))
    answer_shape = jax.ShapeDtypeStruct((ANSWER_HEAD + num_rows,), jnp.int32)
    ask = functools.partial(host.ask, origin)

    # A scalar predicate keeps `cond` a real branch; a batched one would run both branches. Take the
    # maximum, because a reset of some environments must not call the host for all of them.
    stored = jnp.max(countdown)
    watching = stored >= WATCHED
    left = jnp.where(watching, stored - WATCHED, stored)
    is_due = (left <= 0) | (left >= GRANTED)
    kept, known = granted_rows.ravel()[:num_rows], nonfinite.ravel()
    skipped = stored - 1, kept

    def due(operands: tuple[Any, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        fields, others, models, details, places, lasts = jax.tree.map(
            lambda x: x.reshape(num_envs, *x.shape[len(batch) :]), operands
        )

        def looked_through(fields: Payload, others: Payload) -> Payload:
            # The return of the last episode says nothing about this one.
            own = [x for name, x in fields.items() if name != "finished_return"]
            return {**fields, "finite": finite([*own, *others.values()])}

        def ranked(rule: jax.Array) -> jax.Array:
            return top(rule, looked_through(fields, others), num_rows)

        def send_rows(answer: jax.Array) -> jax.Array:
            rule, rows = answer[2], answer[ANSWER_HEAD:]
            # Ranking all environments is expensive: it gets a branch of its own.
            rows = jax.lax.cond(rule > 0, lambda: ranked(rule), lambda: rows)
            return send_chosen(rule, rows, instead=lasts)

        def send_detail(answer: jax.Array) -> jax.Array:
            return send_chosen(answer[2], answer[ANSWER_HEAD:], detail_of=answer[3:4])

        def send_coordinates(answer: jax.Array) -> jax.Array:
            rows, whose = answer[ANSWER_HEAD:], answer[3:4]
            return send_chosen(answer[2], rows, detail_of=whose if details else None, beside=places)

        def send_chosen(
            rule: jax.Array,
            rows: jax.Array,
            *,
            detail_of: jax.Array | None = None,
            beside: Payload | None = None,
            instead: Payload | None = None,
        ) -> jax.Array:
            chosen, besides = _take(fields, rows), _take(beside or {}, rows)
            # Check only the chosen, and only if they are sent: for 4,096 ants it takes 0.2 ms.
            chosen = dict(looked_through(chosen, _take(others, rows)))
            for name, x in _take(instead or {}, rows).items():
                chosen[name] = jnp.where(rule == TERMINATED, x, chosen[name])
            tier, measure = measured(rule, chosen)
            own = tuple((name, x.shape[1:]) for name, x in besides.items())
            push = functools.partial(host.push, origin, (*layout, *own))
            header = [
                jnp.stack([shard, rule]),
                rows,
                chosen["since_termination"],
                jax.lax.bitcast_convert_type(measure, jnp.int32),
                chosen["finite"].astype(jnp.int32),
                tier,
            ]
            packed = _packed({**chosen, **besides})
            if detail_of is not None:
                detail = _packed(_take(details, detail_of))
                packed = jnp.concatenate([packed.ravel(), detail.ravel()])
            return call_host(
                push, answer_shape, jnp.concatenate(header), packed, kept_alive=state_is_kept
            )

        def send_model(answer: jax.Array) -> jax.Array:
            return call_host(
                functools.partial(host.push_model, origin),
                answer_shape,
                shard,
                _packed(_take(models, answer[ANSWER_HEAD:])),
                kept_alive=state_is_kept,
            )

        def send_step(answer: jax.Array) -> jax.Array:
            if not details:
                return send_rows(answer)
            return jax.lax.cond(answer[3] == NOBODY, send_rows, send_detail, answer)

        def send_state(answer: jax.Array) -> jax.Array:
            if not places:
                return send_step(answer)
            return jax.lax.cond(answer[0] == PUSH_COORDINATES, send_coordinates, send_step, answer)

        def send(answer: jax.Array) -> jax.Array:
            if not models:
                return send_state(answer)
            return jax.lax.cond(answer[0] == PUSH_MODEL, send_model, send_state, answer)

        def asked() -> jax.Array:
            query = jnp.stack([left, shard])
            return call_host(ask, answer_shape, query, kept_alive=state_is_kept)

        def granted() -> jax.Array:
            with_places = (left == GRANTED_COORDINATES).astype(jnp.int32)
            push = PUSH + (PUSH_COORDINATES - PUSH) * with_places
            return jnp.concatenate([push[None], jnp.array([0, UNASKED, NOBODY], jnp.int32), kept])

        # A wrapper that replaces the states of some environments may have discarded the rows.
        is_granted = (left >= GRANTED) & (jnp.min(kept) > NO_ROW)

        def attend(first: jax.Array) -> tuple[jax.Array, jax.Array]:
            last = jax.lax.while_loop(lambda answer: answer[0] > 0, send, first)
            return last[1], last[ANSWER_HEAD:]

        if not is_watched:
            return *attend(jax.lax.cond(is_granted, granted, asked)), known

        kinds = {name: watch.kind(x) for name, x in watch.watched(fields, others).items()}
        bits = functools.reduce(jnp.bitwise_or, (watch.bits(n, k) for n, k in kinds.items()))
        new = bits & ~known
        finds = (new != 0).any()

        def told() -> jax.Array:
            head = jnp.stack([left, shard])
            query = jnp.concatenate([head, watch.report(new, kinds, watching)])
            return call_host(ask, answer_shape, query, kept_alive=state_is_kept)

        def attended() -> tuple[jax.Array, jax.Array]:
            usual = functools.partial(jax.lax.cond, is_granted, granted, asked)
            return attend(jax.lax.cond(finds, told, usual))

        skip, rows = jax.lax.cond(is_due | finds, attended, lambda: skipped)
        # A finding is reported once; an environment that recovers and fails again is only reported
        # again while every step is checked.
        return skip, rows, jnp.where(watching, bits, known | bits)

    operands = (dict(payload), dict(inspected), dict(model), dict(detail), dict(coordinates))
    operands = (*operands, dict(last))
    is_attended = is_due
    if is_watched:
        is_attended |= watching
        if "reward" in payload:  # skipped if the viewer is closed
            turned = watch.reward_turned(payload["reward"], nonfinite)
            is_attended |= turned & (left < FOREVER // 2)
    skip, rows, known = jax.lax.cond(is_attended, due, lambda _: (*skipped, known), operands)
    rows = jnp.concatenate([rows, jnp.full(num_envs - num_rows, NO_ROW, jnp.int32)])
    return jnp.broadcast_to(skip, batch), rows.reshape(batch), known.reshape(batch)


def _take(arrays: Payload, rows: jax.Array) -> Payload:
    """Takes rows [K, ...] from arrays [N, ...]."""
    return {name: _take_from(x, rows) for name, x in arrays.items()}


def _take_from(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take(x, rows, axis=0, mode="clip")


def _packed(rows: Payload) -> jax.Array:
    """Packs arrays [K, ...] into float32 [K, D], as each argument of a callback is a transfer."""
    return jnp.concatenate(
        [x.reshape(len(x), -1).astype(jnp.float32) for x in rows.values()], axis=1
    )


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
