"""Names the bodies of a robot that touch something."""

import mujoco

from brax_viser.model.physics import body_name, named

NEAR = 1e-3
"""m: closer than this is touching, as resting contacts are a little apart in some engines."""

MOST = 4
"""Pairs that are named."""


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
        # What moves comes first.
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
