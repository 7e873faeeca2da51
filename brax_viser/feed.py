"""The host's end of the wire: what answers the device, on XLA's threads."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from brax_viser.emit import Layout, Origin
from brax_viser.mailbox import Mailbox, Parcel
from brax_viser.progress import Progress
from brax_viser.scene.grid import Grid
from brax_viser.stream import FOREVER, Control, CostMeter, Pacer, Selection
from brax_viser.trainer import TrainerCall

if TYPE_CHECKING:
    from brax_viser.adapters import BraxAdapter

log = logging.getLogger("brax_viser")

AFTER_FAULT = 1000
"""Steps to skip after a fault of our own, before the device may ask again whether all is well."""


@dataclass
class Switchboard:
    """What the device's calls, the publisher and the user share. `lock` guards the plain fields;
    `mailbox` and `progress` have locks of their own."""

    control: Control
    clock: Callable[[], float] = time.monotonic
    lock: threading.Lock = field(default_factory=threading.Lock)
    selection: Selection = field(default_factory=Selection)
    meter: CostMeter = field(default_factory=CostMeter)
    mailbox: Mailbox = field(default_factory=Mailbox)
    progress: Progress = field(default_factory=Progress)
    frames: int = 0  # pushed
    bytes_moved: int = 0  # pushed, device to host
    fault: str | None = None

    def set(self, **changes: object) -> None:
        """Changes the control; the device learns of it with its next call."""
        with self.lock:
            self.control = replace(self.control, **changes)  # type: ignore[arg-type]

    def failed(self, where: str, error: Exception) -> None:
        """Switches streaming off after a fault of our own. Logged once; training goes on."""
        with self.lock:
            first, self.fault = self.fault is None, f"{type(error).__name__} in {where}: {error}"
            self.control = replace(self.control, streaming=False)
        if first:
            log.error("streaming stopped, training goes on", exc_info=error)


class Feed:
    """What one `VisualizedEnv` calls while it is traced and while it runs: an `emit.Host`."""

    def __init__(
        self,
        board: Switchboard,
        adapter: "BraxAdapter",
        grid: Grid,
        role: str | None,
        on_new_training: Callable[["Feed", TrainerCall], None],
    ):
        self.adapter = adapter
        self.grid = grid
        self.role = role
        self.capacity = grid.capacity
        self.pacers: dict[tuple[str, int], Pacer] = {}  # by role and shard
        self.num_envs: dict[str, int] = {}  # by role, over all shards
        self._board = board
        self._on_new_training = on_new_training
        # Global indices of the rows that the last answer asked for, by role and shard.
        self._chosen: dict[tuple[str, int], np.ndarray] = {}
        self._asked: dict[tuple[str, int], float] = {}  # s, when it ended

    def traced(self, call: TrainerCall | None) -> None:
        """`reset` or `step` is being traced: a trainer is getting ready."""
        if self._board.progress.traced(call, self._board.clock()):
            assert call is not None
            with self._board.lock:
                self.pacers.clear()
                self.num_envs.clear()
            self._on_new_training(self, call)

    def ask(self, origin: Origin, query: object) -> np.ndarray:
        """See `emit.Host.ask`."""
        board, start = self._board, self._board.clock()
        answer = np.zeros(2 + min(self.capacity, origin.num_envs), np.int32)
        answer[1] = AFTER_FAULT
        try:
            countdown, shard = (int(value) for value in np.asarray(query))
            with board.lock:
                self._answer(answer, origin, countdown, shard, start)
                board.meter.asked(start, board.clock())
                self._asked[origin.role, shard] = board.clock()
        # Whatever it is, raising here would end the user's training.
        except Exception as error:
            board.failed("ask", error)
        return answer

    def _answer(
        self, answer: np.ndarray, origin: Origin, countdown: int, shard: int, now: float
    ) -> None:
        board, key = self._board, (origin.role, shard)
        pacer = self.pacers.setdefault(key, Pacer())
        known = pacer.env_steps
        # Evaluation is only counted: the page shows the training, and goes on with it after.
        control = board.control
        if origin.role == "eval" and self.role != "eval":
            control = replace(control, streaming=False)
        push, skip = pacer.ask(now, countdown, control, board.meter.spent)
        num_envs = origin.num_envs * origin.num_shards
        self.num_envs[origin.role] = num_envs
        if shard == 0:
            board.progress.stepped(origin.role, (pacer.env_steps - known) * num_envs, now)
        answer[1] = skip
        if push:
            drawn = board.selection.drawn(num_envs, self.capacity)
            chosen = drawn[drawn // origin.num_envs == shard]
            self._chosen[key] = chosen
            answer[0] = len(chosen) > 0
            answer[2 : 2 + len(chosen)] = chosen % origin.num_envs

    def push(self, origin: Origin, layout: Layout, header: object, rows: object) -> np.ndarray:
        """See `emit.Host.push`."""
        board, start = self._board, self._board.clock()
        skip = AFTER_FAULT
        try:
            skip, shard = (int(value) for value in np.asarray(header))
            key = origin.role, shard
            with board.lock:
                if board.control.closed:
                    return np.int32(FOREVER)  # type: ignore[return-value]
                parcel = Parcel(
                    feed=self,
                    role=origin.role,
                    shard=shard,
                    env_steps=self.pacers[key].env_steps,
                    env_index=self._chosen[key],
                    num_envs=origin.num_envs * origin.num_shards,
                    layout=layout,
                    rows=rows,
                )
                wait = board.control.mode == "every_step"
            board.mailbox.put(parcel, wait=wait)
            with board.lock:
                nbytes = int(rows.nbytes)  # type: ignore[attr-defined]
                board.frames += 1
                board.bytes_moved += nbytes
                board.meter.pushed(self._asked[key], start, board.clock(), nbytes)
        # As in `ask`: never into the user's training.
        except Exception as error:
            board.failed("push", error)
        return np.int32(skip)  # type: ignore[return-value]
