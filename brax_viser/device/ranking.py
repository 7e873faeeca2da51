"""Choosing the K of N environments that a rule ranks first, on the device: N stays where it is."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from brax_viser.records.protocol import BEST, BY_MEASURE, NONFINITE, TERMINATED, WORST


def finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """bool [N]: whether all that belongs to an environment is finite, of arrays [N, ...]."""
    good = [
        jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        for x in arrays
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(good).all(axis=0)


def measured(rule: jax.Array, fields: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(tier, measure), int32 [N] and float32 [N]: what best and worst are ranked by. Those of a
    higher tier come behind all of a lower one, whichever way: 0 has what is ranked by, 1 has no
    finished episode and is ranked by the return so far per step, 2 has nothing that is a number.

    Args:
        rule: int32 [], one of `protocol`'s; any for what is not to be ranked.
        fields: arrays [N], as for `top`.
    """
    so_far, none = fields["episode_return"].astype(jnp.float32), jnp.zeros_like
    length = fields.get("episode_length", none(so_far)).astype(jnp.float32)
    # Of one that began nobody knows when, the return so far is not known.
    known = jnp.isfinite(so_far) & (length >= 0)
    per_step = so_far / jnp.maximum(length, 1)
    finished = fields.get("finished_length", none(so_far)) > 0
    last = fields.get("finished_return", none(so_far))
    by = jnp.maximum(rule, 0) // BY_MEASURE
    by_last = (by == 0) & finished
    measure = jnp.where(by_last, last, jnp.where(by == 1, so_far, per_step))
    usable = jnp.where(by_last, jnp.isfinite(last), known)
    tier = jnp.where(usable, jnp.where((by == 0) & ~finished, 1, 0), 2)
    return tier.astype(jnp.int32), jnp.where(usable, measure, 0.0)


def top(rule: jax.Array, fields: Mapping[str, jax.Array], num_rows: int) -> jax.Array:
    """int32 [num_rows]: the environments ranked first, best first; equal ones by index.

    All are ranked; those that the rule is not about come last, and can be told by their fields.

    Args:
        rule: int32 [], one of `protocol`'s, not GIVEN, with a measure or not.
        fields: arrays [N]: "episode_return", "since_termination", "finite"; and where they are
            known "episode_length", "finished_return" and "finished_length".
        num_rows: at most N.
    """
    tier, measure = measured(rule, fields)
    since = fields["since_termination"].astype(jnp.float32)
    sound = jnp.where(fields["finite"], 1.0, 0.0)
    kind = rule % BY_MEASURE
    key = jnp.where(kind == BEST, -measure, measure)
    key = jnp.where(kind == TERMINATED, since, jnp.where(kind == NONFINITE, sound, key))
    tier = jnp.where((kind == BEST) | (kind == WORST), tier, 0)
    index = jax.lax.iota(jnp.int32, len(key))
    return jax.lax.sort((tier, key, index), num_keys=3)[2][:num_rows]
