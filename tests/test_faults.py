"""Faults, each injected while a training runs: it goes on, and its states are those of one without
a viewer."""

import asyncio
import concurrent.futures
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from brax_viser import Viewer, VisualizedEnv
from tests.conftest import Page
from tests.support import Probe, port_of
from tests.toy import Toy

NUM_STEPS, NUM_ENVS = 60, 4


def trained(env, between: Callable[[int], object] = lambda _: None) -> list[np.ndarray]:
    """Returns the observations of all steps; calls a function before each."""
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    step, seen = jax.jit(jax.vmap(env.step)), []
    for n in range(NUM_STEPS):
        between(n)
        state = jax.block_until_ready(step(state, np.full((NUM_ENVS, 1), np.sin(n), np.float32)))
        seen.append(np.asarray(state.obs))
    return seen


@pytest.fixture(scope="module")
def unwatched() -> list[np.ndarray]:
    return trained(Toy())


def ends_the_pages_loop(viewer: Viewer) -> None:
    task = Probe(viewer).page.loop._task
    assert task is not None
    task.cancel()
    with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
        task.result(timeout=10)


def ends_the_server(viewer: Viewer) -> None:
    Probe(viewer).server.stop()


def makes_the_clock_jump(viewer: Viewer) -> None:
    shared = Probe(viewer).shared
    ahead = iter([2e9, -3e9, 5e9])
    real = time.monotonic

    def jumping() -> float:
        return real() + next(ahead, 1e9)

    shared.wall_clock = shared.hold.clock = shared.mailbox.clock = jumping  # type: ignore


FAULTS = [ends_the_pages_loop, ends_the_server, makes_the_clock_jump]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["latest", "every_step"])
def test_a_training_goes_on_to_the_same_states_although_a_fault(fault, mode, unwatched):
    viewer = Viewer(port=0, mode=mode)
    page = Page(viewer)
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)

    def between(n: int) -> None:
        if n == NUM_STEPS // 3:
            fault(viewer)

    start = time.monotonic()
    assert all(map(np.array_equal, trained(env, between), unwatched))
    assert time.monotonic() - start < 60
    viewer.close()
    page.close()


def test_a_port_that_is_stolen_while_a_viewer_gives_way_is_left_to_the_thief(monkeypatch):
    from brax_viser.page import address

    first = Viewer(port=address.free_port("127.0.0.1", 8750))
    port = port_of(first)
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    wait = address.wait_until_free

    def stolen(host: str, port: int) -> bool:
        free = wait(host, port)
        thief.bind((host, port))
        thief.listen()
        return free

    monkeypatch.setattr("brax_viser.viewer.address.wait_until_free", stolen)
    with thief, Viewer(port=port) as second:
        assert port_of(second) > port
        Page(second).close()


EXIT = textwrap.dedent(
    """
    import sys, threading, time, os
    import jax, numpy as np
    from brax_viser import Viewer, VisualizedEnv
    from tests.conftest import Page, eventually
    from tests.support import Probe
    from tests.toy import Toy

    viewer = Viewer(port=0, mode="every_step")
    page = Page(viewer)
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    taken = 0

    def train():
        global state, taken
        while True:
            state = jax.block_until_ready(step(state, np.zeros((4, 1), np.float32)))
            taken += 1

    threading.Thread(target=train, daemon=True).start()
    eventually(lambda: taken > 20, "it steps")
    {fate}
    print("ends", flush=True)
    sys.exit(3)
    """
)


@pytest.mark.parametrize(
    "fate", ["pass", "viewer.pause(); eventually(lambda: viewer.stats().held, 'it is held')"]
)
def test_an_interpreter_exits_while_a_training_streams_or_is_held(fate):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXIT.format(fate=fate)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "ends" in done.stdout, done.stderr
    # XLA's threads may be in a step when Python ends, which C++ calls an abort: only no hang.
    assert done.returncode in (3, -6), done.stderr
