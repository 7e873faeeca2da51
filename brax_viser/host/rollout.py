"""Keeps the state of one rollout, with the requests and grants of its devices."""

from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.control import Control
from brax_viser.host.pacing import Pacer
from brax_viser.host.selection import Choice, Selection
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    GIVEN,
    GRANTED,
    GRANTED_COORDINATES,
    NOBODY,
    PUSH,
    PUSH_COORDINATES,
    Layout,
    Origin,
)


@dataclass(eq=False)
class Rollout:
    """The state of one rollout, a training or an evaluation."""

    pacer: Pacer
    num_envs: int  # over all shards
    num_shards: int  # over all processes
    choice: Choice = field(default_factory=Choice)
    asked_for: dict[int, "RowRequest"] = field(default_factory=dict)  # by shard
    called: dict[int, float] = field(default_factory=dict)  # by shard: s, end of its last call
    # By shard: the environment whose details were last asked for.
    detailed: dict[int, int | None] = field(default_factory=dict)
    grants: dict[int, "Grant"] = field(default_factory=dict)  # by shard: the last, in "every_step"
    rearmed: dict[int, int] = field(default_factory=dict)  # by shard: see `Findings`
    progressed: int = 0  # batched steps already counted by the progress
    # Environments whose models' differences from the shared model are known.
    models: set[int] = field(default_factory=set)

    @property
    def envs_per_shard(self) -> int:
        return self.num_envs // self.num_shards


@dataclass(frozen=True, eq=False)
class RowRequest:
    """The rows asked of one device while the choice stays the same."""

    drawn: np.ndarray  # int32 [K''], all drawn environments, over all devices
    here: np.ndarray  # int32, the drawn environments of this process
    known: int  # shards that had called before the request was made
    mine: np.ndarray  # int32 [K'], the drawn environments of this device
    envs: frozenset[int]  # the elements of `mine`, for look-ups
    answer: np.ndarray  # int32 [4 + K]: push `mine`


@dataclass(eq=False)
class Grant:
    """A standing answer: the next step may be pushed like the last one.

    It is reused for `callbacks.GRANT_SECONDS` while the inputs kept here stay the same. Each call
    follows a step of physics that has evicted our data from the processor's caches: Python then
    takes three times as long as in a loop, so every line counts.
    """

    order: RowRequest
    layout: Layout
    answer: np.ndarray  # int32 [4 + K]
    rows: bytes  # row indices as in the push's header
    until: float  # s
    control: Control
    selection: Selection
    selected_env: int | None
    spent: float = 0.0  # s, not yet added to the meter; likewise the next two
    nbytes: int = 0
    frames: int = 0


def request_of(
    origin: Origin, shard: int, drawn: np.ndarray, here: np.ndarray, known: int
) -> RowRequest:
    """Builds the request to one device; the arguments are as in `RowRequest`."""
    mine = drawn[drawn // origin.num_envs == shard]
    answer = np.zeros(ANSWER_HEAD + origin.num_rows, np.int32)
    answer[3] = NOBODY
    answer[0] = PUSH if len(mine) else 0
    answer[ANSWER_HEAD : ANSWER_HEAD + len(mine)] = mine % origin.num_envs
    return RowRequest(drawn, here, known, mine, frozenset(mine.tolist()), answer)


def grant_of(answer: np.ndarray) -> int | None:
    """Returns the skip value that grants the push that an answer asks for, or None if it can't be
    granted: only rows given by the host, without details, can be."""
    push, _, rule, detail = answer[:ANSWER_HEAD].tolist()
    if (rule, detail) != (GIVEN, NOBODY):
        return None
    return {PUSH: GRANTED, PUSH_COORDINATES: GRANTED_COORDINATES}.get(push)


def granted_by(origin: Origin, layout: Layout) -> int:
    """Returns the skip value that grants a push of this layout."""
    places = len(origin.coordinates)
    with_coordinates = places > 0 and layout[-places:] == origin.coordinates
    return GRANTED_COORDINATES if with_coordinates else GRANTED
