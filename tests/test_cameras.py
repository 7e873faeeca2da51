"""Cameras of a model, compared with MuJoCo's own."""

import mujoco
import numpy as np
import pytest

from brax_viser.model.cameras import cameras_of, sight_of

MODEL = """
<mujoco>
  <worldbody>
    <camera name="room" pos="3 -2 2" xyaxes="1 1 0 -.3 .3 1" fovy="50"/>
    <camera name="watcher" mode="targetbody" target="hand" pos="-2 1 1.5"/>
    <body name="arm" pos=".1 .2 .9" euler="0 20 40">
      <freejoint/>
      <geom size=".1"/>
      <camera name="chase" mode="track" pos="0 -3 1" xyaxes="1 0 0 0 .3 1"/>
      <body name="hand" pos=".4 0 0">
        <joint axis="0 1 0"/>
        <geom size=".05"/>
        <camera name="eye" pos=".1 0 .1" euler="20 40 10"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize("index", range(4))
def test_a_camera_has_the_pose_and_field_of_view_of_mujocos(index):
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    data.qpos[:] = [0.5, -0.3, 1.2, 0.8, 0.2, 0.5, 0.1, 0.7]
    mujoco.mj_normalizeQuat(model, data.qpos)
    mujoco.mj_forward(model, data)
    camera = cameras_of(model)[index]
    sight = sight_of(camera, data.xpos[1:], data.xquat[1:])
    axes = data.cam_xmat[index].reshape(3, 3)
    np.testing.assert_allclose(sight.position, data.cam_xpos[index], atol=1e-6)
    forward = sight.look_at - sight.position
    np.testing.assert_allclose(forward / np.linalg.norm(forward), -axes[:, 2], atol=1e-6)
    # Up in the picture is MuJoCo's y axis; a component along the view direction has no effect.
    up = sight.up - (sight.up @ -axes[:, 2]) * -axes[:, 2]
    np.testing.assert_allclose(up / np.linalg.norm(up), axes[:, 1], atol=1e-6)
    assert sight.fov == pytest.approx(np.radians(model.cam_fovy[index]))


def test_cameras_have_names():
    model = mujoco.MjModel.from_xml_string(MODEL)
    assert [camera.name for camera in cameras_of(model)] == ["room", "watcher", "chase", "eye"]
