"""Tests how often each preset of `brax-viser train` hands out its policy, and when it resets."""

import jax
import pytest
from brax import envs

from brax_viser.cli import playground, sizes
from brax_viser.cli.epochs import (
    EveryNth,
    divided,
    num_epochs,
    num_parts,
    steps_per_policy,
    training_step,
)
from brax_viser.cli.loading import load
from brax_viser.cli.presets import DEFAULT_ENV, TRAINERS, ppo_preset, trainer_settings
from brax_viser.cli.sizes import for_a_cpu

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


def test_every_nth_is_above_zero_at_every_nth_comparison_only():
    resets = EveryNth(3)
    assert max(resets, 1) == 1 and 5 * resets == 5 and range(resets) == range(1)
    assert [resets > 0 for _ in range(7)] == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_on_a_cpu_braxs_environments_show_progress_several_times_a_minute(name):
    preset = ppo_preset(name).ppo
    settings = trainer_settings("ppo", name, ppo=for_a_cpu(preset))
    update, slowest = training_step("ppo", settings), SLOWEST_ON_A_CPU["ppo"]
    assert update / slowest < 20
    assert settings["num_envs"] <= 256 and settings["num_timesteps"] / 1e7 <= 1
    speed = 5_000 if name == DEFAULT_ENV else slowest
    assert steps_per_policy("ppo", settings) / speed < 60
    assert settings["training_metrics_steps"] / slowest < 60
    assert settings["batch_size"] * settings["num_minibatches"] % settings["num_envs"] == 0
    same = ("learning_rate", "discounting", "reward_scaling", "network_factory", "episode_length")
    assert all(settings.get(key) == preset.get(key) for key in same)
    given = {"num_envs": 2048, "num_timesteps": 50_000_000}
    mine = trainer_settings("ppo", name, ppo=for_a_cpu(preset), **given)
    assert {key: mine[key] for key in given} == given


def test_the_sizes_suit_the_machine_and_are_printed(on_cpu):
    _, settings = load("inverted_pendulum", "ppo", "spring", None, None, False)
    update = training_step("ppo", settings)
    told = sizes.told(settings, update)
    assert (settings["num_envs"], update) == ((256, 2_560) if on_cpu else (2048, 163_840))
    assert f"{settings['num_envs']:,} environments, {update:,} steps per update" in told
    _, settings = load("inverted_pendulum", "ppo", "spring", 64, 5_000, False)
    assert (settings["num_envs"], settings["num_timesteps"]) == (64, 5_000)
