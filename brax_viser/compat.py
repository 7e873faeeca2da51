"""Every name that another package does not promise to keep.

Each function says for which versions the name is known, and what happens where it is gone. Nothing
is imported before it is asked for, so that the page can be up before JAX and Brax are.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

JAX_CALLED_DIRECTLY = ("0.9.",)
"""Beginnings of the jax versions with which the tests of emission have passed, called directly.
With others the host is called by `io_callback`."""

VISER_LOOPS = ("1.1.",)
"""Beginnings of the viser versions whose loop for a page, `AsyncMessageBuffer._window_loop`, is
known: it is run with another buffer than its own. Others send as they always do, and say so."""


def callback_op_sharding() -> Callable[..., Any]:
    """How jax places a callback, jax 0.9.

    Raises:
        ImportError: this jax keeps it elsewhere; the host is then called by `io_callback`.
    """
    from jax._src.callback import _callback_op_sharding

    return _callback_op_sharding


def opaque_trace_state() -> object:
    """What is equal at two points of a program that are traced together: in `jax.core` up to jax
    0.10, in `jax.extend.core` since 0.11."""
    for home in ("jax.extend.core", "jax.core"):
        found = getattr(importlib.import_module(home), "get_opaque_trace_state", None)
        if found is not None:
            return found()
    raise ImportError("this jax has no get_opaque_trace_state")


def distributed_state() -> Any:
    """Of `jax.distributed`, jax 0.9 to 0.12: `process_id`, `num_processes`, `coordinator_address`,
    and `client`, the key-value store. There is no public way to the store, nor to the numbers
    without waking the devices, which is for the user to do.

    Raises:
        ImportError: this jax keeps it elsewhere; a training of several processes cannot be shown.
    """
    from jax._src.distributed import global_state

    return global_state


def brax_environments() -> Mapping[str, Any]:
    """By name, the environments that are registered with Brax, 0.12 to 0.14; without this table no
    environment of Brax's is found by its name on the command line."""
    from brax import envs

    return envs._envs


def pmap_axis_of(trainer: ModuleType) -> str | None:
    """The name that a trainer of Brax's, 0.12 to 0.14, gives the axis of its devices; None where it
    has none, and then its first epoch is compiled twice, as without us."""
    return getattr(trainer, "_PMAP_AXIS_NAME", None)


def unpmap_of(trainer: ModuleType) -> Callable[[Any], Any]:
    """What takes the axis of devices off a trainer's parameters, Brax 0.12 to 0.14; nothing where
    there is no such thing, for then there is no such axis."""
    return getattr(trainer, "_unpmap", lambda params: params)


def playground_stepper() -> Any:
    """The module whose `step` Playground's environments call, Playground 0.2.

    Raises:
        ImportError: it is elsewhere; a sandbox is then not driven by the policy.
    """
    return importlib.import_module("mujoco_playground._src.mjx_env")


def give_playground_model(env: Any, model: Any) -> bool:
    """Has an environment of Playground's step another `mjx.Model`, Playground 0.2. Returns whether
    it does: one that keeps its model under another name does not."""
    env._mjx_model = model
    return env.mjx_model is model


class ViserLoop(NamedTuple):
    """The parts of viser by which it is known how far a page has come."""

    server: Any  # the websocket server
    buffer: Any  # what all pages have yet to be sent
    buffer_class: Any
    question: Any  # a message that a page answers in its turn, and the answer; or None
    answer: Any
    move: Any  # the message that moves a scene node, or None


_LOOP = ("window_generator", "_window_loop")
_STATE = ("message_from_id", "message_counter", "generator_cursors", "buffer_lock")


def viser_loop(server: Any) -> ViserLoop | None:
    """Those of a `viser.ViserServer`; None where viser is not one of `VISER_LOOPS`, or is built in
    another way."""
    import viser

    if not viser.__version__.startswith(VISER_LOOPS):
        return None
    try:
        from viser import _messages as messages
        from viser.infra._async_message_buffer import AsyncMessageBuffer
    except ImportError:
        return None
    websockets = getattr(server, "_websock_server", None)
    buffer = getattr(websockets, "_broadcast_buffer", None)
    if not all(hasattr(AsyncMessageBuffer, name) for name in _LOOP):
        return None
    if not all(hasattr(buffer, name) for name in _STATE):
        return None
    return ViserLoop(
        websockets,
        buffer,
        AsyncMessageBuffer,
        getattr(messages, "LocalStorageGetItemRequestMessage", None),
        getattr(messages, "LocalStorageGetItemResponseMessage", None),
        getattr(messages, "SceneNodeUpdateMessage", None),
    )
