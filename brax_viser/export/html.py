"""Writes episodes into one HTML file that plays by itself, without a server or a network."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import viser

from brax_viser.compat import VISER_RECORDINGS
from brax_viser.export.clip import Clip, Progress, check, clip_of
from brax_viser.export.files import replacing
from brax_viser.export.recording import Recording, record
from brax_viser.export.smaller import smaller
from brax_viser.records.episode import Episode, RunInfo

FPS = 30.0
"""Most poses that are kept per second of robot time."""

MOST_POINTS = 150
"""Most points that are kept of each curve of the training: more would not show in its picture."""


def write_html(
    path: str | os.PathLike[str],
    info: RunInfo,
    episodes: Sequence[Episode],
    curves: Mapping[str, np.ndarray] | None = None,
    *,
    seconds: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a page that plays episodes side by side, with their rewards as curves.

    The page is viser's own player, with the robots as the live page draws them: it can be turned,
    played, paused, slowed down, and set to any time by the bar or by a click on a curve. It fetches
    nothing, so it plays from the file system.

    Args:
        path: the file, ".html"; one that is there is replaced once the new one is complete.
        info: the training.
        episodes: at least one; each gets a cell, in this order.
        curves: of the training, by name: float64 [3, P], env steps trained, s of training, values.
        seconds: first and last time to show, s since each reset; None: whole episodes.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError: there is no episode, it is not of the training's model, or it has nothing
            between these times.
        OSError: the file cannot be written.
    """
    check(info, episodes)
    told = progress or (lambda share: None)
    clips = [clip_of(episode, FPS, seconds) for episode in episodes]
    recording = record(info, clips, lambda share: told(0.9 * share))
    page = with_curves(_page_of(recording), about(info, clips, curves or {}))
    with replacing(path) as file:
        file.write_text(page, encoding="utf-8")
    told(1.0)


def _page_of(recording: Recording) -> str:
    """Returns viser's page, with the recording made smaller where its format is known."""
    messages = recording.messages
    if viser.__version__.startswith(VISER_RECORDINGS):
        data = smaller(messages.serialize(), recording.grain)
        messages.serialize = lambda: data
    return messages.as_html()


def about(info: RunInfo, clips: Sequence[Clip], curves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what the curves beside the scene show, as the script `player.js` reads it."""
    return {
        "env": info.env,
        "trainer": info.trainer,
        "start": float(clips[0].times[0]),
        "episodes": [
            {
                "title": clip.title,
                "num_steps": clip.episode.summary.num_steps,
                "times": _numbers(clip.episode.dt * steps),
                "terms": {
                    name: _numbers(values[steps - 1])
                    for name, values in terms_of(clip.episode).items()
                },
            }
            for clip, steps in ((clip, _steps(clip)) for clip in clips)
        ],
        "curves": {name: _thinned(points) for name, points in sorted(curves.items())},
    }


def terms_of(episode: Episode) -> dict[str, np.ndarray]:
    """Returns the numbers of each step that are known, float [T]: the reward first, then its terms,
    then all other metrics."""
    found = {
        name.removeprefix("metrics/"): values
        for name, values in episode.steps.items()
        if name == "reward" or name.startswith("metrics/")
    }
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("reward"), item[0])))


def with_curves(page: str, about: Mapping[str, Any]) -> str:
    """Returns viser's page with the curves beside the scene.

    Args:
        page: HTML.
        about: see `about`.
    """
    style, script = (Path(__file__).with_name(f"player.{kind}") for kind in ("css", "js"))
    # "<" would end the script in a text such as "</script>".
    data = json.dumps(about, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    added = (
        f"<style>{style.read_text(encoding='utf-8')}</style>"
        f"<script>const BRAX_VISER = {data};\n{script.read_text(encoding='utf-8')}</script>"
    )
    before, end, after = page.rpartition("</body>")
    return before + added + end + after


def _steps(clip: Clip) -> np.ndarray:
    """int [S]: all steps between the first and the last drawn, counted from 1."""
    return np.arange(max(clip.rows[0], 1), clip.rows[-1] + 1)


def _numbers(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON, of five digits; None if one is not finite."""
    return [float(f"{x:.5g}") if np.isfinite(x) else None for x in np.asarray(values, float)]


def _thinned(points: np.ndarray) -> dict[str, Any]:
    """The steps and values of a curve, evenly thinned between the first and the newest point."""
    count = points.shape[1]
    kept = np.round(np.linspace(0, count - 1, min(count, MOST_POINTS))).astype(int)
    return {"steps": _numbers(points[0, kept]), "values": _numbers(points[2, kept])}
