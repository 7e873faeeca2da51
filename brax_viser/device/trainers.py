"""Finds the stock trainer that is tracing the environment, by reading the call stack.

We cannot change the trainer, and it passes its environment no such information, yet the page should
say "PPO, 12 M of 30 M steps". While JAX traces `reset` or `step`, the trainer's call is on the
stack, with its arguments. The stack is read only while tracing, so a training step costs nothing.
"""

import functools
import inspect
import re
import sys
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from types import CodeType, FrameType, ModuleType
from typing import Any

import jax
import numpy as np

from brax_viser.records.trainer_call import TrainerCall

NETWORKS = "network_factory"
"""Argument of a trainer: the function that makes its networks."""

_TRAINER_MODULE = re.compile(r"brax\.training\.agents\.(\w+)\.train")


def check_versions(call: TrainerCall | None) -> None:
    """Refuses versions known not to work together, before they fail with an obscure message.

    The trainer's code is inspected, not its version: released Brax 0.14.2 calls the function, its
    main branch of the same version does not, and a script may have put one in place.

    Raises:
        RuntimeError: a Brax trainer calls a function that this JAX no longer has.
    """
    if call is None:
        return
    module = sys.modules.get(f"brax.training.agents.{call.algorithm.lower()}.train")
    if module is not None and _GONE in _names_used(module) and not hasattr(jax, _GONE):
        raise RuntimeError(
            f"Brax {version('brax')}'s {call.algorithm} does not run with jax {jax.__version__}: "
            f"it calls jax.{_GONE}, which is gone since jax 0.10. pip install 'jax<0.10', or a "
            "Brax that no longer calls it; `brax-viser train` does without it"
        )


_GONE = "device_put_replicated"


def _names_used(module: ModuleType) -> set[str]:
    """Returns the attributes and globals that a module's own functions name."""
    own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
    codes, names = [x.__code__ for x in own if inspect.isfunction(x)], set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [x for x in code.co_consts if isinstance(x, CodeType)]
    return names


def calling_trainer(*, read_arguments: bool = False) -> TrainerCall | None:
    """Returns the trainer on this thread's call stack; None in a training loop of the user's own.

    Args:
        read_arguments: also read the trainer's arguments. Do so only once per run: reading a
            frame's variables keeps their present values alive while the frame runs.
    """
    evaluating = False
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "brax.training.acting" and frame.f_code.co_qualname.startswith("Evaluator."):
            evaluating = True
        match = _TRAINER_MODULE.fullmatch(module)
        if match and frame.f_code.co_name == "train":
            algorithm = match[1].upper()
            if read_arguments:
                return _read_arguments(algorithm, evaluating, frame)
            return TrainerCall(algorithm, evaluating)
        frame = frame.f_back
    return None


def _read_arguments(algorithm: str, evaluating: bool, frame: FrameType) -> TrainerCall:
    variables = frame.f_locals
    try:
        num_timesteps, num_reports = _goal(algorithm, variables)
    except KeyError:  # another Brax has other names: the page then says no goal
        num_timesteps = num_reports = None
    # An object that each call makes itself identifies the call: stock trainers wrap `env`; BC is
    # given a wrapped one, but defines this function.
    made_here = variables.get("env", variables.get("environment"))
    if algorithm == "BC":
        made_here = variables.get("scramble_times", made_here)
    return TrainerCall(
        algorithm,
        evaluating,
        num_timesteps=num_timesteps,
        num_envs=variables.get("num_envs"),
        num_reports=num_reports,
        settings=_settings(frame),
        identity=None if made_here is None else weakref.ref(made_here),
    )


def _settings(frame: FrameType) -> dict[str, Any]:
    """Returns the arguments of a call that are numbers, texts or truth values, by name, and how its
    networks are made. Others are left to the trainer: keeping them would keep arrays and
    environments alive."""
    code, variables = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    found = {name: variables[name] for name in names if name in variables}
    found = {name: x.item() if isinstance(x, np.generic) else x for name, x in found.items()}
    plain: dict[str, Any] = {
        name: x for name, x in found.items() if isinstance(x, bool | int | float | str)
    }
    if NETWORKS in found:
        plain[NETWORKS] = _networks(found[NETWORKS])
    return plain


def _networks(factory: Any) -> dict[str, Any] | str:
    """Describes a trainer's `network_factory`: by the arguments that Brax's own function is given,
    with functions by name; or by the name of a script's own function."""
    given: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        given, factory = {**factory.keywords, **given}, factory.func
    if not str(getattr(factory, "__module__", "")).startswith("brax.training.agents."):
        return str(getattr(factory, "__qualname__", type(factory).__qualname__))
    return {name: getattr(x, "__name__", x) for name, x in given.items()}


def _goal(algorithm: str, variables: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Returns the env steps and the reports that a trainer will make, as far as it counts them."""
    if algorithm == "APG":  # takes a number of updates, reports a number of evaluations
        num_reports = max(variables["num_evals"] - 1, 1)
        num_updates = round(variables["policy_updates"] / num_reports) * num_reports
        return num_updates * variables["horizon_length"] * variables["num_envs"], num_reports
    if algorithm == "BC":  # takes and reports a number of DAgger steps
        steps = variables["dagger_steps"]
        return steps * variables["demo_length"] * variables["num_envs"], steps
    return variables.get("num_timesteps"), None
