"""Shows an hour of frames as fast as possible, to see whether memory stays constant.

python -m benchmarks.soak --frames 108000

As many frames as an hour has at 30 per second are sent to the page, one directly after the other.
Clients connect and leave, one is asleep (connected, but reads nothing), and a browser
looks on from the first frame to the last, with a hidden second tab. Figures are taken after the
first tenth, when everything that is made once exists, at the middle, and at the end.
"""

import contextlib
import gc
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
import viser
import websockets.sync.client
from playwright.sync_api import CDPSession, sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks.client import SUBPROTOCOL, hello
from benchmarks.scene import ROBOTS, Show
from benchmarks.screenshot import FLAGS
from brax_viser.page.clients import keep_openings_short

PIECE = 500
"""Frames per call of `Show.run`."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    robot: str = "ant"
    count: int = 64
    frames: int = 108_000
    """30 per second for an hour."""
    fps: float = 1000.0
    """Frames per second to aim for."""
    page: bool = True
    """Have a browser look on; needs Chromium and the `test` extra."""


@dataclass(frozen=True)
class Reading:
    """The memory in use after some frames."""

    frames: int
    process: float  # bytes, resident
    page: float  # bytes of JavaScript, with the arrays that it holds; nan without a page
    first: float  # s until a client that connects receives its first window


def resident() -> float:
    """Returns how many bytes of this process are resident in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


class Visitors:
    """Clients that connect, read for a while, and leave; and one that sleeps."""

    def __init__(self, port: int):
        self._address, self._over = f"ws://127.0.0.1:{port}", threading.Event()
        self.visits = 0
        self._sleeper = self._connect()
        self._thread = threading.Thread(target=self._come_and_go, daemon=True)
        self._thread.start()

    def _connect(self) -> websockets.sync.client.ClientConnection:
        socket = websockets.sync.client.connect(
            self._address,
            subprotocols=[SUBPROTOCOL],
            max_size=None,
            compression=None,
            ping_interval=None,  # a sleeping client does not check its connection
        )
        socket.send(hello())
        return socket

    def first_view(self) -> float:
        """Returns the seconds until a new client receives its first window."""
        start = time.perf_counter()
        with self._connect() as socket:
            socket.recv()
        return time.perf_counter() - start

    def _come_and_go(self) -> None:
        while not self._over.is_set():
            with self._connect() as socket, contextlib.suppress(TimeoutError):
                deadline = time.monotonic() + 1.0
                while time.monotonic() < deadline and not self._over.is_set():
                    socket.recv(timeout=1.0)  # after the last frame nothing arrives
            self.visits += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self._sleeper.close()


@contextmanager
def browser_at(port: int) -> Iterator[CDPSession]:
    """Opens a hidden page and a visible one; yields a session of the visible one."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = browser.new_context(viewport={"width": 800, "height": 600})
        hidden, page = context.new_page(), context.new_page()
        for tab in (hidden, page):
            tab.goto(f"http://127.0.0.1:{port}")
            tab.locator("canvas[data-engine]").wait_for(timeout=60_000)
        page.bring_to_front()
        yield context.new_cdp_session(page)
        browser.close()


def heap_of(session: CDPSession | None) -> float:
    if session is None:
        return float("nan")
    session.send("HeapProfiler.collectGarbage")
    usage = session.send("Runtime.getHeapUsage")
    return float(usage["usedSize"] + usage.get("backingStorageSize", 0))


def soak(settings: Settings, session: CDPSession | None, show: Show, port: int) -> list[Reading]:
    """Shows all frames; returns readings after the first tenth, at the middle and at the end."""
    visitors, readings, shown = Visitors(port), [], 0
    due = [settings.frames // 10, settings.frames // 2, settings.frames]
    while due:
        show.run(min(PIECE, due[0] - shown), settings.fps)
        shown = min(shown + PIECE, due[0])
        if shown == due[0]:
            first = visitors.first_view()
            readings.append(Reading(shown, resident(), heap_of(session), first))
            due.pop(0)
    print(f"{visitors.visits} clients have come and gone")
    visitors.close()
    return readings


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    server = viser.ViserServer(port=0, verbose=False)
    keep_openings_short(server)  # as `Viewer` does
    show = Show(server, ROBOTS[settings.robot](), settings.count)
    start, port = time.monotonic(), server.get_port()
    if settings.page:
        with browser_at(port) as session:
            readings = soak(settings, session, show, port)
    else:
        readings = soak(settings, None, show, port)
    table = Table(
        "frames",
        "process, MB",
        "page, MB",
        "first view, s",
        title=f"{settings.count} of {settings.robot}, {time.monotonic() - start:.0f} s",
    )
    for reading in readings:
        megabytes = (f"{reading.process / 1e6:.0f}", f"{reading.page / 1e6:.1f}")
        table.add_row(f"{reading.frames:,}", *megabytes, f"{reading.first:.2f}")
    Console().print(table)
    server.stop()


if __name__ == "__main__":
    main()
