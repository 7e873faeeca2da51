"""Watches eight cart-poles, in two rows of four, learn to balance.

python -m examples.cartpole_grid
"""

from brax.training.agents.ppo import train as ppo

from brax_viser import VisualizedEnv
from envs.cartpole import CartPole


def main() -> None:
    env = VisualizedEnv(CartPole(), grid=(4, 2, 1), spacing=(4, 4, 2))
    ppo.train(
        environment=env,
        num_timesteps=1_000_000,
        num_envs=8,
        episode_length=500,
        unroll_length=32,
        batch_size=8,
        num_minibatches=4,
        num_updates_per_batch=8,
        learning_rate=1e-3,
        discounting=0.99,
        reward_scaling=0.1,
        normalize_observations=True,
        run_evals=False,
        progress_fn=env.viewer.progress_fn,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
