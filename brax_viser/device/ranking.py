"""Chooses the K of N environments that a rule ranks first, on the device, where all N are."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from brax_viser.records.protocol import BEST, BY_MEASURE, NONFINITE, TERMINATED, WORST


def finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns bool [N]: whether an environment's values are finite in all arrays [N, ...]."""
    good = [
        jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        for x in arrays
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(good).all(axis=0)


def measured(rule: jax.Array, fields: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns (tier, measure), int32 [N] and float32 [N], by which best and worst are ranked. All
    of a higher tier rank after all of a lower one, for best and for worst: 0 has the measure; 1 has
    no finished episode and is ranked by its return so far per step; 2 has no finite measure.

    Args:
        rule: int32 [], one of `protocol`'s; without a measure, the last episode counts.
        fields: arrays [N], as for `top`.
    """
    so_far, none = fields["episode_return"].astype(jnp.float32), jnp.zeros_like
    length = fields.get("episode_length", none(so_far)).astype(jnp.float32)
    # The return so far is not known if the beginning of the episode was not seen.
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
    """Returns int32 [num_rows]: the environments ranked first, in order; ties by index.

    All are ranked. Those that the rule does not apply to come last; their fields show which.

    Args:
        rule: int32 [], one of `protocol`'s except GIVEN, with or without a measure.
        fields: arrays [N]: "episode_return", "since_termination", "finite"; and, if known,
            "episode_length", "finished_return" and "finished_length".
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
