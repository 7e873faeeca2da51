"""Says why an episode was terminated, from the environment's own limits and the last pose."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brax_viser.model.rotations import rotate
from brax_viser.records.environment import Limit
from brax_viser.records.frame import Frame


class LastPose(NamedTuple):
    """Where a robot was when its episode ended."""

    link_pos: np.ndarray  # float [L, 3], m
    link_rot: np.ndarray  # float [L, 4], wxyz
    qpos: np.ndarray | None = None  # float [nq]; None: not known
    qvel: np.ndarray | None = None  # float [nv]


def last_pose(frame: Frame, row: int) -> LastPose:
    """Returns the pose of a frame's environment, with its coordinates if the frame has them."""
    detail, every = frame.detail, frame.coordinates
    qpos = qvel = None
    if detail is not None and detail.env == frame.env_index[row]:
        qpos, qvel = detail.qpos, detail.qvel
    elif every is not None:
        qpos, qvel = every.qpos[row], every.qvel[row]
    return LastPose(frame.link_pos[row], frame.link_rot[row], qpos, qvel)


def why_ended(limits: Sequence[Limit], pose: LastPose) -> str:
    """Says which of an environment's limits the last pose is beyond: "torso height 1.02 m, above
    1.00 m". Empty where it is beyond none, so that nothing is claimed that was not checked."""
    return "; ".join(filter(None, (_beyond(limit, pose) for limit in limits)))


def _beyond(limit: Limit, pose: LastPose) -> str:
    values = _measured(limit, pose)
    for end, side, beyond in ((limit.low, "below", -values), (limit.high, "above", values)):
        sign = -1 if side == "below" else 1
        if end is not None and len(values) and beyond.max() > sign * end:
            return f"{limit.what} {_told(sign * float(beyond.max()), side, end, limit.unit)}"
    return ""


def _told(value: float, side: str, end: float, unit: str) -> str:
    """Writes two numbers with as many digits as it takes to tell them apart."""
    digits = next((n for n in range(2, 7) if round(value, n) != round(end, n)), 7)
    unit = unit if unit in ("", "°") else f" {unit}"
    return f"{value:,.{digits}f}{unit}, {side} {end:,.{digits}f}{unit}"


def _measured(limit: Limit, pose: LastPose) -> np.ndarray:
    """Returns the values that a limit holds for, float32 [N]; none where they are not known."""
    nothing = np.zeros(0, np.float32)
    if limit.of in ("height", "tilt"):
        if limit.index >= len(pose.link_pos):
            return nothing
        turned = rotate(pose.link_rot[limit.index], np.array(limit.point))
        if limit.of == "height":
            found = pose.link_pos[limit.index, 2] + turned[2]
        else:
            found = np.degrees(np.arccos(np.clip(turned[2], -1.0, 1.0)))
        values = np.array([found])
    elif pose.qpos is not None and limit.of == "qpos":
        values = pose.qpos[limit.index : limit.index + 1]
    elif pose.qpos is not None and pose.qvel is not None and limit.of == "state":
        values = np.concatenate([pose.qpos[limit.index :], pose.qvel])
    else:
        return nothing
    return values.astype(np.float32) if np.isfinite(values).all() else nothing
