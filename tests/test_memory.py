"""Copies from a device to the host: which rows, in what order, and when too many are under way."""

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.device import lead as device_lead
from brax_viser.device.cuda import CudaDriver, CudaError
from brax_viser.device.lead import LEAD, LEAST_LEAD, Lead
from brax_viser.device.memory import (
    COPY_BYTES,
    LEAST_BYTES,
    SLOTS,
    Arrivals,
    HostMemory,
    Take,
)
from tests.conftest import eventually
from tests.late import Gate, LateDriver, unfailing


@pytest.fixture
def driver() -> LateDriver:
    return LateDriver()


def array(count: int) -> np.ndarray:
    return np.arange(3.0 * count, dtype=np.float32).reshape(count, 3)


def wide(count: int) -> np.ndarray:
    """Rows of a sixteenth of the bytes that are copied while another copy is begun."""
    return np.arange(count * COPY_BYTES // 64, dtype=np.float32).reshape(count, -1)


@pytest.mark.parametrize(
    ("rows", "copies"),
    [
        ([0, 1, 2], 1),
        ([7, 3, 4, 8, 2], 2),
        (list(range(0, 14, 2)), 7),
        (list(range(0, 16, 2)), 1),  # all of it, which takes less than eight copies
        ([], 0),
        (None, 1),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_rows_arrive_in_the_order_asked_for(driver, late, rows, copies):
    memory = Arrivals(driver).on(0) if late else HostMemory()
    whole, other = wide(100), np.arange(5)
    found: list[np.ndarray] = []
    chosen = None if rows is None else np.array(rows, int)
    sent = memory.send(
        [Take(whole, chosen), Take(other)],
        lambda arrays, _: found.extend(x.copy() for x in arrays),
        unfailing,
        wait=True,
    )
    memory.finish()
    assert (sent and not late) or len(driver.copies) == copies + 1
    np.testing.assert_array_equal(found[0], whole if chosen is None else whole[chosen])
    np.testing.assert_array_equal(found[1], other)


@given(st.integers(1, 80), st.data())
def test_any_rows_arrive_in_the_order_asked_for(count, data):
    rows = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    memory, found = Arrivals(LateDriver()).on(0), []
    whole = wide(count)
    take = Take(whole, np.array(rows, int))
    memory.send([take], lambda x, _: found.append(x[0].copy()), unfailing, wait=True)
    memory.finish()
    np.testing.assert_array_equal(found[0], whole[rows])


def test_steps_are_dropped_while_too_many_copies_are_under_way_and_arrive_in_order(driver):
    arrivals, order = Arrivals(driver), []
    memory = arrivals.on(0)

    def send(number: int, wait: bool = False) -> bool:
        take = Take(array(2))
        return memory.send([take], lambda *_: order.append(number), unfailing, wait=wait)

    driver.arrives.clear()
    assert all(send(i) for i in range(SLOTS))
    assert not send(100)
    waiting = threading.Thread(target=send, args=(SLOTS, True))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and order == []
    driver.arrives.set()
    waiting.join(60)
    memory.finish()
    assert order == list(range(SLOTS + 1))


@pytest.mark.parametrize("late", [False, True])
def test_a_failure_with_one_step_does_not_stop_the_others(driver, late):
    failures: list[Exception] = []
    memory = Arrivals(driver).on(0) if late else HostMemory()
    seen: list[int] = []
    take = Take(array(2))
    for i in range(3 * SLOTS):
        memory.send([take], lambda *_: seen.append(1 // 0), failures.append, wait=True)
        memory.send([take], lambda *_, i=i: seen.append(i), unfailing, wait=True)
    memory.finish()
    assert seen == list(range(3 * SLOTS)) and len(failures) == 3 * SLOTS


def test_a_failure_that_cannot_be_reported_does_not_stop_the_others(driver, caplog):
    memory, seen = Arrivals(driver).on(0), []
    memory.send([Take(array(2))], lambda *_: seen.append(1 // 0), unfailing, wait=True)
    memory.send([Take(array(2))], lambda *_: seen.append(1), unfailing, wait=True)
    memory.finish()
    assert seen == [1] and "ZeroDivisionError" in caplog.text


def broken(*args: object) -> None:
    raise CudaError("the device is lost")


def test_nothing_waits_for_ever_for_a_driver_that_fails(driver, monkeypatch):
    failures: list[Exception] = []
    memory = Arrivals(driver).on(0)
    monkeypatch.setattr(driver, "wait", broken)
    for _ in range(3 * SLOTS):
        memory.send(
            [Take(array(2))],
            lambda *_: pytest.fail("nothing has arrived"),
            failures.append,
            wait=True,
        )
    memory.finish()
    assert len(failures) == 3 * SLOTS
    with pytest.raises(CudaError, match="lost"):
        memory.read(array(2))


@pytest.mark.parametrize("function", ["allocate", "copy", "record"])
def test_copies_that_cannot_be_begun_use_up_no_slot(driver, monkeypatch, function):
    memory, found = Arrivals(driver).on(0), []
    large = Take(np.arange(LEAST_BYTES // 4))  # more than a slot has at first
    with monkeypatch.context() as patch:
        patch.setattr(driver, function, broken)
        for _ in range(2 * SLOTS):
            with pytest.raises(CudaError, match="lost"):
                memory.send([large], lambda *_: None, unfailing, wait=True)
    for _ in range(2 * SLOTS):
        memory.send([Take(array(2))], lambda x, _: found.append(x[0].copy()), unfailing, wait=True)
    memory.finish()
    np.testing.assert_array_equal(found, [array(2)] * 2 * SLOTS)


def test_a_device_waits_for_its_own_copies_only(driver):
    """In a collective a device waits for others, whose threads may wait for their copies."""
    arrivals = Arrivals(driver)
    first = arrivals.on(0)
    driver.device = 1
    second = arrivals.on(0)
    assert second.device_of(None) == 1
    driver.arrives_on[0] = Gate()
    order: list[int] = []
    driver.device = 0
    first.send([Take(array(2))], lambda *_: order.append(0), unfailing, wait=True)
    driver.device = 1
    second.send([Take(array(2))], lambda *_: order.append(1), unfailing, wait=True)
    waiting = threading.Thread(target=second.finish, daemon=True)
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive() and order == [1]
    driver.arrives_on[0].set()
    first.finish()
    assert order == [1, 0]


class Passing:
    """A buffer whose description is gone once the call that got it has returned."""

    def __init__(self, whole: np.ndarray):
        self.buffer: np.ndarray | None = whole

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.buffer is not None
        return self.buffer.shape

    @property
    def dtype(self) -> np.dtype:
        assert self.buffer is not None
        return self.buffer.dtype


def test_nothing_is_asked_of_a_buffer_after_the_call(driver):
    memory, found = Arrivals(driver).on(0), []
    driver.arrives.clear()
    passing = Passing(array(9))
    take = Take(passing, np.array([5, 2]))
    memory.send([take], lambda x, _: found.append(x[0].copy()), unfailing, wait=True)
    passing.buffer = None
    driver.arrives.set()
    memory.finish()
    np.testing.assert_array_equal(found[0], array(9)[[5, 2]])


def test_a_slot_seldom_gets_more_memory(driver):
    memory, row = Arrivals(driver).on(0), 12
    found: list[np.ndarray] = []
    counts = [1, 1000, 10, LEAST_BYTES // row, LEAST_BYTES // row + 1, LEAST_BYTES // row + 9]
    for count in counts:
        for _ in range(SLOTS):
            memory.send(
                [Take(array(count))],
                lambda x, _: found.append(x[0].copy()),
                unfailing,
                wait=True,
            )
        memory.finish()
    for count, rows in zip(np.repeat(counts, SLOTS), found, strict=True):
        np.testing.assert_array_equal(rows, array(count))
    sizes = [len(memory) for memory in driver.memory.values()]
    assert {*sizes} == {LEAST_BYTES, 2 * LEAST_BYTES}
    assert sizes.count(2 * LEAST_BYTES) <= SLOTS


class Enqueuing:
    """Enqueues 100 steps in another thread."""

    def __init__(self, driver: LateDriver):
        self.done, self.is_free, self._memory = 0, False, Arrivals(driver).on(0)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        lead = Lead()
        for _ in range(100):
            self._memory.follow(lead, lambda: self.is_free)
            self.done += 1

    def stays_at(self, count: int) -> None:
        eventually(lambda: self.done >= count, "it comes that far")
        self.thread.join(0.2)
        assert self.done == count


@pytest.mark.parametrize(("seconds", "most"), [(60.0, LEAD), (0.0, LEAST_LEAD)])
def test_the_host_is_few_steps_ahead_of_the_device(driver, monkeypatch, seconds, most):
    monkeypatch.setattr(device_lead, "LEAD_SECONDS", seconds)
    driver.arrives.clear()
    enqueuing = Enqueuing(driver)
    enqueuing.stays_at(most)
    driver.arrives.set()
    enqueuing.thread.join(60)
    assert enqueuing.done == 100


def test_a_hold_need_not_wait_for_the_device(driver, monkeypatch):
    monkeypatch.setattr(device_lead, "LEAD_SECONDS", 60.0)
    driver.arrives.clear()
    enqueuing = Enqueuing(driver)
    enqueuing.stays_at(LEAD)
    enqueuing.is_free = True
    enqueuing.thread.join(60)
    assert enqueuing.done == 100


def test_a_step_that_cannot_be_followed_uses_up_no_lead(driver, monkeypatch):
    memory, lead = Arrivals(driver).on(0), Lead()
    with monkeypatch.context() as patch:
        patch.setattr(driver, "record", broken)
        for _ in range(2 * LEAD):
            with pytest.raises(CudaError, match="lost"):
                memory.follow(lead, lambda: False)
    driver.arrives.clear()
    for _ in range(LEAST_LEAD):
        memory.follow(lead, lambda: False)  # else it would wait for ever


def test_memory_is_granted_before_the_first_step_and_once(driver, monkeypatch):
    arrivals = Arrivals(driver)
    allocate, left = driver.allocate, [SLOTS]

    def scarce(nbytes: int) -> int:
        if not left[0]:
            raise CudaError("no memory")
        left[0] -= 1
        return allocate(nbytes)

    monkeypatch.setattr(driver, "allocate", scarce)
    for _ in range(3):
        with pytest.raises(CudaError, match="no memory"):
            arrivals.on(0)
    left[0] = 100
    arrivals.on(0)
    driver.device = 1
    arrivals.on(0)
    assert len(driver.memory) == SLOTS * driver.devices == 100 + SLOTS - left[0]


def test_a_training_does_not_wait_for_what_another_sends_later(driver):
    memory, first, later = Arrivals(driver).on(0), threading.Event(), threading.Event()
    take = Take(array(2))
    memory.send([take], lambda *_: first.wait(60), unfailing, wait=True)
    finishing = threading.Thread(target=memory.finish, daemon=True)
    finishing.start()
    finishing.join(0.2)
    assert finishing.is_alive()
    memory.send([take], lambda *_: later.wait(60), unfailing, wait=True)
    first.set()
    finishing.join(30)
    assert not finishing.is_alive()
    later.set()
    memory.finish()


def test_cuda_tells_a_stream_that_is_busy_from_a_device_that_is_lost(monkeypatch):
    def count(devices: Any) -> int:
        devices._obj.value = 2
        return 0

    statuses = {1: 0, 2: 600, 3: 700}
    library = SimpleNamespace(
        cuDeviceGetCount=count, cuEventQuery=lambda event: statuses[event.value]
    )
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: library)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    cuda = CudaDriver()
    assert cuda.devices == 2 and cuda.has_reached(1) and not cuda.has_reached(2)
    with pytest.raises(CudaError, match="700"):
        cuda.has_reached(3)
