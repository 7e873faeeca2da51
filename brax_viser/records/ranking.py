"""Defines by what the rules rank environments, for arrays of JAX and of numpy alike."""

from collections.abc import Mapping
from typing import Any

from brax_viser.records.protocol import BEST, BY_MEASURE, NONFINITE, TERMINATED, WORST


def measured(xp: Any, rule: Any, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns (tier, measure), int32 [N] and float32 [N], by which best and worst are ranked. All
    of a higher tier rank after all of a lower one, for best and for worst: 0 has the measure; 1 has
    no finished episode and is ranked by its return so far per step; 2 has no finite measure.

    Args:
        xp: `numpy` or `jax.numpy`, the module of the other arrays.
        rule: int32 [], one of `protocol`'s; without a measure, the last episode counts.
        fields: arrays [N], as for `keys`.
    """
    so_far, none = fields["episode_return"].astype(xp.float32), xp.zeros_like
    length = fields.get("episode_length", none(so_far)).astype(xp.float32)
    # The return so far is not known if the beginning of the episode was not seen.
    known = xp.isfinite(so_far) & (length >= 0)
    per_step = so_far / xp.maximum(length, 1)
    finished = fields.get("finished_length", none(so_far)) > 0
    last = fields.get("finished_return", none(so_far))
    by = xp.maximum(rule, 0) // BY_MEASURE
    by_last = (by == 0) & finished
    measure = xp.where(by_last, last, xp.where(by == 1, so_far, per_step))
    usable = xp.where(by_last, xp.isfinite(last), known)
    tier = xp.where(usable, xp.where((by == 0) & ~finished, 1, 0), 2)
    return tier.astype(xp.int32), xp.where(usable, measure, 0.0)


def keys(xp: Any, rule: Any, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns two sort keys [N], ascending, first by the first: int32 and float32.

    Environments that the rule does not apply to come last; their fields show which.

    Args:
        xp: as for `measured`.
        rule: int32 [], one of `protocol`'s except GIVEN, with or without a measure.
        fields: arrays [N]: "episode_return", "since_termination", "finite"; and, if known,
            "episode_length", "finished_return" and "finished_length".
    """
    tier, measure = measured(xp, rule, fields)
    since = fields["since_termination"].astype(xp.float32)
    sound = xp.where(fields["finite"], 1.0, 0.0)
    kind = rule % BY_MEASURE
    key = xp.where(kind == BEST, -measure, measure)
    key = xp.where(kind == TERMINATED, since, xp.where(kind == NONFINITE, sound, key))
    return xp.where((kind == BEST) | (kind == WORST), tier, 0), key
