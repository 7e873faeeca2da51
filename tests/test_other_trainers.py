"""Checks that loops and packages other than Brax's trainers learn the same, watched or not.

On an environment that compiles quickly: what differs here are the trainers. `benchmarks.matrix` has
the physics.
"""

import jax
import numpy as np
import pytest

from benchmarks import other_trainers
from benchmarks.matrix import all_families, largest_difference
from benchmarks.other_trainers import OTHERS
from brax_viser import VisualizedEnv
from tests.support import Probe
from tests.toy import Toy


@pytest.mark.parametrize("trainer", OTHERS)
def test_results_are_identical_and_every_state_arrives(viewer, page, trainer):
    other = OTHERS[trainer]
    if other.missing:
        pytest.skip(f"not installed: {', '.join(other.missing)}")
    families = all_families()
    make = Toy if other.only is None else families[next(iter(other.only))].make
    viewer.mode = "every_step"
    env = VisualizedEnv(make(), grid=(2, 2), viewer=viewer)
    watched = other_trainers.train(trainer, env)
    stats = viewer.stats()
    assert Probe(viewer).shared.fault is None
    assert stats.env_steps == other.steps
    assert stats.frames == other.tried + other.steps
    assert stats.streams["train"].num_envs == other.num_envs
    bare = other_trainers.train(trainer, make())
    assert len(watched) > 1 and all(np.isfinite(x).all() for x in watched)
    assert largest_difference(bare, watched) == 0


def test_rejaxs_evaluations_are_told_apart_by_an_environment_of_their_own(viewer, page):
    pytest.importorskip("rejax")
    make = all_families()["spring"].make  # rejax makes an action of length 1 a number here
    settings = {"num_steps": 10, "num_minibatches": 2}
    viewer.mode, viewer.show = "every_step", "both"
    env = VisualizedEnv(make(), grid=(2, 2), viewer=viewer)
    evaluated = VisualizedEnv(make(), grid=(2, 2), viewer=viewer, role="eval")
    watched = other_trainers.rejax(env, "ppo", evaluated=evaluated, **settings)
    streams = viewer.stats().streams
    assert (streams["train"].env_steps, streams["train"].num_envs) == (20, 8)
    assert streams["eval"].num_envs == 4 and streams["eval"].env_steps > 1
    bare = other_trainers.rejax(make(), "ppo", evaluated=make(), **settings)
    jax.tree.map(np.testing.assert_array_equal, watched, bare)
