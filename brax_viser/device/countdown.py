"""Calls the host when a countdown in the state has run out: the way of CPUs and TPUs.

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
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from brax_viser.device import watch
from brax_viser.device.host_call import call_host
from brax_viser.device.packing import Payload, packed, taken
from brax_viser.device.ranking import finite, top
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    FOREVER,
    GRANTED,
    GRANTED_COORDINATES,
    NO_ENV,
    NO_ROW,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    TERMINATED,
    UNASKED,
    WATCHED,
    Layout,
    Origin,
)
from brax_viser.records.ranking import measured


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


def offer(
    host: Host,
    origin: Origin,
    layout: Layout,
    shard: jax.Array,
    countdown: jax.Array,
    granted_rows: jax.Array,
    nonfinite: jax.Array,
    *fields: Payload,
    state_is_kept: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Offers one step of a whole batch to the host.

    Args:
        host: receives the calls.
        origin: the origin of the calls.
        layout: of the rows: the payload's, and "finite".
        shard: as for `emit.emit`; likewise the next three, and `state_is_kept`.
        countdown: int32 [*batch].
        granted_rows: int32 [*batch].
        nonfinite: int32 [*batch].
        *fields: arrays [*batch, ...], see `_Step`.
        state_is_kept: whether the surrounding program returns the state.

    Returns:
        The countdown, the granted rows, and the bits of the fields that are not finite, each int32
        [*batch], for the next step.
    """
    batch, payload = countdown.shape, fields[0]
    # A scalar predicate keeps `cond` a real branch; a batched one would run both branches. Take the
    # maximum, because a reset of some environments must not call the host for all of them.
    stored = jnp.max(countdown)
    watching = stored >= WATCHED
    left = jnp.where(watching, stored - WATCHED, stored)
    is_due = (left <= 0) | (left >= GRANTED)
    kept, known = granted_rows.ravel()[: origin.num_rows], nonfinite.ravel()
    skipped = stored - 1, kept

    def due(operands: tuple[Payload, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        flat = jax.tree.map(lambda x: x.reshape(origin.num_envs, *x.shape[len(batch) :]), operands)
        step = _Step(host, origin, layout, state_is_kept, shard, left, kept, *flat)
        return step.attend(known, is_due, watching, skipped)

    is_attended = is_due
    if origin.watched:
        is_attended |= watching
        if "reward" in payload:  # skipped if the viewer is closed
            turned = watch.reward_turned(payload["reward"], nonfinite)
            is_attended |= turned & (left < FOREVER // 2)
    operands = tuple(map(dict, fields))
    skip, rows, known = jax.lax.cond(is_attended, due, lambda _: (*skipped, known), operands)
    spare = jnp.full(origin.num_envs - origin.num_rows, NO_ROW, jnp.int32)
    rows = jnp.concatenate([rows, spare]).reshape(batch)
    return jnp.broadcast_to(skip, batch), rows, known.reshape(batch)


class _Step(NamedTuple):
    """A step that is due, and its calls to the host. All fields are arrays [N, ...]."""

    host: Host
    origin: Origin
    layout: Layout
    state_is_kept: bool
    shard: jax.Array
    left: jax.Array  # int32 []: the countdown
    kept: jax.Array  # int32 [K]: the rows that the state has kept
    payload: Payload
    inspected: Payload
    model: Payload
    detail: Payload
    coordinates: Payload
    last: Payload

    def attend(
        self,
        known: jax.Array,
        is_due: jax.Array,
        watching: jax.Array,
        skipped: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Calls the host, if the step is due or something has turned NaN or Inf; see `offer`."""
        # A wrapper that replaces the states of some environments may have discarded the rows.
        is_granted = (self.left >= GRANTED) & (jnp.min(self.kept) > NO_ROW)
        usual = functools.partial(jax.lax.cond, is_granted, self._granted, self._ask)
        if not self.origin.watched:
            return *self._serve(usual()), known
        watched = watch.watched(self.payload, self.inspected)
        kinds = {name: watch.kind(x) for name, x in watched.items()}
        bits = functools.reduce(jnp.bitwise_or, (watch.bits(n, k) for n, k in kinds.items()))
        new = bits & ~known
        finds = (new != 0).any()

        def told() -> jax.Array:
            return self._ask(watch.report(new, kinds, watching))

        def attended() -> tuple[jax.Array, jax.Array]:
            return self._serve(jax.lax.cond(finds, told, usual))

        skip, rows = jax.lax.cond(is_due | finds, attended, lambda: skipped)
        # A finding is reported once; an environment that recovers and fails again is only reported
        # again while every step is checked.
        return skip, rows, jnp.where(watching, bits, known | bits)

    def _serve(self, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sends what answers ask for. Returns what the last one says: the steps to skip, int32 [],
        and the rows, int32 [K]."""
        final = jax.lax.while_loop(lambda answer: answer[0] > 0, self._send, answer)
        return final[1], final[ANSWER_HEAD:]

    def _ask(self, report: jax.Array | None = None) -> jax.Array:
        head = jnp.stack([self.left, self.shard])
        query = head if report is None else jnp.concatenate([head, report])
        return self._call(functools.partial(self.host.ask, self.origin), query)

    def _granted(self) -> jax.Array:
        """Returns the answer that the last push stands for."""
        with_places = (self.left == GRANTED_COORDINATES).astype(jnp.int32)
        push = PUSH + (PUSH_COORDINATES - PUSH) * with_places
        head = jnp.array([0, UNASKED, NO_ENV], jnp.int32)
        return jnp.concatenate([push[None], head, self.kept])

    def _call(self, function: Callable[..., np.ndarray], *args: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((ANSWER_HEAD + self.origin.num_rows,), jnp.int32)
        return call_host(function, shape, *args, kept_alive=self.state_is_kept)

    def _send(self, answer: jax.Array) -> jax.Array:
        if not self.model:
            return self._send_state(answer)
        is_model = answer[0] == PUSH_MODEL
        return jax.lax.cond(is_model, self._send_model, self._send_state, answer)

    def _send_model(self, answer: jax.Array) -> jax.Array:
        push = functools.partial(self.host.push_model, self.origin)
        return self._call(push, self.shard, packed(taken(self.model, answer[ANSWER_HEAD:])))

    def _send_state(self, answer: jax.Array) -> jax.Array:
        if not self.coordinates:
            return self._send_step(answer)
        with_coordinates = answer[0] == PUSH_COORDINATES
        return jax.lax.cond(with_coordinates, self._send_coordinates, self._send_step, answer)

    def _send_coordinates(self, answer: jax.Array) -> jax.Array:
        rows, detail = answer[ANSWER_HEAD:], answer[3:4] if self.detail else None
        return self._push(answer[2], rows, detail_of=detail, beside=self.coordinates)

    def _send_step(self, answer: jax.Array) -> jax.Array:
        if not self.detail:
            return self._send_rows(answer)
        return jax.lax.cond(answer[3] == NO_ENV, self._send_rows, self._send_detail, answer)

    def _send_rows(self, answer: jax.Array) -> jax.Array:
        rule, rows = answer[2], answer[ANSWER_HEAD:]
        # Ranking all environments is expensive: it gets a separate branch.
        rows = jax.lax.cond(rule > 0, lambda: self._ranked(rule), lambda: rows)
        return self._push(rule, rows, instead=self.last)

    def _send_detail(self, answer: jax.Array) -> jax.Array:
        return self._push(answer[2], answer[ANSWER_HEAD:], detail_of=answer[3:4])

    def _ranked(self, rule: jax.Array) -> jax.Array:
        return top(rule, _looked_through(self.payload, self.inspected), self.origin.num_rows)

    def _push(
        self,
        rule: jax.Array,
        rows: jax.Array,
        *,
        detail_of: jax.Array | None = None,
        beside: Payload | None = None,
        instead: Payload | None = None,
    ) -> jax.Array:
        chosen, besides = taken(self.payload, rows), taken(beside or {}, rows)
        # Check only the chosen, and only if they are sent: for 4,096 ants it takes 0.2 ms.
        chosen = dict(_looked_through(chosen, taken(self.inspected, rows)))
        for name, x in taken(instead or {}, rows).items():
            chosen[name] = jnp.where(rule == TERMINATED, x, chosen[name])
        tier, measure = measured(jnp, rule, chosen)
        own = tuple((name, x.shape[1:]) for name, x in besides.items())
        push = functools.partial(self.host.push, self.origin, (*self.layout, *own))
        header = [
            jnp.stack([self.shard, rule]),
            rows,
            chosen["since_termination"],
            jax.lax.bitcast_convert_type(measure, jnp.int32),
            chosen["finite"].astype(jnp.int32),
            tier,
        ]
        numbers = packed({**chosen, **besides})
        if detail_of is not None:
            detail = packed(taken(self.detail, detail_of))
            numbers = jnp.concatenate([numbers.ravel(), detail.ravel()])
        return self._call(push, jnp.concatenate(header), numbers)


def _looked_through(payload: Payload, inspected: Payload) -> Payload:
    """Returns the payload, and whether all is finite."""
    # The return of the last episode says nothing about this one.
    own = [x for name, x in payload.items() if name != "finished_return"]
    return {**payload, "finite": finite([*own, *inspected.values()])}
