"""Runs Brax's unmodified trainers by name."""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import Env
from brax.training import acting
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from brax_viser.cli.epochs import divided
from brax_viser.compat import pmap_axis_of, unpmap_of


def run(
    trainer: str,
    env: Env,
    settings: Mapping[str, Any],
    progress_fn: Callable[[int, Any], None],
    policy_params_fn: Callable[[int, Any, Any], None],
    parts: int = 1,
) -> Any:
    """Trains to the end.

    Args:
        trainer: one of `presets.TRAINERS`.
        env: environment to train on; the trainer applies its training wrappers itself.
        settings: keyword arguments of `brax.training.agents.TRAINER.train.train`.
        progress_fn: gets env steps (APG: parts of epochs) and metrics.
        policy_params_fn: gets the policy after each part of an epoch; its first argument is that of
            `progress_fn`.
        parts: number of parts into which each epoch is divided; see `epochs`.

    Returns:
        The trained parameters, as the trainer returns them.
    """
    module = importlib.import_module(f"brax.training.agents.{trainer}.train")
    arguments: dict[str, Any] = {**divided(trainer, settings, parts), "progress_fn": progress_fn}
    if "policy_params_fn" in inspect.signature(module.train).parameters:
        arguments["policy_params_fn"] = policy_params_fn
    else:
        arguments["progress_fn"] = _with_policy(module, progress_fn, policy_params_fn)
    with placed_as_it_comes_back(module), _evaluating_every(1 if trainer == "ppo" else parts):
        _, params, _ = module.train(environment=env, **arguments)
    return params


def _with_policy(
    module: Any,
    progress_fn: Callable[[int, Any], None],
    policy_params_fn: Callable[[int, Any, Any], None],
) -> Callable[[int, Any], None]:
    """Returns a `progress_fn` for a trainer that hands out its policy only at the end. It is called
    within `train`, and reads the policy that was just evaluated from that function's variables."""
    without_devices = unpmap_of(module)

    @functools.cache  # the same function each time, to avoid recompilation
    def callable_alike(make_policy: Callable[..., Any]) -> Callable[..., Any]:
        if "deterministic" in inspect.signature(make_policy).parameters:
            return make_policy
        return lambda params, deterministic=True: make_policy(params)

    def report(num_steps: int, metrics: Any) -> None:
        found = _policy_of(sys._getframe(1))
        if found is not None:
            make_policy, params = found
            policy_params_fn(num_steps, callable_alike(make_policy), without_devices(params))
        progress_fn(num_steps, metrics)

    return report


def _policy_of(train: FrameType) -> tuple[Callable[..., Any], Any] | None:
    """Reads (make_policy, parameters) from the variables of `train`; None if they are missing."""
    variables = train.f_locals
    make_policy, state = variables.get("make_policy"), variables.get("training_state")
    params = getattr(state, "policy_params", None)
    if make_policy is None or params is None:
        return None
    return make_policy, (getattr(state, "normalizer_params", None), params)


@contextlib.contextmanager
def _evaluating_every(parts: int) -> Iterator[None]:
    """While a trainer runs, has it evaluate its policy after the last part of an epoch only, and
    before the first one if it does that."""
    usual = acting.Evaluator
    if parts == 1:
        yield
        return

    class Evaluator(usual):
        num_trained = 0

        def run_evaluation(
            self, policy_params: Any, training_metrics: Any, *args: Any, **kwargs: Any
        ) -> Any:
            self.num_trained += bool(training_metrics)  # there are none before the first part
            if self.num_trained % parts:
                return dict(training_metrics)
            return super().run_evaluation(policy_params, training_metrics, *args, **kwargs)

    acting.Evaluator = Evaluator
    try:
        yield
    finally:
        acting.Evaluator = usual


@contextlib.contextmanager
def placed_as_it_comes_back(module: Any) -> Iterator[None]:
    """Has the trainer place its first training state like all others, so that it compiles its epoch
    once, and with any JAX.

    Brax places that state by `jax.device_put_replicated`, which is gone since jax 0.10, and gets
    all others from `jax.pmap`. The two name the axis of the same placement differently, and JAX
    compiles for each name. While a trainer runs, the former uses the latter's name. The compiled
    program and the learned parameters are the same.
    """
    axis = pmap_axis_of(module)
    if axis is None:
        yield
        return
    place = getattr(jax, "device_put_replicated", None)
    kept = vars(jax).get("device_put_replicated")  # jax's own is not in the module itself

    def placed(tree: Any, devices: Any) -> Any:
        mesh = Mesh(np.array(devices), (axis,))
        copies = place(tree, devices) if place is not None else _repeated(tree, len(devices))
        return jax.device_put(copies, NamedSharding(mesh, PartitionSpec(axis)))

    jax.device_put_replicated = placed
    try:
        yield
    finally:
        del jax.device_put_replicated
        if kept is not None:
            jax.device_put_replicated = kept


def _repeated(tree: Any, times: int) -> Any:
    """Returns arrays with a leading axis, along which each is repeated."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (times, *jnp.shape(x))), tree)


def is_finite(params: Any) -> bool:
    """Whether no parameter is NaN or Inf."""
    leaves = map(np.asarray, jax.tree.leaves(jax.device_get(params)))
    return all(np.isfinite(x).all() for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))
