"""Finding the models of an environment: MuJoCo's, and the one that JAX steps."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import mujoco
import numpy as np
from mujoco import mjx

from brax_viser.device.wrappers import attribute, layers

Path = tuple[Any, ...]
"""Names of attributes, keys and indices, one after the other, from an environment to a model."""

_MUJOCO = (("sys", "mj_model"), ("mj_model",), ("_mj_model",), ("model",), ("_model",))
_STEPPED = (("sys",), ("mjx_model",), ("_mjx_model",), ("model",), ("_model",))
_DEPTH = 3  # how far below an environment a model is looked for
_BREADTH = 1000  # and among how many attributes of one thing


def stepped_model(base: Any, given: mujoco.MjModel | None = None) -> tuple[Path, Any]:
    """The model that JAX steps, an `mjx.Model` such as Brax's System is, and where it is kept;
    ((), None) if it is nowhere. Of several it is the first, or the first that `given` fits."""
    first = None
    for found in _models(base, _STEPPED, mjx.Model):
        if given is None or misfit(given, found[1]) is None:
            return found
        first = first or found
    return first or ((), None)


def at(base: Any, path: Path) -> Any:
    """What is there right now; None: nothing."""
    return _followed(base, path) if path else None


def mujoco_model(env: Any, base: Any, stepped: Any) -> mujoco.MjModel:
    """The MjModel that an environment keeps, under whatever name.

    Where it keeps several, the first that has as many bodies and coordinates as what is stepped.

    Args:
        env: with all that is wrapped around it.
        base: the innermost environment.
        stepped: from `stepped_model`; may be None.

    Raises:
        ValueError: there is none, or none that fits.
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
    """In which size they differ, in words; None: in none that matters."""
    for name, what in (("nbody", "bodies"), ("nq", "positions"), ("nv", "velocities")):
        have, wanted = getattr(model, name), getattr(stepped, name, None)
        if wanted is not None and have != wanted:
            return f"has {have} {what} ({name}), but what is stepped has {wanted}"
    return None


def _models(owner: Any, likely: Iterable[Path], kind: type) -> Iterator[tuple[Path, Any]]:
    """Those of the usual names, and then all others among the attributes, the nearest first."""
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
    else:
        # A class's own, where there is a model for all of its environments, come last.
        classes = type(thing).__mro__[:-1]
        yield from getattr(thing, "__dict__", {}).items()
        for cls in classes:
            slots = vars(cls).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if (value := attribute(thing, name)) is not None:
                    yield name, value
        for cls in classes:
            yield from vars(cls).items()


_NO_HOLDERS = (str, bytes, int, float, complex, bool, type(None), type, np.ndarray, jax.Array)


def _may_hold_models(thing: Any) -> bool:
    if isinstance(thing, _NO_HOLDERS) or (callable(thing) and not hasattr(thing, "__dict__")):
        return False
    if isinstance(thing, Mapping | list | tuple):
        return True
    # Of Python's own kinds (functions, modules, descriptors) none does.
    return hasattr(type(thing), "__mro__") and type(thing).__module__ not in ("builtins", "types")


def _followed(owner: Any, path: Path) -> Any:
    for step in path:
        if isinstance(owner, Mapping | list | tuple):
            try:
                owner = owner[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):  # a named tuple has no names for keys
                return None
        elif isinstance(step, str):
            owner = attribute(owner, step)
        if owner is None:
            return None
    return owner
