"""Watches one humanoid of a training of 256, on the positional backend.

python -m examples.humanoid_single
"""

from brax import envs
from brax.training.agents.ppo import train as ppo

from brax_viser import VisualizedEnv


def main() -> None:
    humanoid = envs.get_environment("humanoid", backend="positional")
    env = VisualizedEnv(humanoid, grid=(1, 1))
    ppo.train(
        environment=env,
        num_timesteps=50_000_000,
        num_evals=20,
        num_eval_envs=16,
        num_envs=256,
        batch_size=256,
        num_minibatches=32,
        unroll_length=10,
        num_updates_per_batch=8,
        episode_length=1000,
        reward_scaling=0.1,
        discounting=0.97,
        learning_rate=3e-4,
        entropy_cost=1e-3,
        normalize_observations=True,
        progress_fn=env.viewer.progress_fn,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
