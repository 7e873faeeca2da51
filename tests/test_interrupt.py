"""The process's wakeup descriptor: all viewers share it and give it back to its owner."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from brax_viser.process import BY_THEMSELVES, SignalWatch
from tests.conftest import eventually


class Heard:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    @property
    def times(self) -> int:
        return len(self.numbers)

    def __call__(self, number: int) -> None:
        self.numbers.append(number)


def wakeup_fd() -> int:
    number = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(number)
    return number


@pytest.fixture(autouse=True)
def no_handler() -> Iterator[None]:
    """Makes SIGINT do nothing but wake, and checks that the descriptor is restored at the end."""
    handler, before = signal.signal(signal.SIGINT, lambda *_: None), wakeup_fd()
    yield
    assert wakeup_fd() == before
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("first_closed", [0, 1])
def test_watches_may_be_closed_in_any_order_and_write_to_no_other_files(tmp_path, first_closed):
    before = wakeup_fd()
    heard = Heard(), Heard()
    watches = [SignalWatch(one) for one in heard]
    for watch in watches:
        watch.start()
    watches[first_closed].close()
    # Files that are opened now get the numbers of the closed descriptors.
    files = [os.open(tmp_path / str(n), os.O_CREAT | os.O_RDWR) for n in range(20)]
    signal.raise_signal(signal.SIGINT)
    eventually(lambda: heard[1 - first_closed].times == 1, "the one that is left hears of it")
    watches[1 - first_closed].close()
    assert wakeup_fd() == before  # neither a closed number nor a file's
    signal.raise_signal(signal.SIGINT)
    assert [os.fstat(file).st_size for file in files] == [0] * 20
    assert heard[first_closed].times == 0
    for file in files:
        os.close(file)


def test_an_earlier_owner_is_still_woken_and_gets_the_descriptor_back():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    heard = Heard()
    watches = [SignalWatch(heard), SignalWatch(heard)]
    for watch in watches:
        watch.start()
    signal.raise_signal(signal.SIGINT)
    ours.settimeout(10)
    assert ours.recv(8) == bytes([signal.SIGINT])
    eventually(lambda: heard.times == 2, "both hear of it")
    for watch in watches:
        watch.close()
    assert signal.set_wakeup_fd(before) == theirs.fileno()
    ours.close()
    theirs.close()


def test_a_descriptor_closed_by_its_owner_is_neither_written_to_nor_given_back(tmp_path):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    number, before = theirs.fileno(), signal.set_wakeup_fd(theirs.fileno())
    heard = Heard()
    watch = SignalWatch(heard)
    watch.start()
    file = os.open(tmp_path / "checkpoint", os.O_CREAT | os.O_RDWR)
    theirs.close()
    os.dup2(file, number)  # the number now belongs to a file
    signal.raise_signal(signal.SIGINT)
    eventually(lambda: heard.times == 1, "the watch hears of it")
    watch.close()
    assert os.fstat(file).st_size == 0
    assert signal.set_wakeup_fd(before) == -1
    os.close(number)
    os.close(file)
    ours.close()


def test_a_watch_closed_on_another_thread_is_not_called_again():
    heard, other = Heard(), Heard()
    watch = SignalWatch(heard)
    watch.start()
    closing = threading.Thread(target=watch.close)
    closing.start()
    closing.join()
    beside = SignalWatch(other)
    beside.start()
    signal.raise_signal(signal.SIGINT)
    eventually(lambda: other.times == 1, "the one that is left hears of it")
    assert heard.times == 0
    beside.close()


def test_all_signals_are_heard_but_those_that_come_by_themselves():
    heard = Heard()
    watch = SignalWatch(heard)
    before = {number: signal.getsignal(number) for number in (*BY_THEMSELVES, signal.SIGUSR1)}
    for number in before:
        signal.signal(number, lambda *_: None)
    watch.start()
    try:
        os.write(wakeup_fd(), b"\0\xff")  # as an event loop may, to wake itself: no signals
        for number in before:
            signal.raise_signal(number)
        eventually(lambda: heard.times, "the last one is heard")
        assert heard.numbers == [signal.SIGUSR1]
    finally:
        watch.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_are_heard_again_where_asyncio_has_taken_them_and_both_hear():
    heard, handled = Heard(), []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: handled.append(1))
        watch.start()  # as before a training
        signal.raise_signal(signal.SIGUSR1)
        while not (handled and heard.numbers):
            await asyncio.sleep(0.01)

    watch, before = SignalWatch(heard), signal.getsignal(signal.SIGUSR1)
    watch.start()
    asyncio.run(asyncio.wait_for(main(), 60))
    assert heard.numbers == [signal.SIGUSR1]
    watch.close()
    watch.start()
    assert wakeup_fd() == -1, "one that is closed stays so"
    signal.signal(signal.SIGUSR1, before)
