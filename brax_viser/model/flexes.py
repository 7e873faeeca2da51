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
import viser

from brax_viser.model.rotations import cross, from_axes, points_on
from brax_viser.model.surfaces import chosen_rgba, linear, plain, sampled
from brax_viser.scene.handles import send

_CORNERS = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)
_FACE = np.array([[0, 1, 2]])


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


class Sheets:
    """The surfaces of K robots: one batch of triangles. Used on viser's own thread alone."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        surfaces: Surfaces,
        origins: np.ndarray,
        scale: float,
    ):
        """Adds them; `draw` puts them into place.

        Args:
            server: whose scene they go into.
            path: the scene node.
            surfaces: of one robot.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self._surfaces, self._origins = surfaces, origins
        corners = surfaces.faces.ravel()
        # Of whose triangles each vertex is a corner: a row of them for `reduceat`.
        self._order = np.argsort(corners, kind="stable") // 3
        self._used, self._starts = np.unique(np.sort(corners), return_index=True)
        count = 2 * len(origins) * len(surfaces.faces)
        self._handle = server.scene.add_batched_meshes_simple(
            path,
            _CORNERS,
            _FACE,
            batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
            batched_positions=np.zeros((count, 3), np.float32),
            batched_scales=np.zeros((count, 3), np.float32),
            batched_colors=np.tile(linear(surfaces.rgb), (2 * len(origins), 1)),
            lod="off",
            flat_shading=True,
            side="double",
            receive_shadow=False,  # which its own other side would cast on it
            scale=scale,
        )

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray, hidden: np.ndarray) -> int:
        """As `Robots.draw`. Returns how many bytes each page is sent."""
        corner, turn, scale = right_triangles(self.corners(link_pos, link_rot))
        scale[hidden] = 0.0
        corner += self._origins[:, None, None]
        return send(
            self._handle,
            batched_positions=corner.reshape(-1, 3).astype(np.float32),
            batched_wxyzs=turn.reshape(-1, 4).astype(np.float32),
            batched_scales=scale.reshape(-1, 3).astype(np.float32),
        )

    def corners(self, link_pos: np.ndarray, link_rot: np.ndarray) -> np.ndarray:
        """float32 [K, F, 3, 3], m: of the triangles, in each env's own world frame.

        Args:
            link_pos: float32 [K, L, 3], m, in each env's own world frame.
            link_rot: float32 [K, L, 4], wxyz.
        """
        own = self._surfaces
        points = points_on(own.body, own.pos, link_pos, link_rot)
        of_each = []
        for mine, weights in own.parts:
            part = points[:, mine]
            of_each.append(part if weights is None else np.einsum("va,kac->kvc", weights, part))
        vertices = np.concatenate(of_each, axis=1)
        corners = vertices[:, own.faces]
        if not own.outwards.any():
            return corners
        # The sum of the triangles around a vertex, each as much as it is large.
        normals = cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
        outward = np.zeros_like(vertices)
        outward[:, self._used] = np.add.reduceat(normals[:, self._order], self._starts, axis=1)
        length = np.linalg.norm(outward, axis=-1, keepdims=True)
        vertices = vertices + own.outwards[:, None] * outward / np.maximum(length, 1e-12)
        return vertices[:, own.faces]

    def remove(self) -> None:
        self._handle.remove()


def right_triangles(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both halves of triangles as the one with its corners at 0, x and y, placed.

    Args:
        corners: float [K, F, 3, 3], m.

    Returns:
        Where each has its right angle, float [K, 2, F, 3] in m; how it is turned, float
        [K, 2, F, 4], wxyz; and how it is stretched, float [K, 2, F, 3] in m.
    """
    sides = np.linalg.norm(corners[..., [1, 2, 0], :] - corners[..., [2, 0, 1], :], axis=-1)
    apex = sides.argmax(axis=-1)  # corner i is opposite of side i
    around = (apex[..., None] + np.arange(3)) % 3
    top, left, right = np.moveaxis(np.take_along_axis(corners, around[..., None], axis=-2), -2, 0)
    base = left - right
    length = np.maximum((base * base).sum(axis=-1, keepdims=True), 1e-18)
    share = ((top - right) * base).sum(axis=-1, keepdims=True) / length
    foot = right + share * base
    x = np.stack([left - foot, right - foot], axis=1)
    y = np.broadcast_to((top - foot)[:, None], x.shape)
    width, height = (np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
    turn = from_axes(x / np.maximum(width, 1e-9), y / np.maximum(height, 1e-9))
    scale = np.concatenate([width, height, np.ones_like(width)], axis=-1)
    return np.broadcast_to(foot[:, None], x.shape).copy(), turn, scale


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
