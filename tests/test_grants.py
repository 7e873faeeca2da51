"""Consecutive granted steps: the device does not ask, and each change still takes effect."""

import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device import host_call
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.host import callbacks as callbacks_module
from brax_viser.records.frame import Frame
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import GIVEN, GRANTED, GRANTED_COORDINATES, UNASKED
from tests.conftest import Page, eventually
from tests.sample import SwiftCartPole
from tests.support import Probe, source_of

NUM_ENVS = 16


class Rollout:
    """A rollout that records its calls and packets, shared by all tests."""

    def __init__(self, viewer: Viewer):
        self.viewer = viewer
        self.calls: list[tuple[str, int]] = []  # ("ask", countdown), ("push", rule)
        self.packets = Probe(viewer).record_packets()
        env = VisualizedEnv(SwiftCartPole("positional"), grid=(2, 2), viewer=viewer)
        ask, push = source_of(env).ask, source_of(env).push

        def asked(origin: Any, query: Any) -> np.ndarray:
            self.calls.append(("ask", int(np.asarray(query)[0])))
            return ask(origin, query)

        def pushed(origin: Any, layout: Any, header: Any, rows: Any) -> np.ndarray:
            self.calls.append(("push", int(np.asarray(header)[1])))
            return push(origin, layout, header, rows)

        source_of(env).ask, source_of(env).push = asked, pushed
        self.env = envs.training.wrap(env, episode_length=100)
        self.state = jax.jit(self.env.reset)(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        self._steps = jax.jit(self._take)

    def _take(self, state: envs.State, count: jax.Array) -> envs.State:
        action = jnp.zeros((NUM_ENVS, 1))
        return jax.lax.fori_loop(0, count, lambda _, s: self.env.step(s, action), state)

    def steps(self, count: int = 1) -> list[tuple[str, int]]:
        """Takes steps, and returns the calls that were made."""
        self.calls.clear()
        self.state = jax.block_until_ready(self._steps(self.state, jnp.int32(count)))
        return list(self.calls)

    @property
    def frames(self) -> list[tuple[int, tuple[int, ...]]]:
        """Returns (step, environments) of each frame since the test began."""
        return [(packet.env_steps, tuple(packet.env_index.tolist())) for packet in self.packets]


@pytest.fixture(scope="module", params=host_call.MECHANISMS)
def one_rollout(request):
    with pytest.MonkeyPatch.context() as patch, Viewer(port=0) as viewer:
        patch.setenv(host_call.VARIABLE, request.param)
        page = Page(viewer)
        yield Rollout(viewer)
        page.close()


@pytest.fixture
def rollout(one_rollout):
    viewer = one_rollout.viewer
    viewer.streaming, viewer.mode, viewer.show, viewer.twins = True, "every_step", "train", 0
    viewer.select("first")
    viewer.selected_env = None
    one_rollout.packets.clear()
    while len(one_rollout.packets) < 3:  # some steps are skipped after streaming was off
        one_rollout.steps()
    assert Probe(viewer).shared.fault is None
    one_rollout.packets.clear()
    return one_rollout


ALONE = ("push", UNASKED)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["each looked into", "gone on with"])
def test_each_granted_step_is_one_call_and_is_counted_and_sent(rollout, monkeypatch, seconds):
    monkeypatch.setattr(callbacks_module, "GRANT_SECONDS", seconds)
    rollout.viewer.max_overhead = 0.5  # another control: the grant is checked again
    rollout.steps()
    before, meter = rollout.viewer.stats(), Probe(rollout.viewer).shared.meter
    known, made = len(rollout.frames), meter.calls
    assert rollout.steps(50) == [ALONE] * 50
    after = rollout.viewer.stats()
    assert after.env_steps - before.env_steps == after.frames - before.frames == 50
    first = before.env_steps + 1
    assert rollout.frames[known:] == [(step, (0, 1, 2, 3)) for step in range(first, first + 50)]
    assert np.all(rollout.state.info[INFO_KEY]["countdown"] == GRANTED)
    rollout.viewer.max_overhead = 0.4
    rollout.steps()  # by now the meter has counted all
    assert meter.calls - made == 51
    moved = after.bytes_moved - before.bytes_moved
    assert moved == 50 * (rollout.viewer.stats().bytes_moved - after.bytes_moved)


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        (lambda viewer: setattr(viewer, "streaming", False), [ALONE]),
        (lambda viewer: viewer.select([9, 4]), [ALONE, ("push", GIVEN)]),
        (lambda viewer: viewer.select("worst"), [ALONE, ("push", 2), ("push", GIVEN)]),
        # It is already drawn, and is pushed with its details.
        (lambda viewer: setattr(viewer, "selected_env", 3), [ALONE, ("push", GIVEN)]),
        (lambda viewer: setattr(viewer, "twins", 2), [ALONE, ("push", GIVEN)]),
        (lambda viewer: setattr(viewer, "show", "eval"), [ALONE]),
    ],
    ids=["off", "chosen", "ranked", "selected", "twins", "another rollout"],
)
def test_a_change_takes_effect_at_the_next_step(rollout, monkeypatch, change, calls):
    monkeypatch.setattr(callbacks_module, "GRANT_SECONDS", 1e9)
    rollout.viewer.max_overhead = 0.3
    rollout.steps(3)
    before = rollout.viewer.stats()
    rollout.packets.clear()
    change(rollout.viewer)
    assert rollout.steps() == calls
    frames = rollout.frames
    assert rollout.viewer.stats().env_steps == before.env_steps + 1
    if len(calls) == 1:
        assert not frames, "it was sent, although it is not shown"
        return
    ((step, envs_drawn),) = frames  # once, and not as granted
    assert step == before.env_steps + 1
    if calls[-1] == ("push", GIVEN) and Probe(rollout.viewer).shared.selection.indices:
        assert envs_drawn == (9, 4)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["each looked into", "gone on with"])
def test_coordinates_for_twins_are_granted_too(rollout, monkeypatch, seconds):
    monkeypatch.setattr(callbacks_module, "GRANT_SECONDS", seconds)
    rollout.viewer.twins = 2
    assert rollout.steps()[:2] == [ALONE, ("push", GIVEN)]
    rollout.packets.clear()
    assert rollout.steps(20) == [ALONE] * 20
    assert np.all(rollout.state.info[INFO_KEY]["countdown"] == GRANTED_COORDINATES)
    assert [packet.open().coordinates is None for packet in rollout.packets] == [False] * 20
    assert [packet.detail_env for packet in rollout.packets] == [None] * 20
    assert len({step for step, _ in rollout.frames}) == 20
    rollout.packets.clear()
    rollout.viewer.twins = 0
    assert rollout.steps(2) == [ALONE, ("push", GIVEN), ALONE]
    assert [packet.open().coordinates is None for packet in rollout.packets] == [True] * 2
    assert Probe(rollout.viewer).shared.fault is None


def test_drawing_a_ghost_does_not_refresh_the_panel(rollout, monkeypatch):
    """A refresh at each step with twins would cost the training more time than the twins do."""
    viewer = rollout.viewer
    viewer.twins = 2
    rollout.steps(3)
    mailbox, rung = Probe(viewer).shared.mailbox, []
    ring = mailbox.ring
    monkeypatch.setattr(mailbox, "ring", lambda: (rung.append(1), ring()))
    rollout.steps(20)

    def seen() -> bool:
        drift = viewer.drift()
        return drift is not None and drift.env_steps == viewer.stats().env_steps

    eventually(seen, "the last of them is on screen, with its ghosts")
    assert not rung


def test_the_outdated_grant_of_an_older_state_is_replaced(rollout, monkeypatch):
    monkeypatch.setattr(callbacks_module, "GRANT_SECONDS", 1e9)
    rollout.viewer.max_overhead = 0.6
    rollout.steps(3)
    older = rollout.state
    rollout.viewer.twins = 2
    rollout.steps(3)
    rollout.state = older
    rollout.packets.clear()
    assert rollout.steps(2) == [ALONE, ("push", GIVEN), ALONE]
    assert [packet.open().coordinates is None for packet in rollout.packets] == [False] * 2
    assert Probe(rollout.viewer).shared.fault is None


def test_the_progress_counts_each_step_once_whenever_the_trainer_reports(rollout, monkeypatch):
    monkeypatch.setattr(callbacks_module, "GRANT_SECONDS", 1e9)
    viewer = rollout.viewer
    rollout.steps(20)
    known = viewer.progress().num_steps
    rollout.steps(5)
    assert viewer.progress().num_steps == known + 5 * NUM_ENVS
    rollout.steps(5)
    viewer.progress_fn(100_000, {})
    viewer.max_overhead = 0.7  # the grant is checked again
    rollout.steps(2)
    assert viewer.progress().num_steps == 100_000 + 2 * NUM_ENVS


def test_rows_that_are_not_the_granted_ones_are_asked_for_again(rollout):
    """Reordering the environments of a batch also reorders the rows kept in their state."""
    order = jnp.array([2, 0, 1, *range(3, NUM_ENVS)])
    rollout.state = jax.tree.map(partial(jnp.take, indices=order, axis=0), rollout.state)
    assert rollout.steps() == [ALONE, ("push", GIVEN)]
    ((_, drawn),) = rollout.frames
    assert drawn == (0, 1, 2, 3)
    assert rollout.steps(2) == [ALONE, ALONE]


def test_a_held_training_waits_at_the_granted_step(rollout):
    before = rollout.viewer.stats().env_steps
    rollout.viewer.pause()
    thread = threading.Thread(target=rollout.steps, args=(5,), daemon=True)
    thread.start()
    eventually(lambda: rollout.viewer.stats().held, "it is held")
    assert rollout.viewer.stats().env_steps == before + 1
    assert [step for step, _ in rollout.frames] == [before + 1]
    rollout.viewer.step(2)
    eventually(lambda: rollout.viewer.stats().env_steps == before + 3, "two steps further")
    rollout.viewer.resume()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert [step for step, _ in rollout.frames] == [before + n for n in range(1, 6)]


def test_packets_that_will_not_be_shown_are_not_opened(rollout, monkeypatch):
    probe, opened, open_packet = Probe(rollout.viewer), [], Packet.open

    def opening(packet: Packet) -> Frame:
        opened.append(packet)
        return open_packet(packet)

    def opened_of(packets: list[Packet]) -> list[int]:
        opened.clear()
        probe.receive(packets)
        return [packet.env_steps for packet in opened if packet in packets]

    monkeypatch.setattr(Packet, "open", opening)
    monkeypatch.setattr(Probe(rollout.viewer).shared.mailbox, "put", lambda p, wait: mine.append(p))
    mine: list[Packet] = []
    rollout.steps(5)
    steps = [packet.env_steps for packet in mine]
    assert opened_of(mine) == steps[-1:]
    rollout.viewer.mode = "realtime"  # plays each of them
    assert opened_of(mine) == steps
    rollout.viewer.mode, rollout.viewer.selected_env = "every_step", 2
    mine.clear()
    rollout.steps(3)
    assert opened_of(mine) == [steps[-1] + n for n in (1, 2, 3)], "its past is kept for the sandbox"
