"""The surfaces of flexes: cloth, and what is around soft bodies.

A batch of instances can be turned and stretched along its axes, not bent. That is enough for a
surface whose corners go where they like: the altitude upon its longest side cuts any triangle into
two with a right angle, and each of these is one and the same right triangle, turned and stretched.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.surfaces import chosen_rgba, plain, sampled


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Those of one robot: F triangles between V vertices, which A points of bodies carry."""

    body: np.ndarray  # int [A], body ids
    pos: np.ndarray  # float32 [A, 3], m, in these bodies' frames
    # Of each flex, which of the points are its, and float32 [its V, its A], how far each of them
    # moves a vertex; None: each is one.
    parts: tuple[tuple[slice, np.ndarray | None], ...]
    faces: np.ndarray  # int [F, 3]
    rgb: np.ndarray  # uint8 [F, 3]
    outwards: np.ndarray  # float32 [V], m, how far the surface lies from its vertices


def surfaces_of(model: mujoco.MjModel, groups: Collection[int]) -> Surfaces | None:
    """The surfaces of all visible flexes in one; None if there are none.

    Of a soft body what is outside, as far from its vertices as its radius says. Of a cloth its
    middle: its thickness is its rim, see `rods.rods_of`. Each triangle has one colour, which is
    that of a texture's in its middle.

    Args:
        model: is not changed.
        groups: of which flexes.
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
    """float32 [V, nodes]: how far each node moves each vertex; None where vertices have bodies.

    Asked of MuJoCo itself, whatever the order of its interpolation: a vertex is a sum of nodes.
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
    """int [E, 2], vertices of the edges that only one triangle of a cloth has."""
    faces = _faces(model, flex)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, times = np.unique(edges, axis=0, return_counts=True)
    return edges[times == 1]


def edges_of(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """int [E, 2], vertices within the flex."""
    start = model.flex_edgeadr[flex]
    return model.flex_edge[start : start + model.flex_edgenum[flex]]


def points_of(model: mujoco.MjModel, flex: int) -> tuple[np.ndarray, np.ndarray]:
    """int [A] and float [A, 3] in m: bodies, and the points of them that carry a flex: its
    vertices, or, where it is interpolated, its nodes. As `mj_flex` has it."""
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
    """int [F, 3], vertices within the flex: of a cloth all, of a soft body those outside."""
    if model.flex_dim[flex] == 2:
        start, count = model.flex_elemdataadr[flex], model.flex_elemnum[flex]
        return model.flex_elem[start : start + 3 * count].reshape(-1, 3)
    start, count = model.flex_shelldataadr[flex], model.flex_shellnum[flex]
    return model.flex_shell[start : start + 3 * count].reshape(-1, 3)


def rgba_of_flex(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """float32 [4], 0 to 1: its own colour if it has been given one, else its material's, as of a
    geom. A texture is not in it."""
    return chosen_rgba(model, model.flex_rgba[flex], _material(model, flex))


def colour_of_flex(model: mujoco.MjModel, flex: int) -> np.ndarray:
    """uint8 [3]: the one colour of it, its texture's included."""
    return plain(model, rgba_of_flex(model, flex), _material(model, flex))[:3]


def _material(model: mujoco.MjModel, flex: int) -> int:
    """Id of a flex's material, -1 for none. Since MuJoCo 4 each element may have one of its own;
    the first one's counts."""
    per_flex = len(model.flex_matid) == model.nflex
    return int(model.flex_matid[flex if per_flex else model.flex_elemadr[flex]])


def _colours(model: mujoco.MjModel, flex: int, count: int, rgba: np.ndarray) -> np.ndarray:
    """uint8 [F, 3]."""
    material, start = _material(model, flex), int(model.flex_texcoordadr[flex])
    if model.flex_dim[flex] != 2 or start < 0:
        return np.tile(plain(model, rgba, material)[:3], (count, 1))
    # Corners of elements have places in a texture, which need not be those of the vertices.
    at = model.flex_elemdataadr[flex]
    corners = model.flex_elemtexcoord[at : at + 3 * count].reshape(-1, 3)
    uv = model.flex_texcoord[start + corners].mean(axis=1)
    return sampled(model, rgba, material, uv)[:, :3]
