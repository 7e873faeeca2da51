"""A Brax environment made from an XML string: balance a pole on a cart."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from brax.envs.base import PipelineEnv, State
from brax.io import mjcf

XML = """
<mujoco model="cartpole">
  <option timestep="0.01"/>
  <default>
    <geom contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <geom name="rail" type="capsule" fromto="-1.8 0 0 1.8 0 0" size="0.02" rgba="0.45 0.48 0.52 1"/>
    <geom name="left stop" type="box" pos="-1.82 0 0" size="0.03 0.1 0.08" rgba="0.3 0.32 0.36 1"/>
    <geom name="right stop" type="box" pos="1.82 0 0" size="0.03 0.1 0.08" rgba="0.3 0.32 0.36 1"/>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" limited="true" range="-1.6 1.6" damping="0.05"/>
      <geom type="box" size="0.18 0.12 0.08" mass="1" rgba="0.13 0.37 0.67 1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0" damping="0.002"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size="0.04" mass="0.1" rgba="0.9 0.45 0.13 1"/>
        <geom type="sphere" pos="0 0 1" size="0.07" mass="0.05" rgba="0.9 0.45 0.13 1"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="slide" gear="10" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


class CartPole(PipelineEnv):
    """A cart on a rail, which must keep a pole upright and stay on the rail.

    Observation [4]: cart position in m, pole angle in rad, their velocities. Action [1]: force,
    -1 to 1 for 10 N either way. Reward: 1 per step. Done: pole beyond 0.4 rad or cart beyond 1.5 m.
    """

    def __init__(self, backend: str = "generalized", n_frames: int = 2):
        super().__init__(mjcf.loads(XML), backend=backend, n_frames=n_frames)

    def reset(self, rng: jax.Array) -> State:
        q_rng, qd_rng = jax.random.split(rng)
        q = self.sys.init_q + jax.random.uniform(q_rng, (2,), minval=-0.1, maxval=0.1)
        qd = jax.random.uniform(qd_rng, (2,), minval=-0.1, maxval=0.1)
        pipeline_state = self.pipeline_init(q, qd)
        zero = jnp.zeros(())
        obs = jnp.concatenate([pipeline_state.q, pipeline_state.qd])
        return State(pipeline_state, obs, reward=zero, done=zero)

    def step(self, state: State, action: jax.Array) -> State:
        pipeline_state = self.pipeline_step(state.pipeline_state, action)
        position, angle = pipeline_state.q
        fallen = (jnp.abs(angle) > 0.4) | (jnp.abs(position) > 1.5)
        obs = jnp.concatenate([pipeline_state.q, pipeline_state.qd])
        return replace(
            state,
            pipeline_state=pipeline_state,
            obs=obs,
            reward=jnp.ones_like(state.reward),
            done=fallen.astype(state.done.dtype),
        )
