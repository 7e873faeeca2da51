"""Tests groups, sites, cameras and lighting, as a person chooses them in the panel."""

from typing import Any

import mujoco
import numpy as np
import pytest
from brax import envs

from brax_viser import VisualizedEnv
from brax_viser.model import marks
from brax_viser.model.cameras import cameras_of, sight_of
from brax_viser.model.grid import grid_of
from brax_viser.model.palettes import palette_of
from brax_viser.model.robot import Model
from brax_viser.model.rods import rods_of
from brax_viser.model.shapes import USUAL, Parts, groups_of, shapes_of
from brax_viser.model.surfaces import linear, plain_rgba, rgba_of, roughness_of, texture_of
from brax_viser.scene.block import Block
from brax_viser.scene.deformables import Rods
from brax_viser.scene.robots import _glb
from tests.conftest import eventually
from tests.models import oddities
from tests.support import Probe
from tests.test_flexes import Recorded

GROUPED = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <camera name="corner" pos="3 -3 2" xyaxes="1 1 0 -.3 .3 1"/>
    <body name="ball" pos="0 0 1">
      <freejoint/>
      <geom type="sphere" size=".1" group="1"/>
      <geom type="box" size=".2 .1 .1" group="3"/>
      <geom type="cylinder" size=".1 .2" group="3" rgba="1 0 0 0"/>
      <site type="sphere" size=".02" group="1"/>
      <site type="sphere" size=".02" pos=".1 0 0" group="1"/>
      <site type="box" size=".02 .02 .02" group="4"/>
      <camera name="nose" pos=".1 0 0"/>
    </body>
  </worldbody>
</mujoco>
"""


def geoms_of(shapes):
    return sum(len(shape.body) for shape in shapes)


GLOSSY = """
<mujoco>
  <asset>
    <material name="usual"/>
    <material name="dull" specular="0"/>
    <material name="sharp" specular="1" shininess="1"/>
    <material name="said" roughness="0.3"/>
  </asset>
  <worldbody>
    <body name="two"><freejoint/>
      <geom size=".1" material="sharp" rgba="1 0 0 1"/>
      <geom size=".1" material="sharp" pos=".2 0 0" rgba="0 1 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def test_a_material_is_as_glossy_as_the_model_says():
    model = mujoco.MjModel.from_xml_string(GLOSSY)
    rough = {name: roughness_of(model, model.material(name).id) for name in ("usual", "sharp")}
    assert 0.3 < rough["sharp"] < rough["usual"] < 0.6
    assert roughness_of(model, model.material("dull").id) == 1.0 == roughness_of(model, -1)
    assert roughness_of(model, model.material("said").id) == pytest.approx(0.3)
    (shape,) = shapes_of(model)
    assert shape.roughness == pytest.approx(rough["sharp"])
    described = _glb(shape.mesh, shape.roughness).split(b"JSON", 1)[1]
    assert f'"roughnessFactor":{shape.roughness}'.encode() in described


def test_groups_and_sites_are_drawn_as_chosen():
    model = mujoco.MjModel.from_xml_string(GROUPED)
    assert groups_of(model) == {0, 1, 3, 4}
    assert geoms_of(shapes_of(model)) == 1
    both = Parts(frozenset((1, 3)))
    assert len(shapes_of(model, wanted=both)[0].mesh.faces) > len(shapes_of(model)[0].mesh.faces)
    assert shapes_of(model, wanted=Parts(frozenset())) == []
    sites = shapes_of(model, wanted=Parts(USUAL.groups, sites=True))
    assert geoms_of(sites) == 1 + 2, "the two alike are one shape, that of group 4 is not wanted"
    assert len(sites) == 2


def test_a_robot_with_only_hidden_groups_is_visible_at_first():
    model = mujoco.MjModel.from_xml_string(GROUPED.replace('group="1"', 'group="3"'))
    assert geoms_of(shapes_of(model)) > 0


def test_a_geoms_own_colour_overrides_its_materials_and_a_mark_makes_no_texture():
    model = mujoco.MjModel.from_xml_string(
        """
        <mujoco>
          <asset>
            <texture name="marked" type="cube" builtin="flat" rgb1=".8 .6 .4" rgb2=".8 .6 .4"
                     mark="cross" markrgb="1 1 1" width="64" height="64"/>
            <texture name="checks" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0 0 0"
                     width="32" height="32"/>
            <material name="marked" texture="marked" rgba="1 .5 1 1"/>
            <material name="checks" texture="checks"/>
          </asset>
          <worldbody>
            <geom size=".1" material="marked"/>
            <geom size=".1" material="marked" rgba="0 1 0 1"/>
            <geom size=".1" material="checks"/>
          </worldbody>
        </mujoco>
        """
    )
    np.testing.assert_allclose(rgba_of(model, 0), [1, 0.5, 1, 1])
    np.testing.assert_allclose(rgba_of(model, 1), [0, 1, 0, 1])
    assert texture_of(model, 0) is None and texture_of(model, 2) is not None
    np.testing.assert_allclose(plain_rgba(model, 0), [204, 76, 102, 255], atol=1)


def test_tendons_go_from_site_to_site_but_not_across_a_pulley():
    model = mujoco.MjModel.from_xml_string(oddities())
    rods = rods_of(model, USUAL.groups)
    assert rods is not None and len(rods.radius) == 2
    names = [[model.body(int(b)).name for b in pair] for pair in rods.body]
    assert names == [["leader", "box"], ["box", "egg"]]
    assert rods_of(model, ()) is None


ROPES = """
<mujoco>
  <asset><material name="blue" rgba="0 0 1 1"/></asset>
  <worldbody>
    <site name="a" pos="0 0 1"/>
    <site name="b" pos="0 1 1"/>
    <site name="over" pos=".2 0 1.1"/>
    <geom name="post" type="cylinder" size=".1 .5" euler="90 0 0" pos=".2 0 1"/>
    <body name="cart" pos=".5 0 1">
      <joint type="slide" axis="1 0 0"/>
      <geom size=".05"/>
      <site name="cart"/>
    </body>
  </worldbody>
  <default><tendon width=".01"/></default>
  <tendon>
    <spatial name="long" range="0 .6"><site site="a"/><site site="cart"/></spatial>
    <spatial name="short" range=".45 2"><site site="a"/><site site="cart"/></spatial>
    <spatial name="free"><site site="a"/><site site="cart"/></spatial>
    <spatial name="green" range="0 .1" rgba="0 1 0 1"><site site="a"/><site site="cart"/></spatial>
    <spatial name="blue" range="0 .1" material="blue"><site site="a"/><site site="cart"/></spatial>
    <spatial name="halved" range="0 .9">
      <site site="a"/><site site="cart"/>
      <pulley divisor="2"/> <site site="b"/><site site="cart"/>
    </spatial>
    <spatial name="bent" range="0 .55">
      <site site="a"/><geom geom="post" sidesite="over"/><site site="cart"/>
    </spatial>
    <fixed name="sum" range="0 .01"><joint joint="slide" coef="1"/></fixed>
  </tendon>
</mujoco>
""".replace('<joint type="slide"', '<joint name="slide" type="slide"')


def in_mujocos_scene(model: mujoco.MjModel, data: mujoco.MjData) -> dict[int, tuple[float, ...]]:
    """Returns, by tendon id, the colour (red, green, blue) that MuJoCo's own viewer gives it."""
    scene, option, camera = mujoco.MjvScene(model, 1000), mujoco.MjvOption(), mujoco.MjvCamera()
    every = int(mujoco.mjtCatBit.mjCAT_ALL)
    mujoco.mjv_updateScene(model, data, option, None, camera, every, scene)
    geoms = [geom for geom in scene.geoms[: scene.ngeom] if geom.objtype == _TENDON]
    return {geom.objid: tuple(geom.rgba[:3]) for geom in geoms}


_TENDON = int(mujoco.mjtObj.mjOBJ_TENDON)


@pytest.mark.parametrize("limits", ["enable", "disable"])
def test_tendons_beyond_their_limits_are_coloured_as_in_mujoco(limits):
    option = f'<option><flag limit="{limits}"/></option>'
    model = mujoco.MjModel.from_xml_string(ROPES.replace("<asset>", f"{option}<asset>", 1))
    states = []
    for place in (-0.2, -0.05, 0.0, 0.08, 0.2):
        data = mujoco.MjData(model)
        data.qpos[:] = place
        mujoco.mj_forward(model, data)
        states.append(data)
    links = (
        np.stack([data.xpos[1:] for data in states]).astype(np.float32),
        np.stack([data.xquat[1:] for data in states]).astype(np.float32),
    )
    found = rods_of(model, USUAL.groups)
    assert found is not None
    server, origins = Recorded(), np.zeros((len(states), 3), np.float32)
    rods = Rods(server, "", found, origins, 1.0)  # type: ignore[arg-type]
    reddened = 0
    for order in (slice(None), slice(None, None, -1)):
        rods.draw(links[0][order], links[1][order], np.zeros(len(states), bool))
        shown = server.batched_colors.reshape(len(states), -1, 3)
        for data, colours in zip(states[order], shown, strict=True):
            expected = in_mujocos_scene(model, data)
            for tendon, colour in zip(found.tendon, colours, strict=True):
                theirs = linear(np.round(255 * np.array(expected[int(tendon)])))
                np.testing.assert_allclose(colour.astype(int), theirs, atol=3)
                reddened += int(colour[0]) > 2 * int(colour[1]) + 20
            overlay = marks.tendons(model, data).rgb
            assert {tuple(c) for c in overlay.tolist()} == {
                tuple((255 * np.array(c)).astype(int).tolist()) for c in expected.values()
            }
    assert (reddened > 10) == (limits == "enable")


@pytest.fixture
def cartpoles(viewer):
    env = envs.get_environment("inverted_pendulum", backend="spring")
    return VisualizedEnv(env, grid=(2, 2), viewer=viewer)


def lights(viewer) -> dict[str, tuple]:
    """Returns the lights that a newly opened page would get: name -> (intensity, direction)."""
    found = {}

    def look() -> None:  # on viser's thread: another one could see some half-made
        for name, handle in Probe(viewer).server.scene._handle_from_node_name.items():
            if name.startswith("/lights/"):
                found[name] = handle.intensity, tuple(handle.position)

    Probe(viewer).now(look)
    return found


LIT = """
<mujoco>
  <visual><headlight ambient=".1 .1 .1" diffuse=".2 .2 .2"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".2 .3 .9" rgb2=".9 .6 .3"
             width="64" height="384"/>
  </asset>
  <worldbody>
    <light type="directional" dir="1 0 -1" diffuse=".6 .3 .3" castshadow="true"/>
    <light type="point" pos="0 2 2" diffuse=".2 .2 .2" castshadow="true"/>
    <light active="false" dir="0 0 -1"/>
    <geom type="plane" size="2 2 .1" rgba=".4 .2 .1 1"/>
    <body pos="0 0 1"><freejoint/><geom size=".1"/></body>
  </worldbody>
</mujoco>
"""


def test_surroundings_are_those_of_the_model(viewer):
    model = mujoco.MjModel.from_xml_string(LIT)
    palette = palette_of(model)
    assert palette.sky_top == pytest.approx((51, 77, 230), abs=12)
    assert palette.horizon == pytest.approx((140, 115, 153), abs=12), "in the middle between both"
    assert palette.floor == (102, 51, 26)
    sun, lamp = palette.suns
    assert sun.towards == pytest.approx((-(0.5**0.5), 0.0, 0.5**0.5))
    assert lamp.towards == pytest.approx((0.0, 0.5**0.5, 0.5**0.5))
    assert sun.colour == (255, 128, 128) and lamp.colour == (255, 255, 255)
    assert sun.intensity == pytest.approx(2 * lamp.intensity)
    assert palette.sky_light == pytest.approx(1.5 * lamp.intensity)
    assert sun.casts_shadow and not lamp.casts_shadow, "one shadow is enough to pay for"
    whole = palette.sky_light + sun.intensity + lamp.intensity
    assert whole == pytest.approx(np.pi * 0.9**2.2)
    # A model that defines nothing has a black sky, MuJoCo's headlight, and our own floor.
    bare = palette_of(mujoco.MjModel.from_xml_string("<mujoco><worldbody/></mujoco>"))
    assert bare.sky_top == (0, 0, 0) and bare.suns == () and bare.sky_light > 0.3

    probe, grid = Probe(viewer), (2, 1)
    cells = grid_of(model, np.array([0, 0, 1.0, 1, 0, 0, 0]), grid, None)
    links = np.array([[0, 0, 1]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    probe.now(lambda: probe.scene.show("train", Model.of(model, cells, links, 0.02), cells))
    probe.now(lambda: probe.scene.arrange(("train",)))
    before = lights(viewer)
    assert set(before) == {"/lights/sky", "/lights/sun0"}
    probe.enqueue(lambda: probe.commands.surround("model"))
    eventually(lambda: "/lights/sun1" in lights(viewer), "both of its lights are there")
    assert lights(viewer)["/lights/sun0"][1] == sun.towards
    assert not probe.panel.is_dark
    probe.enqueue(lambda: probe.commands.surround("light"))
    eventually(lambda: lights(viewer) == before, "its second light has gone")


def test_the_panel_chooses_groups_and_the_light(viewer, page, cartpoles):
    probe = Probe(viewer)
    eventually(lambda: "train" in probe.scene.blocks, "robots stand there")

    def drawn() -> int | None:
        block = probe.scene.blocks.get("train")  # None while it is being rebuilt
        return None if block is None else len(block.robots.handles)

    handles = drawn()
    assert handles
    probe.enqueue(lambda: probe.commands.show_group(0, False))
    eventually(lambda: drawn() == 0, "no robot is left")
    probe.enqueue(lambda: probe.commands.show_group(0, True))
    eventually(lambda: drawn() == handles, "they are back")
    sent = lights(viewer)
    probe.enqueue(lambda: probe.commands.surround("dark"))
    eventually(lambda: probe.panel.is_dark, "it is night, in the panel as well")
    assert lights(viewer) != sent
    probe.enqueue(lambda: probe.commands.surround("light"))
    eventually(lambda: not probe.panel.is_dark, "it is day")
    assert lights(viewer) == sent
    assert Probe(viewer).shared.fault is None


def test_the_view_of_robots_stays_when_others_are_put_beside_them(viewer, page):
    model = mujoco.MjModel.from_xml_string(GROUPED)
    probe, scene = Probe(viewer), Probe(viewer).scene
    cells = grid_of(model, np.array([0, 0, 1.0, 1, 0, 0, 0]), (2, 1), None)
    links = np.array([[0, 0, 1]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    robot = Model.of(model, cells, links, 0.02)
    probe.now(lambda: scene.show("train", robot, cells, 2))
    probe.now(lambda: scene.arrange(("train",)))
    (client,) = Probe(viewer).server.get_clients().values()
    before = scene.scale

    place, at = np.array([1.0, 2.0, 1.5]), np.array([0.2, 0.1, 1.0])
    seen: list[Any] = []

    def put_beside() -> None:  # at once: the page's loop lays out the training's robots alone
        client.camera.position, client.camera.look_at = before * place, before * at
        scene.show("sandbox", robot, cells, 2)
        scene.arrange(("train", "sandbox"))
        seen.extend((scene.scale, client.camera.position, client.camera.look_at))

    probe.now(put_beside)
    scale, position, look_at = seen
    assert scale < 0.9 * before
    np.testing.assert_allclose(position / scale, place, atol=1e-5)
    np.testing.assert_allclose(look_at / scale, at, atol=1e-5)


def test_a_page_looks_through_a_camera_of_the_model(viewer, page):
    model = mujoco.MjModel.from_xml_string(GROUPED)
    probe, grid = Probe(viewer), (2, 1)
    cells = grid_of(model, np.array([0, 0, 1.0, 1, 0, 0, 0]), grid, None)
    links = np.array([[0, 0, 1]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    robot = Model.of(model, cells, links, 0.02)
    probe.now(lambda: probe.scene.show("train", robot, cells, 2))
    probe.now(lambda: probe.scene.arrange(("train",)))
    (client,) = Probe(viewer).server.get_clients().values()
    nose = cameras_of(model)[1]
    probe.now(lambda: probe.scene.look_through(client.camera, nose))
    scene = probe.scene
    expected = sight_of(nose, *links).position + scene.blocks["train"]._origins[0]
    np.testing.assert_allclose(client.camera.position, scene.scale * expected, atol=1e-5)
    assert scene._eyes[client.client_id][1] is nose
    probe.now(lambda: scene.look_through(client.camera, None))
    assert client.client_id not in scene._eyes
    probe.now(lambda: probe.scene.look_through(client.camera, nose))
    page.close()
    eventually(lambda: not Probe(viewer).server.get_clients(), "the page has gone")
    eventually(lambda: not scene._eyes, "nobody looks through it any more")


def test_a_robot_has_its_colours_from_the_start(viewer):
    model = mujoco.MjModel.from_xml_string(GROUPED)
    cells = grid_of(model, np.array([0, 0, 1.0, 1, 0, 0, 0]), (2, 1), None)
    links = np.array([[0, 0, 1]], np.float32), np.array([[1, 0, 0, 0]], np.float32)
    robot, blocks = Model.of(model, cells, links, 0.02), []
    probe = Probe(viewer)
    probe.now(
        lambda: blocks.append(
            Block(Probe(viewer).server, "/own", robot, cells, 2, np.zeros(3), 1.0)
        )
    )
    (handle,) = blocks[0].robots.handles
    np.testing.assert_array_equal(handle.batched_colors, linear(robot.shapes[0].rgba[:3]))
