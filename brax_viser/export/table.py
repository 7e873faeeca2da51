"""Writes the numbers of episodes and curves as CSV."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import mujoco
import numpy as np

from brax_viser.export.clip import Progress, check
from brax_viser.export.files import replacing
from brax_viser.records.episode import Episode, RunInfo

_COORDINATES = {
    mujoco.mjtJoint.mjJNT_FREE: (
        ("x", "y", "z", "qw", "qx", "qy", "qz"),
        ("vx", "vy", "vz", "wx", "wy", "wz"),
    ),
    mujoco.mjtJoint.mjJNT_BALL: (("qw", "qx", "qy", "qz"), ("wx", "wy", "wz")),
}
"""Names of the coordinates in qpos and in qvel of joints that have several."""


def write_csv(
    path: str | os.PathLike[str],
    info: RunInfo,
    episodes: Sequence[Episode],
    *,
    seconds: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a row for each step of each episode, the reset included.

    The columns are `episode` (its key), `num_steps` (env steps trained when it began), `time` (s of
    robot time since the reset), `reward`, the terms of the reward and all other metrics, `action`,
    `ctrl`, and `qpos` and `qvel` by the names of the joints, in MuJoCo's units. Numbers that an
    episode or its reset does not have stay empty. The others are written in full: as float32 they
    equal those of the device.

    Args:
        path: the file; one that is there is replaced once the new one is complete.
        info: the training.
        episodes: at least one.
        seconds: first and last time to write, s since each reset; None: whole episodes.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError: there is no episode, or it is not of the training's model.
        OSError: the file cannot be written.
    """
    check(info, episodes)
    tables = [columns_of(info, episode) for episode in episodes]
    names = list(dict.fromkeys(name for table in tables for name in table))
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["episode", "num_steps", "time", *names])
        for done, (episode, table) in enumerate(zip(episodes, tables, strict=True), start=1):
            writer.writerows(_rows(episode, table, names, seconds))
            if progress is not None:
                progress(done / len(episodes))


def write_curves_csv(path: str | os.PathLike[str], curves: Mapping[str, np.ndarray]) -> None:
    """Writes the curves of a training: a row for each point, with the columns `curve`, `num_steps`
    (env steps trained), `seconds` (of training) and `value`.

    Args:
        path: the file; one that is there is replaced once the new one is complete.
        curves: by name, float64 [3, P]: steps, seconds, values.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["curve", "num_steps", "seconds", "value"])
        for name, points in curves.items():
            writer.writerows([name, *(float(x) for x in point)] for point in points.T)


def columns_of(info: RunInfo, episode: Episode) -> dict[str, np.ndarray]:
    """Returns the columns of an episode's numbers by name, each float32 [T + 1], NaN where there is
    none: the numbers of a step are in the row of the state after it."""
    found: dict[str, np.ndarray] = {}
    first = ("reward", *sorted(name for name in episode.steps if name.startswith("metrics/")))
    others = ("action", "ctrl")
    for name in (*first, *others):
        if name not in episode.steps:
            continue
        values = np.asarray(episode.steps[name], np.float32)
        values = np.concatenate([np.full_like(values[:1], np.nan), values])
        short = name.removeprefix("metrics/")
        if values.ndim == 1:
            found[short] = values
        else:
            labels = _actuators(info.mj_model) if name == "ctrl" else map(str, range(10**6))
            found |= {f"{short}[{x}]": column for x, column in zip(labels, values.T, strict=False)}
    qpos, qvel = joint_names(info.mj_model)
    found |= {f"qpos[{x}]": column for x, column in zip(qpos, episode.qpos.T, strict=True)}
    found |= {f"qvel[{x}]": column for x, column in zip(qvel, episode.qvel.T, strict=True)}
    return found


def joint_names(model: mujoco.MjModel) -> tuple[list[str], list[str]]:
    """Names of all coordinates in qpos and in qvel: the joint's, and which of its coordinates it is
    if it has several, such as "root.x". A joint without a name has its number."""
    names: tuple[list[str], list[str]] = ([], [])
    for joint in range(model.njnt):
        name = model.joint(joint).name or str(joint)
        kind = mujoco.mjtJoint(model.jnt_type[joint])
        for found, parts in zip(names, _COORDINATES.get(kind, (("",), ("",))), strict=True):
            found.extend(f"{name}.{part}" if part else name for part in parts)
    return names


def _actuators(model: mujoco.MjModel) -> Iterable[str]:
    return [model.actuator(index).name or str(index) for index in range(model.nu)]


def _rows(
    episode: Episode,
    table: Mapping[str, np.ndarray],
    names: Sequence[str],
    seconds: tuple[float, float] | None,
) -> Iterator[list[object]]:
    start, stop = seconds or (0.0, np.inf)
    about = episode.summary
    for row in range(len(episode.qpos)):
        time = row * episode.dt
        if start - 1e-9 <= time <= stop + 1e-9:
            yield [
                about.key,
                about.num_steps,
                f"{time:.6g}",
                *(_text(table[name][row]) if name in table else "" for name in names),
            ]


def _text(value: np.float32) -> str:
    """The shortest text that gives the same float32; empty for a NaN."""
    return "" if np.isnan(value) else np.format_float_positional(value, unique=True, trim="-")
