"""Watches 64 of 256 cart-poles of MuJoCo Playground, with Playground's own settings for PPO.

pip install -e '.[playground]' && python -m examples.playground_cartpole
"""

from typing import Any

from brax.training.agents.ppo import train as ppo
from mujoco_playground import registry, wrapper
from mujoco_playground.config import dm_control_suite_params

from brax_viser import VisualizedEnv


def main() -> None:
    env = VisualizedEnv(registry.load("CartpoleBalance"), grid=(8, 8))
    settings: dict[str, Any] = dict(dm_control_suite_params.brax_ppo_config("CartpoleBalance"))
    settings.update(num_envs=256, num_timesteps=10_000_000)  # for a laptop
    ppo.train(
        environment=env,
        wrap_env_fn=wrapper.wrap_for_brax_training,
        progress_fn=env.viewer.progress_fn,
        **settings,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
