"""Tests how often each preset of `brax-viser train` hands out its policy, and when it resets."""

import jax
import pytest
from brax import envs

from brax_viser.cli import playground
from brax_viser.cli.epochs import (
    EveryNth,
    divided,
    num_epochs,
    num_parts,
    steps_per_policy,
    training_step,
)
from brax_viser.cli.presets import TRAINERS, trainer_settings

SLOWEST = {"ppo": 30_000, "sac": 2_000, "apg": 5_000, "es": 30_000, "ars": 30_000}
"""Env steps per second of a slow robot on an accelerator. PPO's settings for two CPU cores, which
those of ant and of unknown environments are, are in tests/test_policies.py."""

SLOWEST_ON_A_CPU = {"ppo": 1_100, "sac": 400, "apg": 400, "es": 1_100, "ars": 1_100}
"""The same on two CPU cores."""

NAMES = [*envs._envs, "an env of the user's own"]
SUITES = playground.registry()
CASES = [(trainer, name) for trainer in TRAINERS if trainer != "ppo" for name in NAMES]
CASES += [("ppo", name) for name in (SUITES.ALL_ENVS if SUITES else ())]


@pytest.fixture(params=["cpu", "gpu"])
def on_cpu(request, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param == "cpu"


@pytest.mark.parametrize(("trainer", "name"), CASES)
def test_each_preset_hands_out_a_policy_at_least_once_a_minute(trainer, name, on_cpu):
    ppo = playground.ppo_settings(name) if trainer == "ppo" else None
    settings = trainer_settings(trainer, name, ppo=ppo)
    parts = num_parts(trainer, settings, on_cpu=on_cpu)
    steps, update = steps_per_policy(trainer, settings, parts), training_step(trainer, settings)
    speed = (SLOWEST_ON_A_CPU if on_cpu else SLOWEST)[trainer]
    # An update of the policy cannot be divided.
    assert steps / speed < 60 or steps < 2 * update, (steps, steps / speed)
    # Resets and evaluations stay where they are.
    assert parts * steps == pytest.approx(steps_per_policy(trainer, settings), rel=0.01)
    new = divided(trainer, settings, parts)
    assert num_epochs(trainer, {**new, "num_resets_per_eval": 0}) == parts * num_epochs(
        trainer, settings
    )


def test_every_nth_is_above_zero_at_every_nth_question_only():
    resets = EveryNth(3)
    assert max(resets, 1) == 1 and 5 * resets == 5 and range(resets) == range(1)
    assert [resets > 0 for _ in range(7)] == [False, False, True, False, False, True, False]
