"""What watching costs: stock PPO with and without `VisualizedEnv`, in turn, in one process.

python -m benchmarks.overhead --env ant --backend positional --num-envs 64

Two stock trainers run on two threads and pass a baton after each of their epochs, so that only
one computes at a time: stock, wrapped, stock, wrapped, ... The wrapped one's viewer goes through
the modes, without recompiling, while a page (a websocket client in another process) receives.
Each wrapped epoch is compared with the mean of the stock epochs before and after it. The first
epochs, in which XLA compiles, are left out.
"""

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import tyro
from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from rich.console import Console
from rich.table import Table

from brax_viser import Viewer, VisualizedEnv

COMPILING_EPOCHS = 3
"""Brax's PPO compiles its first two epochs; the third is the first that runs at full speed."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    env: str = "ant"
    backend: str = "positional"
    num_envs: int = 64
    grid: tuple[int, int] = (8, 8)
    """Columns and rows of drawn environments."""
    pairs: int = 7
    """Wrapped epochs per mode, each between two stock ones; at least 5."""
    epoch_steps: int = 100_000
    """Environment steps per epoch; choose it so that an epoch takes some seconds."""
    modes: tuple[str, ...] = ("off", "latest", "every_step")
    fps: float = 30.0

    def ppo(self) -> dict[str, Any]:
        """Arguments for the stock trainer, the same for both."""
        epochs = COMPILING_EPOCHS + self.pairs * len(self.modes) + 1
        unroll_length = 20
        steps = self.num_envs * unroll_length
        return dict(
            # Brax rounds the steps of an epoch up to whole training steps.
            num_timesteps=max(self.epoch_steps // steps, 1) * steps * epochs,
            num_evals=epochs + 1,
            run_evals=False,
            num_envs=self.num_envs,
            episode_length=1000,
            unroll_length=unroll_length,
            batch_size=self.num_envs // 4,
            num_minibatches=4,
            num_updates_per_batch=4,
            normalize_observations=True,
            network_factory=functools.partial(
                networks.make_ppo_networks,
                policy_hidden_layer_sizes=(64, 64),
                value_hidden_layer_sizes=(64, 64),
            ),
        )


@dataclass
class Baton:
    """Lets two trainers take turns, an epoch each."""

    turn: str = "stock"
    over: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, who: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == who or self.over)

    def pass_to(self, who: str) -> None:
        with self.changed:
            self.turn = who
            self.changed.notify_all()

    def drop(self) -> None:
        """One trainer is done (or has failed): the other need not wait any more."""
        with self.changed:
            self.over = True
            self.changed.notify_all()


class Page:
    """A websocket client in another process, and what it has received so far."""

    def __init__(self, port: int):
        self.frames = self.bytes = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client", str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            counts = json.loads(line)
            self.frames, self.bytes = counts["frames"], counts["bytes"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass
class Epoch:
    """One epoch of one trainer."""

    steps_per_second: float  # env steps over all envs
    seconds: float
    frames: int = 0  # received by the page
    bytes: int = 0  # received by the page


def measure(settings: Settings) -> tuple[list[Epoch], dict[str, list[Epoch]]]:
    """Runs both trainers. Returns stock epochs, and wrapped ones by mode."""
    if settings.pairs < 5:
        raise SystemExit(f"--pairs {settings.pairs}: fewer than 5 say nothing on a noisy machine")
    baton = Baton()
    kwargs = settings.ppo()
    order = [mode for _ in range(settings.pairs) for mode in settings.modes]
    stock: list[Epoch] = []
    wrapped: dict[str, list[Epoch]] = {mode: [] for mode in settings.modes}
    failures: list[BaseException] = []

    with Viewer(port=0, fps=settings.fps, max_overhead=1.0) as viewer:
        page = Page(int(viewer.url.rsplit(":", 1)[1]))

        def set_mode(mode: str) -> None:
            viewer.streaming = mode != "off"
            if mode != "off":
                viewer.mode = mode

        def train(who: str, other: str, env: envs.Env) -> None:
            epoch = 0
            walltime = 0.0
            seen = (0, 0)

            def progress_fn(_: int, metrics: Mapping[str, Any]) -> None:
                nonlocal epoch, walltime, seen
                seconds = float(metrics["training/walltime"]) - walltime
                walltime += seconds
                index = epoch - COMPILING_EPOCHS
                result = Epoch(
                    float(metrics["training/sps"]),
                    seconds,
                    page.frames - seen[0],
                    page.bytes - seen[1],
                )
                if index >= 0 and who == "stock":
                    stock.append(result)
                if 0 <= index < len(order) and who == "wrapped":
                    wrapped[order[index]].append(result)
                epoch += 1
                baton.pass_to(other)
                baton.wait_for(who)
                if who == "wrapped" and 0 <= index + 1 < len(order):
                    set_mode(order[index + 1])
                seen = (page.frames, page.bytes)

            baton.wait_for(who)
            try:
                ppo.train(environment=env, progress_fn=progress_fn, **kwargs)
            except BaseException as error:  # on a thread: raised again by the caller
                failures.append(error)
            finally:
                baton.drop()

        def bare() -> envs.Env:
            return envs.get_environment(settings.env, backend=settings.backend)

        visualized = VisualizedEnv(bare(), grid=settings.grid, viewer=viewer)
        threads = [
            threading.Thread(target=train, args=("stock", "wrapped", bare())),
            threading.Thread(target=train, args=("wrapped", "stock", visualized)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page.close()
    if failures:
        raise failures[0]
    return stock, wrapped


def report(settings: Settings, stock: list[Epoch], wrapped: dict[str, list[Epoch]]) -> None:
    """Prints the table."""
    drawn = min(settings.grid[0] * settings.grid[1], settings.num_envs)
    table = Table(
        title=f"{settings.env}/{settings.backend}, {drawn} of {settings.num_envs} envs drawn, "
        f"{settings.pairs} pairs, one page"
    )
    columns = (
        "mode",
        "ratio to stock: median (min to max)",
        "us per batched step: stock, watched",
        "frames/s at the page",
        "MB/s at the page",
    )
    for column in columns:
        table.add_column(column)
    for place, mode in enumerate(settings.modes):
        ratios, base, own = [], [], []
        for turn, epoch in enumerate(wrapped[mode]):
            index = turn * len(settings.modes) + place
            beside = mean(s.steps_per_second for s in stock[index : index + 2])
            ratios.append(epoch.steps_per_second / beside)
            base.append(1e6 * settings.num_envs / beside)
            own.append(1e6 * settings.num_envs / epoch.steps_per_second)
        table.add_row(
            mode,
            f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            f"{median(base):.0f}, {median(own):.0f}",
            f"{median(e.frames / e.seconds for e in wrapped[mode]):.1f}",
            f"{median(e.bytes / e.seconds for e in wrapped[mode]) / 1e6:.2f}",
        )
    Console(width=120).print(table)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    report(settings, *measure(settings))


if __name__ == "__main__":
    main()
