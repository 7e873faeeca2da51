"""The way of CUDA: the host is called as XLA enqueues a step, and copies arrive later."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from mujoco_playground import wrapper
from mujoco_playground._src import mjx_env

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli.playground import load
from brax_viser.device import launch
from brax_viser.device import lead as device_lead
from brax_viser.device.episode import EpisodeLog
from brax_viser.device.host_call import LAUNCH, VARIABLE
from brax_viser.device.lead import LEAD
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.device.memory import Arrivals
from brax_viser.device.ranking import top
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import BEST, BY_MEASURE, NEVER, NONFINITE, TERMINATED, WORST
from brax_viser.records.ranking import keys
from envs.cartpole import CartPole
from tests.conftest import Page, eventually
from tests.late import LateDriver
from tests.sample import FallingCartPole, SwiftCartPole, Turning
from tests.support import Probe, source_of

NUM_ENVS = 6


@pytest.fixture
def driver() -> LateDriver:
    return LateDriver()


@pytest.fixture(params=["at once", "late"])
def memory(request, driver, monkeypatch) -> str:
    """Watches programs for the CPU as those for CUDA are, with copies that are there within the
    call, and with copies that arrive later."""
    monkeypatch.setenv(VARIABLE, LAUNCH)
    if request.param == "late":
        arrivals = Arrivals(driver)
        monkeypatch.setattr(launch, "on_cpu", lambda: lambda context: arrivals.on(0))
    return request.param


# The program.


def humanoid_with_randomised_masses() -> tuple[Any, Any]:
    def randomised(sys: Any, keys: jax.Array) -> tuple[Any, Any]:
        mass = jax.vmap(lambda key: sys.link.inertia.mass * jax.random.uniform(key))(keys)
        axes = jax.tree.map(lambda _: None, sys)
        change = {"link.inertia.mass": mass}
        return sys.tree_replace(change), axes.tree_replace({"link.inertia.mass": 0})

    fn = partial(randomised, keys=jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    return envs.get_environment("humanoid", backend="spring"), fn


PROGRAMS = {
    "cart-pole": lambda: (CartPole("spring"), None),
    "ant": lambda: (envs.get_environment("ant", backend="positional"), None),
    "humanoid": lambda: (envs.get_environment("humanoid", backend="mjx"), None),
    "go1": lambda: (load("Go1JoystickFlatTerrain", "jax"), None),
    "go1-warp": lambda: (load("Go1JoystickFlatTerrain", "warp"), None),
    "randomised": humanoid_with_randomised_masses,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_cuda_has_no_extra_branch_and_one_extra_call(viewer, monkeypatch, name):
    if name.startswith("go1"):  # the only ones for which robots of others must be installed
        from tests.test_playground import MENAGERIE

        monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", epath.Path(MENAGERIE))
    bare, randomisation = PROGRAMS[name]()

    def operations(env: Any) -> dict[str, int]:
        if name == "go1-warp":
            env = wrapper.wrap_for_brax_training(env, episode_length=100)
            step, reset = env.step, env.reset
        elif hasattr(bare, "mjx_model"):
            step, reset = jax.vmap(env.step), jax.vmap(env.reset)
        else:
            env = envs.training.wrap(env, 100, randomization_fn=randomisation)
            step, reset = env.step, env.reset
        state = jax.eval_shape(reset, jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        action = jax.ShapeDtypeStruct((NUM_ENVS, env.action_size), np.float32)
        text = jax.jit(step).trace(state, action).lower(lowering_platforms=("cuda",)).as_text()
        kinds = ("stablehlo.case", "stablehlo.if", "stablehlo.while", "custom_call")
        return {kind: text.count(kind) for kind in kinds}

    stock = operations(bare)
    watched = operations(VisualizedEnv(bare, grid=(2, 2), viewer=viewer))
    assert watched == {**stock, "custom_call": stock["custom_call"] + 1}


def test_a_program_for_the_cpu_asks_by_countdown_where_nothing_is_forced(viewer, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    env = VisualizedEnv(SwiftCartPole(n_frames=1), grid=(2, 2), viewer=viewer)
    state = jax.eval_shape(jax.vmap(env.reset), jax.random.split(jax.random.PRNGKey(0), 2))
    traced = jax.jit(jax.vmap(env.step)).trace(state, jax.ShapeDtypeStruct((2, 1), np.float32))
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    launches = {p: "xla_buffer_python" in text for p, text in texts.items()}
    assert launches == {"cpu": False, "cuda": True}
    # The one for the CPU runs here, although the same step was lowered for CUDA too.
    reset = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 2))
    run = traced.lower(lowering_platforms=("cpu",)).compile()
    jax.block_until_ready(run(reset, np.zeros((2, 1), np.float32)))
    assert viewer.stats().env_steps == 1 and not source_of(env).lanes


# The ranking.


numbers_of_envs = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 5, NEVER]),
        st.floats(-2, 2, width=32, allow_subnormal=False) | st.sampled_from([np.nan, np.inf]),
        st.integers(-3, 9),
        st.floats(-2, 2, width=32, allow_subnormal=False),
        st.integers(0, 3),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25)
@given(numbers_of_envs, st.sampled_from([BEST, WORST, BEST + BY_MEASURE, TERMINATED, NONFINITE]))
def test_host_and_device_rank_alike(envs_numbers, rule):
    names = (*launch.NUMBERS, "finite")
    kinds = (np.int32, np.float32, np.int32, np.float32, np.int32, bool)
    columns = zip(*envs_numbers, strict=True)
    fields = {n: np.array(x, k) for n, x, k in zip(names, columns, kinds, strict=True)}
    on_device = {name: jnp.asarray(x) for name, x in fields.items()}
    tier, key = keys(np, rule, fields)
    order = np.lexsort((np.arange(len(key)), key, tier))
    np.testing.assert_array_equal(order, top(jnp.int32(rule), on_device, len(order)))


class Half(SwiftCartPole):
    """Observes numbers of half the precision."""

    def reset(self, rng: jax.Array) -> Any:
        state = super().reset(rng)
        return state.replace(obs=state.obs.astype(jnp.bfloat16))

    def step(self, state: Any, action: jax.Array) -> Any:
        state = super().step(state, action)
        return state.replace(obs=state.obs.astype(jnp.bfloat16))


def test_a_buffer_whose_type_numpy_does_not_know_is_passed_as_another(viewer):
    env = VisualizedEnv(Half(n_frames=1), viewer=viewer)
    state = jax.eval_shape(jax.vmap(env.reset), jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    assert state.obs.dtype == jnp.bfloat16
    action = jax.ShapeDtypeStruct((NUM_ENVS, env.action_size), np.float32)
    step = jax.jit(jax.vmap(env.step)).trace(state, action)
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    (call,) = (line for line in text.splitlines() if "xla_buffer_python" in line)
    assert "bf16" in text and "bf16" not in call


# The steps, in a viewer.


class Steps:
    """Pendulums that fall and are reset, stepped by a jitted loop of steps."""

    def __init__(self, viewer: Viewer, bare: Any = None, episode_length: int = 40):
        self.viewer = viewer
        self.driver, self.late = LateDriver(), False
        self.packets = Probe(viewer).record_packets()
        bare = FallingCartPole(n_frames=1) if bare is None else bare
        self.env = VisualizedEnv(bare, grid=(2, 1), viewer=viewer)
        self._wrapped = envs.training.wrap(self.env, episode_length)
        self._reset, self._steps = jax.jit(self._wrapped.reset), jax.jit(self._take)
        self.reset()

    def reset(self) -> None:
        keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
        self.state: Any = self._reset(keys)

    def _take(self, state: Any, count: jax.Array) -> Any:
        action = jnp.zeros((NUM_ENVS, self.env.action_size))
        return jax.lax.fori_loop(0, count, lambda _, s: self._wrapped.step(s, action), state)

    def take(self, count: int = 1) -> None:
        self.state = jax.block_until_ready(self._steps(self.state, jnp.int32(count)))

    def settled(self) -> None:
        """Waits until all that was copied has arrived."""
        launch.on_cpu()(None).finish()


@pytest.fixture(scope="module", params=["at once", "late"])
def steps_of_module(request) -> Iterator[Steps]:
    """All tests share the program, and the viewer that it calls."""
    with pytest.MonkeyPatch.context() as patch, Viewer(port=0) as viewer:
        patch.setenv(VARIABLE, LAUNCH)
        driver = LateDriver()
        if request.param == "late":
            arrivals = Arrivals(driver)
            patch.setattr(launch, "on_cpu", lambda: lambda context: arrivals.on(0))
        page = Page(viewer)
        steps = Steps(viewer)
        steps.driver, steps.late = driver, request.param == "late"
        yield steps
        page.close()


@pytest.fixture
def steps(steps_of_module) -> Iterator[Steps]:
    steps, viewer = steps_of_module, steps_of_module.viewer
    viewer.streaming, viewer.mode, viewer.show, viewer.twins = True, "every_step", "train", 0
    viewer.select("first")
    viewer.selected_env = None
    steps.reset()
    steps.take()
    steps.settled()
    steps.packets.clear()
    yield steps
    viewer.resume()
    assert Probe(viewer).shared.fault is None


def numbers(packets: list[Packet]) -> list[int]:
    return [packet.env_steps for packet in packets]


def test_each_step_is_seen_once_and_nothing_that_is_computed_changes(steps):
    before = steps.viewer.stats().env_steps
    steps.take(30)
    steps.settled()
    assert numbers(steps.packets) == list(range(before + 1, before + 31))
    last = steps.packets[-1].open()
    np.testing.assert_array_equal(last.env_index, [0, 1])
    np.testing.assert_array_equal(last.link_pos, steps.state.pipeline_state.x.pos[:2])
    np.testing.assert_array_equal(last.reward, steps.state.reward[:2])

    bare = envs.training.wrap(FallingCartPole(n_frames=1), 40)
    state = jax.jit(bare.reset)(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    action = jnp.zeros((NUM_ENVS, 1))
    thirty_one = jax.jit(lambda s: jax.lax.fori_loop(0, 31, lambda _, s: bare.step(s, action), s))
    np.testing.assert_array_equal(thirty_one(state).obs, steps.state.obs)


def test_while_nothing_is_shown_steps_are_counted_and_nothing_is_copied_but_polls(steps):
    viewer = steps.viewer
    viewer.streaming = False
    before, copies = viewer.stats(), len(steps.driver.copies)
    steps.take(200)
    steps.settled()
    steps.take()
    after = viewer.stats()
    assert after.frames == before.frames and not steps.packets
    steps.viewer.streaming = True
    steps.take()  # a change takes effect at the very next step
    steps.settled()
    assert numbers(steps.packets) == [before.env_steps + 202]
    assert len(steps.driver.copies) - copies < 20


def test_what_is_decided_while_the_device_is_busy_is_not_counted_as_cost(steps):
    meter = Probe(steps.viewer).shared.meter
    steps.driver.arrives.clear()
    try:
        calls = meter.calls
        steps.take(5)
        assert meter.calls - calls == (1 if steps.late else 5)
    finally:
        steps.driver.arrives.set()
    steps.settled()
    assert len(steps.packets) == 5


def test_another_choice_is_drawn_from_the_next_step_on(steps):
    steps.viewer.select([5, 1])
    steps.take(2)
    steps.viewer.select(("page", 2))
    steps.take(1)
    steps.settled()
    assert [p.env_index.tolist() for p in steps.packets] == [[5, 1], [5, 1], [2, 3]]


@pytest.mark.parametrize("rule", ["best", "worst", "terminated"])
def test_environments_are_ranked_by_the_host(steps, rule):
    steps.take(60)  # all have fallen
    steps.viewer.select(rule)
    steps.take(1)
    steps.settled()
    steps.take(1)
    steps.settled()
    log = EpisodeLog(**steps.state.info[INFO_KEY])
    lengths, returns = np.asarray(log.finished_length), np.asarray(log.finished_return)
    assert (lengths > 0).all()
    chosen = steps.packets[-1].env_index.tolist()
    # Another episode may have ended with the last step.
    since = np.asarray(log.since_termination)
    if rule == "terminated":
        assert since[chosen[0]] == np.sort(since)[0] or since.min() < 1
        falls = [p for p in steps.packets if p.ranked]
        assert falls and falls[0].env_index.tolist() == chosen
    elif since.min() > 1:
        order = np.lexsort((np.arange(NUM_ENVS), returns if rule == "worst" else -returns))
        assert chosen == order[:2].tolist()


def test_the_selected_environments_details_and_twins_coordinates_are_copied(steps):
    steps.viewer.selected_env = 1
    steps.take()
    steps.viewer.twins = 2
    steps.take()
    steps.settled()
    plain, with_coordinates = (packet.open() for packet in steps.packets)
    assert plain.coordinates is None and plain.detail.env == 1
    physics = steps.state.pipeline_state
    np.testing.assert_array_equal(with_coordinates.detail.qpos, physics.q[1])
    np.testing.assert_array_equal(with_coordinates.coordinates.qpos, physics.q[:2])
    np.testing.assert_array_equal(with_coordinates.coordinates.qvel, physics.qd[:2])


def test_a_hold_is_exact_to_the_step_and_shows_other_environments_meanwhile(steps):
    viewer = steps.viewer
    viewer.pause()
    training = threading.Thread(target=steps.take, args=(60,), daemon=True)
    training.start()
    eventually(lambda: viewer.stats().held, "it is held")
    at = viewer.stats().env_steps
    viewer.step(3)
    eventually(lambda: viewer.stats().env_steps == at + 3 and viewer.stats().held, "three steps")
    viewer.select([4, 2])
    eventually(lambda: steps.packets[-1].env_index.tolist() == [4, 2], "others are shown")
    assert steps.packets[-1].env_steps == at + 3
    viewer.select("worst")
    eventually(lambda: steps.packets[-1].env_index.tolist() != [4, 2], "they are ranked")
    assert steps.packets[-1].env_steps == at + 3 == viewer.stats().env_steps
    viewer.run_to_termination(3)
    eventually(lambda: viewer.stats().held and viewer.stats().env_steps > at + 3, "it has fallen")
    fallen = [p for p in steps.packets if 3 in p.env_index][-1].open()
    assert fallen.since_termination[fallen.env_index.tolist().index(3)] == 0
    assert fallen.env_steps == viewer.stats().env_steps
    viewer.resume()
    training.join(60)
    assert not training.is_alive() and viewer.stats().env_steps == at + 59


def test_the_training_is_few_steps_ahead_of_the_device(steps, monkeypatch):
    monkeypatch.setattr(device_lead, "LEAD_SECONDS", 60.0)
    stats, before = steps.viewer.stats, steps.viewer.stats().env_steps
    steps.driver.arrives.clear()
    training = threading.Thread(target=steps.take, args=(100,), daemon=True)
    try:
        training.start()
        ahead = LEAD if steps.late else 100
        eventually(lambda: stats().env_steps - before >= ahead, "it goes ahead")
        training.join(0.5)
        assert stats().env_steps - before == ahead
    finally:
        steps.driver.arrives.set()
    training.join(60)
    steps.settled()
    assert numbers(steps.packets) == list(range(before + 1, before + 101))


def test_a_closed_viewers_training_does_not_wait_for_the_device(memory, driver, viewer):
    steps = Steps(viewer, SwiftCartPole(n_frames=1))
    viewer.close()
    steps.take(3)
    driver.arrives.clear()
    training = threading.Thread(target=steps.take, args=(100,), daemon=True)
    training.start()
    training.join(30)
    is_free = not training.is_alive()
    driver.arrives.set()
    assert is_free


@contextlib.contextmanager
def running(steps: Steps) -> Iterator[threading.Thread]:
    """Takes steps in another thread, and must be able to end it."""
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            steps.take(10)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        steps.viewer.resume()
    thread.join(60)
    assert not thread.is_alive()


class Ending(SwiftCartPole):
    """Ends its episode with each step."""

    def step(self, state: Any, action: jax.Array) -> Any:
        return super().step(state, action).replace(done=jnp.ones(()))


def test_an_end_that_was_under_way_when_it_was_asked_for_holds_nothing(
    memory, driver, viewer, page, monkeypatch
):
    monkeypatch.setattr(device_lead, "LEAD_SECONDS", 60.0)
    viewer.mode = "every_step"
    steps = Steps(viewer, Ending(n_frames=1))
    steps.take(2)
    driver.arrives.clear()
    with running(steps):
        eventually(lambda: viewer.stats().env_steps >= LEAD, "steps are under way")
        viewer.run_to_termination(0)
        driver.arrives.set()
        eventually(lambda: viewer.stats().held, "it is held")
        assert Probe(viewer).shared.hold.fell == ("train", viewer.stats().env_steps)


@pytest.mark.parametrize("memory", ["late"], indirect=True)
def test_the_end_of_an_environment_that_is_no_longer_awaited_holds_nothing(
    memory, driver, viewer, page
):
    viewer.mode = "every_step"
    steps = Steps(viewer, Ending(n_frames=1))
    steps.take(2)
    driver.arrives.clear()
    viewer.run_to_termination(0)
    with running(steps) as thread:
        eventually(lambda: viewer.stats().env_steps == 3, "a step waits for its own contents")
        thread.join(0.3)
        viewer.run_to_termination(1)
        driver.arrives.set()
        eventually(lambda: viewer.stats().held, "it is held")
        assert Probe(viewer).shared.hold.fell == ("train", 4) and viewer.stats().env_steps == 4


def test_the_step_of_a_hold_is_never_dropped(memory, viewer):
    viewer.mode = "latest"
    source = source_of(Steps(viewer, SwiftCartPole(n_frames=1)).env)
    assert not source.waits
    viewer.pause()
    assert source.waits


@pytest.mark.parametrize("where", ["_decision", "arrived"])
def test_a_fault_of_ours_leaves_the_training_alone(memory, viewer, page, monkeypatch, where):
    viewer.mode = "every_step"
    steps = Steps(viewer, SwiftCartPole(n_frames=1))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(source_of(steps.env), where, broken)
    steps.take(3)
    steps.settled()
    assert "not today" in str(Probe(viewer).shared.fault) and not viewer.streaming
    assert np.isfinite(steps.state.obs).all()
    viewer.close()
    steps.take(3)


@pytest.mark.parametrize("holds", [False, True])
def test_a_nan_is_found_and_holds_the_training_at_its_step(memory, viewer, page, holds):
    viewer.hold_on_nan, viewer.mode = holds, "latest"
    steps = Steps(viewer, Turning(n_frames=1), episode_length=10_000)
    info = steps.state.info
    turning = {"at": info["at"].at[4, 2].set(7), "until": info["until"].at[4, 2].set(9)}
    steps.state = steps.state.replace(info={**info, **turning})
    training = threading.Thread(target=steps.take, args=(20,), daemon=True)
    training.start()
    if holds:
        eventually(lambda: viewer.stats().held, "it is held")
        viewer.resume()
    training.join(60)
    assert not training.is_alive()

    def findings() -> tuple[Any, ...]:
        if not Probe(viewer).shared.findings.told:
            steps.take(1)
        return Probe(viewer).shared.findings.told

    eventually(findings, "it is found, although all is finite again")
    (finding, *_) = findings()
    assert finding.env == 4 and ("qvel", "NaN") in finding.fields
    assert finding.exact == holds and (finding.env_steps == 7 or not holds)
    assert Probe(viewer).shared.fault is None


def test_randomised_models_are_copied_once_and_again_after_a_reset(memory, viewer, page):
    viewer.mode = "every_step"
    sent: list[dict[int, Any]] = []
    put = Probe(viewer).shared.mailbox.put_model

    def put_down(packet: ModelPacket) -> None:
        sent.append(packet.open())
        put(packet)

    Probe(viewer).shared.mailbox.put_model = put_down

    masses = 1.0 + np.arange(NUM_ENVS, dtype=np.float32)

    def randomised(sys: Any) -> tuple[Any, Any]:
        change = {"link.inertia.mass": jnp.asarray(masses)[:, None] * sys.link.inertia.mass}
        axes = jax.tree.map(lambda _: None, sys)
        return sys.tree_replace(change), axes.tree_replace({"link.inertia.mass": 0})

    env = VisualizedEnv(SwiftCartPole(n_frames=1), grid=(2, 1), viewer=viewer)
    copied: list[Any] = []
    source = source_of(env)
    arrived = source.models_arrived
    source.models_arrived = lambda *given: (copied.append(given), arrived(*given))
    wrapped = envs.training.wrap(env, 100, randomization_fn=randomised)
    reset, step = jax.jit(wrapped.reset), jax.jit(wrapped.step)
    keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
    action = jnp.zeros((NUM_ENVS, 1))
    state = reset(keys)
    for _ in range(3):
        state = jax.block_until_ready(step(state, action))
    eventually(lambda: len(sent) == 1, "models of two are sent")
    assert sorted(sent[0]) == [0, 1]
    (name,) = sent[0][0]
    np.testing.assert_allclose(sent[0][1][name], 2 * sent[0][0][name], rtol=1e-6)

    def sent_again(times: int) -> bool:
        nonlocal state
        state = jax.block_until_ready(step(state, action))
        return len(sent) == times

    viewer.select([5, 1])
    eventually(lambda: sent_again(2), "models of others are handed on")
    assert sorted(sent[1]) == [1, 5]
    np.testing.assert_allclose(sent[1][5][name], 6 * sent[0][0][name], rtol=1e-6)
    launch.on_cpu()(None).finish()
    assert len(copied) == 1, "all models came with the first copy"
    state = reset(keys)
    eventually(lambda: sent_again(3), "they are sent again")
    assert len(copied) == 2
    assert Probe(viewer).shared.fault is None


def on_four_devices() -> None:
    """Checks, in a process with four devices, that one hold holds all at the same step."""
    with Viewer(port=0, mode="every_step") as viewer:
        page = Page(viewer)
        env = envs.training.wrap(
            VisualizedEnv(FallingCartPole(n_frames=1), grid=(3, 1), viewer=viewer), 30
        )
        viewer.select([7, 0, 2])
        keys = jax.random.split(jax.random.PRNGKey(0), 8).reshape(4, 2, -1)
        state = jax.pmap(env.reset, axis_name="devices")(keys)
        frames: list[Any] = []
        Probe(viewer).watch_packets(lambda packets: frames.extend(p.open() for p in packets))
        hold, of = Probe(viewer).shared.hold, lambda: source_of(env).rollouts["train"].steps.of
        viewer.pause()

        def steps(state: Any) -> Any:
            action = jnp.zeros((2, 1))
            return jax.lax.scan(lambda s, _: (env.step(s, action), None), state, None, 20)[0]

        run, done = jax.pmap(steps, axis_name="devices"), []
        training = threading.Thread(target=lambda: done.append(jax.device_get(run(state))))
        training.start()

        def held_at(step: int) -> bool:
            parts = [hold._parts.get(("train", shard)) for shard in range(4)]
            blocked = all(part and part.blocked for part in parts)
            return blocked and [of()[shard].env_steps for shard in range(4)] == [step] * 4

        eventually(lambda: held_at(1), "all are held at their first step", 120)
        viewer.step(4)
        eventually(lambda: held_at(5), "all are held four steps later")
        viewer.resume()
        training.join()
        assert viewer.stats().env_steps == 20 and Probe(viewer).shared.fault is None

        def drawn() -> set[int]:
            return {i for frame in frames if frame.env_steps == 5 for i in frame.env_index.tolist()}

        eventually(lambda: drawn() == {7, 0, 2}, "all three are drawn")
        page.close()
    bare = envs.training.wrap(FallingCartPole(n_frames=1), 30)

    def bare_steps(state: Any) -> Any:
        action = jnp.zeros((2, 1))
        return jax.lax.scan(lambda s, _: (bare.step(s, action), None), state, None, 20)[0]

    stock = jax.pmap(bare_steps, axis_name="devices")(jax.pmap(bare.reset)(keys))
    np.testing.assert_array_equal(stock.obs, done[0].obs)
    print("identical")


def test_four_devices_are_held_at_the_same_step():
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_launch import on_four_devices as f; f()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, VARIABLE: LAUNCH},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "identical" in done.stdout, done.stdout + done.stderr
