"""Darkens the floor where a robot stands on it, as light from all sides does.

The shadows of the page's sun begin beside a foot, and are too coarse for small ones; this is what
shows whether it touches the floor or hangs above it.
"""

import numpy as np
import trimesh
import viser
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from brax_viser.model.robot import Model
from brax_viser.model.rotations import rotate
from brax_viser.model.scope import moving_bodies
from brax_viser.model.shapes import Shape, floor_of
from brax_viser.records.grid import Grid
from brax_viser.scene.handles import PARKED, send

MOST_ROBOTS = 64
"""Where more robots are drawn, spots are small, and drawing them takes as long as the robots do."""

SPOTS = 4
"""At most so many per robot: under those of its bodies that are nearest to the floor."""

NEAR = 0.07
"""Height from which a body has no spot, and how far a spot sticks out from under its body: relative
to the largest side of the box that robots reach."""

LIFT = 0.001
"""Height of the spots above the floor, relative to the same."""

DARKEST = 0.6
"""Opacity in the middle of a spot."""

PIXELS = 64
"""Width of the picture of a spot."""

_AXES = [(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)]
_DIRECTIONS = np.array([axes for axes in _AXES if np.abs(axes).sum() in (1, 3)], float)
"""Along the axes and to the corners of a cube: a ball or a box is lowest in one of these."""


class ContactShadows:
    """The spots under K robots: one batch of discs. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        model: Model,
        grid: Grid,
        origins: np.ndarray,
        scale: float,
    ):
        """Adds the spots, none of which is seen until `draw`. There are none on rough ground, nor
        where the model has no floor.

        Args:
            server: the server of the scene.
            path: of the scene node.
            model: the robot.
            grid: the cells.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        columns, rows, _ = grid.shape
        origins = origins[: columns * rows]  # higher layers have no floor
        self._links, self._points = _outlines(model.shapes, moving_bodies(model.variants.model))
        self._spots = min(SPOTS, len(self._links))
        self.handle: viser.BatchedGlbHandle | None = None
        level = model.terrain is None and floor_of(model.variants.model) is not None
        if not level or len(origins) > MOST_ROBOTS or not self._spots:
            return
        size = float(np.ptp(grid.reach, axis=0).max())
        self._squares = (self._points**2).sum(axis=2)
        self._origins, self._near, self._floor = origins, NEAR * size, model.floor
        self._robots = np.arange(len(origins))[:, None]
        # A page draws transparent nodes from back to front, by their own places: one above the
        # floor comes after it, which is transparent as well.
        above = 10 * size
        self._height = origins[:, 2] + (model.floor + LIFT * size - above)
        count = len(origins) * self._spots
        self.handle = server.scene.add_batched_glb(
            path,
            _disc(),
            batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
            batched_positions=np.tile(PARKED, (count, 1)),
            batched_scales=np.ones(count, np.float32),
            lod="off",
            cast_shadow=False,
            receive_shadow=False,
            scale=scale,
            position=(0.0, 0.0, above * scale),
        )

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray, hidden: np.ndarray) -> int:
        """Moves the spots of all K robots. Returns how many bytes each page is sent.

        Args:
            link_pos: float32 [K, L, 3], m, in each env's own world frame.
            link_rot: float32 [K, L, 4], wxyz.
            hidden: bool [K], robots that must not be seen.
        """
        if self.handle is None:
            return 0
        robots, links, near = self._robots, self._links, self._near
        count = len(robots)
        link_pos, link_rot, hidden = link_pos[:count], link_rot[:count], hidden[:count]
        rot = link_rot[:, links]
        w, x, y, z = (rot[..., axis] for axis in range(4))
        upward = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
        heights = np.matmul(self._points, upward[..., None])[..., 0]  # [K, M, P], m, in the link
        heights += (link_pos[:, links, 2] - self._floor)[..., None]
        lowest = heights.min(axis=2)
        nearest = np.argpartition(np.abs(lowest), self._spots - 1, axis=1)[:, : self._spots]
        lowest, heights = lowest[robots, nearest], heights[robots, nearest]
        # All lowest points of a flat foot count: its spot would jump with the single lowest one.
        weights = np.exp((lowest[..., None] - heights) * (4 / near))
        weights /= weights.sum(axis=2, keepdims=True)
        points = self._points[nearest]
        middle = np.matmul(weights[..., None, :], points)[..., 0, :]
        square = (weights * self._squares[nearest]).sum(axis=2) - (middle * middle).sum(axis=2)
        place = rotate(rot[robots, nearest], middle) + link_pos[robots, links[nearest]]
        place += self._origins[:, None]
        place[..., 2] = self._height[:, None]
        away = np.minimum(np.abs(lowest) * (1 / near), 1.0)
        place[(away == 1.0) | hidden[:, None]] = PARKED
        radius = (1.4 * np.sqrt(np.maximum(square, 0.0)) + near) * np.sqrt(1.0 - away)
        return send(
            self.handle,
            batched_positions=place.reshape(-1, 3).astype(np.float32, copy=False),
            batched_scales=radius.ravel().astype(np.float32, copy=False),
        )

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()


def _outlines(shapes: list[Shape], moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outermost points of each moving link: links, int [M], and float32 [M, P, 3], m, in the
    link's frame.

    Args:
        shapes: of a robot. Transparent ones, such as markers of goals, do not count.
        moving: bool [nbody].
    """
    found: dict[int, list[np.ndarray]] = {}
    for shape in shapes:
        if shape.rgba is not None and shape.rgba[3] < 255:
            continue
        for body, pos, quat in zip(shape.body, shape.pos, shape.quat, strict=True):
            if moving[body]:
                points = rotate(quat[None], _outermost(np.asarray(shape.mesh.vertices))) + pos
                found.setdefault(int(body) - 1, []).append(points)
    points = [_outermost(np.concatenate(parts)) for parts in found.values()]
    shape = len(found), len(_DIRECTIONS), 3
    return np.array(list(found), int), np.reshape(points, shape).astype(np.float32)


def _outermost(points: np.ndarray) -> np.ndarray:
    """float [P, 3]: the farthest of points, [N, 3], in each direction; the mean of those that are
    equally far, as the corners of a sole are."""
    along = points @ _DIRECTIONS.T
    farthest = along.max(axis=0) - along <= 1e-3 * np.ptp(along, axis=0)
    return farthest.T @ points / farthest.sum(axis=0)[:, None]


def _disc() -> bytes:
    """glTF: a black disc of radius 1 m that grows transparent towards its rim."""
    across = np.linspace(-1, 1, PIXELS)
    inside = np.maximum(1 - across**2 - across[:, None] ** 2, 0)
    pixels = np.zeros((PIXELS, PIXELS, 4), np.uint8)
    pixels[..., 3] = np.round(255 * DARKEST * inside**2)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    look = PBRMaterial(
        baseColorTexture=Image.fromarray(pixels),
        alphaMode="BLEND",
        metallicFactor=0.0,
        roughnessFactor=1.0,
    )
    square = trimesh.Trimesh(
        np.column_stack([2 * corners - 1, np.zeros(4)]),
        [[0, 1, 2], [0, 2, 3]],
        visual=TextureVisuals(corners, material=look),
        process=False,
    )
    return export_glb(trimesh.Scene([square]))
