"""Cells of robots whose world has more than a floor: where all is drawn, and how far apart."""

import mujoco
import numpy as np
import pytest
import trimesh
import viser
from trimesh.visual import ColorVisuals, TextureVisuals

from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.rotations import rotate
from brax_viser.model.scenery import in_others
from brax_viser.model.scenery import place as placed_in
from brax_viser.model.shapes import Parts, visible_geoms
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View
from brax_viser.scene.block import NO_BLOCKS, Block
from brax_viser.scene.cells import FREE
from brax_viser.scene.look import Look
from brax_viser.scene.scene import Scene

FLOOR = '<geom type="plane" size="40 40 1"/>'
LEGS = "".join(
    f'<body pos="{x} 0 0"><joint name="leg{x}" axis="0 1 0" range="-40 40"/>'
    '<geom type="capsule" fromto="0 0 0 0 0 -.3" size=".03"/></body>'
    for x in (-0.25, 0.25)
)
DOG = (
    f'<body name="dog" pos="0 0 .35"><freejoint/><geom type="box" size=".3 .12 .08"/>{LEGS}</body>'
)
MOTORS = '<actuator><motor joint="leg-0.25"/><motor joint="leg0.25"/></actuator>'
CUBE = '<body name="cube" pos="0.4 0 .04"><freejoint/><geom type="box" size=".04 .04 .04"/></body>'
ARM = (
    '<body name="base"><geom type="cylinder" size=".08 .05" pos="0 0 .05"/>'
    '<body pos="0 0 .1"><joint name="arm" axis="0 1 0" range="-100 100"/>'
    '<geom type="capsule" fromto="0 0 0 0 0 .4" size=".05"/></body></body>'
)
BALL = '<body name="ball" pos="1 0 .1"><freejoint/><geom size=".1"/></body>'
WALKER = (
    '<body pos="0 0 .4"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>'
    '<joint type="hinge" axis="0 1 0"/><geom type="capsule" fromto="-.2 0 0 .2 0 0" size=".05"/>'
    "</body>"
)
SLIDER = (
    '<body name="cart"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 1 0"/>'
    '<joint type="hinge" axis="0 0 1"/><geom type="box" size=".2 .2 .1" pos="0 0 .1"/></body>'
)
MAZE = "".join(
    f'<geom type="box" pos="{4 * x - 4} {4 * y - 4} .5" size="2 2 .5"/>'
    for y, row in enumerate(("#####", "#...#", "###.#", "#...#", "#####"))
    for x, wall in enumerate(row)
    if wall == "#"
)
UNSEEN = 'contype="0" conaffinity="0"'
SKY = f'<geom type="sphere" size="100" {UNSEEN}/>'


def hall(half: float, height: float, more: str = "") -> str:
    """Returns four walls and a ceiling, `half` m from the middle."""
    walls = "".join(
        f'<geom type="box" pos="{x * half} {y * half} {height / 2}" {more} '
        f'size="{abs(y) * half + 0.1} {abs(x) * half + 0.1} {height / 2}"/>'
        for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
    return f'{walls}<geom type="box" pos="0 0 {height}" size="{half} {half} .1" {more}/>'


def of(world: str, motors: str = MOTORS, assets: str = "") -> mujoco.MjModel:
    xml = f"<mujoco>{assets}<worldbody>{world}</worldbody>{motors}</mujoco>"
    return mujoco.MjModel.from_xml_string(xml)


def poses(model: mujoco.MjModel, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)


class Stage:
    """A scene with one block of robots of a model."""

    def __init__(self, server, model, cells=(2, 2), spacing=None):
        self.mujoco = model
        self.grid = grid_of(model, model.qpos0, cells, spacing)
        self.model = Model.of(model, self.grid, poses(model, model.qpos0), 0.02)
        self.scene = Scene(server)
        self.scene.show("train", self.model, self.grid)
        self.scene.arrange(("train",))

    @property
    def block(self) -> Block:
        return self.scene.blocks["train"]

    def draw(self, *, body: str | int, to: tuple[float, ...]) -> np.ndarray:
        """Draws a body, moved to the same place in all cells. Returns MuJoCo's link positions."""
        qpos, count = self.mujoco.qpos0.copy(), self.grid.capacity
        start = self.mujoco.jnt_qposadr[self.mujoco.body(body).jntadr[0]]
        qpos[start : start + len(to)] = to
        pos, rot = (np.repeat(part[None], count, axis=0) for part in poses(self.mujoco, qpos))
        zeros = np.zeros(count, np.float32)
        frame = Frame(
            role="train",
            env_steps=1,
            env_index=np.arange(count, dtype=np.int32),
            num_envs=count,
            link_pos=pos,
            link_rot=rot,
            reward=zeros,
            episode_return=zeros,
            episode_length=zeros,
            since_termination=np.full(count, NEVER),
            finite=np.ones(count, bool),
        )
        view = View(frame, pos, rot, np.zeros(count, bool), 0.0, 0.0)
        self.scene.draw({"train": view}, {"train": Look()})
        return pos


@pytest.fixture(scope="module")
def server():
    server = viser.ViserServer(port=0, verbose=False)
    yield server
    server.stop()


GOAL = 'pos="3 0 .01" size=".4 .01" type="cylinder" rgba="0 1 0 .5"'
ARM_MOTOR = '<actuator><motor joint="arm"/></actuator>'
BESIDE = {
    "arm and cube": (ARM + CUBE, ARM_MOTOR, "cube", (0.8, 0.0)),
    "arm and cube, far out": (ARM + CUBE, ARM_MOTOR, "cube", (2.4, 0.1)),
    "cube and arm": (CUBE + ARM, ARM_MOTOR, "cube", (2.4, 0.1)),
    "maze": (DOG + MAZE, MOTORS, "dog", (13.0, 12.0)),
    "goal": (DOG + f"<geom {GOAL} {UNSEEN}/>", MOTORS, "dog", (3.0, 0.0)),
    "goal that is a site": (DOG + f"<site {GOAL}/>", MOTORS, "dog", (3.0, 0.0)),
    "goal on a body": (DOG + f"<body><geom {GOAL} {UNSEEN}/></body>", MOTORS, "dog", (3.0, 0.0)),
    "goal that is moved": (
        DOG + f'<body mocap="true"><geom {GOAL} {UNSEEN}/></body>',
        MOTORS,
        "dog",
        (3.0, 0.0),
    ),
    "ramp": (
        DOG + '<geom type="box" size="1 1 .1" pos="2 0 0" euler="0 20 0"/>',
        MOTORS,
        "dog",
        (3.0, 1.0),
    ),
    "ball": (DOG + BALL, MOTORS, "ball", (5.0, 1.0)),
    "robot with a ball": (DOG + BALL, MOTORS, "dog", (5.0, 1.0)),
    "walker and wall": (
        WALKER + '<geom type="box" size=".1 1 1" pos="4 0 1"/>',
        "",
        1,
        (3.5,),
    ),
    "box for a floor": (
        DOG + '<geom type="box" size="50 50 1" pos="0 0 -1"/>',
        MOTORS,
        "dog",
        (9.0, 1.0),
    ),
    "sky": (DOG + SKY, MOTORS, "dog", (9.0, 1.0)),
    "base on slides, goal": (SLIDER + f"<geom {GOAL} {UNSEEN}/>", "", "cart", (5.0, 4.0)),
    "base on slides, target that is moved": (
        SLIDER + f'<body mocap="true"><geom {GOAL} {UNSEEN}/></body>',
        "",
        "cart",
        (5.0, 4.0),
    ),
    "base on slides, goal on slides": (
        SLIDER + SLIDER.replace('"cart"', '"goal" pos="1 0 0"'),
        "",
        "cart",
        (-5.0, 4.0),
    ),
    "two arms and cubes": (
        ARM
        + ARM.replace('"base"', '"other" pos="1 0 0"').replace('"arm"', '"second"')
        + CUBE
        + CUBE.replace('"cube" pos="0.4', '"more" pos="0.6'),
        ARM_MOTOR,
        "more",
        (3.0, 3.0),
    ),
    "ball before the robot": (BALL + DOG, MOTORS, "ball", (-7.0, 2.0)),
    "robot between two cubes": (
        CUBE + DOG + CUBE.replace('"cube"', '"more"'),
        MOTORS,
        "more",
        (7.0, 2.0),
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_robots_with_scenery_or_objects_are_drawn_where_mujoco_has_them(server, name):
    world, motors, body, to = BESIDE[name]
    stage = Stage(server, of(FLOOR + world, motors))
    links = stage.draw(body=body, to=to)
    np.testing.assert_array_equal(stage.block.pos, links)
    assert not stage.block._moved.any()
    # The handles agree: each instance is where MuJoCo's kinematics puts its geom.
    data = mujoco.MjData(stage.mujoco)
    shapes, origins = stage.model.shapes, stage.grid.origins(4)
    for shape, handle in zip(shapes, stage.block.robots.handles, strict=True):
        shown = np.reshape(handle.batched_positions, (4, -1, 3)) - origins[:, None]
        for place, (of_body, pos) in enumerate(zip(shape.body, shape.pos, strict=True)):
            expected = (
                pos
                if of_body == 0
                else links[0, of_body - 1] + rotate(poses_of(stage, data, body, to)[of_body], pos)
            )
            np.testing.assert_allclose(shown[:, place], np.tile(expected, (4, 1)), atol=1e-5)


def poses_of(stage: Stage, data: mujoco.MjData, body: str | int, to: tuple[float, ...]):
    data.qpos[:] = stage.mujoco.qpos0
    start = stage.mujoco.jnt_qposadr[stage.mujoco.body(body).jntadr[0]]
    data.qpos[start : start + len(to)] = to
    mujoco.mj_kinematics(stage.mujoco, data)
    return data.xquat


@pytest.mark.parametrize(
    "world",
    [
        FLOOR + DOG,
        DOG,
        '<geom type="plane" size="0 0 1"/><geom type="plane" size="0 0 1"/>' + DOG,
        FLOOR + DOG + '<geom type="box" size="9 .1 1" pos="0 3 1" rgba="0 0 0 0"/>',
        FLOOR + DOG + '<geom type="box" size="9 .1 1" pos="0 3 1" group="3"/>',
        FLOOR + DOG + BALL.replace("size", 'rgba="0 0 0 0" size'),
    ],
)
def test_a_robot_alone_on_the_floor_is_brought_back_to_its_cell(server, world):
    stage = Stage(server, of(world))
    links = stage.draw(body="dog", to=(3.2 * stage.grid.spacing[0], 0.0))
    away = stage.block.pos - links
    np.testing.assert_allclose(away[..., 0], (FREE - 3.2) * stage.grid.spacing[0], atol=1e-4)
    assert not away[..., 1:].any() and stage.block.notes() == []


def test_a_robot_beside_hidden_walls_is_brought_back_only_while_they_are_hidden(server):
    hidden = '<geom type="box" size="9 .1 1" pos="0 3 1" group="3"/>'
    model = of(FLOOR + DOG + hidden)
    grid = grid_of(model, model.qpos0, (2, 2), None)
    links, all_groups = poses(model, model.qpos0), Parts(frozenset(range(6)))
    assert Model.of(model, grid, links, 0.02).roaming_link == 0
    assert Model.of(model, grid, links, 0.02, wanted=all_groups).roaming_link is None


def reach(world: str, motors: str = MOTORS, assets: str = "") -> np.ndarray:
    model = of(world, motors, assets)
    return grid_of(model, model.qpos0, (3, 3), None).reach


def parked(at: str, kind: str) -> str:
    box = f'<geom type="box" size=".3 .3 .3" {UNSEEN if kind == "unseen" else ""}/>'
    joint = "<freejoint/>" if kind == "free" else ""
    return f'<body pos="{at}" mocap="{str(kind == "mocap").lower()}">{joint}{box}</body>'


CRATE = (
    '<asset><mesh name="crate" vertex="-9 -9 0 9 -9 0 9 9 0 -9 9 0 -9 -9 5 9 -9 5 9 9 5 -9 9 5"/>'
    '<material name="clear" rgba="1 1 1 0"/></asset>'
)
FAR = {
    "parked": parked("100 0 .3", "free") + parked("100 3 .3", "free"),
    "parked below": parked("0 0 -50", "free"),
    "parked and fixed": parked("0 -100 .3", "fixed"),
    "parked mocap": parked("100 100 .3", "mocap"),
    "sky": SKY,
    "sky that is solid": '<geom type="sphere" size="100"/>',
    "hall": hall(50, 12),
    "hall to look at": hall(6, 3, UNSEEN),
    "hall of one mesh": f'<geom type="mesh" mesh="crate" {UNSEEN}/>',
    "transparent": '<geom type="box" size="60 60 60" rgba="1 1 1 0"/>',
    "of a transparent material": '<geom type="box" size="60 60 60" material="clear"/>',
    "hidden group": '<geom type="box" size="60 60 60" group="3"/>',
    "box for a floor": '<geom type="box" size="50 50 1" pos="0 0 -1"/>',
    "mountains": f'<geom type="box" size="100 1 20" pos="0 150 0" {UNSEEN}/>',
}


@pytest.mark.parametrize("robot", ["dog", "arm"])
@pytest.mark.parametrize("name", FAR)
def test_distant_and_surrounding_geoms_do_not_count_for_the_reach(robot, name):
    own, motors = (DOG, MOTORS) if robot == "dog" else (ARM + CUBE, ARM_MOTOR)
    found = reach(FLOOR + own + FAR[name], motors, CRATE)
    np.testing.assert_allclose(found, reach(FLOOR + own, motors, CRATE), atol=1e-9)


def test_geoms_that_a_robot_can_touch_count_for_the_reach():
    np.testing.assert_allclose(reach(FLOOR + DOG + MAZE)[:, :2], [[-6, -6], [14, 14]])
    # In a hall only the maze counts; where hidden walls stand in for a mesh, the mesh counts.
    np.testing.assert_allclose(
        reach(FLOOR + DOG + MAZE + hall(100, 20))[:, :2], [[-6, -6], [14, 14]]
    )
    hidden = MAZE.replace("/>", ' group="3"/>')
    seen = f'<geom type="mesh" mesh="crate" {UNSEEN} pos="4 4 0"/>'
    found = reach(FLOOR + DOG + hidden + seen, assets=CRATE)
    np.testing.assert_allclose(found[:, :2], [[-5, -5], [13, 13]], atol=1.01)
    table = '<geom type="box" size=".6 .6 .02" pos="0 0 -.02"/>'
    legs = "".join(
        f'<geom type="box" size=".03 .03 .3" pos="{x} {y} -.34"/>'
        for x in (-0.5, 0.5)
        for y in (-0.5, 0.5)
    )
    found = reach(ARM + CUBE + table + legs, ARM_MOTOR)
    np.testing.assert_allclose(found[0], [-0.6, -0.6, -0.64], atol=1e-6)
    goal = reach(FLOOR + DOG + f"<geom {GOAL} {UNSEEN}/>")
    assert goal[1, 0] == pytest.approx(3.4)
    other = DOG.replace('"dog" pos="0', '"other" pos="5').replace("leg", "limb")
    motors = MOTORS.replace("</", '<motor joint="limb0.25"/></')
    two = reach(FLOOR + DOG + other, motors)
    assert two[1, 0] > 5.2


LONG_ARM = ARM.replace('0 .4"', '0 .7"')
TABLE = '<geom name="table" type="box" size="1.5 1.5 .02" pos="0 0 -.02"/>'
CORRIDOR = "".join(
    f'<geom type="box" size="10 .05 .5" pos="9 {side * 0.55} .5"/>' for side in (-1, 1)
)
STAIRS = "".join(
    f'<geom type="box" size=".15 1 {0.05 * n}" pos="{0.7 + 0.3 * n} 0 {0.05 * n}"/>'
    for n in range(1, 21)
)
HIGH_DOG = DOG.replace("0 0 .35", "0 0 1.35")
OPEN = hall(6, 1.0).rsplit("<geom", 1)[0]
MET = {
    "table": (LONG_ARM + CUBE + TABLE, ARM_MOTOR),
    "corner of a table": (LONG_ARM + CUBE + TABLE.replace('"0 0', '"1.3 1.3'), ARM_MOTOR),
    "corridor": (FLOOR + DOG + CORRIDOR, MOTORS),
    "corridor and walker": (FLOOR + WALKER + CORRIDOR, ""),
    "stairs": (FLOOR + DOG + STAIRS, MOTORS),
    "ramp": (
        FLOOR + DOG + '<geom type="box" size="9 2 .1" pos="9 0 0" euler="0 -20 0"/>',
        MOTORS,
    ),
    "bridge": (FLOOR + HIGH_DOG + '<geom type="box" size="15 1 .5" pos="12 0 .5"/>', MOTORS),
    "platform": (FLOOR + HIGH_DOG + '<geom type="box" size="5 5 .5" pos="0 0 .5"/>', MOTORS),
    "arena": (FLOOR + DOG + OPEN, MOTORS),
    "arena with a roof": (FLOOR + DOG + hall(6, 3), MOTORS),
    "arena of one mesh": (
        FLOOR + DOG + hall(8.9, 4, 'group="3"') + f'<geom type="mesh" mesh="crate" {UNSEEN}/>',
        MOTORS,
    ),
}


@pytest.mark.parametrize("cells", [(3, 3), (12, 12)])
@pytest.mark.parametrize("name", MET)
def test_geoms_that_a_robot_can_run_into_are_drawn_in_each_cell(name, cells):
    world, motors = MET[name]
    model = of(world, motors, CRATE)
    grid = grid_of(model, model.qpos0, cells, None)
    robot = Model.of(model, grid, poses(model, model.qpos0), 0.02)
    placed = placed_in(robot.scenery, grid, grid.capacity, NO_BLOCKS)
    assert not placed.left_out
    # Shapes that are drawn once are so wide that no robot gets to their edge.
    low, high = grid.bounds(grid.capacity)[:, :2]
    for shape in placed.once:
        corners = shape.pos[0] + rotate(shape.quat[0], np.asarray(shape.mesh.vertices))
        assert (corners.min(axis=0)[:2] <= low).all() and (corners.max(axis=0)[:2] >= high).all()
        assert min(*(low - corners.min(axis=0)[:2]), *(corners.max(axis=0)[:2] - high)) > 0.5
    # Shapes that are drawn per cell do not stand among the robots of other cells.
    for shape in placed.each:
        corners = shape.pos[0] + rotate(shape.quat[0], np.asarray(shape.mesh.vertices))
        box = np.stack([corners.min(axis=0), corners.max(axis=0)])
        assert not in_others(box, grid)
        over = (box[0] <= grid.reach[0]) & (box[1] >= grid.reach[1])
        assert not over[:2].all() or (np.ptp(box, axis=0) <= grid.spacing)[:2].all(), (
            "one lies in another"
        )


def test_each_cell_holds_the_table_that_is_part_of_a_halls_mesh(server):
    parts = [
        trimesh.creation.box(bounds=[(-3, -3, 0), (3, 3, 4)]),
        trimesh.creation.cylinder(radius=0.7, height=0.1, sections=24),
        trimesh.creation.box(bounds=[(-2.5, -2.5, 0), (-2.3, -2.3, 1)]),
    ]
    parts[1].apply_translation([0, 0, 0.5])
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    corners = np.concatenate([part.vertices for part in parts]).ravel()
    faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
    vertex, face = (" ".join(map(str, values)) for values in (corners, faces.ravel()))
    asset = f'<asset><mesh name="all" vertex="{vertex}" face="{face}" inertia="shell"/></asset>'
    arm = ARM.replace('"base"', '"base" pos="0 0 .8"')
    model = of(f'{FLOOR}<geom type="mesh" mesh="all" {UNSEEN}/>{arm}', ARM_MOTOR, asset)
    for spacing in (None, (0.6, 0.6)):
        stage = Stage(server, model, (3, 3), spacing)
        own = [shape.mesh for shape in stage.model.shapes if shape.is_scenery]
        assert len(own) == 1
        np.testing.assert_allclose(sorted(own[0].extents), [0.1, 1.4, 1.4], atol=0.05)
        assert spacing is not None or 1.4 < stage.grid.spacing[0] < 2.5


def test_each_maze_of_a_grid_stays_in_its_cell(server):
    stage = Stage(server, of(FLOOR + DOG + MAZE), (2, 1))
    assert stage.grid.spacing[0] >= 20 and stage.block.notes() == []


@pytest.mark.parametrize("cells", [(1, 1), (3, 3)])
@pytest.mark.parametrize("name", ["sky", "hall", "hall to look at", "hall of one mesh", "room"])
def test_no_scenery_stands_between_a_camera_and_the_robots(server, cells, name):
    world = FAR[name] if name in FAR else hall(2, 2)  # the robot can touch it, so it counts
    stage = Stage(server, of(FLOOR + DOG + world, assets=CRATE), cells)
    block = stage.block
    if name == "room":
        assert stage.grid.spacing[0] > 4 and not stage.block._left_out
    handles = [handle for robots in block._scenery for handle in robots.handles]
    drawn = [part.shape for robots in block._scenery for part in robots._parts]
    # Everything around the robots is drawn, unless it would stand among them.
    assert len(drawn) >= (1 if name != "hall to look at" or cells == (1, 1) else 0)
    assert any("grid=(1, 1)" in note for note in block.notes()) == block._left_out
    centre = stage.grid.reach.mean(axis=0)
    for shape, handle in zip(drawn, handles, strict=True):
        corners = shape.pos[0] + rotate(shape.quat[0], np.asarray(shape.mesh.vertices))
        mesh = trimesh.Trimesh(corners, shape.mesh.faces, process=False)
        outward = ((mesh.triangles_center - centre) * mesh.face_normals).sum(axis=1)
        assert (outward < 1e-6).all(), "its back is turned on a camera outside"
        assert not shape.casts_shadow
        assert len(handle.batched_positions) in (1, block.count)
        # The middle of a robot's cell is not in a wall of another's.
        for origin in np.reshape(handle.batched_positions, (-1, 3)) - shape.pos[0]:
            box = corners.min(axis=0) + origin, corners.max(axis=0) + origin
            for cell in stage.grid.origins(block.count) + centre:
                within = ((cell > box[0]) & (cell < box[1])).all()
                assert not within or np.ptp(box, axis=0).min() > 3, "only what is around all"


CHECKS = (
    '<asset><texture name="t" type="2d" builtin="checker" width="16" height="16" rgb1="1 0 0"/>'
    '<material name="checks" texture="t"/></asset>'
)


@pytest.mark.parametrize("look", ['rgba="1 0 0 1"', 'material="checks"'])
@pytest.mark.parametrize("turned", [0, 30])
def test_ground_that_ends_among_the_cells_is_split_into_one_part_per_cell(look, turned):
    slab = f'<geom type="box" size="15 15 .5" pos="0 0 -.5" euler="0 0 {turned}" {look}/>'
    model = of(LONG_ARM + slab, ARM_MOTOR, CHECKS)
    grid = grid_of(model, model.qpos0, (64, 64), None)
    robot = Model.of(model, grid, poses(model, model.qpos0), 0.02)
    placed = placed_in(robot.scenery, grid, grid.capacity, NO_BLOCKS)
    assert grid.spacing[0] < 3 and not placed.once and not placed.left_out
    (tile,) = placed.each
    corners = tile.pos[0] + rotate(tile.quat[0], np.asarray(tile.mesh.vertices))
    np.testing.assert_allclose(np.ptp(corners, axis=0)[:2], grid.spacing[:2], atol=1e-6)
    np.testing.assert_allclose(corners[:, 2], 0, atol=1e-6)
    (whole,) = (piece.shape.mesh for piece in robot.scenery)
    own, all_of_it = tile.mesh.visual, whole.visual
    if "rgba" in look:
        assert isinstance(own, ColorVisuals)
        assert (own.vertex_colors == [255, 0, 0, 255]).all()
    else:  # the tile's share of the texture is its share of the slab
        assert isinstance(own, TextureVisuals) and isinstance(all_of_it, TextureVisuals)
        share = np.ptp(own.uv, axis=0) / np.ptp(all_of_it.uv, axis=0)
        sizes = [np.ptp(mesh.vertices, axis=0)[:2] for mesh in (tile.mesh, whole)]
        np.testing.assert_allclose(np.sort(share), np.sort(sizes[0] / sizes[1]), rtol=1e-3)


@pytest.mark.parametrize("cells", [(3, 3), (12, 12)])
def test_an_arm_at_the_edge_of_a_large_table_is_drawn_with_that_edge(cells):
    world = LONG_ARM + '<geom type="box" size="15 15 .5" pos="14.8 0 -.5" rgba="1 0 0 1"/>'
    model = of(world, ARM_MOTOR)
    grid = grid_of(model, model.qpos0, cells, None)
    robot = Model.of(model, grid, poses(model, model.qpos0), 0.02)
    placed = placed_in(robot.scenery, grid, grid.capacity, NO_BLOCKS)
    assert not placed.once and not placed.left_out
    drawn = [*placed.each, *(shape for shape in robot.shapes if shape.is_scenery)]
    (corners,) = (shape.pos[0] + np.asarray(shape.mesh.vertices) for shape in drawn)
    assert np.ptp(corners[:, 0]) < grid.spacing[0] < 3
    assert corners[:, 0].min() == pytest.approx(-0.2)
    assert corners[:, 0].max() > grid.reach[1, 0] - 1e-6


def test_each_of_two_blocks_has_its_own_walls_and_ground(server):
    ground = '<geom type="box" size="52 52 1" pos="0 0 -1"/>'
    stage = Stage(server, of(DOG + ground + hall(50, 10)), (3, 3))
    alone = [len(robots.handles) for robots in stage.block._scenery]
    assert alone == [2, 4]  # ground and roof, and walls
    stage.scene.show("eval", stage.model, stage.grid)
    stage.scene.arrange(("train", "eval"))
    for block in stage.scene.blocks.values():
        assert [len(robots.handles) for robots in block._scenery] == [0, 6]
        drawn = [part.shape for robots in block._scenery for part in robots._parts]
        corners = [np.asarray(shape.mesh.vertices) + shape.pos[0] for shape in drawn]
        assert sum(np.abs(part[:, :2]).max() > 49 for part in corners) >= 4  # walls
        tiles = [part for part in corners if np.abs(part[:, 2]).max() < 0.1]
        assert len(tiles) == 1
        np.testing.assert_allclose(np.ptp(tiles[0], axis=0)[:2], stage.grid.spacing[:2], atol=1e-6)
    stage.scene.arrange(("train",))
    assert [len(robots.handles) for robots in stage.block._scenery] == alone


@pytest.mark.parametrize("half", [20, 50, 200])
def test_the_far_walls_of_a_hall_are_in_the_cameras_range_and_stand_on_its_floor(server, half):
    stage = Stage(server, of(FLOOR + DOG + hall(half, 10)), (1, 1))
    assert not stage.block._left_out
    corners = np.concatenate(
        [
            shape.pos[0] + rotate(shape.quat[0], np.asarray(shape.mesh.vertices))
            for robots in stage.block._scenery
            for shape in (part.shape for part in robots._parts)
        ]
    )
    np.testing.assert_allclose(np.abs(corners[:, :2]).max(axis=0), half, atol=0.2)
    camera, scale = server.initial_camera, stage.scene.scale
    away = np.linalg.norm(corners * scale - camera.position, axis=1).max()
    assert camera.far > away
    # The floor reaches them: they do not stand in mid-air.
    floor = server.scene._handle_from_node_name["/scene/floor"]
    assert floor.fade_distance > np.sqrt(2) * half * scale


def test_each_robot_has_its_own_pedestal_from_a_halls_mesh(server):
    vertices, faces = [], []
    for low, high in (((-3, -3, 0), (3, 3, 4)), ((-0.15, -0.15, 0), (0.15, 0.15, 0.2))):
        box = trimesh.creation.box(bounds=[low, high])
        faces.append(np.asarray(box.faces) + 8 * len(vertices))
        vertices.append(np.asarray(box.vertices))
    text = " ".join(str(number) for number in np.concatenate(vertices).ravel())
    corners = " ".join(str(index) for index in np.concatenate(faces).ravel())
    assets = f'<asset><mesh name="all" vertex="{text}" face="{corners}" inertia="shell"/></asset>'
    arm = ARM.replace('"base"', '"base" pos="0 0 .2"')
    world = f'<geom type="mesh" mesh="all" {UNSEEN}/>{arm}'
    stage = Stage(server, of(FLOOR + world, ARM_MOTOR, assets), (8, 8))
    own = [shape for shape in stage.model.shapes if shape.is_scenery]
    assert [shape.mesh.extents.max() for shape in own] == [pytest.approx(0.3)]
    assert stage.block._left_out and not stage.block._scenery[0].handles


def test_the_page_says_that_a_cell_is_too_small_or_that_a_robot_left_it(server):
    stage = Stage(server, of(FLOOR + DOG + MAZE), (2, 2), (4.0, 4.0))
    assert ["20.0 by 20.0 m" in note for note in stage.block.notes()] == [True]
    stage = Stage(server, of(FLOOR + DOG + BALL), (2, 2))
    assert stage.block.notes() == []
    stage.draw(body="dog", to=(9.0, 0.0))
    assert ["left its cell" in note for note in stage.block.notes()] == [True]


def test_distant_geoms_are_in_the_cameras_range(server):
    stage = Stage(server, of(FLOOR + DOG + FAR["parked"]), (2, 2))
    assert server.initial_camera.far > 110 * stage.scene.scale
    shown = np.concatenate([handle.batched_positions for handle in stage.block.robots.handles])
    assert shown[:, 0].max() > 99  # drawn in its true place, not moved nearer
    assert len(visible_geoms(stage.mujoco)) == 5


def test_a_marker_listed_before_the_robot_is_not_mistaken_for_it(server):
    marker = f'<body mocap="true" pos="1 0 0"><geom size=".1" {UNSEEN}/></body>'
    stage = Stage(server, of(FLOOR + marker + DOG))
    links = stage.draw(body="dog", to=(2.0, 1.0))
    place = stage.block.place_of(0)
    assert place is not None
    np.testing.assert_allclose(place - stage.grid.origins(4)[0], links[0, 1], atol=1e-6)
