"""Makes all the changes that a viewer makes to its process.

These are the wakeup descriptor for signals, the priority of the viewer's own threads, and Python's
switch interval.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

BY_THEMSELVES = {
    number
    for name in ("SIGCHLD", "SIGWINCH", "SIGPROF", "SIGVTALRM")
    if (number := getattr(signal, name, None)) is not None
}
"""Signals that come by themselves, some of them many times a second: when a child process ends, a
terminal changes its size, or a profiler takes a sample. They are not passed on."""


class SignalWatch:
    """Calls back on signals that have a handler in Python, on a separate thread; Python's own
    handling is not affected.

    Python runs signal handlers only on the main thread, between bytecodes, and a held training
    keeps that thread within a compiled program. But Python's C handler writes a byte to the wakeup
    descriptor at once.

    A process has one wakeup descriptor, so all watches share it; they may be closed in any order,
    on any thread. Only the main thread can set and restore it: a watch that is started on another
    thread receives nothing until a watch is started on the main thread.
    """

    def __init__(self, heard: Callable[[int], object]):
        """Hears nothing yet.

        Args:
            heard: called with the number of each signal, except those in `BY_THEMSELVES`.
        """
        self._heard, self._closed = heard, False

    def start(self) -> None:
        """Starts listening. Must be called again where others, such as an event loop of asyncio,
        may have set the descriptor since: signals are passed on to them. Does nothing once
        closed."""
        if not self._closed:
            _wakeups.add(self, self._heard)

    def close(self) -> None:
        """Stops listening. Idempotent."""
        self._closed = True
        _wakeups.remove(self)


class _Descriptor:
    """Another component's file descriptor, which may be closed without notice; its number may then
    be reused for any other file."""

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
        """Whether the number still refers to the same file."""
        return self._file is not None and self._now() == self._file


class _Wakeups:
    """The process's wakeup descriptor, taken while there are listeners."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[object, Callable[[int], object]] = {}
        self._signals: socket.socket | None = None  # the end that Python writes signal numbers to
        self._before: _Descriptor | None = None  # the one before ours, e.g. an event loop's

    def add(self, key: object, heard: Callable[[int], object]) -> None:
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
        if before != mine:  # the first time, or others have set or dropped theirs
            self._before = _Descriptor(before) if before >= 0 else None

    def _give_back(self) -> None:
        if self._signals is None:
            return
        now, before = signal.set_wakeup_fd(-1), self._before
        if now != self._signals.fileno():
            # Others have set theirs, which may forward signals to ours, as we do: keep ours open.
            theirs = _Descriptor(now) if now >= 0 else None
        else:
            theirs, self._before = before, None
            self._signals.close()
            self._signals = None
        if theirs is not None and theirs.is_still_there:
            with contextlib.suppress(ValueError, OSError):  # it may have just been closed
                signal.set_wakeup_fd(theirs.number)

    def _listen(self, ours: socket.socket) -> None:
        with ours:
            while numbers := ours.recv(64):
                with self._lock:
                    before, listeners = self._before, tuple(self._listeners.values())
                if before is not None and before.is_still_there:
                    with contextlib.suppress(OSError):
                        os.write(before.number, numbers)
                # Only signals with a handler in Python come here. Others may write anything.
                for number in (set(numbers) & signal.valid_signals()) - BY_THEMSELVES:
                    for heard in listeners:
                        heard(number)

    def forget(self) -> None:
        """Leaves the descriptor to the process that this one was forked from: a signal of this one
        would be heard there. Called in the new process, which has none of the listening threads."""
        self._lock = threading.Lock()  # it may have been held by one of them
        if self._signals is not None:
            now = signal.set_wakeup_fd(-1)
            if now not in (-1, self._signals.fileno()):  # others have set theirs
                signal.set_wakeup_fd(now)
            self._signals.close()
        self._listeners, self._signals, self._before = {}, None, None


_wakeups = _Wakeups()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_wakeups.forget)


NICENESS = 10
"""Nice increment for the viewer's threads. At +10 the scheduler gives them about a tenth of a core
that the training wants too, and, more importantly, XLA's threads pre-empt them at once when they
wake up: threads of equal priority would have to wait."""

MORE = 5
"""Additional nice increment for threads that never hold Python's lock. A callback may have to wait
for one that does, which must make progress even if other programs use all cores. At the maximum,
19, the threads that step the twins would not keep up with a training that uses all cores."""


def lower_priority(niceness: int = NICENESS) -> None:
    """Lowers the priority of the calling thread and of the threads that it starts afterwards.

    Also sets SCHED_BATCH (man 7 sched): a thread that wakes up does not pre-empt the running one,
    but waits for a free core or its turn. Its share of the cores remains the same.

    Does nothing except on Linux: elsewhere niceness applies to the whole process.
    """
    if sys.platform == "linux":
        os.nice(niceness)
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # keep a policy that the user has chosen
            with contextlib.suppress(OSError):  # not supported in gVisor, for example
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


SWITCH_SECONDS = 2e-4
"""s after which a waiting callback may take over from another Python thread, such as the page's
loop. Python's default of 5 ms is longer than most environment steps. Applies to the whole process
while a viewer is open; see `sys.setswitchinterval`."""


class Interpreter:
    """Python's switch interval, shortened while any viewer is open."""

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


LOOK_SECONDS = 1.0
"""s between two checks whether the parent lives."""


def end_with(parent: int) -> None:
    """Has this process end at once when its parent has ended, even if that was killed.

    A pipe's end would stay open in any process that the parent has forked. Nothing is finished:
    this is for a process that only reads.

    Args:
        parent: number of the process that has started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="brax_viser parent", daemon=True).start()


def last_words(descriptor: int, text: str) -> None:
    """Writes to a file descriptor, unless that would have to wait: a terminal may be stopped by
    Ctrl-S, and a pager may read no more. The process can then end at once."""
    with contextlib.suppress(OSError, ValueError):
        if os.name != "posix" or select.select([], [descriptor], [], 0)[1]:
            os.write(descriptor, text.encode())
