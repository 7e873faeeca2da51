"""Robots of one grid that are not all alike: what domain randomisation has changed in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np

from brax_viser.model.shapes import Shape, capsule_end
from brax_viser.model.surfaces import takes_material_colour

Fields = Mapping[str, np.ndarray]
"""Name of a field of the model -> one environment's own value; see `adapters.MODEL_FIELDS`."""

_SEEN = ("geom_size", "geom_pos", "geom_quat", "geom_rgba", "mat_rgba")
"""Those that change how a robot looks."""

_MASSES = ("link.inertia.mass", "body_mass")
"""Brax's spring and positional physics have the first, and ignore the second."""

_SIZES_OF_AXES = {
    mujoco.mjtGeom.mjGEOM_SPHERE: [0, 0, 0],
    mujoco.mjtGeom.mjGEOM_CAPSULE: [0, 0, 1],
    mujoco.mjtGeom.mjGEOM_CYLINDER: [0, 0, 1],
    mujoco.mjtGeom.mjGEOM_BOX: [0, 1, 2],
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: [0, 1, 2],
}
"""Which of the numbers of `geom_size` is the geom's extent along x, y and z."""

_SAME = 1e-6
"""Differences below this, in m and in parts of a colour, are float32's."""


@dataclass
class Variants:
    """What is known of each environment's own model. Used on viser's own thread alone."""

    model: mujoco.MjModel  # the one that they were made from
    of_env: dict[int, Fields] = field(default_factory=dict)
    version: int = 0  # changes with each update
    apart: frozenset[int] = frozenset()  # ids of the geoms that are not alike in all of them

    def update(self, models: Mapping[int, Fields]) -> bool:
        """Adds environments. Returns whether more geoms have to be drawn one by one."""
        self.of_env.update(models)
        self.version += 1
        apart = self.apart.union(*(self._changed(fields) for fields in models.values()))
        grown, self.apart = apart != self.apart, apart
        return grown

    def places(self, shapes: Sequence[Shape], envs: Sequence[int]) -> "list[Places | None]":
        """How each shape is placed in each of K environments; None where it is alike in all."""
        known = [self.of_env.get(env, {}) for env in envs]
        # float [K, ...]: all geoms of all environments at once, for there can be many of both.
        own = {
            name: np.stack([fields.get(name, getattr(self.model, name)) for fields in known])
            for name in _SEEN
        }
        return [None if s.geom is None else self._place(s, s.geom, own) for s in shapes]

    def _place(self, shape: Shape, geom: int, own: Mapping[str, np.ndarray]) -> "Places":
        pos, quat = own["geom_pos"][:, geom], own["geom_quat"][:, geom]
        size, material = own["geom_size"][:, geom], self.model.geom_matid[geom]
        # Where the geom has a colour of its own in one environment, it goes before the material's.
        rgba = own["geom_rgba"][:, geom]
        if takes_material_colour(self.model, geom):
            unset = np.isclose(rgba, self.model.geom_rgba[geom]).all(axis=1, keepdims=True)
            rgba = np.where(unset, own["mat_rgba"][:, material], rgba)
        pos = capsule_end(pos, quat, size, shape.end)
        scale = _scale(self.model, geom, size, end=shape.end)
        return Places(pos, quat, scale, (255 * np.clip(rgba, 0, 1)).astype(np.uint8))

    def in_words(self, env: int) -> str:
        """Mass of an environment's robot, of the model's, and friction where it is another; empty
        without domain randomisation."""
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
        """Ids of the geoms that look otherwise in an environment than in the model."""
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
    """float [K, 3]: what a mesh made for the model's size is to be scaled by.

    What MuJoCo's `geom_size` means for each type: see "geom/size" in its XML reference.
    """
    axes = [0, 0, 0] if end else _SIZES_OF_AXES.get(mujoco.mjtGeom(model.geom_type[geom]))
    if axes is None:  # meshes and height fields have sizes of their own
        return np.ones((len(size), 3))
    usual = np.maximum(model.geom_size[geom], 1e-9)
    return size[:, axes] / usual[axes]
