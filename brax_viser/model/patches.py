"""Cuts ground that is not level to the cells: each has its own patch of it."""

from collections.abc import Sequence
from dataclasses import replace

import mujoco
import numpy as np

from brax_viser.model.pieces import cut
from brax_viser.model.rotations import multiply, rotate
from brax_viser.model.shapes import Shape


def cropped(
    model: mujoco.MjModel, shapes: Sequence[Shape], box: np.ndarray, *, whole: bool
) -> tuple[list[Shape], float | None]:
    """Returns the shapes, with static terrain cut to a box, and z in m of the terrain's lowest
    point in the box; None if there is none.

    Args:
        model: the robot.
        shapes: as `shapes.shapes_of` returns them.
        box: float [2, 2], m: lowest and highest x and y, in the robot's world frame.
        whole: whether the shapes are returned uncut.
    """
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    kept, lowest = [], []
    for shape in shapes:
        body = shape.body[0]
        if not shape.is_terrain or model.body_weldid[body] != 0:
            kept.append(shape)
            continue
        pos = data.xpos[body] + rotate(data.xquat[body], shape.pos[0])
        quat = multiply(data.xquat[body], shape.quat[0])
        patch = cut(shape.mesh, pos, quat, box)
        if patch is not None:
            lowest.append(float((pos + rotate(quat, np.asarray(patch.vertices)))[:, 2].min()))
        if whole:
            kept.append(shape)
        elif patch is not None:
            kept.append(replace(shape, mesh=patch))
    return kept, min(lowest, default=None)
