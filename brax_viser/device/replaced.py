"""Restores the records of environments whose whole state a loop has replaced."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from brax_viser.device.emit import swallow_batch_axes
from brax_viser.device.episode import NEIGHBOURS, NUMBERS, EpisodeLog, where, whole
from brax_viser.device.platforms import by_platform
from brax_viser.records.protocol import FRESH, NEVER


def over_batch(log: EpisodeLog) -> EpisodeLog:
    """Restores the records of environments whose whole state was replaced.

    Some loops replace the whole state of an environment whose episode has ended by that of a
    reset, including `info` and this record. If only some records of a batch are fresh, theirs were
    replaced. So each record keeps copies of some neighbours' values. If those neighbours were
    replaced too, the environment is assumed to have fallen, with unknown return and pose.

    Args:
        log: from `advance`, [*batch]; seen as a whole batch, inside any `vmap`s.
    """
    fields = [getattr(log, name) for name in _RESTORED]
    operands = jax.lax.stop_gradient((log.countdown, log.spare, *fields))
    shard = jnp.zeros((), jnp.int32)  # unused
    spare, *restored = jax.lax.stop_gradient(swallow_batch_axes(_restored)(shard, *operands))
    return log._replace(spare=spare, **dict(zip(_RESTORED, restored, strict=True)))


_RESTORED = (
    "episode_return",
    "episode_length",
    "since_termination",
    "finished_return",
    "finished_length",
    "last_pos",
    "last_rot",
)


def _restored(
    shard: jax.Array, countdown: jax.Array, spare: jax.Array, *fields: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns (spare, *fields) with lost records restored; all [*batch, ...]."""
    batch, num_envs = countdown.shape, math.prod(countdown.shape)
    if num_envs == 1:
        return spare, *fields
    shapes = [x.shape for x in (spare, *fields)]
    countdown, spare, *flat = (
        x.reshape(num_envs, *x.shape[len(batch) :]) for x in (countdown, spare, *fields)
    )
    offsets = [offset for offset in NEIGHBOURS if offset < num_envs]
    fresh = countdown == FRESH
    replaced = fresh & ~fresh.all()

    def restore(replaced: jax.Array, spare: jax.Array, fields: list[jax.Array]) -> list[jax.Array]:
        total, length, since, *ended, pos, rot = fields
        found, kept = jnp.zeros(num_envs, bool), jnp.zeros(spare.shape[::2], spare.dtype)
        for number, offset in enumerate(offsets):
            there = ~jnp.roll(replaced, -offset) & ~found
            kept = jnp.where(there[:, None], jnp.roll(spare[:, number], -offset, axis=0), kept)
            found |= there
        ages = kept[:, 2]
        fell = ~found | (ages == 0)
        # An environment that had not fallen was reset by the loop before its episode ended.
        last = whole(kept[:, 0], kept[:, 1].astype(jnp.int32))
        before = kept[:, 3], kept[:, 4].astype(jnp.int32)
        last = where(fell, before, last)
        age = jnp.where(fell, 1, jnp.minimum(ages.astype(jnp.int32) + 1, NEVER))
        again = since == 0  # terminated in its first step
        pose_then = kept[:, NUMBERS:].reshape(num_envs, -1, 7)
        pose_then = pose_then[..., :3], pose_then[..., 3:]
        own = ~replaced | (ended[1] > 0)
        return [
            total,
            length,
            jnp.where(replaced & ~again, age, since),
            *where(own, tuple(ended), last),
            *where((replaced & ~again)[:, None, None], pose_then, (pos, rot)),
        ]

    def restore_some(replaced: jax.Array, *rest: Any) -> list[jax.Array]:
        return jax.lax.cond(replaced.any(), restore, lambda _, __, fields: fields, replaced, *rest)

    flat = by_platform(restore_some, restore, replaced, spare, flat)
    numbers = [x[:, None].astype(jnp.float32) for x in flat[:NUMBERS]]
    pose = jnp.concatenate(flat[NUMBERS:], axis=2)
    record = jnp.concatenate([*numbers, pose.reshape(num_envs, -1)], axis=1)
    copies = [jnp.roll(record, offset, axis=0) for offset in NEIGHBOURS]
    spare = jnp.stack(copies, axis=1)
    return tuple(x.reshape(shape) for x, shape in zip((spare, *flat), shapes, strict=True))
