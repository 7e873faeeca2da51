"""Returns and lengths on the device, against a plain loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer, VisualizedEnv
from brax_viser.env import INFO_KEY
from brax_viser.episode import EpisodeLog
from brax_viser.protocol import NEVER
from envs.cartpole import CartPole
from tests.sample import FallingCartPole

NUM_ENVS, STEPS = 12, 60


@pytest.fixture(scope="module")
def viewer():
    with Viewer(port=0, streaming=False) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def inner():
    """The bare env's reset and step, as a batch, and the actions of a rollout."""
    env = FallingCartPole()
    keys = jax.random.split(jax.random.PRNGKey(1), NUM_ENVS)
    actions = jax.random.uniform(jax.random.PRNGKey(2), (STEPS, NUM_ENVS, 1), minval=-1, maxval=1)
    return jax.jit(jax.vmap(env.reset))(keys), jax.jit(jax.vmap(env.step)), keys, actions


def reference(inner, episode_length: int, action_repeat: int) -> list[dict[str, np.ndarray]]:
    """What is to be known after each of the trainer's steps."""
    first, step, _, actions = inner
    state = first
    total, length, steps = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, int), np.zeros(NUM_ENVS, int)
    since = np.full(NUM_ENVS, NEVER)
    over = np.zeros(NUM_ENVS, bool)
    told = []
    for action in actions:
        total[over], length[over], steps[over] = 0.0, 0, 0
        for _ in range(action_repeat):
            state = step(state, action)
            total += np.asarray(state.reward)
            length += 1
            since = np.where(np.asarray(state.done) > 0, 0, np.minimum(since + 1, NEVER))
        steps += action_repeat
        over = (np.asarray(state.done) > 0) | (steps >= episode_length)
        told.append({"return": total.copy(), "length": length.copy(), "since": since.copy()})
        state = where(over, first, state)
    return told


def where(over: np.ndarray, one, other):
    """One state for some envs, another for the rest."""
    return jax.tree.map(
        lambda a, b: jnp.where(over.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other
    )


@pytest.mark.parametrize("order", ["inside", "outside"])
@pytest.mark.parametrize(
    ("episode_length", "action_repeat"), [(1000, 1), (15, 1), (15, 2), (7, 3), (1000, 2)]
)
def test_returns_are_whole_across_resets_and_repeated_actions(
    viewer, inner, order, episode_length, action_repeat
):
    if order == "inside":
        env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
        env = envs.training.wrap(env, episode_length, action_repeat)
    else:
        env = envs.training.wrap(FallingCartPole(), episode_length, action_repeat)
        env = VisualizedEnv(env, grid=(2, 2), viewer=viewer)
    *_, keys, actions = inner
    state, step = jax.jit(env.reset)(keys), jax.jit(env.step)
    expected = reference(inner, episode_length, action_repeat)
    resets = 0
    for action, told in zip(actions, expected, strict=True):
        state = step(state, action)
        log = state.info[INFO_KEY]
        assert isinstance(log, EpisodeLog)
        np.testing.assert_allclose(log.episode_return, told["return"], rtol=1e-5)
        resets += int(np.sum(np.asarray(state.done)))
        # Outside of the EpisodeWrapper one step is one of the trainer's, repeats included.
        steps = action_repeat if order == "outside" else 1
        np.testing.assert_array_equal(np.asarray(log.episode_length) * steps, told["length"])
        ended = told["since"] == 0
        np.testing.assert_array_equal(np.asarray(log.since_termination) == 0, ended)
        if order == "inside":
            np.testing.assert_array_equal(log.since_termination, told["since"])
    assert resets > 20  # enough ends of episodes to mean anything


def test_what_a_loop_of_the_users_own_resets_starts_anew(viewer):
    """Where the whole state is replaced, so is the record."""
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    first = state = reset(jax.random.PRNGKey(0))
    total = 0.0
    for action in (0.1, 0.2, 0.3):
        state = step(state, jnp.array([action]))
        total += float(state.reward)
    assert float(state.info[INFO_KEY].episode_return) == pytest.approx(total)
    state = jax.tree.map(lambda a, b: jnp.where(True, a, b), first, state)
    state = step(state, jnp.array([0.1]))
    assert float(state.info[INFO_KEY].episode_return) == pytest.approx(float(state.reward))
    assert int(state.info[INFO_KEY].episode_length) == 1


def test_the_time_of_an_outer_step_includes_its_repeats(viewer):
    bare = CartPole()
    outside = VisualizedEnv(envs.training.wrap(CartPole(), 100, 4), viewer=viewer)
    inside = VisualizedEnv(CartPole(), viewer=viewer)
    assert inside._adapter.dt == pytest.approx(float(bare.dt))
    assert outside._adapter.dt == pytest.approx(4 * float(bare.dt))
