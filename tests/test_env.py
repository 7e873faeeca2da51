"""The wrapper's contract: the inputs that it accepts, and the states that it leaves unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from brax.envs.base import PipelineEnv

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.episode import EpisodeLog
from brax_viser.device.log_in_info import INFO_KEY
from envs.cartpole import CartPole
from tests.sample import SwiftCartPole
from tests.support import source_of


@pytest.fixture(scope="module")
def shared_viewer():
    with Viewer(port=0) as viewer:
        yield viewer


@pytest.mark.parametrize(
    ("grid", "error", "words"),
    [
        ((0, 4), ValueError, "every side must be at least 1"),
        ((4, -1), ValueError, "every side must be at least 1"),
        ((4,), ValueError, "has 1 numbers"),
        ((1, 2, 3, 4), ValueError, "has 4 numbers"),
        ((2.5, 2), TypeError, "whole number"),
        ((True, 2), TypeError, "not a number"),
        (("8", "8"), TypeError, "not a number"),
        (8, TypeError, "sequence of numbers"),
        ((100, 100), ValueError, "at most 4096"),
    ],
)
def test_a_bad_grid_is_refused_with_the_value_and_the_remedy(shared_viewer, grid, error, words):
    with pytest.raises(error, match=words) as raised:
        VisualizedEnv(CartPole(), grid=grid, viewer=shared_viewer)
    assert repr(grid) in str(raised.value)


@pytest.mark.parametrize(
    ("spacing", "error", "words"),
    [
        ((-1, 4), ValueError, "above 0 metres"),
        ((0, 4), ValueError, "above 0 metres"),
        ((float("nan"), 4), ValueError, "above 0 metres"),
        ((4,), ValueError, "has 1 numbers"),
        ((1, 2, 3, 4), ValueError, "has 4 numbers"),
        (4.0, TypeError, "sequence of numbers"),
    ],
)
def test_a_bad_spacing_is_refused(shared_viewer, spacing, error, words):
    with pytest.raises(error, match=words):
        VisualizedEnv(CartPole(), spacing=spacing, viewer=shared_viewer)


@pytest.mark.parametrize("thing", [None, "ant", envs.get_environment, 3])
def test_an_object_that_is_not_an_env_is_refused(shared_viewer, thing):
    with pytest.raises(
        TypeError, match=r"must be a brax\.envs\.Env.* or a mujoco_playground\.MjxEnv"
    ):
        VisualizedEnv(thing, viewer=shared_viewer)


def test_an_env_without_a_mujoco_model_is_refused(shared_viewer):
    with pytest.raises(ValueError, match="no MuJoCo model"):
        VisualizedEnv(envs.get_environment("fast"), viewer=shared_viewer)


def test_wrapping_twice_is_refused_however_deep(shared_viewer):
    once = VisualizedEnv(CartPole(), viewer=shared_viewer)
    with pytest.raises(ValueError, match="already"):
        VisualizedEnv(once, viewer=shared_viewer)
    with pytest.raises(ValueError, match="already"):
        VisualizedEnv(envs.training.EpisodeWrapper(once, 100, 1), viewer=shared_viewer)


def test_an_unknown_role_is_refused(shared_viewer):
    with pytest.raises(ValueError, match="role='both'"):
        VisualizedEnv(CartPole(), viewer=shared_viewer, role="both")


def test_a_visualized_env_is_a_brax_wrapper_in_every_respect(shared_viewer):
    class Sized(CartPole):
        observation_size = 4  # Brax's own resets the environment to find it

    bare = Sized()
    env = VisualizedEnv(bare, viewer=shared_viewer)
    assert isinstance(env, envs.Wrapper)
    # Not the same object: wrappers for domain randomisation step it, and these steps must be seen.
    assert isinstance(env.unwrapped, Sized) and env.unwrapped.__dict__ is bare.__dict__
    assert (env.observation_size, env.action_size) == (4, 1)
    assert (env.backend, env.dt, env.sys) == (bare.backend, bare.dt, bare.sys)


def test_states_equal_those_of_the_env_inside_bit_by_bit(shared_viewer):
    def rollout(env):
        def body(state, action):
            state = env.step(state, action)
            return state, state.pipeline_state

        state = jax.jit(env.reset)(jax.random.PRNGKey(0))
        return jax.jit(lambda s: jax.lax.scan(body, s, jnp.ones((50, 1)))[1])(state)

    bare, watched = SwiftCartPole(), VisualizedEnv(SwiftCartPole(), viewer=shared_viewer)
    jax.tree.map(np.testing.assert_array_equal, rollout(bare), rollout(watched))


def test_info_gains_one_record_per_env_and_nothing_else(shared_viewer):
    bare = envs.training.wrap(SwiftCartPole(), episode_length=9)
    env = VisualizedEnv(SwiftCartPole(), viewer=shared_viewer)
    env = envs.training.wrap(env, episode_length=9)
    keys = jax.random.split(jax.random.PRNGKey(0), 6)
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(keys)
    assert set(state.info) - set(jax.jit(bare.reset)(keys).info) == {INFO_KEY}
    for _ in range(12):  # beyond the end of the episode: auto-reset keeps the key
        state = step(state, jnp.zeros((6, 1)))
        log = state.info[INFO_KEY]
        assert log.keys() == set(EpisodeLog._fields)
        assert all(x.shape[:1] == (6,) for x in log.values())


class ForgetfulEnv(SwiftCartPole):
    """A cart-pole that rebuilds its info in each step, and asserts that its structure is kept."""

    def reset(self, rng):
        return super().reset(rng).replace(info={"mine": jnp.zeros(())})

    def step(self, state, action):
        assert set(state.info) == {"mine"}
        return super().step(state, action).replace(info={"mine": jnp.ones(())})


def test_an_env_that_rebuilds_its_info_keeps_the_record(shared_viewer):
    env = VisualizedEnv(ForgetfulEnv(), viewer=shared_viewer)
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    state = jax.jit(env.step)(state, jnp.zeros(1))
    assert set(state.info) == {"mine", INFO_KEY}


def test_a_state_of_another_env_gets_a_clear_error(shared_viewer):
    env = VisualizedEnv(SwiftCartPole(), viewer=shared_viewer)
    with pytest.raises(ValueError, match="must come from this VisualizedEnv's reset"):
        env.step(SwiftCartPole().reset(jax.random.PRNGKey(0)), jnp.zeros(1))


def test_a_wrapper_around_a_vmap_wrapper_sees_the_whole_batch_too(shared_viewer):
    env = VisualizedEnv(envs.training.VmapWrapper(CartPole()), viewer=shared_viewer)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 5))
    state = jax.block_until_ready(jax.jit(env.step)(state, jnp.zeros((5, 1))))
    assert state.info[INFO_KEY]["countdown"].shape == (5,)
    assert source_of(env).rollouts["train"].num_envs == 5


def test_a_model_with_unfused_bodies_is_refused(shared_viewer):
    class Odd(PipelineEnv):
        def __init__(self):
            inner = CartPole()
            super().__init__(inner.sys.tree_replace({"link_types": "1"}), backend="generalized")

        def reset(self, rng):
            raise NotImplementedError

        def step(self, state, action):
            raise NotImplementedError

    with pytest.raises(ValueError, match="1 links but its MuJoCo model has 2 bodies"):
        VisualizedEnv(Odd(), viewer=shared_viewer)
