"""Defines what the host decides about one step of one device."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from brax_viser.records.protocol import (
    ANSWER_HEAD,
    GIVEN,
    GRANTED,
    GRANTED_COORDINATES,
    NO_ENV,
    PUSH,
    PUSH_COORDINATES,
    WATCHED,
    WATCHED_MOST,
    Layout,
    Origin,
)


@dataclass(frozen=True, eq=False)
class RowRequest:
    """The rows asked of one device while the choice stays the same."""

    drawn: np.ndarray  # int32 [K''], all drawn environments, over all devices
    here: np.ndarray  # int32, the drawn environments of this process
    known: int  # shards that had called before the request was made
    mine: np.ndarray  # int32 [K'], the drawn environments of this device
    envs: frozenset[int]  # the elements of `mine`, for look-ups
    rows: np.ndarray  # int32 [K], the same as indices into the shard's batch, padded with 0

    @classmethod
    def of(
        cls, origin: Origin, shard: int, drawn: np.ndarray, here: np.ndarray, known: int
    ) -> "RowRequest":
        mine = drawn[drawn // origin.num_envs == shard]
        rows = np.zeros(origin.num_rows, np.int32)
        rows[: len(mine)] = mine % origin.num_envs
        return cls(drawn, here, known, mine, frozenset(mine.tolist()), rows)


class Decision(NamedTuple):
    """What one device must do with its step, and when it calls again."""

    skip: int = 0
    """Steps to let pass before the next call; `protocol.GRANTED` or `GRANTED_COORDINATES`: none,
    and the next step may be pushed like this one without a call."""
    push: int = 0
    """0, `protocol.PUSH`, `PUSH_MODEL` or `PUSH_COORDINATES`."""
    rule: int = GIVEN
    """Rule by which the device ranks its environments; GIVEN: push those of `request`."""
    request: RowRequest | None = None
    detail_env: int | None = None
    """The environment, over all devices, whose details are wanted too."""
    watched: bool = False
    """Whether all fields must be checked for NaN and Inf at each step until the next call."""

    def packed(self, origin: Origin) -> np.ndarray:
        """Returns the answer that `emit.Host` describes, int32 [4 + K]."""
        answer = np.zeros(ANSWER_HEAD + origin.num_rows, np.int32)
        skip = min(self.skip, WATCHED_MOST) + WATCHED if self.watched else self.skip
        detail = NO_ENV if self.detail_env is None else self.detail_env % origin.num_envs
        # One by one: a tuple takes twice as long.
        answer[0], answer[1], answer[2], answer[3] = self.push, skip, self.rule, detail
        if self.request is not None:
            answer[ANSWER_HEAD:] = self.request.rows
        return answer

    @property
    def grant(self) -> int | None:
        """The skip that grants this push for the next step too; None if it can't be granted: only
        rows given by the host, without details, can be."""
        if self.rule != GIVEN or self.detail_env is not None:
            return None
        return {PUSH: GRANTED, PUSH_COORDINATES: GRANTED_COORDINATES}.get(self.push)


def granted_by(origin: Origin, layout: Layout) -> int:
    """Returns the skip that grants a push of this layout."""
    places = len(origin.coordinates)
    with_coordinates = places > 0 and layout[-places:] == origin.coordinates
    return GRANTED_COORDINATES if with_coordinates else GRANTED
