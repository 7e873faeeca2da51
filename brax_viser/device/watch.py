"""Looks for what is not finite, on the device: in all environments, drawn or not."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from brax_viser.records.protocol import FINITE, INF, NAN, OBSERVED_INF, OBSERVED_NAN, REWARD, STATE

SHOWN = ("reward", "link_pos", "link_rot")
"""Fields of a payload that are watched. What is summed up over an episode is not: it stays NaN."""


def watched(
    payload: Mapping[str, jax.Array], inspected: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """By name, in the order in which they are told: what is shown, and what else is inspected."""
    # The policy is given what the physics comes to, which may be where it has turned.
    ordered = sorted(inspected, key=lambda name: name.startswith("observation"))
    shown = {name: payload[name] for name in SHOWN if name in payload}
    return shown | {name: inspected[name] for name in ordered}


def kind(x: jax.Array) -> jax.Array:
    """int32 [N], of an array [N, ...]: `protocol.FINITE`, `INF` or `NAN`, the worst of each row."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.full(len(x), FINITE, jnp.int32)
    worst = jnp.where(jnp.isnan(x), NAN, jnp.where(jnp.isfinite(x), FINITE, INF))
    return worst.reshape(len(x), -1).max(axis=1, initial=FINITE).astype(jnp.int32)


def bits(name: str, kind: jax.Array) -> jax.Array:
    """int32 [N]: `protocol.REWARD` and the like, of what `kind` says of the field of that name."""
    if name == "reward":
        found = jnp.where(kind > FINITE, REWARD, 0)
    elif not name.startswith("observation"):
        found = jnp.where(kind > FINITE, STATE, 0)
    else:
        infinite = jnp.where(kind > FINITE, OBSERVED_INF, 0)
        found = jnp.where(kind == NAN, OBSERVED_INF | OBSERVED_NAN, infinite)
    return found.astype(jnp.int32)


def reward_turned(reward: jax.Array, known: jax.Array) -> jax.Array:
    """bool []: whether the reward of any environment is not finite, of whom this is not known.

    It is asked at each and every step, and must cost next to nothing.

    Args:
        reward: [*batch, ...].
        known: int32 [*batch], bits.
    """
    if not jnp.issubdtype(reward.dtype, jnp.inexact):
        return jnp.full((), False)
    bad = ~jnp.isfinite(reward).reshape(*known.shape, -1).all(axis=-1)
    return (bad & (known & REWARD == 0)).any()


def report(new: jax.Array, kinds: Mapping[str, jax.Array], watching: jax.Array) -> jax.Array:
    """int32 [3 + F]: which environment; how many there are; whether the step before was looked
    through as well; and what each field of that environment holds, of those that are new.

    Of several it is the first, but one of which more is new than an Inf in an observation comes
    before all others.

    Args:
        new: int32 [N], bits that were not known before.
        kinds: int32 [N] each, by field.
        watching: bool [].
    """
    some, graver = new != 0, (new & ~OBSERVED_INF) != 0
    row = jnp.argmax(some.astype(jnp.int32) + graver.astype(jnp.int32)).astype(jnp.int32)
    count = some.sum(dtype=jnp.int32)
    fields = [
        jnp.take(jnp.where(bits(name, kind) & new != 0, kind, FINITE), row)
        for name, kind in kinds.items()
    ]
    return jnp.stack([row, count, watching.astype(jnp.int32), *fields])
