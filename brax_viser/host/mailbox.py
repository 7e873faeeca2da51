"""Where XLA's threads leave what they pushed, for the publisher to fetch."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brax_viser.device.emit import Layout, size_of, unpack
from brax_viser.records.frame import Coordinates, Detail, Frame

CAPACITY = 256
"""Pushes that may wait. At 60 fetches a second that is room for 15,000 steps a second."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """What one push brought, not yet looked at: `rows` may still be a device array."""

    feed: Any  # the `Feed` it came through
    role: str
    shard: int  # the device's index
    env_steps: int
    env_index: np.ndarray  # int32 [K'], K' <= K: the rows beyond are padding
    drawn: np.ndarray  # int32 [K''], all that are drawn at this step, over this process's devices
    num_envs: int
    layout: Layout
    rows: Any = field(repr=False)  # float32 [K, D], array-like; with something behind [K * D + E]
    process: int = 0  # that it is from
    detail_env: int | None = None  # whose detail is behind the rows; None: nobody's that matters
    detail_layout: Layout = ()
    # Whether it is of those that a device has ranked as terminated last, in the poses in which they
    # have; not of those that are drawn.
    ranked: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether no other device has anything of what is drawn at this step."""
        return not self.ranked and len(self.env_index) == len(self.drawn)

    @property
    def is_plain(self) -> bool:
        """Whether it brings rows to look at, and nothing that twins or sandboxes are made of."""
        coordinates = any(name == "qpos" for name, _ in self.layout)
        return self.detail_env is None and not coordinates

    def split(self) -> tuple[np.ndarray, np.ndarray | None]:
        """float32 [K', D], and what is behind, float32 [E], if anything is. As with `open`."""
        rows, detail = np.asarray(self.rows), None
        if rows.ndim == 1:
            rows, detail = np.split(rows, [len(rows) - size_of(self.detail_layout)])
            rows = rows.reshape(-1, size_of(self.layout))
        return rows[: len(self.env_index)], detail

    def open(self) -> Frame:
        """Converts to numpy. Not within the callback: there it can deadlock when several devices
        share few cores."""
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
            finished_return=fields.get("finished_return"),
            finished_length=_whole_numbers(fields.get("finished_length")),
            was_reset=fields["was_reset"] > 0 if "was_reset" in fields else None,
            detail=detail,
            coordinates=coordinates,
        )


@dataclass(frozen=True, eq=False)
class ModelParcel:
    """In what environments' models differ from the one that they share, not yet looked at."""

    feed: Any
    role: str
    env_index: np.ndarray  # int32 [K'], K' <= K: the rows beyond are padding
    num_envs: int
    layout: Layout  # of `adapters.MODEL_FIELDS`
    rows: Any = field(repr=False)  # float32 [K, D], array-like

    def open(self) -> dict[int, dict[str, np.ndarray]]:
        """By environment: its own value of each field that differs. As with `Parcel.open`."""
        rows = np.asarray(self.rows)[: len(self.env_index)]
        fields = unpack(self.layout, rows)
        return {
            int(env): {name: values[row] for name, values in fields.items()}
            for row, env in enumerate(self.env_index)
        }


def _whole_numbers(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.astype(np.int32)


class Mailbox:
    """A bounded queue. `put` is called on XLA's threads, all else by the viewer's."""

    def __init__(self) -> None:
        self.ring: Callable[[], object] = lambda: None
        """Called on any thread when the publisher should look in at once. Set by the publisher."""
        self.clock: Callable[[], float] = time.monotonic  # s; set by the switchboard
        self._waiting = 0  # devices that wait for room
        self._since = 0.0  # s, from when on
        self._waited = 0.0  # s, that any has waited before
        self._models: deque[ModelParcel] = deque()
        self._parcels: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False

    def put_model(self, parcel: ModelParcel) -> None:
        """Leaves what comes but once: it is never lost for want of room."""
        with self._changed:
            if not self._closed:
                self._models.append(parcel)

    def put(self, parcel: Parcel, *, wait: bool) -> None:
        """Leaves a parcel.

        Args:
            parcel: what to leave.
            wait: when full, wait until the publisher has fetched; otherwise the oldest is lost.
        """
        with self._changed:
            if wait and self._is_full():
                self._wait_for_room()
            if self._closed:
                return
            if len(self._parcels) >= CAPACITY:
                self._parcels.popleft()
            self._parcels.append(parcel)
            # The publisher is not rung for: it would run right now, and make this callback wait
            # for the interpreter. It looks in by itself, as often as a page is sent frames; only
            # when room runs out is it called.
            half_full = len(self._parcels) == CAPACITY // 2
        if half_full:
            self.ring()

    @property
    def waited(self) -> float:
        """s, in all, that devices have waited for room, and the training with them."""
        with self._changed:
            return self._waited + (self.clock() - self._since if self._waiting else 0.0)

    def _is_full(self) -> bool:
        return len(self._parcels) >= CAPACITY and not self._closed

    def _wait_for_room(self) -> None:
        if not self._waiting:
            self._since = self.clock()
        self._waiting += 1
        try:
            self._changed.wait_for(lambda: not self._is_full())
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._waited += self.clock() - self._since

    def take(self) -> list[Parcel | ModelParcel]:
        """Fetches all, oldest first; models before the frames that they belong to."""
        with self._changed:
            parcels = [*self._models, *self._parcels]
            self._models.clear()
            self._parcels.clear()
            self._changed.notify_all()
            return parcels

    def wake(self) -> None:
        """Rings: there is something other than parcels to do."""
        with self._changed:
            rung, self._woken = self._woken, True
        if not rung:
            self.ring()

    def woken(self) -> bool:
        """Whether `wake` was called since this was asked last."""
        with self._changed:
            woken, self._woken = self._woken, False
            return woken

    def close(self) -> None:
        """Releases everybody who waits; what is put from now on is dropped."""
        with self._changed:
            self._closed = True
            self._parcels.clear()
            self._changed.notify_all()
        self.ring()
