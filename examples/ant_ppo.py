"""Watches 64 of 2,048 ants learn to run. Best with a GPU: a laptop takes long.

python -m examples.ant_ppo
"""

from brax import envs
from brax.training.agents.ppo import train as ppo

from brax_viser import VisualizedEnv


def main() -> None:
    env = VisualizedEnv(envs.get_environment("ant", backend="mjx"), grid=(8, 8))
    ppo.train(
        environment=env,
        num_envs=2048,
        num_timesteps=30_000_000,
        num_evals=10,
        episode_length=1000,
        batch_size=2048,
        num_minibatches=32,
        unroll_length=5,
        num_updates_per_batch=4,
        reward_scaling=10,
        discounting=0.97,
        learning_rate=3e-4,
        entropy_cost=1e-2,
        normalize_observations=True,
        progress_fn=env.viewer.progress_fn,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
