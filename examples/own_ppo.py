"""Trains by a loop of one's own, in the manner of purejaxrl: PPO with four seeds in one program.

python -m examples.own_ppo

No trainer of Brax's is called. The loop is a `scan` over updates in which a `scan` steps the
environments, and `vmap` runs it once per seed: the page shows the robots of all seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from brax.envs import training

from brax_viser import VisualizedEnv
from envs.cartpole import CartPole

SEEDS, NUM_ENVS = 4, 16


class Batch(NamedTuple):
    """What one update learns from, [T, N, ...]."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def dense(key: jax.Array, sizes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b)) for k, a, b in shapes]


def apply(layers: Any, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def log_prob(params: Any, mean: jax.Array, action: jax.Array) -> jax.Array:
    deviation = (action - mean) / jnp.exp(params["log_std"])
    return jnp.sum(-0.5 * deviation**2 - params["log_std"], axis=-1)


def loss(params: Any, batch: Batch, advantage: jax.Array) -> jax.Array:
    """Returns the clipped loss of PPO."""
    value = apply(params["critic"], batch.obs)[..., 0]
    now = log_prob(params, apply(params["actor"], batch.obs), batch.action)
    ratio = jnp.exp(now - batch.log_prob)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = jnp.minimum(ratio * scaled, jnp.clip(ratio, 0.8, 1.2) * scaled)
    return jnp.mean((value - batch.value - advantage) ** 2 - surrogate)


def make_train(
    env: Any,
    *,
    num_envs: int,
    num_updates: int,
    num_steps: int = 32,
    num_epochs: int = 4,
    wrap: Callable[..., Any] = training.wrap,
) -> Callable[[jax.Array], tuple[Any, jax.Array]]:
    """Returns a function from a key to the learned parameters and the reward of each update.

    `wrap` adds `vmap`, a time limit and automatic resets: Brax's way by default, Playground's
    `wrap_for_brax_training` for its environments.
    """
    env = wrap(env, episode_length=500)
    adam = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3))

    def train(key: jax.Array) -> tuple[Any, jax.Array]:
        key, actor, critic, reset = jax.random.split(key, 4)
        params = {
            "actor": dense(actor, (env.observation_size, 32, env.action_size)),
            "critic": dense(critic, (env.observation_size, 32, 1)),
            "log_std": jnp.full(env.action_size, -0.5),
        }
        state = env.reset(jax.random.split(reset, num_envs))

        def step(carry: Any, _: Any) -> Any:
            params, state, key = carry
            key, noise = jax.random.split(key)
            mean = apply(params["actor"], state.obs)
            action = mean + jnp.exp(params["log_std"]) * jax.random.normal(noise, mean.shape)
            value = apply(params["critic"], state.obs)[..., 0]
            after = env.step(state, action)
            batch = state.obs, action, log_prob(params, mean, action), value
            return (params, after, key), Batch(*batch, after.reward, after.done)

        def update(carry: Any, _: Any) -> Any:
            params, optimizer, state, key = carry
            (_, state, key), batch = jax.lax.scan(step, (params, state, key), length=num_steps)

            def back(carry: Any, at: Any) -> Any:  # generalized advantage estimation
                advantage, following = carry
                value, reward, done = at
                delta = reward + 0.99 * following * (1 - done) - value
                advantage = delta + 0.99 * 0.95 * (1 - done) * advantage
                return (advantage, value), advantage

            last = apply(params["critic"], state.obs)[..., 0]
            of_steps = batch.value, batch.reward, batch.done
            start = jnp.zeros_like(last), last
            advantage = jax.lax.scan(back, start, of_steps, reverse=True)[1]

            def learn(carry: Any, _: Any) -> Any:
                params, optimizer = carry
                changes, optimizer = adam.update(
                    jax.grad(loss)(params, batch, advantage), optimizer
                )
                return (optax.apply_updates(params, changes), optimizer), None

            learnt = jax.lax.scan(learn, (params, optimizer), length=num_epochs)[0]
            return (*learnt, state, key), batch.done.mean()

        start = params, adam.init(params), state, key
        (params, *_), falls = jax.lax.scan(update, start, length=num_updates)
        return params, falls

    return train


def main() -> None:
    env = VisualizedEnv(CartPole(), grid=(8, 8))
    env.viewer.agents = [f"seed {seed}" for seed in range(SEEDS)]
    env.viewer.select("agents")
    train = make_train(env, num_envs=NUM_ENVS, num_updates=500)
    keys = jax.random.split(jax.random.PRNGKey(0), SEEDS)
    _, falls = jax.block_until_ready(jax.jit(jax.vmap(train))(keys))
    env.viewer.training_ended()
    for seed, share in enumerate(falls):
        print(f"seed {seed}: {share[0]:.1%} of its steps fell at first, {share[-1]:.1%} at the end")
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
