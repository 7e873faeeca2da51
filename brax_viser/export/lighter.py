"""Makes a robot's meshes light enough for a file: merges what is too near to be told apart."""

from dataclasses import replace

import numpy as np
import trimesh

from brax_viser.model.shapes import Shape

MOST_TRIANGLES = 80_000
"""Of a robot, if its meshes can be made that light: about a megabyte of the file."""

FINEST = 1e-3
"""Size of the smallest cell in which vertices are merged, as a share of the robot's size: less than
a pixel where the robot fills the window."""

COARSEST = 1e-2

DIRECTIONS = 1.5
"""How finely normals are told apart, per unit: vertices on both sides of a crease stay apart."""


def lighter(shapes: list[Shape], size: float) -> list[Shape]:
    """Returns shapes of at most `MOST_TRIANGLES`, or of as few as `COARSEST` cells leave.

    Args:
        shapes: of a robot. Those with a texture or several colours stay as they are.
        size: of the robot, m.
    """
    cell, made = FINEST, shapes
    while _triangles(made) > MOST_TRIANGLES and cell <= COARSEST:
        made = [_merged(shape, cell * size) for shape in shapes]
        cell *= 2**0.5
    return made


def _triangles(shapes: list[Shape]) -> int:
    return sum(len(shape.mesh.faces) for shape in shapes)


def _merged(shape: Shape, cell: float) -> Shape:
    """Merges the vertices of a mesh within each cell, of a size in m, that look alike."""
    if shape.rgba is None:
        return shape
    vertices, normals = (np.asarray(x) for x in (shape.mesh.vertices, shape.mesh.vertex_normals))
    key = np.column_stack([np.round(vertices / cell), np.round(DIRECTIONS * normals)])
    _, group = np.unique(key.astype(np.int64), axis=0, return_inverse=True)
    group = group.ravel()
    faces = group[np.asarray(shape.mesh.faces)]
    kept = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    used, faces = np.unique(faces[kept], return_inverse=True)
    if not len(used):  # all of it is in one cell
        return shape
    count = np.bincount(group)
    middle = np.stack([np.bincount(group, x) / count for x in vertices.T], axis=1)[used]
    # Numbers of few bits: they compress to half the size.
    grain = 2.0 ** np.floor(np.log2(cell / 8))
    middle = np.round(middle / grain) * grain
    return replace(shape, mesh=trimesh.Trimesh(middle, faces.reshape(-1, 3), process=False))
