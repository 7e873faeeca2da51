"""MuJoCo Playground from the command line: its environments by name, with its own settings.

The package is an extra, and is imported when one of its environments is asked for.
"""

import functools
import importlib
import subprocess
from typing import Any

from brax_viser.cli.presets import NO_EVALUATION
from brax_viser.compat import playground_stepper

HOW_TO_INSTALL = "pip install 'brax_viser[playground]'"


def registry() -> Any | None:
    """`mujoco_playground.registry`, or None where the package is not installed."""
    try:
        return importlib.import_module("mujoco_playground").registry
    except ModuleNotFoundError as error:
        if error.name != "mujoco_playground":
            raise
        return None


def load(name: str, impl: str | None = None) -> Any:
    """The environment `name` of `registry().ALL_ENVS`.

    Those of the DeepMind Control Suite come with the package. The robots of all others are
    MuJoCo Menagerie's, which Playground clones with git when it loads the first of them.

    Args:
        name: as registered.
        impl: "warp" or "jax", which physics; None takes the environment's default.

    Raises:
        ValueError: `impl` is neither, or the robots' models are missing and cannot be fetched.
    """
    if impl not in (None, "warp", "jax"):
        raise ValueError(f"backend={impl!r}: Playground's physics are 'warp' and 'jax'")
    overrides = {} if impl is None else {"impl": impl}
    known = registry()
    assert known is not None
    try:
        return known.load(name, config_overrides=overrides)
    # git fails, or there is none.
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        where = playground_stepper().MENAGERIE_PATH
        raise ValueError(
            f"{name} needs robot models of MuJoCo Menagerie, which Playground fetches with git "
            f"into {where} when they are first used. That failed ({error}). Put a copy of the "
            "folder mujoco_menagerie there, or train an environment of the DeepMind Control "
            f"Suite, such as CartpoleBalance: {', '.join(known.dm_control_suite.ALL_ENVS)}"
        ) from error


def ppo_settings(name: str, impl: str | None = None, *, randomise: bool = False) -> dict[str, Any]:
    """Keyword arguments of Brax's PPO for an environment, from `mujoco_playground.config`.

    Args:
        name: as registered.
        impl: as for `load`.
        randomise: vary the robots by Playground's own domain randomisation.

    Raises:
        ValueError: there is no domain randomisation for this environment.
    """
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
    # As for Brax's: on a processor an evaluation takes as long as training, and comes first.
    settings.update(NO_EVALUATION)
    # Several resets of all environments between two evaluations, and a policy with the evaluation
    # alone. The same epochs and resets, counted as one of each per evaluation, and the policy comes
    # with each of them.
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
