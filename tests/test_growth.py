"""A viewer's memory does not grow with the environments and steps that it has shown."""

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
    """Returns a device's packet of two cart-poles at a step, with coordinates for their twins."""
    drawn = np.array(drawn, np.int32)
    mine = drawn if mine is None else np.array(mine, np.int32)
    layout = PAYLOAD + COORDINATES
    rows = np.full((len(mine), size_of(layout)), float(step), np.float32)
    return Packet(source, "train", shard, step, mine, drawn, 2, layout, rows)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapter_for(CartPole("generalized"))


def shown(viewer: Viewer, adapter: Adapter) -> Callbacks:
    """Attaches one more environment to the viewer, and passes two of its steps to the page."""
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


def test_of_30_environments_of_one_viewer_only_the_last_has_twins_and_is_kept(
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
            few = native_threads(), open_files()
    assert few is not None
    assert native_threads() <= few[0] + 3, "each has left threads of its own"
    assert open_files() <= few[1] + 3, "each has left files or connections open"
    gc.collect()
    # The first, which the test keeps, the last, which is shown, and those in use by the loop.
    assert len(list(Probe(viewer).sources)) <= 4
    come(viewer, first)  # its environment is stepped again
    assert first in list(Probe(viewer).sources) and first.number == 0
    viewer.twins = 0
    eventually(lambda: not twin_worker._twins, "the twins have ended")


def open_files() -> int:
    """Counts this process's descriptors; 0 if the system does not say."""
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def native_threads() -> int:
    """Counts this process's threads, including MuJoCo's; 0 if the system does not say."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("Threads:"))
    return int(line.split()[1])


def test_steps_of_other_devices_do_not_pile_up_when_one_stops_pushing():
    playback, both = ProcessPlayback(Player(0.05)), (0, 1)
    for step in range(1, 1000):
        assert playback.receive(packet(None, step, 0, both, mine=[0])) is None
    assert len(playback._parts) <= CAPACITY + 1
    assert playback.receive(packet(None, 999, 1, both, mine=[1])) is not None, "the newest is there"
    assert not playback._parts


def test_a_packet_of_one_training_is_not_taken_for_a_step_of_the_next():
    playback, both = ProcessPlayback(Player(0.05)), (0, 1)
    assert playback.receive(packet(None, 900, 1, both, mine=[1])) is None
    for step in range(1, 900):  # another training, which counts from 1
        playback.receive(packet(None, step, 0, both, mine=[0]))
        assert playback.receive(packet(None, step, 1, both, mine=[1])) is not None
    assert playback.receive(packet(None, 900, 0, both, mine=[0])) is None


def test_a_compiled_program_does_not_keep_a_closed_viewer_alive():
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
