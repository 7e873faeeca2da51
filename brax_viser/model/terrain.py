"""Computes the shape and the height of ground that is not level."""

from dataclasses import dataclass

import mujoco
import numpy as np
import trimesh
from mjviser import conversions

_HFIELD, _PLANE = int(mujoco.mjtGeom.mjGEOM_HFIELD), int(mujoco.mjtGeom.mjGEOM_PLANE)

STEEPEST = 0.5
"""Least z of the normal of a plane that is taken for ground: at most 60 degrees steep."""


def slope_of(model: mujoco.MjModel) -> int | None:
    """Id of the endless inclined plane that is all the ground of a world; None if there is none."""
    kinds, fixed = model.geom_type, model.body_weldid[model.geom_bodyid] == 0
    ground = np.flatnonzero(fixed & np.isin(kinds, (_HFIELD, _PLANE)))
    if len(ground) != 1 or kinds[ground[0]] == _HFIELD or model.geom_size[ground[0], :2].all():
        return None
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return int(ground[0]) if STEEPEST < data.geom_xmat[ground[0], 8] <= 0.999 else None


@dataclass(frozen=True, eq=False)
class Terrain:
    """The height fields of a world that lie level and do not move, or the slope that is its
    ground."""

    fields: "tuple[_Field | _Slope, ...]"

    @classmethod
    def of(cls, model: mujoco.MjModel) -> "Terrain | None":
        """The terrain of a model; None if it has none."""
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        fields = tuple(
            _Field.of(model, data, geom)
            for geom in range(model.ngeom)
            if model.geom_type[geom] == _HFIELD
            and model.body_weldid[model.geom_bodyid[geom]] == 0
            and data.geom_xmat[geom][8] > 0.999
        )
        if (slope := slope_of(model)) is not None:
            return cls((_Slope(data.geom_xpos[slope].copy(), data.geom_xmat[slope, [2, 5, 8]]),))
        return cls(fields) if fields else None

    def height(self, place: np.ndarray) -> np.ndarray:
        """float [...], m: z of the ground; NaN outside of all height fields.

        Args:
            place: float [..., 2], m, x and y in an environment's world frame.
        """
        heights = [field.height(place) for field in self.fields]
        return np.fmax.reduce(heights)


@dataclass(frozen=True, eq=False)
class _Slope:
    point: np.ndarray  # float [3], m, of the plane
    normal: np.ndarray  # float [3], of unit length, upwards

    def height(self, place: np.ndarray) -> np.ndarray:
        """As `Terrain.height`."""
        return self.point[2] - (place - self.point[:2]) @ self.normal[:2] / self.normal[2]


@dataclass(frozen=True, eq=False)
class _Field:
    centre: np.ndarray  # float [3], m
    turn: np.ndarray  # float [2, 2], from its own x and y to the world's
    extent: np.ndarray  # float [2], m, half of its length along x and y
    z: np.ndarray  # float [rows along y, columns along x], m, above its centre

    @classmethod
    def of(cls, model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> "_Field":
        field = int(model.geom_dataid[geom])
        rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
        start = int(model.hfield_adr[field])
        share = model.hfield_data[start : start + rows * columns].reshape(rows, columns)
        size = model.hfield_size[field]
        # MuJoCo's compiler places a height field by its own centre: `geom_xpos` is the centre.
        return cls(
            data.geom_xpos[geom].copy(),
            data.geom_xmat[geom].reshape(3, 3)[:2, :2].copy(),
            size[:2].copy(),
            share * size[2],
        )

    def height(self, place: np.ndarray) -> np.ndarray:
        """As `Terrain.height`; interpolates bilinearly between the field's points."""
        own = (place - self.centre[:2]) @ self.turn
        most = np.array(self.z.shape[::-1]) - 1
        at = (own / self.extent + 1) / 2 * most
        inside = ((at >= 0) & (at <= most)).all(axis=-1)
        at = np.clip(at, 0, most)
        low = np.minimum(at.astype(int), most - 1)
        (x, y), (u, v) = np.moveaxis(low, -1, 0), np.moveaxis(at - low, -1, 0)
        near = (1 - u) * self.z[y, x] + u * self.z[y, x + 1]
        far = (1 - u) * self.z[y + 1, x] + u * self.z[y + 1, x + 1]
        return np.where(inside, self.centre[2] + (1 - v) * near + v * far, np.nan)


def terrain_mesh(model: mujoco.MjModel, geom: int) -> trimesh.Trimesh:
    """A height field with its sides, down to its base; mjviser has only the top."""
    top = conversions.create_primitive_mesh(model, geom)
    field = model.geom_dataid[geom]
    rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
    index = np.arange(rows * columns).reshape(rows, columns)
    # All the way round, counter-clockwise as seen from above.
    rim = np.concatenate([index[0], index[1:, -1], index[-1, -2::-1], index[-2:0:-1, 0]])
    foot = top.vertices[rim] * [1, 1, 0] - [0, 0, model.hfield_size[field, 3]]
    low, high = len(top.vertices) + np.arange(len(rim)), rim
    after = np.roll(np.arange(len(rim)), -1)
    sides = np.concatenate(
        [
            np.stack([low, low[after], high], axis=1),
            np.stack([high, low[after], high[after]], axis=1),
        ]
    )
    vertices = np.concatenate([top.vertices, foot])
    return trimesh.Trimesh(vertices, np.concatenate([top.faces, sides]), process=False)
