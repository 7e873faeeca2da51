"""Draws robots as they stand in a grid at one moment, off screen with MuJoCo."""

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from brax_viser.export.drawing import painter
from brax_viser.export.painter import JOB, MODEL, OWN, POSES
from brax_viser.model.framing import framing_camera
from brax_viser.model.shapes import floor_of


@dataclass(frozen=True, eq=False)
class Still:
    """K robots of one model, at one moment."""

    model: mujoco.MjModel
    link_pos: np.ndarray  # float [K, L, 3], m, in each robot's own world frame
    link_rot: np.ndarray  # float [K, L, 4], wxyz
    origins: np.ndarray  # float [K, 3], m, of these frames
    bounds: np.ndarray  # float [2, 3], m, box around all that must be seen
    # For each robot, the fields in which its model differs; see `model.physics.varied`.
    own: Sequence[Mapping[str, np.ndarray]]


def draws_together(model: mujoco.MjModel) -> bool:
    """Whether MuJoCo can draw several robots of a model side by side: not parts that bend, of which
    it draws one, nor rough ground, which would lie in the neighbours' cells."""
    return not (model.nskin or model.nflex or model.nhfield)


def draw_still(still: Still, size: tuple[int, int]) -> np.ndarray:
    """Returns a picture, uint8 [height, width, 3]. MuJoCo draws it in a separate process.

    Args:
        still: what is drawn.
        size: width and height, pixels.

    Raises:
        RuntimeError: MuJoCo cannot draw off screen here; the message says what to install.
    """
    width, height = size
    with tempfile.TemporaryDirectory(prefix="brax-viser-") as folder:
        _write(still, size, Path(folder))
        with painter(folder, 3 * width * height) as (picture, _):
            return np.frombuffer(picture, np.uint8).reshape(height, width, 3)


def _write(still: Still, size: tuple[int, int], folder: Path) -> None:
    camera = framing_camera(still.bounds, aspect=size[0] / size[1])
    sight = camera.look_at - camera.position
    distance = float(np.linalg.norm(sight))
    azimuth = np.degrees(np.arctan2(sight[1], sight[0]))
    elevation = np.degrees(np.arcsin(sight[2] / distance))
    count, model = len(still.link_pos), _roomy(still.model, still.bounds, distance)
    mujoco.mj_saveModel(model, str(folder / MODEL))
    names = sorted({name for fields in still.own for name in fields})
    own = {
        OWN + name: np.stack([fields.get(name, _usual(model, name)) for fields in still.own])
        for name in names
    }
    poses = {
        "link_pos": still.link_pos,
        "link_rot": still.link_rot,
        "origins": still.origins,
        "qpos": np.tile(model.qpos0, (count, 1)),  # the links say where all parts are
        "qvel": np.zeros((count, model.nv)),
        "look_at": camera.look_at[None],
        "from": np.array([distance, azimuth, elevation]),
    }
    np.savez(folder / POSES, **poses, **own)  # type: ignore[arg-type]
    about = {"size": size, "fov": float(np.degrees(camera.fov))}
    (folder / JOB).write_text(json.dumps(about))


def _usual(model: mujoco.MjModel, name: str) -> np.ndarray:
    return model.body_mass[1:] if name == "link.inertia.mass" else getattr(model, name)


def _roomy(model: mujoco.MjModel, bounds: np.ndarray, distance: float) -> mujoco.MjModel:
    """Returns the model with a floor under the whole grid, and seen up to its far end."""
    model = copy.copy(model)
    floor, reach = floor_of(model), float(np.ptp(bounds, axis=0).max()) + distance
    if floor is not None and model.geom_size[floor, :2].all():
        model.geom_size[floor, :2] = np.maximum(model.geom_size[floor, :2], reach)
    model.vis.map.zfar = max(model.vis.map.zfar, 3 * reach / model.stat.extent)
    return model
