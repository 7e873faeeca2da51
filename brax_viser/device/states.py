"""What an environment's state has, whatever its class: physics, and numbers per environment.

Trainers ask little of a state, and environments make use of that: `done` may be a Python bool, a
reward may have an axis of its own, observations may be any pytree, and the physics may be MJX's or
Brax's under either's name. All is found here by what it has, while a step is being traced.
"""

import copy
import dataclasses
from collections.abc import Container, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PHYSICS_NAMES = ("pipeline_state", "data")
_NO_PHYSICS = ("obs", "reward", "done", "metrics", "info")


def is_mujocos(physics: Any) -> bool:
    """Whether it has MuJoCo's names, as the data of MJX and Warp do, and Brax's state on MJX."""
    return all(hasattr(physics, name) for name in ("qpos", "qvel", "xpos", "xquat"))


def is_physics(thing: Any) -> bool:
    """Whether it is MuJoCo's data, or a pipeline state of one of Brax's own backends."""
    return is_mujocos(thing) or all(hasattr(thing, name) for name in ("q", "qd", "x"))


def physics_of(state: Any) -> Any:
    """The physics within an environment's state.

    Raises:
        ValueError: there is none.
    """
    for value in _places(state):
        for leaf in jax.tree.leaves(value, is_leaf=is_physics):
            if is_physics(leaf):
                return leaf
    raise ValueError(
        f"the state that reset returns, a {type(state).__name__}, has no physics in it: keep the "
        "mjx.Data, or Brax's pipeline state, in its field `pipeline_state` or `data`"
    )


def _own_fields(state: Any) -> list[str]:
    """Names of those of a state's fields that not all environments' have."""
    names = [f.name for f in dataclasses.fields(state)] if dataclasses.is_dataclass(state) else []
    names = names or list(getattr(state, "_fields", ())) or list(getattr(state, "__dict__", ()))
    return [name for name in names if name not in (*_PHYSICS_NAMES, *_NO_PHYSICS)]


def _places(state: Any) -> Iterator[Any]:
    """Where a state may have its physics, the likely ones first."""
    for name in (*_PHYSICS_NAMES, *_own_fields(state)):
        yield getattr(state, name, None)
    yield own_info(info if isinstance(info := getattr(state, "info", None), Mapping) else {})


def own_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` without what auto-resets keep there to go back to."""
    return {
        key: x
        for key, x in info.items()
        if not (isinstance(key, str) and key.startswith(("first_", "AutoReset")))
    }


def coordinates_of(physics: Any) -> tuple[jax.Array, jax.Array]:
    """(qpos [*batch, nq], qvel [*batch, nv])."""
    # On all of Brax's backends these are MuJoCo's qpos and qvel: `tests/test_detail.py`.
    return (physics.qpos, physics.qvel) if is_mujocos(physics) else (physics.q, physics.qd)


def poses_of(physics: Any) -> tuple[jax.Array, jax.Array]:
    """(positions [*batch, L, 3] in m, rotations [*batch, L, 4] wxyz) of all bodies but the world,
    or of all links. MuJoCo's come first: an environment that calls `mjx.step` itself on a state of
    Brax's leaves Brax's own fields as they were."""
    if is_mujocos(physics):
        return physics.xpos[..., 1:, :], physics.xquat[..., 1:, :]
    return physics.x.pos, physics.x.rot


def batch_of(state: Any) -> tuple[int, ...]:
    """The shape of the batch that a state is of, () within a vmap. `done` cannot be asked: it may
    be a Python number, or have an axis of its own."""
    return coordinates_of(physics_of(state))[0].shape[:-1]


def done_of(state: Any, batch: tuple[int, ...]) -> jax.Array:
    """[*batch], above 0 where the state is done: in any of its parts, where it has several."""
    parts = [_per_env(x, batch) for x in jax.tree.leaves(getattr(state, "done", None))]
    if len(parts) == 1 and parts[0].shape == batch:
        return parts[0]
    whole = [(x > 0).reshape(*batch, -1).any(axis=-1) for x in parts]
    return jnp.stack(whole).any(axis=0) if whole else jnp.zeros(batch, bool)


def reward_of(state: Any, batch: tuple[int, ...]) -> jax.Array:
    """[*batch]: the reward, or the sum of its parts where it has several objectives."""
    parts = [_per_env(x, batch) for x in jax.tree.leaves(getattr(state, "reward", None))]
    if len(parts) == 1 and parts[0].shape == batch:
        return parts[0]
    whole = [x.reshape(*batch, -1).sum(axis=-1) for x in parts]
    return sum(whole[1:], whole[0]) if whole else jnp.zeros(batch, jnp.float32)


def count_of(info: Mapping[str, Any], name: str, batch: tuple[int, ...]) -> jax.Array | None:
    """[*batch]: a number that a wrapper, or the environment, keeps in `info`; None: no such."""
    value = info.get(name)
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        return None
    if not any(jnp.issubdtype(jnp.result_type(value), kind) for kind in (jnp.number, jnp.bool_)):
        return None
    value = _per_env(value, batch)
    return value if value.shape == batch else value.reshape(*batch, -1).max(axis=-1)


def is_key(x: Any) -> bool:
    """Whether it is a typed random key, or an array of such: they are no numbers."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _per_env(x: Any, batch: tuple[int, ...]) -> jax.Array:
    """An array [*batch, ...] of a number or an array of any shape."""
    x = jnp.asarray(x)
    if x.shape[: len(batch)] == batch:
        return x
    if x.ndim <= len(batch) and all(
        have in (1, size) for have, size in zip(x.shape[::-1], batch[::-1], strict=False)
    ):
        return jnp.broadcast_to(x, batch)
    # Of no environment in particular.
    return jnp.broadcast_to(x.ravel(), (*batch, x.size))


def numbers_of(state: Any, keys: Container[str]) -> dict[str, jax.Array]:
    """By its path, each number [*batch] that an environment keeps beside its physics: under these
    keys of `info`, and in fields of the state that are its own."""
    kept = {name: getattr(state, name) for name in _own_fields(state)}
    kept |= {key: x for key, x in info_of(state).items() if key in keys}
    kept = {
        name: x
        for name, x in kept.items()
        if not any(map(is_physics, jax.tree.leaves(x, is_leaf=is_physics)))
    }
    batch, numbers = batch_of(state), {}
    for path, x in named_leaves(kept).items():
        if isinstance(x, jax.Array | np.ndarray) and x.shape == batch:
            if any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.integer, jnp.floating)):
                numbers[path] = jnp.asarray(x)
    return numbers


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree by their paths, as "a/0"; "" for a tree that is a leaf itself."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}


def replaced(state: Any, **changes: Any) -> Any:
    """The state with some of its fields replaced, of whatever kind it is: a dataclass of flax,
    chex or the standard library, a named tuple, or any other object."""
    for method in ("replace", "_replace"):
        if callable(replace := getattr(state, method, None)):
            return replace(**changes)
    if dataclasses.is_dataclass(state) and all(f.init for f in dataclasses.fields(state)):
        return dataclasses.replace(state, **changes)  # type: ignore[type-var]
    new = copy.copy(state)
    for name, value in changes.items():
        object.__setattr__(new, name, value)  # it may be frozen
    return new


def info_of(state: Any) -> Mapping[str, Any]:
    """The state's `info`.

    Raises:
        ValueError: it has none, and so no place for our record.
    """
    info = getattr(state, "info", None)
    if not isinstance(info, Mapping):
        raise ValueError(
            f"state.info={info!r}: must be a dictionary, where the wrapper keeps one record per "
            "environment: let reset return a state with info={}"
        )
    return info


def mapping_like(info: Mapping[str, Any], items: dict[str, Any]) -> Any:
    """`items` as a mapping of the same kind as `info`: JAX tells their kinds apart."""
    if type(info) is dict:
        return items
    if isinstance(info, MutableMapping):
        new = copy.copy(info)
        new.clear()
        new.update(items)
        return new
    return type(info)(items)  # type: ignore[call-arg]
