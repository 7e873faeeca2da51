"""Measures what watching costs on a GPU: stock PPO and the same PPO watched, in turn.

XLA_FLAGS=--xla_gpu_deterministic_ops=true python -m benchmarks.gpu

Each training has a process of its own, so that neither disturbs what the other keeps on the device
(Warp keeps 32 CUDA graphs in a process, by the addresses of a step's buffers). The processes of a
case compile side by side; then one trains an epoch while the other waits. The watched one goes
through the modes without recompiling, with a client in a third process. Both train equally long
with the same seed, so that their parameters can be compared. `--together` has both trainings take
turns in one process instead, to see what they capture then.

A last pair takes steps without learning. "Dispatch" is the time after which the host has enqueued
all of them: close to the whole time if something waits for the device at each step.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import COMPILING_EPOCHS, Page, in_words, record

MODES = ("off", "no_page", "recording", "realtime", "latest", "every_step", "twins", "closed")
"""Those of `benchmarks.overhead`, and 16 twins in real time: MuJoCo beside the training."""


@dataclass(frozen=True)
class Case:
    """One environment, and how it is trained."""

    env: str
    physics: str
    """A backend of Brax, or "warp" or "jax" for an environment of Playground."""
    num_envs: int
    training_steps: int
    """Training steps of 20 batched steps each in an epoch."""
    pairs: int
    """Epochs in each mode."""

    @property
    def name(self) -> str:
        return f"{self.env}/{self.physics}, {self.num_envs:,}"


CASES = (
    Case("ant", "positional", 4096, 5, 6),
    Case("ant", "mjx", 2048, 5, 6),
    Case("Go1JoystickFlatTerrain", "warp", 8192, 1, 6),
)

SMALL_CASES = (
    Case("inverted_pendulum", "generalized", 8, 2, 5),
    Case("inverted_pendulum", "generalized", 64, 2, 5),
    Case("ant", "positional", 64, 1, 5),
)
"""For `--platform cpu`."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    platform: Literal["cuda", "cpu"] = "cuda"
    """"cpu" shows with a small case that the benchmark itself works."""
    only: str = ""
    """Measure only the cases whose names contain this."""
    learn: bool = True
    """Whether to train. Steps without learning are taken in any case, on a GPU in the first one."""
    steps: int = 100
    """Steps of the pairs that do not learn."""
    together: bool = False
    """Whether the trainings that are compared share a process."""


class Worker:
    """One training, or two, in a process of its own, told line by line what to do."""

    def __init__(self, kind: str, case: Case, settings: Settings):
        environ = {**os.environ, "JAX_PLATFORMS": settings.platform}
        # Two processes share the device.
        environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        self.case = case
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", kind, json.dumps(asdict(case))],
            env={**environ, "BRAX_VISER_GPU_STEPS": str(settings.steps)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """Returns the next line of results. Raises RuntimeError if the process has failed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.case.name}: the process ended, {self._process.wait()}")

    def do(self, what: str) -> dict[str, Any]:
        """Has it do something. Returns the results."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self.hear()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Side:
    """One of two trainings in one process."""

    def __init__(self, worker: Worker, name: str):
        self._worker, self._name = worker, name

    def hear(self) -> dict[str, Any]:
        """Begins, and returns the first results."""
        return self.do("begin")

    def do(self, what: str) -> dict[str, Any]:
        return self._worker.do(f"{self._name} {what}")

    def stop(self) -> None:
        self._worker.stop()


def trainings(case: Case, settings: Settings) -> tuple[Worker | Side, Worker | Side]:
    """Returns the stock training, and the watched one."""
    if not settings.together:
        return Worker("train", case, settings), Worker("train-watched", case, settings)
    both = Worker("train-both", case, settings)
    return Side(both, "stock"), Side(both, "watched")


def tell(**results: Any) -> None:
    print(json.dumps(results), flush=True)


def told() -> Iterator[str]:
    """Yields what the process that measures asks for."""
    for line in sys.stdin:
        yield line.strip()


class Captures:
    """Counts the CUDA graphs that Warp captures."""

    def __init__(self) -> None:
        self.count = 0
        with contextlib.suppress(ModuleNotFoundError):
            scope = importlib.import_module("warp").ScopedCapture
            enter = scope.__enter__

            def counted(own: Any) -> Any:
                self.count += 1
                return enter(own)

            scope.__enter__ = counted


def bare_env(case: Case) -> Any:
    from brax import envs

    from brax_viser.cli import playground

    if case.physics in ("warp", "jax"):
        return playground.load(case.env, case.physics)
    return envs.get_environment(case.env, backend=case.physics)


def ppo_settings(case: Case) -> dict[str, Any]:
    """Returns arguments of stock PPO, the same for both trainings."""
    from brax.training.agents.ppo import networks

    from brax_viser.cli import playground

    epochs, unroll_length = COMPILING_EPOCHS + case.pairs * len(MODES), 20
    layers = {name: (64, 64) for name in ("policy_hidden_layer_sizes", "value_hidden_layer_sizes")}
    own: dict[str, Any] = {}
    if case.physics in ("warp", "jax"):
        own = playground.ppo_settings(case.env, case.physics)
        keys = own["network_factory"].keywords
        layers |= {k: v for k, v in keys.items() if k.endswith("obs_key")}
    return own | dict(
        num_timesteps=case.num_envs * unroll_length * case.training_steps * epochs,
        num_evals=epochs + 1,
        num_resets_per_eval=0,
        run_evals=False,
        num_envs=case.num_envs,
        episode_length=1000,
        unroll_length=unroll_length,
        batch_size=case.num_envs // 4,
        num_minibatches=4,
        num_updates_per_batch=4,
        seed=3,
        network_factory=functools.partial(networks.make_ppo_networks, **layers),
    )


def digest_of(tree: Any) -> str:
    """Returns a number for the values of a pytree, equal only for equal bits."""
    import jax
    import numpy as np

    leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(tree))]
    return hashlib.blake2b(b"".join(leaves), digest_size=8).hexdigest()


class Watching:
    """The viewer of a watched training, and the client that receives from it."""

    def __init__(self) -> None:
        from brax_viser import Viewer

        self.viewer = Viewer(port=0)
        self.page = Page(self.viewer)

    def set(self, mode: str) -> None:
        if mode == "closed":
            self.page.close()
            self.viewer.close()
            return
        self.viewer.streaming, self.viewer.twins = mode != "off", 16 * (mode == "twins")
        record(self.viewer, always=mode == "recording")
        if mode in ("no_page", "recording"):
            self.page.close()
        else:
            self.page.open()
        self.viewer.mode = mode if mode in ("realtime", "latest", "every_step") else "realtime"

    @property
    def spent(self) -> float:
        """s, what the viewer itself has counted as its cost."""
        return self.viewer._shared.meter.spent


def train_both(case: Case) -> None:
    """Trains twice in this process, and in turn: lines of input are "stock" or "watched", and what
    `train` takes. Each begins at its first line, as Warp cannot capture two programs at once."""
    lines: dict[str, queue.SimpleQueue[str]] = {}
    for line in told():
        name, what = line.split()
        if name in lines:
            lines[name].put(what)
            continue
        own = lines[name] = queue.SimpleQueue()
        watching = Watching() if name == "watched" else None
        arguments = (case, watching, iter(own.get, ""))
        threading.Thread(target=train, args=arguments, daemon=True).start()


def train(case: Case, watching: Watching | None, lines: Iterator[str]) -> None:
    """Trains, an epoch for each line, which names the mode."""
    from brax.training.agents.ppo import train as ppo

    from brax_viser import VisualizedEnv

    captures, env = Captures(), bare_env(case)
    if watching is not None:
        watching.set("off")
        env = VisualizedEnv(env, grid=(8, 8), viewer=watching.viewer)
    before: dict[str, float] = {"walltime": 0.0, "captures": 0, "spent": 0.0}
    epoch = 0

    def progress_fn(_: int, metrics: Mapping[str, Any]) -> None:
        nonlocal epoch
        now = {
            "walltime": float(metrics["training/walltime"]),
            "captures": captures.count,
            "spent": 0.0 if watching is None else watching.spent,
        }
        epoch += 1
        if epoch >= COMPILING_EPOCHS:
            steps = 20 * case.training_steps
            tell(**{key: (now[key] - before[key]) / steps for key in now})
            mode = next(lines, "closed")
            if watching is not None and mode != "on":
                watching.set(mode)
        # Another training of this process may have captured some meanwhile.
        before.update(now, captures=captures.count)

    _, params, _ = ppo.train(environment=env, progress_fn=progress_fn, **ppo_settings(case))
    tell(parameters=digest_of(params))


def take_steps(case: Case, watching: Watching | None) -> None:
    """Takes steps without learning, some for each line of input, which names the mode."""
    import jax
    from brax import envs

    from brax_viser import VisualizedEnv

    steps = int(os.environ["BRAX_VISER_GPU_STEPS"])
    env = bare_env(case)
    if watching is not None:
        watching.set("off")
        env = VisualizedEnv(env, grid=(8, 8), viewer=watching.viewer)
    env = envs.training.wrap(env, 1000)
    keys = jax.random.split(jax.random.PRNGKey(0), case.num_envs)
    shape = (steps, case.num_envs, env.action_size)
    actions = jax.random.uniform(jax.random.PRNGKey(1), shape, minval=-1, maxval=1)

    @jax.jit
    def run(state: Any) -> Any:
        return jax.lax.scan(lambda s, a: (env.step(s, a), None), state, actions)[0]

    state = jax.block_until_ready(run(jax.jit(env.reset)(keys)))
    tell(ready=True)
    for mode in told():
        if watching is not None and mode != "on":
            watching.set(mode)
        start = time.perf_counter()
        state = run(state)
        dispatched = time.perf_counter()
        jax.block_until_ready(state)
        tell(walltime=(time.perf_counter() - start) / steps, dispatch=(dispatched - start) / steps)


def measure(case: Case, settings: Settings) -> Table:
    """Returns the table of one case's trainings."""
    workers = stock, watched = trainings(case, settings)
    where = ", in one process" * settings.together
    table = Table(title=f"{case.name}: PPO, 64 environments drawn, {case.pairs} pairs{where}")
    for column in (
        "mode",
        "ratio to stock: median, its 95 % interval (min to max)",
        "us per step: stock, watched",
        "counted by the viewer, %",
        "graphs captured per step: stock, watched",
    ):
        table.add_column(column)
    try:
        for worker in workers:
            worker.hear()
        for mode in MODES:
            pairs = [(stock.do("on"), watched.do(mode)) for _ in range(case.pairs)]
            us = [[1e6 * side["walltime"] for side in pair] for pair in pairs]
            table.add_row(
                mode,
                in_words([a / b for a, b in us]),
                ", ".join(f"{median(side):.0f}" for side in zip(*us, strict=True)),
                f"{median(100 * own['spent'] / own['walltime'] for _, own in pairs):.1f}",
                ", ".join(
                    f"{median(s['captures'] for s in side):.2f}"
                    for side in zip(*pairs, strict=True)
                ),
            )
        # Each epoch's results come after it: the last line of all is the parameters'.
        digests = [worker.do("closed")["parameters"] for worker in workers]
        same = "identical" if digests[0] == digests[1] else "DIFFERENT"
        table.caption = f"parameters: {same}"
    finally:
        for worker in workers:
            worker.stop()
    return table


def measure_steps(case: Case, settings: Settings) -> Table:
    """Returns the table of steps without learning."""
    bare, watched = (Worker(kind, case, settings) for kind in ("steps", "steps-watched"))
    table = Table(title=f"{case.name}: {settings.steps} steps in one program")
    for column in ("", "us per step (min to max)", "ratio", "dispatch"):
        table.add_column(column)
    try:
        for worker in (bare, watched):
            worker.hear()
        base: list[dict[str, Any]] = []
        rows: list[tuple[str, list[dict[str, Any]]]] = []
        for mode in MODES:
            pairs = [(bare.do("on"), watched.do(mode)) for _ in range(case.pairs)]
            base += [stock for stock, _ in pairs]
            rows.append((mode, [own for _, own in pairs]))
        stock_us = median(side["walltime"] for side in base)
        for name, sides in (("bare", base), *rows):
            us = [1e6 * side["walltime"] for side in sides]
            dispatch = median(1e6 * side["dispatch"] for side in sides)
            words = f"{median(us):.0f} ({min(us):.0f} to {max(us):.0f})"
            table.add_row(name, words, f"{1e6 * stock_us / median(us):.3f}", f"{dispatch:.0f}")
    finally:
        for worker in (bare, watched):
            worker.stop()
    return table


def card() -> str | None:
    """Returns the name of the GPU, as its driver gives it; None if there is none."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip().splitlines()[0]


def main(arguments: Sequence[str]) -> None:
    if len(arguments) == 2 and arguments[0].split("-")[0] in ("train", "steps"):
        kind, case = arguments[0], Case(**json.loads(arguments[1]))
        watching = Watching() if kind.endswith("-watched") else None
        if kind == "train-both":
            train_both(case)
        elif kind.startswith("train"):
            train(case, watching, told())
        else:
            take_steps(case, watching)
        os._exit(0)  # the viewer's threads must not keep the process
    settings = tyro.cli(Settings, description=__doc__, args=arguments)
    console, name = Console(width=130), card()
    if settings.platform == "cuda" and name is None:
        console.print("No GPU: nvidia-smi finds none. `--platform cpu` tries a small case.")
        return
    console.print(name if settings.platform == "cuda" else "CPU")
    cases = CASES if settings.platform == "cuda" else SMALL_CASES
    cases = [case for case in cases if settings.only in case.name]
    if settings.learn:
        for case in cases:
            console.print(measure(case, settings))
    for case in cases if settings.platform == "cpu" else cases[:1]:
        console.print(measure_steps(case, settings))


if __name__ == "__main__":
    main(sys.argv[1:])
