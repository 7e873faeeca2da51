"""Checks that an environment's code gives the same results around another physics."""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs
from brax.envs.base import State
from brax.envs.inverted_pendulum import InvertedPendulum
from brax.training.agents.ppo import networks
from etils import epath
from mujoco_playground import registry
from mujoco_playground._src import mjx_env

from brax_viser.device.adapters import Adapter, adapter_for
from brax_viser.sandbox.transplant import CannotTransplant, Moment, Policy, Transplant
from envs.cartpole import CartPole
from tests.sample import SwiftCartPole
from tests.test_playground import MENAGERIE, cartpole

KEY = jax.random.PRNGKey(0)
MORE = pytest.mark.full
BACKENDS = (
    "mjx",
    "spring",
    pytest.param("generalized", marks=MORE),
    pytest.param("positional", marks=MORE),
)


def pendulum(backend: str) -> Any:
    return envs.get_environment("inverted_pendulum", backend=backend)


class Commanded(InvertedPendulum):
    """A pendulum that observes a command, which it keeps in `state.info`."""

    def reset(self, rng: jax.Array) -> State:
        state = super().reset(rng)
        return self._seen(state.replace(info={**state.info, "command": jnp.zeros(1)}))

    def step(self, state: State, action: jax.Array) -> State:
        return self._seen(super().step(state, action))

    def _seen(self, state: State) -> State:
        return state.replace(obs=jnp.concatenate([state.obs[:4], state.info["command"]]))


def test_what_is_steered_by_info_is_observed_with_the_next_step():
    adapter = adapter_for(Commanded(backend="spring"))
    _, _, moment = start_of(adapter)
    transplant, still = Transplant(adapter), np.zeros(1, np.float32)
    state = transplant.start(moment, KEY)
    state = transplant.after(state, still, moment, moment)
    assert state.obs[4] == 0
    traces = transplant.traces
    steered = {"command": np.array([0.7], np.float32), "nothing": np.zeros(1, np.float32)}
    transplant.steered = lambda: steered
    state = transplant.after(state, still, moment, moment)
    assert state.obs[4] == np.float32(0.7) and "nothing" not in state.info
    transplant.steered = dict
    state = transplant.after(state, still, moment, moment)
    assert state.obs[4] == np.float32(0.7), "as the environment keeps it"
    assert transplant.traces == traces, "nothing is compiled for it"


def one_step(env: Any, action: np.ndarray) -> tuple[Any, Any]:
    """Returns the states before and after one step."""

    def step(key):
        before = env.reset(key)
        # A copy, because some envs write into the dicts of the state that they are given.
        return before, env.step(jax.tree.map(lambda x: x, before), action)

    return jax.jit(step)(KEY)


def start_of(adapter: Adapter) -> tuple[mujoco.MjModel, mujoco.MjData, Moment]:
    model = adapter.mujoco_model()
    data = mujoco.MjData(model)
    data.qpos[:] = adapter.init_qpos
    mujoco.mj_forward(model, data)
    return model, data, Moment.of(data)


def moment_of(adapter: Adapter, state: Any, posed: Any = None) -> Moment:
    """Returns the moment of an MJX or Brax state, with `posed` as the last substep's start."""
    model = adapter.mujoco_model()
    data, own = mujoco.MjData(model), getattr(state, "data", None)
    if own is None:
        own = state.pipeline_state
    qpos, qvel = (own.qpos, own.qvel) if adapter.native else (own.q, own.qd)
    if posed is not None:
        data.qpos[:], data.qvel[:], data.ctrl[:] = posed.qpos, posed.qvel, posed.ctrl
        mujoco.mj_forward(model, data)
        began = data.qpos.copy(), data.qvel.copy()
    data.qpos[:], data.qvel[:] = qpos, qvel
    if posed is None:
        mujoco.mj_forward(model, data)
    return Moment.of(data) if posed is None else Moment.of(data, *began)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pendulums_step_is_the_same_around_another_physics(backend):
    env = pendulum(backend)
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    action = np.full(1, 0.3, np.float32)
    before, state = one_step(env, action)
    moment = moment_of(adapter, before)
    mine = transplant.start(moment, KEY, observation={"": before.obs})
    np.testing.assert_array_equal(mine.obs, before.obs)
    after = transplant.after(mine, action, moment, moment_of(adapter, state))
    np.testing.assert_allclose(after.obs, state.obs, atol=2e-6)
    assert float(after.reward) == float(state.reward) and float(after.done) == float(state.done)
    # This robot's controls range from -3 to 3, and the environment scales actions to that.
    np.testing.assert_allclose(transplant.control(mine, action, moment), [0.9], rtol=1e-6)


@pytest.mark.full
def test_an_ants_poses_are_those_at_the_start_of_its_last_substep():
    """MJX's x is one substep older than its q, and rewards are computed from it."""
    env = envs.get_environment("ant", backend="mjx", n_frames=1)
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    action = np.random.default_rng(0).uniform(-1, 1, 8).astype(np.float32)
    before, state = one_step(env, action)
    np.testing.assert_array_equal(state.pipeline_state.ctrl, action)
    moment = moment_of(adapter, before)
    mine = transplant.start(moment, KEY, observation={"": before.obs})
    np.testing.assert_array_equal(transplant.control(mine, action, moment), action)
    now = moment_of(adapter, state, posed=before.pipeline_state)
    after = transplant.after(mine, action, moment, now)
    np.testing.assert_allclose(after.obs, state.obs, atol=1e-5)
    np.testing.assert_allclose(after.reward, state.reward, atol=1e-4)
    for name, value in state.metrics.items():
        np.testing.assert_allclose(after.metrics[name], value, atol=1e-4)
    # With the poses at the end of the step, the reward would differ.
    ahead = transplant.after(mine, action, moment, moment_of(adapter, state))
    np.testing.assert_array_equal(ahead.obs, after.obs)  # computed from q and qd alone
    assert abs(float(ahead.reward - state.reward)) > 0.05


def test_native_physics_has_the_poses_at_the_start_of_the_last_substep():
    adapter = adapter_for(pendulum("mjx"))
    model, data, _ = start_of(adapter)
    began, now = data.qpos + np.array([0.1, 0.2]), data.qpos + np.array([0.3, 0.4])
    data.qpos[:] = now
    state = Transplant(adapter)._physics.at(Moment.of(data, began, data.qvel.copy()))
    np.testing.assert_allclose(state.q, data.qpos, rtol=1e-6)
    data.qpos[:] = began
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(state.x.pos, data.xpos[1:], atol=1e-6)


def test_a_humanoids_controls_are_scaled_and_so_is_its_observation_of_them():
    env = envs.get_environment("humanoid", backend="positional")
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    _, _, moment = start_of(adapter)
    state = transplant.start(moment, KEY, observation={"": np.zeros(244)}, info={})
    action = np.linspace(-1, 1, 17).astype(np.float32)
    ctrl = transplant.control(state, action, moment)
    np.testing.assert_allclose(ctrl, 0.4 * action, atol=1e-6)
    after = transplant.after(state, action, moment, moment)
    gear = np.asarray(env.sys.actuator.gear)
    torques = np.zeros(env.sys.qd_size())
    torques[np.asarray(env.sys.actuator.qd_id)] = gear * 0.4 * action
    np.testing.assert_allclose(np.asarray(after.obs)[-len(torques) :], torques, rtol=1e-5)
    assert float(after.done) == 0


@pytest.mark.parametrize("impl", ["jax", pytest.param("warp", marks=MORE)])
def test_playgrounds_cartpole_has_the_same_observations_and_rewards(impl):
    if impl == "warp":
        pytest.importorskip("warp")
    bare = cartpole("jax")
    adapter = adapter_for(bare)
    transplant = Transplant(adapter if impl == "jax" else adapter_for(cartpole("warp")))
    action = np.full(1, 0.5, np.float32)
    before, state = one_step(bare, action)
    assert bare.n_substeps == 1  # so the substep began with the state before
    mine = transplant.start(moment_of(adapter, before), KEY, observation={"": before.obs})
    moments = [moment_of(adapter, before), moment_of(adapter, state, posed=before.data)]
    after = transplant.after(mine, action, *moments)
    np.testing.assert_allclose(after.obs, state.obs, atol=1e-5)
    np.testing.assert_allclose(after.reward, state.reward, atol=1e-5)
    np.testing.assert_array_equal(transplant.control(mine, action, moments[0]), state.data.ctrl)
    # It observes its pole by xmat, which MJX computes at the start of the substep.
    ahead = transplant.after(mine, action, moments[0], moment_of(adapter, state))
    assert np.abs(ahead.obs - state.obs).max() > 1e-4


@pytest.mark.full
def test_a_legged_robots_sensors_and_rewards_are_the_same(monkeypatch):
    """Compares MuJoCo's step, seen by the environment's code, with the environment's own:
    accelerometer, gyroscope, feet, noise and history."""
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", epath.Path(MENAGERIE))
    env = registry.load("Go1JoystickFlatTerrain", config_overrides={"impl": "jax"})
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    model, substeps = adapter.mujoco_model(), adapter.substeps
    action = np.random.default_rng(0).uniform(-0.5, 0.5, 12).astype(np.float32)
    before, state = one_step(env, action)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = before.data.qpos, before.data.qvel
    data.qacc_warmstart[:] = before.data.qacc_warmstart
    mujoco.mj_forward(model, data)
    moment = Moment.of(data)
    mine = transplant.start(moment, KEY, observation=before.obs)
    mine = mine.replace(info=before.info)  # its random key too, so that the noise is the same
    data.ctrl[:] = transplant.control(mine, action, moment)
    np.testing.assert_allclose(data.ctrl, state.data.ctrl, atol=1e-6)
    for _ in range(substeps):
        posed = data.qpos.copy(), data.qvel.copy()
        mujoco.mj_step(model, data)
    after = transplant.after(mine, action, moment, Moment.of(data, *posed))
    assert set(after.obs) == {"state", "privileged_state"}
    for name, expected in state.obs.items():
        np.testing.assert_allclose(after.obs[name], expected, atol=2e-3, err_msg=name)
    np.testing.assert_allclose(after.reward, state.reward, atol=1e-4)


class Counting(SwiftCartPole):
    """Has two observations, one of them remembered, and steps its physics `times` times."""

    times, inside = 1, False

    def reset(self, rng):
        state = super().reset(rng)
        info = {"rng": rng, "steps": jnp.zeros((), jnp.int32), "past": {"action": jnp.zeros(1)}}
        return state.replace(obs={"eyes": state.obs, "past": jnp.zeros(1)}, info=info)

    def step(self, state, action):
        pipeline_state = state.pipeline_state
        for _ in range(self.times):
            if self.inside:
                done = jnp.zeros((), bool)
                pipeline_state = jax.lax.cond(
                    done, lambda s: s, lambda s: self.pipeline_step(s, action), pipeline_state
                )
            else:
                pipeline_state = self.pipeline_step(pipeline_state, action)
        obs = jnp.concatenate([pipeline_state.q, pipeline_state.qd])
        past = state.info["past"]["action"]
        info = {**state.info, "steps": state.info["steps"] + 1, "past": {"action": action}}
        obs = {"eyes": obs, "past": past}
        return state.replace(pipeline_state=pipeline_state, obs=obs, reward=1.0, info=info)


def test_observations_and_info_are_taken_from_the_training_where_known():
    adapter = adapter_for(Counting())
    transplant = Transplant(adapter)
    model, data, _ = start_of(adapter)
    data.qpos[:] = 0.1, 0.2
    mujoco.mj_forward(model, data)
    moment = Moment.of(data)
    info = {
        "steps": np.float32(7),
        "past/action": np.array([0.5], np.float32),
        "rng": np.zeros(2, np.float32),
        "of a wrapper": np.ones(3),
    }
    seen = {"past": np.array([0.25], np.float32), "eyes": np.zeros(3)}
    state = transplant.start(moment, KEY, observation=seen, info=info)
    assert int(state.info["steps"]) == 7 and state.info["steps"].dtype == jnp.int32
    assert float(state.info["past"]["action"][0]) == 0.5
    np.testing.assert_array_equal(state.info["rng"], KEY)
    # "eyes" has another shape, as if the environment had been changed since: it is computed again.
    np.testing.assert_allclose(state.obs["eyes"], [0.1, 0.2, 0, 0], atol=1e-6)
    assert float(state.obs["past"][0]) == 0.25
    after = transplant.after(state, np.ones(1, np.float32), moment, moment)
    assert float(after.obs["past"][0]) == 0.5 and int(after.info["steps"]) == 8


def test_new_parameters_of_a_policy_compile_nothing():
    adapter = adapter_for(pendulum("mjx"))
    transplant = Transplant(adapter)
    model, data, _ = start_of(adapter)
    data.qpos[:] = 0.1, 0.2
    mujoco.mj_forward(model, data)
    moment = Moment.of(data)
    state = transplant.start(moment, KEY, observation={"": np.ones(4, np.float32)})
    net = networks.make_ppo_networks(4, 1, policy_hidden_layer_sizes=(8,))
    make = networks.make_inference_fn(net)
    params = [(None, net.policy_network.init(jax.random.PRNGKey(i)), None) for i in range(3)]
    state = transplant.after(state, np.zeros(1), moment, moment)
    actions, traces = [], []
    for p in params:
        action, ctrl = transplant.act(Policy(make, p), state, moment, KEY)
        state = transplant.after(state, action, moment, moment)
        actions.append(float(action[0]))
        traces.append(transplant.traces)
        np.testing.assert_allclose(ctrl, 3 * np.asarray(action), rtol=1e-5)
        assert action.devices() == {jax.local_devices(backend="cpu")[0]}
    assert len(set(actions)) == 3 and traces[0] == traces[1] == traces[2]


def test_policies_act_deterministically_if_they_can():
    adapter = adapter_for(CartPole())
    transplant = Transplant(adapter)
    _, _, moment = start_of(adapter)
    state = transplant.start(moment, KEY)

    def told(params, deterministic=False):
        return lambda obs, key: (jnp.full(1, 0.5 if deterministic else jnp.nan), {})

    def untold(params):
        return lambda obs, key: (jnp.full(1, params), {})

    for make, expected in ((told, 0.5), (untold, 0.25)):
        action, _ = transplant.act(Policy(make, 0.25), state, moment, KEY)
        assert float(action[0]) == expected


@pytest.mark.parametrize(
    ("times", "inside", "says"),
    [(0, False, "0 times"), (2, False, "2 times"), (1, True, "within a loop, a branch")],
)
def test_an_env_that_does_not_step_its_physics_exactly_once_gets_an_error(times, inside, says):
    env = Counting()
    env.times, env.inside = times, inside
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    _, _, moment = start_of(adapter)
    seen = {"past": np.zeros(1), "eyes": np.zeros(4)}
    state = transplant.start(moment, KEY, observation=seen)
    with pytest.raises(CannotTransplant, match=says):
        transplant.control(state, np.zeros(1, np.float32), moment)


def test_an_env_traced_with_a_model_of_its_own_is_copied_as_it_was_made():
    env = CartPole()
    adapter, own, made = adapter_for(env), env.sys, []

    def randomised(mass):
        # Brax's wrapper for domain randomisation does this too, and leaves the traced model there.
        env.sys = own.replace(body_mass=mass)
        made.append(Transplant(adapter))
        return mass

    jax.jit(randomised)(jnp.ones(3))
    _, _, moment = start_of(adapter)
    made.append(Transplant(adapter))
    for transplant in made:
        state = transplant.start(moment, KEY)
        assert transplant.control(state, np.ones(1, np.float32), moment).shape == (1,)


@pytest.mark.parametrize("kind", ["brax", "playground"])
def test_a_training_traced_at_the_same_time_is_not_disturbed(kind):
    """Another thread that traces the same environment during ours must see its own physics."""
    env: Any = Counting() if kind == "brax" else cartpole("jax")
    adapter = adapter_for(env)
    transplant = Transplant(adapter)
    _, _, moment = start_of(adapter)
    args = jax.eval_shape(env.reset, KEY), np.ones(1, np.float32)
    expected = str(jax.make_jaxpr(env.step)(*args))
    stepped, found = transplant._physics.base.step, []

    def meanwhile(own, action):
        def train():
            found.append(str(jax.make_jaxpr(env.step)(*args)))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join(timeout=60)
        return stepped(own, action)

    transplant._physics.base.step = meanwhile
    mine = transplant.start(moment, KEY)
    transplant.control(mine, np.zeros(1, np.float32), moment)
    assert found and all(text == expected for text in found)
    assert "pipeline_step" not in vars(env) and "step" not in vars(env)
    if kind == "playground":
        assert mjx_env.step.__module__ == mjx_env.__name__ and mjx_env.step.__name__ == "step"
