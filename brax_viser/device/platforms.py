"""Chooses what a program does by the platform that it is lowered for."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import mlir

from brax_viser import compat
from brax_viser.device.host_call import (
    LAUNCH,
    MECHANISMS,
    forced_mechanism,
    launches_are_known,
    run_by_itself,
)


def by_platform(usual: Callable[..., Any], launched: Callable[..., Any], *args: Any) -> Any:
    """Returns `usual(*args)`, or `launched(*args)` in programs that call the host by `launch`.

    Unlike `jax.lax.platform_dependent`, it leaves no branch in the program, and traces `launched`
    only where a program is lowered that needs it.

    Args:
        usual: for CPUs and TPUs, and for CUDA where launches are not known or cannot be placed.
        launched: for CUDA; returns arrays of the same shapes, and has no effects that the other
            lacks. Branches on values on the device must be avoided: the device would wait for the
            host.
        *args: pytrees of arrays.
    """
    if forced_mechanism() in MECHANISMS:
        return usual(*args)
    flat, tree = jax.tree.flatten(args)

    def of_flat(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *flat: function(*jax.tree.unflatten(tree, flat))

    traced, shapes = jax.make_jaxpr(of_flat(usual), return_shape=True)(*flat)
    results = _by_platform_p.bind(*flat, usual=traced, launched=of_flat(launched))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


_by_platform_p = Primitive("brax_viser_by_platform")
_by_platform_p.multiple_results = True


def _abstract(*_: Any, usual: ClosedJaxpr, **__: Any) -> tuple[list[ShapedArray], Any]:
    return [ShapedArray(x.shape, x.dtype) for x in usual.out_avals], usual.effects


def _lower(
    ctx: Any, *operands: Any, usual: ClosedJaxpr, launched: Callable[..., Any], **_: Any
) -> Any:
    on_cuda = tuple(ctx.module_context.platforms) == ("cuda",) and launches_are_known()
    # If XLA itself divides a program among devices, the host must be called once, for the whole
    # batch: XLA can place callbacks so, but not launches.
    is_launched = (on_cuda or forced_mechanism() == LAUNCH) and not compat.is_divided_by_xla(ctx)
    function = (lambda *flat: jax.tree.leaves(launched(*flat))) if is_launched else None
    function = function or jaxpr_as_fun(usual)
    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


_by_platform_p.def_impl(run_by_itself(_by_platform_p))
_by_platform_p.def_effectful_abstract_eval(_abstract)
mlir.register_lowering(_by_platform_p, _lower, cacheable=False)
