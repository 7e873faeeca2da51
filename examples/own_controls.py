"""Adds a slider and a marker: a ball above the selected ant, as high as the slider says.

python -m examples.own_controls
"""

from brax import envs
from brax.training.agents.ppo import train as ppo

from brax_viser import ShownFrame, VisualizedEnv


def main() -> None:
    env = VisualizedEnv(envs.get_environment("ant", backend="spring"), grid=(6, 6))
    server = env.viewer.server
    height = server.gui.add_slider("Ball, m above", min=0.0, max=3.0, step=0.1, initial_value=1.0)
    ball = server.scene.add_icosphere("/ball", radius=0.1, color=(230, 73, 128), visible=False)

    @env.viewer.on_frame
    def hang_ball(shown: ShownFrame) -> None:
        ball.visible = shown.selected is not None
        if shown.selected is not None:
            above = [0.0, 0.0, height.value * shown.scale]
            ball.position = shown.link_pos[shown.selected, 0] + above

    env.viewer.selected_env = 14
    ppo.train(
        environment=env,
        num_timesteps=20_000_000,
        num_envs=1024,
        episode_length=1000,
        unroll_length=10,
        batch_size=512,
        num_minibatches=16,
        num_updates_per_batch=4,
        learning_rate=3e-4,
        discounting=0.97,
        reward_scaling=10,
        normalize_observations=True,
        progress_fn=env.viewer.progress_fn,
    )
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
