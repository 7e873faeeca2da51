"""Nothing of a viewer is left behind: threads, descriptors, objects; whatever its clients do."""

import gc
import os
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import websockets.sync.client

from benchmarks.client import SUBPROTOCOL, hello, websocket_of
from benchmarks.fuzz import Reading, Settings, trained
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


PACKAGES = ("brax_viser", "viser", "websockets")
MOST_MEGABYTES = 4.0
"""Per training, by which one that is watched may grow the process more than one that is not."""


def held() -> Counter[str]:
    """Returns what this process holds: threads, descriptors, and the objects of our packages, by
    their names."""
    reading = Reading.now()  # after a collection, and without compiled programs
    found = Counter(f"thread {name.rstrip('0123456789_-')}" for name in reading.names)
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[f"descriptor {os.readlink(link).partition(':')[0]}"] += 1
        except OSError:  # the folder's own
            continue
    for thing in gc.get_objects():
        kind = type(thing)
        if str(kind.__module__).partition(".")[0] in PACKAGES:
            found[f"object {kind.__module__}.{kind.__qualname__}"] += 1
    return found


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_trainings_one_after_the_other_leave_nothing(times):
    """Each is stock PPO, with a viewer and a page of its own. JAX keeps some of each compilation:
    as much of it as of trainings that are not watched."""
    settings = Settings(timesteps=400)

    def bare() -> None:
        trained(Toy(), settings)

    def watched() -> None:
        with Viewer(port=0, mode="every_step") as viewer:
            page = Page(viewer)
            env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
            trained(env, settings, progress_fn=viewer.progress_fn)
            eventually(lambda: page.frames, "it was watched")
            page.close()

    def megabytes(training: Callable[[], None]) -> Iterator[float]:
        for _ in range(times):
            training()
            yield Reading.now().megabytes

    watched()  # makes what is made once
    before = held()
    with_a_viewer = list(megabytes(watched))
    deadline = time.monotonic() + 60
    while (left := held() - before) and time.monotonic() < deadline:
        time.sleep(0.2)  # threads that are ending
    assert not left
    without = list(megabytes(bare))
    grown = [(run[-1] - run[0]) / (times - 1) for run in (with_a_viewer, without)]
    assert grown[0] < grown[1] + MOST_MEGABYTES, (with_a_viewer, without)


def test_thirty_environments_of_one_viewer_are_freed_when_it_is_closed():
    alive: list[weakref.ref[VisualizedEnv]] = []

    def closed(number: int) -> None:
        with Viewer(port=0, mode="every_step") as viewer:
            viewer.twins = 2
            page = Page(viewer)
            envs = [VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer) for _ in range(number)]
            alive.extend(weakref.ref(env) for env in envs)
            state = jax.jit(jax.vmap(envs[-1].reset))(jax.random.split(jax.random.PRNGKey(0), 4))
            jax.block_until_ready(jax.jit(jax.vmap(envs[-1].step))(state, jnp.zeros((4, 1))))
            eventually(lambda: Probe(viewer).twin_worker.cost().step_seconds > 0, "twins step")
            page.close()

    closed(1)  # makes what is made once
    eventually(lambda: gc.collect() is not None and not any(ref() for ref in alive), "it is freed")
    before = held()
    closed(30)
    eventually(lambda: not held() - before, "all is as before")
    assert len(alive) == 31 and not any(ref() for ref in alive)


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
