"""Nothing of a viewer is left behind: threads, descriptors, objects; whatever its clients do."""

import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable

import websockets.sync.client

from benchmarks.client import SUBPROTOCOL, hello, websocket_of
from brax_viser import Viewer, VisualizedEnv
from tests.conftest import Page, eventually
from tests.support import Probe, port_of
from tests.toy import Toy


def counts() -> tuple[int, int]:
    """Returns how many threads and descriptors this process has."""
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def leaves_nothing(what: Callable[[], object]) -> None:
    """Calls a function once, so that all exists that is made once, then again and compares."""
    what()
    before = counts()
    for _ in range(4):
        what()
    eventually(lambda: all(n <= m for n, m in zip(counts(), before, strict=True)), "all is gone")


def test_viewers_that_come_and_go_leave_nothing():
    def visited() -> None:
        with Viewer(port=0, mode="latest") as viewer:
            VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
            page = Page(viewer)
            viewer.twins = 2
            page.close()

    leaves_nothing(visited)


def test_thirty_environments_of_one_viewer_are_freed_when_it_is_closed():
    with Viewer(port=0) as viewer:
        envs = [VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer) for _ in range(30)]
        threads = threading.active_count()
        alive = [weakref.ref(env) for env in envs]
    del envs, viewer
    eventually(
        lambda: gc.collect() is not None and not any(ref() for ref in alive), "all are freed"
    )
    assert threading.active_count() < threads


def test_two_hundred_connections_that_just_end_leave_nothing(caplog):
    with Viewer(port=0) as viewer:
        query = viewer.url.partition("?")[2]
        honest = Page(viewer)
        before = counts()
        for number in range(200):
            if number % 4:  # leave without a word: before, within and after the handshake
                bare = socket.create_connection(("127.0.0.1", port_of(viewer)))
                bare.sendall(
                    [b"", b"GET /?", f"GET /?{query} HTTP/1.1\r\n\r\n".encode()][number % 3]
                )
                bare.close()
                continue
            page = websockets.sync.client.connect(
                websocket_of(viewer.url), subprotocols=[SUBPROTOCOL], compression=None
            )
            page.send(hello())
            page.socket.shutdown(socket.SHUT_RDWR)
        eventually(lambda: len(Probe(viewer).server.get_clients()) == 1, "they are gone")
        eventually(lambda: counts()[1] <= before[1] and counts()[0] <= before[0] + 2, "closed", 90)
        frames = honest.windows
        viewer.speed = 2.0
        eventually(lambda: honest.windows > frames, "the honest page is served")
        honest.close()
    assert "Traceback" not in caplog.text


def test_a_client_that_stalls_holds_up_neither_the_page_nor_its_end():
    with Viewer(port=0) as viewer:
        stalled = websockets.sync.client.connect(
            websocket_of(viewer.url), subprotocols=[SUBPROTOCOL], compression=None, max_queue=1
        )
        stalled.send(hello())  # and reads nothing from now on
        page = Page(viewer)
        viewer.streaming = False
        windows = page.windows
        eventually(lambda: page.windows > windows, "others are served")
        page.close()
        start = time.monotonic()
    assert time.monotonic() - start < 5
    stalled.socket.close()
