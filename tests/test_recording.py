"""Recorded episodes are what the trainer stepped, bit for bit, whether or not anybody looks."""

import functools
from typing import Any

import jax
import mujoco
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.host_call import LAUNCH, VARIABLE
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.host.metrics import RECORDED
from brax_viser.records.episode import Episode
from brax_viser.runs.window import MOST_FALLEN
from tests.conftest import Page, eventually
from tests.sample import FallingCartPole
from tests.support import Probe

NUM_ENVS, CELLS, LIMIT = 12, 6, 25


class TellingCartPole(FallingCartPole):
    """It keeps the only term of its reward in `metrics`, and where the cart is."""

    def reset(self, rng):
        return self._telling(super().reset(rng))

    def step(self, state, action):
        return self._telling(super().step(state, action))

    def _telling(self, state):
        return state.replace(
            metrics={"reward_pole": state.reward, "cart": state.pipeline_state.q[0]}
        )


class Training:
    """A loop of the user's own over auto-resetting cart-poles, whose every state is kept."""

    def __init__(self, viewer: Viewer, num_envs: int = NUM_ENVS):
        self.viewer, self.probe = viewer, Probe(viewer)
        wrapped = VisualizedEnv(TellingCartPole(), grid=(CELLS, 1), viewer=viewer)
        self.env = envs.training.wrap(wrapped, episode_length=LIMIT)
        keys = jax.random.split(jax.random.PRNGKey(0), num_envs)
        self.state: Any = jax.jit(self.env.reset)(keys)
        self.seen: list[Any] = []
        self.key = jax.random.PRNGKey(1)

    @functools.cached_property
    def scan(self) -> Any:
        def body(state, action):
            before = state.pipeline_state
            state = self.env.step(state, action)
            log = state.info[INFO_KEY]
            # What AutoResetWrapper replaces is seen inside of it alone: by the return of the log.
            return state, (before.q, before.qd, state.reward, action, log["episode_return"])

        return jax.jit(functools.partial(jax.lax.scan, body))

    def run(self, steps: int) -> None:
        """Steps on, without waiting for the page."""
        self.key, key = jax.random.split(self.key)
        actions = jax.random.uniform(key, (steps, len(self.state.done), 1), minval=-1.0)
        self.state, seen = self.scan(self.state, actions)
        self.seen.append(jax.tree.map(np.asarray, seen))

    def record(self) -> list[Episode]:
        """Steps until a recording is finished; returns its episodes."""
        episodes = self.probe.record_from_now()
        eventually(lambda: self.run(10) or episodes(), "a recording is finished")
        return episodes()

    def stepped(self) -> tuple[np.ndarray, ...]:
        """Returns arrays [T, N, ...] over all steps so far: q and qd before the step, rewards,
        actions, returns so far."""
        return tuple(np.concatenate(parts) for parts in zip(*self.seen, strict=True))


@pytest.fixture(params=["direct", LAUNCH])
def way(request, monkeypatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


def test_recorded_episodes_are_what_was_stepped_without_a_page(viewer, way):
    training = Training(viewer)
    training.run(30)
    episodes = training.record()
    assert 1 <= len(episodes) <= 3 + MOST_FALLEN
    assert any(episode.summary.ended == "terminated" for episode in episodes)
    q, qd, rewards, actions, returns = training.stepped()
    for episode in episodes:
        summary, env = episode.summary, episode.summary.env
        first, length = summary.num_steps // NUM_ENVS, summary.length
        span = slice(first, first + length)
        assert np.array_equal(episode.qpos[:-1], q[span, env])
        assert np.array_equal(episode.qvel[:-1], qd[span, env])
        # After its last step AutoResetWrapper has replaced the state, but for its metrics.
        assert np.array_equal(episode.qpos[1:, 0], episode.steps["metrics/cart"])
        assert np.array_equal(episode.steps["reward"], rewards[span, env])
        assert np.array_equal(episode.steps["action"], actions[span, env])
        assert summary.episode_return == returns[first + length - 1, env]
        assert summary.recording <= summary.num_steps
        # The reset's pose is MuJoCo's of its coordinates; it agrees with Brax's of all later ones.
        data = mujoco.MjData(model := training.env.unwrapped.sys.mj_model)
        for qpos, pos in zip(episode.qpos, episode.link_pos, strict=True):
            data.qpos[:] = qpos
            mujoco.mj_kinematics(model, data)
            assert np.allclose(data.xpos[1:], pos, atol=1e-5)
        assert (length == LIMIT) == (summary.ended == "truncated")
    assert viewer.stats().frames == 0, "the page was sent nothing"
    metrics = training.probe.shared.progress.metrics
    term = RECORDED + "reward_pole"
    eventually(lambda: term in metrics.names(), "the term has a curve")
    assert RECORDED + "cart" not in metrics.names()
    curve = metrics.curve(term)
    assert curve is not None and len(curve.values) == 1
    # The best and the worst by the same sum are among those that are kept.
    sums = [episode.steps["metrics/reward_pole"].sum() for episode in episodes]
    assert min(sums) <= curve.values[0] <= max(sums)


def test_the_page_and_the_pace_are_as_without_a_recording(viewer):
    viewer.mode = "every_step"
    page = Page(viewer)
    training = Training(viewer)
    training.run(40)
    frames = viewer.stats().frames
    training.record()
    steps = viewer.stats().streams["train"].env_steps
    assert frames <= 40 and viewer.stats().frames >= steps - 2
    page.close()


def test_switching_off_stops_a_recording_as_well(viewer):
    training = Training(viewer)
    training.probe.record_from_now()
    eventually(lambda: training.run(1) or viewer.stats().bytes_moved, "it records")
    viewer.streaming = False
    training.run(3)
    before = viewer.stats().bytes_moved
    training.run(50)
    assert viewer.stats().bytes_moved == before


def test_learned_states_are_the_same_while_a_recording_goes_on(viewer):
    def learned(env: Any) -> Any:
        env = envs.training.wrap(env, episode_length=LIMIT)
        state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(3), NUM_ENVS))
        actions = jax.random.uniform(jax.random.PRNGKey(4), (200, NUM_ENVS, 1), minval=-1.0)
        run = jax.jit(lambda s: jax.lax.scan(lambda s, a: (env.step(s, a), s.obs), s, actions))
        return jax.tree.map(np.asarray, run(state)[1])

    wrapped = VisualizedEnv(FallingCartPole(), grid=(CELLS, 1), viewer=viewer)
    Probe(viewer).record_from_now()
    bare = learned(FallingCartPole())

    def recorded() -> int:
        assert np.array_equal(learned(wrapped), bare)
        return viewer.stats().bytes_moved

    eventually(recorded, "it is recorded")  # the page may ask for the states only later
