"""Choosing the K of N environments that a rule ranks first, on the device: N stays where it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from brax_viser.protocol import BEST


def finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """bool [N]: whether all that belongs to an environment is finite, of arrays [N, ...]."""
    good = [
        jnp.isfinite(x).reshape(len(x), -1).all(axis=1)
        for x in arrays
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(good).all(axis=0)


def top(rule: jax.Array, fields: Mapping[str, jax.Array], num_rows: int) -> jax.Array:
    """int32 [num_rows]: the environments ranked first, best first; equal ones by index.

    All are ranked; those that the rule is not about come last, and can be told by their fields.

    Args:
        rule: int32 [], one of `protocol`'s, not GIVEN.
        fields: arrays [N]: "episode_return", "since_termination", "finite".
        num_rows: at most N.
    """
    returns = fields["episode_return"]
    # What is not a number has no place in an order: last, whichever way it goes.
    lowest = jnp.float32(-jnp.inf)
    best = jnp.where(jnp.isfinite(returns), returns, lowest)
    worst = jnp.where(jnp.isfinite(returns), -returns, lowest)
    terminated = -fields["since_termination"].astype(jnp.float32)
    nonfinite = jnp.where(fields["finite"], 0.0, 1.0)
    scores: list[Any] = [best, worst, terminated, nonfinite]
    score = jnp.stack(scores)[rule - BEST]
    return jax.lax.top_k(score, num_rows)[1].astype(jnp.int32)
