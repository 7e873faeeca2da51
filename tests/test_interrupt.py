"""The process's wakeup descriptor: all viewers share it and give it back to its owner."""

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from brax_viser.process import InterruptWatch
from tests.conftest import eventually


class Heard:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


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
    watches = [InterruptWatch(one) for one in heard]
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
    watches = [InterruptWatch(heard), InterruptWatch(heard)]
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
    watch = InterruptWatch(heard)
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
    watch = InterruptWatch(heard)
    watch.start()
    closing = threading.Thread(target=watch.close)
    closing.start()
    closing.join()
    beside = InterruptWatch(other)
    beside.start()
    signal.raise_signal(signal.SIGINT)
    eventually(lambda: other.times == 1, "the one that is left hears of it")
    assert heard.times == 0
    beside.close()
