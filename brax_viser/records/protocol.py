"""The integers that device and host exchange, known to both, and free of JAX."""

import math
from typing import NamedTuple

import numpy as np

FRESH = -1
"""Countdown of a state that `reset` has just made: its first step asks, and says it is fresh."""

NEVER = 2**30
"""`since_termination` of an environment that has not terminated yet."""

UNKNOWN = -(2**23)
"""`episode_length` from where on it is not known when the episode began; it counts up from there,
and stays below 0. A float32 still tells it from the next number."""

FOREVER = 2**30
"""Steps to skip once nobody will ever ask again (the viewer is closed)."""

GRANTED, GRANTED_COORDINATES = FOREVER + 1, FOREVER + 2
"""Countdowns after an answer to a push that wants the very next step pushed as well, the same rows
of it, without being asked: by `PUSH`, or by `PUSH_COORDINATES`. Larger than all others, for the
largest of a batch is what counts."""

WATCHED = FOREVER + 16
"""What is added to a countdown while the training is to be held at the first NaN: all is looked
through at every step, and what is found makes a step due. Larger than all others, likewise."""

WATCHED_MOST = 2**20
"""Steps to skip at most, of a countdown that `WATCHED` is added to: an int32 has no room for more
than `FOREVER`."""

FINITE, INF, NAN = range(3)
"""What a field of an environment holds, the worst of it."""

REWARD, STATE, OBSERVED_INF, OBSERVED_NAN = 1, 2, 4, 8
"""Bits: what of an environment is known not to be finite. Observations may hold an Inf by design,
so a NaN in them is another matter."""

GIVEN, BEST, WORST, TERMINATED, NONFINITE = range(5)
"""Rules for choosing rows: the host gives them; highest return; lowest; most recently terminated;
any NaN or Inf."""

MEASURES = ("last_episode", "so_far", "per_second")
"""By which return `BEST` and `WORST` rank: that of the last finished episode, with those behind
that have none, by what comes next but one; that of the episode so far; or that over its time."""

BY_MEASURE = 8
"""Times the index of the measure, this is added to `BEST` or `WORST`."""

PUSH, PUSH_MODEL, PUSH_COORDINATES = 1, 2, 3
"""What an answer asks for: the chosen rows of this step; what differs between their models; or the
rows with what it takes to step them elsewhere."""

ANSWER_HEAD = 4
"""Integers of an answer before its K rows: push?, skip, rule, detail."""

NOBODY = -1
"""In the place of `detail`, where no environment's is wanted."""

UNASKED = -1
"""In the place of the rule, in the header of a push that was granted by the answer to the last."""

NO_ROW = -1
"""In the place of the granted rows, where none are kept: of a state that `reset` has just made."""

HEADER_HEAD = 2
"""Integers of a push's header before its columns: shard, rule."""

HEADER_COLUMNS = ("row", "since_termination", "return_bits", "finite", "tier")
"""What follows in the header, K integers each; the return is what best and worst are ranked by, and
the tier goes before it: see `rank.measured`. It is all that a callback looks at itself: the rows of
float32 are left to another thread, because converting much within one can deadlock."""


Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""(name, shape of one row) of each payload field, in the order in which `push` packs them."""


class Origin(NamedTuple):
    """Where a call comes from: fixed when the step is traced, so it costs nothing at run time."""

    role: str  # "train" | "eval"
    num_envs: int  # environments in this shard's batch
    num_shards: int  # devices that step a batch each
    num_rows: int  # K: rows that one push carries
    model: Layout = ()  # what differs between the environments' models, and can be pushed
    detail: Layout = ()  # what can be pushed of one environment alone
    coordinates: Layout = ()  # what can be pushed with the rows
    watched: tuple[str, ...] = ()  # fields that are looked through, in the order of a report


def unpack(layout: Layout, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Undoes the packing of `push`: float32 [K, D] -> name -> [K, ...] views."""
    fields, start = {}, 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        fields[name] = rows[:, start:stop].reshape(len(rows), *shape)
        start = stop
    return fields


def size_of(layout: Layout) -> int:
    """Numbers in one row."""
    return sum(math.prod(shape) for _, shape in layout)
