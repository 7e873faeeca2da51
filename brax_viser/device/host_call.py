"""Calls a host function from compiled code, by the documented mechanism or by a cheaper one.

JAX's own callbacks (`jax.experimental.io_callback`, `jax.pure_callback`) put every argument back
on a device before the call, which costs more than all the rest together. "direct" is a primitive
whose lowering gives XLA the same kind of call without that step: the function receives numpy
arrays. It relies on names that JAX does not promise to keep, so it is used only if the installed
JAX is known to have them; otherwise `io_callback` is used.

`io_callback` cannot run under `jax.checkpoint`, or in a loop whose predicate is batched: JAX then
raises "Effects not supported in partial-eval of `checkpoint`/`remat`", or a similar error.

On CUDA, either would have the device wait for the host: programs for CUDA call the host in another
way, see `launch`.

The environment variable `BRAX_VISER_CALLBACK` forces one of them: "direct", "io_callback" or
"launch".
"""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.experimental import io_callback
from jax.extend.core import Primitive
from jax.interpreters import mlir

from brax_viser import compat

log = logging.getLogger("brax_viser")

VARIABLE = "BRAX_VISER_CALLBACK"
MECHANISMS = ("direct", "io_callback")
LAUNCH = "launch"

HostFunction = Callable[..., np.ndarray]
"""A function that takes arrays (numpy, or jax on the CPU) and returns one. Must not raise."""


def call_host(
    function: HostFunction,
    result: jax.ShapeDtypeStruct,
    *args: jax.Array,
    kept_alive: bool = False,
) -> jax.Array:
    """Calls `function` on the host with the values of `args` each time this point is reached.

    Args:
        function: the function to call. It runs on one of XLA's threads.
        result: shape and dtype of its result.
        *args: its arguments.
        kept_alive: whether the surrounding program returns the result, so that the call survives
            without a side effect. If not, XLA sees one, and a result of the program must be tied to
            this one, as JAX sees none: see `tie.tied`. A side effect stops XLA from moving loop
            invariants out of the trainer's loop, which slows the whole training, watched or not: by
            4 to 8 % for 64 ants on two cores.
    """
    if mechanism() == "direct":
        return _direct_p.bind(*args, function=function, result=result, kept_alive=kept_alive)
    callback = jax.pure_callback if kept_alive else io_callback
    return callback(function, result, *args)


def forced_mechanism() -> str | None:
    """Returns the mechanism that the environment variable forces: one of `MECHANISMS`, or `LAUNCH`
    for the way of CUDA on any device; None if it is not set.

    Raises:
        ValueError: it names none of them.
    """
    forced = os.environ.get(VARIABLE)
    if forced not in (None, *MECHANISMS, LAUNCH):
        raise ValueError(
            f"{VARIABLE}={forced!r}: must be 'direct', 'io_callback' or 'launch', or not be set"
        )
    return forced


def mechanism() -> str:
    """Returns the one of `MECHANISMS` that programs traced from now on will use, unless they are
    for CUDA. Raises ValueError as `forced_mechanism` does."""
    forced = forced_mechanism()
    return forced if forced in MECHANISMS else _best_known()


@functools.cache
def launches_are_known() -> bool:
    """Whether programs for CUDA can be watched by `launch`; otherwise they are watched like
    programs for CPUs."""
    if importlib.util.find_spec("jax.experimental.buffer_callback") is None:
        log.warning(
            "jax %s has no buffer_callback: on CUDA, watching costs several percent",
            jax.__version__,
        )
        return False
    return _best_known() == "direct"


@functools.cache
def _best_known() -> str:
    if not jax.__version__.startswith(compat.JAX_CALLED_DIRECTLY):
        why = f"jax {jax.__version__} has not been tested with direct calls"
    else:
        try:
            compat.callback_lowering()
            return "direct"
        except ImportError as error:
            why = str(error)
    log.warning("calling the host by io_callback, which costs more: %s", why)
    return "io_callback"


_direct_p = Primitive("brax_viser_host_call")


def _abstract(*_: Any, result: jax.ShapeDtypeStruct, **__: Any) -> ShapedArray:
    return ShapedArray(result.shape, result.dtype)


def run_by_itself(primitive: Primitive) -> Callable[..., Any]:
    """Returns the implementation of a primitive outside of any program: a program for it alone."""

    def run(*args: jax.Array, **params: Any) -> Any:
        return jax.jit(functools.partial(primitive.bind, **params))(*args)

    return run


def _lower(ctx: Any, *args: Any, function: HostFunction, kept_alive: bool, **_: Any) -> Any:
    def flat(*values: np.ndarray) -> tuple[np.ndarray]:
        return (function(*values),)

    emit, sharding = compat.callback_lowering()
    results, _, _ = emit(
        ctx,
        flat,
        None,
        list(args),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=not kept_alive,
        returns_token=False,
        sharding=sharding(ctx.module_context.axis_context, None, ctx.avals_out),
    )
    return results


_direct_p.def_impl(run_by_itself(_direct_p))
_direct_p.def_abstract_eval(_abstract)
mlir.register_lowering(_direct_p, _lower, cacheable=False)
