"""Chooses the K of N environments that a rule ranks first, on the device, where all N are."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from brax_viser.records.ranking import keys


def finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns bool [N]: whether an environment's values are finite in all arrays [N, ...]."""
    good = [
        jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        for x in arrays
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(good).all(axis=0)


def top(rule: jax.Array, fields: Mapping[str, jax.Array], num_rows: int) -> jax.Array:
    """Returns int32 [num_rows]: the environments ranked first, in order; ties by index. All are
    ranked, `num_rows` is at most N. The other arguments are those of `ranking.keys`."""
    tier, key = keys(jnp, rule, fields)
    index = jax.lax.iota(jnp.int32, len(key))
    return jax.lax.sort((tier, key, index), num_keys=3)[2][:num_rows]
