"""Faults, each injected while a training runs: it goes on, and its states are those of one without
a viewer."""

import asyncio
import concurrent.futures
import contextlib
import io
import logging
import multiprocessing
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import websockets
import websockets.sync.client
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from benchmarks.client import SUBPROTOCOL, hello, websocket_of
from brax_viser import Viewer, VisualizedEnv
from brax_viser.compat import viser_gate
from brax_viser.page import address
from tests.conftest import Page, eventually
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


def loses_the_port_to_another_program(viewer: Viewer) -> None:
    port = port_of(viewer)
    ends_the_server(viewer)
    assert address.wait_until_free("127.0.0.1", port)
    _left_open.append(thief_of(port))


def thief_of(port: int) -> socket.socket:
    """Listens on a port that a viewer has had."""
    thief = socket.socket()
    thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    thief.bind(("127.0.0.1", port))
    thief.listen()
    return thief


def makes_the_clock_jump(viewer: Viewer) -> None:
    shared = Probe(viewer).shared
    ahead = iter([2e9, -3e9, 5e9])
    real = time.monotonic

    def jumping() -> float:
        return real() + next(ahead, 1e9)

    shared.wall_clock = shared.hold.clock = shared.mailbox.clock = jumping  # type: ignore


def connected(viewer: Viewer) -> websockets.sync.client.ClientConnection:
    """Opens a page that answers nothing, and reads no more than its own buffer holds."""
    page = websockets.sync.client.connect(
        websocket_of(viewer.url), subprotocols=[SUBPROTOCOL], compression=None, max_queue=1
    )
    page.send(hello())
    return page


def greets(bare: socket.socket, url: str) -> ClientProtocol:
    """Opens a websocket over a connection, and tells a camera as a page does."""
    page = ClientProtocol(parse_uri(websocket_of(url)), subprotocols=[SUBPROTOCOL])
    page.send_request(page.connect())
    bare.sendall(b"".join(page.data_to_send()))
    while page.state is not State.OPEN:
        page.receive_data(bare.recv(1))
    page.send_binary(hello())
    bare.sendall(b"".join(page.data_to_send()))
    return page


def silent(viewer: Viewer) -> socket.socket:
    """Opens a page that reads nothing at all, not even into a buffer of its own."""
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    bare.connect(("127.0.0.1", port_of(viewer)))
    greets(bare, viewer.url)
    return bare


def has_a_client_vanish(viewer: Viewer) -> None:
    connected(viewer).socket.shutdown(socket.SHUT_RDWR)


def has_a_client_stall(viewer: Viewer) -> None:
    _left_open.append(connected(viewer).socket)  # until the viewer is closed


def has_a_client_send_garbage(viewer: Viewer) -> None:
    known = set(Probe(viewer).server.get_clients())
    page = connected(viewer)
    for garbage in (b"\x93\x01\x02", "text", b"\0" * 100_000):
        with contextlib.suppress(websockets.ConnectionClosed):
            page.send(garbage)
    eventually(lambda: set(Probe(viewer).server.get_clients()) == known, "it is disconnected")


def has_two_hundred_clients_come_and_go(viewer: Viewer) -> None:
    for _ in range(200):
        has_a_client_vanish(viewer)


def starts_data_loaders(viewer: Viewer) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [1, -2, 3]) == [1, 2, 3]


_left_open: list[socket.socket] = []

FAULTS = [
    *(ends_the_pages_loop, ends_the_server, makes_the_clock_jump),
    loses_the_port_to_another_program,
    *(has_a_client_vanish, has_a_client_stall, has_a_client_send_garbage),
    *(has_two_hundred_clients_come_and_go, starts_data_loaders),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["latest", "every_step"])
def test_a_training_goes_on_to_the_same_states_although_a_fault(fault, mode, unwatched):
    viewer = Viewer(port=0, mode=mode)
    page = Page(viewer)
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)

    spent = 0.0

    def between(n: int) -> None:
        nonlocal spent
        if n == NUM_STEPS // 3:
            before = time.monotonic()
            fault(viewer)
            spent = time.monotonic() - before

    start = time.monotonic()
    assert all(map(np.array_equal, trained(env, between), unwatched))
    assert time.monotonic() - start - spent < 60
    viewer.close()
    page.close()
    while _left_open:
        _left_open.pop().close()


@pytest.mark.full
def test_two_hundred_pages_that_stream_change_nothing_that_is_computed(unwatched):
    with Viewer(port=0, max_overhead=1.0) as viewer:
        env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        viewer.mode = "every_step"
        pages = [Page(viewer) for _ in range(200)]
        try:
            np.testing.assert_array_equal(trained(env), unwatched)
            late = lambda: [page for page in pages if not page.frames]  # noqa: E731
            eventually(lambda: not late(), "each page has got robots that move", timeout=200)
            assert Probe(viewer).shared.fault is None
        finally:
            for page in pages:
                page.close()


def test_a_training_goes_on_although_nothing_can_be_printed_or_logged_any_more(
    unwatched, monkeypatch
):
    """As where a notebook or a launcher has closed both: even to say so fails then."""
    closed, log = io.StringIO(), logging.getLogger("brax_viser")
    handler = logging.StreamHandler(closed)
    viewer = Viewer(port=0, mode="every_step")
    page, env = Page(viewer), VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)

    def between(n: int) -> None:
        if n == 20:
            log.addHandler(handler)
            closed.close()
            monkeypatch.setattr(sys, "stdout", closed)
            monkeypatch.setattr(sys, "stderr", closed)
            has_a_client_send_garbage(viewer)
        elif n == 30:  # a fault of ours in the device's own call
            monkeypatch.setattr(Probe(viewer).shared.mailbox, "put", None)
        elif n == 40:
            eventually(lambda: Probe(viewer).shared.fault is not None, "it is known")

    try:
        assert all(map(np.array_equal, trained(env, between), unwatched))
        viewer.close()
    finally:
        log.removeHandler(handler)
        monkeypatch.undo()
    page.close()


def test_a_client_that_reads_nothing_for_long_is_let_go_and_others_are_served(
    unwatched, monkeypatch
):
    """No more is kept for it than one window of messages, however long it takes."""
    monkeypatch.setattr("brax_viser.compat.PING_SECONDS", 3.0)
    viewer = Viewer(port=0, mode="every_step")
    page, env = Page(viewer), VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    server = Probe(viewer).server
    gate, honest = viser_gate(server), set(server.get_clients())
    assert gate is not None
    stalled: list[socket.socket] = []
    waiting: list[int] = []  # bytes for the stalled one, before each step
    frames = 0

    def transport() -> Any:
        (number,) = set(server.get_clients()) - honest
        return gate.connection(number).transport

    def between(n: int) -> None:
        nonlocal frames
        if n > 5:
            eventually(lambda: page.frames > frames, "the other page is sent each step")
        frames = page.frames
        if n == 10:
            stalled.append(silent(viewer))
            eventually(lambda: set(server.get_clients()) - honest, "it is connected")
            # The system would keep megabytes for it, and hide that it reads nothing.
            its = transport().get_extra_info("socket")
            its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        elif 10 < n < 40 and set(server.get_clients()) - honest:
            waiting.append(transport().get_write_buffer_size())
        elif n == 40:
            eventually(lambda: set(server.get_clients()) == honest, "it is let go")

    assert all(map(np.array_equal, trained(env, between), unwatched))
    halfway = waiting[len(waiting) // 2]
    assert 0 < halfway <= waiting[-1] < halfway + 1000, "but for a few pings"
    viewer.close()
    page.close()
    stalled[0].close()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_state_that_is_nowhere_finite_changes_nothing_that_is_computed(value, viewer, page):
    class Spoilt(Toy):
        """All of its state turns into one value in the third of four environments, for a while."""

        def step(self, state, action):
            state = super().step(state, action)
            count = state.info["count"] + 1
            spoilt = (count > 20) & (count < 40) & state.info["turns"]
            worse = jax.tree.map(
                lambda x: jnp.where(spoilt, jnp.full_like(x, value), x),
                (state.pipeline_state, state.obs, state.reward),
            )
            told = dict(zip(("pipeline_state", "obs", "reward"), worse, strict=True))
            return state.replace(info={**state.info, "count": count}, **told)

        def reset(self, rng):
            state = super().reset(rng)
            turns = state.obs[0] > 0
            return state.replace(info={"count": jnp.int32(0), "turns": turns})

    alone = trained(Spoilt())
    assert not np.isfinite(np.float32(np.sum(alone[30]))) or np.max(alone[30]) > 1e37
    viewer.mode, viewer.twins = "every_step", 2
    watched = trained(VisualizedEnv(Spoilt(), grid=(2, 2), viewer=viewer))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(watched, alone, strict=True))
    assert Probe(viewer).shared.fault is None
    windows = page.windows
    viewer.speed = 2.0
    eventually(lambda: page.windows > windows, "the page is served")


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_viewers_that_watch_one_after_the_other_either_may_be_closed_first(
    first, unwatched, tmp_path
):
    viewers = [Viewer(port=0, mode="every_step") for _ in range(2)]
    pages = [Page(viewer) for viewer in viewers]
    envs = [VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer) for viewer in viewers]
    pages[first].close()
    viewers[first].close()
    files = [open(tmp_path / str(number), "wb") for number in range(20)]
    frames = pages[1 - first].frames
    for env in envs:
        assert all(map(np.array_equal, trained(env), unwatched))
    eventually(lambda: pages[1 - first].frames > frames, "the other is watched")
    viewers[1 - first].close()
    pages[1 - first].close()
    assert all(map(np.array_equal, trained(envs[first]), unwatched))
    for file in files:
        file.close()
        assert not (tmp_path / file.name).stat().st_size, "written to by a viewer"


def test_a_port_that_is_stolen_while_a_viewer_gives_way_is_left_to_the_thief(
    monkeypatch, unwatched
):
    """Amid a training that the first of both shows."""
    first = Viewer(port=address.free_port("127.0.0.1", 8750), mode="every_step")
    page, port, wait = Page(first), port_of(first), address.wait_until_free
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=first)
    thieves: list[socket.socket] = []
    second: list[Viewer] = []

    def stolen(host: str, port: int) -> bool:
        free = wait(host, port)
        thieves.append(thief_of(port))
        return free

    def between(n: int) -> None:
        if n == 20:
            second.append(Viewer(port=port))

    monkeypatch.setattr("brax_viser.viewer.address.wait_until_free", stolen)
    assert all(map(np.array_equal, trained(env, between), unwatched))
    with thieves[0], second[0]:
        assert port_of(second[0]) > port
        Page(second[0]).close()
    page.close()


DISK = """
set -e
mount -t tmpfs -o size=3m none "$1"
exec "$2" -c "$3" "$1"
"""

KEPT = """
import contextlib, os, shutil, sys
from pathlib import Path
from brax_viser import Viewer, VisualizedEnv
from brax_viser.runs import folder
from brax_viser.runs.reader import open_run
from tests.conftest import eventually
from tests.support import Probe
from tests.test_training import SMALL, assert_identical, train
from tests.toy import Toy

folder.RETRY_SECONDS, disk = 0.05, Path(sys.argv[1])
run, other = disk / "run", disk / "other"
settings = dict(SMALL, num_evals=5, num_eval_envs=4)
viewer, told = Viewer(port=0, run_dir=run), []

def problem():
    return Probe(viewer).page.recording._keeper.problem or ""

def full():
    with contextlib.suppress(OSError), open(other, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass

def read_only():
    os.remove(other)
    assert os.system(f"mount -o remount,ro {disk}") == 0

def vanished():
    assert os.system(f"mount -o remount,rw {disk}") == 0
    eventually(lambda: not problem(), "what waited is written")
    shutil.rmtree(run)

faults = [(full, "No space left"), (read_only, "Read-only"), (vanished, ""), (lambda: None, "")]

def hand_out(num_steps, make_policy, params):
    if num_steps == 0:  # of the untrained policy; the others are between parts of the training
        return viewer.policy_params_fn(num_steps, make_policy, params)
    eventually(lambda: Probe(viewer).page.recording._keeper.path, "the directory is in use")
    fault, why = faults.pop(0)
    fault()
    viewer.policy_params_fn(num_steps, make_policy, params)
    eventually(lambda: why in problem() and bool(why) == bool(problem()), f"it says {why!r}")
    told.append(num_steps)

with viewer:
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    watched = train(env, settings, progress_fn=viewer.progress_fn, policy_params_fn=hand_out)
assert not faults and set(told[2:]) <= set(open_run(run).policies()), "it is written again"
assert_identical(watched, train(Toy(), settings))
"""


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode != 0,
    reason="mounting a small disk is not allowed",
)
def test_a_training_ends_with_the_same_parameters_although_its_disk_fails(tmp_path):
    """The disk is full, then read-only, and then the run directory vanishes."""
    command = ["unshare", "-m", "sh", "-c", DISK, "sh", str(tmp_path), sys.executable, KEPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr


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
