"""Describes a robot: how high it is, and which of its bodies touch something."""

import mujoco
import numpy as np

from brax_viser.model.physics import body_name, named

NEAR = 1e-3
"""m: closer than this is touching, as resting contacts are a little apart in some engines."""

UPRIGHT = 0.9
"""Share of its axis that is vertical in a slide that lifts."""

MOST = 4
"""Most pairs that are named."""


def ending(model: mujoco.MjModel, data: mujoco.MjData) -> str:
    """Says how high the robot is, if it can rise and fall, and what touches what.

    Args:
        model: the model.
        data: with its poses and contacts.
    """
    body = _rising_body(model)
    touched = touching(model, data)
    if body is None:
        return touched
    height = f"{body_name(model, body)} at {data.xpos[body, 2]:.2f} m"
    return ", ".join(filter(None, (height, touched)))


def _rising_body(model: mujoco.MjModel) -> int | None:
    """The first body that stands on nothing but the world and can rise: by a free joint, or by a
    vertical slide as planar walkers do."""
    slides = model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE
    rises = slides & (np.abs(model.jnt_axis[:, 2]) > UPRIGHT)
    rises |= model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
    bodies = model.jnt_bodyid[rises]
    bodies = bodies[model.body_weldid[model.body_parentid[bodies]] == 0]
    return int(bodies[0]) if len(bodies) else None


def touching(model: mujoco.MjModel, data: mujoco.MjData) -> str:
    """Says which bodies touch what, the deepest contact first; empty if none does.

    Args:
        model: the model.
        data: with its contacts.
    """
    found: dict[str, float] = {}
    for contact in data.contact:
        if contact.dist > NEAR:
            continue
        # The body that moves comes first.
        one, other = sorted(map(int, contact.geom), key=lambda geom: -model.geom_bodyid[geom])
        pair = f"{_name(model, one)} touches {_name(model, other)}"
        found[pair] = min(found.get(pair, 0.0), float(contact.dist))
    pairs = sorted(found, key=found.__getitem__)
    left = f" and {len(pairs) - MOST} more" if len(pairs) > MOST else ""
    return ", ".join(pairs[:MOST]) + left


def _name(model: mujoco.MjModel, geom: int) -> str:
    """Names a geom by its body, or, if it belongs to the world, by itself."""
    body = int(model.geom_bodyid[geom])
    if body:
        return body_name(model, body)
    return named(model, mujoco.mjtObj.mjOBJ_GEOM, geom, "geom")
