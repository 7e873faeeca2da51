"""The other stock trainers learn the same, bit by bit, watched or not."""

import jax
import numpy as np
import pytest
from brax import envs

from benchmarks.matrix import NUM_ENVS, train
from brax_viser import VisualizedEnv
from brax_viser.callback import VARIABLE


def bare() -> envs.Env:
    return envs.get_environment("inverted_pendulum", backend="spring")


def assert_identical(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("trainer", ["sac", "apg", "es", "ars", "bc"])
def test_parameters_are_identical_and_states_arrive(viewer, page, trainer):
    viewer.mode = "every_step"
    env = VisualizedEnv(bare(), grid=(2, 2), viewer=viewer)
    assert_identical(train(trainer, env, progress_fn=viewer.progress_fn), train(trainer, bare()))
    stats = viewer.stats()
    print(trainer, stats, viewer.progress())
    assert stats.frames == stats.streams["train"].env_steps > 0
    assert stats.streams["train"].num_envs == NUM_ENVS
    assert stats.streams["eval"].num_envs == 4
