"""Tests that a stock trainer is recognised on the call stack."""

import functools

import jax
import pytest
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo

from benchmarks.matrix import train
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
    ppo.train(
        environment=env,
        num_timesteps=64,
        num_envs=4,
        episode_length=8,
        unroll_length=2,
        batch_size=4,
        num_minibatches=1,
        num_evals=2,
        num_eval_envs=2,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(4,),
            value_hidden_layer_sizes=(4,),
        ),
    )
    calls = [call for _, call in env.noted]
    assert all(call is not None and call.algorithm == "PPO" for call in calls)
    resets = [call for what, call in env.noted if what == "reset"]
    assert {call.num_timesteps for call in resets} == {64}
    assert {call.num_envs for call in resets} == {4}
    assert not resets[0].evaluating
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


def test_a_users_own_loop_has_no_trainer():
    env = Noting()
    jax.jit(env.reset)(jax.random.PRNGKey(0))
    assert env.noted == [("reset", None)]


def test_versions_that_cannot_work_together_are_named(monkeypatch):
    """Pretends a JAX is installed with which Brax's PPO would only fail later, and less clearly."""
    check_versions(TrainerCall("PPO", evaluating=False))
    monkeypatch.setattr(jax, "__version__", "0.10.1")
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    check_versions(TrainerCall("ES", evaluating=False))
    check_versions(None)
    with pytest.raises(RuntimeError, match=r"does not run with jax 0\.10\.1.*jax<0\.10"):
        check_versions(TrainerCall("PPO", evaluating=False))
