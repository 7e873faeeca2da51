"""Places scenery: objects fixed to a world that do not fit into a cell, such as skies and halls.

Only the faces that look towards the robot are drawn, so that no wall stands between the robot and
a camera outside of the hall.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import trimesh

from brax_viser.model.pieces import boxes_of, cut, pieces_of
from brax_viser.model.rotations import multiply, rotate
from brax_viser.model.scope import within
from brax_viser.model.shapes import Shape
from brax_viser.records.grid import Grid


@dataclass(frozen=True, eq=False)
class Scenery:
    """One piece of scenery, placed in the world."""

    shape: Shape
    box: np.ndarray  # float [2, 3], m, around it


@dataclass(frozen=True, eq=False)
class Placed:
    """How a block draws scenery."""

    once: list[Shape]  # around the block's middle
    each: list[Shape]  # in every cell
    left_out: bool  # whether pieces were left out that would stand in other robots' cells


def scenery_of(
    model: mujoco.MjModel, shapes: Sequence[Shape], grid: Grid
) -> tuple[list[Shape], list[Scenery]]:
    """Splits a model's shapes into those that each cell has for itself, and scenery.

    A piece of scenery may have parts in a cell, such as a hall's pedestal under the robot: these
    belong to each cell.

    Args:
        model: the robot.
        shapes: as `shapes_of` returns them.
        grid: the cells.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    own, rest = [], []
    for shape in shapes:
        if not shape.is_scenery:
            own.append(shape)
            continue
        body = shape.body[0]
        pos = data.xpos[body] + rotate(data.xquat[body], shape.pos[0])
        quat = multiply(data.xquat[body], shape.quat[0])
        shape = replace(shape, body=np.zeros(1, int), pos=pos[None], quat=quat[None])
        corners = pos + rotate(quat, np.asarray(shape.mesh.vertices))
        triangles = corners[np.asarray(shape.mesh.faces)]
        box = np.stack([corners.min(axis=0), corners.max(axis=0)])
        # A piece within reach belongs to a room around the robot: none of it is the cell's own.
        near = np.zeros(len(triangles), bool)
        if not within(grid.reach, *box):
            near = _near(corners, np.asarray(shape.mesh.faces), grid)
        if near.any():
            own.append(replace(shape, mesh=_part(shape.mesh, near)))
        if near.all():
            continue
        towards = _faces(triangles, grid.reach.mean(axis=0)) & ~near
        mesh = _part(shape.mesh, towards if towards.any() else ~near)
        if not towards.any():  # a ball around the world, which would be invisible from inside
            mesh = mesh.copy()
            mesh.invert()
        rest.append(Scenery(replace(shape, mesh=mesh, casts_shadow=False), box))
    return own, rest


def place(scenery: Sequence[Scenery], grid: Grid, count: int, others: np.ndarray) -> Placed:
    """Decides where a block draws scenery, so that none stands in another robot's cell.

    Scenery around all cells is drawn once. Far-off scenery is drawn for each robot, where it is
    for that robot. Low scenery that would reach into neighbouring cells is cut: each cell has the
    part within it.

    Args:
        scenery: of the block's model.
        grid: the block's cells.
        count: how many cells are used.
        others: float [B, 2, 3], m: boxes of other blocks, as seen from this one.
    """
    once, each, left_out = [], [], False
    bounds, origins = grid.bounds(count), grid.origins(count)
    for piece in scenery:
        around = ((piece.box[0] <= bounds[0]) & (piece.box[1] >= bounds[1]))[:2].all()
        if not len(others) and (count == 1 or around):
            once.append(piece.shape)
        elif _is_under(piece.box, grid):
            each.extend(_tile(piece.shape, grid))
        elif in_others(piece.box, grid) or _in_blocks(piece.box, origins, others):
            left_out = True
        else:
            each.append(piece.shape)
    return Placed(once, each, left_out)


def _is_under(box: np.ndarray, grid: Grid) -> bool:
    """Whether a piece is low and reaches from a cell into others."""
    low, high = cell_of(grid)[:, :2]
    meets = ((box[0, :2] < high) & (box[1, :2] > low)).all()
    beyond = ((box[0, :2] < low) | (box[1, :2] > high)) & (np.array(grid.shape[:2]) > 1)
    return bool(meets and beyond.any() and box[1, 2] <= grid.reach[:, 2].mean())


def _tile(shape: Shape, grid: Grid) -> list[Shape]:
    """The part of a shape that lies in a cell."""
    mesh = cut(shape.mesh, shape.pos[0], shape.quat[0], cell_of(grid)[:, :2])
    return [] if mesh is None else [replace(shape, mesh=mesh)]


def _in_blocks(box: np.ndarray, origins: np.ndarray, others: np.ndarray) -> bool:
    """Whether a piece would overlap other blocks from any cell; see `place`."""
    low, high = (box[side] + origins for side in (0, 1))
    meets = (low[:, None] <= others[:, 1]) & (high[:, None] >= others[:, 0])
    return bool(meets.all(axis=-1).any())


def must_hold(box: np.ndarray, grid: Grid) -> bool:
    """Whether a cell must hold an obstacle of its robot, because it can't be drawn otherwise.

    Args:
        box: float [2, 3], m, around the obstacle.
        grid: the cells.
    """
    bounds = grid.bounds(grid.capacity)[:, :2]
    if grid.capacity == 1 or ((box[0, :2] <= bounds[0]) & (box[1, :2] >= bounds[1])).all():
        return False
    under = ((box[0] <= grid.reach[0]) & (box[1] >= grid.reach[1]))[:2].all()
    return bool(under) or in_others(box, grid)


def cell_of(grid: Grid) -> np.ndarray:
    """float [2, 3], m: the space of one cell, in its world frame: everything below, and a little
    more than the robot's reach above."""
    half = np.array(grid.spacing) / 2
    half[2] = 0.6 * np.ptp(grid.reach[:, 2])
    middle = grid.reach.mean(axis=0)
    low, high = middle - half, middle + half
    low[2] = -np.inf
    return np.stack([low, high])


def ground_of(scenery: Sequence[Scenery], grid: Grid) -> float | None:
    """z in m of the lowest floor that scenery has under the robot; None if there is none."""
    low, high = grid.reach
    height = float(high[2] - low[2])
    found = []
    for piece in scenery:
        under = ((piece.box[0] <= low) & (piece.box[1] >= high))[:2].all()
        # The bottom of a piece around the robot, or the top of a piece under it.
        top = float(piece.box[1, 2] if piece.box[1, 2] < high[2] else piece.box[0, 2])
        if under and low[2] - 3 * height < top < high[2]:
            found.append(top)
    return min(found, default=None)


def _near(corners: np.ndarray, faces: np.ndarray, grid: Grid) -> np.ndarray:
    """bool [F]: the faces of a piece that belong to each cell.

    These are the connected parts that lie within the cell or the robot's reach, and the small
    triangles of larger parts: those that rise from the ground there.
    """
    triangles, (low, high) = corners[faces], cell_of(grid)
    size = np.ptp(triangles, axis=1).max(axis=1)
    inside = ((triangles >= low) & (triangles <= high)).all(axis=(1, 2))
    piece = pieces_of(corners, faces)
    lows, highs = boxes_of(triangles, piece)
    whole = ((lows >= low) & (highs <= high)).all(axis=1) | within(grid.reach, lows, highs)
    middle = grid.reach.mean(axis=0)
    whole &= ~((lows < middle) & (highs > middle)).all(axis=1)  # not parts around the robot
    return whole[piece] | (inside & (size < (high - low)[:2].max()))


def in_others(box: np.ndarray, grid: Grid) -> bool:
    """Whether a piece of one cell would overlap other cells' robots, other than under them."""
    steps = [np.arange(1 - count, count) for count in grid.shape]
    offsets = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 3)
    offsets = offsets[offsets.any(axis=1)] * np.array(grid.spacing)
    low, high = grid.reach.copy()
    low[2] = (low[2] + high[2]) / 2
    meets = (box[0] + offsets <= high) & (box[1] + offsets >= low)
    return bool(meets.all(axis=1).any())


def _faces(triangles: np.ndarray, point: np.ndarray) -> np.ndarray:
    """bool [F]: whether the front of each triangle, float [F, 3, 3], is seen from a point."""
    one, two, three = np.moveaxis(triangles, 1, 0)
    normals = np.cross(two - one, three - one)
    return (normals * (point - triangles.mean(axis=1))).sum(axis=1) > 0


def _part(mesh: trimesh.Trimesh, faces: np.ndarray) -> trimesh.Trimesh:
    if faces.all():
        return mesh
    part = mesh.submesh([np.flatnonzero(faces)], append=True)
    assert isinstance(part, trimesh.Trimesh)
    return part
