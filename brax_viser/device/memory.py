"""Copies what a step has computed to the host: at once on a CPU, by the device itself on CUDA."""

import ctypes
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

SLOTS = 16
"""Steps per device whose copies may be under way. A host that waits for one of them is that far
ahead of the device, which never runs out of work."""

MOST_RUNS = 16
"""Rows are copied run by run of consecutive ones, or all at once if there are more runs."""


class Take(NamedTuple):
    """Rows to copy of a buffer [N, ...]."""

    buffer: Any
    rows: np.ndarray | None = None  # int [K], all different; None: all

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The rows to copy as (start, stop): the runs of consecutive ones, or all."""
        count = self.buffer.shape[0]
        if self.rows is None or not len(self.rows):
            return [(0, count if self.rows is None else 0)]
        ordered = np.sort(self.rows)
        starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 2) != 1)
        if len(starts) > MOST_RUNS:
            return [(0, count)]
        stops = np.append(starts[1:], len(ordered)) - 1
        return list(zip(ordered[starts].tolist(), (ordered[stops] + 1).tolist(), strict=True))


Then = Callable[[Sequence[np.ndarray], float], None]
"""Receives the copied rows of each `Take`, arrays [K, ...] valid until it returns, and the s that
the copies took."""


class Memory(Protocol):
    """The memory of the device on which one step runs."""

    is_ahead: bool
    """Whether the host enqueues steps while the device has not come to those copied before: what
    the host does meanwhile costs the training nothing."""

    def device_of(self, shard: Any) -> int:
        """Returns a number of the device, given the buffer int32 [] of its shard."""
        ...

    def read(self, buffer: Any) -> np.ndarray:
        """Returns a buffer's values; waits for the device."""
        ...

    def send(self, takes: Sequence[Take], then: Then, *, wait: bool) -> bool:
        """Copies rows, and calls `then` once they have arrived. When too many copies are under way,
        waits, or returns False."""
        ...

    def finish(self) -> None:
        """Waits until everything that was sent has arrived and been dealt with."""
        ...


class HostMemory:
    """The memory of a CPU: whatever a step has computed can be read within the call."""

    is_ahead = False

    def device_of(self, shard: Any) -> int:
        return int(np.asarray(shard))

    def read(self, buffer: Any) -> np.ndarray:
        return np.array(np.asarray(buffer))

    def send(self, takes: Sequence[Take], then: Then, *, wait: bool) -> bool:
        start = time.perf_counter()
        whole = [np.asarray(take.buffer) for take in takes]
        copies = [
            x.copy() if take.rows is None else x[take.rows]
            for take, x in zip(takes, whole, strict=True)
        ]
        then(copies, time.perf_counter() - start)
        return True

    def finish(self) -> None:
        pass


class Driver(Protocol):
    """The functions of a device's driver that copying needs. All numbers are its own handles."""

    def address(self, buffer: Any) -> int: ...
    def context(self) -> tuple[int, int]:
        """Returns the calling thread's context and the number of its device."""
        ...

    def enter(self, context: int) -> None:
        """Makes the context the calling thread's, which only copies and waits."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Returns the address of new host memory that the device can write to."""
        ...

    def release(self, address: int) -> None: ...
    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Has the device copy from its memory to the host's, after what the stream has to do."""
        ...

    def event(self) -> int: ...
    def record(self, event: int, stream: int) -> None: ...
    def wait(self, event: int) -> None:
        """Returns once the stream has come to the event; other Python threads run meanwhile."""
        ...

    def seconds_between(self, start: int, stop: int) -> float: ...


@dataclass(eq=False)
class _Slot:
    """Host memory for the copies of one step."""

    start: int  # event
    stop: int  # event
    address: int = 0
    nbytes: int = 0


class _Job(NamedTuple):
    device: int
    context: int
    slot: _Slot
    parts: list[tuple[Take, list[tuple[int, int]], int]]  # with its runs and its place in the slot
    then: Then


@dataclass(eq=False)
class _Ring:
    """The slots of one device."""

    free: "queue.SimpleQueue[_Slot]" = field(default_factory=queue.SimpleQueue)
    made: int = 0
    pending: int = 0  # jobs that have not been dealt with


class Arrivals:
    """Copies for all devices of one process. A thread of its own waits for what arrives: XLA's
    thread, which enqueues the steps, only enqueues the copies too."""

    def __init__(self, driver: Driver, failed: Callable[[Exception], None]):
        self.driver = driver
        self._failed = failed
        self._rings: dict[int, _Ring] = {}
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def on(self, stream: int) -> "StreamMemory":
        """Returns the memory of the device on whose stream the calling thread enqueues a step."""
        return StreamMemory(self, stream, *self.driver.context())

    def send(
        self, device: int, context: int, stream: int, takes: Sequence[Take], then: Then, wait: bool
    ) -> bool:
        """See `Memory.send`."""
        parts, size = [], 0
        for take in takes:
            runs = take.runs
            parts.append((take, runs, size))
            size += sum(stop - start for start, stop in runs) * _row_size(take.buffer)
            size += -size % 64
        slot = self._slot(device, wait)
        if slot is None:
            return False
        driver = self.driver
        if slot.nbytes < size:
            if slot.nbytes:
                driver.release(slot.address)
            slot.address, slot.nbytes = driver.allocate(size), size
        driver.record(slot.start, stream)
        for take, runs, place in parts:
            source, row = driver.address(take.buffer), _row_size(take.buffer)
            for start, stop in runs:
                nbytes = (stop - start) * row
                if nbytes:
                    driver.copy(slot.address + place, source + start * row, nbytes, stream)
                place += nbytes
        driver.record(slot.stop, stream)
        with self._changed:
            self._rings[device].pending += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="brax_viser arrivals", daemon=True
                )
                self._thread.start()
        self._jobs.put(_Job(device, context, slot, parts, then))
        return True

    def finish(self, device: int) -> None:
        """See `Memory.finish`."""
        with self._changed:
            self._changed.wait_for(lambda: not self.is_pending(device))

    def is_pending(self, device: int) -> bool:
        """Whether anything that was sent from a device has not been dealt with."""
        return device in self._rings and self._rings[device].pending > 0

    def _slot(self, device: int, wait: bool) -> _Slot | None:
        ring = self._rings.setdefault(device, _Ring())
        if ring.free.empty() and ring.made < SLOTS:
            ring.made += 1
            return _Slot(self.driver.event(), self.driver.event())
        try:
            return ring.free.get(block=wait)
        except queue.Empty:
            return None

    def _run(self) -> None:
        entered = 0
        while True:
            job = self._jobs.get()
            try:
                if job.context != entered:
                    self.driver.enter(job.context)
                    entered = job.context
                self.driver.wait(job.slot.stop)
                seconds = self.driver.seconds_between(job.slot.start, job.slot.stop)
                arrays = [
                    _taken(job.slot.address + place, take, runs) for take, runs, place in job.parts
                ]
                job.then(arrays, seconds)
            # The thread serves all trainings of this process, which may wait for it.
            except Exception as error:
                self._failed(error)
            finally:
                ring = self._rings[job.device]
                ring.free.put(job.slot)
                with self._changed:
                    ring.pending -= 1
                    self._changed.notify_all()


class StreamMemory:
    """The memory of a device that runs after the host: `Memory` for one step on one stream."""

    def __init__(self, arrivals: Arrivals, stream: int, context: int, device: int):
        self._arrivals, self._stream = arrivals, stream
        self._context, self._device = context, device
        self.is_ahead = arrivals.is_pending(device)

    def device_of(self, shard: Any) -> int:
        return self._device

    def read(self, buffer: Any) -> np.ndarray:
        found: list[np.ndarray] = []
        flat = Take(_Flat(buffer))
        self.send([flat], lambda arrays, _: found.append(arrays[0].copy()), wait=True)
        self.finish()
        return found[0].reshape(buffer.shape)

    def send(self, takes: Sequence[Take], then: Then, *, wait: bool) -> bool:
        return self._arrivals.send(self._device, self._context, self._stream, takes, then, wait)

    def finish(self) -> None:
        self._arrivals.finish(self._device)


class _Flat:
    """A buffer as an array with one axis."""

    def __init__(self, buffer: Any):
        self.buffer, self.dtype = buffer, buffer.dtype
        self.shape = (int(np.prod(buffer.shape)),)


def _row_size(buffer: Any) -> int:
    """Returns the bytes of one row of a buffer [N, ...]."""
    return int(np.prod(buffer.shape[1:])) * np.dtype(buffer.dtype).itemsize


def _taken(address: int, take: Take, runs: list[tuple[int, int]]) -> np.ndarray:
    """Returns the rows in the order in which they were asked for, once the runs have arrived."""
    buffer, count = take.buffer, sum(stop - start for start, stop in runs)
    memory = (ctypes.c_ubyte * (count * _row_size(buffer))).from_address(address)
    arrived = np.ctypeslib.as_array(memory).view(buffer.dtype).reshape(count, *buffer.shape[1:])
    if take.rows is None:
        return arrived
    copied = np.concatenate([np.arange(*run) for run in runs])
    return arrived[np.searchsorted(copied, take.rows)]
