"""Reads the surfaces of flexes: cloth, and the outside of soft bodies.

A batch of instances can be rotated and scaled along its axes, but not bent. That is enough for a
surface with freely moving corners: the altitude on the longest side cuts any triangle into two
right triangles, and each of these is one and the same right triangle, rotated and scaled.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.surfaces import chosen_rgba, plain, sampled


@dataclass(frozen=True, eq=False)
class Surfaces:
    """The surfaces of one robot: F triangles of V vertices, which A points on bodies carry."""

    body: np.ndarray  # int [A], body ids
    pos: np.ndarray  # float32 [A, 3], m, in these bodies' frames
    # Per flex: the slice of its points, and float32 [its V, its A], how much each point moves each
    # vertex; None: the points are the vertices.
    parts: tuple[tuple[slice, np.ndarray | None], ...]
    faces: np.ndarray  # int [F, 3]
    rgb: np.ndarray  # uint8 [F, 3]
    outwards: np.ndarray  # float32 [V], m, how far the surface lies from its vertices


def surfaces_of(model: mujoco.MjModel, groups: Collection[int]) -> Surfaces | None:
    """The surfaces of all visible flexes in one; None if there are none.

    A soft body has its outer triangles, at the distance of its radius from the vertices. A cloth
    has its middle surface: its rim shows its thickness, see `rods.rods_of`. Each triangle has one
    colour, that of the texture at its middle.

    Args:
        model: is not changed.
        groups: of the flexes to draw.
    """
    body, pos, faces, rgb, outwards, parts = [], [], [], [], [], []
    vertex = point = 0  # the first ones of the next flex
    for flex in range(model.nflex):
        dim, count = int(model.flex_dim[flex]), int(model.flex_vertnum[flex])
        rgba = rgba_of_flex(model, flex)
        if dim < 2 or model.flex_group[flex] not in groups or rgba[3] <= 0:
            continue
        whose, where = points_of(model, flex)
        body.append(whose)
        pos.append(where)
        parts.append((slice(point, point + len(whose)), weights_of(model, flex)))
        own = _faces(model, flex)
        faces.append(vertex + own)
        rgb.append(_colours(model, flex, len(own), rgba))
        outwards.append(np.full(count, model.flex_radius[flex] if dim == 3 else 0.0))
        vertex, point = vertex + count, point + len(whose)
    if not faces:
        return None
    return Surfaces(
        np.concatenate(body),
        np.concatenate(pos).astype(np.float32),
        tuple(parts),
        np.concatenate(faces),
        np.concatenate(rgb),
        np.concatenate(outwards).astype(np.float32),
    )


def weights_of(model: mujoco.MjModel, flex: int) -> np.ndarray | None:
    """float32 [V, nodes]: how much each node moves each vertex; None if vertices have bodies.

    MuJoCo computes it, so any order of interpolation works: a vertex is a weighted sum of nodes.
    """
    if not model.flex_interp[flex]:
        return None
    start, count = model.flex_nodeadr[flex], model.flex_nodenum[flex]
    asked = copy.copy(model)
    asked.flex_centered[flex] = False  # else nodes are where their bodies are
    data = mujoco.MjData(asked)
    data.xpos[:] = 0.0
    data.xmat[:] = np.eye(3).ravel()
    vertices = slice(model.flex_vertadr[flex], model.flex_vertadr[flex] + model.flex_vertnum[flex])
    weights = np.zeros((model.flex_vertnum[flex], count), np.float32)
    for node in range(count):
        asked.flex_node[:] = 0.0
        asked.flex_node[start + node, 0] = 1.0
        mujoco.mj_flex(asked, data)
        weights[:, node] = data.flexvert_xpos[vertices, 0]
    return weights


def rim_of(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """int [E, 2], vertices of the edges that belong to only one triangle of a cloth."""
    faces = _faces(model, flex)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, times = np.unique(edges, axis=0, return_counts=True)
    return edges[times == 1]


def edges_of(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """int [E, 2], vertices of all edges, numbered within the flex."""
    start = model.flex_edgeadr[flex]
    return model.flex_edge[start : start + model.flex_edgenum[flex]]


def points_of(model: mujoco.MjModel, flex: int) -> tuple[np.ndarray, np.ndarray]:
    """int [A] and float [A, 3] in m: bodies, and the points on them that carry a flex: its
    vertices, or its nodes if it is interpolated. Follows `mj_flex`."""
    if not model.flex_interp[flex]:
        start = model.flex_vertadr[flex]
        rows = slice(start, start + model.flex_vertnum[flex])
        body, pos = model.flex_vertbodyid[rows], model.flex_vert[rows]
    else:
        start = model.flex_nodeadr[flex]
        rows = slice(start, start + model.flex_nodenum[flex])
        body, pos = model.flex_nodebodyid[rows], model.flex_node[rows]
    return body.copy(), np.zeros_like(pos) if model.flex_centered[flex] else pos.copy()


def _faces(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """int [F, 3], vertices within the flex: a cloth's triangles, or a soft body's outer ones."""
    if model.flex_dim[flex] == 2:
        start, count = model.flex_elemdataadr[flex], model.flex_elemnum[flex]
        return model.flex_elem[start : start + 3 * count].reshape(-1, 3)
    start, count = model.flex_shelldataadr[flex], model.flex_shellnum[flex]
    return model.flex_shell[start : start + 3 * count].reshape(-1, 3)


def rgba_of_flex(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """float32 [4], 0 to 1: its own colour if it was given one, else its material's, as for a
    geom. Textures are not included."""
    return chosen_rgba(model, model.flex_rgba[flex], _material(model, flex))


def colour_of_flex(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """uint8 [3]: the flex's one colour, its texture included."""
    return plain(model, rgba_of_flex(model, flex), _material(model, flex))[:3]


def _material(model: mujoco.MjModel, flex: int) -> int:
    """Id of a flex's material, -1 for none. Since MuJoCo 4 each element may have its own; then the
    first element's counts."""
    per_flex = len(model.flex_matid) == model.nflex
    return int(model.flex_matid[flex if per_flex else model.flex_elemadr[flex]])


def _colours(model: mujoco.MjModel, flex: int, count: int, rgba: np.ndarray) -> np.ndarray:
    """uint8 [F, 3]: the colour of each triangle."""
    material, start = _material(model, flex), int(model.flex_texcoordadr[flex])
    if model.flex_dim[flex] != 2 or start < 0:
        return np.tile(plain(model, rgba, material)[:3], (count, 1))
    # Texture coordinates belong to the corners of elements, not to the vertices.
    at = model.flex_elemdataadr[flex]
    corners = model.flex_elemtexcoord[at : at + 3 * count].reshape(-1, 3)
    uv = model.flex_texcoord[start + corners].mean(axis=1)
    return sampled(model, rgba, material, uv)[:, :3]
