"""Loads environments by name, with the settings of their trainings."""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from brax_viser.cli.folding import MutedThread
from brax_viser.cli.presets import TRAINERS, ppo_preset, trainer_settings
from brax_viser.cli.sizes import for_a_cpu


class Refused(Exception):
    """Arguments that cannot be used; the message says why."""


def refuse(message: str) -> NoReturn:
    raise Refused(message)


def check(trainer: str, num_timesteps: int | None) -> None:
    """Refuses values that can be checked without the imports that names of environments need."""
    if num_timesteps is not None and num_timesteps < 1:
        refuse(f"num_timesteps={num_timesteps}: must be at least 1")
    if trainer not in TRAINERS:
        refuse(f"trainer={trainer!r}: must be one of {', '.join(TRAINERS)}")


def check_shown(bare: Any, grid: Sequence[int], spacing: Sequence[float] | None = None) -> None:
    """Refuses what cannot be drawn, before a page is announced; see `VisualizedEnv`."""
    from brax_viser.device.adapters import adapter_for
    from brax_viser.model.grid import grid_of

    try:
        adapter = adapter_for(bare)
        grid_of(adapter.mj_model, adapter.init_qpos, grid, spacing)
    except (TypeError, ValueError) as error:
        refuse(str(error))


def load(
    name: str,
    trainer: str,
    backend: str | None,
    num_envs: int | None,
    num_timesteps: int | None,
    randomise: bool,
) -> tuple[Any, dict[str, Any]]:
    """Returns the environment of that name, and the trainer's settings for it."""
    with contextlib.redirect_stdout(MutedThread(sys.stdout)):  # it prints that Warp is missing
        importlib.import_module("mujoco.mjx")
    import jax
    from brax import envs

    from brax_viser.cli import playground
    from brax_viser.cli.names import known_environments, unknown
    from brax_viser.cli.programs import keep_programs
    from brax_viser.compat import brax_environments

    keep_programs()

    # Brax warns about its own state whenever it reads a model: its users have read that before.
    warnings.filterwarnings("ignore", module="brax.io.mjcf", category=UserWarning)
    ppo = None
    try:
        registered = brax_environments()
        if name in registered:
            bare = envs.get_environment(name, backend=backend or ppo_preset(name).backend)
            ppo = ppo_preset(name).ppo
            if jax.default_backend() == "cpu":
                ppo = for_a_cpu(ppo)
            if randomise:
                raise ValueError(f"{name} has no domain randomisation: only Playground's envs do")
        elif name not in known_environments():
            refuse(unknown(name))
        else:
            ppo = playground.ppo_settings(name, backend, randomise=randomise)
            bare = playground.load(name, backend)
        return bare, trainer_settings(
            trainer, name, num_envs=num_envs, num_timesteps=num_timesteps, ppo=ppo
        )
    except (TypeError, ValueError) as error:
        refuse(str(error))
