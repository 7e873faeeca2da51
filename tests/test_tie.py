"""Tests that programs of one's own are dispatched as fast as bare ones, and lose no step."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from brax_viser import VisualizedEnv
from brax_viser.device.host_call import LAUNCH, VARIABLE
from brax_viser.device.tie import tied
from tests.conftest import eventually
from tests.toy import Toy

PARTS = {
    "observation": lambda state: state.obs,
    "reward": lambda state: state.reward,
    "done": lambda state: state.done,
    "coordinates": lambda state: state.pipeline_state.qpos,
}

DISPATCH = "pxla.py"
"""File of JAX with its dispatch in Python."""


@pytest.fixture(params=["direct", LAUNCH])
def env(request, viewer, page, monkeypatch):
    monkeypatch.setenv(VARIABLE, request.param)
    viewer.mode = "every_step"
    return VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)


@pytest.fixture
def state(env):
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))


def test_jit_dispatches_steps_without_python(env, state):
    step = jax.jit(jax.vmap(env.step))
    action = jnp.zeros((4, env.action_size))

    def taken(state, files):
        sys.setprofile(lambda frame, *_: files.add(frame.f_code.co_filename.rpartition("/")[2]))
        try:
            return step(state, action)
        finally:
            sys.setprofile(None)

    first, later = set(), set()
    state = taken(state, first)
    assert DISPATCH in first
    state = jax.block_until_ready(step(state, action))
    before = env.viewer.stats().env_steps
    for _ in range(5):
        state = taken(state, later)
    jax.block_until_ready(state)
    assert DISPATCH not in later, "programs with effects are dispatched in Python"
    eventually(lambda: env.viewer.stats().env_steps == before + 5, "each step is seen")


@pytest.mark.parametrize("part", PARTS)
def test_a_loop_that_keeps_one_part_of_each_state_is_seen_at_each_step(env, state, part):
    before = env.viewer.stats().env_steps

    @jax.jit
    def kept(state, actions):
        def body(state, action):
            state = jax.vmap(env.step)(state, action)
            return state, PARTS[part](state)

        return jax.lax.scan(body, state, actions)[1]

    jax.block_until_ready(kept(state, jnp.zeros((5, 4, env.action_size))))
    eventually(lambda: env.viewer.stats().env_steps == before + 5, "each step is seen")


def test_ties_change_neither_values_nor_derivatives():
    def loss(x, answer, on):
        y = {"squares": x**2, "name": "y", "count": jnp.int32(3)}
        y = tied(y, answer) if on else y
        return y["squares"].sum() * y["count"], y["squares"]

    x, answer = jnp.arange(4.0), jnp.int32(7)
    for of in (loss, jax.jit(loss, static_argnums=2), jax.checkpoint(loss, static_argnums=2)):
        graded = jax.grad(of, has_aux=True)
        for one, other in zip(graded(x, answer, True), graded(x, answer, False), strict=True):
            assert jnp.array_equal(one, other)
    keys = jax.random.split(jax.random.key(0), 2)
    assert tied(keys, answer) is keys, "keys are not arrays for XLA"
    batched = jax.vmap(lambda x, n: tied((x, n), n), in_axes=(0, None))(x, answer)
    assert jnp.array_equal(batched[0], x) and jnp.array_equal(batched[1], jnp.full(4, 7))


ENDING = """
import jax, jax.numpy as jnp
from brax_viser import Viewer, VisualizedEnv
from tests.conftest import Page
from tests.toy import Toy
viewer = Viewer(port=0, mode="every_step")
env = VisualizedEnv(Toy(), grid=(8, 8), viewer=viewer)
page = Page(viewer)
step = jax.jit(jax.vmap(env.step))
state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4096))
action = jnp.zeros((4096, env.action_size))
for _ in range(200):
    state = step(state, action)
print("the script ends", flush=True)
"""


def test_a_script_that_ends_while_steps_are_still_computed_ends_well():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=120
    )
    assert "the script ends" in done.stdout
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr[-2000:]
