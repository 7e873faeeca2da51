"""Tests rough ground: its height, and robots that are moved back into their cells on it."""

import mujoco
import numpy as np
import pytest

from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.rotations import rotate
from brax_viser.model.terrain import Terrain
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View
from brax_viser.scene.block import Block
from brax_viser.scene.cells import ELSEWHERE
from brax_viser.scene.look import Look
from tests.support import Probe

ROUGH = """
<mujoco>
  <asset>
    <hfield name="hills" nrow="40" ncol="60" size="6 4 .8 .1" elevation="HILLS"/>
  </asset>
  <worldbody>
    <geom name="hills" type="hfield" hfield="hills" pos="1 .5 .2" euler="0 0 20"/>
    <body name="ball" pos="0 0 2"><freejoint/><geom type="sphere" size=".1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def rough() -> mujoco.MjModel:
    x, y = np.meshgrid(np.linspace(0, 9, 60), np.linspace(0, 7, 40))
    heights = (0.5 + 0.5 * np.sin(x) * np.cos(1.3 * y)).ravel()
    xml = ROUGH.replace("HILLS", " ".join(f"{height:.4f}" for height in heights))
    return mujoco.MjModel.from_xml_string(xml)


def test_the_ground_is_as_high_as_mujocos_rays_find_it(rough):
    terrain = Terrain.of(rough)
    assert terrain is not None
    data = mujoco.MjData(rough)
    mujoco.mj_forward(rough, data)
    places = np.random.default_rng(0).uniform(-9, 9, (300, 2))
    expected = []
    for x, y in places:
        geom = np.zeros(1, np.int32)
        down = np.array([0.0, 0.0, -1.0])
        depth = mujoco.mj_ray(rough, data, np.array([x, y, 9.0]), down, None, 1, 1, geom, None)
        expected.append(9.0 - depth if depth >= 0 else np.nan)
    found, expected = terrain.height(places), np.array(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert 50 < np.isfinite(expected).sum() < 300
    assert np.ptp(expected[np.isfinite(expected)]) > 0.5
    np.testing.assert_allclose(found, expected, atol=0.02)  # MuJoCo's surface is made of triangles


def test_level_ground_has_no_terrain():
    xml = '<mujoco><worldbody><geom type="plane" size="1 1 1"/></worldbody></mujoco>'
    assert Terrain.of(mujoco.MjModel.from_xml_string(xml)) is None


def test_a_robot_moved_back_into_its_cell_stands_on_the_ground_there(rough, viewer):
    probe, terrain = Probe(viewer), Terrain.of(rough)
    assert terrain is not None
    start = np.array([0, 0, 2.0, 1, 0, 0, 0])
    grid = grid_of(rough, start, (2, 1), (2.0, 2.0))
    links = np.array([[0, 0, 2]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    model = Model.of(rough, grid, links, 0.02)
    place = np.array([[[0.3, 0.2, 0.0]], [[3.4, -1.9, 0.0]]], np.float32)
    place[:, 0, 2] = terrain.height(place[:, 0, :2]) + 0.1
    numbers = np.zeros(2, np.float32)
    frame = Frame(
        role="train",
        env_steps=1,
        env_index=np.arange(2, dtype=np.int32),
        num_envs=2,
        link_pos=place,
        link_rot=np.tile(links[1], (2, 1, 1)),
        reward=numbers,
        episode_return=numbers,
        episode_length=numbers,
        since_termination=np.full(2, NEVER),
        finite=np.ones(2, bool),
    )
    blocks: list[Block] = []

    def draw() -> None:
        blocks.append(Block(Probe(viewer).server, "/own", model, grid, 2, np.zeros(3), 1.0))
        blocks[0].draw(View(frame, place, frame.link_rot, np.zeros(2, bool), 0.0, 0.0), Look())

    probe.now(draw)
    own = blocks[0].pos[:, 0]
    np.testing.assert_allclose(own[0], place[0, 0], atol=1e-6)
    np.testing.assert_allclose(own[1, :2], [-0.6, 0.1], atol=1e-5)
    np.testing.assert_allclose(own[:, 2], terrain.height(own[:, :2]) + 0.1, atol=1e-5)
    np.testing.assert_allclose(blocks[0]._moved[1], own[1] - place[1, 0], atol=1e-5)
    assert blocks[0].notes() == [ELSEWHERE]
    place[1] = place[0]
    probe.now(
        lambda: blocks[0].draw(View(frame, place, frame.link_rot, numbers > 0, 0.0, 0.0), Look())
    )
    assert blocks[0].notes() == []


SLOPE = """
<mujoco><worldbody>
  <geom type="plane" size="0 0 1" pos="1 0 -2" euler="0 15 30"/>{more}
  <body name="ball" pos="1 0 -1.9"><freejoint/><geom type="sphere" size=".1"/></body>
</worldbody></mujoco>
"""


def drawn(model: mujoco.MjModel, cells: tuple[int, int]) -> Model:
    grid = grid_of(model, model.qpos0, cells, (1.0, 1.0))
    links = np.array([[1, 0, -1.9]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    return Model.of(model, grid, links, 0.02)


def test_each_cell_has_its_own_patch_of_a_slope_without_an_end():
    """A neighbour's slope, a cell further uphill, would hide the robot."""
    slope = mujoco.MjModel.from_xml_string(SLOPE.format(more=""))
    robot = drawn(slope, (8, 8))
    (patch,) = (shape for shape in robot.shapes if shape.is_terrain)
    corners = patch.pos[0] + rotate(patch.quat[0], np.asarray(patch.mesh.vertices))
    np.testing.assert_allclose([corners.min(0)[:2], corners.max(0)[:2]], [[0.5, -0.5], [1.5, 0.5]])
    assert robot.floor < corners[:, 2].min() and robot.roaming_link == 0
    terrain = robot.terrain
    assert terrain is not None
    np.testing.assert_allclose(terrain.height(corners[:, :2]), corners[:, 2], atol=1e-6)
    alone = drawn(slope, (1, 1))
    (whole,) = (shape for shape in alone.shapes if shape.is_terrain)
    assert np.ptp(whole.mesh.vertices, axis=0)[0] >= 20 and alone.roaming_link is None
    assert alone.floor == robot.floor


@pytest.mark.parametrize(
    "more",
    [
        '<geom type="plane" size="0 0 1" pos="0 0 -5"/>',
        '<geom type="plane" size="0 0 1" pos="1 0 -2" euler="0 -15 0"/>',
    ],
)
def test_a_slope_beside_other_ground_is_drawn_as_it_is(more):
    robot = drawn(mujoco.MjModel.from_xml_string(SLOPE.format(more=more)), (8, 8))
    assert robot.terrain is None and robot.roaming_link is None
    assert not [shape for shape in robot.shapes if shape.is_terrain]


def test_the_shared_floor_is_below_the_ground_in_each_cell(rough):
    robot = drawn(rough, (8, 8))
    (patch,) = (shape for shape in robot.shapes if shape.is_terrain)
    corners = patch.pos[0] + rotate(patch.quat[0], np.asarray(patch.mesh.vertices))
    assert np.ptp(corners[:, 2]) > 0.05 and robot.floor < corners[:, 2].min()
