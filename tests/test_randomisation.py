"""Tests domain randomisation, whose wrappers step past ours and make every robot different."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs
from brax.envs.wrappers.training import DomainRandomizationVmapWrapper

from brax_viser import VisualizedEnv
from brax_viser.model.shapes import shapes_of
from brax_viser.model.surfaces import linear
from brax_viser.model.variants import Variants
from envs.cartpole import CartPole
from tests.conftest import eventually
from tests.support import Probe, source_of
from tests.test_training import SMALL, bare, train

POLE, KNOB = 4, 5
"""Ids of the cart-pole's geoms: a capsule, and a sphere on top of it."""


def randomise(sys: Any, rng: jax.Array) -> tuple[Any, Any]:
    """Randomises knob and pole sizes, the knob's colour and the cart's mass, per environment."""

    @jax.vmap
    def one(rng):
        keys = jax.random.split(rng, 4)
        size = sys.geom_size.at[KNOB, 0].mul(jax.random.uniform(keys[0], (), minval=0.5, maxval=2))
        size = size.at[POLE, 0].mul(jax.random.uniform(keys[1], (), minval=0.5, maxval=2))
        rgba = sys.geom_rgba.at[KNOB, :3].set(jax.random.uniform(keys[2], (3,)))
        mass = sys.link.inertia.mass.at[0].mul(jax.random.uniform(keys[3], (), minval=1, maxval=2))
        return {"geom_size": size, "geom_rgba": rgba, "link.inertia.mass": mass}

    changed = one(rng)
    axes = jax.tree.map(lambda _: None, sys).tree_replace({name: 0 for name in changed})
    return sys.tree_replace(changed), axes


def randomised(env: envs.Env, num_envs: int) -> envs.Env:
    keys = jax.random.split(jax.random.PRNGKey(1), num_envs)
    return envs.training.wrap(env, 50, randomization_fn=functools.partial(randomise, rng=keys))


def rollout(env: envs.Env, num_envs: int, steps: int) -> jax.Array:
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))
    for _ in range(steps):
        state = step(state, jnp.ones((num_envs, 1)))
    return jax.block_until_ready(state.pipeline_state.q)


def test_states_arrive_and_model_differences_are_sent_once_and_drawn(viewer, page):
    viewer.mode = "every_step"
    env = VisualizedEnv(CartPole(), grid=(2, 2), viewer=viewer)
    models = []
    push_model = source_of(env).push_model
    source_of(env).push_model = lambda origin, shard, rows: (
        models.append(np.array(rows)) or push_model(origin, shard, rows)
    )
    wrapped = randomised(env, 8)
    seen = rollout(wrapped, 8, 20)
    assert viewer.stats().frames == 20, "the wrapper's steps are not seen"
    assert len(models) == 1, "the models were sent more than once"
    np.testing.assert_allclose(seen, rollout(randomised(CartPole(), 8), 8, 20), rtol=1e-5)

    sys_v = wrapped.env.env._sys_v  # AutoReset, Episode, domain randomisation
    channel = Probe(viewer).channels["train"]
    eventually(lambda: len(channel.variants.of_env) == 4, "the models have come")
    for i in range(4):
        own = channel.variants.of_env[i]
        assert set(own) == {"geom_size", "geom_rgba", "link.inertia.mass"}
        np.testing.assert_array_equal(own["geom_size"], sys_v.geom_size[i])
        np.testing.assert_array_equal(own["geom_rgba"], sys_v.geom_rgba[i])
    eventually(lambda: channel.variants.apart == {POLE, KNOB}, "what differs is known")

    def drawn() -> bool:  # by a block that was rebuilt for them
        block = Probe(viewer).scene.blocks.get("train")
        return block is not None and block.frame is not None and block._varied > 0

    eventually(drawn, "they are drawn")
    block = Probe(viewer).scene.blocks["train"]
    (part,) = [p for p in block.robots._parts if p.shape.geom == KNOB]
    usual = env.sys.mj_model.geom_size[KNOB, 0]
    scales = np.asarray(part.handle.batched_scales)
    np.testing.assert_allclose(scales[:, 0], sys_v.geom_size[:4, KNOB, 0] / usual, rtol=1e-5)
    colours = np.asarray(part.handle.batched_colors)
    expected = linear((255 * sys_v.geom_rgba[:4, KNOB, :3]).astype(np.uint8))
    np.testing.assert_allclose(colours.astype(int), expected, atol=2.01)
    # The mass of the whole robot: Brax's second link is the pole.
    masses = np.asarray(sys_v.link.inertia.mass)
    words = channel.variants.in_words(2)
    assert words == f"mass {100 * masses[2].sum() / env.sys.link.inertia.mass.sum():.0f} %"

    viewer.select([6, 1])
    state = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), 8))
    jax.block_until_ready(jax.jit(wrapped.step)(state, jnp.ones((8, 1))))
    eventually(lambda: 6 in channel.variants.of_env, "another one's model comes when it is drawn")
    np.testing.assert_array_equal(channel.variants.of_env[6]["geom_size"], sys_v.geom_size[6])


def test_the_unwrapped_env_keeps_its_class_and_changes_to_it_are_stepped(viewer):
    base = CartPole()
    env = VisualizedEnv(base, viewer=viewer)
    twin = env.unwrapped
    assert isinstance(twin, CartPole) and twin is env.unwrapped and twin.unwrapped is twin
    heavy = base.sys.tree_replace({"link.inertia.mass": 10 * base.sys.link.inertia.mass})
    light, twin.sys = twin.sys, heavy
    assert base.sys is heavy and env.sys is heavy
    twin.sys = light


def test_states_also_arrive_from_around_the_randomising_wrapper(viewer, page):
    viewer.mode = "every_step"
    keys = jax.random.split(jax.random.PRNGKey(1), 6)
    inner = DomainRandomizationVmapWrapper(CartPole(), functools.partial(randomise, rng=keys))
    rollout(VisualizedEnv(inner, grid=(2, 2), viewer=viewer), 6, 5)
    assert viewer.stats().frames == 5
    assert viewer.stats().streams["train"].num_envs == 6


@pytest.mark.full
def test_parameters_under_stock_ppo_differ_by_rounding_only(viewer, page):
    """XLA moves loop invariants differently when a callback is in the loop."""
    viewer.mode = "every_step"
    settings = dict(SMALL, run_evals=False, num_timesteps=1_000, randomization_fn=_other_masses)
    watched = train(VisualizedEnv(bare(), grid=(2, 2), viewer=viewer), settings)
    assert viewer.stats().frames == viewer.stats().env_steps > 50
    channel = Probe(viewer).channels["train"]
    eventually(lambda: len(channel.variants.of_env) == 4, "the models have come")
    for ours, stock in zip(watched, train(bare(), settings), strict=True):
        np.testing.assert_allclose(ours, stock, rtol=1e-4, atol=1e-5)


def _other_masses(sys: Any, rng: jax.Array) -> tuple[Any, Any]:
    mass = jax.vmap(lambda key: sys.link.inertia.mass * jax.random.uniform(key, (), minval=0.9))(
        rng
    )
    axes = jax.tree.map(lambda _: None, sys).tree_replace({"link.inertia.mass": 0})
    return sys.tree_replace({"link.inertia.mass": mass}), axes


XML = """
<mujoco><worldbody><body><freejoint/>
  <geom type="sphere" size="0.1"/>
  <geom type="capsule" size="0.05 0.2" pos="1 0 0" euler="0 90 0"/>
  <geom type="box" size="0.1 0.2 0.3" pos="2 0 0" rgba="1 0 0 1"/>
  <geom type="cylinder" size="0.1 0.2" pos="3 0 0"/>
  <geom type="ellipsoid" size="0.1 0.2 0.3" pos="4 0 0"/>
</body></worldbody></mujoco>
"""


@pytest.mark.parametrize("geom", range(5))
def test_a_geom_drawn_in_another_size_is_as_large_as_mujocos_own(geom):
    """Compares each scaled mesh with the mesh of a model that has the other size."""
    model = mujoco.MjModel.from_xml_string(XML)
    other = mujoco.MjModel.from_xml_string(XML)
    other.geom_size[geom] *= (1.5, 0.5, 2.0)
    other.geom_pos[geom] += (0.0, 0.3, -0.1)
    variants = Variants(model)
    assert variants.update({3: {"geom_size": other.geom_size, "geom_pos": other.geom_pos}})
    assert variants.apart == {geom}

    def bounds(points: list[np.ndarray]) -> np.ndarray:
        stacked = np.concatenate(points)
        return np.stack([stacked.min(axis=0), stacked.max(axis=0)])

    drawn, shapes = [], shapes_of(model, variants.apart)
    for shape, places in zip(shapes, variants.places(shapes, [3, 7], 2), strict=True):
        if places is not None:
            drawn.append(
                _placed(shape.mesh.vertices * places.scale[0], places.pos[0], places.quat[0])
            )
            np.testing.assert_allclose(places.scale[1], 1.0)  # its model is not known
    # A body's geoms are otherwise merged; all but this one are the same in both models.
    wanted = [
        _placed(s.mesh.vertices, s.pos[0], s.quat[0])
        for s in shapes_of(other, {geom})
        if s.geom == geom
    ]
    np.testing.assert_allclose(bounds(drawn), bounds(wanted), atol=2e-3)


def _placed(vertices: np.ndarray, pos: np.ndarray, quat: np.ndarray) -> np.ndarray:
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, np.asarray(quat, np.float64))
    return vertices @ turn.reshape(3, 3).T + pos
