"""What a viewer keeps does not grow with what it has shown, nor with what has stopped."""

import gc
import os
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.adapters import Adapter, adapter_for
from brax_viser.host.callbacks import Callbacks
from brax_viser.host.mailbox import CAPACITY
from brax_viser.model.grid import grid_of
from brax_viser.page.channel import ProcessPlayback
from brax_viser.page.playback import Player
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import size_of
from envs.cartpole import CartPole
from tests.conftest import eventually
from tests.support import Probe

PAYLOAD = (("link_pos", (2, 3)), ("link_rot", (2, 4)), ("reward", ()), ("episode_return", ()))
PAYLOAD += (("episode_length", ()), ("since_termination", ()), ("finite", ()))
COORDINATES = (("qpos", (2,)), ("qvel", (2,)), ("ctrl", (1,)))


def packet(source: Any, step: int, shard: int = 0, drawn: Any = (0, 1), mine: Any = None) -> Packet:
    """What a device pushes of two cart-poles at a step, with what their twins need."""
    drawn = np.array(drawn, np.int32)
    mine = drawn if mine is None else np.array(mine, np.int32)
    layout = PAYLOAD + COORDINATES
    rows = np.full((len(mine), size_of(layout)), float(step), np.float32)
    return Packet(source, "train", shard, step, mine, drawn, 2, layout, rows)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapter_for(CartPole("generalized"))


def shown(viewer: Viewer, adapter: Adapter) -> Callbacks:
    """One more environment of the viewer, of which two steps have come."""
    grid = grid_of(adapter.mj_model, adapter.init_qpos, (2, 1), None)
    source = viewer.attach(adapter, grid, None)
    come(viewer, source)
    return source


def come(viewer: Viewer, source: Callbacks) -> None:
    for step in (1, 2):
        Probe(viewer).shared.mailbox.put(packet(source, step), wait=False)
    Probe(viewer).shared.mailbox.wake()
    probe = Probe(viewer)

    def followed() -> bool:
        channel = probe.channels.get("train")
        if channel is None or channel.source is not source or not channel.playbacks:
            return False
        return channel.playback(0) in probe.twin_worker._twins and not probe.twin_worker.busy

    eventually(followed, "its robots have twins")


def test_of_30_environments_of_one_viewer_the_last_alone_has_twins_and_is_known(
    viewer, page, adapter
):
    viewer.twins = 2
    first = shown(viewer, adapter)
    twin_worker = Probe(viewer).twin_worker
    few = None
    for _ in range(30):
        shown(viewer, adapter)
        eventually(lambda: len(twin_worker._twins) == 1, "the twins of the one before have ended")
        if few is None:
            few = native_threads()
    assert few is not None and native_threads() <= few + 3, "each has left threads of its own"
    gc.collect()
    # The first, which is kept here, the last, which is shown, and what the loop has in hand.
    assert len(list(Probe(viewer).sources)) <= 4
    come(viewer, first)  # its environment is stepped again
    assert first in list(Probe(viewer).sources) and first.number == 0
    viewer.twins = 0
    eventually(lambda: not twin_worker._twins, "nobody wants any")


def native_threads() -> int:
    """Of this process, MuJoCo's among them; 0 where the system does not tell."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("Threads:"))
    return int(line.split()[1])


def test_a_device_that_pushes_no_more_does_not_let_the_others_steps_pile_up():
    playback, both = ProcessPlayback(Player(0.05)), (0, 1)
    for step in range(1, 1000):
        assert playback.receive(packet(None, step, 0, both, mine=[0])) is None
    assert len(playback._parts) <= CAPACITY + 1
    assert playback.receive(packet(None, 999, 1, both, mine=[1])) is not None, "the newest is there"
    assert not playback._parts


def test_what_has_come_of_a_training_is_not_taken_for_a_step_of_the_next_one():
    playback, both = ProcessPlayback(Player(0.05)), (0, 1)
    assert playback.receive(packet(None, 900, 1, both, mine=[1])) is None
    for step in range(1, 900):  # another one, which counts from the first
        playback.receive(packet(None, step, 0, both, mine=[0]))
        assert playback.receive(packet(None, step, 1, both, mine=[1])) is not None
    assert playback.receive(packet(None, 900, 0, both, mine=[0])) is None


def test_a_program_that_is_kept_does_not_keep_a_viewer_that_is_closed():
    viewer = Viewer(port=0)
    env = VisualizedEnv(CartPole("positional"), grid=(2, 1), viewer=viewer)
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    state = jax.jit(jax.vmap(env.reset))(keys)
    step = jax.jit(jax.vmap(env.step)).lower(state, jnp.zeros((2, 1))).compile()
    state = step(state, jnp.zeros((2, 1)))
    viewer.close()
    gone = [weakref.ref(thing) for thing in (viewer, Probe(viewer), Probe(viewer).scene)]
    del viewer, env

    def collected() -> bool:
        gc.collect()
        return not any(reference() for reference in gone)

    eventually(collected, "server, scene and meshes are let go of", 20)
    for _ in range(3):
        state = jax.block_until_ready(step(state, jnp.zeros((2, 1))))
    assert np.isfinite(np.asarray(state.obs)).all()
