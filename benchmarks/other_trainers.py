"""Trains by packages other than Brax's trainers, as small as each allows: see `docs/trainers.md`.

Each function takes an environment, bare or wrapped in `VisualizedEnv`, and returns arrays by which
two trainings can be compared: what was learned, or what was seen. Packages are imported only by the
function that needs them.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false
# These packages need not be installed, and types, Brax's and theirs, say less than is there.

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from brax import envs
from brax.envs import training

from examples.own_ppo import make_train

NUM_ENVS, NUM_STEPS, SEED = 8, 20, 3


def own_loop(env: Any, seeds: int | None = None) -> Any:
    """A loop in the manner of purejaxrl: `scan` in `scan`, once or once per seed."""
    train = make_train(
        env, num_envs=NUM_ENVS, num_updates=2, num_steps=NUM_STEPS // 2, wrap=_wrap_of(env)
    )
    if seeds is None:
        return jax.jit(train)(jax.random.PRNGKey(SEED))
    return jax.jit(jax.vmap(train))(jax.random.split(jax.random.PRNGKey(SEED), seeds))


def _wrap_of(env: Any) -> Callable[..., Any]:
    """Returns the wrapper with automatic resets that fits, Brax's or Playground's."""
    base = getattr(env, "unwrapped", env)
    if base.__class__.__module__.startswith("mujoco_playground."):  # a stand-in's `type` is ours
        return importlib.import_module("mujoco_playground").wrapper.wrap_for_brax_training
    return training.wrap


def own_loop_over_seeds(env: Any) -> Any:
    return own_loop(env, seeds=3)


def rejax(
    env: Any, algorithm: str, seeds: int | None = None, evaluated: Any = None, **settings: Any
) -> Any:
    """rejax's loops, which reset by `tree.map(select(done, reset, step))`; once or once per seed.

    Without `evaluated` its evaluations are left out, as they would step `env` in other batches.
    """
    from rejax import get_algo
    from rejax.compat.brax2gymnax import Brax2GymnaxEnv
    from rejax.evaluate import evaluate

    def for_rejax(env: Any) -> Any:
        return Brax2GymnaxEnv(training.EpisodeWrapper(env, episode_length=60, action_repeat=1))

    agent = get_algo(algorithm).create(
        env=for_rejax(env),
        num_envs=NUM_ENVS,
        total_timesteps=NUM_ENVS * NUM_STEPS,
        eval_freq=NUM_ENVS * NUM_STEPS,
        agent_kwargs={"hidden_layer_sizes": (8,)},
        **settings,
    )
    if evaluated is None:
        agent = agent.replace(eval_callback=lambda *_: ())
    else:
        other = for_rejax(evaluated)
        agent = agent.replace(
            eval_callback=lambda agent, state, key: evaluate(
                agent.make_act(state), key, other, other.default_params, num_seeds=NUM_ENVS // 2
            )
        )
    key = jax.random.PRNGKey(SEED)
    if seeds is None:
        state, evaluations = jax.jit(agent.train)(key)
    else:
        state, evaluations = jax.jit(jax.vmap(agent.train))(jax.random.split(key, seeds))
    return state.actor_ts.params, state.critic_ts.params, evaluations


def evosax(env: Any) -> Any:
    """Two generations of evosax's CMA-ES; a policy per member, `NUM_STEPS` steps each."""
    import jax.numpy as jnp
    from evosax.algorithms import CMA_ES
    from evosax.problems import BraxProblem
    from evosax.problems.networks import MLP, tanh_output_fn

    envs.register_environment("watched", lambda **_: env)
    problem = BraxProblem(
        "watched",
        MLP((8, env.action_size), output_fn=tanh_output_fn),
        episode_length=NUM_STEPS,
        num_rollouts=2,
        use_normalize_obs=False,
        env_kwargs={},
    )
    key = jax.random.PRNGKey(SEED)
    solution = jax.tree.map(jnp.zeros_like, problem.sample(key))
    strategy = CMA_ES(population_size=NUM_ENVS // 2, solution=solution)
    params, found = strategy.default_params, []
    state, kept = strategy.init(key, solution, params), problem.init(key)
    for generation in jax.random.split(key, 2):
        population, state = strategy.ask(generation, state, params)
        fitness, kept, _ = problem.eval(generation, population, kept)
        state, _ = strategy.tell(generation, population, -fitness, state, params)
        found.append((population, fitness))
    return found


def rollout(env: Any, actions: Any) -> Any:
    """Steps a gym environment of Brax's; returns what it sees."""
    return [env.reset(), *(env.step(action)[:3] for action in actions)]


def random_actions(env: Any) -> np.ndarray:
    """Returns float32 [NUM_STEPS, NUM_ENVS, A], the same each time."""
    shape = NUM_STEPS, NUM_ENVS, env.action_size
    return np.random.default_rng(SEED).uniform(-1, 1, shape).astype(np.float32)


def brax_gym(env: Any) -> Any:
    from brax.envs.wrappers.gym import VectorGymWrapper

    return rollout(
        VectorGymWrapper(training.VmapWrapper(env, batch_size=NUM_ENVS), seed=SEED),
        random_actions(env),
    )


def brax_torch(env: Any) -> Any:
    import torch
    from brax.envs.wrappers.gym import VectorGymWrapper
    from brax.envs.wrappers.torch import TorchWrapper

    batched = VectorGymWrapper(training.VmapWrapper(env, batch_size=NUM_ENVS), seed=SEED)
    return rollout(TorchWrapper(batched), map(torch.from_numpy, random_actions(env)))


def torchrl(env: Any) -> Any:
    import torch
    from torchrl.envs import BraxWrapper

    wrapped = BraxWrapper(env, batch_size=[NUM_ENVS], device="cpu")
    wrapped.set_seed(SEED)
    torch.manual_seed(SEED)
    seen = wrapped.rollout(NUM_STEPS, break_when_any_done=False)
    return seen["action"], seen["next", "observation"], seen["next", "reward"]


def rsl_rl(env: Any) -> Any:
    """Two iterations of rsl_rl's PPO, by Playground's wrapper."""
    import torch
    from mujoco_playground import wrapper_torch
    from rsl_rl.runners import OnPolicyRunner

    torch.manual_seed(SEED)
    batched: Any = wrapper_torch.RSLRLBraxWrapper(env, NUM_ENVS, SEED, 60, 1)
    # What rsl_rl 5 asks of it, and Playground 0.2 lacks.
    batched.cfg, batched.device = {}, "cpu"
    batched.episode_length_buf = torch.zeros(NUM_ENVS, dtype=torch.long)
    network = {"class_name": "MLPModel", "hidden_dims": [8], "activation": "elu"}
    settings = {
        "num_steps_per_env": NUM_STEPS // 2,
        "save_interval": 100,
        "obs_groups": {"actor": ["state"], "critic": ["state"]},
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 2, "num_mini_batches": 2},
        "actor": {**network, "distribution_cfg": {"class_name": "GaussianDistribution"}},
        "critic": network,
    }
    runner = OnPolicyRunner(batched, settings, log_dir=None, device="cpu")
    runner.learn(2)
    return [
        part.detach() for part in (*runner.alg.actor.parameters(), *runner.alg.critic.parameters())
    ]


class Other(NamedTuple):
    """A trainer of another package."""

    train: Callable[[Any], Any]
    needs: tuple[str, ...]  # modules that it imports
    steps: int  # batched steps of one training
    num_envs: int = NUM_ENVS  # environments in its batch
    tried: int = 0  # steps of a single environment that it takes first, to see whether they work
    only: tuple[str, ...] | None = None  # families of environments that it takes; None: all

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed here."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def takes(self, family: str) -> bool:
        """Whether it can train on a family of environments."""
        return self.only is None or family in self.only


BRAXS = ("spring", "positional", "generalized", "mjx")
"""Families of Brax's environments, which its own wrappers want, and so evosax's and TorchRL's."""

OTHERS: dict[str, Other] = {
    "own loop": Other(own_loop, (), NUM_STEPS),
    "own loop, 3 seeds": Other(own_loop_over_seeds, (), NUM_STEPS, 3 * NUM_ENVS),
    "rejax ppo": Other(
        functools.partial(rejax, algorithm="ppo", num_steps=10, num_minibatches=2, num_epochs=2),
        ("rejax",),
        NUM_STEPS,
    ),
    "rejax ppo, 3 seeds": Other(
        functools.partial(
            rejax, algorithm="ppo", seeds=3, num_steps=10, num_minibatches=2, num_epochs=2
        ),
        ("rejax",),
        NUM_STEPS,
        3 * NUM_ENVS,
    ),
    "rejax sac": Other(
        functools.partial(rejax, algorithm="sac", fill_buffer=40, batch_size=16, buffer_size=200),
        ("rejax",),
        NUM_STEPS,
    ),
    "evosax": Other(evosax, ("evosax",), 2 * NUM_STEPS, tried=1, only=BRAXS),
    "brax gym": Other(brax_gym, ("gym",), NUM_STEPS, only=BRAXS),
    "brax torch": Other(brax_torch, ("gym", "torch"), NUM_STEPS, only=BRAXS),
    "torchrl": Other(torchrl, ("torchrl",), NUM_STEPS, only=BRAXS),
    "rsl_rl": Other(rsl_rl, ("rsl_rl", "mujoco_playground"), NUM_STEPS, only=("playground",)),
}
"""By name. Where a package is missing, a cell of the matrix says so."""


def train(trainer: str, env: Any) -> list[np.ndarray]:
    """Runs one of `OTHERS`. Returns what it learned or saw, flattened."""
    found = OTHERS[trainer].train(env)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
