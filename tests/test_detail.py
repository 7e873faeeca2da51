"""Details of the selected robot: they equal the trainer's values, in MuJoCo's conventions."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs
from brax.generalized import pipeline as generalized
from brax.positional import pipeline as positional
from brax.spring import pipeline as spring

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device import host_call
from brax_viser.device.adapters import MAX_OBSERVATION, adapter_for
from brax_viser.processes import messages
from brax_viser.records.frame import Frame, joined
from brax_viser.records.packet import Packet
from brax_viser.records.protocol import size_of
from brax_viser.records.view import View, beside
from tests.conftest import eventually
from tests.sample import SwiftCartPole
from tests.support import Probe, adapter_of

NUM_ENVS, CHOSEN = 5, 3


class Rollout:
    """Environments that are stepped one step at a time, in the mode "every_step"."""

    def __init__(self, viewer: Viewer, bare: Any, grid=(4, 1)):
        viewer.mode = "every_step"
        self.viewer, self.bare = viewer, bare
        self.env = VisualizedEnv(bare, grid=grid, viewer=viewer)
        self._step = jax.jit(jax.vmap(self.env.step))
        self._reset = jax.jit(jax.vmap(self.env.reset))
        self.state: Any = None
        self.frame_bytes: list[int] = []
        self.action = np.zeros(0)
        self.reset()

    def reset(self) -> None:
        """Begins again with the same states and actions; the viewer goes on counting steps."""
        self.state = self._reset(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        self._random = np.random.default_rng(0)

    def step(self) -> Frame:
        """Takes a step, and returns its frame once it is on screen."""
        before = self.viewer.stats().bytes_moved
        size = (NUM_ENVS, self.env.action_size)
        self.action = self._random.uniform(-1, 1, size).astype(np.float32)
        self.state = jax.block_until_ready(self._step(self.state, jnp.asarray(self.action)))
        at = self.viewer.stats().env_steps
        self.frame_bytes.append(self.viewer.stats().bytes_moved - before)
        scene = Probe(self.viewer).scene  # its blocks are replaced once a sandbox opens
        drawn: list[Frame] = []

        def is_drawn() -> bool:
            drawn.extend((frame,) if (frame := scene.blocks["train"].frame) is not None else ())
            return bool(drawn) and drawn[-1].env_steps == at

        eventually(is_drawn, "it is drawn")
        Probe(self.viewer).now(lambda: None)  # so that its twins are drawn too
        # None: a sandbox has just closed, and the scene has been arranged again.
        return scene.blocks["train"].frame or drawn[-1]


def suite_env(name: str) -> Any:
    registry = pytest.importorskip("mujoco_playground").registry
    return registry.load(name, config_overrides={"impl": "jax"})


def ant(backend: str) -> Any:
    return envs.get_environment("ant", backend=backend)


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    ("mechanism", "make"),
    [
        ("direct", lambda: SwiftCartPole("spring")),
        ("io_callback", lambda: SwiftCartPole("spring")),
        ("launch", lambda: SwiftCartPole("spring")),
        # Its free joint has more positions than velocities.
        ("direct", lambda: ant("spring")),
    ],
    ids=(*host_call.MECHANISMS, host_call.LAUNCH, "ant"),
)
def test_only_the_selected_envs_details_are_sent_and_none_without_a_selection(
    viewer, monkeypatch, mechanism, make
):
    monkeypatch.setenv(host_call.VARIABLE, mechanism)
    rollout = Rollout(viewer, make())
    assert rollout.step().detail is None
    viewer.selected_env = CHOSEN
    frame = rollout.step()
    detail = frame.detail
    assert detail is not None and detail.env == CHOSEN
    state = rollout.state
    np.testing.assert_array_equal(detail.qpos, state.pipeline_state.q[CHOSEN])
    np.testing.assert_array_equal(detail.qvel, state.pipeline_state.qd[CHOSEN])
    np.testing.assert_array_equal(detail.action, rollout.action[CHOSEN])
    np.testing.assert_array_equal(detail.observation[""], state.obs[CHOSEN])
    terms = {name: x[CHOSEN] for name, x in state.metrics.items()}
    assert dict(detail.metrics) == terms
    # The spring backend keeps no controls: they are taken from the action of the step.
    np.testing.assert_array_equal(detail.ctrl, rollout.action[CHOSEN])
    # An env that was not drawn before has details too, because selecting it draws it.
    viewer.selected_env = 4
    frame = rollout.step()
    assert 4 in frame.env_index and frame.detail is not None
    np.testing.assert_array_equal(frame.detail.qpos, rollout.state.pipeline_state.q[4])
    viewer.selected_env = None
    assert rollout.step().detail is None
    without, one, other, after = rollout.frame_bytes
    physics, (_, actions) = state.pipeline_state, rollout.action.shape
    numbers = physics.q.shape[1] + physics.qd.shape[1] + 2 * actions + state.obs.shape[1]
    numbers += len(state.metrics)
    assert without == after and other == without + 4 * numbers
    # By countdown, a push without details had already been granted.
    assert one == other + (without if mechanism != host_call.LAUNCH else 0)


@pytest.mark.usefixtures("page")
def test_a_held_training_sends_the_selected_envs_details_at_that_step(viewer):
    import threading

    rollout = Rollout(viewer, SwiftCartPole())
    rollout.step()
    viewer.pause()
    thread = threading.Thread(target=rollout.step, daemon=True)
    thread.start()
    eventually(lambda: viewer.stats().held, "held")
    at = viewer.stats().env_steps
    block = Probe(viewer).scene.blocks["train"]
    eventually(lambda: block.frame and block.frame.env_steps == at, "the step is drawn")
    assert block.frame.detail is None
    for env in (1, 2):
        viewer.selected_env = env
        eventually(lambda: block.frame.detail and block.frame.detail.env == env, "told")  # noqa: B023
        assert block.frame.env_steps == at
    viewer.resume()
    thread.join(timeout=30)


PIPELINES = {"generalized": generalized, "spring": spring, "positional": positional}


@pytest.mark.parametrize("backend", PIPELINES)
def test_coordinates_of_brax_equal_mujocos_while_no_joint_is_strained(backend):
    """Compares order, units and frames, including the free joint's angular velocity: for a robot in
    flight, with unstrained joints, MuJoCo computes the same poses and velocities."""
    system = ant(backend).sys
    model, pipeline = system.mj_model, PIPELINES[backend]
    data, random = mujoco.MjData(model), np.random.default_rng(1)
    qpos = np.array(system.init_q)
    qpos[2] = 3.0
    qpos[3:7] = random.normal(size=4)
    qpos[3:7] /= np.linalg.norm(qpos[3:7])
    qpos[7:] = 0.5 * model.jnt_range[1:].sum(axis=1)
    qvel = random.normal(size=model.nv)
    init = jax.jit(functools.partial(pipeline.init, system))
    state = init(jnp.asarray(qpos), jnp.asarray(qvel))
    data.qpos, data.qvel = state.q, state.qd
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.xpos[1:], state.x.pos, atol=1e-4)
    velocity = np.zeros((model.nbody, 6))
    for body in range(model.nbody):
        kind = mujoco.mjtObj.mjOBJ_XBODY
        mujoco.mj_objectVelocity(model, data, kind, body, velocity[body], 0)
    # The torso's angular velocity differs in its own frame: a mix-up of frames would be found.
    local = data.xmat[1].reshape(3, 3).T @ velocity[1, :3]
    assert np.abs(local - velocity[1, :3]).max() > 0.3
    np.testing.assert_allclose(velocity[1:, :3], state.xd.ang, atol=1e-3)
    np.testing.assert_allclose(velocity[1:, 3:], state.xd.vel, atol=1e-3)
    # After a step, the change of the coordinates that the backend computes from its links agrees
    # with its velocities.
    step = jax.jit(functools.partial(pipeline.step, system))
    after = step(state, jnp.zeros(system.act_size()))
    change = np.zeros(model.nv)
    mujoco.mj_differentiatePos(model, change, float(system.opt.timestep), qpos, np.array(after.q))
    np.testing.assert_allclose(change[:6], np.array(after.qd)[:6], atol=0.15)


NATIVE = {"ant": lambda: ant("mjx"), "cartpole": lambda: suite_env("CartpoleBalance")}


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("name", [pytest.param("ant", marks=pytest.mark.full), "cartpole"])
def test_mjx_details_have_controls_and_are_one_substep_ahead_of_the_drawn_poses(viewer, name):
    """MuJoCo's poses are those at the start of the last substep; its qpos is that at the end."""
    rollout = Rollout(viewer, NATIVE[name]())
    viewer.selected_env = CHOSEN
    rollout.step()
    frame = rollout.step()
    detail, model = frame.detail, adapter_for(rollout.bare).mj_model
    assert detail is not None and detail.ctrl is not None
    state = rollout.state
    own = state.data if hasattr(state, "data") else state.pipeline_state
    np.testing.assert_array_equal(detail.qpos, own.qpos[CHOSEN])
    np.testing.assert_array_equal(detail.qvel, own.qvel[CHOSEN])
    np.testing.assert_array_equal(detail.ctrl, own.ctrl[CHOSEN])
    data = mujoco.MjData(model)
    data.qpos = detail.qpos
    system = getattr(rollout.bare, "sys", None)
    timestep = float(system.opt.timestep) if system else float(rollout.bare.sim_dt)
    # Euler's method: q after = q before + dt * v after.
    mujoco.mj_integratePos(model, data.qpos, detail.qvel.astype(float), -timestep)
    mujoco.mj_kinematics(model, data)
    row = frame.env_index.tolist().index(CHOSEN)
    np.testing.assert_allclose(data.xpos[1:], frame.link_pos[row], atol=1e-4)


@pytest.mark.usefixtures("page")
def test_generalized_poses_match_the_details(viewer):
    rollout = Rollout(viewer, ant("generalized"))
    viewer.selected_env = CHOSEN
    for _ in range(4):
        frame = rollout.step()
    model, detail = rollout.bare.sys.mj_model, frame.detail
    data = mujoco.MjData(model)
    data.qpos = detail.qpos
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(
        data.xpos[1:], frame.link_pos[frame.env_index.tolist().index(CHOSEN)], atol=1e-4
    )


class Verbose(SwiftCartPole):
    """A cart-pole with several observations, some of which are too large to be sent."""

    def reset(self, rng):
        return self._seen(super().reset(rng))

    def step(self, state, action):
        return self._seen(super().step(state.replace(obs=state.obs["state"]), action))

    def _seen(self, state):
        obs = {
            "pixels/view_0": jnp.zeros((8, 8, 3)),
            "long": jnp.zeros(MAX_OBSERVATION),
            "state": state.obs,
            "map": jnp.zeros((4, 4)),
            "history": jnp.tile(state.obs, 3),
        }
        return state.replace(obs=obs)


@pytest.mark.usefixtures("page")
def test_observations_are_sent_by_name_up_to_a_total_size(viewer):
    env = VisualizedEnv(Verbose(), grid=(2, 1), viewer=viewer)
    state = env.reset(jax.random.PRNGKey(0))
    fields = adapter_of(env).detail(state, jnp.zeros(1))
    # The long one comes first by name and reaches the limit alone: the others are left out.
    assert {name for name in fields if name.startswith("observation")} == {"observation/long"}
    state.obs.pop("long")
    fields = adapter_of(env).detail(state, jnp.zeros(1))
    names = {name for name in fields if name.startswith("observation")}
    assert names == {"observation/state", "observation/history"}
    assert size_of([(name, fields[name].shape) for name in names]) == 16


class Keeping(SwiftCartPole):
    """A cart-pole that keeps a counter in `info`, and the terms of its reward in `metrics`."""

    def reset(self, rng: jax.Array) -> Any:
        state = super().reset(rng).replace(info={"mine": {"count": jnp.zeros(())}})
        return state.replace(metrics={"reward/twice": jnp.zeros(())})

    def step(self, state: Any, action: jax.Array) -> Any:
        info = {**state.info, "mine": {"count": state.info["mine"]["count"] + 1}}
        state = super().step(state, action).replace(info=info)
        return state.replace(metrics={"reward/twice": 2.0 * info["mine"]["count"]})


@pytest.mark.usefixtures("page")
def test_the_envs_own_info_and_metrics_are_sent_and_not_those_of_wrappers(viewer):
    viewer.mode, viewer.selected_env = "every_step", CHOSEN
    wrapped = VisualizedEnv(Keeping(), grid=(4, 1), viewer=viewer)
    env = envs.training.wrap(wrapped, episode_length=20)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    # Brax's wrappers update these after the step is sent, so they are stale at that point.
    assert {"mine", "steps", "episode_metrics", "first_obs"} <= set(state.info)
    step = jax.jit(env.step)
    for _ in range(3):
        state = jax.block_until_ready(step(state, jnp.zeros((NUM_ENVS, env.action_size))))
    blocks = Probe(viewer).scene.blocks
    eventually(lambda: (f := blocks["train"].frame) and f.env_steps == 3, "it is drawn")
    frame = blocks["train"].frame
    assert frame is not None and frame.detail is not None
    assert {name: x.tolist() for name, x in frame.detail.info.items()} == {"mine/count": 3.0}
    assert {name: x.tolist() for name, x in frame.detail.metrics.items()} == {"reward/twice": 6.0}
    terms = Probe(viewer).panel_view(0.0).terms
    assert terms is not None and terms.is_of(CHOSEN)


def packet_of(shard: int, env_index: list[int], detail_env: int | None) -> Packet:
    """Returns a packet of one of two devices, with three rows, some of which are padding."""
    layout = (("link_pos", (1, 3)), ("link_rot", (1, 4)), ("reward", ()), ("episode_return", ()))
    layout += (("episode_length", ()), ("since_termination", ()), ("finite", ()))
    detail = (("action", (2,)), ("observation/eyes", (1,)), ("qpos", (1,)), ("qvel", (1,)))
    rows = np.arange(3 * size_of(layout), dtype=np.float32).reshape(3, -1) + 100 * shard
    if detail_env is not None:
        rows = np.concatenate([rows.ravel(), np.arange(size_of(detail), dtype=np.float32)])
    drawn = np.array([0, 1, 12], np.int32)
    index = np.array(env_index, np.int32)
    source = SimpleNamespace(number=0, kind="a hopper")
    return Packet(source, "train", shard, 7, index, drawn, 20, layout, rows, 0, detail_env, detail)


def test_details_survive_a_message_between_processes_and_joining_over_devices():
    own, other = packet_of(0, [0, 1], None), packet_of(1, [12], 12)
    sent = messages.encode(messages.step_of(other, sending=True))
    message = messages.decode_from_worker(sent)
    assert isinstance(message, messages.Step)
    received = messages.packet_of(message, None, 3)
    assert received.rows.size == size_of(other.layout) + 5  # without the padding
    for packet in (other, received):
        frame = joined([own.open(), packet.open()], own.drawn)
        assert frame is not None and frame.detail is not None
        assert frame.env_index.tolist() == [0, 1, 12] and frame.detail.env == 12
        assert frame.detail.action.tolist() == [0, 1]
        assert frame.detail.observation["eyes"].tolist() == [2]
        assert (frame.detail.qpos.tolist(), frame.detail.qvel.tolist()) == ([3], [4])
        assert frame.detail.ctrl is None
        np.testing.assert_array_equal(frame.link_pos[2, 0], [100, 101, 102])
    views = [
        View(f, f.link_pos, f.link_rot, np.zeros(len(f.env_index), bool), 0.0, 0.0)
        for f in (own.open(), other.open())
    ]
    assert beside(views, own.drawn).frame.detail.env == 12
    # Its part is older than the choice: there is no row for it, nor anything that needs one.
    assert beside(views, np.array([1, 0], np.int32)).frame.detail is None
    late = packet_of(0, [0, 1], 1).open()
    views.insert(0, View(late, late.link_pos, late.link_rot, np.zeros(2, bool), 0.0, 0.0))
    assert beside(views, np.array([12, 0], np.int32)).frame.detail.env == 12
