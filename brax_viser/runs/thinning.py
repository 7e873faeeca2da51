"""Decides what is dropped when a training's recordings outgrow their bytes."""

import bisect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from brax_viser.records.episode import Summary


def surplus(
    steps: Sequence[int], sizes: Sequence[int], max_bytes: int, kept: Collection[int | None] = ()
) -> list[int]:
    """Returns the steps to drop so that the others fit into `max_bytes`, in the order of dropping.

    Those that leave the smallest gap are dropped first, so that the others stay evenly spaced over
    the training. The first, the newest and those in `kept` are never dropped, even if they alone do
    not fit.

    Args:
        steps: env steps trained, ascending and distinct.
        sizes: bytes of each.
        max_bytes: bytes that all may have together.
        kept: steps that are not dropped.
    """
    left, dropped, total = list(range(len(steps))), [], sum(sizes)
    while total > max_bytes:
        free = [i for i in range(1, len(left) - 1) if steps[left[i]] not in kept]
        if not free:
            break
        place = min(free, key=lambda i: steps[left[i + 1]] - steps[left[i - 1]])
        gone = left.pop(place)
        dropped.append(steps[gone])
        total -= sizes[gone]
    return dropped


def acting_at(at: float, steps: Sequence[int]) -> int:
    """Returns the policy that acted at a step of the training: the newest until then, or the first.

    Args:
        at: env steps trained.
        steps: env steps that each policy was trained for, ascending; at least one.
    """
    return steps[max(bisect.bisect_right(steps, at) - 1, 0)]


def best_recording(summaries: Iterable[Summary]) -> int | None:
    """Returns the recording with the highest return; the earliest of several; None if no return is
    finite."""
    finite = [s for s in summaries if math.isfinite(s.episode_return)]
    best = max(finite, key=lambda s: (s.episode_return, -s.recording), default=None)
    return None if best is None else best.recording


def surplus_recordings(
    summaries: Sequence[Summary],
    sizes: Mapping[str, int],
    max_bytes: int,
    kept: Collection[int | None] = (),
) -> set[int]:
    """Returns the recordings to drop so that the episodes of the others fit into `max_bytes`; never
    the first, the newest, the one with the highest return, or those in `kept`.

    Args:
        summaries: of all episodes that are kept.
        sizes: bytes of each of these episodes, by key.
        max_bytes: bytes that all may have together.
        kept: recordings that are not dropped.
    """
    if sum(sizes.values()) <= max_bytes:
        return set()
    of_recording: dict[int, int] = {}
    for summary in sorted(summaries, key=lambda s: s.recording):
        size = of_recording.get(summary.recording, 0) + sizes[summary.key]
        of_recording[summary.recording] = size
    kept = {*kept, best_recording(summaries)}
    return set(surplus(list(of_recording), list(of_recording.values()), max_bytes, kept))
