"""Stands in for devices that take steps and call the host, in either way, without compiling."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from brax_viser.device import launch
from brax_viser.device.memory import Failed, HostMemory, Take, Then
from brax_viser.host.callbacks import Callbacks
from brax_viser.host.control import Control
from brax_viser.host.state import SharedState
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    FRESH,
    GIVEN,
    GRANTED,
    GRANTED_COORDINATES,
    HEADER_COLUMNS,
    HEADER_HEAD,
    NEVER,
    PUSH,
    PUSH_COORDINATES,
    PUSH_MODEL,
    UNASKED,
    WATCHED,
    Layout,
    Origin,
)

NUM_ENVS = 8
ROWS = 3
DT = 0.05  # s of robot time per step
COORDINATES: Layout = (("qpos", (2,)),)
DETAIL: Layout = (("frame", (2,)),)
LAYOUT: Layout = (*((name, ()) for name in launch.NUMBERS), ("finite", ()))


class Device(Protocol):
    """One device. It counts its own steps, with which the host's count must agree."""

    skips: list[int]  # of all decisions

    def step(self, *, fresh: bool = False) -> None: ...


class Counting:
    """Counts down in its state, as `countdown.offer` does."""

    def __init__(self, host: Callbacks, origin: Origin, shard: int):
        self.host, self.origin, self.shard = host, origin, shard
        self.countdown, self.kept = FRESH, np.zeros(origin.num_rows, np.int32)
        self.skips: list[int] = []
        self.answers: list[tuple[int, ...]] = []

    def step(self, *, fresh: bool = False) -> None:
        stored = FRESH if fresh else self.countdown
        left = stored - WATCHED if stored >= WATCHED else stored
        if 0 < left < GRANTED:
            self.countdown = stored - 1
            return
        if left >= GRANTED:
            push = PUSH_COORDINATES if left == GRANTED_COORDINATES else PUSH
            answer = np.array([push, 0, UNASKED, -1, *self.kept], np.int32)
        else:
            answer = self.host.ask(self.origin, np.array([left, self.shard], np.int32))
        while answer[0]:
            self.answers.append(tuple(answer.tolist()))
            answer = self._push(*answer[:ANSWER_HEAD].tolist(), answer[ANSWER_HEAD:])
        self.answers.append(tuple(answer.tolist()))
        self.countdown, self.kept = int(answer[1]), answer[ANSWER_HEAD:].copy()
        skip = self.countdown - WATCHED if self.countdown >= WATCHED else self.countdown
        self.skips.append(0 if skip >= GRANTED else skip)

    def _push(self, push: int, _: int, rule: int, detail: int, rows: np.ndarray) -> np.ndarray:
        if push == PUSH_MODEL:
            values = np.zeros((len(rows), 1), np.float32)
            return self.host.push_model(self.origin, np.int32(self.shard), values)
        if rule > GIVEN:
            rows = np.arange(len(rows), dtype=np.int32)
        header = np.zeros(HEADER_HEAD + len(HEADER_COLUMNS) * len(rows), np.int32)
        header[:HEADER_HEAD] = self.shard, rule
        columns = header[HEADER_HEAD:].reshape(len(HEADER_COLUMNS), -1)
        columns[:] = np.array([0, NEVER, 0, 1, 0])[:, None]
        columns[0] = rows
        layout = (*LAYOUT, *COORDINATES) if push == PUSH_COORDINATES else LAYOUT
        values = np.zeros((len(rows), len(layout) + (push == PUSH_COORDINATES)), np.float32)
        if detail >= 0:
            values = np.append(values.ravel(), np.zeros(2, np.float32))
        return self.host.push(self.origin, layout, header, values)


class Copies(HostMemory):
    """Copies that take the device no time: a test's time is its own."""

    def send(self, takes: Sequence[Take], then: Then, failed: Failed, *, wait: bool) -> bool:
        return super().send(takes, lambda arrays, _: then(arrays, 0.0), failed, wait=wait)


class Launching:
    """Passes its buffers on as it is enqueued: `launch.Launch` itself, with numpy's arrays."""

    def __init__(self, host: Any, origin: Origin, shard: int):
        self.host, self.key = host, (origin.role, shard)
        layouts = {
            "rows": LAYOUT,
            "places": origin.coordinates,
            "detail": origin.detail,
            "model": origin.model,
            "last": (),
        }
        self.buffers = {
            "shard": np.array(shard, np.int32),
            **{name: np.zeros(NUM_ENVS, np.int32) for name in ("count", *launch.FLAGS)},
            **{
                f"{group}/{name}": np.zeros((NUM_ENVS, *shape), np.float32)
                for group, layout in layouts.items()
                for name, shape in layout
            },
        }
        names, memory = list(self.buffers), Copies()
        self.launch = launch.Launch(host, origin, layouts, names, lambda context: memory)
        self.skips: list[int] = []

    def step(self, *, fresh: bool = False) -> None:
        if fresh:
            self.buffers["count"][:] = 0
        self.launch(None, None, *self.buffers.values())
        self.buffers["count"] += 1
        self.skips.append(self.host.lanes[self.key].skip)


WAYS: dict[str, Any] = {"countdown": Counting, "launch": Launching}


class Training:
    """A training of one device whose clock is set: it goes on with each step, and each time that
    the host looks at it, so that a call costs time."""

    def __init__(
        self, way: str, control: Control, *, rate: float = 100.0, tick: float = 0.0, **origin: Any
    ):
        self.now, self.rate, self.tick = 1000.0, rate, tick
        self.shared = SharedState(control, wall_clock=self._look)
        adapter: Any = SimpleNamespace(dt=DT, name="toy")
        grid: Any = SimpleNamespace(capacity=ROWS)
        self.host = Callbacks(self.shared, adapter, grid, None, lambda source, call: None)
        own = {"detail": DETAIL, "coordinates": COORDINATES, **origin}
        self.origin = Origin("train", NUM_ENVS, 1, ROWS, **own)
        self.device: Device = WAYS[way](self.host, self.origin, 0)
        self.taken = 0
        self.packets: list[Packet] = []

    def _look(self) -> float:
        self.now += self.tick
        return self.now

    def step(self, *, fresh: bool = False) -> list[Packet]:
        """Takes a step. Returns what the page gets of it."""
        self.now += 1 / self.rate
        self.taken += 1
        self.device.step(fresh=fresh or self.taken == 1)
        assert self.shared.fault is None, self.shared.fault
        if fresh and isinstance(self.device, Counting):
            # How many steps were let pass before is not known to the host.
            self.taken = self.host.rollouts["train"].steps.env_steps
        new = [p for p in self.shared.mailbox.take() if isinstance(p, Packet)]
        self.packets += new
        return new

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()
