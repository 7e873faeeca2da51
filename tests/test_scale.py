"""Tests what pages are sent: only parts that move, and to a slow page only the newest frames."""

import asyncio
import socket
import threading
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
import trimesh
import viser
import websockets
import websockets.sync.client
from viser._messages import SceneNodeUpdateMessage

from benchmarks.client import (
    SUBPROTOCOL,
    answers_to,
    hello,
    is_last_of_replay,
    messages_of,
    poses_of,
)
from brax_viser import compat
from brax_viser.compat import viser_loop
from brax_viser.scene.handles import send
from brax_viser.scene.look import Look
from brax_viser.scene.robots import FOCAL_LENGTH, LEAST_TRIANGLES, levels_of
from tests.conftest import eventually
from tests.test_looks import Stage, view_of


class Receiver:
    """A page without a browser; once `goes_on` is cleared, it takes only one more window."""

    def __init__(self, server: viser.ViserServer):
        self.updates: Counter[tuple[str, str]] = Counter()  # by node and property
        self.together: dict[str, list[set[str]]] = defaultdict(list)  # properties, by node
        self.created: set[str] = set()  # nodes
        self.frames = self.bytes = 0
        self.replayed = False  # whether it has received everything from before it came
        self.goes_on = threading.Event()
        self.goes_on.set()
        # Reads only one window ahead, so that a slow page is slow: the system's buffers alone would
        # take 17 MB for it.
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        connection.connect(("127.0.0.1", server.get_port()))
        self._socket = websockets.sync.client.connect(
            f"ws://127.0.0.1:{server.get_port()}",
            subprotocols=[SUBPROTOCOL],
            max_size=None,
            compression=None,
            max_queue=1,
            sock=connection,
        )
        self._socket.send(hello())
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        try:
            for window in self._socket:
                assert isinstance(window, bytes)
                self.bytes += len(window)
                self.frames += poses_of(window) > 0
                for answer in answers_to(window):
                    self._socket.send(answer)
                for message in messages_of(window):
                    if message["type"] == "FrameMessage":
                        self.created.add(message["name"])
                    if message["type"] == "SceneNodeUpdateMessage":
                        self.together[message["name"]].append(set(message["updates"]))
                        self.updates.update((message["name"], name) for name in message["updates"])
                self.replayed |= is_last_of_replay(window)
                self.goes_on.wait()
        except websockets.ConnectionClosed:
            return

    def close(self) -> None:
        self.goes_on.set()
        self._socket.close()
        self._thread.join(timeout=5)


@pytest.fixture
def server():
    server = viser.ViserServer(port=0, verbose=False)
    yield server
    server.stop()


def on_loop(server: viser.ViserServer, what) -> None:
    """Runs `what` on viser's own loop, where the page's loop writes handles."""

    async def call() -> None:
        what()

    asyncio.run_coroutine_threadsafe(call(), server.get_event_loop()).result()


def test_parts_that_did_not_move_are_not_sent(server):
    stage = Stage(server, "reacher")
    robots, count = stage.block.robots, stage.grid.capacity
    on_loop(server, lambda: stage.draw(Look()))
    marker = server.scene.add_frame("/marker")
    page = Receiver(server)
    sent = stage.scene.sent

    def seen() -> set[tuple[str, str]]:
        """Returns the robots' properties that have been sent since the last call."""
        # Messages arrive in order: once the marker is there, no earlier one is outstanding.
        before = page.updates["/marker", "axes_length"]
        on_loop(server, lambda: setattr(marker, "axes_length", marker.axes_length + 1.0))
        eventually(lambda: page.updates["/marker", "axes_length"] > before, "the marker arrives")
        got = {key for key in page.updates if "/robots/" in key[0]}
        page.updates.clear()
        return got

    seen()
    # A held training: the same view again and again, and views with equal poses.
    for _ in range(5):
        on_loop(server, lambda: stage.draw(Look()))
        on_loop(server, lambda: stage.draw(Look(), link_pos=stage.frame.link_pos.copy()))
    assert seen() == set() and stage.scene.sent == sent
    # One robot's tip moves; everything else, including the arena in every cell, does not.
    pos = stage.frame.link_pos.copy()
    pos[3, -1, 0] += 0.1
    on_loop(server, lambda: stage.draw(Look(), link_pos=pos))
    last = pos.shape[1]  # link i is body i + 1
    moved = [part for part in robots._parts if last in part.shape.body]
    assert 0 < len(moved) < len(robots._parts)
    assert seen() == {(part.handle.name, "batched_positions") for part in moved}
    shadows = stage.block.shadows.handle  # the tip's own has moved with it, and has kept its size
    assert shadows is not None
    instances = sum(count * len(part.shape.body) for part in moved)
    assert stage.scene.sent - sent == 12 * instances + shadows.batched_positions.nbytes
    page.close()


@pytest.mark.parametrize("known", [True, False])
def test_places_and_rotations_go_out_together_where_viser_is_known(server, monkeypatch, known):
    buffer = viser_loop(server).buffer
    if not known:
        monkeypatch.setattr(compat, "VISER_LOOPS", ())
    stage = Stage(server, "reacher")
    on_loop(server, lambda: stage.draw(Look()))
    page = Receiver(server)
    pos, rot = stage.frame.link_pos.copy(), stage.frame.link_rot.copy()
    on_loop(server, lambda: stage.draw(Look(), link_pos=pos + 0.1, link_rot=-rot))
    on_loop(server, lambda: stage.draw(Look(), link_pos=pos + 0.2, link_rot=-rot))
    on_loop(server, lambda: stage.draw(Look(), link_pos=pos + 0.3, link_rot=rot))
    handle = next(p.handle for p in stage.block.robots._parts if (p.shape.body > 0).all())
    both = {"batched_positions", "batched_wxyzs"}
    sent = both if known else {"batched_wxyzs"}
    eventually(lambda: sent in page.together[handle.name], "it is sent")
    assert known or both not in page.together[handle.name]
    page.close()
    # What a page that opens now is sent, one message after the other, ends in the newest arrays.
    shown: dict[str, np.ndarray] = {}
    for _, message in sorted(buffer.message_from_id.items()):
        if isinstance(message, SceneNodeUpdateMessage) and message.name == handle.name:
            shown.update(message.updates)
    for name in both:
        np.testing.assert_array_equal(shown[name], getattr(handle, name))
    assert (np.asarray(handle.batched_positions) != 0).any()


def test_a_removed_part_refuses_new_places_as_viser_does(server):
    stage = Stage(server, "reacher")
    handle = stage.block.robots.handles[0]
    pos, rot = handle.batched_positions + 1, -handle.batched_wxyzs
    on_loop(server, handle.remove)
    with pytest.raises(RuntimeError, match="removed"):
        send(handle, batched_positions=pos, batched_wxyzs=rot)


def test_the_bytes_counted_are_the_bytes_sent(server):
    stage = Stage(server, "ant", grid=(8, 8))
    page = Receiver(server)
    eventually(lambda: page.replayed, "the page is sent what is there")
    instances = sum(len(part.shape.body) for part in stage.block.robots._parts) * 64
    spots = stage.block.shadows.handle
    assert spots is not None and spots.batched_scales is not None
    size = 28 * instances + spots.batched_positions.nbytes + np.asarray(spots.batched_scales).nbytes
    random = np.random.default_rng(0)
    for _ in range(5):
        turn = random.normal(size=stage.frame.link_rot.shape).astype(np.float32)
        turn /= np.linalg.norm(turn, axis=-1, keepdims=True)
        before, frames, counted = page.bytes, page.frames, stage.scene.sent
        pos = stage.frame.link_pos + np.float32(0.01)
        on_loop(server, lambda p=pos, r=turn: stage.draw(Look(), link_pos=p, link_rot=r))
        eventually(lambda frames=frames: page.frames > frames, "the frame arrives")
        assert stage.scene.sent - counted == size
        assert size <= page.bytes - before < size + 4096
    page.close()


def test_a_slow_page_skips_frames_and_does_not_slow_down_others(server):
    stage = Stage(server, "ant", grid=(32, 32))
    fast, slow = Receiver(server), Receiver(server)
    eventually(lambda: fast.replayed and slow.replayed, "both have what is there")
    slow.goes_on.clear()  # so slow that it takes nothing
    view, frames = view_of(stage.frame), 90

    def one_more() -> None:
        view.link_pos[:, :, 2] += 0.001  # 258 kB a frame
        stage.scene.draw({"train": view}, {"train": Look()})

    for step in range(frames):
        before = fast.frames
        on_loop(server, one_more)
        eventually(lambda before=before: fast.frames > before, "nobody waits for the slow page")
        if step == frames // 3:
            tracemalloc.start()
    # Two thirds of the frames came after that: 15 MB that the slow page could not take.
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5e6
    assert slow.frames < 0.1 * frames
    # Frames that it has not taken do not wait for it, except in the system's buffers.
    slow.goes_on.set()
    on_loop(server, lambda: server.scene.add_frame("/last", show_axes=False))
    eventually(lambda: "/last" in slow.created, "the slow page has come to the newest")
    assert slow.frames < 0.8 * frames
    slow.close()
    fast.close()


def test_no_robot_is_drawn_coarser_than_a_triangle_per_pixel(server):
    stage = Stage(server, "ant")
    for part in stage.block.robots._parts:
        mesh = part.shape.mesh
        radius, before = np.linalg.norm(mesh.vertices, axis=1).max(), 0.0
        assert isinstance(part.handle, viser.BatchedMeshHandle)
        assert part.handle.lod == levels_of(mesh) and len(part.handle.lod) > 0
        for distance, share in levels_of(mesh):
            pixels = np.pi * (radius * FOCAL_LENGTH / distance) ** 2
            triangles = share * len(mesh.faces)
            assert triangles == pytest.approx(pixels, rel=1e-3) and triangles >= LEAST_TRIANGLES
            assert distance > max(before, 10 * radius)  # up close all of it is drawn
            before = distance
    assert levels_of(trimesh.creation.box()) == ()
