"""The model by which plain MuJoCo steps what a training's physics steps."""

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from brax_viser.adapters import Adapter, PlaygroundAdapter

OPTIONS = (
    *("timestep", "impratio", "tolerance", "ls_tolerance", "gravity", "density", "viscosity"),
    *("magnetic", "wind", "iterations", "ls_iterations", "integrator", "solver", "cone"),
    "disableflags",
)
"""Of the physics, in which a training's may differ from those of its model's file."""

PARAMETERS = (
    *("body_mass", "body_inertia", "body_ipos", "body_iquat", "jnt_stiffness", "jnt_range"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "geom_friction", "geom_size", "geom_pos"),
    *("geom_quat", "geom_solref", "geom_solimp", "actuator_gainprm", "actuator_biasprm"),
    *("actuator_gear", "actuator_ctrlrange", "actuator_forcerange", "tendon_stiffness"),
    *("qpos_spring", "qpos0"),
)
"""Of the model, likewise, or under domain randomisation."""


def model_of(
    adapter: Adapter, own: Mapping[str, np.ndarray] | None = None
) -> tuple[mujoco.MjModel, int]:
    """A model that MuJoCo steps as the training's physics steps its environments.

    On MJX and Warp it has the solver, its iterations and all else that the environment has set
    after the model was made; ant, for one, is stepped with a single iteration. Brax's own backends
    have physics of their own; there, it is MuJoCo's with the strength of the training's motors.

    Args:
        adapter: of the environment. While a step of it is traced is no time to call this.
        own: what the environment's model has otherwise than all others'; see
            `adapters.MODEL_FIELDS`.

    Returns:
        The model, a copy; and how many of its steps an env step is.
    """
    model = copy.copy(adapter.mj_model)
    traced = adapter.base.mjx_model if isinstance(adapter, PlaygroundAdapter) else adapter.base.sys
    if adapter.native:
        for name in OPTIONS:
            if (value := getattr(traced.opt, name, None)) is not None:
                _write(model.opt, name, value)
        for name in PARAMETERS:
            _write(model, name, getattr(traced, name, None))
    else:
        model.actuator_gear[:, 0] = np.asarray(traced.actuator.gear)
    for name, value in (own or {}).items():
        if name == "link.inertia.mass":
            model.body_mass[1:] = value
        else:
            _write(model, name, value)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    dt = float(adapter.base.dt)
    substeps = max(1, round(dt / model.opt.timestep))
    model.opt.timestep = dt / substeps
    return model, substeps


def _write(target: Any, name: str, value: Any) -> None:
    own = getattr(target, name, None)
    if value is None or own is None:
        return
    value = np.asarray(int(value) if isinstance(own, int) else value)  # some are enumerations
    # Where it is the same, the original's is the more precise one.
    if np.shape(own) != value.shape or np.allclose(own, value, rtol=1e-6, atol=0):
        return
    if isinstance(own, np.ndarray):
        own[:] = value
    else:
        setattr(target, name, type(own)(value))
