"""Writes episodes as a recording for Rerun's viewer."""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brax_viser.export.clip import Clip, Progress, check, clip_of
from brax_viser.export.files import replacing
from brax_viser.export.html import terms_of
from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.shapes import Shape
from brax_viser.model.variants import Variants
from brax_viser.records.episode import Episode, RunInfo

APPLICATION = "brax_viser"

ROBOT_TIME, NUM_STEPS = "robot_time", "num_steps"
"""Rerun's timelines: of the episodes, s since each reset; of the training's curves, env steps."""


def write_rrd(
    path: str | os.PathLike[str],
    info: RunInfo,
    episodes: Sequence[Episode],
    curves: Mapping[str, np.ndarray] | None = None,
    *,
    seconds: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a recording that Rerun's viewer opens: each robot's meshes, moved by a transform for
    each body and step, beside each other; the reward and its terms; the training's curves.

    Args:
        path: the file, ".rrd"; one that is there is replaced once the new one is complete.
        info: the training.
        episodes: at least one. They begin together.
        curves: of the training, by name: float64 [3, P], env steps trained, s of training, values.
        seconds: first and last time to show, s since each reset; None: whole episodes.
        progress: called with the share that is done, from 0 to 1.

    Raises:
        ValueError: there is no episode, it is not of the training's model, or it has nothing
            between these times.
        RuntimeError: Rerun is not installed.
        OSError: the file cannot be written.
    """
    check(info, episodes)
    rerun = _rerun()
    clips = [clip_of(episode, 1 / episode.dt, seconds) for episode in episodes]
    grid = grid_of(info.mj_model, episodes[0].qpos[0], (1, 1), None)
    with replacing(path) as file:
        stream = rerun.RecordingStream(APPLICATION)
        stream.save(file)
        for place, clip in enumerate(clips):
            name = clip.episode.summary.key
            variants = Variants(info.mj_model)
            variants.update({0: clip.episode.model})
            first = clip.poses[0][0], clip.poses[1][0]
            model = Model.of(info.mj_model, grid, first, info.dt, variants, backend=info.backend)
            aside = rerun.Transform3D(translation=(0.0, place * float(grid.spacing[1]), 0.0))
            stream.log(["robots", name], aside, static=True)
            _log_robot(rerun, stream, ["robots", name], info, model, clip)
            _log_rewards(rerun, stream, ["episodes", name], clip)
            if progress is not None:
                progress((place + 1) / len(clips))
        for name, points in sorted((curves or {}).items()):
            _log_scalars(rerun, stream, ["training", name], NUM_STEPS, points[0], points[2])
        stream.flush()
        stream.disconnect()


def _rerun() -> Any:
    try:
        return importlib.import_module("rerun")
    except ImportError:
        raise RuntimeError("An .rrd needs Rerun: `pip install 'brax_viser[rerun]'`") from None


def _log_robot(
    rerun: Any, stream: Any, root: list[str], info: RunInfo, model: Model, clip: Clip
) -> None:
    """Logs the meshes of each body once, and where each body is at each step."""
    names = [info.mj_model.body(body).name or f"body {body}" for body in range(info.mj_model.nbody)]
    count = 0
    for shape in model.shapes:
        mesh = _mesh_of(rerun, shape)
        for body, pos, quat in zip(shape.body.tolist(), shape.pos, shape.quat, strict=True):
            entity, count = [*root, names[body], f"shape {count}"], count + 1
            placed = rerun.Transform3D(translation=pos, quaternion=_xyzw(quat))
            stream.log(entity, placed, mesh, static=True)
    positions, rotations = clip.poses
    for link in range(positions.shape[1]):
        moved = rerun.Transform3D.columns(
            translation=positions[:, link], quaternion=_xyzw(rotations[:, link])
        )
        _send(rerun, stream, [*root, names[link + 1]], ROBOT_TIME, clip.times, moved)


def _mesh_of(rerun: Any, shape: Shape) -> Any:
    mesh = shape.mesh
    look: dict[str, Any] = {"albedo_factor": shape.rgba}
    if shape.rgba is None:
        visual: Any = mesh.visual
        colours = visual.to_color() if hasattr(visual, "to_color") else visual
        look = {"vertex_colors": np.asarray(colours.vertex_colors)}
    return rerun.Mesh3D(
        vertex_positions=np.asarray(mesh.vertices, np.float32),
        triangle_indices=np.asarray(mesh.faces, np.uint32),
        vertex_normals=np.asarray(mesh.vertex_normals, np.float32),
        **look,
    )


def _log_rewards(rerun: Any, stream: Any, root: list[str], clip: Clip) -> None:
    steps = clip.rows[clip.rows > 0]
    for name, values in terms_of(clip.episode).items():
        times = steps * clip.episode.dt
        _log_scalars(rerun, stream, [*root, name], ROBOT_TIME, times, values[steps - 1])


def _log_scalars(
    rerun: Any, stream: Any, entity: list[str], timeline: str, at: np.ndarray, values: np.ndarray
) -> None:
    columns = rerun.Scalars.columns(scalars=np.asarray(values, float))
    _send(rerun, stream, entity, timeline, at, columns)


def _send(
    rerun: Any, stream: Any, entity: list[str], timeline: str, at: np.ndarray, columns: Any
) -> None:
    """Logs a value for each time of a timeline."""
    sequence = timeline == NUM_STEPS
    kind = {"sequence": np.round(at).astype(np.int64)} if sequence else {"duration": at}
    index = rerun.TimeColumn(timeline, **kind)
    path = rerun.new_entity_path(entity)
    rerun.send_columns(path, indexes=[index], columns=columns, recording=stream)


def _xyzw(quat: np.ndarray) -> np.ndarray:
    return np.roll(np.asarray(quat, np.float32), -1, axis=-1)
