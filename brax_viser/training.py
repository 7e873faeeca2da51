"""Runs Brax's trainers, none of which is changed, by name."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from brax.envs.base import Env


def run(
    trainer: str,
    env: Env,
    settings: Mapping[str, Any],
    progress_fn: Callable[[int, Any], None],
    policy_params_fn: Callable[[int, Any, Any], None],
) -> Any:
    """Trains to the end.

    Args:
        trainer: one of `presets.TRAINERS`.
        env: what to train on; the trainer wraps it for training itself.
        settings: keyword arguments of `brax.training.agents.TRAINER.train.train`.
        progress_fn: told of env steps and metrics; by APG, of evaluations and metrics.
        policy_params_fn: given the policy after each epoch, by a trainer that hands it out (PPO).

    Returns:
        The trained parameters, as the trainer returns them.
    """
    train = importlib.import_module(f"brax.training.agents.{trainer}.train").train
    arguments: dict[str, Any] = {**settings, "progress_fn": progress_fn}
    if "policy_params_fn" in inspect.signature(train).parameters:
        arguments["policy_params_fn"] = policy_params_fn
    _, params, _ = train(environment=env, **arguments)
    return params
