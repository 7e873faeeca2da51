"""An environment that several tests step."""

import jax

from envs.cartpole import CartPole


class FallingCartPole(CartPole):
    """A cart-pole that falls soon, and whose rewards tell steps and envs apart."""

    def reset(self, rng):
        state = super().reset(rng)
        push = 2.0 * jax.random.uniform(rng, (2,)) - 1.0
        pipeline_state = self.pipeline_init(state.pipeline_state.q, 3.0 * push)
        return state.replace(pipeline_state=pipeline_state)

    def step(self, state, action):
        state = super().step(state, action)
        return state.replace(reward=1.0 + 0.1 * state.pipeline_state.q[1])
