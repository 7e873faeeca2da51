"""Finds trained policies: those of run directories, and checkpoints of Brax's PPO and SAC."""

import functools
import importlib
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epath

from brax_viser.cli.loading import load
from brax_viser.runs import files
from brax_viser.runs.reader import SavedRun, open_run
from brax_viser.sandbox.trained import Trained, filled

ARGUMENTS = "train.json"
"""File of a run directory in which `brax-viser train` notes what `brax-viser play` needs."""

BRAX_CONFIGS = {"ppo": "ppo_network_config.json", "sac": "sac_network_config.json"}
"""File that Brax writes into each checkpoint, by trainer."""

NETWORKS = "network_factory"
"""Argument of a trainer: the function that makes its networks."""

RECORDED = ("normalize_observations", "episode_length", "action_repeat")
"""Settings of a recorded training that matter to its policies."""


@dataclass(frozen=True)
class Arguments:
    """What a training was started with."""

    env: str
    backend: str | None
    trainer: str

    def write(self, folder: str) -> None:
        """Writes them into a run directory."""
        files.write(epath.Path(folder) / ARGUMENTS, json.dumps(vars(self)).encode())

    @classmethod
    def read(cls, folder: epath.Path) -> "Arguments | None":
        """Returns None if there are none, as in the directory of a script. Raises ValueError: they
        are damaged."""
        try:
            return cls(**json.loads((folder / ARGUMENTS).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / ARGUMENTS} is damaged: {error}") from error


@dataclass(frozen=True)
class Given:
    """Command-line overrides; None takes the stored value."""

    command: str  # such as "play"
    env: str | None = None
    backend: str | None = None
    trainer: str | None = None

    def arguments(self, run: SavedRun) -> Arguments:
        """Returns what a training was started with: the overrides, or else what is stored.

        Raises:
            ValueError: the name of the environment is neither given nor stored; or the directory is
                damaged.
        """
        told = Arguments.read(epath.Path(run.path))
        if told is None:
            if self.env is None:
                raise ValueError(
                    f"{run.path} was written by a script, which did not store the name that its "
                    f"environment, {run.info.env}, is made by. Give it: "
                    f"brax-viser {self.command} {run.path} ENV"
                )
            told = Arguments(self.env, run.info.backend, (run.info.trainer or "ppo").lower())
        return Arguments(
            self.env or told.env, self.backend or told.backend, self.trainer or told.trainer
        )


@dataclass(frozen=True)
class Policies:
    """The policies of one training."""

    steps: tuple[int, ...]  # env steps that each was trained for, ascending
    make_policy: Callable[..., Any]  # as trainers hand it to `policy_params_fn`
    params: Callable[[int], Any]
    """Returns the parameters trained for that many env steps; raises ValueError if the file is
    damaged."""
    chosen: int | None = None  # env steps of the policy that plays first; None: the newest

    @property
    def first(self) -> int:
        """The env steps of the policy that plays first."""
        return self.steps[-1] if self.chosen is None else self.chosen


def brax_checkpoints(path: epath.Path) -> dict[int, epath.Path]:
    """Returns the checkpoints of Brax's PPO or SAC in a folder, or the folder itself if it is one,
    by env steps."""
    if trainer_of(path) is not None:
        return {int(path.name) if path.name.isdigit() else 0: path}
    if not path.is_dir():
        return {}
    inside = {int(p.name): p for p in path.iterdir() if p.name.isdigit()}
    return {step: inside[step] for step in sorted(inside) if trainer_of(inside[step]) is not None}


def trainer_of(path: epath.Path) -> str | None:
    """Returns the trainer of one of Brax's checkpoints, "ppo" or "sac"; None of another folder."""
    return next((name for name, file in BRAX_CONFIGS.items() if (path / file).exists()), None)


def of_checkpoints(found: Mapping[int, epath.Path], trainer: str) -> Policies:
    """Returns the policies of a trainer's checkpoints, as `brax_checkpoints` finds them."""
    from brax.training import checkpoint

    networks = importlib.import_module(f"brax.training.agents.{trainer}.networks")
    config = _config_of(found[max(found)] / BRAX_CONFIGS[trainer])
    network = checkpoint.get_network(config, getattr(networks, f"make_{trainer}_networks"))
    make_policy = networks.make_inference_fn(network)
    return Policies(tuple(found), make_policy, lambda step: checkpoint.load(found[step]))


def _config_of(path: epath.Path) -> Any:
    """Returns the settings of a checkpoint's networks.

    Brax 0.14.2's `load_config` fails on its own files if no initialiser of the means was chosen: it
    looks for one named None. Networks have no such initialiser unless one is given.
    """
    from brax.training import checkpoint

    told = json.loads(path.read_text())
    kwargs = told["network_factory_kwargs"]
    told["network_factory_kwargs"] = {name: x for name, x in kwargs.items() if x is not None}
    with tempfile.TemporaryDirectory() as folder:
        copy = epath.Path(folder) / path.name
        copy.write_text(json.dumps(told))
        return checkpoint.load_config(copy)


def of_run(run: SavedRun, given: Given) -> tuple[Any, dict[str, Any], Policies]:
    """Returns the environment of a run directory, its trainer's settings, and its policies.

    Raises:
        ValueError: it has no policies, or its environment is not known.
        Refused: what is given cannot be used.
    """
    told = given.arguments(run)
    if not run.policies():
        raise ValueError(f"{run.path} has no policies: the trainer had not handed one out yet")
    env, settings = load(told.env, told.trainer, told.backend, None, None, False)
    recorded = run.info.settings
    settings |= {name: recorded[name] for name in RECORDED if name in recorded}
    if not (epath.Path(run.path) / ARGUMENTS).exists():  # a script's networks are not the command's
        settings[NETWORKS] = _factory(told.trainer, recorded.get(NETWORKS, {}))
    try:
        make_policy, template = _networks(told.trainer, env, settings)
    except TypeError as error:  # such as arguments of another trainer's networks
        raise ValueError(f"{run.path} is not of {told.trainer}: {error}") from error

    def params(step: int) -> Any:
        arrays = run.policy(step)
        try:
            return filled(template, arrays)
        except ValueError as error:
            of = f"{told.trainer}'s networks for {told.env}"
            raise ValueError(f"{run.path} does not fit {of}: {error}") from error

    return env, settings, Policies(run.policies(), make_policy, params)


def of_saved(path: epath.Path, given: Given) -> tuple[Any, dict[str, Any], Policies]:
    """Returns the same of a policy's file that `brax-viser train` saved in its run directory. Of
    the directory's policies, it plays first.

    Raises:
        ValueError, Refused: as for `of_run`; or the file is damaged, or does not fit.
    """
    import jax
    from brax.io import model

    env, settings, policies = of_run(open_run(path.parent), given)
    newest = policies.params(policies.steps[-1])
    try:
        params = filled(
            newest, Trained(0, policies.make_policy, model.load_params(str(path))).arrays()
        )
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path} cannot be played: {error}") from error

    def is_saved(step: int) -> bool:
        kept = policies.params(step)
        return all(map(np.array_equal, jax.tree.leaves(kept), jax.tree.leaves(params)))

    # Where its own step was dropped, it stands for the newest.
    first = next(filter(is_saved, reversed(policies.steps)), policies.steps[-1])
    played = replace(
        policies,
        params=lambda step: params if step == first else policies.params(step),
        chosen=first,
    )
    return env, settings, played


def _factory(trainer: str, recorded: Mapping[str, Any] | str) -> Callable[..., Any]:
    """Returns the function that makes the networks of a script, as `TrainerCall.settings` describes
    them.

    Raises:
        ValueError: they cannot be made without the script.
    """
    from brax.training.networks import ACTIVATION

    try:
        if isinstance(recorded, str):
            raise KeyError(recorded)
        given: dict[str, Any] = dict(recorded)
        given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
        if "activation" in given:
            given["activation"] = ACTIVATION[given["activation"]]
    except KeyError as error:
        raise ValueError(
            f"the policies have networks of their script's own, by {error}, which cannot be made "
            "without it. Its episodes can be replayed: `brax-viser replay`"
        ) from None
    given = {name: x for name, x in given.items() if not name.endswith("init_fn")}  # not needed
    return functools.partial(_usual_factory(trainer), **given)


def _usual_factory(trainer: str) -> Callable[..., Any]:
    module = importlib.import_module(f"brax.training.agents.{trainer}.networks")
    names = f"make_{trainer}_networks", "make_policy_network"
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _networks(trainer: str, env: Any, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns a trainer's `make_policy`, and parameters of the shapes that it takes: those of the
    observations' normaliser and of the policy."""
    import jax
    import jax.numpy as jnp
    from brax.training import types
    from brax.training.acme import running_statistics, specs

    module = importlib.import_module(f"brax.training.agents.{trainer}.networks")
    key = jax.random.PRNGKey(0)
    obs = jax.eval_shape(env.reset, key).obs
    # PPO takes shapes, of any pytree of observations; the others one number.
    sizes = jax.tree.map(lambda x: x.shape, obs) if trainer == "ppo" else env.observation_size
    normalizes = settings.get("normalize_observations", False)
    preprocess = types.identity_observation_preprocessor
    network = settings.get(NETWORKS, _usual_factory(trainer))(
        sizes,
        env.action_size,
        preprocess_observations_fn=running_statistics.normalize if normalizes else preprocess,
    )
    policy = getattr(network, "policy_network", network)
    arrays = jax.tree.map(lambda x: specs.Array(x.shape[-1:], jnp.dtype("float32")), obs)
    template = running_statistics.init_state(arrays), policy.init(key)
    return with_deterministic(module.make_inference_fn(network)), template


def with_deterministic(make_policy: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a trainer's `make_policy` that takes the argument `deterministic`. Trainers with
    deterministic policies have no such argument."""
    if "deterministic" in inspect.signature(make_policy).parameters:
        return make_policy
    return lambda params, deterministic=True: make_policy(params)
