"""Tests that a stock trainer is recognised on the call stack."""

import functools
import importlib
import inspect
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo

from benchmarks.matrix import train
from brax_viser.cli.training import placed_as_it_comes_back
from brax_viser.device.trainers import calling_trainer, check_versions
from brax_viser.records.trainer_call import TrainerCall
from tests.toy import BraxToy


class Noting(BraxToy):
    """An environment that notes which trainer traces it."""

    def __init__(self):
        super().__init__()
        self.noted: list = []

    def reset(self, rng):
        self.noted.append(("reset", calling_trainer(read_arguments=True)))
        return super().reset(rng)

    def step(self, state, action):
        self.noted.append(("step", calling_trainer()))
        return super().step(state, action)


class NeverReady(Noting):
    class Stop(Exception):
        pass

    def reset(self, rng):
        super().reset(rng)
        raise self.Stop


def test_ppo_and_its_arguments_are_recognised_and_its_evaluation_told_apart():
    env = Noting()
    with placed_as_it_comes_back(ppo):  # for any jax
        ppo.train(
            environment=env,
            num_timesteps=64,
            num_envs=4,
            episode_length=8,
            learning_rate=np.float64(2e-4),
            seed=3,
            unroll_length=2,
            batch_size=4,
            num_minibatches=1,
            num_evals=2,
            num_eval_envs=2,
            network_factory=functools.partial(
                networks.make_ppo_networks,
                policy_hidden_layer_sizes=(4,),
                value_hidden_layer_sizes=(4,),
                activation=jnp.tanh,
            ),
        )
    calls = [call for _, call in env.noted]
    assert all(call is not None and call.algorithm == "PPO" for call in calls)
    resets = [call for what, call in env.noted if what == "reset"]
    assert {call.num_timesteps for call in resets} == {64}
    assert {call.num_envs for call in resets} == {4}
    assert not resets[0].evaluating
    settings = resets[0].settings
    given = {"seed": 3, "learning_rate": 2e-4, "num_timesteps": 64, "episode_length": 8}
    usual = {"normalize_observations": False, "action_repeat": 1}
    assert settings.items() >= {**given, **usual}.items()
    sizes = {"policy_hidden_layer_sizes": (4,), "value_hidden_layer_sizes": (4,)}
    assert settings["network_factory"] == {**sizes, "activation": "tanh"}
    assert json.loads(json.dumps({**settings, "network_factory": 0})), "all others are plain"
    for what in ("reset", "step"):
        assert {call.evaluating for w, call in env.noted if w == what} == {True, False}


@pytest.mark.parametrize(
    ("trainer", "num_timesteps", "num_reports"),
    # APG: 12 updates of 10 steps of 8 envs, one report; BC: 4 DAgger steps, a report each.
    [("sac", 1_600, None), ("apg", 960, 1), ("es", 600, None), ("ars", 600, None), ("bc", 320, 4)],
)
def test_goal_and_number_of_envs_are_known_for_every_trainer(trainer, num_timesteps, num_reports):
    """Reads them at the first reset, at which the training is stopped."""
    env = NeverReady()
    with pytest.raises(NeverReady.Stop):
        train(trainer, env)
    ((_, first),) = env.noted
    assert (first.algorithm, first.num_envs) == (trainer.upper(), 8)
    assert (first.num_timesteps, first.num_reports) == (num_timesteps, num_reports)
    assert first.settings["seed"] == 3


def test_a_users_own_loop_has_no_trainer():
    env = Noting()
    jax.jit(env.reset)(jax.random.PRNGKey(0))
    assert env.noted == [("reset", None)]


@pytest.fixture
def newer_jax(monkeypatch):
    """Takes away what jax has had removed since 0.10: a module's last resort is `__getattr__`."""

    def gone(name):
        raise AttributeError(name)

    monkeypatch.setattr(jax, "__getattr__", gone)
    return monkeypatch


def test_a_trainer_that_calls_a_function_missing_from_jax_is_refused_with_the_remedy(newer_jax):
    """Brax itself would only fail later, and less clearly."""
    check_versions(TrainerCall("ES", evaluating=False))
    check_versions(None)
    for trainer in ("PPO", "SAC", "APG"):
        importlib.import_module(f"brax.training.agents.{trainer.lower()}.train")
        with pytest.raises(RuntimeError, match=rf"{trainer} does not run with .*jax<0\.10"):
            check_versions(TrainerCall(trainer, evaluating=False))


def test_a_brax_that_no_longer_calls_it_is_not_refused(newer_jax):
    """As Brax's main branch, whose version is that of the release."""
    mended = types.ModuleType(ppo.__name__)
    source = inspect.getsource(ppo).replace("jax.device_put_replicated(", "_placed(")
    exec(compile(source, ppo.__file__, "exec"), vars(mended))
    newer_jax.setitem(sys.modules, ppo.__name__, mended)
    check_versions(TrainerCall("PPO", evaluating=False))


def test_a_script_that_has_put_one_in_place_is_not_refused(newer_jax):
    newer_jax.setattr(jax, "device_put_replicated", lambda tree, devices: tree, raising=False)
    check_versions(TrainerCall("PPO", evaluating=False))


def test_a_trainer_whose_variables_have_other_names_is_recognised_without_a_goal():
    """Reading them must never end a training."""
    env = NeverReady()
    names = {"__name__": "brax.training.agents.apg.train", "env": env, "jax": jax}
    exec("def train():\n    horizon = 3\n    env.reset(jax.random.PRNGKey(horizon))", names)
    with pytest.raises(NeverReady.Stop):
        names["train"]()
    ((_, call),) = env.noted
    assert (call.algorithm, call.num_timesteps, call.num_reports) == ("APG", None, None)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 10), reason="compares with jax's own, gone since jax 0.10"
)
def test_the_command_places_the_first_state_as_jax_did_also_without_jaxs_function(monkeypatch):
    tree = {"weights": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(0), "steps": 3}
    devices = jax.local_devices()[:1]
    with placed_as_it_comes_back(ppo):
        before = jax.device_put_replicated(tree, devices)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__getattr__", functools.partial(getattr, types.ModuleType("jax")))
        with placed_as_it_comes_back(ppo):
            after = jax.device_put_replicated(tree, devices)
        assert not hasattr(jax, "device_put_replicated")
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert one.dtype == other.dtype
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        assert one.sharding == other.sharding
        one, other = (
            jax.random.key_data(x) if x.dtype == tree["key"].dtype else x for x in (one, other)
        )
        np.testing.assert_array_equal(one, other)
