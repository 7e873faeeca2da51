"""The floor is darker where a robot stands on it, and nowhere else."""

import mujoco
import numpy as np
import pytest

from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.records.grid import Grid
from brax_viser.scene.handles import PARKED
from brax_viser.scene.shadows import MOST_ROBOTS, NEAR, ContactShadows

FLOOR = 0.2
"""z of the floor, m."""

STANDING = f"""
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1" pos="0 0 {FLOOR}"/>
    <body name="foot" pos="0 0 1"><freejoint/><geom type="box" size=".2 .1 .05"/></body>
    <body name="ball" pos="2 0 1"><freejoint/><geom type="sphere" size=".3"/></body>
  </worldbody>
</mujoco>
"""
LEVEL = (1.0, 0.0, 0.0, 0.0)
HIGH = 4.0


class Recorded:
    """Replaces the part of viser's server that spots use, and records its arguments."""

    def __init__(self):
        self.scene = self
        self.added = 0

    def add_batched_glb(self, path, data, **fields):
        self.added += 1
        for name, value in fields.items():
            setattr(self, name, value)
        return self


def shadows_of(
    xml: str, shape: tuple[int, int] = (1, 1)
) -> tuple[ContactShadows, Recorded, Grid, Model]:
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    grid = grid_of(model, data.qpos, shape, None)
    links = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
    robot, server = Model.of(model, grid, links, 0.02), Recorded()
    origins = grid.origins(grid.capacity).astype(np.float32)
    shadows = ContactShadows(server, "", robot, grid, origins, 1.0)  # type: ignore[arg-type]
    return shadows, server, grid, robot


def spots(foot, ball, turned=LEVEL, hidden: bool = False) -> list[tuple[np.ndarray, float]]:
    """Places, float [3] in m, and radii, m, of the spots under a foot and a ball, at float [3]."""
    shadows, server, *_ = shadows_of(STANDING)
    pos = np.array([[foot, ball]], np.float32)
    shadows.draw(pos, np.array([[turned, LEVEL]], np.float32), np.array([hidden]))
    places = np.asarray(server.batched_positions, float) + np.array(server.position)
    seen = np.asarray(server.batched_positions)[:, 2] != PARKED[2]
    return list(zip(places[seen], np.asarray(server.batched_scales)[seen], strict=True))


def near() -> float:
    return NEAR * float(np.ptp(shadows_of(STANDING)[2].reach, axis=0).max())


def test_a_spot_lies_on_the_floor_under_the_middle_of_a_flat_sole():
    ((place, radius),) = spots(foot=(1.0, 0.5, FLOOR + 0.05), ball=(0, 0, HIGH))
    np.testing.assert_allclose(place[:2], (1.0, 0.5), atol=1e-5)
    assert FLOOR < place[2] < FLOOR + 0.01 * HIGH
    assert 0.2 < radius < 0.6  # it sticks out from under the sole


def test_a_spot_lies_under_the_edge_on_which_a_foot_stands():
    half = np.pi / 8  # turned by 45 degrees about y: one edge is lowest
    low = 0.2 * np.sin(2 * half) + 0.05 * np.cos(2 * half)
    turned = (np.cos(half), 0.0, np.sin(half), 0.0)
    ((place, _),) = spots((0, 0, FLOOR + low), (0, 0, HIGH), turned)
    assert place[0] == pytest.approx(0.2 * np.cos(2 * half) - 0.05 * np.sin(2 * half), abs=0.03)
    assert place[1] == pytest.approx(0, abs=1e-5)


def test_a_spot_shrinks_as_a_body_rises_and_is_gone_once_it_is_high():
    radii = []
    for height in (0.0, 0.3, 0.6, 0.9):
        ((_, radius),) = spots((0, 0, HIGH), (2, 0, FLOOR + 0.3 + height * near()))
        radii.append(radius)
    assert radii == sorted(radii, reverse=True) and radii[-1] < 0.5 * radii[0]
    assert not spots((0, 0, HIGH), (2, 0, FLOOR + 0.3 + 1.05 * near()))


def test_a_body_deep_in_the_floor_or_of_a_hidden_robot_has_no_spot():
    assert not spots((0, 0, HIGH), (2, 0, FLOOR + 0.3 - 1.05 * near()))
    assert not spots((0, 0, FLOOR + 0.05), (2, 0, FLOOR + 0.3), hidden=True)
    assert len(spots((0, 0, FLOOR + 0.05), (2, 0, FLOOR + 0.3))) == 2


def test_each_robot_of_a_grid_has_its_spots_in_its_own_cell():
    shadows, server, grid, _ = shadows_of(STANDING, (3, 2))
    pos = np.tile(np.array([[[0, 0, FLOOR + 0.05], [2, 0, HIGH]]], np.float32), (6, 1, 1))
    rot = np.tile(np.array(LEVEL, np.float32), (6, 2, 1))
    shadows.draw(pos, rot, np.arange(6) == 4)
    seen = server.batched_positions[server.batched_positions[:, 2] != PARKED[2]]
    np.testing.assert_allclose(seen[:, :2], np.delete(grid.origins(6)[:, :2], 4, 0), atol=1e-5)


def test_bodies_far_below_the_floor_leave_the_spots_to_others():
    parked = "".join(
        f'<body name="b{i}" pos="{i} 3 1"><freejoint/><geom type="sphere" size=".1"/></body>'
        for i in range(5)
    )
    shadows, server, *_ = shadows_of(STANDING.replace("</worldbody>", parked + "</worldbody>"))
    pos = np.array([[[0, 0, FLOOR + 0.05], [2, 0, HIGH], *[[0, 0, -9]] * 5]], np.float32)
    shadows.draw(pos, np.tile(np.array(LEVEL, np.float32), (1, 7, 1)), np.zeros(1, bool))
    seen = server.batched_positions[:, 2] != PARKED[2]
    assert seen.sum() == 1 and np.abs(server.batched_positions[seen][0, :2]).max() < 1e-5


def test_a_flat_shape_has_a_spot_like_others():
    plate = """<asset><mesh name="plate" inertia="shell"
        vertex="-1 -1 0  1 -1 0  1 1 0  -1 1 0" face="0 1 2  0 2 3"/></asset><worldbody>"""
    flat = STANDING.replace("<worldbody>", plate).replace(
        'type="box" size=".2 .1 .05"',
        'type="mesh" mesh="plate" mass="1" contype="0" conaffinity="0"',
    )
    shadows, server, *_ = shadows_of(flat)
    pos = np.array([[[0, 0, FLOOR], [2, 0, HIGH]]], np.float32)
    shadows.draw(pos, np.tile(np.array(LEVEL, np.float32), (1, 2, 1)), np.zeros(1, bool))
    assert np.isfinite(server.batched_positions).all() and np.isfinite(server.batched_scales).all()
    assert (server.batched_positions[:, 2] != PARKED[2]).sum() == 1


def test_markers_of_goals_have_no_spots():
    moved = '<body name="goal" mocap="true" pos="0 2 1"><geom type="sphere" size=".1"/></body>'
    clear = """<body name="clear" pos="0 -2 1"><freejoint/>
        <geom type="sphere" size=".1" rgba="1 0 0 .4"/></body>"""
    shadows, server, *_ = shadows_of(
        STANDING.replace("</worldbody>", f"{moved}{clear}</worldbody>")
    )
    pos = np.array([[[0, 0, HIGH], [2, 0, HIGH], [0, 2, FLOOR], [0, -2, FLOOR]]], np.float32)
    shadows.draw(pos, np.tile(np.array(LEVEL, np.float32), (1, 4, 1)), np.zeros(1, bool))
    assert (server.batched_positions[:, 2] == PARKED[2]).all()


def test_rough_ground_no_floor_and_many_robots_have_no_spots_and_send_nothing():
    floorless = STANDING.replace('<geom type="plane"', '<site type="box"')
    hills = STANDING.replace(
        "<worldbody>",
        '<asset><hfield name="h" nrow="3" ncol="3" size="9 9 .4 .1" elevation="0 1 0 1 0 1 0 1 0"/>'
        '</asset><worldbody><geom type="hfield" hfield="h"/>',
    )
    side = int(MOST_ROBOTS**0.5)
    for xml, shape in ((hills, (1, 1)), (floorless, (1, 1)), (STANDING, (side, side + 1))):
        shadows, server, grid, robot = shadows_of(xml, shape)
        count = grid.capacity
        pos, rot = (np.tile(a[None], (count, 1, 1)) for a in (robot.init_pos, robot.init_rot))
        assert shadows.draw(pos, rot, np.zeros(count, bool)) == 0
        assert not server.added
    assert shadows_of(STANDING, (side, side))[1].added
