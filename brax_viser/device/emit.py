"""One host call per *batched* environment step, from inside whatever `vmap`s the trainer uses.

A plain `io_callback` under `vmap` runs once per environment. `emit` carries a batching rule of
its own that swallows every batch axis first, and then talks to the host:

    skipped step    countdown - 1, nothing else: one compare
    due step        ask(...)  -> answer              two integers go out, 4 + K come back
    granted step    the last answer to a push, whose K rows the state has kept, stands in for one
      while push    push(...) -> answer              K rows gathered on the device go out, and
                                                     with them all that is known of one of them,
                                                     or the coordinates of them all
           or model push_model(...) -> answer        what differs between K envs' models goes out

An answer says whether to push rows of this very step, which ones, and how many steps to let pass
before the next call. That number is stored in the environment's state, so no call is dead code,
and it is how the switch, the pacing, the selection and the hold work without recompiling
anything. Of consecutive steps of which nothing but rows is wanted, or rows and coordinates, each
answer grants the next, which then takes one call, not two. A training is held by an answer that
does not come; and since an answer to a push may ask for another one, other environments can be
looked at meanwhile.

A reward that turns NaN or Inf makes a step due, in whatever environment it is; all else is looked
through whenever a step is due, or at every step where an answer says so by `protocol.WATCHED`. What
is new is told with the question, and the host can hold the training at that very step.
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
"""What one step shows, name -> [*batch, ...] array."""


class Host(Protocol):
    """The functions that the device calls. They run on XLA's threads and must not raise.

    All answer with int32 [4 + K]: (push?, skip, rule, detail, *rows), push? being 0,
    `protocol.PUSH`, `protocol.PUSH_MODEL` or `protocol.PUSH_COORDINATES`. `skip` is how many steps
    to let pass before the next `ask`; it counts with the answer that does not ask for a push.
    `protocol.GRANTED` in its place has the next step pushed without an `ask`: the rows of that
    answer, with `protocol.UNASKED` for a rule; `protocol.GRANTED_COORDINATES` has the coordinates
    pushed with them. What is kept for that can be lost with the state, and then an `ask` comes all
    the same.

    The rows are indices into the shard's batch where `rule` is `protocol.GIVEN`, and ignored
    otherwise: then the device chooses the K environments that the rule ranks first. `detail` is the
    index of the one environment of which all that is known is wanted too, or `protocol.NOBODY`.
    """

    capacity: int
    """K: rows that one `push` may carry; the grid's number of cells."""

    def ask(self, origin: Origin, query: jax.Array) -> np.ndarray:
        """`query` int32 [2]: (countdown, which can be `protocol.FRESH`, shard).

        Where something has turned NaN or Inf, the report of it follows, int32 [3 + F]: see
        `watch.report`. Then the countdown can be above 0, for the step has come before its time.
        """
        ...

    def push(
        self, origin: Origin, layout: Layout, header: jax.Array, rows: jax.Array
    ) -> np.ndarray:
        """`header` int32 [2 + 5 K]: shard, rule, `protocol.HEADER_COLUMNS`; `rows` float32 [K, D].

        With `protocol.UNASKED` for a rule it takes the place of an `ask` too: the answer may ask
        for other rows of this step, if those that came are not wanted.

        Where a detail was asked for, `rows` is float32 [K * D + E]: the rows, one after the other,
        and behind them the detail, laid out as `origin.detail` says. Where coordinates were asked
        for, they are in the rows and in their `layout`, and a detail is behind the rows, of
        whatever environment where nobody's was asked for. A numpy array handed in is only valid
        until the function returns.
        """
        ...

    def push_model(self, origin: Origin, shard: jax.Array, rows: jax.Array) -> np.ndarray:
        """`shard` int32 []; `rows` float32 [K, D], laid out as `origin.model` says.

        Only for rows that the host gave itself, and as valid as those of `push`.
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
    """Offers one step to the host and returns what to store in the state until the next.

    Args:
        host: who is asked.
        role: "train" or "eval".
        countdown: int32 [*batch], the value that the last call returned, or `protocol.FRESH`.
        granted_rows: int32 [*batch], as the last call returned it, or `protocol.NO_ROW`.
        shard: int32 [], index of this device's part of the batch.
        num_shards: how many parts there are.
        payload: arrays [*batch, ...] of any real dtype; float32 is what travels. Has the fields
            that `rank.top` needs. A field "finite" is added.
        inspected: a pytree of arrays [*batch, ...] that are looked through for NaN and Inf, as
            the payload is, and do not travel.
        model: arrays [*batch, ...] in which the environments' models differ. They travel when
            the host asks for them, which is not with each step.
        detail: arrays [*batch, ...] that travel for one environment, if the host asks for one.
        coordinates: arrays [*batch, ...] that travel with the rows, if the host asks for them.
        last: arrays [*batch, ...] that travel in the place of those of the payload, by name, where
            those that have just terminated are ranked.
        nonfinite: int32 [*batch], as the last call returned it, 0 at first: what is known not to be
            finite. None: nobody is told what turns NaN or Inf.
        state_is_kept: whether the program around returns the state. The countdown in it then
            keeps the call alive, which is cheaper: see `callback.call_host`. If it says so and
            does not, nothing is seen; what is computed is the same in any case.

    Returns:
        int32 [*batch], the countdown, all elements alike; and int32 [*batch], the granted rows:
        the first K of them, one after the other, and no more than a place to keep them. Where
        `nonfinite` is given, that as well.
    """
    # A callback has no derivative and must not ask for one: APG differentiates through steps.
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
    """Its leaves, by the way to them: "qvel", "observation/state"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def swallow_batch_axes(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call(shard, *arrays)` that sees a `vmap` as one more leading axis of the arrays."""

    def swallowing(*args: Any) -> Any:
        traced, out_shape = jax.make_jaxpr(call, return_shape=True)(*args)
        out_tree = jax.tree.structure(out_shape)

        # Constants of `call` are handed in. Left inside, they would be operands of `custom_vmap`
        # all the same; under a batched `cond` or `switch` JAX batches these too, which it refuses.
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
            # Wrapped again, because the vmap outside of this one must be swallowed too.
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
    """The whole batch at once: all arrays are [*batch, ...]."""
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

    # A scalar predicate keeps `cond` a real branch; a batched one would run both sides. The
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
            # That of an episode before says nothing of this one.
            own = [x for name, x in fields.items() if name != "finished_return"]
            return {**fields, "finite": finite([*own, *others.values()])}

        def ranked(rule: jax.Array) -> jax.Array:
            return top(rule, looked_through(fields, others), num_rows)

        def send_rows(answer: jax.Array) -> jax.Array:
            rule, rows = answer[2], answer[ANSWER_HEAD:]
            # Ranking all environments is worth a branch of its own.
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
            # Of the chosen alone, and only where they are sent: of 4,096 ants it takes 0.2 ms.
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

        # A wrapper that replaces the states of some environments may have replaced the rows.
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
        # Once is enough: an environment that is finite again, and then not, is told of anew only
        # while every step is looked through.
        return skip, rows, jnp.where(watching, bits, known | bits)

    operands = (dict(payload), dict(inspected), dict(model), dict(detail), dict(coordinates))
    operands = (*operands, dict(last))
    is_attended = is_due
    if is_watched:
        is_attended |= watching
        if "reward" in payload:  # the viewer may be closed: then nobody wants to know
            turned = watch.reward_turned(payload["reward"], nonfinite)
            is_attended |= turned & (left < FOREVER // 2)
    skip, rows, known = jax.lax.cond(is_attended, due, lambda _: (*skipped, known), operands)
    rows = jnp.concatenate([rows, jnp.full(num_envs - num_rows, NO_ROW, jnp.int32)])
    return jnp.broadcast_to(skip, batch), rows.reshape(batch), known.reshape(batch)


def _take(arrays: Payload, rows: jax.Array) -> Payload:
    """Arrays [K, ...], of arrays [N, ...]."""
    return {name: _take_from(x, rows) for name, x in arrays.items()}


def _take_from(x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.take(x, rows, axis=0, mode="clip")


def _packed(rows: Payload) -> jax.Array:
    """float32 [K, D], of arrays [K, ...]: each argument of a callback costs its own transfer."""
    return jnp.concatenate(
        [x.reshape(len(x), -1).astype(jnp.float32) for x in rows.values()], axis=1
    )


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
