"""Loads MuJoCo Playground's environments by name, with Playground's own training settings.

The package is an extra, and is imported only when the command line needs it.
"""

import functools
import importlib
import subprocess
from typing import Any

from brax_viser.cli.presets import NO_EVALUATION
from brax_viser.compat import playground_stepper

FOR_A_CPU = {"num_envs": 256, "batch_size": 256, "num_minibatches": 8}
"""PPO's sizes on a CPU, which takes minutes for as many steps as Playground's settings, made for a
GPU, take before they first change the policy: 983,040 for most of the Control Suite."""

HOW_TO_INSTALL = "pip install 'brax_viser[playground]'"


def registry() -> Any | None:
    """Returns `mujoco_playground.registry`; None if the package is not installed."""
    try:
        return importlib.import_module("mujoco_playground").registry
    except ModuleNotFoundError as error:
        if error.name != "mujoco_playground":
            raise
        return None


def load(name: str, impl: str | None = None) -> Any:
    """Loads the environment `name` of `registry().ALL_ENVS`.

    Those of the DeepMind Control Suite come with the package. The others use robots of MuJoCo
    Menagerie, which Playground clones with git when it loads the first of them.

    Args:
        name: the registered name.
        impl: the physics, "warp" or "jax"; None takes the environment's default.

    Raises:
        ValueError: `impl` is neither, or the robot models are missing and cannot be fetched.
    """
    if impl not in (None, "warp", "jax"):
        raise ValueError(f"backend={impl!r}: Playground's physics are 'warp' and 'jax'")
    overrides = {} if impl is None else {"impl": impl}
    known = registry()
    assert known is not None
    try:
        return known.load(name, config_overrides=overrides)
    # git fails, or is not installed.
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        where = playground_stepper().MENAGERIE_PATH
        raise ValueError(
            f"{name} needs robot models of MuJoCo Menagerie, which Playground fetches with git "
            f"into {where} when they are first used. That failed ({error}). Put a copy of the "
            "folder mujoco_menagerie there, or train an environment of the DeepMind Control "
            f"Suite, such as CartpoleBalance: {', '.join(known.dm_control_suite.ALL_ENVS)}"
        ) from error


def ppo_settings(name: str, impl: str | None = None, *, randomise: bool = False) -> dict[str, Any]:
    """Returns keyword arguments of Brax's PPO, from `mujoco_playground.config`; where JAX runs on a
    CPU, with the sizes of `FOR_A_CPU`.

    Args:
        name: the registered name of the environment.
        impl: as for `load`.
        randomise: add Playground's own domain randomisation.

    Raises:
        ValueError: Playground has no domain randomisation for this environment.
    """
    import jax
    from brax.training.agents.ppo.networks import make_ppo_networks

    known = registry()
    assert known is not None
    suites = {
        "dm_control_suite": known.dm_control_suite,
        "locomotion": known.locomotion,
        "manipulation": known.manipulation,
    }
    (suite,) = [s for s, module in suites.items() if name in module.ALL_ENVS]
    config = importlib.import_module(f"mujoco_playground.config.{suite}_params")
    settings = dict(config.brax_ppo_config(name, impl))
    networks = settings.pop("network_factory", None)
    if networks is not None:
        settings["network_factory"] = functools.partial(make_ppo_networks, **networks)
    if jax.default_backend() == "cpu":
        settings.update(FOR_A_CPU)
    # As for Brax's environments: on a CPU an evaluation takes as long as training, and comes first.
    settings.update(NO_EVALUATION)
    # Playground resets all environments several times per evaluation, and policies come only with
    # evaluations. The same epochs and resets, counted as one of each per evaluation, hand out a
    # policy after each.
    resets = settings.get("num_resets_per_eval", 0)
    if resets > 1:
        settings["num_evals"] = max(settings["num_evals"] - 1, 1) * resets + 1
        settings["num_resets_per_eval"] = 1
    wrapper = importlib.import_module("mujoco_playground").wrapper
    settings["wrap_env_fn"] = wrapper.wrap_for_brax_training
    if randomise:
        randomizer = known.get_domain_randomizer(name)
        if randomizer is None:
            raise ValueError(f"{name} has no domain randomisation in Playground")
        settings["randomization_fn"] = randomizer
    return settings
