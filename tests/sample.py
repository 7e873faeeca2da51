"""Environments that several tests step."""

import jax
import jax.numpy as jnp

from envs.cartpole import CartPole


class FallingCartPole(CartPole):
    """A cart-pole that falls soon, and whose rewards differ between steps and envs."""

    def reset(self, rng):
        state = super().reset(rng)
        push = 2.0 * jax.random.uniform(rng, (2,)) - 1.0
        pipeline_state = self.pipeline_init(state.pipeline_state.q, 3.0 * push)
        return state.replace(pipeline_state=pipeline_state)

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(reward=1.0 + 0.1 * state.pipeline_state.q[1])


class Turning(CartPole):
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
