"""Tests a script's own controls, nodes and functions: `Viewer.server` and `Viewer.on_frame`."""

import logging
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brax_viser import ShownFrame, VisualizedEnv
from brax_viser.processes import rendezvous
from brax_viser.viewer import Viewer
from tests.conftest import eventually
from tests.sample import SwiftCartPole
from tests.support import Probe

NUM_ENVS = 6


@pytest.fixture
def steps(viewer, page) -> Callable[[int], np.ndarray]:
    """Steps six cart-poles until the last step is drawn; returns its links, float32 [6, L, 3]."""
    viewer.mode = "every_step"
    env = VisualizedEnv(SwiftCartPole(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))

    def take(count: int) -> np.ndarray:
        nonlocal state
        for _ in range(count):
            state = step(state, jnp.full((NUM_ENVS, 1), 0.3))
        links = np.asarray(state.pipeline_state.x.pos)
        drawn = list(viewer.stats().drawn_envs)
        block = Probe(viewer).scene.blocks["train"]
        eventually(lambda: np.array_equal(block.pos, links[drawn]), "the last step is drawn")
        Probe(viewer).now(lambda: None)
        return links

    return take


def test_a_function_receives_the_drawn_frame_and_its_places(viewer, steps):
    shown: list[ShownFrame] = []
    viewer.selected_env = 2
    assert viewer.on_frame(shown.append) == shown.append
    links = steps(3)
    last = shown[-1]
    assert last.frame.env_steps == 3 and last.frame.role == "train"
    assert last.frame.env_index.tolist() == [0, 1, 2, 3] and last.selected == 2
    assert last.link_names == ("cart", "pole")
    np.testing.assert_array_equal(last.frame.link_pos, links[:4])
    origins = Probe(viewer).scene.blocks["train"].grid.origins(4)
    expected = last.scale * (links[:4] + origins[:, None])
    np.testing.assert_allclose(last.link_pos, expected, atol=1e-5)
    assert np.ptp(origins, axis=0)[:2].min() > 0 and not last.hidden.any()
    viewer.selected_env = None
    steps(1)
    assert shown[-1].selected is None


def test_positions_are_right_while_a_robot_is_followed(viewer, steps):
    """The whole scene moves then, and nodes that a script adds stand outside of it."""
    shown: list[ShownFrame] = []
    viewer.selected_env = 1
    viewer.on_frame(shown.append)
    steps(1)
    scene = Probe(viewer).scene
    Probe(viewer).now(lambda: scene.follow(("train", 1)))
    before = shown[-1].link_pos[1, 0]
    links = steps(40)
    moved = links[1, 0] - shown[0].frame.link_pos[1, 0]
    assert np.abs(moved).max() > 0.01, "the cart has gone somewhere"
    np.testing.assert_allclose(shown[-1].link_pos[1, 0, :2], before[:2], atol=1e-4)
    others = np.abs(shown[-1].link_pos[[0, 2, 3], 0] - shown[0].link_pos[[0, 2, 3], 0])
    assert others.max() > 0.005, "the others move the other way"


def test_a_function_runs_on_the_pages_loop_once_and_can_be_removed(viewer, steps):
    threads: list[threading.Thread] = []
    pictures: list[ShownFrame] = []
    viewer.on_frame(pictures.append)

    @viewer.on_frame
    def note(_: ShownFrame) -> None:
        threads.append(threading.current_thread())

    viewer.on_frame(note)  # adding it twice counts once
    steps(4)
    assert len(threads) == len(pictures) >= 1 and len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    viewer.remove_on_frame(note)
    viewer.remove_on_frame(note)
    seen = len(threads)
    steps(3)
    assert len(threads) == seen


def test_a_function_that_fails_is_removed_and_the_page_says_so(viewer, steps, caplog):
    calls: list[str] = []

    def broken(_: ShownFrame) -> None:
        calls.append("broken")
        raise KeyError("my slider")

    viewer.on_frame(broken)
    viewer.on_frame(lambda _: calls.append("sound"))
    with caplog.at_level(logging.ERROR):
        steps(3)
        steps(3)
    assert calls.count("broken") == 1 and calls.count("sound") >= 2
    assert viewer.streaming and Probe(viewer).shared.fault is None
    notice = Probe(viewer).panel_view().notice
    assert notice is not None and "broken" in notice and "KeyError: 'my slider'" in notice
    assert "my slider" in caplog.text


def test_a_scripts_own_slider_and_marker_follow_the_selected_robot(viewer, steps):
    height = viewer.server.gui.add_slider("Ball, m", 0.0, 3.0, 0.1, 1.0)
    ball = viewer.server.scene.add_icosphere("/ball", radius=0.1, visible=False)
    shown: list[ShownFrame] = []

    @viewer.on_frame
    def hang_ball(frame: ShownFrame) -> None:
        shown.append(frame)
        ball.visible = frame.selected is not None
        if frame.selected is not None:
            above = [0.0, 0.0, height.value * frame.scale]
            ball.position = frame.link_pos[frame.selected, 0] + above

    viewer.selected_env = 3
    steps(2)
    assert ball.visible
    place = shown[-1].link_pos[3, 0] + [0.0, 0.0, shown[-1].scale]
    np.testing.assert_allclose(ball.position, place, atol=1e-5)
    Probe(viewer).use(height, 2.0)
    steps(1)
    assert ball.position[2] == pytest.approx(place[2] + shown[-1].scale, abs=0.02)


def test_other_processes_have_no_server_and_call_no_function(monkeypatch):
    monkeypatch.setattr(rendezvous, "place", lambda: rendezvous.ProcessInfo(1, 2))
    monkeypatch.setattr(
        rendezvous, "find_first", lambda *_: ("tcp://127.0.0.1:9", b"s", "http://x")
    )
    with Viewer() as viewer:
        with pytest.raises(RuntimeError, match="serves no page"):
            _ = viewer.server
        function = viewer.on_frame(lambda _: None)
        viewer.remove_on_frame(function)
