"""Watches ants learn in Brax's positional physics, each beside its twin in MuJoCo, which is given
the same controls, to see whether the policy would work there.

python -m examples.sim_to_sim
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from brax import envs
from brax.training.agents.ppo import train as ppo

from brax_viser import VisualizedEnv


def main() -> None:
    ant = envs.get_environment("ant", backend="positional")
    env = VisualizedEnv(ant, grid=(4, 4))
    viewer = env.viewer
    viewer.twins = 16

    def progress_fn(num_steps: int, metrics: Mapping[str, Any]) -> None:
        viewer.progress_fn(num_steps, metrics)
        drift = viewer.drift()  # of the frame on the page; None while no page is open
        if drift is not None:
            parted = np.isfinite(drift.passed).sum()
            print(
                f"step {num_steps:,}: after {np.median(drift.seconds):.2f} s twins are "
                f"{np.median(drift.bodies):.3f} m from their robots (median); "
                f"{parted} of {len(drift.passed)} have parted"
            )

    ppo.train(
        environment=env,
        num_envs=256,
        num_timesteps=10_000_000,
        num_evals=20,
        num_eval_envs=16,
        episode_length=1000,
        batch_size=256,
        num_minibatches=32,
        unroll_length=5,
        num_updates_per_batch=4,
        reward_scaling=10,
        discounting=0.97,
        learning_rate=3e-4,
        entropy_cost=1e-2,
        normalize_observations=True,
        progress_fn=progress_fn,
        policy_params_fn=viewer.policy_params_fn,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
