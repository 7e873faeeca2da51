"""Shows a hand-written MJX environment, which is neither Brax's nor Playground's, and its own loop.

python -m examples.own_environment

What the wrapper reads of such a class is in `docs/environments.md`: `reset` and `step`, an
`MjModel` among its attributes, and of a state the `mjx.Data`, `reward`, `done` and `info`.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from flax import struct
from mujoco import mjx

from brax_viser import VisualizedEnv

NUM_ENVS, NUM_STEPS = 16, 3000

XML = """
<mujoco>
  <option timestep="0.01" iterations="4" ls_iterations="4"/>
  <worldbody>
    <geom type="plane" size="3 3 0.1" contype="0" conaffinity="0" rgba="0.9 0.9 0.9 1"/>
    <body name="upper" pos="0 0 1.5">
      <joint name="shoulder" axis="0 1 0" damping="0.05"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.6" size="0.05" rgba="0.13 0.37 0.67 1"/>
      <body name="lower" pos="0 0 -0.6">
        <joint name="elbow" axis="0 1 0" damping="0.05"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.6" size="0.04" rgba="0.9 0.45 0.13 1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="elbow" gear="8" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


@struct.dataclass
class State:
    """A state of `Acrobot`; any class with these fields does, under any names for its own ones."""

    data: mjx.Data
    reward: jax.Array
    done: jax.Array
    info: dict[str, Any] = struct.field(default_factory=dict)


class Acrobot:
    """Two links that hang from a hinge; the motor between them swings them up.

    Reward: the tip's height above the hinge in m. Done: after 10 s, or when the tip is up.
    """

    dt = 0.02  # s, of one step

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.mjx_model = mjx.put_model(self.model)

    def reset(self, rng: jax.Array) -> State:
        data = mjx.make_data(self.mjx_model)
        qpos = jax.random.uniform(rng, (2,), minval=-0.1, maxval=0.1)
        data = mjx.forward(self.mjx_model, data.replace(qpos=qpos))
        return State(data, jnp.zeros(()), jnp.zeros(()))

    def step(self, state: State, action: jax.Array) -> State:
        data = state.data.replace(ctrl=action)
        for _ in range(2):
            data = mjx.step(self.mjx_model, data)
        height = -0.6 * (jnp.cos(data.qpos[0]) + jnp.cos(data.qpos[0] + data.qpos[1]))
        done = (data.time > 10) | (height > 1.1)
        return replace(state, data=data, reward=height, done=done.astype(jnp.float32))


def swing(env: Any, key: jax.Array, num_envs: int, num_steps: int) -> tuple[State, jax.Array]:
    """Steps environments of different gains, and resets those that are done. Returns the last
    states and the rewards [T, N]."""
    gains = jnp.linspace(0.0, 1.0, num_envs)

    def one(state: State, gain: jax.Array, key: jax.Array) -> State:
        action = gain * jnp.sign(state.data.qvel[:1])  # push along, as one does on a swing
        after = env.step(state, action)
        return jax.tree.map(lambda x, y: jnp.where(after.done > 0, x, y), env.reset(key), after)

    def step(carry: Any, key: jax.Array) -> Any:
        state = jax.vmap(one)(carry, gains, jax.random.split(key, num_envs))
        return state, state.reward

    start, *keys = jax.random.split(key, num_steps + 1)
    state = jax.vmap(env.reset)(jax.random.split(start, num_envs))
    return jax.lax.scan(step, state, jnp.stack(keys))


def main() -> None:
    env = VisualizedEnv(Acrobot(), grid=(4, 4))
    run = jax.jit(swing, static_argnums=(0, 2, 3))
    for minute in range(5):
        key = jax.random.PRNGKey(minute)
        _, rewards = jax.block_until_ready(run(env, key, NUM_ENVS, NUM_STEPS))
        env.viewer.log(NUM_ENVS * NUM_STEPS * (minute + 1), {"height": rewards.mean()})
    env.viewer.training_ended()
    input("Finished. The page stays open until you press Enter.")


if __name__ == "__main__":
    main()
