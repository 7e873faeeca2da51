"""Defines the integers that device and host exchange, without JAX, so that both can import it."""

import math
from typing import NamedTuple

import numpy as np

FRESH = -1
"""Countdown of a state that `reset` has just made: its first step asks, and sends this value."""

NEVER = 2**30
"""`since_termination` of an environment that has not terminated yet."""

UNKNOWN = -(2**23)
"""`episode_length` of an episode whose beginning was not seen. It counts up from here and stays
below 0; float32 still represents each of these integers."""

FOREVER = 2**30
"""Steps to skip when the device need never ask again (the viewer is closed)."""

GRANTED, GRANTED_COORDINATES = FOREVER + 1, FOREVER + 2
"""Countdowns that authorise the push of the same rows of the very next step without an `ask`, as
`PUSH` or as `PUSH_COORDINATES`. They are larger than all above, because the largest countdown of a
batch counts."""

WATCHED = FOREVER + 16
"""Added to a countdown while the training must stop at the first NaN: the device checks all fields
at every step, and a finding makes the step due. Larger than all above for the same reason."""

WATCHED_MOST = 2**20
"""The largest countdown that `WATCHED` may be added to: the sum must fit in an int32, and with
`FOREVER` it would not."""

FINITE, INF, NAN = range(3)
"""The worst value that a field of an environment contains."""

MOST_WATCHED = 15
"""Most fields that are told apart where NaN and Inf are reported as flags, two bits each: `INF`
and `NAN`, shifted by twice the field's index in `Origin.watched`. The last has all further ones."""

REWARD, STATE, OBSERVED_INF, OBSERVED_NAN = 1, 2, 4, 8
"""Bits that say which fields of an environment are not finite. Observations have two, because they
may contain an Inf by design, but not a NaN."""

GIVEN, BEST, WORST, TERMINATED, NONFINITE = range(5)
"""Rules for choosing rows: given by the host; highest return; lowest return; most recently
terminated; any NaN or Inf."""

MEASURES = ("last_episode", "so_far", "per_second")
"""The returns by which `BEST` and `WORST` rank: of the last finished episode (environments without
one come last, ranked by "per_second"); of the episode so far; or the latter over its duration."""

BY_MEASURE = 8
"""This times the index of the measure is added to `BEST` or `WORST`."""

PUSH, PUSH_MODEL, PUSH_COORDINATES = 1, 2, 3
"""The pushes that an answer can request: the chosen rows of this step; the fields in which their
models differ; or the rows with the coordinates that twins need."""

ANSWER_HEAD = 4
"""Integers of an answer before its K rows: push?, skip, rule, detail."""

NO_ENV = -1
"""Stands for `detail` in an answer that requests no environment's details."""

UNASKED = -1
"""Stands for the rule in the header of a push that the previous answer authorised."""

NO_ROW = -1
"""Stands for the granted rows in a state that keeps none, as after `reset`."""

HEADER_HEAD = 2
"""Integers of a push's header before its columns: shard, rule."""

HEADER_COLUMNS = ("row", "since_termination", "return_bits", "finite", "tier")
"""The header's columns, K integers each. `BEST` and `WORST` rank by tier, then by return: see
`ranking.measured`. A callback reads only the header and leaves the float32 rows to another thread,
because converting large arrays within a callback can deadlock."""


IMAGE, IMAGE_OF_BYTES = "image", "bytes"
"""Prefixes of the names of images in a detail: of numbers from 0 to 1, and from 0 to 255."""


Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""(name, shape of one row) of each payload field, in the order in which `push` packs them."""


class Origin(NamedTuple):
    """The origin of a call: fixed when the step is traced, so it costs nothing at run time."""

    role: str  # "train" | "eval"
    num_envs: int  # environments in this shard's batch
    num_shards: int  # devices that step a batch each
    num_rows: int  # K: rows that one push carries
    model: Layout = ()  # fields in which the environments' models differ, for `push_model`
    detail: Layout = ()  # fields that can be pushed of one environment alone
    coordinates: Layout = ()  # fields that can be pushed with the rows
    watched: tuple[str, ...] = ()  # fields checked for NaN and Inf, in the order of a report


def unpack(layout: Layout, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Undoes the packing of `push`: float32 [K, D] -> name -> [K, ...] views."""
    fields, start = {}, 0
    for name, shape in layout:
        stop = start + math.prod(shape)
        fields[name] = rows[:, start:stop].reshape(len(rows), *shape)
        start = stop
    return fields


def size_of(layout: Layout) -> int:
    """Returns the number of values in one row."""
    return sum(math.prod(shape) for _, shape in layout)
