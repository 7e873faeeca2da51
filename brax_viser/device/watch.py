"""Looks for NaN and Inf on the device, in all environments, whether they are drawn or not."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from brax_viser.records.protocol import (
    FINITE,
    INF,
    MOST_WATCHED,
    NAN,
    OBSERVED_INF,
    OBSERVED_NAN,
    REWARD,
    STATE,
)

SHOWN = ("reward", "link_pos", "link_rot")
"""Fields of a payload that are watched. Sums over an episode are not: they stay NaN."""


def watched(
    payload: Mapping[str, jax.Array], inspected: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Returns the shown and the inspected fields, by name, in the order of a report."""
    # Observations come last: they derive from the physics, in which the fault may have begun.
    ordered = sorted(inspected, key=lambda name: name.startswith("observation"))
    shown = {name: payload[name] for name in SHOWN if name in payload}
    return shown | {name: inspected[name] for name in ordered}


def kind(x: jax.Array) -> jax.Array:
    """Returns int32 [N]: the worst of `protocol.FINITE`, `INF`, `NAN` in each row of x [N, ...]."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.full(len(x), FINITE, jnp.int32)
    worst = jnp.where(jnp.isnan(x), NAN, jnp.where(jnp.isfinite(x), FINITE, INF))
    return worst.reshape(len(x), -1).max(axis=1, initial=FINITE).astype(jnp.int32)


def flags(fields: Mapping[str, jax.Array]) -> jax.Array:
    """Returns int32 [N]: which fields [N, ...] of each environment contain NaN or Inf, as described
    at `protocol.MOST_WATCHED`. One pass over all of them, which a GPU does in one kernel."""
    parts = []
    for i, x in enumerate(fields.values()):
        shift = 2 * min(i, MOST_WATCHED - 1)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            odd = jnp.where(jnp.isnan(x), NAN << shift, INF << shift)
            found = jnp.where(jnp.isfinite(x), 0, odd).astype(jnp.int32)
            parts.append(found.reshape(len(x), -1))
    return jax.lax.reduce(jnp.concatenate(parts, axis=1), jnp.int32(0), jax.lax.bitwise_or, (1,))


def bits(name: str, kind: jax.Array) -> jax.Array:
    """Returns int32 [N]: bits such as `protocol.REWARD`, from the kinds [N] of the field `name`."""
    if name == "reward":
        found = jnp.where(kind > FINITE, REWARD, 0)
    elif not name.startswith("observation"):
        found = jnp.where(kind > FINITE, STATE, 0)
    else:
        infinite = jnp.where(kind > FINITE, OBSERVED_INF, 0)
        found = jnp.where(kind == NAN, OBSERVED_INF | OBSERVED_NAN, infinite)
    return found.astype(jnp.int32)


def reward_turned(reward: jax.Array, known: jax.Array) -> jax.Array:
    """Returns bool []: whether any environment's reward is not finite and not known to be so.

    This runs at every step, so it must cost next to nothing.

    Args:
        reward: [*batch, ...].
        known: int32 [*batch], bits.
    """
    if not jnp.issubdtype(reward.dtype, jnp.inexact):
        return jnp.full((), False)
    bad = ~jnp.isfinite(reward).reshape(*known.shape, -1).all(axis=-1)
    return (bad & (known & REWARD == 0)).any()


def report(new: jax.Array, kinds: Mapping[str, jax.Array], watching: jax.Array) -> jax.Array:
    """Returns int32 [3 + F]: index of the reported environment; number of environments with new
    bits; whether the previous step was checked too; then the kinds of that environment's fields,
    FINITE where nothing is new.

    The first one whose new bits are more than an Inf in an observation is reported, else the first.

    Args:
        new: int32 [N], bits that were not known before.
        kinds: int32 [N] each, by field.
        watching: bool []: whether every step is checked.
    """
    some, graver = new != 0, (new & ~OBSERVED_INF) != 0
    row = jnp.argmax(some.astype(jnp.int32) + graver.astype(jnp.int32)).astype(jnp.int32)
    count = some.sum(dtype=jnp.int32)
    fields = [
        jnp.take(jnp.where(bits(name, kind) & new != 0, kind, FINITE), row)
        for name, kind in kinds.items()
    ]
    return jnp.stack([row, count, watching.astype(jnp.int32), *fields])
