"""Trained policies drive their robots again: from run directories, and from Brax's checkpoints."""

import dataclasses
import functools
import json
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from brax.io import model
from brax.training import types
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import checkpoint
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.sac import checkpoint as sac_checkpoint
from brax.training.agents.sac import networks as sac_networks
from etils import epath

from brax_viser.cli.loading import load
from brax_viser.cli.play import Playing, _open, play, ranges_of
from brax_viser.cli.policies import Arguments, Given, Policies, _networks
from brax_viser.runs.folder import RunFolder
from brax_viser.sandbox.session import Trained
from tests.conftest import eventually
from tests.episodes import run_info
from tests.sample import SwiftCartPole
from tests.support import Probe
from tests.test_transplant import Commanded as CommandedPendulum

NAME = "inverted_pendulum"
PLAY, SPRING = Given("play"), Given("play", NAME, "spring")


def policy_of(trainer: str, seed: int) -> tuple[Any, Any]:
    """Returns a trainer's `make_policy`, and parameters as it hands them out, of random numbers."""
    make_policy, template = _networks(trainer, *load(NAME, trainer, None, None, None, False))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.uniform(0.5, 1, np.shape(x)).astype(np.float32), template)
    return make_policy, (*params, {"value": np.ones(2, np.float32)}) if trainer == "ppo" else params


def run_of(path: Any, trainer: str = "ppo", steps: tuple[int, ...] = (100, 200)) -> Any:
    """Writes a run directory, as `brax-viser train` does; returns its policies' parameters."""
    folder, kept = RunFolder(path, run_info()), {}
    for step in steps:
        make_policy, kept[step] = policy_of(trainer, step)
        folder.add_policy(step, Trained(step, make_policy, kept[step]).arrays())
    assert folder.close()
    Arguments(NAME, None, trainer).write(path)
    return kept


@pytest.mark.parametrize("trainer", ["ppo", "sac", "apg", "es", "ars"])
def test_a_policy_of_a_run_directory_acts_as_it_did_in_the_training(tmp_path, trainer):
    kept = run_of(tmp_path / "run", trainer, steps=(100,))
    env, _, policies = _open(str(tmp_path / "run"), PLAY)
    assert policies.steps == (100,)
    obs, key = jnp.full((3, env.observation_size), 0.3), jax.random.PRNGKey(0)
    make_policy, _ = policy_of(trainer, 100)
    action, _ = policies.make_policy(policies.params(100), deterministic=True)(obs, key)
    expected, _ = make_policy(kept[100], deterministic=True)(obs, key)
    assert action.shape == (3, env.action_size) and np.array_equal(action, expected)


def test_the_policy_that_a_training_saved_plays_first_of_those_in_its_run_directory(tmp_path):
    kept, path = run_of(tmp_path / "run"), tmp_path / "run" / "policy"
    model.save_params(str(path), kept[100])  # that of 200 had a NaN, say
    env, _, policies = _open(str(path), PLAY)
    assert policies.steps == (100, 200) and policies.first == 100
    assert same(policies.params(100), kept[100][:2]) and same(policies.params(200), kept[200][:2])
    assert env.action_size == 1
    _, other = policy_of("ppo", 300)  # of a step that was dropped
    model.save_params(str(path), other)
    _, _, policies = _open(str(path), PLAY)
    assert policies.first == 200 and same(policies.params(200), other[:2])
    assert same(policies.params(100), kept[100][:2])
    assert _open(str(path.parent), PLAY)[2].first == 200


def test_a_saved_policy_that_cannot_be_played_is_refused_in_words(tmp_path, capsys):
    path = tmp_path / "run" / "policy"
    run_of(path.parent)

    def said(path: Any) -> str:
        assert play(str(path)) == 2
        return " ".join(capsys.readouterr().out.split())

    path.write_bytes(b"nothing of the kind")
    assert "cannot be played" in said(path)
    model.save_params(str(path), policy_of("sac", 1)[1])
    assert "it was trained with other networks" in said(path)
    model.save_params(str(tmp_path / "policy"), policy_of("ppo", 1)[1])
    assert "Did you mean" in said(tmp_path / "policy")


def test_policies_of_checkpoints_of_brax_are_found_by_their_steps(tmp_path):
    env = envs.get_environment(NAME, backend="spring")
    network = ppo_networks.make_ppo_networks((env.observation_size,), env.action_size)
    spec = specs.Array((env.observation_size,), jnp.dtype("float32"))
    params = (
        running_statistics.init_state(spec),
        network.policy_network.init(jax.random.PRNGKey(0)),
        network.value_network.init(jax.random.PRNGKey(1)),
    )
    config = checkpoint.network_config(
        (env.observation_size,), env.action_size, True, ppo_networks.make_ppo_networks
    )
    for step in (0, 500):
        checkpoint.save(tmp_path, step, params, config)
    with pytest.raises(ValueError, match=rf"brax-viser play {tmp_path} ENV"):
        _open(str(tmp_path), PLAY)
    _, _, policies = _open(str(tmp_path), SPRING)
    assert policies.steps == (0, 500)
    obs, key = jnp.full((env.observation_size,), 0.3), jax.random.PRNGKey(0)
    action, _ = policies.make_policy(policies.params(500), deterministic=True)(obs, key)
    normalized = ppo_networks.make_ppo_networks(
        (env.observation_size,),
        env.action_size,
        preprocess_observations_fn=running_statistics.normalize,
    )
    expected = ppo_networks.make_inference_fn(normalized)(params, deterministic=True)(obs, key)[0]
    assert np.array_equal(action, expected)
    _, _, one = _open(str(tmp_path / "000000000500"), SPRING)
    assert one.steps == (500,)


def test_policies_of_checkpoints_of_sac_are_found_as_well(tmp_path):
    env = envs.get_environment(NAME, backend="spring")
    make = functools.partial(sac_networks.make_sac_networks, hidden_layer_sizes=(16, 8))
    normalized = make(
        env.observation_size,
        env.action_size,
        preprocess_observations_fn=running_statistics.normalize,
    )
    spec = specs.Array((env.observation_size,), jnp.dtype("float32"))
    rng = np.random.default_rng(5)
    state = dataclasses.replace(
        running_statistics.init_state(spec), mean=rng.normal(size=spec.shape).astype(np.float32)
    )
    params = state, normalized.policy_network.init(jax.random.PRNGKey(0))
    config = sac_checkpoint.network_config(env.observation_size, env.action_size, True, make)
    sac_checkpoint.save(tmp_path, 500, params, config)
    _, settings, policies = _open(str(tmp_path), SPRING)
    assert policies.steps == (500,) and "min_replay_size" in settings
    obs, key = jnp.full((env.observation_size,), 0.3), jax.random.PRNGKey(0)
    action, _ = policies.make_policy(policies.params(500), deterministic=True)(obs, key)
    expected = sac_networks.make_inference_fn(normalized)(params, deterministic=True)(obs, key)[0]
    assert np.array_equal(action, expected)


def script_run(path: Any, steps: tuple[int, ...] = (100,), **settings: Any) -> Any:
    """Writes a run directory, as a script does that trains by PPO with small networks; returns what
    its newest policy does, with or without normalized observations."""
    env = envs.get_environment(NAME, backend="spring")
    network = ppo_networks.make_ppo_networks(
        env.observation_size,
        env.action_size,
        policy_hidden_layer_sizes=(16, 8),
        activation=jnp.tanh,
        preprocess_observations_fn=running_statistics.normalize
        if settings.get("normalize_observations")
        else types.identity_observation_preprocessor,
    )
    spec = specs.Array((env.observation_size,), jnp.dtype("float32"))
    state = dataclasses.replace(
        running_statistics.init_state(spec), mean=np.full(spec.shape, 0.7, np.float32)
    )
    params = state, network.policy_network.init(jax.random.PRNGKey(0)), {"value": np.ones(2)}
    make_policy = ppo_networks.make_inference_fn(network)
    folder = RunFolder(path, run_info("InvertedPendulum", backend="spring", settings=settings))
    for step in steps:
        folder.add_policy(step, Trained(step, make_policy, params).arrays())
    assert folder.close()
    return make_policy(params, deterministic=True)


SMALL = {"policy_hidden_layer_sizes": (16, 8), "activation": "tanh"}


@pytest.mark.parametrize("normalizes", [True, False])
def test_a_policy_of_a_scripts_run_directory_acts_as_it_did_in_the_training(tmp_path, normalizes):
    told = {"network_factory": SMALL, "normalize_observations": normalizes, "episode_length": 77}
    expected = script_run(tmp_path / "run", **told)
    with pytest.raises(ValueError, match=rf"InvertedPendulum.*brax-viser play {tmp_path}/run ENV"):
        _open(str(tmp_path / "run"), PLAY)
    env, settings, policies = _open(str(tmp_path / "run"), Given("play", NAME))
    assert env.backend == "spring" and settings["episode_length"] == 77
    obs, key = jnp.full((3, env.observation_size), 0.3), jax.random.PRNGKey(0)
    action, _ = policies.make_policy(policies.params(100), deterministic=True)(obs, key)
    assert np.array_equal(action, expected(obs, key)[0])


def test_networks_of_a_script_that_cannot_be_made_are_refused_in_words(tmp_path, capsys):
    def said(name: str) -> str:
        assert play(str(tmp_path / name), NAME) == 2
        return " ".join(capsys.readouterr().out.split())

    script_run(tmp_path / "own", network_factory="my_networks")
    assert "by 'my_networks', which cannot be made" in said("own")
    script_run(tmp_path / "odd", network_factory={"activation": "mine"})
    assert "by 'mine', which cannot be made" in said("odd")
    script_run(tmp_path / "usual")
    assert "does not fit ppo's networks for inverted_pendulum" in said("usual")
    script_run(tmp_path / "small", network_factory=SMALL)
    assert play(str(tmp_path / "small"), NAME, trainer="sac") == 2
    assert "is not of sac" in " ".join(capsys.readouterr().out.split())
    assert play(str(tmp_path / "usual"), NAME, trainer="bc") == 2
    assert "trainer='bc': must be one of" in capsys.readouterr().out


def test_robots_are_driven_in_real_time_and_by_another_policy_once_it_is_chosen(
    tmp_path, viewer, page
):
    kept = run_of(tmp_path / "run")
    _, settings, policies = _open(str(tmp_path / "run"), PLAY)
    viewer.mode = "every_step"
    env = SwiftCartPole("spring")  # with as many observations and actions
    playing = Playing(viewer, env, settings, policies, (2, 1), seed=0)
    assert same(playing._params[1], kept[200][1])
    session = Probe(viewer).sandbox_session
    for _ in range(3):
        playing.step()
    assert viewer.stats().streams["train"].num_envs == 2
    assert viewer.stats().streams["train"].env_steps == 3
    (choice,) = [
        control
        for control in Probe(viewer).server.gui._gui_input_handle_from_uuid.values()
        if getattr(control, "label", "") == "Policy"
    ]
    choice.value = "step 100"
    assert same(playing._params[1], kept[100][1])
    Probe(viewer).now(lambda: None)
    assert session.trained is not None and session.trained.num_steps == 100, "sandboxes, too"
    start = Probe(viewer).shared.wall_clock()
    for _ in range(10):
        playing.step()
    assert Probe(viewer).shared.wall_clock() - start > 8 * playing._dt


def same(one: Any, other: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@dataclasses.dataclass(frozen=True)
class Commanded:
    """A state with a command, as Playground's joystick tasks have."""

    info: dict[str, Any]

    def replace(self, info: dict[str, Any]) -> "Commanded":
        return Commanded(info)


def test_a_command_is_given_by_sliders_until_the_tasks_own_are_wanted_again(viewer):
    from brax_viser.cli.play import _Command

    class Joystick:
        _config: ClassVar = {"command_config": {"a": [1.5, 0.8, 1.2]}}

    state = Commanded({"command": jnp.zeros((4, 3)), "rng": 7})
    command = _Command(viewer, Joystick(), state.info["command"])
    controls = {
        getattr(c, "label", ""): c
        for c in Probe(viewer).server.gui._gui_input_handle_from_uuid.values()
    }
    assert (controls["Left, m/s"].min, controls["Left, m/s"].max) == (-0.8, 0.8)
    assert command.given(state) is state
    controls["Forward, m/s"].value = 1.2
    assert controls["Steer"].value, "a slider that is moved is followed"
    given = command.given(state).info
    assert np.allclose(given["command"], 4 * [[1.2, 0, 0]]) and given["rng"] == 7
    controls["Left, m/s"].value = -0.4
    assert np.allclose(command.given(state).info["command"], 4 * [[1.2, -0.4, 0]])
    session = Probe(viewer).sandbox_session
    assert np.allclose(session.steered["command"], [1.2, -0.4, 0]), "and a forked robot's"
    controls["Left, m/s"].value = -500.0  # typed, and the slider's box not left yet
    assert np.allclose(command.given(state).info["command"], 4 * [[1.2, -0.8, 0]])
    controls["Steer"].value = False
    assert command.given(state) is state, "the task's own commands again"
    assert not session.steered


def obeying(params: Any, deterministic: bool = False) -> Any:
    """Returns a policy that pushes the cart by a share of the command that is observed."""

    def policy(obs: Any, key: Any) -> Any:
        return params["share"] * obs[..., 4:5], {}

    return policy


@pytest.mark.full
def test_a_robot_that_is_forked_goes_on_by_the_policy_and_follows_the_sliders(viewer, page):
    probe, share = Probe(viewer), np.float32(0.5)
    policies = Policies((100,), obeying, lambda step: {"share": share})
    viewer.mode, viewer.selected_env = "every_step", 1
    playing = Playing(viewer, CommandedPendulum(backend="spring"), {}, policies, (2, 1), seed=0)
    eventually(lambda: playing.step() or probe.panel_view().has_detail, "its details come")
    viewer.fork()
    session = probe.sandbox_session
    eventually(lambda: session.panel().drivers, "it runs", timeout=300)
    told = session.panel()
    assert (told.env, told.driver, told.policy_steps, told.begins) == (1, "policy", 100, False)
    (slider,) = [
        control
        for control in probe.server.gui._gui_input_handle_from_uuid.values()
        if getattr(control, "label", "") == "Command 1"
    ]
    sandbox = viewer.sandbox
    assert sandbox is not None
    for command in (0.7, -0.4):
        slider.value = command
        pushed = lambda: sandbox.do(lambda sandbox: sandbox.data.ctrl.copy()).result(60)  # noqa: E731
        wanted = pytest.approx([3 * share * command])  # the pendulum's actions are from -3 to 3
        eventually(lambda: pushed() == wanted, f"it obeys {command}", timeout=300)  # noqa: B023
        playing.step()
        playing.step()
        seen = np.asarray(playing._state.obs)[:, 4]
        assert seen == pytest.approx([command, command]), "as do those that play"


def test_the_ranges_of_commands_are_those_of_the_environments_settings():
    for config, expected in (
        ({"command_config": {"a": [1.5, 0.8, 1.2]}}, [(-1.5, 1.5), (-0.8, 0.8), (-1.2, 1.2)]),
        (
            # Of both, G1's task draws its commands from these ranges.
            {
                "command_config": {"a": [1, 1, 1]},
                "lin_vel_x": [-0.6, 1.5],
                "lin_vel_y": [-0.5, 0.5],
                "ang_vel_yaw": [0.2, 0.7],
            },
            [(-0.6, 1.5), (-0.5, 0.5), (0.0, 0.7)],
        ),
        (
            {"command_config": {"min": [-1.5, -0.8, -1.5], "max": [1, 0.8, 1.5]}},
            [(-1.5, 1.0), (-0.8, 0.8), (-1.5, 1.5)],
        ),
        ({"command_config": {"a": [2.0, 0.0, 1.0]}}, [(-2.0, 2.0), (-1.0, 1.0), (-1.0, 1.0)]),
        ({}, [(-1.0, 1.0)] * 3),
    ):
        assert ranges_of(SimpleNamespace(_config=config), 3) == expected
    assert ranges_of(object(), 2) == [(-1.0, 1.0)] * 2


def test_keys_steer_and_stay_within_the_limits(viewer):
    from brax_viser.cli.play import _Command

    class Joystick:
        _config: ClassVar = {"command_config": {"a": [1.5, 0.8, 1.0]}}

    state = Commanded({"command": jnp.zeros((2, 3))})
    command = _Command(viewer, Joystick(), state.info["command"])
    keys = {
        (handle.hotkey, handle.modifier): handle
        for handle in Probe(viewer).server.gui._command_handle_from_uuid.values()
    }

    def press(key: str, times: int = 1) -> list[float]:
        for _ in range(times):
            for pressed in keys[key, "shift"]._impl.trigger_cb:
                pressed(None)
        return np.round(command.given(state).info["command"][0], 3).tolist()

    assert command.given(state) is state
    assert press("arrowup", 2) == pytest.approx([0.6, 0, 0])
    assert press("arrowright") == pytest.approx([0.6, 0, -0.2])
    assert press("Q", 9) == pytest.approx([0.6, 0.8, -0.2]), "no further than the limit"
    assert press("E", 20) == pytest.approx([0.6, -0.8, -0.2])
    assert press("space") == [0, 0, 0]


def test_what_cannot_be_played_is_said_in_words(tmp_path, capsys):
    run_of(tmp_path / "run")
    assert play(str(tmp_path / "nothing")) == 2
    assert "nothing" in capsys.readouterr().out
    run_of(tmp_path / "none", steps=())
    assert play(str(tmp_path / "none")) == 2
    assert "no policies" in " ".join(capsys.readouterr().out.split())
    Arguments("reacher", None, "ppo").write(str(tmp_path / "run"))
    _, _, policies = _open(str(tmp_path / "run"), PLAY)
    with pytest.raises(ValueError, match="not of shape"):
        policies.params(100)
    (epath.Path(tmp_path) / "run" / "train.json").write_text(json.dumps({"env": 3}))
    with pytest.raises(ValueError, match="damaged"):
        _open(str(tmp_path / "run"), PLAY)
