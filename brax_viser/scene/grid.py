"""Where the cells of the grid are, how far apart, and from where they are seen as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

MAX_CELLS = 4096
REACH_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells in columns along x, rows along y and layers along z, centred on the origin."""

    shape: tuple[int, int, int]  # columns, rows, layers
    spacing: tuple[float, float, float]  # m
    reach: np.ndarray  # float [2, 3], m: box that holds one env, in its own world frame

    @classmethod
    def of(
        cls,
        model: mujoco.MjModel,
        init_qpos: np.ndarray,
        grid: Sequence[int],
        spacing: Sequence[float] | None,
    ) -> "Grid":
        """Checks a user's grid and spacing, and derives the spacing where it is None.

        Raises:
            TypeError: not a sequence of numbers.
            ValueError: the wrong number of them, or a value out of its limits.
        """
        shape = _checked_shape(grid)
        reach = reach_of(model, init_qpos)
        return cls(shape, _checked_spacing(spacing, reach), reach)

    @property
    def capacity(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape))

    def origins(self, count: int) -> np.ndarray:
        """float32 [count, 3], m: cells filled along x first, then y, then z.

        The block is centred in x and y, and its first layer stands on the floor.
        """
        assert 0 < count <= self.capacity
        columns, rows, _ = self.shape
        index = np.arange(count)
        cell = np.stack(
            [index % columns, index // columns % rows, index // (columns * rows)], axis=1
        )
        used = cell.max(axis=0)
        centre = np.array([used[0] / 2, used[1] / 2, 0.0])
        return ((cell - centre) * self.spacing).astype(np.float32)

    def bounds(self, count: int) -> np.ndarray:
        """float [2, 3], m: box that holds the first `count` cells with what is in them."""
        origins = self.origins(count)
        return np.stack([origins.min(axis=0) + self.reach[0], origins.max(axis=0) + self.reach[1]])


def _checked_shape(grid: Sequence[int]) -> tuple[int, int, int]:
    sides = _numbers("grid", grid)
    if len(sides) not in (2, 3):
        raise ValueError(
            f"grid={grid!r} has {len(sides)} numbers: give (columns, rows) or "
            "(columns, rows, layers)"
        )
    if any(side != int(side) for side in sides):
        raise TypeError(f"grid={grid!r}: every side must be a whole number")
    if min(sides) < 1:
        raise ValueError(f"grid={grid!r}: every side must be at least 1")
    columns, rows, layers = (int(side) for side in (*sides, 1)[:3])
    if columns * rows * layers > MAX_CELLS:
        raise ValueError(
            f"grid={grid!r} has {columns * rows * layers} cells: at most {MAX_CELLS} can be "
            "drawn; the trainer may step any number"
        )
    return columns, rows, layers


def _checked_spacing(
    spacing: Sequence[float] | None, reach: np.ndarray
) -> tuple[float, float, float]:
    # Room to breathe; and flat robots (a cheetah moves in a plane) must not stand like cards.
    size = np.maximum(1.2 * (reach[1] - reach[0]), 0.4 * np.ptp(reach, axis=0).max())
    derived = (float(size[0]), float(size[1]), float(size[2]))
    if spacing is None:
        return derived
    steps = _numbers("spacing", spacing)
    if len(steps) not in (2, 3):
        raise ValueError(f"spacing={spacing!r} has {len(steps)} numbers: give (x, y) or (x, y, z)")
    if not all(np.isfinite(steps)) or min(steps) <= 0:
        raise ValueError(f"spacing={spacing!r}: every distance must be above 0 metres")
    x, y, z = (*steps, derived[2])[:3]
    return float(x), float(y), float(z)


def _numbers(name: str, values: object) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name}={values!r}: must be a sequence of numbers, such as (8, 8)")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name}={values!r}: {value!r} is not a number")
    return [float(value) for value in values]


def reach_of(model: mujoco.MjModel, init_qpos: np.ndarray) -> np.ndarray:
    """float [2, 3], m: box around what one env can touch without its root leaving its place.

    The union of the geoms' boxes over random positions of the joints that have limits, the
    others staying where `reset` puts them. Planes are left out, for they have no end, and terrain,
    which is much larger than who walks on it; so are slides longer than the robot, which stand for
    free movement.
    """
    data = mujoco.MjData(model)
    random = np.random.default_rng(0)
    terrain = model.geom_type == int(mujoco.mjtGeom.mjGEOM_HFIELD)
    solid = (model.geom_type != int(mujoco.mjtGeom.mjGEOM_PLANE)) & ~terrain
    solid = solid if solid.any() else terrain
    if not solid.any() and not model.nflex:
        return np.array([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
    slide, hinge = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
    travel = model.jnt_range[:, 1] - model.jnt_range[:, 0]
    local = (model.jnt_type == hinge) | ((model.jnt_type == slide) & (travel < 2 * _size(model)))
    moves = model.jnt_limited.astype(bool) & local
    address = model.jnt_qposadr[moves]
    start, stop = model.jnt_range[moves].T
    boxes = []
    for sample in range(REACH_SAMPLES):
        data.qpos[:] = init_qpos
        if sample:
            data.qpos[address] = random.uniform(start, stop)
        boxes.append(bounds_of(model, data, solid))
    return np.stack([np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]])


def bounds_of(model: mujoco.MjModel, data: mujoco.MjData, geoms: np.ndarray) -> np.ndarray:
    """float [2, 3], m: axis-aligned box around some geoms and all flexes at `data.qpos`.

    Args:
        model: is not changed.
        data: is, for its `qpos` counts and nothing else.
        geoms: bool [ngeom] or int [G]. There must be any, or a flex.
    """
    mujoco.mj_kinematics(model, data)
    rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
    centre, half = model.geom_aabb[geoms, :3, None], model.geom_aabb[geoms, 3:, None]
    middle = data.geom_xpos[geoms] + (rotation @ centre)[..., 0]
    extent = (np.abs(rotation) @ half)[..., 0]
    low, high = middle - extent, middle + extent
    if model.nflex:
        mujoco.mj_flex(model, data)
        low, high = (np.concatenate([box, data.flexvert_xpos]) for box in (low, high))
    return np.stack([low.min(axis=0), high.max(axis=0)])


def _size(model: mujoco.MjModel) -> float:
    """Largest side of the robot as the model places it, m."""
    geoms = model.geom_type != int(mujoco.mjtGeom.mjGEOM_PLANE)
    if not geoms.any() and not model.nflex:
        return 0.0
    return float(np.ptp(bounds_of(model, mujoco.MjData(model), geoms), axis=0).max())


@dataclass(frozen=True, eq=False)
class CameraPose:
    """A camera, in the scene's world frame."""

    position: np.ndarray  # float [3], m
    look_at: np.ndarray  # float [3], m
    fov: float  # rad, vertical


def framing_camera(
    bounds: np.ndarray,
    *,
    azimuth: float = np.radians(-145.0),
    elevation: float = np.radians(24.0),
    fov: float = np.radians(35.0),
    aspect: float = 1.25,
) -> CameraPose:
    """The nearest camera in a given direction that has all of a box in view.

    Args:
        bounds: float [2, 3], m, the box.
        azimuth: rad, where the camera stands, seen from the box: 0 is +x, -pi/2 is -y. From behind
            and to the right, robots that learn to run along +x, as Brax rewards it, stay in view.
        elevation: rad above the horizon.
        fov: rad, vertical.
        aspect: width over height of the part of the window that shows the scene.
    """
    outward = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], outward)
    right /= np.linalg.norm(right)
    up = np.cross(outward, right)
    centre = bounds.mean(axis=0)
    corners = np.array([[bounds[i][axis] for axis, i in enumerate(c)] for c in np.ndindex(2, 2, 2)])
    offset = corners - centre
    # A corner is in view if its distance off the axis is at most tan(angle) x its depth.
    tan_up = np.tan(fov / 2)
    distance = max(
        np.max(offset @ outward + np.abs(offset @ right) / (tan_up * aspect)),
        np.max(offset @ outward + np.abs(offset @ up) / tan_up),
    )
    return CameraPose(centre + 1.05 * distance * outward, centre, float(fov))
