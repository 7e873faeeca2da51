"""Settings per trainer and environment, so that `brax-viser train` needs no script."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

DEFAULT_ENV: str = "ant"
"""What `brax-viser train` trains: a legged robot that runs within two minutes on two cores."""

DEFAULT_BACKEND: str = "spring"
"""The backend of `DEFAULT_ENV`: the fastest to step, as Brax's notebook says."""


TRAINERS: tuple[str, ...] = ("ppo", "sac", "apg", "es", "ars")
"""Those of `brax.training.agents` that train from nothing but an environment."""


@dataclass(frozen=True)
class Preset:
    """What one environment is trained with."""

    backend: str  # for brax.envs.get_environment: mjx, generalized, spring or positional
    ppo: Mapping[str, Any]  # keyword arguments of brax.training.agents.ppo.train.train


def small_networks(*args: Any, **kwargs: Any) -> Any:
    """`make_ppo_networks` with two hidden layers of 64 for policy and value each."""
    # Imported when it is called: the command line reads this module before its page is up.
    from brax.training.agents.ppo.networks import make_ppo_networks

    sizes = {"policy_hidden_layer_sizes": (64, 64), "value_hidden_layer_sizes": (64, 64)}
    return make_ppo_networks(*args, **sizes, **kwargs)


_COMMON: dict[str, Any] = {"normalize_observations": True, "action_repeat": 1, "seed": 1}

# Evaluation takes as long as training where both run on a processor, and compiles by itself. The
# reward comes from the training episodes; `num_evals` then just splits the run into epochs, one
# less than it says, after each of which the policy can be had: at least once a minute on the
# machine that the settings are meant for. An epoch more costs a few milliseconds.
NO_EVALUATION: dict[str, Any] = {
    "run_evals": False,
    "log_training_metrics": True,
    "training_metrics_steps": 250_000,
}

# Sized for two CPU cores, where compiling is what a short run mostly waits for: hence no
# evaluation. The reward comes from the training episodes (`log_training_metrics`), every 51,200
# steps, and the policy every 250,880, which take about 15 s.
# Rewards are not scaled up, unlike in Brax's notebook: runs with a scaling of 5, an entropy cost of
# 1e-3 and six updates per batch had far larger policy changes (KL) and ants that fell more often.
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

# For an environment that nothing is known about: Brax's usual episode, hence a longer run. It may
# be a slow one, of a thousand steps a second: the policy comes every 61,440 steps.
_GENERAL: dict[str, Any] = {
    **_LAPTOP,
    "num_timesteps": 10_000_000,
    "num_evals": 164,
    "episode_length": 1000,
}

# The values that recur in Brax's notebooks/training.ipynb, which run on an accelerator.
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

# The notebook trains hopper and walker2d with SAC only and has no swimmer. These are the PPO
# values of MuJoCo Playground for its robots of the same names, in its
# config/dm_control_suite_params.py; they want an accelerator too.
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
    # Presets are shared by all callers, so none of them may be able to change one.
    return Preset(backend, MappingProxyType({**base, **changes}))


_GENERAL_PRESET = _preset("generalized", _GENERAL)  # what Brax's own environments default to

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
    # The one backend that Brax's swimmer runs on.
    "swimmer": _preset("generalized", _PLAYGROUND, num_timesteps=100_000_000, num_evals=60),
}


def ppo_preset(env_name: str) -> Preset:
    """The settings to train `env_name` with; general ones for a name without any.

    `DEFAULT_ENV` is set up for two CPU cores: three to four minutes from start to end, with ants
    that run within two. Inverted pendulums, humanoids, reacher, halfcheetah and pusher have the
    values that Brax lists as tested in its notebooks/training.ipynb; hopper, walker2d and swimmer
    those of MuJoCo Playground. Both mean an accelerator, which is faster with more environments
    and larger batches at a time.

    Args:
        env_name: as registered in `brax.envs`; any other string will do as well.

    Returns:
        The backend to ask for, and keyword arguments of an unmodified
        `brax.training.agents.ppo.train.train`. Steps are environment steps. The mapping is
        read-only: copy it to change it, and see `fit_batch` for `num_envs`.
    """
    return _PRESETS.get(env_name, _GENERAL_PRESET)


def fit_batch(ppo: Mapping[str, Any], num_envs: int) -> dict[str, Any]:
    """`ppo` for another number of environments.

    The trainer wants `batch_size * num_minibatches` to be a multiple of `num_envs`. The rule is:
    `num_minibatches` stays, and `batch_size` is rounded up to the next value that fits, a multiple
    of `num_envs / gcd(num_envs, num_minibatches)`; one that fits already stays too.

    Args:
        ppo: keyword arguments of `brax.training.agents.ppo.train.train`; not changed.
        num_envs: environments to train in parallel, at least 1.

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


# Of hopper and walker2d in Brax's notebooks/training.ipynb, which want an accelerator.
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

# For all other environments, sized for two CPU cores and not tuned to any of them. None of these
# trainers reports rewards of its training episodes, so they evaluate, with few environments.
_EVALUATION: dict[str, Any] = {"num_evals": 10, "num_eval_envs": 16}
_OTHERS: dict[str, dict[str, Any]] = {
    # Walker2d's in the notebook, with half the environments and updates, and a smaller memory.
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
    # The learning rate and the number of environments of Brax's own test of it.
    "apg": {
        **_EVALUATION,
        "policy_updates": 450,
        "horizon_length": 32,
        "learning_rate": 3e-3,
        "num_envs": 64,
    },
    # The trainer's own population; a learning rate between its own and that of Brax's test.
    "es": {
        **_EVALUATION,
        "num_timesteps": 5_000_000,
        "population_size": 128,
        "learning_rate": 1e-2,
    },
    # The trainer's own values, which are those of the paper (arXiv:1803.07055) for its ant.
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
    """Keyword arguments of `brax.training.agents.TRAINER.train.train` for `env_name`.

    For PPO see `ppo_preset`. SAC has the values of Brax's notebook for hopper and walker2d. All
    else is meant to run on a laptop and has not been tuned.

    Args:
        trainer: one of `TRAINERS`.
        env_name: as registered in `brax.envs`; any other string will do as well.
        num_envs: environments in the training batch, in place of the preset's. ES and ARS try
            each change of the policy both ways, so theirs is an even number.
        num_timesteps: env steps to train for, in place of the preset's. APG, which counts
            updates, gets as many as that takes.
        ppo: PPO's settings, in place of the preset's, as MuJoCo Playground has for its own
            environments. What is not PPO's alone is taken over for the others.

    Raises:
        ValueError: there is no such trainer, or it cannot use that many environments.
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
    longer = 1.0  # than the preset
    if num_timesteps is not None:
        if trainer == "apg":
            steps_per_update = settings["horizon_length"] * settings["num_envs"]
            # It divides the updates among its evaluations, and rounds.
            settings["num_evals"] = min(
                settings["num_evals"], num_timesteps // steps_per_update + 1
            )
            settings["policy_updates"] = math.ceil(num_timesteps / steps_per_update)
        else:
            longer = num_timesteps / settings["num_timesteps"]
            settings["num_timesteps"] = num_timesteps
    if trainer == "ppo":
        # Resets between epochs change what is learned: as they are set, if the rest is.
        if longer != 1 or num_envs is not None or not settings.get("num_resets_per_eval"):
            _split(settings, (settings.get("num_evals", 1) - 1) * longer)
    elif longer > 1:  # policies come as often as in the preset, with the evaluations
        settings["num_evals"] = round(settings["num_evals"] * longer)
    if trainer == "sac":
        # It refuses to be done before it has filled its memory for the first time.
        whole_steps = settings["num_timesteps"] // 2 // settings["num_envs"]
        filled = min(settings["min_replay_size"], whole_steps * settings["num_envs"])
        settings["min_replay_size"] = filled
    return settings


def steps_per_policy(trainer: str, settings: Mapping[str, Any]) -> int:
    """Env steps after which the trainer hands out its policy, again and again.

    Args:
        trainer: one of `TRAINERS`.
        settings: as `trainer_settings` gives them.
    """
    epochs = max(settings.get("num_evals", 1) - 1, 1)
    if trainer == "ppo":
        resets, step = max(settings.get("num_resets_per_eval", 0), 1), _training_step(settings)
        return math.ceil(settings["num_timesteps"] / (epochs * step * resets)) * step * resets
    if trainer == "apg":
        updates = max(round(settings["policy_updates"] / epochs), 1)
        return updates * settings["horizon_length"] * settings["num_envs"]
    return math.ceil(settings["num_timesteps"] / epochs)


def _training_step(ppo: Mapping[str, Any]) -> int:
    """Env steps of one of PPO's training steps."""
    # The fallbacks are the trainer's own defaults.
    return (
        ppo.get("batch_size", 32)
        * ppo.get("unroll_length", 10)
        * ppo.get("num_minibatches", 16)
        * ppo.get("action_repeat", 1)
    )


def _split(ppo: dict[str, Any], epochs: float) -> None:
    """Sets `num_evals` for about `epochs` epochs of PPO, which hands out a policy after each.

    All epochs have the same number of training steps, so that together they may be more than
    `num_timesteps` asks for: by a hundredth at most, where up to four times as many epochs can do
    that. With resets between epochs there are no more of them, for they change what is learned.
    """
    steps = max(math.ceil(ppo["num_timesteps"] / _training_step(ppo)), 1)
    fewest = min(max(math.ceil(epochs - 1e-6), 1), steps)
    most = fewest if ppo.get("num_resets_per_eval") else min(4 * fewest, steps)
    numbers = range(fewest, most + 1)

    def excess(number: int) -> int:
        return math.ceil(steps / number) * number - steps

    best = next((n for n in numbers if excess(n) <= steps / 100), min(numbers, key=excess))
    ppo["num_evals"] = best + 1


def _set_num_envs(trainer: str, settings: dict[str, Any], num_envs: int) -> None:
    pairs = {"es": "population_size", "ars": "number_of_directions"}.get(trainer)
    smallest = 2 if pairs else 1
    if num_envs < smallest or num_envs % smallest:
        kind = "an even number, at least 2, for this trainer" if pairs else "at least 1"
        raise ValueError(
            f"num_envs={num_envs}: must be {kind}; leave it out to train with the preset's"
        )
    settings[pairs or "num_envs"] = num_envs // smallest
