"""Trains an ant with a run directory, and shows the recorded episodes when it has learned to run.

python -m examples.record_and_replay
"""

from datetime import datetime

from brax import envs
from brax.training.agents.ppo import train as ppo

from brax_viser import Viewer, VisualizedEnv
from brax_viser.replay import ReplayViewer
from brax_viser.runs.reader import open_run


def main() -> None:
    place = f"runs/recorded-ant-{datetime.now():%Y%m%d-%H%M%S}"
    with Viewer(run_dir=place) as viewer:
        ant = envs.get_environment("ant", backend="spring")
        env = VisualizedEnv(ant, grid=(4, 4), viewer=viewer)
        ppo.train(
            environment=env,
            num_timesteps=3_000_000,
            num_evals=4,
            num_eval_envs=32,
            num_envs=256,
            batch_size=256,
            num_minibatches=8,
            unroll_length=20,
            num_updates_per_batch=4,
            episode_length=300,
            reward_scaling=0.1,
            discounting=0.97,
            learning_rate=3e-4,
            entropy_cost=1e-2,
            normalize_observations=True,
            progress_fn=viewer.progress_fn,
            policy_params_fn=viewer.policy_params_fn,
        )
    run = open_run(place)
    for summary in run.summaries():
        why = ", ".join(summary.kept_as)
        print(f"step {summary.num_steps:,}: {why}, return {summary.episode_return:.1f}")
    replay = ReplayViewer(run.info, run)
    with replay:
        replay.show_curves(run.curves())
        input("The page shows the recorded episodes until you press Enter.")


if __name__ == "__main__":
    main()
