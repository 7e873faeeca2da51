"""Reads the limits beyond which an environment's own rule ends an episode.

A rule is known by the function that decides: that of an environment of Brax or Playground, or of a
class that inherits it. Where another function decides, no limit is known.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np

from brax_viser.device.wrappers import attribute, is_playground
from brax_viser.records.environment import Limit


def limits_of(base: Any, model: mujoco.MjModel) -> tuple[Limit, ...]:
    """Returns the limits of an innermost environment, as far as they are known.

    Args:
        base: the environment.
        model: the one that it was made from.
    """
    if is_playground(base):
        return _playgrounds(base, model)
    rule = _BRAXS.get(_name_of(attribute(base, "step")))
    return () if rule is None else tuple(rule(base, model))


def _name_of(function: Any) -> str:
    """Returns the function's module and name; a method has those of the class that defines it."""
    return f"{attribute(function, '__module__')}.{attribute(function, '__qualname__')}"


def _link(model: mujoco.MjModel, link: int) -> str:
    return mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, link + 1) or f"body {link + 1}"


def _range(base: Any, quantity: str) -> tuple[float | None, float | None]:
    """Returns the healthy range of an environment of Brax."""
    ends = [float(end) for end in attribute(base, f"_healthy_{quantity}_range")]
    low, high = (end if np.isfinite(end) else None for end in ends)
    return low, high


def _height(base: Any, model: mujoco.MjModel) -> list[Limit]:
    if not attribute(base, "_terminate_when_unhealthy"):
        return []
    return [Limit(f"{_link(model, 0)} height", "height", 0, *_range(base, "z"), "m")]


def _height_and_angle(base: Any, model: mujoco.MjModel) -> list[Limit]:
    found = _height(base, model)
    if found:
        found += [Limit(f"{_link(model, 0)} angle", "qpos", 2, *_range(base, "angle"), "rad")]
    return found


def _hoppers(base: Any, model: mujoco.MjModel) -> list[Limit]:
    found = _height_and_angle(base, model)
    if found:
        found += [Limit("a coordinate or speed", "state", 2, *_range(base, "state"))]
    return found


def _pole(base: Any, model: mujoco.MjModel) -> list[Limit]:
    return [Limit("pole angle", "qpos", 1, -0.2, 0.2, "rad")]


def _tip(base: Any, model: mujoco.MjModel) -> list[Limit]:
    return [Limit("height of the upper pole's tip", "height", 2, 1.0, None, "m", (0.0, 0.0, 0.6))]


_BRAXS: dict[str, Callable[[Any, mujoco.MjModel], list[Limit]]] = {
    "brax.envs.ant.Ant.step": _height,
    "brax.envs.humanoid.Humanoid.step": _height,
    "brax.envs.hopper.Hopper.step": _hoppers,
    "brax.envs.walker2d.Walker2d.step": _height_and_angle,
    "brax.envs.inverted_pendulum.InvertedPendulum.step": _pole,
    "brax.envs.inverted_double_pendulum.InvertedDoublePendulum.step": _tip,
}
"""The limits of Brax's environments, by the function that decides."""

_UPRIGHT = re.compile(r'self\.get_(?:gravity|upvector)\(data(?:, "(\w+)")?\)\[-1\] < (-?[\d.]+)')
"""How Playground's tasks with legs test whether the robot is upright, in their source: by the third
element of the sensor `upvector`, or `upvector_FRAME`, the cosine of the tilt."""


def _playgrounds(base: Any, model: mujoco.MjModel) -> tuple[Limit, ...]:
    rule = attribute(base, "_get_termination")
    deciding = [_name_of(rule), _name_of(attribute(base, "step"))]
    if not all(name.startswith("mujoco_playground.") for name in deciding):
        return ()
    # Some tasks can be told not to end episodes by a fall.
    config = attribute(base, "_config")
    if config is not None and not config.get("early_termination", True):
        return ()
    try:
        found = _UPRIGHT.search(inspect.getsource(rule))
    except (OSError, TypeError):  # installed without its source
        return ()
    if found is None:
        return ()
    frame, least = found.groups()
    kind = mujoco.mjtObj.mjOBJ_SENSOR
    sensor = mujoco.mj_name2id(model, kind, f"upvector_{frame}" if frame else "upvector")
    if sensor < 0 or model.sensor_type[sensor] != mujoco.mjtSensor.mjSENS_FRAMEZAXIS:
        return ()
    if model.sensor_objtype[sensor] != mujoco.mjtObj.mjOBJ_SITE:
        return ()
    site, axis = int(model.sensor_objid[sensor]), np.zeros(3)
    mujoco.mju_rotVecQuat(axis, np.array([0.0, 0.0, 1.0]), model.site_quat[site])
    link, most = int(model.site_bodyid[site]) - 1, float(np.degrees(np.arccos(float(least))))
    up = float(axis[0]), float(axis[1]), float(axis[2])
    return (Limit(f"tilt of {_link(model, link)}", "tilt", link, None, most, "°", up),)
