"""All that a viewer changes in its process.

That is the descriptor that signals wake, the priority of its own threads, and Python's switch
interval.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable


class InterruptWatch:
    """Calls back when SIGINT comes, on a thread of its own; Python's handling goes on beside it.

    A training that is held keeps the main thread within a compiled program, and Python runs signal
    handlers on the main thread alone, when that comes back. But its C handler writes a byte to
    the wakeup descriptor at once.

    There is one such descriptor per process, so all watches share it, and may be closed in any
    order, on any thread. It can be taken and given back by the main thread alone: a watch that is
    started elsewhere hears of nothing until another one is started there.
    """

    def __init__(self, heard: Callable[[], object]):
        self._heard = heard

    def start(self) -> None:
        """Begins to listen."""
        _wakeups.add(self, self._heard)

    def close(self) -> None:
        """Stops listening. Idempotent."""
        _wakeups.remove(self)


class _Descriptor:
    """A file descriptor of somebody else's, who may close it without telling, whereupon its number
    may be given to any other file."""

    def __init__(self, number: int):
        self.number = number
        self._file = self._now()

    def _now(self) -> tuple[int, int] | None:
        try:
            stat = os.fstat(self.number)
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    @property
    def is_still_there(self) -> bool:
        """Whether it is the very file that it was."""
        return self._file is not None and self._now() == self._file


class _Wakeups:
    """The process's wakeup descriptor, as long as anybody listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[object, Callable[[], object]] = {}
        self._signals: socket.socket | None = None  # where they are written to
        self._before: _Descriptor | None = None  # who was woken before us: an event loop, say

    def add(self, key: object, heard: Callable[[], object]) -> None:
        with self._lock:
            self._listeners[key] = heard
            if threading.current_thread() is threading.main_thread():
                self._take()

    def remove(self, key: object) -> None:
        with self._lock:
            self._listeners.pop(key, None)
            if not self._listeners and threading.current_thread() is threading.main_thread():
                self._give_back()

    def _take(self) -> None:
        if self._signals is None:
            ours, self._signals = socket.socketpair()
            self._signals.setblocking(False)
            threading.Thread(
                target=self._listen, args=(ours,), name="brax_viser interrupts", daemon=True
            ).start()
        mine = self._signals.fileno()
        before = signal.set_wakeup_fd(mine, warn_on_full_buffer=False)
        if before != mine:  # for the first time, or another has taken it, or dropped it, meanwhile
            self._before = _Descriptor(before) if before >= 0 else None

    def _give_back(self) -> None:
        if self._signals is None:
            return
        now, before = signal.set_wakeup_fd(-1), self._before
        if now != self._signals.fileno():
            # Another has it. It may hand on to ours what it hears, as we do: ours stays open.
            theirs = _Descriptor(now) if now >= 0 else None
        else:
            theirs, self._before = before, None
            self._signals.close()
            self._signals = None
        if theirs is not None and theirs.is_still_there:
            with contextlib.suppress(ValueError, OSError):  # it may be closed just now
                signal.set_wakeup_fd(theirs.number)

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while numbers := ours.recv(64):
                with self._lock:
                    before, listeners = self._before, tuple(self._listeners.values())
                if before is not None and before.is_still_there:
                    with contextlib.suppress(OSError):
                        os.write(before.number, numbers)
                if signal.SIGINT in numbers:
                    for heard in listeners:
                        heard()


_wakeups = _Wakeups()


NICENESS = 10
"""Added to a thread's own, it gets a tenth of a processor that a thread of the training wants as
well. What counts is that XLA's, when there is something to do for them again, take the processor at
once: between equals they wait."""

MORE = 5
"""On top of it, for threads that never hold Python's lock: for others, a callback may have to wait,
and where further programs take the processors they must get on. With the most that there is, 19,
what steps twins would not keep up beside a training that takes all processors."""


def lower_priority(niceness: int = NICENESS) -> None:
    """The calling thread lets others go first, and so do those that it starts from now on.

    Besides, when there is something to do for it again, it waits until a processor is free or its
    turn has come, where it would have interrupted who is at work (SCHED_BATCH, man 7 sched). Its
    share remains the same.

    Nothing is done where niceness is not a thread's but the whole process's: anywhere but on Linux.
    """
    if sys.platform == "linux":
        os.nice(niceness)
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # and not what a person has chosen
            with contextlib.suppress(OSError):  # a sandbox need not know it, as gVisor does not
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


SWITCH_SECONDS = 2e-4
"""How long a callback waits at most for another Python thread, viser's with the page's loop among
them. Python's own 5 ms would be more than most environment steps take. Process-wide while a
viewer is open; see `sys.setswitchinterval`."""


class Interpreter:
    """Python's switch interval, shortened for as long as any viewer is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._viewers = 0
        self._before = 0.0  # s

    def shorten(self) -> None:
        with self._lock:
            if self._viewers == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_SECONDS))
            self._viewers += 1

    def restore(self) -> None:
        with self._lock:
            self._viewers -= 1
            if self._viewers == 0:
                sys.setswitchinterval(self._before)


interpreter = Interpreter()
