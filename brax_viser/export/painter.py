"""Draws poses of a robot off screen with MuJoCo, in a separate process.

`python -m brax_viser.export.painter JOB` reads the model and the poses from the folder JOB, and
writes the pictures to stdout, uint8 [height, width, 3] each: one of each pose, or one of all poses
side by side where these have origins. A separate process can choose how MuJoCo draws, which is
fixed when MuJoCo is first imported, and puts no OpenGL context on a thread of the training.
"""

import contextlib
import copy
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from brax_viser.model.physics import Physics
from brax_viser.records.frame import Detail, Frame

JOB, MODEL, POSES = "job.json", "model.mjb", "poses.npz"
"""Names of the files in the folder."""

OWN = "own/"
"""Prefix of the names of fields in which the robots' models differ, among the poses."""

SKY = (226, 235, 243)
"""Background where the model has no sky of its own: that of the page's horizon."""


def main(folder: str) -> int:
    """Draws all poses. Returns the exit code; the last line on stderr says what is wrong."""
    if hasattr(os, "nice"):
        os.nice(10)  # a training may run beside it
    job: Mapping[str, Any] = json.loads(Path(folder, JOB).read_text())
    model = mujoco.MjModel.from_binary_path(str(Path(folder, MODEL)))
    width, height = job["size"]
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    if job["fov"] is not None:
        model.vis.global_.fovy = job["fov"]
    try:
        renderer = mujoco.Renderer(model, height, width)
    # A library, a device or a permission is missing: each way of drawing has its own errors.
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    with np.load(Path(folder, POSES)) as poses, contextlib.closing(renderer):
        if "origins" in poses:
            _gather(renderer, model, dict(poses))
            sys.stdout.buffer.write(_picture(renderer, model).tobytes())
        else:
            for data, camera in _placed(model, dict(poses), job):
                renderer.update_scene(data, camera)
                sys.stdout.buffer.write(_picture(renderer, model).tobytes())
    sys.stdout.buffer.flush()
    return 0


def _picture(renderer: mujoco.Renderer, model: mujoco.MjModel) -> np.ndarray:
    """uint8 [height, width, 3]. Without a sky in the model, MuJoCo leaves the background black."""
    picture = renderer.render()
    if (model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX).any():
        return picture
    renderer.enable_depth_rendering()
    picture[renderer.render() >= 0.99 * model.vis.map.zfar * model.stat.extent] = SKY
    renderer.disable_depth_rendering()
    return picture


def _placed(
    model: mujoco.MjModel, poses: Mapping[str, np.ndarray], job: Mapping[str, Any]
) -> Iterator[tuple[mujoco.MjData, mujoco.MjvCamera | str]]:
    """Yields MuJoCo's data for each pose, and a camera: the model's of some name, or its own."""
    # Placed by their links, as on the page, whatever the physics.
    physics = Physics(model, native=False)
    suns = (model.light_type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL) & (model.light_bodyid == 0)
    for index in range(len(poses["qpos"])):
        physics.place(_frame(poses, index), 0, {})
        mujoco.mj_camlight(model, physics.data)
        # The same everywhere: light from one direction, of which MuJoCo draws shadows only near its
        # source, and the floor, which MuJoCo draws only as large as the model says.
        data, way = physics.data, poses["way"][index]
        data.light_xpos[suns] += way
        if job["floor"] is not None:
            pitch = np.array(job["pitch"])
            data.geom_xpos[job["floor"], :2] += pitch * np.round(way[:2] / pitch)
        mujoco.mj_flex(model, data)
        yield data, job["camera"] or _free(poses, index)


def _gather(
    renderer: mujoco.Renderer, model: mujoco.MjModel, poses: Mapping[str, np.ndarray]
) -> None:
    """Puts robots into the renderer's scene side by side, each with what is fixed to its world;
    planes are those of the first one, where they are."""
    scene, option, camera = renderer.scene, mujoco.MjvOption(), _free(poses, 0)
    bare = copy.copy(model)
    planes = bare.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    bare.geom_matid[planes], bare.geom_rgba[planes, 3] = -1, 0.0
    first, others, alike = Physics(model, native=False), Physics(bare, native=False), {}
    own = {name.removeprefix(OWN): poses[name] for name in poses if name.startswith(OWN)}
    for index, origin in enumerate(poses["origins"]):
        physics = others if index else first
        fields = {name: of[index] for name, of in own.items()} if own else alike
        physics.place(_frame(poses, index), 0, fields)
        data, filled = physics.data, scene.ngeom if index else 0
        mujoco.mj_camlight(model, data)
        if index == 0:
            mujoco.mj_flex(model, data)
            everything = mujoco.mjtCatBit.mjCAT_ALL
            mujoco.mjv_updateScene(physics.model, data, option, None, camera, everything, scene)
        else:
            seen = mujoco.mjtCatBit.mjCAT_STATIC | mujoco.mjtCatBit.mjCAT_DYNAMIC
            pert = mujoco.MjvPerturb()
            mujoco.mjv_addGeoms(physics.model, data, option, pert, seen, scene)
        for geom in scene.geoms[filled : scene.ngeom]:
            if geom.type != mujoco.mjtGeom.mjGEOM_PLANE:
                geom.pos[:] += origin


def _free(poses: Mapping[str, np.ndarray], index: int) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = poses["look_at"][index]
    camera.distance, camera.azimuth, camera.elevation = poses["from"]
    return camera


def _frame(poses: Mapping[str, np.ndarray], index: int) -> Frame:
    def of(name: str) -> np.ndarray | None:
        return poses[name][index] if name in poses else None

    qpos = poses["qpos"][index]
    detail = Detail(
        0, qpos, poses["qvel"][index], None, None, of("mocap_pos"), of("mocap_quat"), None, {}
    )
    one = np.zeros(1, np.float32)
    return Frame(
        role="train",
        env_steps=index,
        env_index=np.zeros(1, np.int32),
        num_envs=1,
        link_pos=poses["link_pos"][index][None],
        link_rot=poses["link_rot"][index][None],
        reward=one,
        episode_return=one,
        episode_length=np.zeros(1, np.int32),
        since_termination=np.zeros(1, np.int32),
        finite=np.ones(1, bool),
        detail=detail,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
