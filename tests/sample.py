"""Environments that several tests step."""

from typing import Any

import jax
import jax.numpy as jnp
from brax.base import Motion, State, Transform

from envs.cartpole import CartPole


class SwiftCartPole(CartPole):
    """The cart-pole with simple physics, which XLA compiles in a tenth of the time. Products are by
    powers of two and therefore exact, so that sums have the same bits whatever XLA fuses."""

    @property
    def dt(self) -> Any:
        return self._n_frames / 128

    def pipeline_init(self, q, qd, act=None, ctrl=None):
        pos = jnp.zeros((2, 3)).at[:, 0].set(q[0])
        half = jnp.array([0.0, 0.5]) * q[1]  # the cart stays upright
        none = jnp.zeros(2)
        rot = jnp.stack([jnp.cos(half), none, jnp.sin(half), none], axis=-1)
        still = Motion(ang=jnp.zeros((2, 3)), vel=jnp.zeros((2, 3)))
        return State(q=q, qd=qd, x=Transform(pos=pos, rot=rot), xd=still, contact=None)

    def pipeline_step(self, pipeline_state, action):
        pushed = 8 * jnp.concatenate([action, pipeline_state.q[1:]])
        qd = pipeline_state.qd + self.dt * pushed
        return self.pipeline_init(pipeline_state.q + self.dt * qd, qd)


class FallingCartPole(SwiftCartPole):
    """A cart-pole that falls soon, and whose rewards differ between steps and envs."""

    def reset(self, rng):
        state = super().reset(rng)
        push = 2.0 * jax.random.uniform(rng, (2,)) - 1.0
        pipeline_state = self.pipeline_init(state.pipeline_state.q, 3.0 * push)
        return state.replace(pipeline_state=pipeline_state)

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(reward=1.0 + 0.1 * state.pipeline_state.q[1])


class Turning(SwiftCartPole):
    """A cart-pole in which values turn NaN or Inf at steps given in `info`, each entry `[4]`: while
    `at <= t < until`, `value` is added to each of FIELDS."""

    FIELDS = ("reward", "link_pos", "qvel", "observation")

    def reset(self, rng):
        state = super().reset(rng)
        never, value = jnp.full(4, 2**30), jnp.full(4, jnp.nan)
        return state.replace(info={"t": jnp.int32(0), "at": never, "until": never, "value": value})

    def step(self, state, action):
        info = {**state.info, "t": state.info["t"] + 1}
        state = super().step(state, action).replace(info=info)
        now = (info["at"] <= info["t"]) & (info["t"] < info["until"])
        reward, place, speed, observed = (jnp.where(now[i], info["value"][i], 0) for i in range(4))
        physics = state.pipeline_state
        physics = physics.replace(qd=physics.qd + speed)
        physics = physics.replace(x=physics.x.replace(pos=physics.x.pos + place))
        return state.replace(
            pipeline_state=physics, reward=state.reward + reward, obs=state.obs + observed
        )


class TurningReward(Turning):
    """A cart-pole whose reward turns NaN at the twelfth step if the cart starts left of -0.06 m;
    trainers can step it."""

    def reset(self, rng):
        state = super().reset(rng)
        left = state.pipeline_state.q[0] < -0.06
        at = state.info["at"].at[0].set(jnp.where(left, 12, 2**30))
        return state.replace(info={**state.info, "at": at})
