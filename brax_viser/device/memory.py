"""Copies what a step has computed to the host: at once on a CPU, by the device itself on CUDA."""

import ctypes
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from brax_viser.device.driver import Driver
from brax_viser.device.lead import Lead

log = logging.getLogger("brax_viser")

SLOTS = 16
"""Sets of copies that may be under way, per device. A host that needs another waits for whatever
takes them: the device, or the page."""

LEAST_BYTES = 4 << 20
"""Memory that each slot has from the start, before any collective: to grant more, the driver may
wait for a device that waits for another, whose thread waits for the driver. All rows of 8,192 Go1
fit in it; what does not gets more when it is first sent."""

COPY_BYTES = 1 << 16
"""Bytes that are copied while another copy is begun. Rows are copied run by run of consecutive
ones, or all of a buffer at once if that takes less time."""


class Take(NamedTuple):
    """Rows to copy of a buffer [N, ...]."""

    buffer: Any
    rows: np.ndarray | None = None  # int [K], all different; None: all


Runs = list[tuple[int, int]]
"""Consecutive rows: (start, stop) of each run."""


def _runs(rows: np.ndarray | None) -> Runs | None:
    """Returns the runs of the rows; None if all are wanted."""
    if rows is None:
        return None
    if not len(rows):
        return [(0, 0)]
    ordered = np.sort(rows)
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 2) != 1)
    stops = np.append(starts[1:], len(ordered)) - 1
    return list(zip(ordered[starts].tolist(), (ordered[stops] + 1).tolist(), strict=True))


Then = Callable[[Sequence[np.ndarray], float], None]
"""Receives the copied rows of each `Take`, arrays [K, ...] valid until it returns, and the s that
the copies took."""

Failed = Callable[[Exception], None]
"""Receives the error if the rows do not arrive, or what `Then` raised."""


class Memory(Protocol):
    """The memory of the device on which one step runs."""

    is_ahead: bool
    """Whether the host enqueues steps before the device has reached those copied earlier: what the
    host does meanwhile costs the training nothing."""

    def device_of(self, shard: Any) -> int:
        """Returns a number of the device, given the buffer int32 [] of its shard."""
        ...

    def follow(self, lead: Lead, is_free: Callable[[], bool]) -> None:
        """Waits until the device is not far behind, or `is_free`, and notes that this step is
        enqueued."""
        ...

    def read(self, buffer: Any) -> np.ndarray:
        """Returns a buffer's values; waits for the device."""
        ...

    def send(self, takes: Sequence[Take], then: Then, failed: Failed, *, wait: bool) -> bool:
        """Copies rows, and calls `then` once they have arrived, or `failed`. When too many copies
        are under way, waits, or returns False. Raises any error that occurs while copying is
        begun."""
        ...

    def finish(self) -> None:
        """Waits until everything that has been sent so far has arrived and been dealt with."""
        ...


class HostMemory:
    """The memory of a CPU: whatever a step has computed can be read within the call."""

    is_ahead = False

    def device_of(self, shard: Any) -> int:
        return int(np.asarray(shard))

    def follow(self, lead: Lead, is_free: Callable[[], bool]) -> None:
        pass

    def read(self, buffer: Any) -> np.ndarray:
        return np.array(np.asarray(buffer))

    def send(self, takes: Sequence[Take], then: Then, failed: Failed, *, wait: bool) -> bool:
        start = time.perf_counter()
        whole = [np.asarray(take.buffer) for take in takes]
        copies = [
            x.copy() if take.rows is None else x[take.rows]
            for take, x in zip(takes, whole, strict=True)
        ]
        try:
            then(copies, time.perf_counter() - start)
        except Exception as error:
            failed(error)
        return True

    def finish(self) -> None:
        pass


@dataclass(eq=False)
class _Slot:
    """Host memory for the copies of one step."""

    start: int  # event
    stop: int  # event
    address: int
    nbytes: int


class _Part(NamedTuple):
    """The rows of one buffer in a slot. Holds all that the reader needs: XLA may reuse the memory
    of a buffer's description once the call has returned."""

    place: int  # in the slot, bytes
    runs: Runs
    rows: np.ndarray | None
    shape: tuple[int, ...]  # of one row
    dtype: np.dtype
    row_size: int  # bytes
    size: int  # of all runs, bytes

    @classmethod
    def of(cls, take: Take, runs: Runs | None, place: int) -> "_Part":
        """Lays out the copies of some rows, whose `_runs` are given."""
        count, *shape = take.buffer.shape
        dtype = np.dtype(take.buffer.dtype)
        row_size = math.prod(shape) * dtype.itemsize
        if runs is None or count * row_size <= (len(runs) - 1) * COPY_BYTES:
            runs = [(0, count)]
        size = sum(stop - start for start, stop in runs) * row_size
        return cls(place, runs, take.rows, tuple(shape), dtype, row_size, size)

    def taken(self, address: int) -> np.ndarray:
        """Returns the rows in the order in which they were asked for, once the runs have been
        copied to a slot at this address."""
        count = sum(stop - start for start, stop in self.runs)
        memory = (ctypes.c_ubyte * self.size).from_address(address + self.place)
        arrived = np.ctypeslib.as_array(memory).view(self.dtype).reshape(count, *self.shape)
        if self.rows is None:
            return arrived
        copied = np.concatenate([np.arange(*run) for run in self.runs])
        return arrived[np.searchsorted(copied, self.rows)]


class _Job(NamedTuple):
    slot: _Slot
    parts: list[_Part]
    then: Then
    failed: Failed


class _Ring:
    """The slots of one device, and the thread that waits for its copies. Each device has its own:
    one may wait for another, as in a collective, for as long as that one's launching thread is held
    or waits for copies of its own."""

    def __init__(self, driver: Driver, context: int, memory: Sequence[int]):
        """Makes a slot of each of the addresses, at which there are `LEAST_BYTES`."""
        self.driver, self.context = driver, context
        self._sent = self._done = 0  # jobs; they are dealt with in order
        # The last one that was used is used first, so that few slots get much memory.
        self._free: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for address in memory:
            self._free.put(_Slot(driver.event(), driver.event(), address, LEAST_BYTES))
        self._changed = threading.Condition()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        thread = threading.Thread(target=self._run, name="brax_viser arrivals", daemon=True)
        thread.start()

    def send(
        self, stream: int, takes: Sequence[Take], then: Then, failed: Failed, wait: bool
    ) -> bool:
        """See `Memory.send`."""
        parts, size = [], 0
        runs: dict[int, Runs | None] = {}  # the same rows are taken of many buffers
        for take in takes:
            if id(take.rows) not in runs:
                runs[id(take.rows)] = _runs(take.rows)
            part = _Part.of(take, runs[id(take.rows)], size)
            parts.append(part)
            size += part.size
            size += -size % 64
        slot = self._slot(wait)
        if slot is None:
            return False
        try:
            self._copy(slot, size, takes, parts, stream)
        except BaseException:
            # Whatever was begun before comes before the slot's next copies on the stream.
            self._free.put(slot)
            raise
        # Two trainings may send at once; `finish` counts on their order.
        with self._changed:
            self._sent += 1
            self._jobs.put(_Job(slot, parts, then, failed))
        return True

    def _copy(
        self, slot: _Slot, size: int, takes: Sequence[Take], parts: list[_Part], stream: int
    ) -> None:
        driver = self.driver
        if slot.nbytes < size:
            # By powers of two, so that what is left behind is less than what is in use. To free it
            # the driver would wait for all devices, which may wait for this thread.
            nbytes = 1 << (size - 1).bit_length()
            slot.address, slot.nbytes = driver.allocate(nbytes), nbytes
        driver.record(slot.start, stream)
        for take, part in zip(takes, parts, strict=True):
            source, target = driver.address(take.buffer), slot.address + part.place
            for start, stop in part.runs:
                nbytes = (stop - start) * part.row_size
                if nbytes:
                    driver.copy(target, source + start * part.row_size, nbytes, stream)
                target += nbytes
        driver.record(slot.stop, stream)

    def finish(self) -> None:
        """See `Memory.finish`."""
        with self._changed:
            sent = self._sent
            self._changed.wait_for(lambda: self._done >= sent)

    @property
    def pending(self) -> int:
        """Jobs that have not been dealt with."""
        return self._sent - self._done

    def _slot(self, wait: bool) -> _Slot | None:
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None

    def _run(self) -> None:
        entered = False
        while True:
            job = self._jobs.get()
            try:
                if not entered:
                    self.driver.enter(self.context)
                    entered = True
                self.driver.wait(job.slot.stop)
                seconds = self.driver.seconds_between(job.slot.start, job.slot.stop)
                job.then([part.taken(job.slot.address) for part in job.parts], seconds)
            # The thread serves all trainings of this process, which may wait for it.
            except Exception as error:
                _report(job, error)
            finally:
                self._free.put(job.slot)
                with self._changed:
                    self._done += 1
                    self._changed.notify_all()


def _report(job: _Job, error: Exception) -> None:
    try:
        job.failed(error)
    except Exception:  # such as one of a user's log filter
        log.exception("copies from the device have failed, and so has saying so")


class Arrivals:
    """Copies for all devices of one process. Separate threads wait for what arrives: XLA's threads,
    which enqueue the steps, only enqueue the copies too."""

    def __init__(self, driver: Driver):
        self.driver = driver
        self._rings: dict[int, _Ring] = {}  # by the device's context
        self._memory: list[int] = []  # addresses, of all devices
        self._lock = threading.Lock()

    def on(self, stream: int) -> "StreamMemory":
        """Returns the memory of the device on whose stream the calling thread enqueues a step."""
        context, device = self.driver.context()
        with self._lock:
            ring = self._rings.get(context)
            if ring is None:
                # For all devices at once: none has taken a step yet. What was granted before a
                # failure is kept.
                first = SLOTS * len(self._rings)
                while len(self._memory) < max(SLOTS * self.driver.devices, first + SLOTS):
                    self._memory.append(self.driver.allocate(LEAST_BYTES))
                ring = _Ring(self.driver, context, self._memory[first : first + SLOTS])
                self._rings[context] = ring
        return StreamMemory(ring, stream, device)


class StreamMemory:
    """The memory of a device that runs after the host: `Memory` for one step on one stream."""

    def __init__(self, ring: _Ring, stream: int, device: int):
        self._ring, self._stream, self._device = ring, stream, device
        self.is_ahead = ring.pending > 0

    def device_of(self, shard: Any) -> int:
        return self._device

    def read(self, buffer: Any) -> np.ndarray:
        found: list[np.ndarray] = []
        errors: list[Exception] = []
        flat = Take(_Flat(buffer))
        self.send([flat], lambda x, _: found.append(x[0].copy()), errors.append, wait=True)
        self.finish()
        if errors:
            raise errors[0]
        return found[0].reshape(buffer.shape)

    def send(self, takes: Sequence[Take], then: Then, failed: Failed, *, wait: bool) -> bool:
        return self._ring.send(self._stream, takes, then, failed, wait)

    def follow(self, lead: Lead, is_free: Callable[[], bool]) -> None:
        lead.add(self._ring.driver, self._stream, is_free)

    def finish(self) -> None:
        self._ring.finish()


class _Flat:
    """A buffer as an array with one axis."""

    def __init__(self, buffer: Any):
        self.buffer, self.dtype = buffer, buffer.dtype
        self.shape = (int(np.prod(buffer.shape)),)
