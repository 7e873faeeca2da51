"""Checks that the other stock trainers learn bit-identical parameters, watched or not."""

import numpy as np
import pytest
from brax import envs

from benchmarks.matrix import NUM_ENVS, train
from brax_viser import VisualizedEnv
from brax_viser.device.host_call import VARIABLE

TRAININGS = {
    # trainer: (batched steps of one training, env steps as the trainer counts its goal)
    "ppo": (250, 2_000),
    "sac": (200, 1_600),  # 20 to fill its replay buffer first
    "apg": (121, 960),  # 12 updates of 10, after one step that makes it compile just once
    "es": (180, 600),  # 3 generations of 60
    "ars": (120, 600),  # 2 of 60
    "bc": (40, 320),  # 4 demonstrations of 10
}


def bare() -> envs.Env:
    return envs.get_environment("inverted_pendulum", backend="spring")


QUICK = ("apg", "es")
"""One trainer that differentiates through steps, and one that throws the states away."""


@pytest.mark.parametrize(
    "trainer",
    [pytest.param(t, marks=[] if t in QUICK else [pytest.mark.full]) for t in TRAININGS],
)
def test_parameters_are_identical_and_every_state_arrives(viewer, page, trainer):
    viewer.mode = "every_step"
    env = VisualizedEnv(bare(), grid=(2, 2), viewer=viewer)
    watched = train(trainer, env, progress_fn=viewer.progress_fn)
    stats, progress = viewer.stats(), viewer.progress()
    num_steps, num_timesteps = TRAININGS[trainer]
    assert stats.frames == stats.env_steps == num_steps
    assert stats.streams["train"].num_envs == NUM_ENVS
    assert stats.streams["eval"].num_envs == 4
    assert progress.algorithm == trainer.upper()
    assert progress.num_timesteps == num_timesteps
    assert progress.phase == "done" and progress.fraction == 1.0
    assert progress.reward is not None and progress.reward.startswith("evaluation reward")
    if trainer in ("es", "ars"):  # they do not count steps after an env's first episode
        assert progress.num_steps < num_steps * NUM_ENVS

    stock = train(trainer, bare())
    assert len(watched) == len(stock) > 1
    for a, b in zip(watched, stock, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_apg_evaluating_the_same_env_also_works_by_io_callback(viewer, page, monkeypatch):
    """If both had effects, JAX would refuse them in one program, because their meshes differ."""
    monkeypatch.setenv(VARIABLE, "io_callback")
    viewer.mode = "every_step"
    train("apg", VisualizedEnv(bare(), grid=(2, 2), viewer=viewer))
    stats = viewer.stats()
    assert stats.frames == stats.env_steps == TRAININGS["apg"][0]
    assert stats.streams["eval"].num_envs == 4
