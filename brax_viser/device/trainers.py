"""Finds the stock trainer that is tracing the environment, by reading the call stack.

We cannot change the trainer, and it passes its environment no such information, yet the page should
say "PPO, 12 M of 30 M steps". While JAX traces `reset` or `step`, the trainer's call is on the
stack, with its arguments. The stack is read only while tracing, so a training step costs nothing.
"""

import re
import sys
import weakref
from importlib.metadata import version
from types import FrameType

import jax

from brax_viser.records.trainer_call import TrainerCall

_TRAINER_MODULE = re.compile(r"brax\.training\.agents\.(\w+)\.train")


def check_versions(call: TrainerCall | None) -> None:
    """Refuses versions known not to work together, before they fail with an obscure message.

    Raises:
        RuntimeError: a Brax trainer calls a function that this JAX no longer has.
    """
    if jax.__version_info__ < (0, 10) or call is None:
        return
    brax = version("brax")
    if call.algorithm in ("PPO", "SAC", "APG") and _numbers(brax) <= (0, 14, 2):
        raise RuntimeError(
            f"Brax {brax}'s {call.algorithm} does not run with jax {jax.__version__}: it calls "
            "jax.device_put_replicated, which is gone since jax 0.10. pip install 'jax<0.10'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


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
    num_timesteps, num_reports = variables.get("num_timesteps"), None
    if algorithm == "APG":  # takes a number of updates, reports a number of evaluations
        num_reports = max(variables["num_evals"] - 1, 1)
        num_updates = round(variables["policy_updates"] / num_reports) * num_reports
        num_timesteps = num_updates * variables["horizon_length"] * variables["num_envs"]
    elif algorithm == "BC":  # takes and reports a number of DAgger steps
        num_reports = variables["dagger_steps"]
        num_timesteps = num_reports * variables["demo_length"] * variables["num_envs"]
    # An object that each call makes itself identifies the call: stock trainers wrap `env`; BC is
    # given a wrapped one, but defines this function.
    made_here = variables.get("env", variables.get("environment"))
    if algorithm == "BC":
        made_here = variables["scramble_times"]
    return TrainerCall(
        algorithm,
        evaluating,
        num_timesteps=num_timesteps,
        num_envs=variables.get("num_envs"),
        num_reports=num_reports,
        identity=None if made_here is None else weakref.ref(made_here),
    )
