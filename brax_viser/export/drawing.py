"""Draws clips off screen: has another process do it, and follows the robot with the camera."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import mujoco
import numpy as np

from brax_viser.export.clip import Clip, finite_rows, last_good
from brax_viser.export.painter import JOB, MODEL, POSES
from brax_viser.model.framing import VIEWS, framing_camera
from brax_viser.model.grid import grid_of
from brax_viser.model.physics import varied
from brax_viser.model.scope import bounds_of
from brax_viser.model.shapes import floor_of, roaming_body, visible_geoms
from brax_viser.records.episode import RunInfo

SMOOTH_SECONDS = 1.0
"""s of robot time over which the camera's path is averaged: a gait must not shake it."""

POSES_FRAMED = 12
"""Number of poses, spread over the clip, that the camera frames."""

MARGIN = 0.12
"""Room around the robot, as a share of its size."""

REMEDY = (
    "MuJoCo needs EGL or OSMesa to draw off screen: on Debian and Ubuntu `apt install libegl1 "
    "libgl1-mesa-dri` or `apt install libosmesa6` (MUJOCO_GL=osmesa)"
)


@dataclass(frozen=True)
class Job:
    """What to draw, and how."""

    info: RunInfo
    clip: Clip
    size: tuple[int, int]  # pixels, width and height
    camera: str  # one of framing.VIEWS, or a camera of the model


def pictures(job: Job) -> Iterator[np.ndarray]:
    """Yields the picture of each step, uint8 [height, width, 3].

    Raises:
        ValueError: the camera is neither a view nor one of the model's.
        RuntimeError: MuJoCo cannot draw off screen here; the message says what to install.
    """
    width, height = job.size
    with tempfile.TemporaryDirectory(prefix="brax-viser-") as folder:
        _write(job, Path(folder))
        with painter(folder, 3 * width * height) as (first, stream):
            picture = first
            for index in range(len(job.clip.rows)):
                if index:
                    picture = stream.read(len(first))
                if len(picture) != len(first):
                    raise RuntimeError("The process that draws has ended before it was done")
                yield np.frombuffer(picture, np.uint8).reshape(height, width, 3)


@contextlib.contextmanager
def painter(folder: str, num_bytes: int) -> Iterator[tuple[bytes, IO[bytes]]]:
    """Starts the process that draws, in the first way that works. Yields its first picture, and
    where it writes the others."""
    failures = []
    for way in _ways():
        # A file, as nothing reads stderr while pictures are read.
        with tempfile.TemporaryFile() as errors, _started(folder, way, errors) as process:
            assert process.stdout is not None
            first = process.stdout.read(num_bytes)
            if len(first) == num_bytes:
                yield first, process.stdout
                return
            code = process.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
            way = way or os.environ.get("MUJOCO_GL", "its usual way")
            failures.append(f"{way}: {said[-1][:200]} (exit code {code})")
    raise RuntimeError(f"{REMEDY}. Tried " + "; ".join(failures))


@contextlib.contextmanager
def _started(
    folder: str, way: str | None, errors: IO[bytes]
) -> Iterator["subprocess.Popen[bytes]"]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if way is not None:
        env["MUJOCO_GL"] = way
    command = [sys.executable, "-m", "brax_viser.export.painter", folder]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ways() -> list[str | None]:
    """Values of MUJOCO_GL to try: the user's, or what may work on this system without a screen."""
    if "MUJOCO_GL" in os.environ:
        return [None]
    return ["egl", "osmesa"] if sys.platform == "linux" else [None]


def _write(job: Job, folder: Path) -> None:
    """Writes all that the other process needs into a folder."""
    model, clip = varied(job.info.mj_model, job.clip.episode.model), job.clip
    mujoco.mj_saveModel(model, str(folder / MODEL))
    qpos, qvel = _finite_states(clip)
    pos, rot = clip.poses
    way = _way(clip, model)
    poses = {"qpos": qpos, "qvel": qvel, "link_pos": pos, "link_rot": rot, "way": way}
    for name in ("mocap_pos", "mocap_quat"):
        if name in clip.episode.steps:
            poses[name] = clip.episode.steps[name][np.maximum(clip.rows - 1, 0)]
    named = None
    if job.camera in VIEWS:
        poses |= _following(job, model, way)
    elif mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, job.camera) >= 0:
        named = job.camera
    else:
        own = [model.camera(index).name for index in range(model.ncam)]
        raise ValueError(f"camera={job.camera!r}: must be one of {', '.join([*VIEWS, *own])}")
    np.savez(folder / POSES, **poses)  # type: ignore[arg-type]
    floor = floor_of(model)
    about = {
        "size": job.size,
        "camera": named,
        "fov": poses.get("fov", np.array(None)).item(),
        "floor": None if floor is None else int(floor),
        "pitch": None if floor is None else _pitch(model, floor).tolist(),
    }
    (folder / JOB).write_text(json.dumps(about))


def _following(job: Job, model: mujoco.MjModel, way: np.ndarray) -> dict[str, np.ndarray]:
    """Where the camera looks at each step, float [F, 3] in m, from what distance in m, azimuth and
    elevation in degrees, and its angle of view in degrees."""
    width, height = job.size
    camera = framing_camera(_seen(job.clip, model, way), job.camera, aspect=width / height)
    sight = camera.look_at - camera.position
    distance = float(np.linalg.norm(sight))
    azimuth = np.degrees(np.arctan2(sight[1], sight[0]))
    elevation = np.degrees(np.arcsin(sight[2] / distance))
    return {
        "look_at": camera.look_at + way,
        "from": np.array([distance, azimuth, elevation]),
        "fov": np.array(np.degrees(camera.fov)),
    }


def _pitch(model: mujoco.MjModel, plane: int) -> np.ndarray:
    """Distances along x and y after which a plane looks the same, float [2] in m."""
    material = model.geom_matid[plane]
    if material < 0 or (model.mat_texid[material] < 0).all():
        return np.ones(2)
    times = np.maximum(model.mat_texrepeat[material], 1e-3)
    size = 2 * model.geom_size[plane, :2]
    endless = model.mat_texuniform[material] or (size <= 0).any()
    return (1 if endless else size) / times


def _way(clip: Clip, model: mujoco.MjModel) -> np.ndarray:
    """How far a robot that travels has come since the reset, smoothed, float [F, 3] in m."""
    body, (pos, _) = roaming_body(model), clip.poses
    if body is None:
        return np.zeros((len(pos), 3))
    return _smoothed(pos[:, body - 1] - clip.episode.link_pos[0, body - 1], clip.fps)


def _seen(clip: Clip, model: mujoco.MjModel, way: np.ndarray) -> np.ndarray:
    """Box around the robot as it moves, float [2, 3] in m, if it is carried back along its way.

    Args:
        clip: its steps.
        model: its model.
        way: float [F, 3], m, since the reset.
    """
    reach = grid_of(model, clip.episode.qpos[0], (1, 1), None).reach
    moving = [g for g in visible_geoms(model) if model.body_weldid[model.geom_bodyid[g]] > 0]
    if not moving:
        return reach
    data, (qpos, _) = mujoco.MjData(model), _finite_states(clip)
    boxes = []
    for index in np.linspace(0, len(qpos) - 1, POSES_FRAMED).astype(int):
        data.qpos[:] = qpos[index]
        boxes.append(bounds_of(model, data, np.array(moving)) - way[index])
    low, high = np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]
    margin = MARGIN * (high - low).max()
    return np.clip([low - margin, high + margin], *reach)


def _smoothed(way: np.ndarray, fps: float) -> np.ndarray:
    """Averages places, float [F, 3], over `SMOOTH_SECONDS` around each; the ends are continued."""
    half = round(SMOOTH_SECONDS * fps / 2)
    window = 2 * half + 1
    padded = np.pad(way, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.convolve(axis, np.ones(window) / window, "valid") for axis in padded.T], 1)


def _finite_states(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """qpos, float32 [F, nq], and qvel, float32 [F, nv]; a state that is not finite is replaced by
    the one before it."""
    episode = clip.episode
    rows = last_good(finite_rows(episode.qpos) & finite_rows(episode.qvel))[clip.rows]
    return np.nan_to_num(episode.qpos[rows]), np.nan_to_num(episode.qvel[rows])
