"""What is said of why an episode was terminated agrees with the environment's own rule."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import base, envs

from brax_viser.device.adapters import adapter_for
from brax_viser.device.limits import limits_of
from brax_viser.model.ending import LastPose, why_ended
from brax_viser.page.reasons import Reasons
from brax_viser.panel.endings import JUST_ENDED, last_end
from brax_viser.records.environment import Limit
from tests.test_panel import frame

KEEPS = {
    "ant": (0.2, ["torso height"]),
    "humanoid": (0.2, ["torso height"]),
    "hopper": (0.1, ["torso height", "torso angle", "a coordinate or speed"]),
    "walker2d": (0.7, ["torso height", "torso angle"]),
    "inverted_pendulum": (0.2, ["pole angle"]),
    "inverted_double_pendulum": (0.7, ["height of the upper pole's tip"]),
}
"""By environment: how far from the initial pose the limits are, and what they are of."""


def brax(name: str, **named: Any) -> Any:
    """Makes an environment that takes its pose, and observes next to nothing."""
    env = envs.get_environment(name, backend="generalized", **named).unwrapped
    env._com = lambda state: (jnp.zeros(3), None, None, None)
    env._get_obs = lambda state, *_: jnp.concatenate([state.q, state.qd])
    return env


def poses(env: Any, spread: float, count: int = 60) -> list[LastPose]:
    """Returns poses of which some are beyond the limits, and some within them."""
    rng, model, found = np.random.default_rng(0), env.sys.mj_model, []
    data = mujoco.MjData(model)
    for _ in range(count):
        data.qpos[:] = env.sys.init_q + rng.normal(scale=spread, size=model.nq)
        if model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
            data.qpos[2] = rng.uniform(0.0, 2.5)
        elif model.nq > 3:  # the planar ones' height
            data.qpos[1] = rng.choice([0.0, 0.0, 0.0, -0.7])
        data.qvel[:] = rng.normal(scale=rng.choice([1.0, 1.0, 60.0]), size=model.nv)
        mujoco.mj_kinematics(model, data)
        arrays = data.xpos[1:], data.xquat[1:], data.qpos, data.qvel
        found.append(LastPose(*(x.astype(np.float32) for x in arrays)))
    return found


def ends(env: Any, poses: list[LastPose]) -> list[bool]:
    """Asks the environment's own `step`."""

    def done(link_pos: jax.Array, link_rot: jax.Array, q: jax.Array, qd: jax.Array) -> jax.Array:
        now = base.State(q, qd, base.Transform(pos=link_pos, rot=link_rot), None, None)
        env.pipeline_step = lambda state, action: now
        before = envs.State(now, jnp.zeros(1), jnp.zeros(()), jnp.zeros(()))
        return env.step(before, jnp.zeros(env.action_size)).done

    return (jax.vmap(done)(*map(np.stack, zip(*poses, strict=True))) > 0).tolist()


@pytest.mark.parametrize("name", KEEPS)
def test_a_reason_is_given_exactly_where_brax_ends_the_episode(name):
    env, (spread, kept) = brax(name), KEEPS[name]
    limits, shown = limits_of(env, env.sys.mj_model), poses(env, spread)
    told, ended = [why_ended(limits, pose) for pose in shown], ends(env, shown)
    assert [bool(why) for why in told] == ended
    assert any(ended) and not all(ended)
    assert all(any(what in why for why in told) for what in kept), told
    assert len(limits) == len(kept)


def test_no_limit_is_claimed_for_a_rule_that_is_not_known():
    class Own(type(brax("ant"))):
        def step(self, state, action):
            return super().step(state, action).replace(done=jnp.zeros(()))

    class Rewarded(type(brax("ant"))):
        """Ends as its base does."""

    model = brax("ant").sys.mj_model
    assert limits_of(Rewarded(backend="generalized"), model)
    assert not limits_of(Own(backend="generalized"), model)
    assert not limits_of(brax("ant", terminate_when_unhealthy=False), model)
    assert not limits_of(brax("hopper", terminate_when_unhealthy=False), model)
    assert not limits_of(brax("halfcheetah"), model)
    assert not limits_of(object(), model)


def test_the_limits_an_environment_was_made_with_are_told():
    adapter = adapter_for(envs.get_environment("ant", healthy_z_range=(0.31, np.inf)))
    assert adapter.limits == (Limit("torso height", "height", 0, 0.31, None, "m"),)


@pytest.mark.parametrize(
    ("height", "words"),
    [
        (1.02, "torso height 1.02 m, above 1.00 m"),
        (1.0004, "torso height 1.0004 m, above 1.0000 m"),
        (0.1, "torso height 0.10 m, below 0.20 m"),
        (1.0, ""),
        (0.2, ""),
        (np.nan, ""),
    ],
)
def test_what_is_measured_is_told_with_the_limit(height, words):
    limits = (Limit("torso height", "height", 0, 0.2, 1.0, "m"), Limit("x", "qpos", 7, 0.0, 1.0))
    pos = np.array([[5.0, 5.0, height]], np.float32)
    assert why_ended(limits, LastPose(pos, np.array([[1, 0, 0, 0]], np.float32))) == words


def test_a_robot_on_its_side_is_beyond_a_tilt():
    limit = Limit("tilt of trunk", "tilt", 0, None, 90.0, "°", (0.0, 0.0, 1.0))
    half = np.radians(97.0) / 2
    rot = np.array([[np.cos(half), np.sin(half), 0, 0]], np.float32)
    told = why_ended([limit], LastPose(np.zeros((1, 3), np.float32), rot))
    assert told == "tilt of trunk 97.00°, above 90.00°"
    assert not why_ended([limit], LastPose(np.zeros((1, 3)), rot * [1, 0.5, 1, 1]))


def test_the_page_says_why_the_last_episode_ended_if_that_was_on_screen():
    reasons = Reasons([Limit("torso height", "height", 0, 0.2, 1.0, "m")])
    fallen = frame(40, 0, 7)
    reasons.add(fallen)
    why = reasons.of(fallen, 5)
    assert why == "torso height 0.00 m, below 0.20 m"
    assert last_end(fallen, 5, why) == f"{JUST_ENDED}: {why}."
    later = replace(frame(3, 3, 40), env_steps=12)
    assert last_end(later, 5, reasons.of(later, 5)).endswith(f"after 40 steps: {why}.")
    assert not reasons.of(replace(later, env_steps=13), 5), "of another termination"
    assert not reasons.of(later, 6) and not reasons.of(None, 5)
    reset = replace(fallen, was_reset=np.array([True]))
    unseen = Reasons([Limit("torso height", "height", 0, 0.2, 1.0, "m")])
    unseen.add(reset)
    assert not unseen.of(reset, 5), "its pose is that after the reset"
