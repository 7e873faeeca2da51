"""Makes a robot's meshes light enough for a file: merges vertices that are too close to be told
apart, and rounds what is finer than can be seen."""

from dataclasses import replace

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.visual import ColorVisuals, TextureVisuals

from brax_viser.model.shapes import Shape

MOST_BYTES = 1_150_000
"""Most bytes of the file for a robot's meshes, if they can be made that light."""

PLAIN_BYTES, OWN_BYTES = 8, 14
"""Approximate bytes of the file for a triangle: of a mesh of one colour; of a mesh with a texture
or several colours, which comes with normals."""

FINEST = 1e-3
"""Size of the smallest cell in which vertices are merged, as a share of the robot's size: less than
a pixel where the robot fills the window."""

COARSEST = 1e-2
FINER = 2**0.25
"""Factor from each size of cells to the next one that is tried."""

DIRECTIONS = 1.5
"""How finely normals are told apart, per unit: vertices on both sides of a crease stay apart."""

PATCHES = 64
"""How finely texture coordinates are told apart, per side: vertices on both sides of a seam stay
apart."""

TURN, TEXEL = 2.0**-7, 2.0**-13
"""Rounding steps of normals, about half a degree, and of texture coordinates, a sixteenth of a
pixel of the largest texture."""


def lighter(shapes: list[Shape], size: float) -> list[Shape]:
    """Returns shapes that take at most `MOST_BYTES`, or as little as `COARSEST` cells leave.

    Args:
        shapes: of a robot.
        size: of the robot, m.
    """
    cell, made = FINEST, shapes
    while _bytes_of(made) > MOST_BYTES and cell <= COARSEST:
        made = [_merged(shape, cell * size) for shape in shapes]
        cell *= FINER
    return made


def rounded(shapes: list[Shape], size: float) -> list[Shape]:
    """Returns the shapes with the numbers of meshes with a texture or several colours rounded, so
    that they compress to half the size. `lighter` has rounded other meshes where they are large.

    Args:
        shapes: of a robot.
        size: of the robot, m.
    """
    grain = grain_of(size)
    return [
        shape if shape.rgba is not None else replace(shape, mesh=_rounded(shape.mesh, grain))
        for shape in shapes
    ]


def grain_of(size: float) -> float:
    """Returns a power of two: places that differ by less look the same.

    Args:
        size: of the robot.
    """
    return _grain(FINEST * size)


def _bytes_of(shapes: list[Shape]) -> int:
    return sum(len(s.mesh.faces) * (OWN_BYTES if s.rgba is None else PLAIN_BYTES) for s in shapes)


def _merged(shape: Shape, cell: float) -> Shape:
    """Merges the vertices of a mesh within each cell, of a size in m, that look alike."""
    mesh = shape.mesh
    vertices, normals = (np.asarray(x, float) for x in (mesh.vertices, mesh.vertex_normals))
    alike = [np.round(vertices / cell), np.round(DIRECTIONS * normals)]
    if shape.rgba is None:
        alike.append(np.round(_uv_of(mesh) * PATCHES if _textured(mesh) else _colours_of(mesh)))
    _, group = np.unique(np.column_stack(alike).astype(np.int64), axis=0, return_inverse=True)
    group = group.ravel()
    faces = group[np.asarray(mesh.faces)]
    kept = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    used, faces = np.unique(faces[kept], return_inverse=True)
    if not len(used):  # all of it is in one cell
        return shape
    count = np.bincount(group)

    def mean(numbers: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(group, x) / count for x in numbers.T], axis=1)[used]

    faces = faces.reshape(-1, 3)
    middle = _nearest(mean(vertices), _grain(cell))
    if shape.rgba is not None:
        return replace(shape, mesh=trimesh.Trimesh(middle, faces, process=False))
    if _textured(mesh):
        visual = _with_uv(mesh, mean(_uv_of(mesh)))
    else:
        visual = ColorVisuals(vertex_colors=np.round(mean(_colours_of(mesh))).astype(np.uint8))
    own = {"vertex_normals": mean(normals), "visual": visual}
    return replace(shape, mesh=trimesh.Trimesh(middle, faces, **own, process=False))


def _rounded(mesh: trimesh.Trimesh, grain: float) -> trimesh.Trimesh:
    """Rounds the vertices of a mesh to multiples of `grain`, m, and their other attributes."""
    if _textured(mesh):
        visual = _with_uv(mesh, _nearest(_uv_of(mesh), TEXEL))
    else:
        visual = ColorVisuals(vertex_colors=_colours_of(mesh).astype(np.uint8))
    return trimesh.Trimesh(
        _nearest(np.asarray(mesh.vertices, float), grain),
        mesh.faces,
        vertex_normals=_nearest(np.asarray(mesh.vertex_normals, float), TURN),
        visual=visual,
        process=False,
    )


def _textured(mesh: trimesh.Trimesh) -> bool:
    return isinstance(mesh.visual, TextureVisuals)


def _uv_of(mesh: trimesh.Trimesh) -> NDArray[np.float64]:
    """Texture coordinates of the vertices, float [V, 2]."""
    assert isinstance(mesh.visual, TextureVisuals)
    return np.asarray(mesh.visual.uv, float)


def _with_uv(mesh: trimesh.Trimesh, uv: NDArray[np.float64]) -> TextureVisuals:
    assert isinstance(mesh.visual, TextureVisuals)
    return TextureVisuals(uv, mesh.visual.material)


def _colours_of(mesh: trimesh.Trimesh) -> np.ndarray:
    """Colours of the vertices, float [V, 4], 0 to 255."""
    assert isinstance(mesh.visual, ColorVisuals)
    return np.asarray(mesh.visual.vertex_colors, float)


def _nearest(numbers: np.ndarray, grain: float) -> np.ndarray:
    """Rounds numbers to multiples of `grain`: of few bits, they compress to half the size."""
    return np.round(numbers / grain) * grain


def _grain(cell: float) -> float:
    """A power of two, to which vertices are rounded that are merged within cells of this size."""
    return float(2.0 ** np.floor(np.log2(cell / 8)))
