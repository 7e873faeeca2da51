"""Compares the overlays of the selected robot, read back from viser's handles, with MuJoCo's."""

import asyncio
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import viser
from brax import envs

from brax_viser.model import marks
from brax_viser.model.grid import grid_of
from brax_viser.model.physics import Physics, body_hit, body_name
from brax_viser.model.robot import Model
from brax_viser.panel import details, words
from brax_viser.panel.details import Inside
from brax_viser.records.frame import Detail, Frame
from brax_viser.records.view import View
from brax_viser.scene.block import Block
from brax_viser.scene.handles import PARKED
from brax_viser.scene.look import Look
from brax_viser.scene.overlays import OVERLAYS, Recent, Trail
from brax_viser.scene.robots import CLEAR, FADED

ARM = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body name="base" pos="0 0 .101">
      <freejoint/>
      <geom name="block" type="box" size=".2 .15 .1" mass="4"/>
      <site name="low" pos=".1 0 .1"/>
      <body name="arm" pos="0 0 .1">
        <joint name="elbow" axis="0 1 0" range="-10 10" limited="true" damping="2" stiffness="50"/>
        <geom type="capsule" fromto="0 0 .06 0 0 .4" size=".03" mass="1"/>
        <site name="high" pos=".03 0 .3"/>
      </body>
    </body>
  </worldbody>
  <tendon>
    <spatial name="rope" rgba="0 1 0 1"><site site="low"/><site site="high"/></spatial>
  </tendon>
  <actuator>
    <motor name="push" joint="elbow" ctrlrange="-4 2" ctrllimited="true"/>
    <motor name="pull" tendon="rope"/>
  </actuator>
</mujoco>
"""
"""A block that stands on the floor, with an arm on it, a rope and two motors."""


@pytest.fixture(scope="module")
def server():
    server = viser.ViserServer(port=0, verbose=False)
    yield server
    server.stop()


def arm() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Returns the arm's model and its data, at rest."""
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    data.ctrl[:] = 1.0, 0.0
    mujoco.mj_step(model, data, 2000)
    mujoco.mj_forward(model, data)
    return model, data


def frame_of(data: mujoco.MjData, step: int = 1, shift=(0.0, 0.0, 0.0), **changes) -> Frame:
    """Returns a frame of two environments; the second has the data's state, and a detail."""
    link_pos = np.repeat(data.xpos[None, 1:], 2, axis=0).astype(np.float32)
    link_pos[1] += np.array(shift, np.float32)
    zeros = np.zeros(2, np.float32)
    detail = Detail(
        5,
        data.qpos.astype(np.float32),
        data.qvel.astype(np.float32),
        data.ctrl.astype(np.float32),
        None,
        None,
        None,
        np.array([0.5], np.float32),
        {"": np.arange(3, dtype=np.float32)},
    )
    frame = Frame(
        "train",
        step,
        np.array([2, 5], np.int32),
        9,
        link_pos,
        np.repeat(data.xquat[None, 1:], 2, axis=0).astype(np.float32),
        zeros,
        zeros,
        np.full(2, step, np.int32),
        np.full(2, 99, np.int32),
        np.ones(2, bool),
        detail,
    )
    return replace(frame, **changes)


class Stage:
    """A block of two cells, drawn on the server's own loop."""

    def __init__(self, server: viser.ViserServer, model: mujoco.MjModel, *, native: bool = True):
        self.server = server
        data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, data)
        links = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
        self.grid = grid_of(model, data.qpos, (2, 1), (3.0, 3.0))
        made = Model.of(model, self.grid, links, 0.05, native=native, backend="spring")

        self.block: Block = self.on_loop(
            lambda: Block(server, "/t", made, self.grid, 2, np.zeros(3), 1.0)
        )
        self.look = Look(selected_env=5)
        self.origin = self.grid.origins(2)[1]

    def on_loop(self, what):
        async def call():
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self.server.get_event_loop()).result()

    def draw(self, frame: Frame, *overlays: str, pose: np.ndarray | None = None, **look) -> None:
        look = replace(self.look, overlays=frozenset(overlays), **look)
        pos = frame.link_pos if pose is None else pose
        view = View(frame, pos, frame.link_rot, np.zeros(2, bool), 0.0, 0.0)
        self.on_loop(lambda: self.block.draw(view, look))

    def ends(self, name: str) -> np.ndarray:
        """Returns the visible lines, float [N, 2, 3] in m, in the environment's own frame."""
        overlays = self.block._inspection._overlays
        handle = overlays._batches[name]._handle if overlays and name in overlays._batches else None
        if handle is None or not handle.visible:
            return np.zeros((0, 2, 3))
        seen = handle.points[..., 2].min(axis=1) > PARKED[2]
        return handle.points[seen] - self.origin

    def remove(self) -> None:
        self.on_loop(self.block.remove)


@pytest.fixture
def stage(server):
    stage = Stage(server, arm()[0])
    yield stage
    stage.remove()


def test_contact_arrows_are_mujocos_forces_and_add_up_to_the_robots_weight(stage):
    model, data = arm()
    stage.draw(frame_of(data), "contact_forces")
    ends = stage.ends("contact_forces")
    assert len(ends) == data.ncon == 4
    newtons = (ends[:, 1] - ends[:, 0]) * model.stat.meanmass / model.vis.map.force
    expected = np.zeros((4, 3))
    for index in range(4):
        wrench = np.zeros(6)
        mujoco.mj_contactForce(model, data, index, wrench)
        expected[index] = data.contact.frame[index].reshape(3, 3).T @ wrench[:3]
    np.testing.assert_allclose(newtons, expected, rtol=2e-2, atol=0.2)
    np.testing.assert_allclose(ends[:, 0], data.contact.pos, atol=1e-4)
    np.testing.assert_allclose(newtons.sum(axis=0), [0, 0, 5 * 9.81], rtol=0.02, atol=0.2)


BALL = '<body pos="0 0 .3"><freejoint/><geom size=".1" mass="2"/></body>'
BOX = '<body><geom type="box" size="1 1 .2"/></body>'


@pytest.mark.parametrize(("bodies", "up"), [(BALL + BOX, -1), (BOX + BALL, 1)])
def test_a_force_acts_on_the_body_with_the_higher_id_whichever_geom_comes_first(bodies, up):
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{bodies}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 1000)
    mujoco.mj_forward(model, data)
    lines = marks.contact_forces(model, data)
    newtons = (lines.ends[:, 1] - lines.ends[:, 0]) * model.stat.meanmass / model.vis.map.force
    # The ball's weight on the box, or the box's reaction.
    np.testing.assert_allclose(newtons.sum(axis=0), [0, 0, up * 2 * 9.81], rtol=0.02, atol=0.2)


def test_contact_forces_on_an_ant_at_rest_add_up_to_its_weight(server):
    model = envs.get_environment("ant", backend="generalized").sys.mj_model
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 1500)
    mujoco.mj_forward(model, data)
    assert np.abs(data.qvel).max() < 0.05
    stage = Stage(server, model)
    stage.draw(frame_of(data), "contact_forces", "contacts", "com")
    ends = stage.ends("contact_forces")
    newtons = (ends[:, 1] - ends[:, 0]) * model.stat.meanmass / model.vis.map.force
    weight = model.body_mass.sum() * -model.opt.gravity[2]
    assert newtons.sum(axis=0)[2] == pytest.approx(weight, rel=0.03)
    assert len(stage.ends("contacts")) == data.ncon >= 4
    com = stage.block._inspection._overlays._meshes["com"].batched_positions - stage.origin
    np.testing.assert_allclose(com, data.subtree_com[1:2], atol=1e-4)
    stage.remove()


def test_overlays_follow_the_links_as_drawn(stage):
    """Covers poses between two steps, and links that give at the joints of Brax's own backends."""
    model, data = arm()
    frame = frame_of(data)
    pose = frame.link_pos + np.array([0.1, 0.1, 0.0], np.float32)
    stage.draw(frame, "tendons", "joint_axes", "body_frames", "geom_frames", pose=pose)
    rope = data.site_xpos + np.array([0.1, 0.1, 0])
    np.testing.assert_allclose(stage.ends("tendons"), rope[None], atol=1e-4)
    axis = stage.ends("joint_axes")
    assert len(axis) == 1  # the free joint has none
    np.testing.assert_allclose(axis[0, 0], data.xanchor[1] + [0.1, 0.1, 0], atol=1e-4)
    np.testing.assert_allclose(
        axis[0, 1] - axis[0, 0], model.stat.meansize * data.xaxis[1], atol=1e-4
    )
    assert len(stage.ends("body_frames")) == 6 and len(stage.ends("geom_frames")) == 6
    frames = stage.ends("body_frames")
    assert np.allclose(frames[::3, 0], pose[1], atol=1e-5)


def test_an_actuators_bar_is_as_long_as_its_control_relative_to_its_range(stage):
    model, data = arm()
    full = 3 * model.vis.scale.actuatorlength * model.stat.meansize
    stage.draw(frame_of(data), "actuators")
    push, pull = stage.ends("actuators")
    # The first has a control of 1 out of 4, the second of 0.
    np.testing.assert_allclose(push[1] - push[0], 0.25 * full * data.xaxis[1], atol=1e-4)
    np.testing.assert_allclose(pull[1], pull[0], atol=1e-5)


def test_overlaps_and_exceeded_limits_are_drawn_and_described(stage):
    model, data = arm()
    data.qpos[2] -= 0.02
    data.qpos[7] = np.radians(13.0)
    mujoco.mj_forward(model, data)
    frame = frame_of(data)
    stage.draw(frame, "violations")
    lines = stage.ends("violations")
    assert len(lines) == data.ncon + 1  # each corner, and the elbow
    limit = lines[-1]
    np.testing.assert_allclose(limit.mean(axis=0), data.xanchor[1], atol=1e-4)
    text = details.strain(Inside(frame.detail, model, data, True, "mjx", None))
    assert "elbow is 3° beyond its limit" in text
    assert "overlap, by 20" in text


def test_the_inertia_box_of_a_box_is_the_box_itself(stage):
    model, data = arm()
    np.testing.assert_allclose(marks.inertia_boxes(model)[1], [0.2, 0.15, 0.1], rtol=1e-6)
    stage.draw(frame_of(data), "inertia")
    handle = stage.block._inspection._overlays._meshes["inertia"]
    np.testing.assert_allclose(handle.batched_positions - stage.origin, data.xipos[1:], atol=1e-4)


def test_without_mujocos_physics_overlays_follow_the_links_and_show_no_forces(server):
    model, data = arm()
    stage = Stage(server, model, native=False)
    # The backend holds the whole robot 5 cm higher than its joint coordinates say.
    frame = frame_of(data, shift=(0, 0, 0.05))
    frame = replace(frame, detail=replace(frame.detail, ctrl=None))
    stage.draw(frame, "contacts", "contact_forces", "actuators", "tendons")
    assert len(stage.ends("contacts")) == 0
    assert not len(stage.ends("contact_forces")) and not len(stage.ends("actuators"))
    np.testing.assert_allclose(
        stage.ends("tendons")[0], data.site_xpos + np.array([0, 0, 0.05]), atol=1e-4
    )
    stage.draw(replace(frame_of(data, step=2, shift=(0, 0, -0.01))), "contacts")
    points = stage.ends("contacts").mean(axis=1)
    assert len(points) == 4 and np.allclose(points[:, 2], -0.005, atol=2e-3)
    reasons = stage.block.model.unavailable
    assert "spring" in reasons["contact_forces"] and "actuators" not in reasons
    stage.remove()


def test_velocities_are_those_of_the_centres_of_mass(stage):
    model, data = arm()
    data.qvel[:3] = 1.0, 0.0, 2.0
    data.qvel[3:6] = 0.0, 3.0, 0.0
    mujoco.mj_forward(model, data)
    stage.draw(frame_of(data), "velocities")
    ends = stage.ends("velocities")
    before, after = data.xipos[1:].copy(), mujoco.MjData(model)
    after.qpos[:] = data.qpos
    mujoco.mj_integratePos(model, after.qpos, data.qvel, 1e-5)
    mujoco.mj_kinematics(model, after)
    speed = (after.xipos[1:] - before) / 1e-5
    np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 0.1, speed, atol=0.02)


def test_nothing_is_created_or_computed_while_all_overlays_are_off(stage, monkeypatch):
    _, data = arm()
    monkeypatch.setattr(Physics, "place", lambda *_: pytest.fail("computed"))
    stage.draw(frame_of(data))
    assert stage.block._inspection._overlays is None and stage.block._inspection._physics is None
    monkeypatch.undo()
    stage.draw(frame_of(data), *OVERLAYS)
    assert len(stage.ends("contacts")) == 4
    stage.draw(frame_of(data, step=2))
    overlays = stage.block._inspection._overlays
    handles = [batch._handle for batch in overlays._batches.values()] + [*overlays._meshes.values()]
    assert handles and not any(handle and handle.visible for handle in handles)


def test_no_overlays_for_another_env_or_a_nonfinite_state(stage):
    model, data = arm()
    frame = frame_of(data)
    stage.draw(frame, "contacts")
    assert len(stage.ends("contacts")) == 4
    stage.draw(frame, "contacts", selected_env=2)
    assert not len(stage.ends("contacts"))
    broken = replace(frame.detail, qvel=np.full(model.nv, np.nan, np.float32))
    stage.draw(replace(frame, detail=broken), "contacts")
    assert not len(stage.ends("contacts"))


def test_a_models_own_values_are_used_and_the_shared_model_is_not_changed():
    model, data = arm()
    physics = Physics(model, native=True)
    own = {"body_mass": np.array([0.0, 8.0, 2.0])}
    assert physics.place(frame_of(data), 1, own)
    assert physics.model.body_mass[1] == 8.0 and physics.model.body_subtreemass[1] == 10.0
    assert model.body_mass[1] == 4.0
    assert physics.place(frame_of(data), 1, {})
    assert physics.model.body_mass[1] == 4.0


def test_a_trail_starts_with_its_episode_and_is_at_most_three_seconds_long():
    _, data = arm()
    trail = Trail(0.05)
    for step in range(1, 101):
        trail.add(frame_of(data, step, shift=(0.01 * step, 0, 0)), 1, 1)
    ends = trail.ends(data.xpos[1] + [1.0, 0, 0])
    assert len(ends) == 61  # 3 s of 0.05 s each, and the line to the current place
    np.testing.assert_allclose(ends[-2, 1, 0] - ends[0, 0, 0], 0.6, atol=1e-4)
    begun = replace(frame_of(data, 101), episode_length=np.ones(2, np.int32))
    trail.add(begun, 1, 1)
    assert len(trail.ends(data.xpos[1])) == 1


def test_a_trail_switched_on_during_a_hold_shows_the_seconds_before(stage):
    _, data = arm()
    for step in range(1, 101):
        stage.draw(frame_of(data, step, shift=(0.01 * step, 0, 0)))
    held = frame_of(data, 100, shift=(1.0, 0, 0))
    stage.draw(held, "trail")
    ends = stage.ends("trail")
    assert len(ends) == 61, "3 s of 0.05 s each, as if it had been on all along"
    np.testing.assert_allclose(ends[-1, 1, 0] - ends[0, 0, 0], 0.6, atol=1e-4)
    # Another selected robot, and a clicked body, each have a past of their own.
    stage.draw(held, "trail", selected_env=2)
    np.testing.assert_allclose(np.ptp(stage.ends("trail")[..., 0]), 0.0, atol=1e-5)
    stage.draw(held, "trail", body=2)
    np.testing.assert_allclose(np.ptp(stage.ends("trail")[..., 0]), 0.6, atol=1e-4)
    begun = replace(frame_of(data, 101), episode_length=np.ones(2, np.int32))
    stage.draw(begun)
    stage.draw(begun, "trail")
    assert len(stage.ends("trail")) == 1, "an episode has begun"


def test_fewer_seconds_are_kept_when_there_are_many_robots():
    _, data = arm()
    recent, frame = Recent(0.05), frame_of(data)
    many = replace(frame, link_pos=np.zeros((4096, 20, 3), np.float32))
    for step in range(1, 1000):
        recent.add(replace(many, env_steps=step))
        recent.add(replace(many, env_steps=step))  # the training is held
    kept = [past.env_steps for past, _ in recent.of(5)]
    assert kept == list(range(1000 - len(kept), 1000)) and 10 < len(kept) <= 17
    recent.add(frame)
    assert [past.env_steps for past, _ in recent.of(5)] == [1], "another training has begun"


def test_a_robot_is_transparent_while_an_overlay_inside_it_is_shown(stage):
    _, data = arm()
    frame = frame_of(data)

    def opacities() -> set[tuple[float, float]]:
        """Returns the opacities of both robots, for each of their moving parts."""
        stage.on_loop(lambda: stage.block.decorate(stage.block._look))
        moving = [p.handle for p in stage.block.robots._parts if p.shape.body[0] > 0]
        found = [handle.batched_opacities for handle in moving]
        return {(1.0, 1.0) if o is None else tuple(np.round(o.astype(float), 3)) for o in found}

    stage.draw(frame, "contacts")
    assert opacities() == {(1.0, 1.0)}
    for overlay in ("com", "inertia"):
        stage.draw(frame, overlay)
        assert opacities() == {(1.0, CLEAR)}
        stage.draw(frame, overlay, others="fade")
        assert opacities() == {(FADED, CLEAR)}
    stage.draw(frame, "com", selected_env=None)
    assert opacities() == {(1.0, 1.0)}


def test_the_inside_is_of_the_environment_whose_details_are_there(stage):
    _, data = arm()
    frame = frame_of(data)
    stage.draw(frame)
    env = frame.detail.env
    physics = stage.on_loop(lambda: stage.block.inside(env))
    np.testing.assert_allclose(physics.data.qpos, data.qpos, atol=1e-6)
    for other in {*frame.env_index.tolist(), 99} - {env}:
        assert stage.on_loop(lambda env=other: stage.block.inside(env)) is None


def test_a_ray_finds_the_body_that_it_hits_or_else_the_nearest():
    model, data = arm()
    pose = data.xpos[1:], data.xquat[1:]
    down = np.array([0.0, 0.0, -1.0])
    top = data.xpos[2] + [0, 0, 2]
    assert body_hit(model, *pose, top, down) == 2
    assert body_hit(model, *pose, np.array([0.15, 0.1, 2.0]), down) == 1
    level = np.array([0.0, 1.0, 0.0])
    assert body_hit(model, *pose, np.array([0.06, -2.0, 0.45]), level) == 2  # passes beside the arm
    aside = np.array([1.0, 0, 0])
    assert body_hit(model, data.xpos[1:] + aside, data.xquat[1:], top + aside, down) == 2


def test_the_panel_shows_bodies_joints_and_controls_and_says_what_is_unknown():
    model, data = arm()
    detail = frame_of(data).detail
    view = Inside(detail, model, data, True, "mjx", 2)
    text = details.inside(view)
    assert '<tr style="font-weight:700"><td>arm</td>' in text  # the body that was clicked
    assert f"{np.degrees(data.qpos[7]):.1f}°" in text and "elbow" in text
    assert "<td>push</td><td>1.00</td>" in text
    assert text.count('title="') == 3  # the observation's cells
    none = details.controls(Inside(replace(detail, ctrl=None), model, data, False, "spring", None))
    assert "only the action" in none
    assert "<b>arm</b>, 1 kg" in details.clicked(model, 2)
    assert set(words.OVERLAY_LABELS) == set(OVERLAYS)


def test_a_bar_out_of_range_is_red_and_a_nonfinite_value_raises_no_error():
    assert details._RED in details._slot(1.2, -1, 1) and details._RED not in details._slot(1, -1, 1)
    assert "width:25.0%" in details._slot(0.5, -1, 1, fill=True)
    assert "nan" in details.strip(np.array([np.nan, 1.0]))
    assert details.strip(np.zeros(0))


def test_a_body_without_a_name_has_that_of_its_first_geom():
    model = mujoco.MjModel.from_xml_string("""<mujoco><worldbody>
      <body name="leg"><geom size="1"/></body>
      <body><geom name="foot" size="1"/></body>
      <body><geom size="1"/></body>
      <body><joint/><inertial pos="0 0 0" mass="1" diaginertia="1 1 1"/></body>
    </worldbody></mujoco>""")
    assert [body_name(model, i) for i in range(1, 5)] == [
        "leg",
        "body 2 (foot)",
        "body 3",
        "body 4",
    ]
