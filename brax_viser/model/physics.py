"""Runs MuJoCo's forward computation on the host, for the state of one environment."""

import copy
from collections.abc import Mapping

import mujoco
import numpy as np

from brax_viser.model.rotations import multiply, rotate
from brax_viser.records.frame import Detail, Frame

AXIAL = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
"""Types of joints with one axis and one coordinate, as the integers in a model's arrays."""

_CONJUGATE = np.array([1.0, -1.0, -1.0, -1.0])


class Physics:
    """A copy of a model, brought into the state of one environment at a time.

    If the training's physics is MuJoCo's (MJX, Warp), `mj_forward` computes everything from qpos,
    qvel and ctrl after the step. Brax's own backends simulate links as separate bodies with joints
    that give: there, bodies, contacts and tendons are placed by the links, and no forces are
    computed, because MuJoCo would push apart, at some multiple of the robot's weight, bodies that
    are at rest in these backends.
    """

    def __init__(self, model: mujoco.MjModel, *, native: bool):
        """Copies the model.

        Args:
            model: is not changed.
            native: whether the training's physics is MuJoCo's.
        """
        self.native = native
        self._original = model
        self.model = copy.copy(model)
        self.data = mujoco.MjData(self.model)
        self._own: Mapping[str, np.ndarray] = {}
        self._placed: Detail | None = None

    def place(self, frame: Frame, row: int, own: Mapping[str, np.ndarray]) -> bool:
        """Brings model and data into the state of the frame's detail, unless they are in it.

        Args:
            frame: must have a detail.
            row: of the environment in the frame.
            own: the fields in which its model differs from the shared one; see
                `adapters.MODEL_FIELDS`.

        Returns:
            Whether the state is finite; if not, `data` is left as it was and must not be used.
        """
        detail = frame.detail
        assert detail is not None
        finite = bool(np.isfinite(detail.qpos).all() and np.isfinite(detail.qvel).all())
        if not finite or (detail is self._placed and own is self._own):
            return finite
        if own is not self._own:
            self._become(own)
        self._placed, data = detail, self.data
        for name in ("qpos", "qvel", "ctrl", "act", "mocap_pos", "mocap_quat"):
            value = getattr(detail, name)
            if value is not None:
                getattr(data, name)[:] = value
        # The solution for the last state is not a starting point for another robot.
        data.qacc_warmstart[:] = 0
        if self.native:
            mujoco.mj_forward(self.model, data)
        else:
            self._place_links(frame.link_pos[row], frame.link_rot[row])
        return True

    def _become(self, own: Mapping[str, np.ndarray]) -> None:
        self._own = own
        self.model = varied(self._original, own)
        self.data = mujoco.MjData(self.model)

    def _place_links(self, link_pos: np.ndarray, link_rot: np.ndarray) -> None:
        model, data = self.model, self.data
        mujoco.mj_kinematics(model, data)
        pos, rot = with_world(link_pos, link_rot)
        base, turn = data.xpos.copy(), multiply(rot, data.xquat * _CONJUGATE)

        def move(points: np.ndarray, bodies: np.ndarray) -> None:
            points[:] = pos[bodies] + rotate(turn[bodies], points - base[bodies])

        def spin(matrices: np.ndarray, bodies: np.ndarray) -> None:
            columns = matrices.reshape(-1, 3, 3).swapaxes(1, 2)
            turned = rotate(turn[bodies][:, None], columns).swapaxes(1, 2)
            matrices[:] = turned.reshape(-1, 9)

        bodies = np.arange(model.nbody)
        move(data.xipos, bodies)
        spin(data.ximat, bodies)
        move(data.xanchor, model.jnt_bodyid)
        data.xaxis[:] = rotate(turn[model.jnt_bodyid], data.xaxis)
        move(data.geom_xpos, model.geom_bodyid)
        spin(data.geom_xmat, model.geom_bodyid)
        move(data.site_xpos, model.site_bodyid)
        spin(data.site_xmat, model.site_bodyid)
        spin(data.xmat, bodies)
        data.xpos[:], data.xquat[:] = pos, rot
        mujoco.mj_comPos(model, data)
        mujoco.mj_comVel(model, data)
        mujoco.mj_tendon(model, data)
        mujoco.mj_collision(model, data)


def varied(model: mujoco.MjModel, own: Mapping[str, np.ndarray]) -> mujoco.MjModel:
    """A copy of a model with an environment's own values of some fields.

    Args:
        model: is not changed.
        own: by the names of `adapters.MODEL_FIELDS`.
    """
    model = copy.copy(model)
    for name, value in own.items():
        if name == "link.inertia.mass":
            model.body_mass[1:] = value
        elif (field := getattr(model, name, None)) is not None:
            field[:] = np.reshape(value, field.shape)
    model.body_subtreemass[:] = model.body_mass
    for body in range(model.nbody - 1, 0, -1):
        model.body_subtreemass[model.body_parentid[body]] += model.body_subtreemass[body]
    return model


def with_world(link_pos: np.ndarray, link_rot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts the poses of links to those of bodies, float64 [B, 3] in m and [B, 4] wxyz: body 0
    is the world, link i is body i + 1."""
    pos = np.concatenate([np.zeros((1, 3)), link_pos])
    rot = np.concatenate([[[1.0, 0.0, 0.0, 0.0]], link_rot])
    return pos, rot


def body_name(model: mujoco.MjModel, body: int) -> str:
    """The model's name for a body, or "body" and its index, with its first geom's name if that has
    one: the feet of Brax's ant are bodies without a name."""
    name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, body)
    if name or not model.body_geomnum[body]:
        return name or f"body {body}"
    geom = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, int(model.body_geomadr[body]))
    return f"body {body} ({geom})" if geom else f"body {body}"


def named(model: mujoco.MjModel, kind: mujoco.mjtObj, index: int, word: str) -> str:
    """The model's name for an object, or a word and its index."""
    return mujoco.mj_id2name(model, kind, index) or f"{word} {index}"


def touching_nothing(model: mujoco.MjModel) -> list[str]:
    """Returns the names of the moving bodies that can be seen and have no contacts: by the model,
    none of their geoms collides with any other, so that they pass through the floor."""
    collides = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    collides[model.pair_geom1], collides[model.pair_geom2] = True, True
    seen = (model.geom_group < 3) & ((model.geom_rgba[:, 3] > 0) | (model.geom_matid >= 0))
    bodies = np.unique(model.geom_bodyid[seen & (model.body_weldid[model.geom_bodyid] != 0)])
    touching = set(model.geom_bodyid[collides].tolist())
    return [body_name(model, body) for body in bodies.tolist() if body not in touching]


def limits_exceeded(model: mujoco.MjModel, qpos: np.ndarray) -> list[tuple[int, float]]:
    """(joint, excess) of the slides, in m, and hinges, in rad, that are beyond their range; the
    excess is negative below the lower end and positive above the upper end."""
    found = []
    for joint in np.flatnonzero(model.jnt_limited):
        if int(model.jnt_type[joint]) not in AXIAL:
            continue
        value = float(qpos[model.jnt_qposadr[joint]])
        low, high = model.jnt_range[joint]
        beyond = min(value - low, 0.0) + max(value - high, 0.0)
        if beyond:
            found.append((int(joint), float(beyond)))
    return found


def body_hit(
    model: mujoco.MjModel,
    link_pos: np.ndarray,
    link_rot: np.ndarray,
    start: np.ndarray,
    direction: np.ndarray,
) -> int | None:
    """The body of a robot that a ray hits, or else the moving one nearest to the ray, if any.

    Args:
        model: the robot.
        link_pos: float [L, 3], m, as drawn.
        link_rot: float [L, 4], wxyz, as drawn.
        start: float [3], m, in the same frame.
        direction: float [3], of unit length.
    """
    data = mujoco.MjData(model)
    pos, rot = with_world(link_pos, link_rot)
    owner = model.geom_bodyid
    data.geom_xpos[:] = pos[owner] + rotate(rot[owner], model.geom_pos)
    for geom, quat in enumerate(multiply(rot[owner], model.geom_quat)):
        mujoco.mju_quat2Mat(data.geom_xmat[geom], quat)
    met = np.full(1, -1, np.int32)
    mujoco.mj_ray(model, data, start.astype(float), direction.astype(float), None, 0, -1, met)
    if met[0] >= 0:
        return int(owner[met[0]])
    moving = np.flatnonzero(model.body_weldid[owner] > 0)
    if not len(moving):
        return None
    away = data.geom_xpos[moving] - start
    off = np.linalg.norm(away - np.outer(away @ direction, direction), axis=1)
    return int(owner[moving[np.argmin(off - model.geom_rbound[moving])]])
