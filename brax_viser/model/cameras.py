"""The cameras that a model comes with, to look through."""

from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.rotations import multiply, rotate

_FIXED = int(mujoco.mjtCamLight.mjCAMLIGHT_FIXED)
_TRACKS = (int(mujoco.mjtCamLight.mjCAMLIGHT_TRACK), int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM))

AHEAD = 1.0
"""m from the camera to the point that a page's camera turns about."""


@dataclass(frozen=True, eq=False)
class ModelCamera:
    """One camera of a model."""

    name: str
    mode: int  # a mujoco.mjtCamLight
    body: int  # that it is on
    target: int  # body that it looks at; -1: none
    pos: np.ndarray  # float [3], m, in the body's frame; from the body, along the world's axes,
    quat: np.ndarray  # float [4], wxyz       where the camera keeps its direction ("track")
    fov: float  # rad, vertical


@dataclass(frozen=True, eq=False)
class Sight:
    """From where, and where to."""

    position: np.ndarray  # float [3], m
    look_at: np.ndarray  # float [3], m
    up: np.ndarray  # float [3]
    fov: float  # rad, vertical


def cameras_of(model: mujoco.MjModel) -> list[ModelCamera]:
    """All cameras of a model, under their names; those without one are counted."""
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
    """Through one robot's camera.

    What MuJoCo's `mj_camlight` does, where only the bodies' poses are known: a camera that tracks a
    centre of mass tracks its body here.

    Args:
        camera: of the robot's model.
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
