"""Writes an episode as a video or a picture, drawn off screen by MuJoCo."""

import contextlib
import importlib.util
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from brax_viser.export.caption import write_line
from brax_viser.export.clip import Clip, Progress, check, clip_of
from brax_viser.export.drawing import Job, pictures
from brax_viser.export.files import replacing
from brax_viser.model.framing import OTHERWISE
from brax_viser.records.episode import Episode, RunInfo

VIDEOS = (".mp4", ".gif", ".webp")
"""Kinds of video, by the endings of their names."""

PICTURES = (".png", ".jpg", ".jpeg")
"""Kinds of pictures."""

MOST_COLOURS = 256
"""Most colours of a GIF."""


Pictures: TypeAlias = Generator[Image.Image, None, None]


def write_video(
    path: str | os.PathLike[str],
    info: RunInfo,
    episode: Episode,
    fps: float = 30,
    size: tuple[int, int] = (1280, 720),
    camera: str = OTHERWISE,
    *,
    seconds: tuple[float, float] | None = None,
    caption: bool = True,
    progress: Progress | None = None,
) -> None:
    """Writes a video of an episode, at the robot's own speed.

    MuJoCo draws it in a separate process, whatever this process does.

    Args:
        path: the file, ".mp4", ".gif" or ".webp"; one that is there is replaced once the new one is
            complete.
        info: the training.
        episode: of that training.
        fps: at most so many pictures per second. As each shows a step, there are fewer where no
            whole number of steps fits.
        size: pixels, width and height; even numbers for ".mp4".
        camera: "orbit", "front", "side" or "top", which follow a robot that travels, or the name of
            a camera of the model.
        seconds: first and last time to show, s since the reset; None: the whole episode.
        caption: whether environment, training step, return and time are written below.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError: the file's ending, the size, the camera or the times cannot be used, or the
            episode is not of the training's model.
        RuntimeError: MuJoCo cannot draw off screen here, or what encodes ".mp4" is missing; the
            message says what to install.
        OSError: the file cannot be written.
    """
    kind = _kind(path, VIDEOS)
    _check_size(size, even=kind == ".mp4")
    check(info, [episode])
    clip = clip_of(episode, fps, seconds)
    if kind == ".mp4":
        _check_encoder()
    drawn = _captioned(Job(info, clip, size, camera), caption=caption, progress=progress)
    with contextlib.closing(drawn), replacing(path) as file:
        if kind == ".mp4":
            _write_mp4(file, drawn, clip, size)
        else:
            _write_animation(file, drawn, clip)


def write_png(
    path: str | os.PathLike[str],
    info: RunInfo,
    episode: Episode,
    t: float,
    size: tuple[int, int] = (1280, 720),
    camera: str = OTHERWISE,
    *,
    caption: bool = True,
) -> None:
    """Writes one picture of an episode.

    Args:
        path: the file, ".png" or ".jpg".
        t: s since the reset; the nearest step is drawn.

    The others are those of `write_video`, as are the errors.
    """
    _kind(path, PICTURES)
    _check_size(size)
    check(info, [episode])
    row = int(np.clip(round(t / episode.dt), 0, len(episode.qpos) - 1))
    clip = Clip(episode, np.array([row]), fps=1 / episode.dt)
    [picture] = _captioned(Job(info, clip, size, camera), caption=caption, progress=None)
    with replacing(path) as file:
        picture.save(file)


def _captioned(job: Job, *, caption: bool, progress: Progress | None) -> Pictures:
    """Yields the pictures with a line below that says what is seen, and when."""
    clip = job.clip
    for index, (array, t) in enumerate(zip(pictures(job), clip.times, strict=True), start=1):
        picture = Image.fromarray(array)
        if caption:
            write_line(picture, f"{job.info.env} · {clip.title}", f"{t:.2f} s")
        yield picture
        if progress is not None:
            progress(index / len(clip.rows))


def _write_mp4(file: Path, drawn: Iterator[Image.Image], clip: Clip, size: tuple[int, int]) -> None:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(file),
        size,
        fps=clip.fps,  # type: ignore[arg-type]
        codec="libx264",
        pix_fmt_out="yuv420p",  # the format that browsers and players know
        quality=8,
        macro_block_size=2,
        output_params=["-movflags", "+faststart"],  # a browser can begin before it has all
        ffmpeg_log_level="error",
    )
    writer.send(None)
    with contextlib.closing(writer):
        for picture in drawn:
            writer.send(np.asarray(picture))


def _write_animation(file: Path, drawn: Iterator[Image.Image], clip: Clip) -> None:
    first = next(drawn)
    options: dict[str, Any] = {}
    if file.suffix.lower() == ".webp":
        ends = 1000 * (np.arange(len(clip.rows)) + 1) / clip.fps
        options["quality"] = 75
    else:
        # A GIF's pictures last whole hundredths of a second: some of them longer than others.
        ends = 10 * np.round(100 * (np.arange(len(clip.rows)) + 1) / clip.fps)
        first, drawn = _of_few_colours(first), map(_of_few_colours, drawn)
    options["duration"] = [int(x) for x in np.diff(np.round(ends), prepend=0)]
    first.save(file, None, save_all=True, append_images=drawn, loop=0, **options)


def _of_few_colours(picture: Image.Image) -> Image.Image:
    return picture.quantize(MOST_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _kind(path: str | os.PathLike[str], known: tuple[str, ...]) -> str:
    kind = Path(path).suffix.lower()
    if kind not in known:
        raise ValueError(f"path={os.fspath(path)!r}: its name must end in {', '.join(known)}")
    return kind


def _check_size(size: tuple[int, int], *, even: bool = False) -> None:
    if min(size) < 16 or max(size) > 8192:
        raise ValueError(f"size={size}: both sides must be from 16 to 8192 pixels")
    if even and any(side % 2 for side in size):
        raise ValueError(f"size={size}: both sides of an .mp4 must be even")


def _check_encoder() -> None:
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise RuntimeError(
            "An .mp4 needs imageio-ffmpeg: `pip install 'brax_viser[video]'`; .gif and .webp do not"
        )
