"""Tests viewers and environments that are made again, as when a notebook's cell is run again."""

import threading
import time
import urllib.request

import jax
import jax.numpy as jnp
import pytest
import websockets.sync.client

from benchmarks.client import SUBPROTOCOL, answers_to, hello, messages_of
from brax_viser import Viewer, VisualizedEnv
from brax_viser.page import address
from tests.conftest import eventually
from tests.sample import SwiftCartPole as CartPole
from tests.support import Probe, port_of


class OtherPole(CartPole):
    """An environment with another name."""


def free_port() -> int:
    return address.free_port("127.0.0.1", 8300)


def answers(viewer: Viewer) -> bool:
    with urllib.request.urlopen(viewer.url, timeout=10) as answer:
        return answer.status == 200


def run_again(cell: str, **names: object) -> list[Viewer]:
    """Runs a cell three times, and returns the `viewer` that it makes each time."""
    namespace, viewers = {"Viewer": Viewer, "VisualizedEnv": VisualizedEnv, **names}, []
    for _ in range(3):
        exec(cell, namespace)
        viewers.append(namespace["viewer"])
    return viewers


@pytest.mark.parametrize("how", ["port={port}", "name='robots', port=0", "name='robots'"])
def test_a_cell_that_is_run_again_keeps_its_port(how):
    cell = f"viewer = Viewer({how.format(port=free_port())})"
    viewers = run_again(cell)
    assert len({viewer.url for viewer in viewers}) == 1
    assert answers(viewers[-1])
    viewers[-1].close()


def test_a_cell_that_wraps_an_environment_again_keeps_its_port_and_shows_the_new_one():
    viewers = run_again("viewer = VisualizedEnv(CartPole(), grid=(1, 1)).viewer", CartPole=CartPole)
    assert len({viewer.url for viewer in viewers}) == 1
    assert answers(viewers[-1])
    for viewer in viewers:
        viewer.close()


def test_the_newest_environment_is_shown_until_an_older_one_is_stepped_again():
    old = VisualizedEnv(CartPole(), grid=(2, 1))
    with old.viewer as viewer:
        step = jax.jit(jax.vmap(old.step))
        state = jax.jit(jax.vmap(old.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
        state = jax.block_until_ready(step(state, jnp.zeros((4, 1))))
        new = VisualizedEnv(CartPole(), grid=(1, 1))
        assert new.viewer is viewer
        assert len(viewer.stats().drawn_envs) == 1
        viewer.mode = "every_step"
        thread_of_a_page = Reader(viewer.url)
        eventually(lambda: Probe(viewer).shared.control.watched, "the viewer sees the page")
        for _ in range(2000):
            state = jax.block_until_ready(step(state, jnp.zeros((4, 1))))
            if len(viewer.stats().drawn_envs) == 2:
                break
        assert len(viewer.stats().drawn_envs) == 2
        assert viewer.stats().streams["train"].num_envs == 4
        thread_of_a_page.close()


def test_environments_of_other_names_and_of_closed_viewers_get_pages_of_their_own():
    one, other = VisualizedEnv(CartPole(), grid=(1, 1)), VisualizedEnv(OtherPole(), grid=(1, 1))
    assert one.viewer.url != other.viewer.url
    other.viewer.close()
    one.viewer.close()
    again = VisualizedEnv(CartPole(), grid=(1, 1))
    assert again.viewer is not one.viewer
    assert answers(again.viewer)
    again.viewer.close()


def test_two_viewers_without_a_port_live_side_by_side_in_a_script():
    with Viewer() as one, Viewer() as other:
        assert answers(one) and answers(other)
        assert one.url != other.url


def test_in_an_interactive_session_the_newer_viewer_replaces_the_older(monkeypatch):
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    viewers = run_again("viewer = Viewer()")
    assert len({viewer.url for viewer in viewers}) == 1
    with Viewer(port=0) as beside:  # port 0 is any free port, so it replaces none
        assert answers(viewers[-1]) and answers(beside)
    viewers[-1].close()


def test_in_ipython_the_newer_viewer_replaces_the_older():
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    shell, urls = InteractiveShell.instance(), []
    try:
        shell.run_cell("from brax_viser import Viewer")
        for _ in range(3):
            assert shell.run_cell("viewer = Viewer()").success
            urls.append(shell.user_ns["viewer"].url)
        shell.user_ns["viewer"].close()
    finally:
        InteractiveShell.clear_instance()
    assert len(set(urls)) == 1


def test_another_port_is_used_when_asked_for():
    port = free_port()
    first = Viewer(port=port, name="robots")
    with Viewer(port=address.free_port("127.0.0.1", port + 1), name="robots") as viewer:
        assert port_of(viewer) > port
        assert not first.streaming or Probe(first).shared.control.closed
        eventually(lambda: address.is_free("127.0.0.1", port), "the first one's port is free")


def test_a_bad_argument_leaves_the_previous_viewer_open():
    with Viewer(port=free_port()) as viewer:
        for wrong in ({"fps": 0}, {"host": "10.255.255.1"}, {"name": 5}):
            with pytest.raises(ValueError):
                Viewer(**{"port": port_of(viewer), **wrong})
        assert answers(viewer)


class Reader:
    """A page that reconnects when its connection is lost, as viser's does."""

    def __init__(self, url: str):
        self.meshes = 0
        self._url, self._closed = url.replace("http", "ws"), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            try:
                with websockets.sync.client.connect(
                    self._url, subprotocols=[SUBPROTOCOL], max_size=None, compression=None
                ) as socket:
                    socket.send(hello())
                    while not self._closed:
                        self._read(socket)
            except (OSError, websockets.WebSocketException):
                time.sleep(0.05)

    def _read(self, socket: websockets.sync.client.ClientConnection) -> None:
        try:
            window = socket.recv(timeout=0.1)
        except TimeoutError:
            return
        assert isinstance(window, bytes)
        self.meshes += sum(m["type"] == "BatchedMeshesMessage" for m in messages_of(window))
        for answer in answers_to(window):
            socket.send(answer)

    def close(self) -> None:
        self._closed = True
        self._thread.join(timeout=10)


def test_an_open_page_reconnects_to_the_new_viewer():
    port = free_port()
    first = Viewer(port=port)
    page = Reader(first.url)
    eventually(lambda: Probe(first).shared.control.watched, "the first viewer sees the page")
    with Viewer(port=port) as viewer:
        assert viewer.url == first.url
        VisualizedEnv(CartPole(), grid=(1, 1), viewer=viewer)
        eventually(lambda: Probe(viewer).shared.control.watched, "the page comes back")
        before = page.meshes
        eventually(lambda: page.meshes > before or page.meshes, "and is sent the robots")
    page.close()
