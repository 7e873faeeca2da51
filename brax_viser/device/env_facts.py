"""Finds out what environments seldom say plainly: backend, name, first pose, seconds per step."""

import logging
from typing import Any

import jax
import mujoco
import numpy as np

from brax_viser.device.states import is_mujocos, physics_of
from brax_viser.device.wrappers import attribute, is_playground

log = logging.getLogger("brax_viser")

BRAXS_OWN = ("generalized", "spring", "positional")
"""Backends whose physics is not MuJoCo's."""


def init_qpos_of(stepped: Any, model: mujoco.MjModel) -> np.ndarray:
    """Returns the likely initial qpos, float [nq]: that of Brax's System, or of the model's first
    keyframe, as in most Playground environments, or else `qpos0`."""
    init_q = attribute(stepped, "init_q")
    if init_q is not None and np.shape(init_q) == (model.nq,):
        return np.asarray(jax.device_get(init_q), np.float64)
    return np.asarray(model.key_qpos[0] if model.nkey else model.qpos0, np.float64)


def backend_of(env: Any, base: Any, stepped: Any) -> str:
    """Returns the backend that the environment names, or detects it in the state of its `reset`."""
    if is_playground(base):
        return str(base.mjx_model.impl.value)
    named = attribute(env, "backend")
    if named in ("mjx", *BRAXS_OWN):
        return named
    try:
        physics = physics_of(jax.eval_shape(env.reset, jax.random.PRNGKey(0)))
    # Catch everything: a trainer's own `reset` will show an error, if there really is one.
    except Exception as error:
        log.info("reset of %s cannot be traced by itself: %s", type(base).__name__, error)
        return "mjx"
    if is_mujocos(physics):
        return "warp" if "warp" in type(attribute(physics, "_impl")).__module__ else "mjx"
    own = [name for name in BRAXS_OWN if name in type(physics).__module__]
    return own[0] if own else BRAXS_OWN[0]


_SECONDS = ("dt", "ctrl_dt", "_ctrl_dt", "control_dt", "_control_dt", "control_timestep")
_SUBSTEPS = ("_n_frames", "n_frames", "_n_substeps", "n_substeps", "_substeps", "substeps")
_SUBSTEPS += ("_frame_skip", "frame_skip", "_decimation", "decimation", "physics_steps_per_control")


def dt_of(base: Any, timestep: float) -> float:
    """Returns the duration of one step in s: an attribute of the environment with a usual name, or
    its number of physics steps times the physics' time step, or one such time step."""
    for names, unit in ((_SECONDS, 1.0), (_SUBSTEPS, timestep)):
        for name in names:
            value = attribute(base, name)
            if isinstance(value, int | float | np.number | jax.Array) and np.ndim(value) == 0:
                if np.isfinite(seconds := float(value) * unit) and seconds > 0:
                    return seconds
    return timestep


def playground_name(cls: type) -> str:
    """Returns "Cartpole Balance" for `...dm_control_suite.cartpole.Balance` and "Go1 Joystick" for
    `...go1.joystick.Joystick`, as the names of Playground's own classes do not say which robot it
    is. Classes of scripts and of other packages keep their names."""
    if not cls.__module__.startswith("mujoco_playground."):
        return cls.__name__
    *_, package, module = cls.__module__.split(".")
    robot = package if module.replace("_", "") == cls.__name__.lower() else module
    return f"{robot.replace('_', ' ').capitalize()} {cls.__name__}"
