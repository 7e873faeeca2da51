"""Measures what watching costs: stock PPO with and without `VisualizedEnv`, in turn.

python -m benchmarks.overhead --env ant --backend positional --num-envs 64

Two stock trainers run on two threads of one process and pass a baton after each epoch, so that only
one computes at a time: stock, wrapped, stock, wrapped, ... The wrapped one's viewer goes through
the modes, `pairs` epochs in each and without recompiling, while a page (a websocket client in
another process) receives; in mode "no_page" it is closed. Each wrapped epoch is compared with the
mean of the stock epochs before and after it. The first epochs, in which XLA compiles, are left out.

Many short pairs tell more than few long ones: a shared machine's speed changes within seconds,
and XLA's executor on CPUs uses more of its threads in some epochs than in others.

One process is not enough to see a difference of 1 %: the same trainings had a ratio of 0.980 in one
process and of 0.996 in the next, each within a few thousandths. More pairs do not help;
`--processes` runs several processes, one by one. `--null` shows how much of a ratio is chance.
"""

import functools
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

import tyro
from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from rich.console import Console
from rich.table import Table

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.host_call import mechanism
from brax_viser.host.budget import RECORDING_SHARE
from brax_viser.runs.recorder import Recorder
from brax_viser.runs.window import Window

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
    pairs: int = 30
    """Wrapped epochs per mode, each between two stock ones; at least 5."""
    epoch_steps: int = 5_000
    """Environment steps per epoch; choose it so that an epoch takes about a second."""
    modes: tuple[str, ...] = ("off", "no_page", "realtime", "latest", "every_step")
    """"off", "no_page", a viewer's modes, "recording" (no page, and one recording of episodes after
    another), and, only as the last, "closed": the viewer is closed."""
    fps: float = 30.0
    max_overhead: float = 0.02
    """Budget of the modes realtime and latest."""
    busy_thread: bool = False
    """Run a thread of pure Python beside both trainings."""
    processes: int = 1
    """Number of fresh processes that measure all of this, one after the other. With several, the
    median of each counts."""
    null: bool = False
    """Wrap neither training, to see how far two equal ones differ, each compiled separately."""
    switch_interval: float | None = None
    """Seconds after which Python lets another thread run, instead of the viewer's own choice;
    Python's default is 0.005."""

    def ppo(self) -> dict[str, Any]:
        """Returns the stock trainer's arguments, the same for both."""
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
    # s of the wrapped trainer's turns so far, and the start of its current turn, or None. One
    # tuple, so that it can be read without the lock.
    _turns: tuple[float, float | None] = (0.0, None)

    def clock(self) -> float:
        """Returns a time in s that stands still during the stock trainer's turns. With another
        clock, the viewer would find the training half as fast and ask it twice as often."""
        before, since = self._turns
        return before + (0.0 if since is None else time.monotonic() - since)

    def wait_for(self, who: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.turn == who or self.over)

    def pass_to(self, who: str) -> None:
        with self.changed:
            self.turn = who
            self._turns = self.clock(), time.monotonic() if who == "wrapped" else None
            self.changed.notify_all()

    def drop(self) -> None:
        """Ends the turns when one trainer is done or has failed: the other must not wait."""
        with self.changed:
            self.over = True
            self.changed.notify_all()


class Page:
    """A websocket client in another process, and the counts of what it has received."""

    def __init__(self, viewer: Viewer):
        self.frames = self.bytes = 0
        self._viewer = viewer
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        """Connects, unless already connected."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.client", self._viewer.url],
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self._wait_until(watched=True)

    def close(self) -> None:
        """Disconnects, if connected."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait()
        self._process = None
        self._wait_until(watched=False)

    def _wait_until(self, *, watched: bool) -> None:
        while self._viewer._shared.control.watched != watched:
            time.sleep(0.01)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        frames, received = self.frames, self.bytes
        for line in process.stdout:
            counts = json.loads(line)
            self.frames, self.bytes = frames + counts["frames"], received + counts["bytes"]


class BusyThread:
    """A thread of pure Python that never waits."""

    def __init__(self) -> None:
        self._stop = False
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        number = 0
        while not self._stop:
            number += 1

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


@dataclass
class Epoch:
    """One epoch of one trainer."""

    steps_per_second: float  # env steps over all envs
    seconds: float
    frames: int = 0  # received by the page
    bytes: int = 0  # received by the page
    spent: float = 0.0  # s, in calls to the host
    calls: int = 0  # to the host


Run = tuple[list[Epoch], dict[str, list[Epoch]]]
"""The results of one process: stock epochs, and wrapped ones by mode."""


def measure_all(settings: Settings) -> list[Run]:
    """Runs `measure` in as many processes as the settings ask for."""
    if settings.processes == 1:
        return [measure(settings)]
    fresh = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return list(pool.map(measure, [settings] * settings.processes))


def measure(settings: Settings) -> Run:
    """Runs both trainers in this process."""
    if settings.pairs < 5:
        raise SystemExit(f"--pairs {settings.pairs}: fewer than 5 say nothing on a noisy machine")
    baton = Baton()
    kwargs = settings.ppo()
    order = [mode for mode in settings.modes for _ in range(settings.pairs)]
    stock: list[Epoch] = []
    wrapped: dict[str, list[Epoch]] = {mode: [] for mode in settings.modes}
    failures: list[BaseException] = []

    with Viewer(port=0, fps=settings.fps, max_overhead=settings.max_overhead) as viewer:
        viewer._shared.wall_clock = viewer._shared.hold.clock = baton.clock
        page = Page(viewer)
        page.open()
        if settings.switch_interval is not None:
            sys.setswitchinterval(settings.switch_interval)
        busy = BusyThread() if settings.busy_thread else None

        def set_mode(mode: str) -> None:
            if mode == "closed":
                page.close()
                viewer.close()
                return
            viewer.streaming = mode != "off"
            record(viewer, always=mode == "recording")
            if mode in ("no_page", "recording"):
                page.close()
                viewer.mode = "realtime"
            else:
                page.open()
            if mode not in ("off", "no_page", "recording"):
                viewer.mode = mode

        def train(who: str, other: str, env: envs.Env) -> None:
            epoch = 0
            walltime = 0.0
            seen = (0, 0)
            spent, calls = 0.0, 0

            def progress_fn(_: int, metrics: Mapping[str, Any]) -> None:
                nonlocal epoch, walltime, seen, spent, calls
                seconds = float(metrics["training/walltime"]) - walltime
                walltime += seconds
                index = epoch - COMPILING_EPOCHS
                result = Epoch(
                    float(metrics["training/sps"]),
                    seconds,
                    page.frames - seen[0],
                    page.bytes - seen[1],
                    viewer._shared.meter.spent - spent,
                    viewer._shared.meter.calls - calls,
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
                spent, calls = viewer._shared.meter.spent, viewer._shared.meter.calls

            baton.wait_for(who)
            try:
                ppo.train(environment=env, progress_fn=progress_fn, **kwargs)
            except BaseException as error:  # on this thread; raised again by the caller
                failures.append(error)
            finally:
                baton.drop()

        def bare() -> envs.Env:
            return envs.get_environment(settings.env, backend=settings.backend)

        second = bare()
        if not settings.null:
            second = VisualizedEnv(second, grid=settings.grid, viewer=viewer)
        threads = [
            threading.Thread(target=train, args=("stock", "wrapped", bare())),
            threading.Thread(target=train, args=("wrapped", "stock", second)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page.close()
        if busy is not None:
            busy.stop()
    if failures:
        raise failures[0]
    return stock, wrapped


class Endless(Recorder):
    """Never pauses."""

    def update(
        self,
        now: float,
        every: float | None,
        evaluations: int,
        spent: float,
        share: float,
        *,
        training: bool,
    ) -> Window | None:
        return super().update(now, 0.0, evaluations, spent, math.inf, training=training)


def record(viewer: Viewer, *, always: bool) -> None:
    """Has recordings follow one another without a pause, or none made: else a mode would cost more
    when one happens to fall into it."""
    assert viewer._page is not None
    recording = viewer._page.recording
    recording._recorder = Endless(0.0) if always else Recorder(after=math.inf)


def amortised(settings: Settings, runs: Sequence[Run]) -> str | None:
    """Says what share of the training recordings take at the pauses that the recorder makes between
    them; None if that was not measured."""
    if not {"no_page", "recording"} <= set(settings.modes):
        return None
    found = []
    for _, wrapped in runs:
        speed = {m: median(e.steps_per_second for e in wrapped[m]) for m in settings.modes}
        told = median(e.spent / e.seconds for e in wrapped["recording"])
        lost = 1 - speed["recording"] / speed["no_page"]
        found.append(100 * RECORDING_SHARE * lost / max(told, 1e-9))
    each = ", ".join(f"{share:.2f}" for share in found)
    return f"Recordings at their pauses take {median(found):.2f} % of the training's time ({each})"


def report(settings: Settings, runs: Sequence[Run]) -> None:
    """Prints the table."""
    drawn = min(settings.grid[0] * settings.grid[1], settings.num_envs)
    several = f" in each of {len(runs)} processes" if len(runs) > 1 else ""
    table = Table(
        title=f"{settings.env}/{settings.backend}, {drawn} of {settings.num_envs} envs drawn, "
        f"{settings.pairs} pairs{several}, one page, called by {mechanism()}"
        + (" (neither of them watched)" if settings.null else "")
    )
    ratio = "median, its 95 % interval (min to max)"
    if len(runs) > 1:
        ratio = "median of the processes' medians (all of them)"
    columns = (
        "mode",
        f"ratio to stock: {ratio}",
        "us per batched step: stock, watched",
        "in calls: % of the time, us each",
        "frames/s at the page",
        "MB/s at the page",
    )
    for column in columns:
        table.add_column(column)
    for place, mode in enumerate(settings.modes):
        ratios, base = [], []
        for stock, wrapped in runs:
            turns = range(place * settings.pairs, (place + 1) * settings.pairs)
            beside = [mean(s.steps_per_second for s in stock[i : i + 2]) for i in turns]
            base += [1e6 * settings.num_envs / speed for speed in beside]
            speeds = [epoch.steps_per_second for epoch in wrapped[mode]]
            ratios.append([own / other for own, other in zip(speeds, beside, strict=True)])
        epochs = [epoch for _, wrapped in runs for epoch in wrapped[mode]]
        own = median(1e6 * settings.num_envs / e.steps_per_second for e in epochs)
        table.add_row(
            mode,
            in_words(ratios[0]) if len(ratios) == 1 else of_several(ratios),
            f"{median(base):.0f}, {own:.0f}",
            f"{median(100 * e.spent / e.seconds for e in epochs):.1f}, "
            f"{median(1e6 * e.spent / max(e.calls, 1) for e in epochs):.0f}",
            f"{median(e.frames / e.seconds for e in epochs):.1f}",
            f"{median(e.bytes / e.seconds for e in epochs) / 1e6:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    if (words := amortised(settings, runs)) is not None:
        console.print(words)


def of_several(ratios: Sequence[Sequence[float]]) -> str:
    """Returns the median of the processes' medians, followed by all of them. With few processes an
    interval would just be their extremes."""
    medians = sorted(median(own) for own in ratios)
    return f"{median(medians):.3f} ({', '.join(f'{x:.3f}' for x in medians)})"


def in_words(ratios: Sequence[float]) -> str:
    """Returns the median of the ratios, its interval by order statistics, and the extremes."""
    # The number of values below the median is binomial: its standard deviation is sqrt(n) / 2.
    ordered, count, middle = sorted(ratios), len(ratios), (len(ratios) - 1) / 2
    low = max(math.floor(middle - 0.98 * math.sqrt(count)), 0)
    high = min(math.ceil(middle + 0.98 * math.sqrt(count)), count - 1)
    interval = f"{ordered[low]:.3f} to {ordered[high]:.3f}"
    return f"{median(ordered):.3f}, {interval} ({ordered[0]:.3f} to {ordered[-1]:.3f})"


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    report(settings, measure_all(settings))


if __name__ == "__main__":
    main()
