"""Tests which trainers can be watched, on which physics, without changing what they learn.

python -m benchmarks.matrix --trainers ppo sac --families spring mjx --json matrix.json
python -m benchmarks.matrix --trainers "own loop" "rejax ppo" evosax --families spring

Each cell is a training as small as its trainer allows, once with the bare environment and once
wrapped. It runs in a process of its own, so that a crash or a hang leaves the others alone. The
table is printed as Markdown: the states that arrived, and whether the same was learned.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from brax import envs

from benchmarks import other_trainers
from benchmarks.other_trainers import OTHERS
from benchmarks.overhead import Page
from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli.training import placed_as_it_comes_back
from brax_viser.host.control import MODES

BACKENDS = ("spring", "positional", "generalized", "mjx")


@dataclass(frozen=True)
class Family:
    """One kind of environment."""

    make: Callable[[], Any]  # the bare environment
    trainer_kwargs: Callable[[], Mapping[str, Any]] = dict  # arguments that a trainer needs for it


# Playground is imported only when it is trained on, because the import takes seconds.
def _playground_env() -> Any:
    registry = importlib.import_module("mujoco_playground").registry
    return registry.load("CartpoleBalance", config_overrides={"impl": "jax"})


def _playground_kwargs() -> dict[str, Any]:
    wrapper = importlib.import_module("mujoco_playground").wrapper
    return {"wrap_env_fn": wrapper.wrap_for_brax_training}


def all_families() -> dict[str, Family]:
    """Returns the families that can be trained here, by name."""
    found = {
        backend: Family(
            functools.partial(envs.get_environment, "inverted_pendulum", backend=backend)
        )
        for backend in BACKENDS
    }
    if importlib.util.find_spec("mujoco_playground"):
        found["playground"] = Family(_playground_env, _playground_kwargs)
    return found


class DictObservations(envs.Wrapper):
    """Observes {"state": [D]} in place of [D], as behaviour cloning requires."""

    @property
    def observation_size(self) -> Any:
        return {"state": (self.env.observation_size,)}

    def reset(self, rng: jax.Array) -> envs.State:
        return self._named(self.env.reset(rng))

    def step(self, state: envs.State, action: jax.Array) -> envs.State:
        unnamed = replace(state, obs=state.obs["state"])  # type: ignore[index]
        return self._named(self.env.step(unnamed, action))

    def _named(self, state: envs.State) -> envs.State:
        return replace(state, obs={"state": state.obs})  # type: ignore[arg-type]


# The smallest settings that compile, with episodes that end and at least two updates.
SMALLEST: dict[str, dict[str, Any]] = {
    "ppo": dict(
        num_timesteps=2_000,
        episode_length=60,
        num_envs=8,
        num_eval_envs=4,
        unroll_length=5,
        batch_size=8,
        num_minibatches=2,
        num_updates_per_batch=2,
    ),
    "sac": dict(
        num_timesteps=1_600,
        episode_length=60,
        num_envs=8,
        num_eval_envs=4,
        min_replay_size=160,
        batch_size=16,
        grad_updates_per_step=2,
        normalize_observations=True,
    ),
    "apg": dict(
        policy_updates=12,
        episode_length=60,
        num_envs=8,
        num_eval_envs=4,
        horizon_length=10,
        learning_rate=3e-3,
        normalize_observations=True,
    ),
    "es": dict(
        num_timesteps=600,
        episode_length=60,
        population_size=4,
        num_eval_envs=4,
        normalize_observations=True,
    ),
    "ars": dict(
        num_timesteps=600,
        episode_length=60,
        number_of_directions=4,
        top_directions=2,
        num_eval_envs=4,
        normalize_observations=True,
    ),
    "bc": dict(
        demo_length=10,
        dagger_steps=4,
        epochs=2,
        num_envs=8,
        num_evals=2,
        num_eval_envs=4,
        eval_length=60,
        scramble_time=60,
        batch_size=16,
    ),
}
"""Keyword arguments of each `brax.training.agents.TRAINER.train.train`."""

NUM_ENVS: int = 8
"""Environments in each trainer's training batch."""


def train(trainer: str, env: Any, **kwargs: Any) -> list[np.ndarray]:
    """Runs one of Brax's trainers with its smallest settings.

    Args:
        trainer: a key of `SMALLEST`.
        env: bare or wrapped in `VisualizedEnv`.
        **kwargs: further arguments of the trainer.

    Returns:
        The trained parameters, flattened.
    """
    settings = {"seed": 3, **SMALLEST[trainer], **_small_networks(trainer), **kwargs}
    agent = importlib.import_module(f"brax.training.agents.{trainer}.train")
    name = "environment"
    if trainer == "bc":  # takes an environment already wrapped for training
        wrap = settings.pop("wrap_env_fn", envs.training.wrap)
        settings["teacher_inference_fn"] = functools.partial(_teach, env.action_size)
        env, name = wrap(DictObservations(env), episode_length=60, action_repeat=1), "env"
    stock = hasattr(jax, "device_put_replicated")  # else as `brax-viser train` does
    with contextlib.nullcontext() if stock else placed_as_it_comes_back(agent):
        _, params, _ = agent.train(**{name: env}, **settings)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(params))]


def _small_networks(trainer: str) -> dict[str, Any]:
    if trainer == "ars":  # its policy is a matrix; there is nothing to choose
        return {}
    make = getattr(
        importlib.import_module(f"brax.training.agents.{trainer}.networks"),
        f"make_{trainer}_networks",
    )
    sizes: dict[str, dict[str, Any]] = {
        "ppo": {"policy_hidden_layer_sizes": (8,), "value_hidden_layer_sizes": (8,)},
        "bc": {"policy_hidden_layer_sizes": (8,), "policy_obs_key": "state"},
    }
    chosen = sizes.get(trainer, {"hidden_layer_sizes": (8,)})
    return {"network_factory": functools.partial(make, **chosen)}


def _teach(action_size: int, obs: dict[str, jax.Array], _: Any) -> tuple[jax.Array, dict[str, Any]]:
    """Acts as a teacher to imitate."""
    loc = -obs["state"][..., :action_size]
    return jnp.tanh(loc), {"loc": loc}


def largest_difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Returns the largest difference of parameters, relative to their array's largest, or 0."""
    assert [x.shape for x in one] == [x.shape for x in other]
    largest = 0.0
    for a, b in zip(one, other, strict=True):
        if not np.array_equal(a, b):
            scale = max(float(np.max(np.abs(a))), float(np.finfo(np.float32).tiny))
            largest = max(largest, float(np.max(np.abs(a - b))) / scale)
    return largest


@dataclass(frozen=True)
class Cell:
    """The outcome of one trainer on one family."""

    trainer: str
    family: str
    trains: bool = False
    frames: int = 0  # states that arrived
    difference: float | None = None  # between parameters, relative; 0 is bit-identical
    seconds: float = 0.0
    error: str | None = None
    left_out: str | None = None  # why it was not tried

    def in_words(self) -> str:
        if self.left_out:
            return self.left_out
        if self.error is not None:
            # If the bare environment does not train either, there is nothing to compare with.
            how = "trains bare, **fails watched**" if self.trains else "fails without us too"
            return f"{how}: {self.error.splitlines()[0]}"
        arrives = f"{self.frames} arrive" if self.frames else "**nothing arrives**"
        same = "identical" if self.difference == 0 else f"**differs by {self.difference:.1e}**"
        return f"{arrives}, {same}"


def measure(trainer: str, family: str, mode: str) -> Cell:
    """Measures one cell in this process."""
    start, cell = time.monotonic(), Cell(trainer, family)
    try:
        chosen = all_families()[family]
        if trainer in OTHERS:
            run = functools.partial(other_trainers.train, trainer)
        else:
            run = functools.partial(train, trainer, **chosen.trainer_kwargs())
        stock = run(chosen.make())
        cell = replace(cell, trains=True)
        with Viewer(port=0, mode=mode) as viewer:
            page = Page(viewer)
            page.open()  # without a page no states are sent
            env = VisualizedEnv(chosen.make(), grid=(2, 2), viewer=viewer)
            watched = run(env)
            cell = replace(
                cell,
                frames=viewer.stats().frames,
                difference=largest_difference(stock, watched),
                error=viewer._shared.fault,
            )
            page.close()
    # Any exception: the table also says what does not work.
    except Exception as error:
        cell = replace(cell, error=f"{type(error).__name__}: {error}")
    return replace(cell, seconds=time.monotonic() - start)


def print_cell(trainer: str, family: str, mode: str) -> None:
    """Prints a cell as JSON; `measure_apart` runs this in the other process."""
    print(RESULT + json.dumps(asdict(measure(trainer, family, mode))), flush=True)


def measure_apart(trainer: str, family: str, mode: str, timeout: float) -> Cell:
    """Measures one cell in a process of its own."""
    start = time.monotonic()
    if trainer in OTHERS and not OTHERS[trainer].takes(family):
        return Cell(trainer, family, left_out="takes no such environment")
    if trainer in OTHERS and (missing := OTHERS[trainer].missing):
        return Cell(trainer, family, left_out=f"{', '.join(missing)} not installed")
    code = f"from benchmarks.matrix import print_cell; print_cell{(trainer, family, mode)}"
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Cell(trainer, family, error=f"not done after {timeout:.0f} s", seconds=timeout)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(RESULT):
            return Cell(**json.loads(line[len(RESULT) :]))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    seconds = time.monotonic() - start
    return Cell(trainer, family, error=f"exit code {done.returncode}: {last}", seconds=seconds)


RESULT: str = "cell: "
"""Marks the line with the outcome, as JSON, in the output of a cell's process."""


def main(
    trainers: tuple[str, ...] = (*SMALLEST, *OTHERS),
    families: tuple[str, ...] = (),
    mode: str = "every_step",
    timeout: float = 300.0,
    at_once: int = 1,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure the table.

    Args:
        trainers: the rows of the table.
        families: its columns; all that are installed if none is given.
        mode: the viewer's mode.
        timeout: limit on the time of one cell, in s.
        at_once: cells measured beside each other; nothing in the table is a time.
        json_file: where to save the table.
    """
    columns = families or tuple(all_families())
    known_trainers = (*SMALLEST, *OTHERS)
    for given, known in (
        (trainers, known_trainers),
        (columns, all_families()),
        ([mode], MODES),
    ):
        if unknown := [name for name in given if name not in known]:
            sys.exit(f"{', '.join(unknown)}: must be among {', '.join(known)}")
    cells: dict[tuple[str, str], Cell] = {}
    with ThreadPoolExecutor(at_once) as pool:  # the cells run in processes of their own
        measured = [
            pool.submit(measure_apart, trainer, family, mode, timeout)
            for trainer in trainers
            for family in columns
        ]
        for done in as_completed(measured):
            outcome = done.result()
            cells[outcome.family, outcome.trainer] = outcome
            words = f"{outcome.trainer} on {outcome.family}: {outcome.in_words()}"
            print(f"{words} ({outcome.seconds:.0f} s)", flush=True)
            if json_file is not None:  # after each cell, so that an interruption loses nothing
                json_file.write_text(json.dumps([asdict(c) for c in cells.values()], indent=1))
    rows = [["", *columns], ["---"] * (1 + len(columns))]
    rows += [[name, *(cells[of, name].in_words() for of in columns)] for name in trainers]
    print("", *(f"| {' | '.join(row)} |" for row in rows), sep="\n")


if __name__ == "__main__":
    tyro.cli(main)
