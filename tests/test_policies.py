"""Tests how often `brax-viser train` has a trainer hand out its policy, and at what cost."""

import importlib
import inspect
import math
from typing import Any

import jax
import numpy as np
import pytest
from brax import envs
from brax.training import acting

from benchmarks.matrix import SMALLEST, _small_networks
from brax_viser.cli import playground, training
from brax_viser.cli.epochs import divided, steps_per_policy
from brax_viser.cli.presets import TRAINERS, trainer_settings
from tests.test_training import SMALL
from tests.toy import BraxToy

NAMES = [*envs._envs, "an env of the user's own"]

SLOWEST: dict[str, float] = {
    # Env steps per second on the machine that the settings are meant for: two CPU cores for ant and
    # unknown environments, an accelerator for the rest.
    "ant": 5_000,
    "fast": 1_100,
    "an env of the user's own": 1_100,
}


def training_step(ppo: dict[str, Any]) -> int:
    return ppo["batch_size"] * ppo["unroll_length"] * ppo["num_minibatches"] * ppo["action_repeat"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("longer", [1, 0.1, 10])
def test_a_policy_comes_at_least_once_a_minute_and_wastes_no_steps(name, longer):
    goal = trainer_settings("ppo", name)["num_timesteps"]
    settings = trainer_settings("ppo", name, num_timesteps=int(goal * longer))
    steps = steps_per_policy("ppo", settings)
    assert steps / SLOWEST.get(name, 30_000) < 60
    # The excess over PPO's own total, in whole training steps, is at most 1 % or one step.
    total, step = steps * (settings["num_evals"] - 1), training_step(settings)
    whole = math.ceil(settings["num_timesteps"] / step) * step
    assert whole <= total <= max(1.01 * whole, whole + step)


def test_a_short_run_is_not_lengthened_for_the_sake_of_policies():
    settings = trainer_settings("ppo", "ant", num_timesteps=1)
    assert steps_per_policy("ppo", settings) * (settings["num_evals"] - 1) == 5_120


@pytest.mark.parametrize("trainer", sorted(set(TRAINERS) - {"ppo"}))
def test_a_longer_run_of_another_trainer_hands_out_more_policies(trainer):
    usual = trainer_settings(trainer, "ant")
    longer = trainer_settings(trainer, "ant", num_timesteps=usual.get("num_timesteps", 10**6) * 10)
    if trainer == "apg":  # whose goal is counted in updates
        assert longer["num_evals"] >= usual["num_evals"]
    else:
        assert steps_per_policy(trainer, longer) <= 1.1 * steps_per_policy(trainer, usual)


def test_playgrounds_epochs_and_resets_stay_and_each_epoch_yields_a_policy(monkeypatch):
    if playground.registry() is None:
        pytest.skip("MuJoCo Playground is not installed")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = importlib.import_module("mujoco_playground.config.dm_control_suite_params")
    before = config.brax_ppo_config("CartpoleBalance", None)
    settings = trainer_settings(
        "ppo", "CartpoleBalance", ppo=playground.ppo_settings("CartpoleBalance")
    )
    assert settings["num_resets_per_eval"] == 1
    epochs = (before.num_evals - 1) * before.num_resets_per_eval
    assert settings["num_evals"] - 1 == epochs
    short = trainer_settings(
        "ppo",
        "CartpoleBalance",
        num_timesteps=2_000_000,
        ppo=playground.ppo_settings("CartpoleBalance"),
    )
    # Not 90 epochs, since each takes at least one training step.
    assert (short["num_evals"] - 1) * training_step(short) < 4_000_000
    assert short["num_timesteps"] / training_step(short) <= math.ceil(2.1)


def test_ppo_hands_out_its_policy_after_each_epoch_and_compiles_once(caplog):
    settings: dict[str, Any] = dict(SMALL, num_evals=5, run_evals=False, num_timesteps=4 * 320)
    handed: list[tuple[int, Any]] = []

    def compiled(train: Any) -> tuple[Any, int]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            params = train()
        # All pmapped functions are compiled under this name: the reset, the epoch, a final check.
        return params, sum("Compiling jit(_fun)" in r.getMessage() for r in caplog.records)

    def run() -> Any:
        return training.run(
            "ppo",
            BraxToy(),
            settings,
            lambda *_: None,
            lambda steps, _, params: handed.append((steps, jax.device_get(params))),
        )

    module = importlib.import_module("brax.training.agents.ppo.train")
    placing = jax.device_put_replicated
    params, compilations = compiled(run)
    stock, twice = compiled(lambda: module.train(environment=BraxToy(), **settings)[1])
    assert jax.device_put_replicated is placing
    assert compilations == twice - 1
    assert [steps for steps, _ in handed] == [0, 320, 640, 960, 1280]
    for one, other, last in zip(*map(jax.tree.leaves, (params, stock, handed[-1][1])), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, last)


@pytest.mark.parametrize(
    "trainer",
    [pytest.param(t, marks=[] if t in ("ars", "sac") else [pytest.mark.full])
     for t in ("sac", "apg", "es", "ars")],
)  # fmt: skip
def test_other_trainers_hand_out_policies_with_their_evaluations(trainer):
    settings = {"seed": 3, **SMALLEST[trainer], **_small_networks(trainer), "num_evals": 3}
    handed: list[tuple[int, Any, Any]] = []
    reports: list[int] = []

    def hand_out(steps: int, make_policy: Any, params: Any) -> None:
        handed.append((steps, make_policy, jax.device_get(params)))

    params = training.run(trainer, BraxToy(), settings, lambda n, _: reports.append(n), hand_out)
    assert [steps for steps, *_ in handed] == reports and len(reports) >= 2
    newest, before = handed[-1], handed[-2]
    for one, other in zip(jax.tree.leaves(newest[2]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(
        np.any(one != other)
        for one, other in zip(jax.tree.leaves(newest[2]), jax.tree.leaves(before[2]), strict=True)
    )
    # The sandbox relies on this: always the same function, so that it compiles once.
    assert newest[1] is before[1]
    assert "deterministic" in inspect.signature(newest[1]).parameters
    action, _ = newest[1](newest[2], deterministic=True)(np.zeros(2, np.float32), jax.random.key(0))
    assert action.shape == (1,) and np.isfinite(action).all()


class CountingToy(BraxToy):
    """Counts the resets of its batches."""

    def __init__(self):
        super().__init__()
        self.resets = 0

    def reset(self, rng: jax.Array) -> Any:
        jax.debug.callback(self.count)
        return super().reset(rng)

    def count(self) -> None:
        self.resets += 1


@pytest.mark.parametrize("resets", [0, 1, 2])
def test_ppos_divided_epochs_reset_as_often_and_hand_out_more_policies(resets):
    settings = dict(SMALL, num_evals=3, run_evals=False, num_timesteps=8 * 320)
    settings["num_resets_per_eval"] = resets
    env, handed = CountingToy(), []
    training.run(
        "ppo",
        env,
        settings,
        lambda *_: None,
        lambda steps, *_: handed.append(steps),
        4 // max(resets, 1),
    )
    jax.effects_barrier()
    assert handed == [320 * i for i in range(9)]
    assert env.resets == 2 + 2 * resets  # first that of the training, and of the evaluation


@pytest.mark.parametrize(
    "trainer",
    [pytest.param(t, marks=[] if t in ("ars", "sac") else [pytest.mark.full])
     for t in ("sac", "apg", "es", "ars")],
)  # fmt: skip
def test_other_trainers_hand_out_policies_between_their_evaluations(trainer):
    settings = {"seed": 3, **SMALLEST[trainer], **_small_networks(trainer), "num_evals": 3}
    longer = "policy_updates" if trainer == "apg" else "num_timesteps"
    settings[longer] *= 4

    def run(parts: int) -> tuple[Any, list[int], list[int]]:
        handed: list[int] = []
        evaluated: list[int] = []

        def report(steps: int, metrics: Any) -> None:
            if "eval/episode_reward" in metrics:
                evaluated.append(steps)

        params = training.run(
            trainer, BraxToy(), settings, report, lambda steps, *_: handed.append(steps), parts
        )
        return params, handed, evaluated

    usual = acting.Evaluator
    params, handed, evaluated = run(2)
    assert acting.Evaluator is usual
    _, _, usually = run(1)
    assert len(evaluated) == len(usually)
    before = trainer != "ars"  # which does not evaluate its first policy
    assert len(handed) - before == 2 * (len(usually) - before)
    stock = importlib.import_module(f"brax.training.agents.{trainer}.train").train(
        environment=BraxToy(), **divided(trainer, settings, 2)
    )[1]
    for one, other in zip(*map(jax.tree.leaves, (params, stock)), strict=True):
        np.testing.assert_array_equal(one, other)
