"""Finds the models of an environment: MuJoCo's, and the one that JAX steps."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import jax
import mujoco
import numpy as np
from mujoco import mjx

from brax_viser.device.wrappers import attribute, layers

Path = tuple[Any, ...]
"""The sequence of attribute names, keys and indices that leads from an environment to a model."""

_MUJOCO = (("sys", "mj_model"), ("mj_model",), ("_mj_model",), ("model",), ("_model",))
_STEPPED = (("sys",), ("mjx_model",), ("_mjx_model",), ("model",), ("_model",))
_DEPTH = 3  # levels of attributes below an environment that are searched
_BREADTH = 1000  # attributes of one object that are searched


def stepped_model(base: Any, given: mujoco.MjModel | None = None) -> tuple[Path, Any]:
    """Returns (path, model) of the model that JAX steps, an `mjx.Model` or a Brax System, a
    subclass of it; ((), None) if there is none. Of several, the first that matches `given`, or the
    first."""
    first = None
    for found in _models(base, _STEPPED, mjx.Model):
        if given is None or misfit(given, found[1]) is None:
            return found
        first = first or found
    return first or ((), None)


def at(base: Any, path: Path) -> Any:
    """Returns the present value at `path`, or None if the path is empty or leads nowhere."""
    return _followed(base, path) if path else None


def mujoco_model(env: Any, base: Any, stepped: Any) -> mujoco.MjModel:
    """Returns the MjModel that an environment keeps under any name.

    Of several, the first that has as many bodies and coordinates as the stepped model.

    Args:
        env: the environment with all its wrappers.
        base: the innermost environment.
        stepped: from `stepped_model`; may be None.

    Raises:
        ValueError: there is none, or none matches.
    """
    other = None
    for owner in (base, *layers(env)):
        for _, model in _models(owner, _MUJOCO, mujoco.MjModel):
            if misfit(model, stepped) is None:
                return model
            other = other or model
    if other is not None:
        raise ValueError(
            f"the MuJoCo model of {type(base).__name__} {misfit(other, stepped)}: give the one "
            "that it was made of, as in VisualizedEnv(env, mj_model=model)"
        )
    raise ValueError(
        f"{type(base).__name__} has no MuJoCo model (no mujoco.MjModel among its attributes), so "
        "there is nothing to draw: give the one that its mjx.Model was made of, as in "
        "VisualizedEnv(env, mj_model=model), or use an env with a Brax System, such as "
        "brax.envs.get_environment('ant')"
    )


def misfit(model: mujoco.MjModel, stepped: Any) -> str | None:
    """Returns, in words, the first of nbody, nq and nv in which the models differ, or None."""
    for name, what in (("nbody", "bodies"), ("nq", "positions"), ("nv", "velocities")):
        have, wanted = getattr(model, name), getattr(stepped, name, None)
        if wanted is not None and have != wanted:
            return f"has {have} {what} ({name}), but what is stepped has {wanted}"
    return None


def _models(owner: Any, likely: Iterable[Path], kind: type) -> Iterator[tuple[Path, Any]]:
    """Yields the models at the usual paths, then all others among the attributes, nearest first."""
    for path in likely:
        if isinstance(value := _followed(owner, path), kind):
            yield path, value
    seen, near = {id(owner)}, [((), owner)]
    for _ in range(_DEPTH):
        further = []
        for path, thing in near:
            for name, value in itertools.islice(_inside(thing), _BREADTH):
                if isinstance(value, kind):
                    yield (*path, name), value
                elif id(value) not in seen and _may_hold_models(value):
                    seen.add(id(value))
                    further.append(((*path, name), value))
        near = further


def _inside(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, Mapping):
        yield from thing.items()
    elif isinstance(thing, list | tuple):
        yield from enumerate(thing)
    elif isinstance(thing, mujoco.MjData):
        yield "model", thing.model
    else:
        # Class attributes come last: some classes keep one model for all their environments there.
        classes = type(thing).__mro__[:-1]
        yield from getattr(thing, "__dict__", {}).items()
        for cls in classes:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if (value := attribute(thing, name)) is not None:
                    yield name, value
        for cls in classes:
            for name, value in vars(cls).items():
                computes = isinstance(value, property | functools.cached_property)
                # Others may have side effects, or take long.
                if computes and "model" in name.lower():
                    yield name, attribute(thing, name)
                elif not computes:
                    yield name, value


_NO_HOLDERS = (str, bytes, int, float, complex, bool, type(None), type, np.ndarray, jax.Array)


def _may_hold_models(thing: Any) -> bool:
    if isinstance(thing, _NO_HOLDERS) or (callable(thing) and not hasattr(thing, "__dict__")):
        return False
    if isinstance(thing, Mapping | list | tuple):
        return True
    if isinstance(thing, SimpleNamespace):
        return True
    # Python's own types (functions, modules, descriptors) hold none.
    return hasattr(type(thing), "__mro__") and type(thing).__module__ not in ("builtins", "types")


def _followed(owner: Any, path: Path) -> Any:
    for step in path:
        if isinstance(owner, Mapping | list | tuple):
            try:
                owner = owner[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):  # a named tuple is not indexed by name
                return None
        elif isinstance(step, str):
            owner = attribute(owner, step)
        if owner is None:
            return None
    return owner


_OPTIONS = (
    "timestep",
    "gravity",
    "wind",
    "density",
    "viscosity",
    "magnetic",
    "impratio",
    "integrator",
    "cone",
    "solver",
    "iterations",
    "ls_iterations",
    "tolerance",
    "ls_tolerance",
    "disableflags",
    "enableflags",
)
_PHYSICAL = ("qpos", "body_", "jnt_", "dof_", "geom_", "pair_", "eq_", "tendon_", "actuator_")
"""Prefixes of the model's fields that the motion depends on."""


def changes_of(stepped: Any, model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Returns the fields of a JAX model that differ from the MuJoCo model that it was made from."""
    pairs = {f"opt.{name}": (stepped.opt, model.opt, name) for name in _OPTIONS}
    names = [f.name for f in fields(stepped) if f.name.startswith(_PHYSICAL)]
    pairs |= {name: (stepped, model, name) for name in names}
    changes = {}
    for key, (new, old, name) in pairs.items():
        value, usual = getattr(new, name, None), getattr(old, name, None)
        # MJX puts models on the first device, which belongs to the first process: other processes
        # cannot read them, and need not, because the first process makes the twins.
        if value is None or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            continue
        # JAX stores some fields in other shapes.
        if usual is None or np.shape(value) != np.shape(usual):
            continue
        value = np.asarray(value, np.float64)  # some are enumerations
        # Ignore the rounding to float32.
        if not np.allclose(value, usual, rtol=1e-5, atol=1e-7, equal_nan=True):
            changes[key] = value
    # Brax's own backends keep the motors' gear separately.
    motors = getattr(stepped, "actuator", None)
    if motors is not None and len(motors.gear) == model.nu:
        gear = np.asarray(motors.gear)
        if not np.allclose(gear, model.actuator_gear[:, 0]):
            changes["actuator_gear"] = model.actuator_gear.copy()
            changes["actuator_gear"][:, 0] = gear
    return changes
