"""Keeps the output of libraries from burying the command's own."""

import collections
import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

MOST_KINDS = 1000
"""Number of kinds of lines that are counted; others are shown each time."""


class FoldedOutput:
    """A context in which native libraries' output on the standard output is read line by line.

    Warp, for one, prints two lines whenever a solver reaches its limit: on a CPU tens of thousands
    a minute. A line is printed when it first comes; lines that differ from it by numbers alone are
    counted. Python's own `sys.stdout` is not affected.
    """

    def __init__(self, show: Callable[[str], object]):
        """Does nothing yet.

        Args:
            show: prints a line; called on a separate thread.
        """
        self._show = show
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "FoldedOutput":
        if os.name != "posix":
            return self
        try:
            number = sys.stdout.fileno()
        except (OSError, ValueError, io.UnsupportedOperation):
            return self  # the standard output is not a file: there is nothing to read from
        sys.stdout.flush()
        terminal, before = os.dup(number), sys.stdout
        mine = open(terminal, "w", buffering=1, encoding=before.encoding, errors=before.errors)
        reads, writes = os.pipe()
        # A library that prints while it holds Python's lock must never wait for our thread, which
        # needs that lock: what does not fit is lost.
        os.set_blocking(writes, False)
        os.dup2(writes, number)
        os.close(writes)
        reader = threading.Thread(target=self._read, args=(reads,), name="output", daemon=True)
        sys.stdout = mine
        self._undo.callback(self._restore, number, mine, before, reader)
        reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _restore(self, number: int, mine: Any, before: Any, reader: threading.Thread) -> None:
        os.dup2(mine.fileno(), number)  # closes the last writing end, so the reader ends
        reader.join(timeout=5.0)
        for key, count in self._counts.items():
            if count > 1:
                self._show(f"Printed {count:,} times in all: {self._first[key]}")
        if sys.stdout is mine:
            sys.stdout = before
        mine.close()

    def _read(self, reads: int) -> None:
        with open(reads, encoding="utf-8", errors="replace") as lines:
            for raw in lines:
                line = raw.rstrip()
                key = re.sub(r"\d+", "0", line)
                if key in self._first:
                    self._counts[key] += 1
                    if self._counts[key] == 2 and line:
                        self._show("  (further lines like this one are only counted)")
                else:
                    self._show(line)
                if key not in self._first and len(self._first) < MOST_KINDS:
                    self._first[key] = line
                    self._counts[key] = 1


class MutedThread(io.TextIOBase):
    """Standard output without that of the thread that made this object.

    `sys.stdout` belongs to all threads: messages of others, such as that Ctrl-C was noticed, must
    not be lost.
    """

    def __init__(self, stdout: TextIO) -> None:
        self._stdout, self._muted = stdout, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._muted else self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()

    def fileno(self) -> int:
        return self._stdout.fileno()

    def isatty(self) -> bool:
        return self._stdout.isatty()
