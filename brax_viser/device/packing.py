"""Packs the fields of environments into rows of numbers."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Payload = Mapping[str, jax.Array]
"""Fields of one step, name -> [*batch, ...] array."""


def taken(arrays: Payload, rows: jax.Array) -> Payload:
    """Takes rows [K, ...] from arrays [N, ...]."""
    return {name: jnp.take(x, rows, axis=0, mode="clip") for name, x in arrays.items()}


def packed(rows: Payload) -> jax.Array:
    """Packs arrays [K, ...] into float32 [K, D], as each of them would be a separate transfer."""
    return jnp.concatenate(
        [x.reshape(len(x), -1).astype(jnp.float32) for x in rows.values()], axis=1
    )
