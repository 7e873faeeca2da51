"""Of many clicks, the newest is carried out, on one thread."""

import threading

from brax_viser.sandbox.newest import Newest
from tests.conftest import eventually


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_one_thread_carries_out_the_first_and_the_last_of_a_thousand_wishes():
    open_, worked, name = threading.Event(), [], "a thousand wishes"

    def work(number: int) -> None:
        worked.append(number)
        assert open_.wait(60)

    newest = Newest(work, name)
    newest.wish(0)
    eventually(lambda: worked, "the first is being worked off")
    for number in range(1, 1000):
        newest.wish(number)
    assert threads(name) == 1
    open_.set()
    eventually(lambda: not threads(name), "the thread ends")
    assert worked == [0, 999]
    newest.wish(7)
    eventually(lambda: worked == [0, 999, 7], "another one is worked off")


def test_work_that_fails_is_logged_and_the_next_wish_is_carried_out(caplog):
    worked, name = [], "failing wishes"

    def work(number: int) -> None:
        worked.append(number)
        if number == 0:
            raise OSError("no more threads")

    newest = Newest(work, name)
    for number in (0, 1):
        newest.wish(number)
        eventually(lambda number=number: worked[-1:] == [number], "it is worked off")
    assert f"{name} failed" in caplog.text and "no more threads" in caplog.text
