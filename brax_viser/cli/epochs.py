"""Divides the epochs of a trainer, so that it hands out its policy often enough.

Stock trainers hand out their policy between epochs only. An epoch ends with a reset of all
environments in MuJoCo Playground's settings, and with an evaluation in those of SAC, APG, ES and
ARS: with more epochs these would come more often too, and change what is learned, or cost time.
Here each epoch is divided into parts. A policy is handed out after each part, and resets and
evaluations come after the last one of them, as before.
"""

import math
from collections.abc import Mapping
from typing import Any

GOALS: Mapping[str, int] = {
    "ppo": 500_000,
    "sac": 60_000,
    "apg": 100_000,
    "es": 500_000,
    "ars": 500_000,
}
"""Env steps per policy by trainer where JAX runs on an accelerator: half a second of the fastest
robots, a quarter of a minute of the slowest. An additional policy costs some milliseconds."""

FOR_A_CPU = 10
"""How many times fewer env steps per policy where JAX runs on a CPU."""


def training_step(trainer: str, settings: Mapping[str, Any]) -> int:
    """Returns the env steps of one update of the policy, which cannot be divided.

    Args:
        trainer: one of `presets.TRAINERS`.
        settings: keyword arguments of the trainer. Fallbacks are its own defaults.
    """
    repeat = settings.get("action_repeat", 1)
    if trainer == "ppo":
        size = settings.get("batch_size", 32) * settings.get("num_minibatches", 16)
        return size * settings.get("unroll_length", 10) * repeat
    if trainer == "sac":
        return settings["num_envs"] * repeat
    if trainer == "apg":
        return settings["horizon_length"] * settings["num_envs"]
    pairs = {"es": "population_size", "ars": "number_of_directions"}[trainer]
    return 2 * settings[pairs] * settings["episode_length"]


def num_epochs(trainer: str, settings: Mapping[str, Any]) -> int:
    """Returns the number of epochs: times that all environments are reset, or evaluated."""
    evals = settings.get("num_evals", 1)
    resets = settings.get("num_resets_per_eval", 0) if trainer == "ppo" else 0
    return max(evals - (trainer != "ars"), 1) * max(resets, 1)


def num_parts(trainer: str, settings: Mapping[str, Any], *, on_cpu: bool) -> int:
    """Returns into how many parts each epoch is divided, at least 1.

    PPO's epochs without resets are not divided: their number is a preset, and can be any.

    Args:
        trainer: one of `presets.TRAINERS`.
        settings: the result of `presets.trainer_settings`.
        on_cpu: whether JAX runs on a CPU.
    """
    if trainer == "ppo" and not settings.get("num_resets_per_eval"):
        return 1
    updates = _updates_per_epoch(trainer, settings)
    goal = GOALS[trainer] / (FOR_A_CPU if on_cpu else 1)
    most = max(int(updates), 1)
    wanted = min(max(round(updates * training_step(trainer, settings) / goal), 1), most)

    def misfit(parts: int) -> tuple[float, int]:
        """All parts have the same number of updates, which should add up to those of the epoch."""
        excess = abs(_whole(trainer, updates / parts) * parts - updates) / updates
        return round(excess, 2), abs(parts - wanted)

    return min(range((wanted + 1) // 2, min(2 * wanted, most) + 1), key=misfit)


def _updates_per_epoch(trainer: str, settings: Mapping[str, Any]) -> float:
    epochs = num_epochs(trainer, settings)
    if trainer == "apg":
        return float(max(round(settings["policy_updates"] / epochs), 1))
    updates = settings["num_timesteps"] / (epochs * training_step(trainer, settings))
    return float(math.ceil(updates)) if trainer == "ppo" else updates


def _whole(trainer: str, updates: float) -> float:
    """Returns the updates of a part, as the trainer rounds them."""
    if trainer == "apg":
        return max(round(updates), 1)
    return math.ceil(updates) if trainer in ("ppo", "sac") else updates


def steps_per_policy(trainer: str, settings: Mapping[str, Any], parts: int = 1) -> int:
    """Returns the interval, in env steps, at which the trainer hands out its policy.

    Args:
        trainer: one of `presets.TRAINERS`.
        settings: the result of `presets.trainer_settings`.
        parts: number of parts into which each epoch is divided.
    """
    if trainer in ("ppo", "apg"):
        updates = _updates_per_epoch(trainer, settings) / parts
        return int(_whole(trainer, updates) * training_step(trainer, settings))
    return math.ceil(settings["num_timesteps"] / num_epochs(trainer, settings) / parts)


def split(ppo: dict[str, Any], epochs: float) -> None:
    """Sets `num_evals` for about `epochs` epochs of PPO, which hands out a policy after each.

    All epochs have the same number of training steps, so they may exceed `num_timesteps` together.
    Up to four times as many epochs are tried to keep the excess within 1 %; none are added if there
    are resets between epochs, which change what is learned.
    """
    steps = max(math.ceil(ppo["num_timesteps"] / training_step("ppo", ppo)), 1)
    fewest = min(max(math.ceil(epochs - 1e-6), 1), steps)
    most = fewest if ppo.get("num_resets_per_eval") else min(4 * fewest, steps)
    numbers = range(fewest, most + 1)

    def excess(number: int) -> int:
        return math.ceil(steps / number) * number - steps

    best = next((n for n in numbers if excess(n) <= steps / 100), min(numbers, key=excess))
    ppo["num_evals"] = best + 1


def divided(trainer: str, settings: Mapping[str, Any], parts: int) -> dict[str, Any]:
    """Returns the settings with epochs divided into parts; the caller of the trainer must ensure
    that evaluations come only after the last part."""
    if parts == 1:
        return dict(settings)
    epochs = num_epochs(trainer, settings) * parts
    changed = {"num_evals": epochs + (trainer != "ars")}
    if trainer == "ppo" and settings.get("num_resets_per_eval"):
        changed["num_resets_per_eval"] = EveryNth(parts)
    return {**settings, **changed}


class EveryNth(int):
    """PPO's `num_resets_per_eval`, which it compares with 0 after each epoch: 1, which is above 0
    at every n-th comparison only."""

    def __new__(cls, n: int) -> "EveryNth":
        new = super().__new__(cls, 1)
        new.n, new.asked = n, 0
        return new

    n: int
    asked: int

    def __gt__(self, other: int) -> bool:
        self.asked += 1
        return self.asked % self.n == 0 and int(self) > other

    __hash__ = int.__hash__
