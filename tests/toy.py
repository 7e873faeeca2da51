"""A plain class with the attributes of an environment and its own physics, which compiles quickly:
a cart on a rail that follows the action."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from brax.envs.base import Env
from flax import struct

XML = """
<mujoco><option timestep="0.02"/><worldbody><body name="cart" pos="0 0 0.5">
  <joint name="slide" type="slide" axis="1 0 0"/><geom type="box" size="0.2 0.1 0.1"/>
</body></worldbody><actuator><motor joint="slide"/></actuator></mujoco>
"""


@struct.dataclass
class Data:
    qpos: jax.Array
    qvel: jax.Array
    ctrl: jax.Array
    xpos: jax.Array
    xquat: jax.Array


@struct.dataclass
class State:
    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict[str, Any] = struct.field(default_factory=dict)
    info: Any = struct.field(default_factory=dict)


class Toy:
    """Observation [2]: position in m, velocity in m/s. Done beyond 0.05 m."""

    action_size = 1
    observation_size = 2

    def __init__(
        self,
        done: Callable[[jax.Array], Any] | None = None,
        reward: Callable[[jax.Array], Any] | None = None,
        obs: Callable[[jax.Array], Any] | None = None,
    ):
        """Optionally takes functions that compute each value from the position [], m."""
        self.model = mujoco.MjModel.from_xml_string(XML)
        self.made = done, reward, obs

    def reset(self, rng: jax.Array) -> State:
        position = jax.random.uniform(rng, (1,), minval=-0.04, maxval=0.04)
        return self.state(self.data(position, jnp.zeros(1), jnp.zeros(1)), {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        old = state.pipeline_state
        qvel = 0.9 * old.qvel + 0.1 * action
        return self.state(
            self.data(old.qpos + 0.02 * qvel, qvel, action), state.metrics, state.info
        )

    def data(self, qpos: jax.Array, qvel: jax.Array, ctrl: jax.Array) -> Data:
        cart = jnp.array([0.0, 0.0, 0.5]).at[0].set(qpos[0])
        quat = jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (2, 1))
        return Data(qpos, qvel, ctrl, jnp.stack([jnp.zeros(3), cart]), quat)

    def state(self, data: Any, metrics: Any, info: Any) -> Any:
        position = data.qpos[0]
        done, reward, obs = self.made
        return State(
            data,
            obs(position) if obs else jnp.concatenate([data.qpos, data.qvel]),
            reward(position) if reward else -jnp.abs(position),
            done(position) if done else (jnp.abs(position) > 0.05).astype(jnp.float32),
            metrics,
            info,
        )


class BraxToy(Toy, Env):  # type: ignore[reportIncompatibleMethodOverride]
    """The same as one of Brax's environments, for trainers that take nothing else."""

    backend = "its own"  # type: ignore[assignment]
