"""MuJoCo models with features that the robots of the packages lack, or never combine."""

ODDITIES = """
<mujoco>
  <asset>
    <texture name="checks" type="2d" builtin="checker" rgb1=".9 .8 .2" rgb2=".2 .3 .6"
             width="64" height="64"/>
    <texture name="faces" type="cube" builtin="gradient" rgb1=".8 .2 .2" rgb2=".2 .2 .8"
             width="64" height="64"/>
    <material name="checks" texture="checks" texrepeat="2 2"/>
    <material name="faces" texture="faces"/>
    <hfield name="hills" nrow="24" ncol="24" size="1.5 1.5 .4 .1"
            elevation="HILLS"/>
    <mesh name="wedge" vertex="0 0 0  .3 0 0  0 .3 0  0 0 .3"/>
  </asset>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1"/>
    <geom name="hills" type="hfield" hfield="hills" rgba=".5 .6 .4 1"/>
    <geom name="wall" type="plane" size=".6 .4 .1" pos="0 1.2 .9" euler="90 0 0"
          material="checks"/>
    <body name="leader" mocap="true" pos="-.8 0 1">
      <geom type="sphere" size=".12" rgba=".2 .8 .4 .5" contype="0" conaffinity="0"/>
      <site name="held" pos=".05 0 0"/>
    </body>
    <body name="box" pos="0 0 .9">
      <freejoint/>
      <geom type="box" size=".2 .15 .1" material="checks"/>
      <site name="low" pos="-.2 0 0"/>
      <site name="high" pos=".2 0 .1"/>
    </body>
    <body name="egg" pos=".7 0 1.1">
      <joint type="hinge" axis="0 1 0"/>
      <geom type="ellipsoid" size=".12 .15 .22" material="faces"/>
      <geom type="mesh" mesh="wedge" pos="0 0 .2" rgba=".7 .7 .7 1"/>
      <site name="hook" pos="0 0 -.2"/>
    </body>
  </worldbody>
  <tendon>
    <spatial name="rope" width=".015" rgba=".9 .4 .1 1">
      <site site="held"/> <site site="low"/> <pulley divisor="2"/>
      <site site="high"/> <site site="hook"/>
    </spatial>
  </tendon>
</mujoco>
"""


def oddities() -> str:
    """Returns XML with a height field, a plane that is not a floor, 2-D and cube textures, a
    transparent mocap body, a mesh and a tendon over a pulley."""
    import numpy as np

    x, y = np.meshgrid(np.linspace(0, 6, 24), np.linspace(0, 6, 24))
    heights = (0.5 + 0.5 * np.sin(x) * np.cos(y)).ravel()
    return ODDITIES.replace("HILLS", " ".join(f"{h:.3f}" for h in heights))


SOFT = """
<mujoco>
  <asset>
    <texture name="checks" type="2d" builtin="checker" rgb1=".9 .2 .2" rgb2=".2 .7 .3"
             width="64" height="64"/>
    <material name="checks" texture="checks" texrepeat="1 1"/>
  </asset>
  <worldbody>
    <light pos="0 0 4" dir="0 0 -1"/>
    <geom type="plane" size="2 2 .1"/>
    <flexcomp name="cloth" type="grid" count="7 5 1" spacing=".1 .1 .1" pos="0 0 .6" dim="2"
              radius=".01" rgba=".2 .4 .8 1" mass="1"><edge equality="true"/></flexcomp>
    <flexcomp name="pinned" type="grid" count="5 5 1" spacing=".1 .1 .1" pos=".8 0 .6" dim="2"
              radius=".01" material="checks" mass="1">
      <edge equality="true"/> <pin id="0 4"/>
    </flexcomp>
    <flexcomp name="rope" type="grid" count="8 1 1" spacing=".1 .1 .1" pos="0 .6 .6" dim="1"
              radius=".02" rgba=".8 .4 .1 1" mass="1"><edge equality="true"/></flexcomp>
    <flexcomp name="block" type="grid" count="3 3 3" spacing=".1 .1 .1" pos="0 -.6 .6" dim="3"
              radius=".02" rgba=".2 .8 .1 1" mass="1"><edge equality="true"/></flexcomp>
    <flexcomp name="jelly" type="grid" count="4 4 4" spacing=".1 .1 .1" pos="-.8 0 .6" dim="3"
              radius=".01" rgba=".8 .8 .1 1" mass="1" dof="trilinear">
      <elasticity young="5e3"/>
    </flexcomp>
  </worldbody>
</mujoco>
"""


def soft() -> str:
    """Returns XML with flexes of each kind: two cloths, one of them pinned and textured, a rope, a
    body of vertices and an interpolated one. In its keyframe they have fallen for 0.5 s."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(SOFT)
    data = mujoco.MjData(model)
    while data.time < 0.5:
        mujoco.mj_step(model, data)
    qpos = " ".join(f"{number:.6f}" for number in data.qpos)
    return SOFT.replace("</mujoco>", f'<keyframe><key qpos="{qpos}"/></keyframe></mujoco>')


SMALL = """
<mujoco>
  <worldbody>
    <body pos="0 0 .1">
      <freejoint/>
      <geom type="cylinder" size=".03 .03" rgba="{rgb} 1"/>
      <geom type="sphere" size=".028" pos="0 0 .04" rgba="{rgb} 1"/>
      <geom type="capsule" size=".008" fromto="-.02 0 .05 -.04 0 .1" rgba="{rgb} 1"/>
      <geom type="capsule" size=".008" fromto=".02 0 .05 .04 0 .1" rgba="{rgb} 1"/>
      <geom type="box" size=".006 .012 .02" pos="-.034 0 .11" rgba="{rgb} 1"/>
      <geom type="box" size=".006 .012 .02" pos=".034 0 .11" rgba="{rgb} 1"/>
      <geom type="box" size=".01 .03 .03" pos=".09 0 .05" rgba=".5 .5 .5 {glass}"/>
    </body>
  </worldbody>
</mujoco>
"""


def small(shade: float, glass: float = 0.0) -> str:
    """Returns XML with a 15 cm gripper in a grey from 0 (black) to 1, beside a pane with the alpha
    `glass`; at 0 the pane is not drawn."""
    return SMALL.format(rgb=f"{shade} {shade} {shade}", glass=glass)
