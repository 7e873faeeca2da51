"""After `brax-viser train`, its robots go on in the environment's own physics."""

import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from brax.envs import training

from brax_viser import Viewer
from brax_viser.cli import app, driving
from brax_viser.cli.loading import load
from brax_viser.panel import words
from tests.conftest import Page, eventually
from tests.support import Probe

NUM_ROBOTS = 4
STEPS = 100


class Ended:
    """A short training of `brax-viser train` that has ended, and the robots that go on."""

    def __init__(self, viewer: Viewer, trainer: str = "ppo", steps: int = STEPS):
        self.viewer, self.run = viewer, app._Run()
        self.bare, self.settings = load("inverted_pendulum", trainer, "spring", 8, steps, False)
        self.settings |= {"seed": 3}
        viewer._shared.progress.plays_on = True
        self.stepped: list[tuple[Any, Any]] = []  # (key, physics after the step) of each step

        def work(run: app._Run) -> Any:
            run.viewer = viewer
            arguments = self.bare, trainer, self.settings, (2, 2), None
            return app._train(run, viewer, *arguments)

        self.run.start(work)
        assert self.run.over.wait(timeout=600)
        assert self.run.error is None

    def go_on(self, patch: pytest.MonkeyPatch) -> None:
        """Has the robots go on, and notes their steps."""
        step, noted = driving.Driving.step, self.stepped

        def noting(robots: driving.Driving) -> None:
            step(robots)
            noted.append(jax.device_get((robots._key, robots._state.pipeline_state)))

        patch.setattr(driving.Driving, "step", noting)
        self.run.go_on()


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    with Viewer(port=0) as viewer, pytest.MonkeyPatch.context() as patch:
        page = Page(viewer)
        ended = Ended(viewer)
        shared = viewer._shared
        ended.told_before = shared.progress.view(shared.clock())  # type: ignore[attr-defined]
        ended.curves_before = shared.progress.metrics.version  # type: ignore[attr-defined]
        viewer.selected_env = 6  # which is not among those that go on
        ended.head_before = words.head(Probe(viewer).panel_view())  # type: ignore[attr-defined]
        ended.go_on(patch)
        yield ended
        page.close()
    eventually(lambda: not any(t.name == "playing on" for t in threading.enumerate()), "it ends")


def test_all_robots_go_on_bit_by_bit_as_the_policy_drives_the_environment(ended):
    eventually(lambda: len(ended.stepped) > 40, "they go on", timeout=600)
    env = training.wrap(ended.bare, episode_length=1000, action_repeat=1)
    policy = ended.run.make_policy(ended.run.params, deterministic=True)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(3), NUM_ROBOTS))
    step = jax.jit(lambda state, key: env.step(state, policy(state.obs, key)[0]))
    key = jax.random.PRNGKey(4)
    for noted, physics in ended.stepped[:40]:
        key, own = jax.random.split(key)
        np.testing.assert_array_equal(noted, key)
        state = step(state, own)
        jax.tree.map(np.testing.assert_array_equal, physics, jax.device_get(state.pipeline_state))
    block = Probe(ended.viewer).block_of("train")
    assert block is not None and len(block.drawn_envs) == NUM_ROBOTS
    before = block.pos.copy()
    eventually(lambda: (block.pos != before).any(axis=(1, 2)).all(), "all of them move on screen")


def test_what_goes_on_is_told_apart_from_the_training(ended):
    viewer, probe = ended.viewer, Probe(ended.viewer)
    assert "Finished, the policy plays on in a moment" in ended.head_before
    eventually(lambda: len(ended.stepped) > 10, "they go on", timeout=600)
    eventually(lambda: viewer.selected_env is None, "one that is gone is not selected")
    view = probe.panel_view(viewer._shared.wall_clock())
    assert view.progress.plays_on == "now"
    assert "Finished, the policy plays on" in words.head(view)
    assert "in a moment" not in words.head(view)
    before, progress = ended.told_before, view.progress
    assert (progress.num_steps, progress.phase) == (before.num_steps, "done")
    assert (progress.elapsed, progress.rewards) == (before.elapsed, before.rewards)
    assert viewer._shared.progress.metrics.version == ended.curves_before
    assert not viewer._shared.control.recording and viewer.sandbox is None
    assert view.stepped == (view.shown,), "what was trained is not stepped beside it"


def test_a_robot_that_goes_on_is_selected_and_forked_where_it_is(ended):
    viewer, probe = ended.viewer, Probe(ended.viewer)
    eventually(lambda: len(ended.stepped) > 10, "they go on", timeout=600)
    eventually(lambda: probe.page.finale._begun, "all are drawn")
    viewer.selected_env = 2
    eventually(lambda: probe.panel_view().has_detail, "its details come")
    viewer.fork()
    told = probe.sandbox_session.panel()
    assert (told.env, told.begins) == (2, False)
    assert told.num_steps == viewer.progress().num_steps, "by the policy of that step"
    viewer.close_sandbox()


def test_robots_that_cannot_go_on_leave_the_page_to_one_in_mujoco(ended, capsys):
    def fails() -> Any:
        raise ValueError("no such physics")

    viewer = ended.viewer
    driving.play_on(viewer, fails, ended.run.make_policy, ended.run.params)
    assert "can't go on in their own physics: no such physics" in capsys.readouterr().out
    assert not viewer._shared.progress.plays_on
    viewer._shared.progress.plays_on = True


@pytest.mark.full
@pytest.mark.parametrize("trainer", ["sac", "apg", "es", "ars"])
def test_the_policies_of_all_trainers_go_on(viewer, page, trainer, monkeypatch):
    ended = Ended(viewer, trainer, steps=1)
    ended.go_on(monkeypatch)
    eventually(lambda: len(ended.stepped) > 3, "they go on", timeout=600)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ended.stepped[-1][1]))
