"""Sizes a training for the machine that it runs on."""

import math
from collections.abc import Mapping
from typing import Any

MOST_ENVS = 256
MOST_STEPS = 10_000_000

_BATCH: dict[str, Any] = {"num_envs": MOST_ENVS, "batch_size": 64, "num_minibatches": 8}
_LONGEST_UNROLL = 40  # env steps, repeated actions included
_STEPS_PER_POLICY = 61_440
_STEPS_PER_REPORT = 20_480


def for_a_cpu(ppo: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns PPO's settings with the sizes that ant has, if they are meant for an accelerator.

    With thousands of environments and hundreds of thousands of steps per update, two CPU cores take
    minutes until the policy first changes, and hours to the end. Here an update learns from at most
    20,480 env steps, and the goal is at most that of unknown environments. The settings have not
    been tuned for these sizes. All else is as it was, the networks too, so that a policy from an
    accelerator can be played on a CPU.

    Args:
        ppo: keyword arguments of `brax.training.agents.ppo.train.train`; not changed.
    """
    if ppo["num_envs"] <= MOST_ENVS:
        return ppo
    goal = min(ppo["num_timesteps"], MOST_STEPS)
    return {
        **ppo,
        **_BATCH,
        "unroll_length": min(ppo["unroll_length"], _LONGEST_UNROLL // ppo["action_repeat"]),
        "num_timesteps": goal,
        "num_evals": math.ceil(goal / _STEPS_PER_POLICY) + 1,
        "training_metrics_steps": _STEPS_PER_REPORT,
    }


def told(settings: Mapping[str, Any], steps_per_update: int) -> str:
    """Says what sizes PPO is given on a CPU."""
    return (
        f"Sizes for a CPU: {settings['num_envs']:,} environments, {steps_per_update:,} steps per "
        f"update, {settings['num_timesteps']:,} steps in all."
    )
