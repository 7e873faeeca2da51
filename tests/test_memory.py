"""Copies from a device to the host: which rows, in what order, and when too many are under way."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.device.cuda import CudaError
from brax_viser.device.memory import MOST_RUNS, SLOTS, Arrivals, HostMemory, Take
from tests.late import LateDriver, unfailing


@pytest.fixture
def driver() -> LateDriver:
    return LateDriver()


def array(count: int) -> np.ndarray:
    return np.arange(3.0 * count, dtype=np.float32).reshape(count, 3)


@pytest.mark.parametrize(
    ("rows", "copies"),
    [
        ([0, 1, 2], 1),
        ([7, 3, 4, 8, 2], 2),
        (list(range(0, 4 * MOST_RUNS, 2)), 1),  # too many runs: all is copied
        ([], 0),
        (None, 1),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_rows_arrive_in_the_order_asked_for(driver, late, rows, copies):
    memory = Arrivals(driver, unfailing).on(0) if late else HostMemory()
    whole, other = array(100), np.arange(5)
    found: list[np.ndarray] = []
    chosen = None if rows is None else np.array(rows, int)
    sent = memory.send(
        [Take(whole, chosen), Take(other)],
        lambda arrays, _: found.extend(x.copy() for x in arrays),
        wait=True,
    )
    memory.finish()
    assert (sent and not late) or len(driver.copies) == copies + 1
    np.testing.assert_array_equal(found[0], whole if chosen is None else whole[chosen])
    np.testing.assert_array_equal(found[1], other)


@given(st.integers(1, 80), st.data())
def test_any_rows_arrive_in_the_order_asked_for(count, data):
    rows = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    memory, found = Arrivals(LateDriver(), unfailing).on(0), []
    whole = array(count)
    memory.send(
        [Take(whole, np.array(rows, int))], lambda x, _: found.append(x[0].copy()), wait=True
    )
    memory.finish()
    np.testing.assert_array_equal(found[0], whole[rows])


def test_steps_are_dropped_while_too_many_copies_are_under_way_and_arrive_in_order(driver):
    arrivals, order = Arrivals(driver, unfailing), []
    memory = arrivals.on(0)

    def send(number: int, wait: bool = False) -> bool:
        return memory.send([Take(array(2))], lambda *_: order.append(number), wait=wait)

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


def test_a_failure_with_one_step_does_not_stop_the_others(driver):
    failures: list[Exception] = []
    memory = Arrivals(driver, failures.append).on(0)
    seen: list[int] = []
    for i in range(3 * SLOTS):
        memory.send([Take(array(2))], lambda *_: seen.append(1 // 0), wait=True)
        memory.send([Take(array(2))], lambda *_, i=i: seen.append(i), wait=True)
    memory.finish()
    assert seen == list(range(3 * SLOTS)) and len(failures) == 3 * SLOTS


def test_nothing_waits_for_ever_for_a_driver_that_fails(driver, monkeypatch):
    failures: list[Exception] = []
    memory = Arrivals(driver, failures.append).on(0)

    def broken(event: int) -> None:
        raise CudaError("the device is lost")

    monkeypatch.setattr(driver, "wait", broken)
    for _ in range(3 * SLOTS):
        memory.send([Take(array(2))], lambda *_: pytest.fail("nothing has arrived"), wait=True)
    memory.finish()
    assert len(failures) == 3 * SLOTS


def test_the_memory_of_a_slot_grows_with_what_is_copied(driver):
    memory = Arrivals(driver, unfailing).on(0)
    found: list[np.ndarray] = []
    for count in [1, 1000, 10] * SLOTS:
        memory.send(
            [Take(array(count))], lambda arrays, _: found.append(arrays[0].copy()), wait=True
        )
    memory.finish()
    for count, rows in zip([1, 1000, 10] * SLOTS, found, strict=True):
        np.testing.assert_array_equal(rows, array(count))
    assert len(driver._memory) <= SLOTS
