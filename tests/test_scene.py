"""Compares poses on screen, read back from viser's handles, with those of the trainer."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import viser
from brax import envs

from brax_viser import VisualizedEnv
from brax_viser.device.adapters import adapter_for
from brax_viser.model.framing import framing_camera
from brax_viser.model.grid import grid_of
from brax_viser.model.rotations import multiply, rotate
from brax_viser.model.shapes import floor_height, floor_of, shapes_of, visible_geoms
from brax_viser.scene.handles import PARKED
from brax_viser.scene.stage import SHADOW_DEPTH, scene_scale
from tests.conftest import eventually
from tests.support import Probe, source_of

CELLS = (3, 2)


def block(viewer):
    """Returns the robots of the training."""
    return Probe(viewer).scene.blocks["train"]


def drawn(viewer) -> None:
    """Waits until the drawing in progress is complete."""
    Probe(viewer).now(lambda: None)


def expected_geoms(model: mujoco.MjModel, x_pos: np.ndarray, x_rot: np.ndarray) -> np.ndarray:
    """Returns the centres of visible geoms, [G, 3] m, by MuJoCo's maths; link i is body i + 1."""
    centres = []
    for geom in visible_geoms(model):
        body = model.geom_bodyid[geom]
        if body == 0:
            centres.append(model.geom_pos[geom])
            continue
        offset = np.zeros(3)
        mujoco.mju_rotVecQuat(offset, model.geom_pos[geom], x_rot[body - 1].astype(np.float64))
        centres.append(x_pos[body - 1] + offset)
    return np.array(centres)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("ant", "mjx", marks=pytest.mark.full),
        ("humanoid", "positional"),
        ("reacher", "generalized"),
    ],
)
def test_poses_on_screen_are_the_trainers(viewer, page, name, backend):
    viewer.mode = "every_step"
    # Resets put some ants further from the model's place than a robot may be in its cell.
    probe = Probe(viewer)
    probe.enqueue(lambda: probe.commands.look(in_cells=False))
    bare = envs.get_environment(name, backend=backend)
    env = VisualizedEnv(bare, grid=CELLS, viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 9))
    for _ in range(3):
        state = step(state, jnp.full((9, env.action_size), 0.3))
    jax.block_until_ready(state)
    x = jax.device_get(state.pipeline_state.x)

    scene, model = block(viewer), bare.sys.mj_model
    eventually(lambda: np.array_equal(scene.pos, x.pos[:6]), "the newest step is on screen")
    drawn(viewer)
    assert viewer.stats().frames == 3
    cells = source_of(env).grid.origins(6)
    for env_index in range(6):
        # Each handle's instances are [env, occurrence].
        shown = [
            np.reshape(h.batched_positions, (6, -1, 3))[env_index] for h in scene.robots.handles
        ]
        shown = np.concatenate(shown) - cells[env_index]
        expected = expected_geoms(model, x.pos[env_index], x.rot[env_index])
        # A body's geoms are one mesh, placed by the first: every instance is at some geom's
        # centre, and every moving body has its instances.
        distance = np.linalg.norm(shown[:, None] - expected, axis=-1)
        assert distance.min(axis=1).max() < 1e-5
        with_geoms = {int(model.geom_bodyid[g]) for g in visible_geoms(model)}
        assert len(shown) == len(with_geoms)
    # Envs move apart from each other, so a mix-up of rows would fail.
    assert np.ptp(x.pos[:6], axis=0).max() > 1e-3


def test_orientations_on_screen_are_the_trainers(viewer, page):
    viewer.mode = "every_step"
    env = VisualizedEnv(
        envs.get_environment("reacher", backend="spring"), grid=(2, 1), viewer=viewer
    )
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 2))
    state = jax.jit(jax.vmap(env.step))(state, jnp.ones((2, 2)))
    x = jax.device_get(state.pipeline_state.x)
    eventually(lambda: np.array_equal(block(viewer).rot, x.rot), "the step is on screen")
    drawn(viewer)
    for part in block(viewer).robots._parts:
        shape, handle = part.shape, part.handle
        for k, rot in enumerate(np.reshape(handle.batched_wxyzs, (2, -1, 4))):
            for m, body in enumerate(shape.body):
                base = x.rot[k, body - 1] if body else np.array([1.0, 0, 0, 0])
                product = np.zeros(4)
                mujoco.mju_mulQuat(product, base.astype(np.float64), shape.quat[m])
                np.testing.assert_allclose(rot[m], product, atol=1e-6)


def test_quaternion_maths_agrees_with_mujoco():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 50, 4))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    vectors = random.normal(size=(50, 3))
    for i in range(50):
        product, rotated = np.zeros(4), np.zeros(3)
        mujoco.mju_mulQuat(product, left[i], right[i])
        mujoco.mju_rotVecQuat(rotated, vectors[i], left[i])
        np.testing.assert_allclose(multiply(left, right)[i], product, atol=1e-12)
        np.testing.assert_allclose(rotate(left, vectors)[i], rotated, atol=1e-12)


@pytest.fixture(scope="module")
def adapters():
    names = [n for n in sorted(envs._envs) if n != "fast"]
    return {n: adapter_for(envs.get_environment(n, backend="generalized")) for n in names}


def test_every_visible_geom_of_every_brax_env_is_drawn_true_to_size(adapters):
    for name, adapter in adapters.items():
        model = adapter.mj_model
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        drawn = []
        for shape in shapes_of(model):
            for body, pos, quat in zip(shape.body, shape.pos, shape.quat, strict=True):
                local = shape.mesh.vertices @ _matrix(quat).T + pos
                drawn.append(local @ data.xmat[body].reshape(3, 3).T + data.xpos[body])
        drawn = np.concatenate(drawn)
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        for geom in visible_geoms(model):
            rotation = data.geom_xmat[geom].reshape(3, 3)
            centre = data.geom_xpos[geom] + rotation @ model.geom_aabb[geom, :3]
            extent = np.abs(rotation) @ model.geom_aabb[geom, 3:]
            low, high = np.minimum(low, centre - extent), np.maximum(high, centre + extent)
        size = np.linalg.norm(high - low)
        # The model's boxes hold the drawn vertices; boxes of slanted capsules also hold some air.
        assert (drawn.min(axis=0) >= low - 1e-6).all(), name
        assert (drawn.max(axis=0) <= high + 1e-6).all(), name
        assert np.abs(np.ptp(drawn, axis=0) - (high - low)).max() < 0.12 * size, name


def _matrix(quat: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def test_bodies_with_equal_shapes_share_one_handle(adapters):
    shapes = shapes_of(adapters["ant"].mj_model)
    places = sum(len(shape.body) for shape in shapes)
    assert len(shapes) < places == 9
    legs = shapes_of(adapters["humanoid"].mj_model)
    assert len(legs) < sum(len(shape.body) for shape in legs)


def test_there_is_one_floor_and_static_geometry_in_every_cell(adapters):
    ant, reacher = adapters["ant"].mj_model, adapters["reacher"].mj_model
    assert floor_of(ant) is not None and floor_of(ant) not in visible_geoms(ant)
    arena = [shape for shape in shapes_of(reacher) if not shape.body.any()]
    assert sum(len(shape.body) for shape in arena) == 1  # its walls, merged, once per cell
    pendulum = adapters["inverted_pendulum"]
    assert floor_of(pendulum.mj_model) is None
    reach = grid_of(pendulum.mj_model, pendulum.init_qpos, (1, 1), None).reach
    assert floor_height(pendulum.mj_model, reach) < reach[0, 2]


def test_models_are_read_and_never_written(adapters):
    for adapter in adapters.values():
        before = mujoco.mj_saveModel
        buffer = np.zeros(mujoco.mj_sizeModel(adapter.mj_model), np.uint8)
        before(adapter.mj_model, None, buffer)
        shapes_of(adapter.mj_model)
        grid_of(adapter.mj_model, adapter.init_qpos, (2, 2), None)
        after = np.zeros_like(buffer)
        before(adapter.mj_model, None, after)
        np.testing.assert_array_equal(buffer, after)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (4, 2, 1), (3, 2, 4), (64, 64)])
def test_cells_are_centred_and_apart_by_the_spacing(adapters, shape):
    adapter = adapters["ant"]
    grid = grid_of(adapter.mj_model, adapter.init_qpos, shape, (4, 5, 2))
    origins = grid.origins(grid.capacity)
    assert len(np.unique(origins, axis=0)) == grid.capacity == np.prod(shape)
    np.testing.assert_allclose(origins[:, :2].mean(axis=0), 0, atol=1e-4)
    assert origins[:, 2].min() == 0
    sides = (*shape, 1)[:3]
    np.testing.assert_allclose(np.ptp(origins, axis=0), (np.array(sides) - 1) * [4, 5, 2])


def test_derived_spacing_keeps_neighbours_apart(adapters):
    for name, adapter in adapters.items():
        grid = grid_of(adapter.mj_model, adapter.init_qpos, (2, 2), None)
        assert (np.array(grid.spacing) >= np.ptp(grid.reach, axis=0)).all(), name
        assert max(grid.spacing) < 3 * np.ptp(grid.reach, axis=0).max(), name


@pytest.mark.parametrize("name", ["ant", "humanoid", "inverted_pendulum", "pusher"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (2, 2, 3)])
def test_the_first_camera_frames_the_whole_grid(adapters, name, shape):
    adapter = adapters[name]
    grid = grid_of(adapter.mj_model, adapter.init_qpos, shape, None)
    bounds = grid.bounds(grid.capacity)
    camera = framing_camera(bounds, aspect=1.25)
    forward = camera.look_at - camera.position
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    corners = np.array([[bounds[i][a] for a, i in enumerate(c)] for c in np.ndindex(2, 2, 2)])
    depth = (corners - camera.position) @ forward
    high = np.abs((corners - camera.position) @ up) / depth / np.tan(camera.fov / 2)
    wide = np.abs((corners - camera.position) @ right) / depth / np.tan(camera.fov / 2) / 1.25
    assert (depth > 0).all()
    fullest = max(high.max(), wide.max())
    assert 0.8 < fullest <= 1.0  # all in view, and no farther away than necessary


def test_scenes_of_all_sizes_are_scaled_to_the_depth_of_shadows():
    for size in (0.003, 0.15, 1.3, 12.0, 300.0):
        bounds = size * np.array([[-0.5, -0.5, 0.0], [0.5, 0.5, 1.0]])
        scale = scene_scale(bounds)
        camera = framing_camera(scale * bounds)
        corners = scale * np.array([[bounds[i][a] for a, i in enumerate(c)] for c in CORNERS])
        farthest = np.linalg.norm(corners - camera.position, axis=1).max()
        assert 0.8 * SHADOW_DEPTH < farthest <= SHADOW_DEPTH
        assert (scale > 1) == (size < 4)
    assert np.isfinite(scene_scale(np.zeros((2, 3))))


def test_shadows_fall_on_fixed_bodies_and_not_on_moving_ones():
    model = mujoco.MjModel.from_xml_string(
        """
        <mujoco>
          <worldbody>
            <geom type="box" size="1 1 .1" rgba="1 0 0 1"/>
            <body name="table" pos="0 0 1"><geom type="box" size=".5 .5 .1" rgba="0 1 0 1"/></body>
            <body name="ball" pos="0 0 2"><freejoint/><geom size=".1" rgba="0 0 1 1"/></body>
          </worldbody>
        </mujoco>
        """
    )
    lit = {tuple(shape.rgba[:3] > 0): shape.receives_shadow for shape in shapes_of(model)}
    assert lit == {
        (True, False, False): True,
        (False, True, False): True,
        (False, False, True): False,
    }


CORNERS = tuple(np.ndindex(2, 2, 2))


def test_cells_without_an_env_have_no_robot(viewer, page):
    from tests.sample import SwiftCartPole

    env = VisualizedEnv(SwiftCartPole(), grid=(8, 8), viewer=viewer)
    assert len(viewer.stats().drawn_envs) == 64
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 5))
    state = step(state, jnp.zeros((5, 1)))
    eventually(lambda: viewer.stats().drawn_envs == (0, 1, 2, 3, 4), "five robots are drawn")
    for part in block(viewer).robots._parts:
        shape, handle = part.shape, part.handle
        assert len(handle.batched_positions) == 5 * len(shape.body)


def test_chosen_envs_take_the_cells_in_order(viewer, page):
    from tests.sample import SwiftCartPole

    viewer.mode = "every_step"
    env = VisualizedEnv(SwiftCartPole(), grid=(3, 1), viewer=viewer)
    viewer.select([6, 1])
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 9))
    state = step(state, jnp.zeros((9, 1)))
    x = jax.device_get(state.pipeline_state.x.pos)
    eventually(lambda: np.array_equal(block(viewer).pos[:2], x[[6, 1]]), "6 and 1 are drawn")
    drawn(viewer)
    assert viewer.stats().drawn_envs == (6, 1)
    # The third cell stays empty.
    for part in block(viewer).robots._parts:
        shown = np.reshape(part.handle.batched_positions, (3, -1, 3))
        assert (shown[2] == PARKED).all() and (shown[:2, :, 2] != PARKED[2]).all()


def test_one_viser_handle_per_distinct_geometry(viewer):
    env = VisualizedEnv(envs.get_environment("ant", backend="spring"), grid=(8, 8), viewer=viewer)
    handles = block(viewer).robots.handles
    assert len(handles) == len(shapes_of(env.sys.mj_model))
    assert all(isinstance(h, viser.BatchedMeshHandle | viser.BatchedGlbHandle) for h in handles)
