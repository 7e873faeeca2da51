"""Keeps what domain randomisation has changed in each robot of a grid, and how that looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np

from brax_viser.model.shapes import Shape, capsule_end
from brax_viser.model.surfaces import takes_material_colour

Fields = Mapping[str, np.ndarray]
"""Field name of the model -> one environment's own value; see `adapters.MODEL_FIELDS`."""

_SEEN = ("geom_size", "geom_pos", "geom_quat", "geom_rgba", "mat_rgba")
"""Fields that change how a robot looks."""

_MASSES = ("link.inertia.mass", "body_mass")
"""Brax's spring and positional physics have the first and ignore the second."""

_SIZES_OF_AXES = {
    mujoco.mjtGeom.mjGEOM_SPHERE: [0, 0, 0],
    mujoco.mjtGeom.mjGEOM_CAPSULE: [0, 0, 1],
    mujoco.mjtGeom.mjGEOM_CYLINDER: [0, 0, 1],
    mujoco.mjtGeom.mjGEOM_BOX: [0, 1, 2],
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: [0, 1, 2],
}
"""Indices into `geom_size` of the geom's extent along x, y and z."""

_SAME = 1e-6
"""Smaller differences, in m and in fractions of a colour, are float32 rounding."""


@dataclass
class Variants:
    """The fields in which each environment's model differs. Used on the page's loop only."""

    model: mujoco.MjModel  # the one that they all derive from
    of_env: dict[int, Fields] = field(default_factory=dict)
    version: int = 0  # changes with each update
    apart: frozenset[int] = frozenset()  # ids of the geoms in which environments differ

    def update(self, models: Mapping[int, Fields]) -> bool:
        """Adds environments. Returns whether more geoms must be drawn one by one."""
        self.of_env.update(models)
        self.version += 1
        apart = self.apart.union(*(self._changed(fields) for fields in models.values()))
        grown, self.apart = apart != self.apart, apart
        return grown

    def places(
        self, shapes: Sequence[Shape], envs: Sequence[int], count: int
    ) -> "list[Places | None]":
        """The places of each shape in `count` cells; None for a shape that is equal in all.

        The first cells have the given environments, and the others the common model.
        """
        known = [self.of_env.get(env, {}) for env in envs] + [{}] * (count - len(envs))
        # float [K, ...]: all geoms of all environments at once, as there can be many of both.
        own = {
            name: np.stack([fields.get(name, getattr(self.model, name)) for fields in known])
            for name in _SEEN
        }
        return [None if s.geom is None else self._place(s, s.geom, own) for s in shapes]

    def _place(self, shape: Shape, geom: int, own: Mapping[str, np.ndarray]) -> "Places":
        pos, quat = own["geom_pos"][:, geom], own["geom_quat"][:, geom]
        size, material = own["geom_size"][:, geom], self.model.geom_matid[geom]
        # An environment's own colour for the geom takes precedence over the material's.
        rgba = own["geom_rgba"][:, geom]
        if takes_material_colour(self.model, geom):
            unset = np.isclose(rgba, self.model.geom_rgba[geom]).all(axis=1, keepdims=True)
            rgba = np.where(unset, own["mat_rgba"][:, material], rgba)
        pos = capsule_end(pos, quat, size, shape.end)
        scale = _scale(self.model, geom, size, end=shape.end)
        return Places(pos, quat, scale, (255 * np.clip(rgba, 0, 1)).astype(np.uint8))

    def in_words(self, env: int) -> str:
        """Mass of an environment's robot in percent of the model's, and its friction if that
        differs; empty without domain randomisation."""
        fields = self.of_env.get(env, {})
        words = []
        masses = [name for name in _MASSES if name in fields]
        if masses:
            own = float(fields[masses[0]].sum())
            words.append(f"mass {100 * own / float(self.model.body_mass[1:].sum()):.0f} %")
        if "geom_friction" in fields:
            own, usual = fields["geom_friction"][:, 0], self.model.geom_friction[:, 0]
            changed = np.abs(own - usual) > _SAME
            if changed.any():
                words.append(f"friction {own[changed].mean():.2f}")
        return " · ".join(words)

    def _changed(self, fields: Fields) -> set[int]:
        """Ids of the geoms that look different in an environment and in the model."""
        model, changed = self.model, np.zeros(self.model.ngeom, bool)
        for name in _SEEN:
            if name not in fields:
                continue
            differs = (np.abs(fields[name] - getattr(model, name)) > _SAME).any(axis=-1)
            if name == "mat_rgba":
                material = model.geom_matid
                differs = (material >= 0) & differs[np.maximum(material, 0)]
            changed |= differs
        return set(np.flatnonzero(changed).tolist())


@dataclass(frozen=True, eq=False)
class Places:
    """One shape's place, size and colour in each of K environments."""

    pos: np.ndarray  # float [K, 3], m, in the body's frame
    quat: np.ndarray  # float [K, 4], wxyz, in the body's frame
    scale: np.ndarray  # float [K, 3], of the shape's mesh along its own axes
    rgba: np.ndarray  # uint8 [K, 4]


def _scale(model: mujoco.MjModel, geom: int, size: np.ndarray, *, end: int) -> np.ndarray:
    """float [K, 3]: the scale of a mesh that was made for the model's size.

    The meaning of `geom_size` for each type is in MuJoCo's XML reference under "geom/size".
    """
    axes = [0, 0, 0] if end else _SIZES_OF_AXES.get(mujoco.mjtGeom(model.geom_type[geom]))
    if axes is None:  # meshes and height fields have sizes of their own
        return np.ones((len(size), 3))
    usual = np.maximum(model.geom_size[geom], 1e-9)
    return size[:, axes] / usual[axes]
