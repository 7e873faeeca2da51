"""`brax-viser export`: writes episodes of a training into a file that others can look at."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from brax_viser.runs.reader import open_run

if TYPE_CHECKING:
    from brax_viser.export.clip import Progress as Told

LINE_PERCENT = 5
"""Percent of a file after which a line is added where there is no terminal."""


def export(
    run_dir: Annotated[str, tyro.conf.Positional],
    out: Annotated[str, tyro.conf.Positional],
    *,
    episode: tuple[str, ...] = ("best",),
    seconds: tuple[float, float] | None = None,
    fps: float = 30.0,
    size: tuple[int, int] = (1280, 720),
    camera: str = "orbit",
) -> int:
    """Write episodes of a training, finished or running, into a file.

    The ending of the file's name chooses its kind: .html plays in a browser without a server, .mp4,
    .gif and .webp are videos, .png and .jpg pictures, .csv has the numbers, .rrd opens in Rerun.
    Neither JAX nor a GPU is needed.

    Args:
        run_dir: folder in which the training keeps its episodes.
        out: the file to write.
        episode: best, worst, newest, first, all, or keys of episodes; several for .html, .csv
            and .rrd; or curves: the training's, into a .csv.
        seconds: first and last second to show; of a picture, the first.
        fps: pictures per second of a video, at most.
        size: width and height of a video or a picture, in pixels.
        camera: orbit, front, side, top, or a camera of the model; for videos and pictures.
    """
    console = Console()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Raises KeyboardInterrupt: what was begun is removed, and the process that draws ends.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = open_run(run_dir)
        from brax_viser.export.chosen import Clips, write_chosen  # it takes a second

        clips = Clips(seconds, fps, size, camera)
        with _bar(console, Path(out).name) as told:
            write_chosen(out, run.info, run, run.curves(), episode, clips, told)
    except (OSError, RuntimeError, ValueError) as error:
        console.print(f"brax-viser: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    console.print(f"Written to {out}", soft_wrap=True, markup=False)
    return 0


@contextmanager
def _bar(console: Console, name: str) -> Iterator["Told"]:
    """Shows a progress bar in a terminal. Elsewhere, as in a log, lines are added, which
    `page.export_process` reads."""
    if not console.file.isatty():
        yield _lines(console, name)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def _lines(console: Console, name: str) -> "Told":
    said = 0

    def told(share: float) -> None:
        nonlocal said
        percent = int(100 * share)
        if percent >= said + LINE_PERCENT:
            said = percent
            console.print(f"{name}: {percent} %", markup=False, highlight=False, soft_wrap=True)

    return told
