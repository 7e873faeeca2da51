"""Finds trained policies: those of run directories, and checkpoints of Brax's PPO."""

import importlib
import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from brax_viser.runs import files
from brax_viser.runs.reader import SavedRun
from brax_viser.sandbox.trained import filled

ARGUMENTS = "train.json"
"""File of a run directory in which `brax-viser train` notes what `brax-viser play` needs."""

BRAX_CONFIG = "ppo_network_config.json"
"""File that Brax writes into each checkpoint of its PPO."""


@dataclass(frozen=True)
class Arguments:
    """What a training was started with."""

    env: str
    backend: str | None
    trainer: str

    def write(self, folder: str) -> None:
        """Notes them in a run directory."""
        files.write(epath.Path(folder) / ARGUMENTS, json.dumps(vars(self)).encode())

    @classmethod
    def read(cls, folder: epath.Path) -> "Arguments":
        """Raises ValueError: they are missing or damaged."""
        try:
            return cls(**json.loads((folder / ARGUMENTS).read_text()))
        except FileNotFoundError:
            raise ValueError(
                f"{folder} has no {ARGUMENTS}: only trainings of `brax-viser train` can be played "
                "from their directory. Those of a script can be replayed: `brax-viser replay`"
            ) from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{folder / ARGUMENTS} is damaged: {error}") from error


@dataclass(frozen=True)
class Policies:
    """The policies of one training."""

    steps: tuple[int, ...]  # env steps trained of each, ascending
    make_policy: Callable[..., Any]  # as trainers hand it to `policy_params_fn`
    params: Callable[[int], Any]  # of a policy, by its steps. Raises ValueError: damaged


def brax_checkpoints(path: epath.Path) -> dict[int, epath.Path]:
    """Returns the checkpoints of Brax's PPO in a folder, or that is the folder, by their steps."""
    if (path / BRAX_CONFIG).exists():
        return {int(path.name) if path.name.isdigit() else 0: path}
    if not path.is_dir():
        return {}
    inside = {int(p.name): p for p in path.iterdir() if p.name.isdigit()}
    return {step: inside[step] for step in sorted(inside) if (inside[step] / BRAX_CONFIG).exists()}


def of_checkpoints(found: Mapping[int, epath.Path]) -> Policies:
    """Returns the policies of checkpoints, as `brax_checkpoints` finds them."""
    from brax.training import checkpoint as any_checkpoint
    from brax.training.agents.ppo import checkpoint, networks

    config = _config_of(found[max(found)])
    network = any_checkpoint.get_network(config, networks.make_ppo_networks)
    make_policy = networks.make_inference_fn(network)  # type: ignore[arg-type]
    return Policies(tuple(found), make_policy, lambda step: checkpoint.load(found[step]))


def _config_of(path: epath.Path) -> Any:
    """Returns what a checkpoint says of its networks.

    Brax 0.14.2's `load_config` fails on what it has written itself if no initialiser of the means
    was chosen: it looks for one named None. The networks have none unless they are told.
    """
    from brax.training import checkpoint

    told = json.loads((path / BRAX_CONFIG).read_text())
    kwargs = told["network_factory_kwargs"]
    told["network_factory_kwargs"] = {name: x for name, x in kwargs.items() if x is not None}
    with tempfile.TemporaryDirectory() as folder:
        copy = epath.Path(folder) / BRAX_CONFIG
        copy.write_text(json.dumps(told))
        return checkpoint.load_config(copy)


def of_run(run: SavedRun, trainer: str, env: Any, settings: Mapping[str, Any]) -> Policies:
    """Returns the policies of a run directory.

    Args:
        run: the directory.
        trainer: name of the trainer, as in `presets.TRAINERS`.
        env: the environment.
        settings: the trainer's, as `presets.trainer_settings` returns them.

    Raises:
        ValueError: it has no policies.
    """
    if not run.policies():
        raise ValueError(f"{run.path} has no policies: the trainer had not handed one out yet")
    make_policy, template = _networks(trainer, env, settings)
    return Policies(run.policies(), make_policy, lambda step: filled(template, run.policy(step)))


def _networks(trainer: str, env: Any, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns a trainer's `make_policy`, and parameters of the shapes that it takes: those of the
    observations' normaliser and of the policy."""
    import jax
    import jax.numpy as jnp
    from brax.training import types
    from brax.training.acme import running_statistics, specs

    module = importlib.import_module(f"brax.training.agents.{trainer}.networks")
    names = f"make_{trainer}_networks", "make_policy_network"
    usual = next(getattr(module, name) for name in names if hasattr(module, name))
    key = jax.random.PRNGKey(0)
    obs = jax.eval_shape(env.reset, key).obs
    # PPO takes shapes, of any pytree of observations; the others one number.
    sizes = jax.tree.map(lambda x: x.shape, obs) if trainer == "ppo" else env.observation_size
    normalizes = settings.get("normalize_observations", False)
    preprocess = types.identity_observation_preprocessor
    network = settings.get("network_factory", usual)(
        sizes,
        env.action_size,
        preprocess_observations_fn=running_statistics.normalize if normalizes else preprocess,
    )
    policy = getattr(network, "policy_network", network)
    arrays = jax.tree.map(lambda x: specs.Array(x.shape[-1:], jnp.dtype("float32")), obs)
    template = running_statistics.init_state(arrays), policy.init(key)
    return with_deterministic(module.make_inference_fn(network)), template


def with_deterministic(make_policy: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a trainer's `make_policy` that takes this argument. Some trainers' policies are
    deterministic, and theirs does not."""
    if "deterministic" in inspect.signature(make_policy).parameters:
        return make_policy
    return lambda params, deterministic=True: make_policy(params)
