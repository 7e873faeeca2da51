"""Carries pushes to the page unopened, and converts them to frames there."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from brax_viser.records.frame import Coordinates, Detail, Frame
from brax_viser.records.protocol import Layout, size_of, unpack


class Packet(NamedTuple):
    """One push, not yet converted: `rows` may still be a device array. Made for each step that is
    sent, and a tuple takes 1 us, where a frozen dataclass takes 3."""

    source: Any  # the `Callbacks` that received it
    role: str
    shard: int  # index of the device's part of the batch
    env_steps: int
    env_index: np.ndarray  # int32 [K'], K' <= K: the rows beyond are padding
    drawn: np.ndarray  # int32 [K''], all envs of this process's devices drawn at this step
    num_envs: int
    layout: Layout
    rows: Any  # array-like, float32 [K, D]; with a detail [K * D + E]
    process: int = 0  # index of the process that it comes from
    detail_env: int | None = None  # whose detail follows the rows; None: ignore any detail
    detail_layout: Layout = ()
    # Whether these are the environments that a device ranked as terminated most recently, in the
    # poses in which they terminated, instead of the drawn ones.
    ranked: bool = False
    shown: bool = True  # whether the page wants the step; False: it is only recorded

    @property
    def is_whole(self) -> bool:
        """Whether it has every environment that this process draws at this step."""
        return not self.ranked and len(self.env_index) == len(self.drawn)

    @property
    def is_plain(self) -> bool:
        """Whether it has only rows to draw, without coordinates and without a detail."""
        coordinates = any(name == "qpos" for name, _ in self.layout)
        return self.detail_env is None and not coordinates

    def split(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the rows, float32 [K', D], and the detail, float32 [E], or None. See `open`."""
        rows, detail = np.asarray(self.rows), None
        if rows.ndim == 1:
            rows, detail = np.split(rows, [len(rows) - size_of(self.detail_layout)])
            rows = rows.reshape(-1, size_of(self.layout))
        return rows[: len(self.env_index)], detail

    def open(self) -> Frame:
        """Converts to a frame of numpy arrays. Not within a callback: there the conversion can
        deadlock when several devices share few cores."""
        rows, numbers = self.split()
        fields = unpack(self.layout, rows)
        detail = None
        if numbers is not None and self.detail_env is not None:
            one = unpack(self.detail_layout, numbers[None])
            detail = Detail.of(self.detail_env, {name: x[0] for name, x in one.items()})
        coordinates = Coordinates.of(fields) if "qpos" in fields else None
        return Frame(
            role=self.role,
            env_steps=self.env_steps,
            env_index=self.env_index,
            num_envs=self.num_envs,
            link_pos=fields["link_pos"],
            link_rot=fields["link_rot"],
            reward=fields["reward"],
            episode_return=fields["episode_return"],
            episode_length=fields["episode_length"].astype(np.int32),
            since_termination=fields["since_termination"].astype(np.int32),
            finite=fields["finite"] > 0,
            finished_return=_of_finished(fields),
            finished_length=_whole_numbers(fields.get("finished_length")),
            was_reset=fields["was_reset"] > 0 if "was_reset" in fields else None,
            detail=detail,
            coordinates=coordinates,
        )


@dataclass(frozen=True, eq=False)
class ModelPacket:
    """The fields in which the environments' models differ, not yet converted."""

    source: Any
    role: str
    env_index: np.ndarray  # int32 [K'], K' <= K: the rows beyond are padding
    num_envs: int
    layout: Layout  # of `adapters.MODEL_FIELDS`
    rows: Any = field(repr=False)  # float32 [K, D], array-like

    def open(self) -> dict[int, dict[str, np.ndarray]]:
        """Returns each environment's values of these fields. See `Packet.open`."""
        rows = np.asarray(self.rows)[: len(self.env_index)]
        fields = unpack(self.layout, rows)
        return {
            int(env): {name: values[row] for name, values in fields.items()}
            for row, env in enumerate(self.env_index)
        }


def _of_finished(fields: dict[str, np.ndarray]) -> np.ndarray | None:
    """Returns the last finished episodes' returns, float32 [K]; NaN where none is known."""
    total, length = fields.get("finished_return"), fields.get("finished_length")
    if total is None or length is None:
        return total
    return np.where(length > 0, total, np.float32(np.nan))


def _whole_numbers(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.astype(np.int32)
