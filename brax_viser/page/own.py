"""Runs replays for single pages: `brax-viser replay`, in processes beside the training's.

Such a process is handed nothing but the path of a run directory, which it reads. It writes no
files, imports no JAX, and ends with this one.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from brax_viser.page.access import TOKEN
from brax_viser.process import NICENESS

log = logging.getLogger("brax_viser")

RELAYED_BY = "BRAX_VISER_RELAYED_BY"
"""Environment variable of such a process: the number of the process that relays its page."""

MOST_PROCESSES = 4
"""Most such processes at once. Each takes 160 MB of memory, and more for large robots."""

MOST_PAGES = 4
"""Most pages of one such process: for each, a few messages of megabytes may be in memory here."""

IDLE_SECONDS = 60.0
"""s without a page after which a process is ended. A page that is reloaded comes back earlier."""

START_SECONDS = 120.0
"""s in which a process must have opened the run directory."""

MOST_CHARACTERS = 300
"""Characters that are kept of what a failed process has said."""

NO_EPISODE = "No episode is recorded yet"
FULL = (
    f"{MOST_PROCESSES} replays of single pages run already, which is the most. One ends "
    f"{IDLE_SECONDS:.0f} s after its last page was closed"
)
CROWDED = f"{MOST_PAGES} pages show this replay already, which is the most"

_LISTENING = "brax_viser: relayed at port {}"
_LISTENS = re.compile(_LISTENING.format(r"(\d{1,5})"))


RunDir = Callable[[], AbstractContextManager[str] | None]
"""Returns what yields a run directory; None: there is nothing to show yet."""


class Unavailable(Exception):
    """No such replay is available now; the text says why."""


def announce(port: int) -> None:
    """Prints the port of this process's page for the process that relays it."""
    print(_LISTENING.format(port), flush=True)


class OwnReplay:
    """One process. Used on viser's loop, except where noted."""

    def __init__(
        self, run_dir: AbstractContextManager[str], ended: Callable[["OwnReplay"], object]
    ):
        """Starts it on a thread, which waits for its end.

        Args:
            run_dir: yields the run directory that it shows; entered and left on the thread.
            ended: called on the loop when it has ended, or is about to.
        """
        self.token = secrets.token_hex(16)  # needed to open the process's page
        self.pages = 0  # number of connected pages
        self.said = ""  # its last lines of output
        self._loop = asyncio.get_running_loop()
        self.port: asyncio.Future[int | None] = self._loop.create_future()  # None: it has ended
        self._ended = ended
        self._idle: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = self._over = False
        name = "brax_viser own replay"
        self.thread = threading.Thread(target=self._run, args=(run_dir,), name=name, daemon=True)
        self.thread.start()

    @property
    def pid(self) -> int | None:
        """The process's number; None before it has been started."""
        return self._process.pid if self._process is not None else None

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Counts a page, without which the process ends after a while."""
        self.pages += 1
        try:
            yield
        finally:
            self.pages -= 1
            self.wait()

    def wait(self) -> None:
        """Ends the process in `IDLE_SECONDS` unless a page is connected then."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.call_later(IDLE_SECONDS, self._end_without_pages)

    def _end_without_pages(self) -> None:
        if not self.pages:
            self.end()

    def end(self) -> None:
        """Ends the process at once: it has nothing to save."""
        self._ended(self)
        self.kill()

    def kill(self) -> None:
        """Kills the process without calling `ended`. Called on any thread."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def check(self) -> None:
        """Raises ConnectionError if it no longer runs: another process may then answer at its
        port."""
        if self._over:
            raise ConnectionError("it has ended")

    def _run(self, run_dir: AbstractContextManager[str]) -> None:
        """Runs on the thread."""
        try:
            with run_dir as place:
                self._show(place)
        except (OSError, ValueError) as error:  # no room for a copy, no memory for a process
            self.said = str(error)
        finally:
            self._tell(self._is_over)

    def _show(self, place: str) -> None:
        """Runs the process to its end."""
        with self._lock:
            if self._killed:
                return
            self._process = process = _started(place, self.token)
        with process:
            assert process.stdout is not None
            while line := process.stdout.readline(MOST_CHARACTERS):
                self._heard(line.decode(errors="replace").strip())
            self._over = True

    def _heard(self, line: str) -> None:
        if found := _LISTENS.fullmatch(line):
            self._tell(functools.partial(self._listens, int(found[1])))
        else:
            self.said = f"{self.said} {line}".strip()[-MOST_CHARACTERS:]

    def _tell(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)

    def _listens(self, port: int) -> None:
        if not self.port.done():
            self.port.set_result(port)

    def _is_over(self) -> None:
        if not self.port.done():
            self.port.set_result(None)
        if not self._killed:
            log.warning("the replay of a single page has ended: %s", self.said or "without a word")
        if self._idle is not None:
            self._idle.cancel()
        self._ended(self)


class OwnReplays:
    """The replays of single pages of one viewer, by the names that their pages choose. Used on
    viser's loop, except where noted."""

    def __init__(self, run_dir: RunDir):
        """Starts none yet.

        Args:
            run_dir: of what the page shows.
        """
        self._run_dir = run_dir
        self._lock = threading.Lock()  # guards what `close` needs
        self._closed = False
        self._running: dict[str, OwnReplay] = {}

    @property
    def refusal(self) -> str | None:
        """Why no replay can be started; None if one can."""
        return NO_EPISODE if self._run_dir() is None else None

    async def get(self, name: str, *, starts: bool) -> tuple[OwnReplay, int]:
        """Returns a replay and its port, once it answers.

        Args:
            name: chosen by its page.
            starts: whether it is started, if it does not run.

        Raises:
            Unavailable: it does not run, and is not or cannot be started.
        """
        one = self._running.get(name) or self._begun(name, starts=starts)
        try:
            async with asyncio.timeout(START_SECONDS):
                port = await asyncio.shield(one.port)
        except TimeoutError:
            one.end()
            raise Unavailable(f"It has not begun within {START_SECONDS:.0f} s") from None
        if port is None:
            raise Unavailable(f"It could not begin: {one.said}" if one.said else "It has ended")
        if starts:
            one.wait()
        return one, port

    def _begun(self, name: str, *, starts: bool) -> OwnReplay:
        run_dir = self._run_dir()
        if run_dir is None:
            raise Unavailable(NO_EPISODE)
        with self._lock:
            if self._closed or not starts:
                raise Unavailable("It has ended")
            if len(self._running) >= MOST_PROCESSES:
                raise Unavailable(FULL)
            one = OwnReplay(run_dir, functools.partial(self._forget, name))
            self._running[name] = one
        return one

    def _forget(self, name: str, one: OwnReplay) -> None:
        with self._lock:
            if self._running.get(name) is one:
                del self._running[name]

    def close(self) -> None:
        """Ends all. Called on any thread."""
        with self._lock:
            self._closed = True
            running = list(self._running.values())
        for one in running:
            one.kill()
        for one in running:
            one.thread.join(timeout=5.0)


def _started(run_dir: str, token: str) -> "subprocess.Popen[bytes]":
    """Starts a process of lower priority, which Ctrl-C in the training's terminal does not reach.
    It stays in the session: a separate session would get a separate share of the cores."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "brax_viser", "replay", run_dir),
            *("--host", "127.0.0.1", "--port", "0"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, TOKEN: token, RELAYED_BY: str(os.getpid())},
        process_group=0,
    )
    if hasattr(os, "setpriority"):  # on Linux it inherits this from the page's thread
        with contextlib.suppress(OSError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    # Linux: if memory runs out, this process is killed, not the training.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
    return process
