"""Splits meshes into connected pieces, and cuts them at walls."""

import numpy as np
import trimesh
from trimesh.intersections import slice_faces_plane
from trimesh.visual import ColorVisuals, TextureVisuals

from brax_viser.model.rotations import rotate


def pieces_of(corners: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """int [F]: the piece of each face, from 0; the faces of a piece are connected by edges.

    Args:
        corners: float [V, 3], m. Corners at the same place count as one.
        faces: int [F, 3].
    """
    digits = np.round(corners / max(float(np.abs(corners).max(initial=0.0)), 1e-9), 5)
    _, same = np.unique(digits, axis=0, return_inverse=True)
    adjacent = trimesh.graph.face_adjacency(same.reshape(-1)[faces])
    return trimesh.graph.connected_component_labels(adjacent, node_count=len(faces))


def boxes_of(triangles: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """float [2, P, 3], m: lowest and highest corners of each piece.

    Args:
        triangles: float [F, 3, 3], m.
        piece: int [F], as `pieces_of` returns it.
    """
    count = int(piece.max(initial=-1)) + 1
    low, high = np.full((2, count, 3), np.inf) * np.array([1, -1])[:, None, None]
    np.minimum.at(low, piece, triangles.min(axis=1))
    np.maximum.at(high, piece, triangles.max(axis=1))
    return np.stack([low, high])


def cut(
    mesh: trimesh.Trimesh, pos: np.ndarray, quat: np.ndarray, sides: np.ndarray
) -> trimesh.Trimesh | None:
    """The part of a mesh between four upright walls, open at the cuts; None if there is none.

    Args:
        mesh: has one colour or a texture. It is not changed.
        pos: float [3], m, position of the mesh.
        quat: float [4], wxyz, rotation of the mesh.
        sides: float [2, 2], m: lowest and highest x and y.
    """
    visual = mesh.visual
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    uv = visual.uv if isinstance(visual, TextureVisuals) else None
    back = quat * [1, -1, -1, -1]
    for axis in range(2):
        for side, sign in zip(sides[:, axis], (1.0, -1.0), strict=True):
            wall = np.zeros(3)
            wall[axis] = side
            inward = sign * np.eye(3)[axis]
            vertices, faces, uv = slice_faces_plane(
                vertices, faces, rotate(back, inward), rotate(back, wall - pos), uv
            )
    if not len(faces):
        return None
    part = trimesh.Trimesh(vertices, faces, process=False)
    if isinstance(visual, TextureVisuals):
        part.visual = TextureVisuals(uv=uv, material=visual.material)
    else:
        assert isinstance(visual, ColorVisuals)
        colours = np.tile(visual.vertex_colors[0], (len(vertices), 1))
        part.visual = ColorVisuals(part, vertex_colors=colours)
    return part
