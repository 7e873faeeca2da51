"""Defines the settings per trainer and environment that `brax-viser train` uses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from brax_viser.cli.epochs import split

DEFAULT_ENV: str = "ant"
"""Default of `brax-viser train`: a legged robot that runs within two minutes on two cores."""

DEFAULT_BACKEND: str = "spring"
"""The backend of `DEFAULT_ENV`: the fastest to step, according to Brax's notebook."""


TRAINERS: tuple[str, ...] = ("ppo", "sac", "apg", "es", "ars")
"""The trainers of `brax.training.agents` that need nothing but an environment."""


@dataclass(frozen=True)
class Preset:
    """The settings that one environment is trained with."""

    backend: str  # for brax.envs.get_environment: mjx, generalized, spring or positional
    ppo: Mapping[str, Any]  # keyword arguments of brax.training.agents.ppo.train.train


def small_networks(*args: Any, **kwargs: Any) -> Any:
    """Calls `make_ppo_networks` with two hidden layers of 64 each for policy and value."""
    # Imported here, because the command line imports this module before its page is up.
    from brax.training.agents.ppo.networks import make_ppo_networks

    sizes = {"policy_hidden_layer_sizes": (64, 64), "value_hidden_layer_sizes": (64, 64)}
    return make_ppo_networks(*args, **sizes, **kwargs)


_COMMON: dict[str, Any] = {"normalize_observations": True, "action_repeat": 1, "seed": 1}

# On a CPU, evaluation takes as long as training, and is compiled separately. The reward comes from
# the training episodes; `num_evals` then only splits the training into `num_evals` - 1 epochs. The
# policy is handed out after each: at least once a minute on the machine that the settings are meant
# for. An additional epoch costs a few milliseconds.
NO_EVALUATION: dict[str, Any] = {
    "run_evals": False,
    "log_training_metrics": True,
    "training_metrics_steps": 250_000,
}

# Sized for two CPU cores, where a short training mostly waits for compilation: hence no evaluation.
# The reward comes from the training episodes (`log_training_metrics`), every 51,200 steps, and the
# policy every 250,880, which take about 15 s.
# Rewards are not scaled up as in Brax's notebook: with a scaling of 5, an entropy cost of 1e-3 and
# six updates per batch, the policy changed far more (KL), and ants fell more often.
_LAPTOP: dict[str, Any] = {
    **_COMMON,
    "num_timesteps": 3_000_000,
    "num_evals": 13,
    **NO_EVALUATION,
    "training_metrics_steps": 51_200,
    "reward_scaling": 1,
    "episode_length": 300,
    "unroll_length": 10,
    "num_minibatches": 8,
    "num_updates_per_batch": 4,
    "discounting": 0.97,
    "learning_rate": 6e-4,
    "entropy_cost": 1e-2,
    "max_grad_norm": 1.0,
    "num_envs": 256,
    "batch_size": 64,
    "network_factory": small_networks,
}

# For unknown environments: Brax's usual episode length, hence a longer training. An environment may
# be slow, with a thousand steps a second: the policy comes every 61,440 steps.
_GENERAL: dict[str, Any] = {
    **_LAPTOP,
    "num_timesteps": 10_000_000,
    "num_evals": 164,
    "episode_length": 1000,
}

# The common values of Brax's notebooks/training.ipynb, meant for an accelerator.
_NOTEBOOK: dict[str, Any] = {
    **_COMMON,
    "num_timesteps": 50_000_000,
    "num_evals": 40,
    **NO_EVALUATION,
    "reward_scaling": 10,
    "episode_length": 1000,
    "unroll_length": 5,
    "num_minibatches": 32,
    "num_updates_per_batch": 4,
    "discounting": 0.97,
    "learning_rate": 3e-4,
    "entropy_cost": 1e-2,
    "num_envs": 2048,
    "batch_size": 1024,
}

# The notebook trains hopper and walker2d with SAC only and has no swimmer. These are MuJoCo
# Playground's PPO values for its robots of the same names, in its
# config/dm_control_suite_params.py; they are meant for an accelerator too.
_PLAYGROUND: dict[str, Any] = {
    **_COMMON,
    "num_timesteps": 60_000_000,
    "num_evals": 40,
    **NO_EVALUATION,
    "reward_scaling": 10,
    "episode_length": 1000,
    "unroll_length": 30,
    "num_minibatches": 32,
    "num_updates_per_batch": 16,
    "discounting": 0.995,
    "learning_rate": 1e-3,
    "entropy_cost": 1e-2,
    "num_envs": 2048,
    "batch_size": 1024,
}


def _preset(backend: str, base: Mapping[str, Any], **changes: Any) -> Preset:
    # Presets are shared by all callers, and must be read-only.
    return Preset(backend, MappingProxyType({**base, **changes}))


_GENERAL_PRESET = _preset("generalized", _GENERAL)  # the default of Brax's environments

_PRESETS: dict[str, Preset] = {
    DEFAULT_ENV: _preset(DEFAULT_BACKEND, _LAPTOP),
    "inverted_pendulum": _preset("positional", _NOTEBOOK, num_timesteps=2_000_000, num_evals=7),
    "inverted_double_pendulum": _preset(
        "positional", _NOTEBOOK, num_timesteps=20_000_000, num_evals=20
    ),
    "humanoid": _preset(
        "positional",
        _NOTEBOOK,
        reward_scaling=0.1,
        unroll_length=10,
        num_updates_per_batch=8,
        entropy_cost=1e-3,
    ),
    "humanoidstandup": _preset(
        "positional",
        _NOTEBOOK,
        num_timesteps=100_000_000,
        num_evals=80,
        reward_scaling=0.1,
        unroll_length=15,
        num_updates_per_batch=8,
        learning_rate=6e-4,
    ),
    "reacher": _preset(
        "positional",
        _NOTEBOOK,
        reward_scaling=5,
        action_repeat=4,
        unroll_length=50,
        num_updates_per_batch=8,
        discounting=0.95,
        entropy_cost=1e-3,
        batch_size=256,
    ),
    "halfcheetah": _preset(
        "positional",
        _NOTEBOOK,
        reward_scaling=1,
        unroll_length=20,
        num_updates_per_batch=8,
        discounting=0.95,
        entropy_cost=1e-3,
        batch_size=512,
        seed=3,
    ),
    "pusher": _preset(
        "positional",
        _NOTEBOOK,
        reward_scaling=5,
        unroll_length=30,
        num_minibatches=16,
        num_updates_per_batch=8,
        discounting=0.95,
        batch_size=512,
        seed=3,
    ),
    "hopper": _preset("generalized", _PLAYGROUND),
    "walker2d": _preset("generalized", _PLAYGROUND),
    # The only backend that Brax's swimmer runs on.
    "swimmer": _preset("generalized", _PLAYGROUND, num_timesteps=100_000_000, num_evals=60),
}


def ppo_preset(env_name: str) -> Preset:
    """Returns the settings to train `env_name` with; general ones for a name without a preset.

    `DEFAULT_ENV` is set up for two CPU cores: three to four minutes from start to end, with ants
    that run within two. Inverted pendulums, humanoids, reacher, halfcheetah and pusher have the
    values that Brax lists as tested in its notebooks/training.ipynb; hopper, walker2d and swimmer
    those of MuJoCo Playground. Both are meant for an accelerator, which is faster with more
    environments and larger batches; see `sizes` for those on a CPU.

    Args:
        env_name: name registered in `brax.envs`; any other string is allowed.

    Returns:
        The backend to request, and keyword arguments of an unmodified
        `brax.training.agents.ppo.train.train`. Steps are environment steps. The mapping is
        read-only: copy it to change it, and see `fit_batch` for `num_envs`.
    """
    return _PRESETS.get(env_name, _GENERAL_PRESET)


def fit_batch(ppo: Mapping[str, Any], num_envs: int) -> dict[str, Any]:
    """Adapts `ppo` to another number of environments.

    The trainer needs `batch_size * num_minibatches` to be a multiple of `num_envs`. Therefore
    `num_minibatches` stays, and `batch_size` is rounded up to a multiple of
    `num_envs / gcd(num_envs, num_minibatches)`.

    Args:
        ppo: keyword arguments of `brax.training.agents.ppo.train.train`; not changed.
        num_envs: number of environments to train in parallel, at least 1.

    Returns:
        A copy of `ppo` with `num_envs` and `batch_size` set.

    Raises:
        ValueError: `num_envs` is less than 1.
    """
    if num_envs < 1:
        raise ValueError(
            f"num_envs={num_envs}: must be at least 1; leave it out to train with the preset's "
            f"{ppo.get('num_envs', 1)}"
        )
    # The fallbacks are the trainer's own defaults.
    unit = num_envs // math.gcd(num_envs, ppo.get("num_minibatches", 16))
    batch_size = math.ceil(ppo.get("batch_size", 32) / unit) * unit
    return {**ppo, "num_envs": num_envs, "batch_size": batch_size}


# From hopper and walker2d in Brax's notebooks/training.ipynb, meant for an accelerator.
_NOTEBOOK_SAC: dict[str, Any] = {
    "num_evals": 20,
    "episode_length": 1000,
    "normalize_observations": True,
    "action_repeat": 1,
    "discounting": 0.997,
    "learning_rate": 6e-4,
    "num_envs": 128,
    "max_devices_per_host": 1,
    "max_replay_size": 1_048_576,
    "min_replay_size": 8192,
    "seed": 1,
}
_SAC: dict[str, dict[str, Any]] = {
    "hopper": {
        **_NOTEBOOK_SAC,
        "num_timesteps": 6_553_600,
        "reward_scaling": 30,
        "batch_size": 512,
        "grad_updates_per_step": 64,
    },
    "walker2d": {
        **_NOTEBOOK_SAC,
        "num_timesteps": 7_864_320,
        "reward_scaling": 5,
        "batch_size": 128,
        "grad_updates_per_step": 32,
    },
}

# For all other environments, sized for two CPU cores and not tuned to any environment. None of
# these trainers reports rewards of its training episodes, so they evaluate, with few environments.
_EVALUATION: dict[str, Any] = {"num_evals": 10, "num_eval_envs": 16}
_OTHERS: dict[str, dict[str, Any]] = {
    # Based on walker2d's in the notebook: half the environments and updates, a smaller buffer.
    "sac": {
        **_EVALUATION,
        "num_timesteps": 500_000,
        "reward_scaling": 5,
        "discounting": 0.99,
        "learning_rate": 6e-4,
        "num_envs": 64,
        "batch_size": 128,
        "grad_updates_per_step": 16,
        "max_replay_size": 262_144,
        "min_replay_size": 8192,
    },
    # The learning rate and the number of environments of Brax's own test of APG.
    "apg": {
        **_EVALUATION,
        "policy_updates": 450,
        "horizon_length": 32,
        "learning_rate": 3e-3,
        "num_envs": 64,
    },
    # The trainer's default population; a learning rate between its default and Brax's test's.
    "es": {
        **_EVALUATION,
        "num_timesteps": 5_000_000,
        "population_size": 128,
        "learning_rate": 1e-2,
    },
    # The trainer's defaults, which are the paper's (arXiv:1803.07055) values for its ant.
    "ars": {
        **_EVALUATION,
        "num_timesteps": 5_000_000,
        "number_of_directions": 60,
        "top_directions": 20,
        "step_size": 0.015,
        "exploration_noise_std": 0.025,
    },
}


_SHARED = (
    "episode_length",
    "action_repeat",
    "normalize_observations",
    "seed",
    "wrap_env_fn",
    "randomization_fn",
)


def trainer_settings(
    trainer: str,
    env_name: str,
    *,
    num_envs: int | None = None,
    num_timesteps: int | None = None,
    ppo: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns keyword arguments of `brax.training.agents.TRAINER.train.train` for `env_name`.

    For PPO see `ppo_preset`. SAC has the values of Brax's notebook for hopper and walker2d. All
    other settings are sized for a laptop and have not been tuned.

    Args:
        trainer: one of `TRAINERS`.
        env_name: name registered in `brax.envs`; any other string is allowed.
        num_envs: environments in the training batch; overrides the preset's. Must be even for ES
            and ARS, which try each change of the policy in both directions.
        num_timesteps: env steps to train for; overrides the preset's. APG counts updates, and gets
            as many as this number of steps needs.
        ppo: PPO's settings, in place of the preset's, such as MuJoCo Playground's for its own
            environments. Settings that trainers share are used for the others as well.

    Raises:
        ValueError: `trainer` is unknown, or cannot use that many environments.
    """
    if trainer not in TRAINERS:
        raise ValueError(f"trainer={trainer!r}: must be one of {', '.join(TRAINERS)}")
    ppo = ppo_preset(env_name).ppo if ppo is None else ppo
    if trainer == "ppo":
        settings = dict(ppo) if num_envs is None else fit_batch(ppo, num_envs)
    else:
        settings = {name: ppo[name] for name in _SHARED if name in ppo} | _OTHERS[trainer]
        if trainer == "sac":
            settings = dict(_SAC.get(env_name, settings))
        if num_envs is not None:
            _set_num_envs(trainer, settings, num_envs)
    longer = 1.0  # relative to the preset
    if num_timesteps is not None:
        if trainer == "apg":
            steps_per_update = settings["horizon_length"] * settings["num_envs"]
            # APG divides its updates among the evaluations, and rounds.
            most = num_timesteps // steps_per_update + 1
            settings["num_evals"] = min(settings["num_evals"], most)
            settings["policy_updates"] = math.ceil(num_timesteps / steps_per_update)
        else:
            longer = num_timesteps / settings["num_timesteps"]
            settings["num_timesteps"] = num_timesteps
    if trainer == "ppo":
        # Resets between epochs change what is learned: `num_evals` stays if nothing was overridden.
        if longer != 1 or num_envs is not None or not settings.get("num_resets_per_eval"):
            split(settings, (settings.get("num_evals", 1) - 1) * longer)
    elif longer > 1:  # policies come with evaluations: keep their interval
        settings["num_evals"] = round(settings["num_evals"] * longer)
    if trainer == "sac":
        # SAC fails if the first filling of its replay buffer takes all of its steps.
        whole_steps = settings["num_timesteps"] // 2 // settings["num_envs"]
        filled = min(settings["min_replay_size"], whole_steps * settings["num_envs"])
        settings["min_replay_size"] = filled
    return settings


def _set_num_envs(trainer: str, settings: dict[str, Any], num_envs: int) -> None:
    pairs = {"es": "population_size", "ars": "number_of_directions"}.get(trainer)
    smallest = 2 if pairs else 1
    if num_envs < smallest or num_envs % smallest:
        kind = "an even number, at least 2, for this trainer" if pairs else "at least 1"
        raise ValueError(
            f"num_envs={num_envs}: must be {kind}; leave it out to train with the preset's"
        )
    settings[pairs or "num_envs"] = num_envs // smallest
