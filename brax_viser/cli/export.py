"""`brax-viser export`: writes episodes of a training into a file that others can look at."""

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from brax_viser.records.episode import Episode, Summary
from brax_viser.runs.reader import SavedRun, open_run

if TYPE_CHECKING:
    from brax_viser.export.clip import Progress as Told

CHOICES = ("best", "worst", "newest", "first", "all")
"""Names for episodes, besides their keys."""


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

    The file's name chooses what it is: .html plays in a browser without a server, .mp4, .gif and
    .webp are videos, .png and .jpg pictures, .csv has the numbers, .rrd opens in Rerun. Neither JAX
    nor a GPU is needed.

    Args:
        run_dir: folder in which the training keeps its episodes.
        out: the file to write.
        episode: best, worst, newest, first, all, or keys of episodes; several for .html, .csv
            and .rrd.
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
        episodes = [run.get(one.key) for one in chosen(run.summaries(), episode)]
        with _bar(console, Path(out).name) as told:
            _write(run, episodes, out, seconds, fps, size, camera, told)
    except (OSError, RuntimeError, ValueError) as error:
        console.print(f"brax-viser: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    console.print(f"Written to {out}", soft_wrap=True, markup=False)
    return 0


def chosen(summaries: Sequence[Summary], names: Sequence[str]) -> list[Summary]:
    """Returns the episodes of these names, each once.

    Args:
        summaries: of the episodes there are, ordered by key.
        names: keys, or some of `CHOICES`.

    Raises:
        ValueError: there is no episode, or none of such a name.
    """
    if not summaries:
        raise ValueError("There is no episode in this directory yet")
    by_key = {one.key: one for one in summaries}
    found: dict[str, Summary] = {}
    for name in names:
        match name:
            case "best":
                ones = [max(summaries, key=lambda one: _finite(one.episode_return, -math.inf))]
            case "worst":
                ones = [min(summaries, key=lambda one: _finite(one.episode_return, math.inf))]
            case "newest" | "first":
                ones = [summaries[-1 if name == "newest" else 0]]
            case "all":
                ones = list(summaries)
            case _ if name in by_key:
                ones = [by_key[name]]
            case _:
                raise ValueError(
                    f"--episode {name}: must be {', '.join(CHOICES)}, or a key from "
                    f"{summaries[0].key} to {summaries[-1].key}"
                )
        found |= {one.key: one for one in ones}
    return list(found.values())


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _write(
    run: SavedRun,
    episodes: list[Episode],
    out: str,
    seconds: tuple[float, float] | None,
    fps: float,
    size: tuple[int, int],
    camera: str,
    told: "Told",
) -> None:
    # Here, as they take a second, in which a wrong name could have been told.
    from brax_viser.export.html import write_html
    from brax_viser.export.rrd import write_rrd
    from brax_viser.export.table import write_csv
    from brax_viser.export.video import PICTURES, VIDEOS, write_png, write_video

    kind = Path(out).suffix.lower()
    if kind in (*VIDEOS, *PICTURES) and len(episodes) > 1:
        raise ValueError(f"{out} can show one episode, not {len(episodes)}: .html shows several")
    if kind == ".html":
        write_html(out, run.info, episodes, run.curves(), seconds=seconds, progress=told)
    elif kind == ".csv":
        write_csv(out, run.info, episodes, seconds=seconds, progress=told)
    elif kind == ".rrd":
        write_rrd(out, run.info, episodes, run.curves(), seconds=seconds, progress=told)
    elif kind in VIDEOS:
        options = {"seconds": seconds, "progress": told}
        write_video(out, run.info, episodes[0], fps, size, camera, **options)
    elif kind in PICTURES:
        write_png(out, run.info, episodes[0], seconds[0] if seconds else 0.0, size, camera)
    else:
        known = ", ".join((".html", *VIDEOS, *PICTURES, ".csv", ".rrd"))
        raise ValueError(f"{out}: its name must end in {known}")


@contextmanager
def _bar(console: Console, name: str) -> Iterator["Told"]:
    """Shows a progress bar, in a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)
