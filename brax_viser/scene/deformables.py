"""Draws things that bend as batches of rigid pieces: cloth, soft bodies, ropes and tendons."""

import numpy as np
import trimesh
import viser

from brax_viser.model.flexes import Surfaces
from brax_viser.model.rods import RodSet
from brax_viser.model.rotations import cross, from_axes, points_on
from brax_viser.model.surfaces import linear
from brax_viser.scene.handles import send

_CORNERS = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)


_FACE = np.array([[0, 1, 2]])


class Sheets:
    """The surfaces of K robots: one batch of triangles. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        surfaces: Surfaces,
        origins: np.ndarray,
        scale: float,
    ):
        """Adds the triangles; `draw` places them.

        Args:
            server: the server of the scene.
            path: of the scene node.
            surfaces: of one robot.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self._surfaces, self._origins = surfaces, origins
        corners = surfaces.faces.ravel()
        # The triangles around each vertex, one vertex after the other, for `reduceat`.
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
            receive_shadow=False,  # its back would cast a shadow on its front
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
        """float32 [K, F, 3, 3], m: corners of the triangles, in each env's own world frame.

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
        # The normal of a vertex is the sum of its triangles' normals, weighted by area.
        normals = cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
        outward = np.zeros_like(vertices)
        outward[:, self._used] = np.add.reduceat(normals[:, self._order], self._starts, axis=1)
        length = np.linalg.norm(outward, axis=-1, keepdims=True)
        vertices = vertices + own.outwards[:, None] * outward / np.maximum(length, 1e-12)
        return vertices[:, own.faces]

    def remove(self) -> None:
        self._handle.remove()


def right_triangles(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Halves triangles into instances of the right triangle with its corners at 0, x and y.

    Args:
        corners: float [K, F, 3, 3], m.

    Returns:
        For both halves: the place of the right angle, float [K, 2, F, 3] in m; the rotation,
        float [K, 2, F, 4], wxyz; and the scale along each axis, float [K, 2, F, 3] in m.
    """
    sides = np.linalg.norm(corners[..., [1, 2, 0], :] - corners[..., [2, 0, 1], :], axis=-1)
    apex = sides.argmax(axis=-1)  # corner i is opposite to side i
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


class Rods:
    """The rods of K robots: one batch of cylinders. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        rods: RodSet,
        origins: np.ndarray,
        scale: float,
    ):
        """Adds the cylinders; `draw` places them.

        Args:
            server: the server of the scene.
            path: of the scene node.
            rods: of one robot.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self._rods, self._origins = rods, origins
        self._beyond: np.ndarray | None = None  # bool [K, T], of the limited tendons
        count = len(origins) * len(rods.radius)
        cylinder = trimesh.creation.cylinder(radius=1.0, height=1.0, sections=8)
        self._handle = server.scene.add_batched_meshes_simple(
            path,
            cylinder.vertices,
            cylinder.faces,
            batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
            batched_positions=np.zeros((count, 3), np.float32),
            batched_scales=np.zeros((count, 3), np.float32),
            batched_colors=np.tile(linear(rods.rgb), (len(origins), 1)),
            lod="off",
            scale=scale,
        )

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray, hidden: np.ndarray) -> int:
        """As `Robots.draw`. Returns how many bytes each page is sent."""
        one, other = (
            points_on(self._rods.body[:, end], self._rods.pos[:, end], link_pos, link_rot)
            for end in (0, 1)
        )
        along = other - one
        length = np.linalg.norm(along, axis=-1, keepdims=True)
        up = along / np.maximum(length, 1e-9)
        # The shortest rotation from z to `up`; if `up` is -z, any axis across will do.
        turn = np.concatenate(
            [1 + up[..., 2:], -up[..., 1:2], up[..., :1], np.zeros_like(length)], axis=-1
        )
        norm = np.linalg.norm(turn, axis=-1, keepdims=True)
        turn = np.where(norm > 1e-4, turn / np.maximum(norm, 1e-9), [0.0, 1.0, 0.0, 0.0])
        radius = np.broadcast_to(self._rods.radius[:, None], length.shape)
        radius = np.where(hidden[:, None, None], 0.0, radius)
        middle = (one + other) / 2 + self._origins[:, None]
        scale = np.concatenate([radius, radius, length], axis=-1)
        sent = self._colour(length[..., 0], link_pos, link_rot)
        return sent + send(
            self._handle,
            batched_positions=middle.reshape(-1, 3).astype(np.float32),
            batched_wxyzs=turn.reshape(-1, 4).astype(np.float32),
            batched_scales=scale.reshape(-1, 3).astype(np.float32),
        )

    def _colour(self, length: np.ndarray, link_pos: np.ndarray, link_rot: np.ndarray) -> int:
        """Colours tendons by their limits. Returns how many bytes each page is sent."""
        rods, limits = self._rods, self._rods.limits
        if limits is None:
            return 0
        beyond = limits.beyond(rods, length, link_pos, link_rot)
        if self._beyond is not None and np.array_equal(beyond, self._beyond):
            return 0
        self._beyond = beyond
        rgb = np.tile(rods.rgb, (len(beyond), 1, 1))
        for index, tendon in enumerate(limits.tendons):
            rgb[np.ix_(beyond[:, index], rods.tendon == tendon)] = limits.rgb[index]
        return send(self._handle, batched_colors=linear(rgb.reshape(-1, 3)))

    def remove(self) -> None:
        self._handle.remove()
