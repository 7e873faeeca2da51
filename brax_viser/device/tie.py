"""Keeps the host's answers in programs that return or use any part of a step's state.

JAX drops what no result needs: where a loop keeps the observations alone, the countdown that the
host answers, and so the call. An effect would prevent that, but a program with effects leaves the
fast path of `jax.jit`: a step of eight inverted pendulums, called from Python on two cores, then
takes 2.0 ms instead of 0.7. So the arrays of the state are tied to the answer: for JAX, each needs
it. XLA sees nothing of that.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_tied_p = Primitive("brax_viser_tied")
_tied_p.multiple_results = True


def tied(tree: Any, answer: jax.Array) -> Any:
    """Returns a pytree with the same values, whose arrays JAX takes to depend on `answer`."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if _can_be_tied(x)]
    answer = jax.lax.stop_gradient(answer)
    results = _tied_p.bind(*(leaves[i] for i in places), answer)
    for i, x in zip(places, results, strict=True):
        leaves[i] = x
    return jax.tree.unflatten(treedef, leaves)


def _can_be_tied(x: Any) -> bool:
    return isinstance(x, jax.Array) and not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _values(*args: Any) -> list[Any]:
    return list(args[:-1])


def _jvp(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
    return _tied_p.bind(*primals), list(tangents[:-1])


def _batched(args: Any, axes: Any) -> tuple[list[Any], list[Any]]:
    return _tied_p.bind(*args), list(axes[:-1])


def _lower(ctx: Any, *args: Any, **_: Any) -> list[Any]:
    return list(args[:-1])


_tied_p.def_impl(_values)
_tied_p.def_abstract_eval(_values)
ad.primitive_jvps[_tied_p] = _jvp
batching.primitive_batchers[_tied_p] = _batched
mlir.register_lowering(_tied_p, _lower)
