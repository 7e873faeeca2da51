"""Computes the views of the cameras that a model comes with."""

from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.rotations import multiply, rotate

_FIXED = int(mujoco.mjtCamLight.mjCAMLIGHT_FIXED)
_TRACKS = (int(mujoco.mjtCamLight.mjCAMLIGHT_TRACK), int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM))

AHEAD = 1.0
"""Distance in m from the camera to the point that the page's camera orbits."""


@dataclass(frozen=True, eq=False)
class ModelCamera:
    """One camera of a model."""

    name: str
    mode: int  # a mujoco.mjtCamLight
    body: int  # that carries it
    target: int  # body that it looks at; -1: none
    # In the body's frame. If the camera keeps its direction ("track"): from the body, in the
    # world's axes.
    pos: np.ndarray  # float [3], m
    quat: np.ndarray  # float [4], wxyz
    fov: float  # rad, vertical


@dataclass(frozen=True, eq=False)
class Sight:
    """The view through a camera."""

    position: np.ndarray  # float [3], m
    look_at: np.ndarray  # float [3], m
    up: np.ndarray  # float [3]
    fov: float  # rad, vertical


def cameras_of(model: mujoco.MjModel) -> list[ModelCamera]:
    """All cameras of a model by name; a camera without a name is called by its index."""
    cameras = []
    for index in range(model.ncam):
        mode = int(model.cam_mode[index])
        pos, quat = model.cam_pos[index].copy(), model.cam_quat[index].copy()
        if mode in _TRACKS:
            pos = model.cam_pos0[index].copy()
            mujoco.mju_mat2Quat(quat, model.cam_mat0[index].ravel())
        cameras.append(
            ModelCamera(
                model.cam(index).name or f"camera {index}",
                mode,
                int(model.cam_bodyid[index]),
                int(model.cam_targetbodyid[index]),
                pos,
                quat,
                float(np.radians(model.cam_fovy[index])),
            )
        )
    return cameras


def sight_of(camera: ModelCamera, link_pos: np.ndarray, link_rot: np.ndarray) -> Sight:
    """The view through one robot's camera.

    Follows MuJoCo's `mj_camlight`, but knows only the bodies' poses: a camera that tracks a centre
    of mass tracks its body here.

    Args:
        camera: one of the robot's model.
        link_pos: float [L, 3], m; link i is body i + 1.
        link_rot: float [L, 4], wxyz.
    """

    def place(body: int) -> tuple[np.ndarray, np.ndarray]:
        if body == 0:
            return np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0])
        return np.asarray(link_pos[body - 1], float), np.asarray(link_rot[body - 1], float)

    at, turn = place(camera.body)
    if camera.mode in _TRACKS:
        position, quat = at + camera.pos, camera.quat
    else:
        position, quat = at + rotate(turn, camera.pos), multiply(turn, camera.quat)
    forward, up = rotate(quat, np.array([0.0, 0.0, -1.0])), rotate(quat, np.array([0.0, 1.0, 0.0]))
    if camera.target >= 0 and camera.mode not in (_FIXED, *_TRACKS):
        aim = place(camera.target)[0] - position
        distance = float(np.linalg.norm(aim))
        if distance > 1e-6:
            forward, up = aim / distance, np.array([0.0, 0.0, 1.0])
    return Sight(position, position + AHEAD * forward, up, camera.fov)
