"""What is known of one rollout, and what its devices are asked for and granted."""

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
    """What is known of one rollout, a training or an evaluation."""

    pacer: Pacer
    num_envs: int  # over all shards
    num_shards: int  # over all processes
    choice: Choice = field(default_factory=Choice)
    asked_for: dict[int, "RowRequest"] = field(default_factory=dict)  # by shard
    called: dict[int, float] = field(default_factory=dict)  # by shard: s, end of its last call
    # By shard: whose detail was asked for last.
    detailed: dict[int, int | None] = field(default_factory=dict)
    grants: dict[int, "Grant"] = field(default_factory=dict)  # by shard: of "every_step", the last
    rearmed: dict[int, int] = field(default_factory=dict)  # by shard: see `Findings`
    progressed: int = 0  # steps that the progress was told of
    # Environments of which is known in what their models differ from the one that they share.
    models: set[int] = field(default_factory=set)

    @property
    def envs_per_shard(self) -> int:
        return self.num_envs // self.num_shards


@dataclass(frozen=True, eq=False)
class RowRequest:
    """What one device is asked for, as long as the choice stays."""

    drawn: np.ndarray  # int32 [K''], all that are drawn, over all devices
    here: np.ndarray  # int32, those of them that are this process's
    known: int  # shards that had called before it was made
    mine: np.ndarray  # int32 [K'], those of them that are this device's
    envs: frozenset[int]  # the same, to be looked up
    answer: np.ndarray  # int32 [4 + K]: push them


@dataclass(eq=False)
class Grant:
    """That the next step is pushed like the last, and what this was found from.

    For `source.GRANT_SECONDS` the steps after it are granted as well, without finding it anew. The
    calls come one by one, each after a step of physics that has left nothing of ours in the
    processor's caches: there, Python takes three times as long as in a loop, and every line counts.
    """

    order: RowRequest
    layout: Layout
    answer: np.ndarray  # int32 [4 + K]
    rows: bytes  # as the header of the push has them
    until: float  # s
    control: Control
    selection: Selection
    selected_env: int | None
    spent: float = 0.0  # s, that the meter does not know of yet
    nbytes: int = 0
    frames: int = 0


def request_of(
    origin: Origin, shard: int, drawn: np.ndarray, here: np.ndarray, known: int
) -> RowRequest:
    """What a device is asked for; the arguments are as in `RowRequest`."""
    mine = drawn[drawn // origin.num_envs == shard]
    answer = np.zeros(ANSWER_HEAD + origin.num_rows, np.int32)
    answer[3] = NOBODY
    answer[0] = PUSH if len(mine) else 0
    answer[ANSWER_HEAD : ANSWER_HEAD + len(mine)] = mine % origin.num_envs
    return RowRequest(drawn, here, known, mine, frozenset(mine.tolist()), answer)


def grant_of(answer: np.ndarray) -> int | None:
    """What lets the device push what an answer asks for without being asked, if anything does: the
    rows are those of the answer, and no detail comes with them."""
    push, _, rule, detail = answer[:ANSWER_HEAD].tolist()
    if (rule, detail) != (GIVEN, NOBODY):
        return None
    return {PUSH: GRANTED, PUSH_COORDINATES: GRANTED_COORDINATES}.get(push)


def granted_by(origin: Origin, layout: Layout) -> int:
    """What lets the device push what has come."""
    places = len(origin.coordinates)
    with_coordinates = places > 0 and layout[-places:] == origin.coordinates
    return GRANTED_COORDINATES if with_coordinates else GRANTED
