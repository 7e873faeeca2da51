"""Writes some of the episodes that are kept, chosen by name, into any kind of file."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brax_viser.export.clip import Progress
from brax_viser.export.html import write_html
from brax_viser.export.rrd import write_rrd
from brax_viser.export.table import write_csv, write_curves_csv
from brax_viser.export.video import PICTURES, VIDEOS, write_png, write_video
from brax_viser.records.episode import Episodes, RunInfo, Summary

CHOICES = ("best", "worst", "newest", "first", "all")
"""Names for episodes, besides their keys."""

CURVES = "curves"
"""In place of episodes: the training's curves."""


@dataclass(frozen=True)
class Clips:
    """What is shown of each episode, and how."""

    seconds: tuple[float, float] | None  # first and last, since the reset; None: all
    fps: float  # of a video, at most
    size: tuple[int, int]  # of a video or a picture, in pixels: width and height
    camera: str  # of a video or a picture; see `write_video`


def write_chosen(
    path: str | os.PathLike[str],
    info: RunInfo,
    kept: Episodes,
    curves: Mapping[str, np.ndarray],
    names: Sequence[str],
    clips: Clips,
    progress: Progress,
) -> None:
    """Writes episodes into a file whose kind is told by the ending of its name.

    Args:
        path: the file; one that is there is replaced once the new one is complete.
        info: the training.
        kept: its episodes.
        curves: of the training, see `write_html`.
        names: keys of episodes, or some of `CHOICES`; or `CURVES` alone, into a .csv.
        clips: what is shown of each.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError, RuntimeError, OSError: no such episode is kept (any more), or there are no
            curves; others as documented by the functions that write each kind of file.
    """
    kind, (seconds, fps) = Path(path).suffix.lower(), (clips.seconds, clips.fps)
    if CURVES in names:
        if kind != ".csv" or len(names) > 1:
            raise ValueError(f"{path}: {CURVES} can be written into a .csv, without episodes")
        if not curves:
            raise ValueError("No number has been reported yet: there are no curves")
        write_curves_csv(path, curves)
        return
    try:
        episodes = [kept.get(one.key) for one in chosen(kept.summaries(), names)]
    except KeyError as error:
        raise ValueError(f"The episode {error} is not kept any more: choose another") from None
    if kind in (*VIDEOS, *PICTURES) and len(episodes) > 1:
        raise ValueError(f"{path} can show one episode, not {len(episodes)}: .html shows several")
    if kind == ".html":
        write_html(path, info, episodes, curves, seconds=seconds, progress=progress)
    elif kind == ".csv":
        write_csv(path, info, episodes, seconds=seconds, progress=progress)
    elif kind == ".rrd":
        write_rrd(path, info, episodes, curves, seconds=seconds, progress=progress)
    elif kind in VIDEOS:
        how = {"seconds": seconds, "progress": progress}
        write_video(path, info, episodes[0], fps, clips.size, clips.camera, **how)
    elif kind in PICTURES:
        write_png(path, info, episodes[0], seconds[0] if seconds else 0.0, clips.size, clips.camera)
    else:
        known = ", ".join((".html", *VIDEOS, *PICTURES, ".csv", ".rrd"))
        raise ValueError(f"{path}: its name must end in {known}")


def chosen(summaries: Sequence[Summary], names: Sequence[str]) -> list[Summary]:
    """Returns the episodes of these names, each once.

    Args:
        summaries: of all kept episodes, ordered by key.
        names: keys, or some of `CHOICES`.

    Raises:
        ValueError: there is no episode, or none of such a name.
    """
    if not summaries:
        raise ValueError("No episode has been recorded yet")
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
                    f"episode {name!r}: must be {', '.join(CHOICES)}, or a key from "
                    f"{summaries[0].key} to {summaries[-1].key}"
                )
        found |= {one.key: one for one in ones}
    return list(found.values())


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
