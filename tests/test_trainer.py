"""Reading a stock trainer off the call stack."""

import functools

import jax
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo

from brax_viser.trainer import calling_trainer
from envs.cartpole import CartPole


class Noting(CartPole):
    """Notes who traces it."""

    def __init__(self):
        super().__init__()
        self.noted: list = []

    def reset(self, rng):
        self.noted.append(("reset", calling_trainer(read_arguments=True)))
        return super().reset(rng)

    def step(self, state, action):
        self.noted.append(("step", calling_trainer()))
        return super().step(state, action)


def test_ppo_and_its_arguments_are_recognised_and_told_from_its_evaluation():
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


def test_a_loop_of_the_users_own_has_no_trainer():
    env = Noting()
    jax.jit(env.reset)(jax.random.PRNGKey(0))
    assert env.noted == [("reset", None)]
