"""After `brax-viser train`, its robots go on in the environment's own physics."""

import copy
import functools
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs import training

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import app, driving
from brax_viser.cli.loading import load
from brax_viser.panel import words
from tests.conftest import Page, eventually
from tests.support import Probe
from tests.toy import BraxToy

GRID, NUM_ROBOTS, NUM_ENVS, SEED = (2, 2), 4, 8, 3


def make_policy(params: Any, deterministic: bool = False) -> Any:
    """Returns a policy that pushes the cart away from the middle, where its episode ends."""

    def policy(obs: Any, key: Any) -> Any:
        noise = 0.0 if deterministic else jax.random.normal(key)
        return params["gain"] * obs[..., :1] + 0.5 + noise, {}

    return policy


class PlayingOn:
    """Robots that go on after a training, and what they did."""

    def __init__(self, run: app._Run, patch: pytest.MonkeyPatch):
        step = driving.Driving.step
        self.run = run
        self.steps: list[tuple[Any, Any]] = []  # (key, physics after the step) of each

        def noting(robots: driving.Driving) -> None:
            step(robots)
            self.steps.append(jax.device_get((robots._key, robots._state.pipeline_state)))

        patch.setattr(driving.Driving, "step", noting)
        run.go_on()

    def check(self, bare: Any, num_steps: int, seed: int, *, apart: float = 0.0) -> None:
        """Compares their first steps, to the last bit or `apart`, with the bare environment's."""
        eventually(lambda: len(self.steps) >= num_steps, "they go on", timeout=1200)
        assert self.run.make_policy is not None
        policy = driving.with_deterministic(self.run.make_policy)(
            self.run.params, deterministic=True
        )
        env = training.wrap(bare, episode_length=1000, action_repeat=1)
        step = jax.jit(lambda state, key: env.step(state, policy(state.obs, key)[0]))
        state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(seed), NUM_ROBOTS))
        key = jax.random.PRNGKey(seed + 1)
        for noted, physics in self.steps[:num_steps]:
            key, own = jax.random.split(key)
            np.testing.assert_array_equal(noted, key)
            state = step(state, own)
            own_physics = jax.device_get(state.pipeline_state)
            for one, other in zip(*map(jax.tree.leaves, (physics, own_physics)), strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=apart)


class Ended:
    """A training of a few steps that has ended, and the robots that go on."""

    def __init__(self, viewer: Viewer, patch: pytest.MonkeyPatch):
        self.viewer, self.bare, run = viewer, BraxToy(), app._Run()
        given = viewer, copy.copy(self.bare), {}, GRID, SEED
        run.viewer, run.robots = viewer, functools.partial(driving.Driving, *given)
        run.make_policy, run.params = make_policy, {"gain": np.float32(3.0)}
        Probe(viewer).shared.progress.plays_on = True
        env = VisualizedEnv(self.bare, grid=GRID, viewer=viewer)
        state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        step = jax.jit(jax.vmap(env.step))
        for _ in range(5):
            state = jax.block_until_ready(step(state, jnp.zeros((NUM_ENVS, 1))))
        viewer.policy_params_fn(40, run.make_policy, run.params)
        viewer.progress_fn(40, {"episode/sum_reward": 2.0})
        viewer.training_ended()
        viewer.selected_env = 6  # which is not among those that go on
        shared = Probe(viewer).shared
        self.before = shared.progress.view(shared.clock())
        self.curves = shared.progress.metrics.version
        self.head = words.head(Probe(viewer).panel_view())
        self.on = PlayingOn(run, patch)


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    with Viewer(port=0) as viewer, pytest.MonkeyPatch.context() as patch:
        page = Page(viewer)
        ended = Ended(viewer, patch)
        yield ended
        page.close()
        viewer.close()
        eventually(lambda: not _threads(), "it ends with the viewer")


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "playing on"]


def test_all_robots_go_on_bit_by_bit_as_the_policy_drives_the_environment(ended):
    ended.on.check(ended.bare, 200, SEED)
    places = np.array([physics.qpos[:, 0] for _, physics in ended.on.steps[:200]])
    assert (np.abs(np.diff(places, axis=0)) > 0.04).any(axis=0).all(), "each began again"
    eventually(
        lambda: (b := Probe(ended.viewer).block_of("train")) and len(b.drawn_envs) == NUM_ROBOTS,
        "all of them are drawn",
    )
    block = Probe(ended.viewer).block_of("train")
    assert block is not None
    before = block.pos.copy()
    eventually(lambda: (block.pos != before).any(axis=(1, 2)).all(), "and move on screen")


def test_what_goes_on_is_told_apart_from_the_training(ended):
    viewer, shared = ended.viewer, Probe(ended.viewer).shared
    assert "the trained policy plays on in a moment" in ended.head
    eventually(lambda: len(ended.on.steps) > 10, "they go on", timeout=600)
    eventually(lambda: viewer.selected_env is None, "one that is gone is not selected")
    view = Probe(viewer).panel_view(shared.wall_clock())
    assert words.state(view)[0] == "Finished, the policy plays on"
    before, progress = ended.before, view.progress
    assert (progress.num_steps, progress.phase) == (before.num_steps, "done")
    assert (progress.elapsed, progress.rewards) == (before.elapsed, before.rewards)
    assert shared.progress.metrics.version == ended.curves
    assert not shared.control.recording and viewer.sandbox is None
    assert view.stepped == (view.shown,), "what was trained is not stepped beside it"
    assert shared.pacing.max_overhead == 1.0, "there is no training that it may slow down"


def test_robots_that_go_on_wait_while_a_replay_is_shown(ended):
    shared = Probe(ended.viewer).shared
    eventually(lambda: len(ended.on.steps) > 10, "they go on", timeout=600)
    patch = pytest.MonkeyPatch()
    patch.setattr(Probe(ended.viewer).replay, "active", True)
    eventually(lambda: not shared.control.wants("train"), "it is shown")

    def wait() -> bool:
        before = len(ended.on.steps)
        threading.Event().wait(1.0)
        return len(ended.on.steps) == before

    eventually(wait, "they wait")
    patch.undo()
    eventually(lambda: not wait(), "and go on")


def test_a_robot_that_goes_on_is_selected_and_forked_where_it_is(ended):
    viewer, probe = ended.viewer, Probe(ended.viewer)
    eventually(lambda: probe.page.finale._all, "all are drawn", timeout=600)
    viewer.selected_env = 2
    eventually(lambda: probe.panel_view().has_detail, "its details come")
    viewer.fork()
    told = probe.sandbox_session.panel()
    assert (told.env, told.begins) == (2, False)
    assert told.num_steps == ended.before.num_steps, "by the policy of that step"
    viewer.close_sandbox()


def test_robots_that_cannot_go_on_leave_the_page_to_one_in_mujoco(ended, monkeypatch, capsys):
    def fails(robots: driving.Driving) -> None:
        raise ValueError("no such physics")

    eventually(lambda: len(ended.on.steps) > 10, "they go on", timeout=600)
    monkeypatch.setattr(driving.Driving, "step", fails)
    eventually(lambda: not _threads(), "they can't")
    assert "can't go on in their own physics: no such physics" in capsys.readouterr().out
    session = Probe(ended.viewer).sandbox_session
    eventually(lambda: session.panel().env is not None, "one robot is forked")


@pytest.mark.full
@pytest.mark.parametrize("trainer", ["ppo", "sac", "apg", "es", "ars"])
def test_after_each_trainer_all_robots_go_on_as_its_policy_drives_them(
    viewer, page, trainer, monkeypatch
):
    bare, settings = load("inverted_pendulum", trainer, "spring", NUM_ENVS, 1, False)
    Probe(viewer).shared.progress.plays_on = True

    def work(run: app._Run) -> Any:
        run.viewer = viewer
        return app._train(run, viewer, bare, trainer, {**settings, "seed": SEED}, GRID, None)

    run = app._Run()
    run.start(work)
    assert run.over.wait(timeout=1200) and run.error is None
    # A network's last bits depend on what else XLA compiles into the same program.
    PlayingOn(run, monkeypatch).check(bare, 30, SEED, apart=1e-3)
