"""Measures what MuJoCo twins cost the training: stock PPO with and without them, in turn.

python -m benchmarks.twin_cost --env humanoid --backend positional --twins 16

A page watches one training, whose epochs alternate between having no twins and having twins.
Between two epochs the twins catch up, so that no epoch does another one's work. Each epoch with
twins is compared with the mean of the epochs before and after it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import tyro
from brax import envs
from brax.training.agents.ppo import train as ppo
from rich.console import Console
from rich.table import Table

from benchmarks.overhead import COMPILING_EPOCHS, Page, in_words
from benchmarks.overhead import Settings as Trainer
from brax_viser import Viewer, VisualizedEnv


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    env: str = "humanoid"
    backend: str = "positional"
    num_envs: int = 64
    grid: tuple[int, int] = (4, 4)
    """Columns and rows of drawn environments."""
    twins: int = 16
    pairs: int = 15
    """Epochs with twins per mode, each between two without; at least 5."""
    epoch_steps: int = 51_200
    """Environment steps per epoch; choose it so that an epoch takes a few seconds."""
    modes: tuple[str, ...] = ("realtime", "every_step")


@dataclass
class Epoch:
    """One epoch of the trainer."""

    seconds: float
    share: float  # of the time in which twins were stepped
    step_seconds: float  # s per step of all twins
    skipped: float  # share of the steps that had no twins


def measure(settings: Settings) -> dict[str, list[Epoch]]:
    """Returns, by mode, epochs alternately without and with twins; first and last are without."""
    if settings.pairs < 5:
        raise SystemExit(f"--pairs {settings.pairs}: fewer than 5 say nothing on a noisy machine")
    per_mode = 2 * settings.pairs + 1
    plan = [(mode, turn % 2) for mode in settings.modes for turn in range(per_mode)]
    trainer = Trainer(
        env=settings.env,
        backend=settings.backend,
        num_envs=settings.num_envs,
        epoch_steps=settings.epoch_steps,
    )
    epochs = COMPILING_EPOCHS + len(plan)
    kwargs = {**trainer.ppo(), "num_evals": epochs + 1}
    kwargs["num_timesteps"] = kwargs["num_timesteps"] // trainer_epochs(trainer) * epochs
    found: dict[str, list[Epoch]] = {mode: [] for mode in settings.modes}
    with Viewer(port=0) as viewer:
        page = Page(viewer)
        page.open()
        bare = envs.get_environment(settings.env, backend=settings.backend)
        env = VisualizedEnv(bare, grid=settings.grid, viewer=viewer)
        assert viewer._page is not None
        twin_worker, state = viewer._page.twin_worker, {"epoch": 0, "begun": time.monotonic()}

        def progress_fn(_: int, __: Mapping[str, Any]) -> None:
            index = int(state["epoch"]) - COMPILING_EPOCHS
            seconds, cost = time.monotonic() - state["begun"], twin_worker.cost()
            while twin_worker.busy:
                time.sleep(0.001)
            if 0 <= index < len(plan):
                epoch = Epoch(seconds, cost.share, cost.step_seconds, cost.skipped)
                found[plan[index][0]].append(epoch)
            if 0 <= index + 1 < len(plan):
                mode, on = plan[index + 1]
                viewer.mode, viewer.twins = mode, settings.twins * on
                time.sleep(0.3)  # so that frames of the last epoch do not count for this one
            state["epoch"] += 1
            state["begun"] = time.monotonic()

        ppo.train(environment=env, progress_fn=progress_fn, **kwargs)
        page.close()
    return found


def trainer_epochs(trainer: Trainer) -> int:
    """Returns the number of epochs that `Trainer.ppo` allows for."""
    return COMPILING_EPOCHS + trainer.pairs * len(trainer.modes) + 1


def report(settings: Settings, found: dict[str, list[Epoch]]) -> None:
    """Prints the table."""
    table = Table(
        title=f"{settings.twins} twins of {settings.env}/{settings.backend}, "
        f"{settings.num_envs} envs, {settings.pairs} pairs, one page"
    )
    for column in (
        "mode",
        "ratio to the same without twins: median, its 95 % interval (min to max)",
        "s per epoch: without, with",
        "ms per step of all twins",
        "% of the steps without",
    ):
        table.add_column(column)
    for mode, epochs in found.items():
        own = epochs[1::2]
        beside = [mean(e.seconds for e in epochs[i : i + 3 : 2]) for i in range(0, len(own) * 2, 2)]
        ratios = [b / e.seconds for e, b in zip(own, beside, strict=True)]
        table.add_row(
            mode,
            in_words(ratios),
            f"{median(beside):.2f}, {median(e.seconds for e in own):.2f}",
            f"{1000 * median(e.step_seconds for e in own):.1f}",
            f"{100 * mean(e.skipped for e in own):.0f}",
        )
    Console(width=120).print(table)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    report(settings, measure(settings))


if __name__ == "__main__":
    main()
