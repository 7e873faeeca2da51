"""Tests each place among the trainer's wrappers, and what is seen there at an episode's end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from brax.envs.wrappers.training import (
    AutoResetWrapper,
    EpisodeWrapper,
    EvalWrapper,
    VmapWrapper,
)

from brax_viser import VisualizedEnv
from envs.cartpole import CartPole
from tests.conftest import eventually
from tests.support import Probe

LENGTH = 4
NUM_ENVS = 5

CHAIN: tuple[Callable[[Any], Any], ...] = (
    VmapWrapper,
    lambda env: EpisodeWrapper(env, LENGTH, 1),
    AutoResetWrapper,
    EvalWrapper,
)


def wrapped(around: int | None, viewer: Any = None) -> tuple[envs.Env, VisualizedEnv | None]:
    """Returns a cart-pole in a trainer's wrappers, evaluation included; ours encloses `around`."""
    env: Any = CartPole()
    ours = None
    for place in range(len(CHAIN) + 1):
        if place == around:
            env = ours = VisualizedEnv(env, grid=(3, 2), viewer=viewer)
        if place < len(CHAIN):
            env = CHAIN[place](env)
    return env, ours


def rollout(env: envs.Env) -> list[Any]:
    """Returns the state after the reset and after each step."""
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    states = [state]
    for _ in range(2 * LENGTH + 1):
        states.append(step(jax.tree.map(lambda x: x, states[-1]), jnp.ones((NUM_ENVS, 1))))
    return jax.block_until_ready(states)


@pytest.fixture(scope="module")
def without_ours() -> list[Any]:
    return rollout(wrapped(None)[0])


@pytest.mark.parametrize("around", range(len(CHAIN) + 1))
def test_states_arrive_unchanged_at_any_place_in_the_chain(viewer, page, without_ours, around):
    viewer.mode = "every_step"
    env, ours = wrapped(around, viewer)
    assert ours is not None
    seen = []
    put = Probe(viewer).shared.mailbox.put
    Probe(viewer).shared.mailbox.put = lambda packet, **how: (
        seen.append(packet),
        put(packet, **how),
    )
    states = rollout(env)
    assert viewer.stats().frames == 2 * LENGTH + 1
    assert viewer.stats().streams["train"].num_envs == NUM_ENVS
    for state, bare in zip(states, without_ours, strict=True):
        np.testing.assert_array_equal(state.pipeline_state.q, bare.pipeline_state.q)
        np.testing.assert_array_equal(state.obs, bare.obs)

    poses = [packet.open().link_pos for packet in seen]
    fresh = np.asarray(states[0].pipeline_state.x.pos)
    shows_reset = np.allclose(poses[LENGTH - 1], fresh, atol=1e-6)
    assert shows_reset == (around >= 3), "around an auto-reset the pose after it is seen"
    length = [int(packet.open().episode_length[0]) for packet in seen]
    assert length == [1, 2, 3, 4, 1, 2, 3, 4, 1]


class Watching(CartPole):
    """Adds a picture to the observations."""

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(obs=self._seen(state.obs))

    def step(self, state, action):
        state = super().step(state.replace(obs=state.obs["state"]), action)
        return state.replace(obs=self._seen(state.obs))

    def _seen(self, obs):
        return {"state": obs, "pixels/view_0": jnp.full((64, 64, 3), jnp.nan)}


def test_pixels_are_neither_sent_nor_checked(viewer, page):
    viewer.mode = "every_step"
    env = VisualizedEnv(Watching(), grid=(2, 2), viewer=viewer)
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    jax.block_until_ready(jax.jit(jax.vmap(env.step))(state, jnp.ones((4, 1))))
    assert viewer.stats().frames == 1
    assert viewer.stats().bytes_moved < 1_000
    view = Probe(viewer).channels["train"]
    eventually(lambda: view.view is not None, "it is drawn")
    assert view.view.frame.finite.all()
