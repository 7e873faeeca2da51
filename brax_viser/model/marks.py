"""Makes the lines that overlays draw of one robot from MuJoCo's quantities. Pure functions.

Sizes and colours are those of MuJoCo's viewer: `model.vis.scale` in mean geom sizes
(`model.stat.meansize`) and `model.vis.rgba`; see its `engine_vis_visualize.c`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.physics import AXIAL, limits_exceeded
from brax_viser.model.rods import Limits
from brax_viser.model.rotations import rotate

VELOCITY_SECONDS = 0.1
"""A velocity arrow ends where the body would be after this time."""

AXES_RGB = np.array([[224, 49, 49], [47, 158, 68], [28, 126, 214]], np.uint8)

# Plain integers, to be compared with the integers in a model's arrays.
_JOINT, _TENDON = int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_TENDON)
_IN_PARENT, _BODY = int(mujoco.mjtTrn.mjTRN_JOINTINPARENT), int(mujoco.mjtTrn.mjTRN_BODY)
_BY_SITE, _BY_JOINT = int(mujoco.mjtWrap.mjWRAP_SITE), int(mujoco.mjtWrap.mjWRAP_JOINT)
_BY_GEOM = (int(mujoco.mjtWrap.mjWRAP_SPHERE), int(mujoco.mjtWrap.mjWRAP_CYLINDER))


@dataclass(frozen=True, eq=False)
class Lines:
    """N lines or arrows, in the environment's world frame."""

    ends: np.ndarray  # float [N, 2, 3], m
    body: np.ndarray  # int [N, 2], which body each end moves with
    rgb: np.ndarray  # uint8 [N, 3]
    turns: bool = True  # whether a line turns with its body; otherwise it keeps its direction

    @classmethod
    def of(
        cls,
        start: Sequence[np.ndarray] | np.ndarray,
        vector: Sequence[np.ndarray] | np.ndarray,
        body: Sequence[int] | np.ndarray,
        rgb: np.ndarray,
        *,
        turns: bool = True,
    ) -> "Lines":
        """Makes lines that each move with one body."""
        start, vector = np.reshape(start, (-1, 3)), np.reshape(vector, (-1, 3))
        ends = np.stack([start, start + vector], axis=1)
        body = np.repeat(np.reshape(np.asarray(body, int), (-1, 1)), 2, axis=1)
        return cls(ends, body, np.broadcast_to(rgb, (len(ends), 3)).astype(np.uint8), turns)

    def at(
        self, xpos: np.ndarray, xquat: np.ndarray, pos: np.ndarray, rot: np.ndarray
    ) -> np.ndarray:
        """float [N, 2, 3], m: the ends after the bodies have moved.

        A robot is mostly drawn at a moment between two steps, and MJX's poses are those at the
        start of its last substep. So each line is carried along by its body.

        Args:
            xpos: float [B, 3], m, positions of the bodies when the lines were made.
            xquat: float [B, 4], wxyz, their orientations then.
            pos: float [B, 3], m, their positions as drawn.
            rot: float [B, 4], wxyz, their orientations as drawn.
        """
        back = xquat * np.array([1.0, -1.0, -1.0, -1.0])
        local = rotate(back[self.body], self.ends - xpos[self.body])
        moved = pos[self.body] + rotate(rot[self.body], local)
        if not self.turns:
            moved[:, 1] = moved[:, 0] + self.ends[:, 1] - self.ends[:, 0]
        return moved


def contacts(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Contact points: short lines along the contacts' normals, drawn thick."""
    half = model.vis.scale.contactheight * model.stat.meansize * data.contact.frame[:, :3]
    return Lines.of(
        data.contact.pos - half, 2 * half, _touching(model, data)[1], _rgb(model, "contactpoint")
    )


def contact_forces(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """The force of each contact on the body with the higher id, from `mj_contactForce`, at the
    length of MuJoCo's viewer: `vis.map.force / stat.meanmass` metres per newton."""
    forces = np.zeros((data.ncon, 6))
    for index, force in enumerate(forces):
        mujoco.mj_contactForce(model, data, index, force)
    frames = data.contact.frame.reshape(-1, 3, 3)
    vectors = np.einsum("nij,ni->nj", frames, forces[:, :3])
    lower, higher = _touching(model, data)
    first = _body_of_geoms(model, data.contact.geom[:, :1])[:, 0]
    # `mj_contactForce` gives the force on the second geom's body.
    vectors[(first == higher) & (lower != higher)] *= -1
    acts = np.linalg.norm(vectors, axis=1) > 0
    scale = model.vis.map.force / model.stat.meanmass
    rgb = _rgb(model, "contactforce")
    return Lines.of(data.contact.pos[acts], scale * vectors[acts], higher[acts], rgb, turns=False)


def joint_axes(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Hinges and slides as arrows along their axes."""
    axial = np.isin(model.jnt_type, AXIAL)
    length = model.vis.scale.jointlength * model.stat.meansize
    body = model.jnt_bodyid[axial]
    return Lines.of(data.xanchor[axial], length * data.xaxis[axial], body, _rgb(model, "joint"))


def actuators(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Each actuator's control, as an arrow where it acts; full length at the end of its range."""
    share = activity(model, data)
    usual, ends = _rgb(model, "actuator"), ("actuatornegative", "actuatorpositive")
    towards = np.stack([_rgb(model, name) for name in ends])[(share > 0).astype(int)]
    rgb = usual + np.abs(share)[:, None] * (towards.astype(float) - usual)
    places = [_place_of(model, data, actuator) for actuator in range(model.nu)]
    length = 3 * model.vis.scale.actuatorlength * model.stat.meansize * share[:, None]
    start, axis, body = (list(column) for column in zip(*places, strict=True))
    return Lines.of(start, length * np.reshape(axis, (-1, 3)), body, rgb)


def activity(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """float [nu], -1 to 1: controls, as fractions of the largest that their range allows."""
    limited = model.actuator_ctrllimited.astype(bool)
    largest = np.abs(model.actuator_ctrlrange).max(axis=1, initial=0.0)
    largest = np.where(limited & (largest > 0), largest, 1.0)
    return np.clip(data.ctrl / largest, -1.0, 1.0)


def violations(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Penetrating contacts, as lines along their normals with the depth as length, and joints
    beyond their limits, as lines along their axes."""
    rgb, size = _rgb(model, "constraint"), model.stat.meansize
    deep = data.contact.dist < 0
    # Drawn long enough to be seen.
    depth = np.maximum(-data.contact.dist[deep], 0.3 * size)[:, None]
    normal, body = data.contact.frame[deep, :3], _touching(model, data)[1][deep]
    start, vector = [data.contact.pos[deep] - depth * normal / 2], [depth * normal]
    joints = [joint for joint, _ in limits_exceeded(model, data.qpos)]
    axis = model.vis.scale.jointlength * size * data.xaxis[joints]
    start.append(data.xanchor[joints] - axis / 2)
    vector.append(axis)
    bodies = np.concatenate([body, model.jnt_bodyid[joints]])
    return Lines.of(np.concatenate(start), np.concatenate(vector), bodies, rgb)


def body_frames(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """The axes x, y and z of each body but the world, in red, green and blue."""
    return _frames(model, data.xpos[1:], data.xmat[1:], np.arange(1, model.nbody))


def geom_frames(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """The axes x, y and z of each geom whose body can move."""
    moves = model.body_weldid[model.geom_bodyid] > 0
    return _frames(model, data.geom_xpos[moves], data.geom_xmat[moves], model.geom_bodyid[moves])


def tendons(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Spatial tendons, from site to site and around the geoms that they wrap, as in `mj_tendon`."""
    ends, bodies, rgb = [], [], []
    limits = Limits.of(model)
    broken = {} if limits is None else limits.broken(data.ten_length)
    points, objects = data.wrap_xpos.reshape(-1, 3), data.wrap_obj.reshape(-1)
    for tendon in range(model.ntendon):
        start = int(data.ten_wrapadr[tendon])
        owners = _wrap_bodies(model, tendon)
        for index in range(start, start + int(data.ten_wrapnum[tendon]) - 1):
            if -2 in objects[index : index + 2]:  # a pulley: the path is broken
                continue
            ends.append(points[index : index + 2])
            # Each end moves with the nearest of the bodies with a site or geom of the tendon.
            for point in points[index : index + 2]:
                where = data.xpos[owners]
                bodies.append(owners[int(np.argmin(np.linalg.norm(where - point, axis=1)))])
            material = int(model.tendon_matid[tendon])
            rgba = model.tendon_rgba[tendon] if material < 0 else model.mat_rgba[material]
            rgb.append(broken.get(tendon, (255 * rgba[:3]).astype(np.uint8)))
    return Lines(
        np.reshape(ends, (-1, 2, 3)),
        np.reshape(bodies, (-1, 2)).astype(int),
        np.reshape(rgb, (-1, 3)),
    )


def velocities(model: mujoco.MjModel, data: mujoco.MjData) -> Lines:
    """Each body's velocity, as an arrow from its centre of mass; see `VELOCITY_SECONDS`."""
    speeds = np.zeros((model.nbody, 6))
    for body in range(1, model.nbody):
        kind = mujoco.mjtObj.mjOBJ_BODY
        mujoco.mj_objectVelocity(model, data, kind, body, speeds[body], 0)
    bodies = np.arange(1, model.nbody)
    vectors = VELOCITY_SECONDS * speeds[1:, 3:]
    return Lines.of(data.xipos[1:], vectors, bodies, np.array([255, 212, 59]), turns=False)


def inertia_boxes(model: mujoco.MjModel) -> np.ndarray:
    """float [B, 3], m: half sides of boxes with each body's mass and inertia; 0 without mass.
    A box with half sides x, y and z has the inertia mass / 3 * (y^2 + z^2) about x."""
    inertia, mass = model.body_inertia, np.maximum(model.body_mass, mujoco.mjMINVAL)[:, None]
    squared = 1.5 * (inertia.sum(axis=1, keepdims=True) - 2 * inertia) / mass
    return np.where(model.body_mass[:, None] > 0, np.sqrt(np.maximum(squared, 0.0)), 0.0)


def _frames(model: mujoco.MjModel, pos: np.ndarray, mat: np.ndarray, body: np.ndarray) -> Lines:
    length = model.vis.scale.framelength * model.stat.meansize
    axes = mat.reshape(-1, 3, 3).swapaxes(1, 2).reshape(-1, 3)
    rgb = np.tile(AXES_RGB, (len(pos), 1))
    return Lines.of(np.repeat(pos, 3, axis=0), length * axes, np.repeat(body, 3), rgb)


def _touching(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
    """int [ncon] each: the lower and the higher id of the bodies of each contact."""
    bodies = np.sort(_body_of_geoms(model, data.contact.geom), axis=1)
    return bodies[:, 0], bodies[:, 1]


def _body_of_geoms(model: mujoco.MjModel, geoms: np.ndarray) -> np.ndarray:
    # A flex in contact has no geom: it counts as the world.
    return np.where(geoms >= 0, model.geom_bodyid[np.maximum(geoms, 0)], 0)


def _place_of(
    model: mujoco.MjModel, data: mujoco.MjData, actuator: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Point, direction and body on which an actuator acts."""
    kind, target = int(model.actuator_trntype[actuator]), int(model.actuator_trnid[actuator, 0])
    gear = model.actuator_gear[actuator, :3]
    if kind in (_JOINT, _IN_PARENT):
        body = int(model.jnt_bodyid[target])
        if model.jnt_type[target] in AXIAL:
            return data.xanchor[target], data.xaxis[target], body
        return data.xanchor[target], _unit(data.xmat[body].reshape(3, 3) @ gear), body
    if kind == _TENDON:
        if data.ten_wrapnum[target] < 2:  # a fixed tendon has no path: it sums up joints
            joint = int(model.wrap_objid[model.tendon_adr[target]])
            return data.xanchor[joint], data.xaxis[joint], int(model.jnt_bodyid[joint])
        start, owners = int(data.ten_wrapadr[target]), _wrap_bodies(model, target)
        one, other = data.wrap_xpos.reshape(-1, 3)[start : start + 2]
        return one, _unit(other - one), owners[0]
    if kind == _BODY:
        return data.xpos[target], data.xmat[target].reshape(3, 3)[:, 2], target
    # A site, or a slider-crank's crank site.
    turn = data.site_xmat[target].reshape(3, 3)
    along = turn @ gear if gear.any() else turn[:, 2]
    return data.site_xpos[target], _unit(along), int(model.site_bodyid[target])


def _wrap_bodies(model: mujoco.MjModel, tendon: int) -> list[int]:
    """Bodies of a spatial tendon's sites and geoms, or of a fixed one's joints."""
    bodies = []
    start = int(model.tendon_adr[tendon])
    for index in range(start, start + int(model.tendon_num[tendon])):
        kind, target = int(model.wrap_type[index]), int(model.wrap_objid[index])
        if kind == _BY_SITE:
            bodies.append(int(model.site_bodyid[target]))
        elif kind in _BY_GEOM:
            bodies.append(int(model.geom_bodyid[target]))
        elif kind == _BY_JOINT:
            bodies.append(int(model.jnt_bodyid[target]))
    return bodies or [0]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), mujoco.mjMINVAL)


def _rgb(model: mujoco.MjModel, name: str) -> np.ndarray:
    """uint8 [3]: a colour from the model's visual settings."""
    return (255 * np.asarray(getattr(model.vis.rgba, name))[:3]).astype(np.uint8)


def unavailable(model: mujoco.MjModel, *, native: bool, backend: str) -> dict[str, str]:
    """Overlays that a robot cannot have, each with the reason to show to the user.

    Args:
        model: the robot.
        native: whether the training's physics is MuJoCo's.
        backend: name of that physics.
    """
    reasons = {}
    if not native:
        reasons["contact_forces"] = (
            f"the {backend} backend computes contacts in its own way and reports no forces"
        )
    if model.nu == 0:
        reasons["actuators"] = "this robot has no actuators"
    if not np.isin(model.jnt_type, AXIAL).any():
        reasons["joint_axes"] = "this robot has no hinges and no slides"
    if not (model.wrap_type == int(mujoco.mjtWrap.mjWRAP_SITE)).any():
        reasons["tendons"] = "this robot has no spatial tendons"
    if model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_CONTACT):
        reasons["contacts"] = reasons["contact_forces"] = "contacts are switched off in this model"
    elif not (model.geom_contype.any() or model.geom_conaffinity.any() or model.npair):
        reasons["contacts"] = reasons["contact_forces"] = "no two geoms of this model can touch"
    return reasons
