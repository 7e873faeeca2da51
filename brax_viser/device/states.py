"""Finds the physics, and the numbers per environment, in a state of any class.

Trainers require little of a state, and environments make use of that: `done` may be a Python bool,
a reward may have an extra axis, observations may be any pytree, and the physics may be MJX's or
Brax's under either name. All is found by its attributes, while a step is being traced.
"""

import copy
import dataclasses
import math
from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brax_viser.records.frame import COORDINATES
from brax_viser.records.protocol import IMAGE, IMAGE_OF_BYTES

_PHYSICS_NAMES = ("pipeline_state", "data")
MAX_INFO, MAX_METRICS = 1024, 64
"""The most values of `state.info`, and the most numbers in `state.metrics`, that are sent with a
detail: more could not be read on the page, but would cost time."""

MAX_PIXELS = 3 * 256 * 256
"""The most values of all images in an observation that are sent with a detail."""

_NO_PHYSICS = ("obs", "reward", "done", "metrics", "info")


def is_mujocos(physics: Any) -> bool:
    """Whether `physics` has MuJoCo's names: the data of MJX and Warp, and Brax's state on MJX."""
    return all(hasattr(physics, name) for name in ("qpos", "qvel", "xpos", "xquat"))


def is_physics(thing: Any) -> bool:
    """Whether `thing` is MuJoCo's data, or a pipeline state of one of Brax's own backends."""
    return is_mujocos(thing) or all(hasattr(thing, name) for name in ("q", "qd", "x"))


def physics_of(state: Any) -> Any:
    """Returns the physics in an environment's state.

    Raises:
        ValueError: the state has none.
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
    """Returns the names of the fields that are particular to this class of state."""
    names = [f.name for f in dataclasses.fields(state)] if dataclasses.is_dataclass(state) else []
    names = names or list(getattr(state, "_fields", ())) or list(getattr(state, "__dict__", ()))
    return [name for name in names if name not in (*_PHYSICS_NAMES, *_NO_PHYSICS)]


def _places(state: Any) -> Iterator[Any]:
    """Yields the values in which a state may keep its physics, the likely ones first."""
    for name in (*_PHYSICS_NAMES, *_own_fields(state)):
        yield getattr(state, name, None)
    yield own_info(info if isinstance(info := getattr(state, "info", None), Mapping) else {})


def own_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `info` without the first states that auto-reset wrappers keep in it."""
    return {
        key: x
        for key, x in info.items()
        if not (isinstance(key, str) and key.startswith(("first_", "AutoReset")))
    }


def info_to_send(info: Mapping[str, Any], batch: tuple[int, ...]) -> dict[str, Any]:
    """Returns the arrays of `info` to send, without the large states of auto-resets: "info/NAME",
    [*batch, ...], up to `MAX_INFO` values per environment in all."""
    return _to_send("info", own_info(info), batch, MAX_INFO)


def observation_of(state: Any) -> Iterable[tuple[str, Any]]:
    """Returns the observation's arrays by their paths; a dictionary keeps its own order."""
    obs = getattr(state, "obs", None)
    found = named_leaves(obs)
    if isinstance(obs, Mapping) and all(name in found for name in obs):
        return [(name, found[name]) for name in obs]
    return found.items()


def is_picture(x: Any, batch: tuple[int, ...]) -> bool:
    """Whether an array of an observation, [*batch, ...], is an image: [H, W, C] each, of at least
    8 by 8 pixels. Frames that are stacked lie in C, as in Playground's environments."""
    *sides, channels = np.shape(x)[len(batch) :] or (0,)
    return len(sides) == 2 and min(sides) >= 8 and channels <= 64


def images_of(state: Any, batch: tuple[int, ...]) -> dict[str, Any]:
    """Returns the images in the observation: "image/NAME", or "bytes/NAME" of integers,
    [*batch, H, W, C], up to `MAX_PIXELS` values per environment in all."""
    found, left = {}, MAX_PIXELS
    for name, x in observation_of(state):
        x = jnp.asarray(x)
        size = math.prod(x.shape[len(batch) :])
        if x.shape[: len(batch)] == batch and is_picture(x, batch) and size <= left:
            kind = IMAGE if jnp.issubdtype(x.dtype, jnp.floating) else IMAGE_OF_BYTES
            found[f"{kind}/{name}"] = x
            left -= size
    return found


def metrics_of(state: Any, batch: tuple[int, ...]) -> dict[str, Any]:
    """Returns the numbers in `state.metrics`: "metrics/NAME", [*batch], up to `MAX_METRICS`."""
    metrics = getattr(state, "metrics", None)
    numbers = {
        name: _per_env(x, batch)  # a term that is always the same may be a Python number
        for name, x in named_leaves(metrics).items()
        if isinstance(x, jax.Array | np.ndarray | np.generic | float | int)
        and np.ndim(x) <= len(batch)
    }
    found = _to_send("metrics", numbers, batch, MAX_METRICS)
    return {name: x for name, x in found.items() if x.shape == batch}


def recorded_of(detail: Mapping[str, Any], before: Any) -> dict[str, Any]:
    """Returns the arrays, [*batch, ...], that are sent of all chosen environments at once where
    they get twins or are recorded.

    Args:
        detail: as `adapters.Adapter.detail` returns it. The coordinates are kept, the action, and
            the numbers in `state.metrics`.
        before: the state before the step. No step shows what a reset has made: an episode's first
            step sends it as "before/qpos" and "before/qvel".
    """
    kept = {
        name: x
        for name, x in detail.items()
        if name in (*COORDINATES, "action") or name.startswith("metrics/")
    }
    qpos, qvel = coordinates_of(physics_of(before))
    return {**kept, "before/qpos": qpos, "before/qvel": qvel}


def _to_send(prefix: str, tree: Any, batch: tuple[int, ...], most: int) -> dict[str, Any]:
    found, left = {}, most
    for name, x in named_leaves(tree).items():
        if not isinstance(x, jax.Array | np.ndarray) or x.shape[: len(batch)] != batch:
            continue
        # Raw random keys are unsigned integers, so arrays of that kind are left out.
        number = any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.signedinteger))
        size = math.prod(x.shape[len(batch) :])
        if (number or x.dtype == bool) and size <= left:
            found[f"{prefix}/{name}"] = x
            left -= size
    return found


def coordinates_of(physics: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (qpos [*batch, nq], qvel [*batch, nv])."""
    # On all Brax backends, q and qd are MuJoCo's qpos and qvel: `tests/test_detail.py`.
    return (physics.qpos, physics.qvel) if is_mujocos(physics) else (physics.q, physics.qd)


def poses_of(physics: Any) -> tuple[jax.Array, jax.Array]:
    """Returns (positions [*batch, L, 3] in m, rotations [*batch, L, 4] wxyz) of all links. MuJoCo's
    fields are preferred: an environment that calls `mjx.step` itself on a Brax state does not
    update Brax's own fields."""
    if is_mujocos(physics):
        return physics.xpos[..., 1:, :], physics.xquat[..., 1:, :]
    return physics.x.pos, physics.x.rot


def batch_of(state: Any) -> tuple[int, ...]:
    """Returns the batch shape of a state, () within a vmap. `done` does not show it: it may be a
    Python number, or have an extra axis."""
    return coordinates_of(physics_of(state))[0].shape[:-1]


def done_of(state: Any, batch: tuple[int, ...]) -> jax.Array:
    """Returns [*batch], above 0 where the state is done; of several parts, any one suffices."""
    parts = [_per_env(x, batch) for x in jax.tree.leaves(getattr(state, "done", None))]
    if len(parts) == 1 and parts[0].shape == batch:
        return parts[0]
    whole = [(x > 0).reshape(*batch, -1).any(axis=-1) for x in parts]
    return jnp.stack(whole).any(axis=0) if whole else jnp.zeros(batch, bool)


def reward_of(state: Any, batch: tuple[int, ...]) -> jax.Array:
    """Returns [*batch]: the reward, or the sum of its parts if it has several objectives."""
    parts = [_per_env(x, batch) for x in jax.tree.leaves(getattr(state, "reward", None))]
    if len(parts) == 1 and parts[0].shape == batch:
        return parts[0]
    whole = [x.reshape(*batch, -1).sum(axis=-1) for x in parts]
    return sum(whole[1:], whole[0]) if whole else jnp.zeros(batch, jnp.float32)


def count_of(info: Mapping[str, Any], name: str, batch: tuple[int, ...]) -> jax.Array | None:
    """Returns [*batch]: a number that a wrapper or the environment keeps in `info`, or None."""
    value = info.get(name)
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        return None
    if not any(jnp.issubdtype(jnp.result_type(value), kind) for kind in (jnp.number, jnp.bool_)):
        return None
    value = _per_env(value, batch)
    return value if value.shape == batch else value.reshape(*batch, -1).max(axis=-1)


def is_key(x: Any) -> bool:
    """Whether `x` is a typed random key or an array of them, which are not numbers."""
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _per_env(x: Any, batch: tuple[int, ...]) -> jax.Array:
    """Returns an array [*batch, ...] made from a number or an array of any shape."""
    x = jnp.asarray(x)
    if x.shape[: len(batch)] == batch:
        return x
    if x.ndim <= len(batch) and all(
        have in (1, size) for have, size in zip(x.shape[::-1], batch[::-1], strict=False)
    ):
        return jnp.broadcast_to(x, batch)
    # It has no axis of environments: give each of them all of it.
    return jnp.broadcast_to(x.ravel(), (*batch, x.size))


def numbers_of(state: Any, keys: Container[str]) -> dict[str, jax.Array]:
    """Returns, by path, the numbers [*batch] that an environment keeps besides its physics: under
    `keys` of `info`, and in fields that are particular to its class of state."""
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
    """Returns the leaves of a pytree by path, such as "a/0"; "" if the tree is itself a leaf."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}


def replaced(state: Any, **changes: Any) -> Any:
    """Returns the state with some fields replaced. It may be a dataclass of flax, chex or the
    standard library, a named tuple, or any other object."""
    for method in ("replace", "_replace"):
        if callable(replace := getattr(state, method, None)):
            return replace(**changes)
    if dataclasses.is_dataclass(state) and all(f.init for f in dataclasses.fields(state)):
        return dataclasses.replace(state, **changes)  # type: ignore[type-var]
    new = copy.copy(state)
    for name, value in changes.items():
        object.__setattr__(new, name, value)  # the class may be frozen
    return new


def info_of(state: Any) -> Mapping[str, Any]:
    """Returns the state's `info`.

    Raises:
        ValueError: the state has none, so there is no place for our record.
    """
    info = getattr(state, "info", None)
    if not isinstance(info, Mapping):
        raise ValueError(
            f"state.info={info!r}: must be a dictionary, where the wrapper keeps one record per "
            "environment: let reset return a state with info={}"
        )
    return info


def mapping_like(info: Mapping[str, Any], items: dict[str, Any]) -> Any:
    """Returns `items` as a mapping of the same type as `info`: JAX distinguishes the types."""
    if type(info) is dict:
        return items
    if isinstance(info, MutableMapping):
        new = copy.copy(info)
        new.clear()
        new.update(items)
        return new
    return type(info)(items)  # type: ignore[call-arg]
