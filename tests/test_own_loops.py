"""Tests training loops of the user's own: whatever transforms the step, its states arrive."""

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs.base import Env

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.host_call import LAUNCH, MECHANISMS, VARIABLE
from envs.cartpole import CartPole
from tests.conftest import Page
from tests.support import Probe
from tests.toy import Toy

NUM_STEPS, NUM_ENVS = 7, 6
KEYS = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
ACTIONS = jax.random.uniform(jax.random.PRNGKey(1), (NUM_STEPS, NUM_ENVS, 1), minval=-1.0)


def bare(loop: Callable) -> Env:
    """Returns the environment of a loop. The toy compiles in a tenth of the time, but XLA may round
    its sums of two products in another way where the results are also read: see below."""
    physics = (scan_over_vmap, gradient, batched_cond, batched_switch_in_a_scan)
    return CartPole(n_frames=1) if loop in physics else Toy()


def steps(step: Callable, state: Any, actions: jax.Array) -> jax.Array:
    """Returns the observations [T, *batch, D] of a scan over `actions` [T, *batch, 1]."""

    def body(state, action):
        state = step(state, action)
        return state, state.obs

    return jax.lax.scan(body, state, actions)[1]


def scan_over_vmap(env: Env) -> Any:
    state = jax.jit(jax.vmap(env.reset))(KEYS)
    return jax.jit(functools.partial(steps, jax.vmap(env.step)))(state, ACTIONS)


def vmap_over_scan(env: Env) -> Any:
    def rollout(key, actions):
        return steps(env.step, env.reset(key), actions)

    return jax.jit(jax.vmap(rollout, in_axes=(0, 1), out_axes=1))(KEYS, ACTIONS)


def nested_vmap(env: Env) -> Any:
    keys, actions = KEYS.reshape(2, 3, -1), ACTIONS.reshape(NUM_STEPS, 2, 3, 1)
    state = jax.jit(jax.vmap(jax.vmap(env.reset)))(keys)
    return jax.jit(functools.partial(steps, jax.vmap(jax.vmap(env.step))))(state, actions)


def single_without_vmap(env: Env) -> Any:
    state = jax.jit(env.reset)(KEYS[0])
    return jax.jit(functools.partial(steps, env.step))(state, ACTIONS[:, 0])


def eager(env: Env) -> Any:
    state, seen = jax.jit(env.reset)(KEYS[0]), []
    for action in ACTIONS[:, 0]:
        state = env.step(state, action)
        seen.append(state.obs)
    return jnp.stack(seen)


def gradient(env: Env, checkpoint: Callable = lambda step: step) -> Any:
    """Returns a loss of the final angles, and its gradient with respect to the actions."""
    state = jax.jit(jax.vmap(env.reset))(KEYS)
    step = checkpoint(jax.vmap(env.step))

    def loss(actions):
        return jnp.sum(steps(step, state, actions)[-1, :, 1] ** 2)

    return jax.jit(jax.value_and_grad(loss))(ACTIONS)


def batched_cond(env: Env) -> Any:
    """Resets by a `cond` of the user's own, depending on the action. `vmap` runs both branches."""

    def step_or_reset(state, action):
        return jax.lax.cond(
            action[0] > 0.5, lambda: env.reset(KEYS[0]), lambda: env.step(state, action)
        )

    state = jax.jit(jax.vmap(env.reset))(KEYS)
    return jax.jit(functools.partial(steps, jax.vmap(step_or_reset)))(state, ACTIONS)


def batched_switch_in_a_scan(env: Env) -> Any:
    def twice(state, action):
        def once(state, _):
            still, stepped = lambda: state, lambda: env.step(state, action)
            return jax.lax.switch(jnp.int32(action[0] > 0.5), [stepped, still]), None

        return jax.lax.scan(once, state, None, length=1)[0]

    state = jax.jit(jax.vmap(env.reset))(KEYS)
    return jax.jit(functools.partial(steps, jax.vmap(twice)))(state, ACTIONS)


def checkpointed_gradient(env: Env) -> Any:
    return gradient(env, jax.checkpoint)


def of_the_toy(loop: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Returns the toy's observations, watched and bare."""
    with Viewer(port=0) as viewer:
        watched = np.asarray(loop(VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)))
    return watched, np.asarray(loop(Toy()))


SELECTING = (batched_cond, batched_switch_in_a_scan)


def unfused() -> None:
    """Checks that a process whose programs have no fused multiply-adds rounds in one way only."""
    for loop in SELECTING:
        np.testing.assert_array_equal(*of_the_toy(loop))
    print("identical")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's instructions")
def test_without_fused_multiply_adds_sums_of_products_are_the_same_watched_and_bare():
    done = in_a_process("unfused", XLA_FLAGS="--xla_cpu_max_isa=AVX")
    assert "identical" in done.stdout


@pytest.mark.parametrize("loop", SELECTING)
def test_with_them_sums_of_products_differ_by_a_rounding_at_most(loop):
    watched, bare = of_the_toy(loop)
    np.testing.assert_allclose(watched, bare, rtol=0, atol=float(np.finfo(np.float32).eps))


@functools.cache
def of_the_bare_env(loop: Callable) -> Any:
    return jax.device_get(loop(bare(loop)))


def watch(loop: Callable, viewer: Viewer) -> Any:
    viewer.mode = "every_step"
    env = VisualizedEnv(bare(loop), grid=(2, 2), viewer=viewer)
    return jax.device_get(jax.block_until_ready(loop(env)))


LOOPS = {
    scan_over_vmap: NUM_ENVS,
    vmap_over_scan: NUM_ENVS,
    nested_vmap: NUM_ENVS,
    single_without_vmap: 1,
    eager: 1,
    gradient: NUM_ENVS,
    batched_cond: NUM_ENVS,
    batched_switch_in_a_scan: NUM_ENVS,
}
MORE = {eager, vmap_over_scan, batched_switch_in_a_scan}
"""Cases that a plain test run omits, like most of those of the mechanisms below."""

REFUSED = {("io_callback", batched_cond), ("io_callback", batched_switch_in_a_scan)}
"""Loops that JAX itself refuses: an IO effect in a branch that `vmap` turns into a selection."""

QUICK = {"io_callback": {nested_vmap}, LAUNCH: {nested_vmap, gradient, batched_cond}}


@pytest.mark.parametrize(
    ("loop", "num_envs", "mechanism"),
    [
        pytest.param(
            loop,
            num_envs,
            mechanism,
            marks=[pytest.mark.full]
            if loop in MORE or loop not in QUICK.get(mechanism, LOOPS)
            else [],
        )
        for loop, num_envs in LOOPS.items()
        for mechanism in (*MECHANISMS, LAUNCH)
        if (mechanism, loop) not in REFUSED
    ],
)
def test_each_step_is_seen_once_and_results_are_the_same(
    viewer, page, monkeypatch, loop, num_envs, mechanism
):
    monkeypatch.setenv(VARIABLE, mechanism)
    watched = watch(loop, viewer)
    stats = viewer.stats()
    assert stats.frames == stats.env_steps == NUM_STEPS
    assert stats.streams["train"].num_envs == num_envs
    assert viewer.progress().algorithm is None
    jax.tree.map(np.testing.assert_array_equal, watched, of_the_bare_env(loop))


def test_under_a_checkpoint_states_are_seen_and_the_gradient_is_the_same(viewer, page, monkeypatch):
    monkeypatch.setenv(VARIABLE, "direct")
    watched = watch(checkpointed_gradient, viewer)
    stats = viewer.stats()
    assert stats.frames == stats.env_steps == NUM_STEPS
    assert stats.streams["train"].num_envs == NUM_ENVS
    jax.tree.map(np.testing.assert_array_equal, watched, of_the_bare_env(checkpointed_gradient))


def test_io_callback_raises_under_a_checkpoint(viewer, page, monkeypatch):
    monkeypatch.setenv(VARIABLE, "io_callback")
    with pytest.raises(NotImplementedError, match=r"Effects not supported .* `checkpoint`"):
        watch(checkpointed_gradient, viewer)


def in_a_process(function: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls a function of this module in a process of its own, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.test_own_loops import {function}; {function}()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def sharded() -> None:
    """Checks, in a process with four devices, a batch that XLA itself divides among them."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    keys = jax.device_put(jax.random.split(jax.random.PRNGKey(0), 8), spec)
    actions = jnp.ones((NUM_STEPS, 8, 1))

    def loop(env: Env) -> Any:
        state = jax.jit(jax.vmap(env.reset))(keys)
        assert len(state.obs.sharding.device_set) == 4
        return jax.jit(functools.partial(steps, jax.vmap(env.step)))(state, actions)

    with Viewer(port=0) as viewer:
        page = Page(viewer)
        watched, stats = watch(loop, viewer), viewer.stats()
        page.close()
    np.testing.assert_array_equal(watched, jax.device_get(loop(bare(loop))))
    print(f"frames {stats.frames}, envs {stats.streams['train'].num_envs}, identical")


@pytest.mark.parametrize(
    "mechanism", ["direct", LAUNCH, pytest.param("io_callback", marks=pytest.mark.full)]
)
def test_a_batch_divided_among_devices_by_xla_is_seen_whole(mechanism):
    flags = "--xla_force_host_platform_device_count=4"
    done = in_a_process("sharded", **{"XLA_FLAGS": flags, VARIABLE: mechanism})
    assert f"frames {NUM_STEPS}, envs 8, identical" in done.stdout


def in_float64() -> None:
    """Checks, in a process whose numbers have 64 bits, that steps are seen and stay the same."""
    seen = np.asarray(vmap_over_scan(Toy()))
    assert seen.dtype == np.float64
    with Viewer(port=0) as viewer:
        page = Page(viewer)
        viewer.selected_env, viewer.twins = 1, 2
        watched, stats = watch(vmap_over_scan, viewer), viewer.stats()
        assert Probe(viewer).shared.fault is None
        page.close()
    np.testing.assert_array_equal(watched, seen)
    assert stats.frames == NUM_STEPS
    print("identical")


@pytest.mark.parametrize("mechanism", [*MECHANISMS, LAUNCH])
def test_numbers_of_64_bits_stay_as_they_are_and_are_shown(mechanism):
    done = in_a_process("in_float64", **{"JAX_ENABLE_X64": "1", VARIABLE: mechanism})
    assert "identical" in done.stdout


def test_jax_debug_nans_finds_no_nan_of_ours(viewer, page):
    """`jax_debug_nans` checks everything that a compiled function returns."""
    with jax.debug_nans(True):
        seen = scan_over_vmap(VisualizedEnv(bare(scan_over_vmap), grid=(2, 3), viewer=viewer))
    np.testing.assert_array_equal(seen, of_the_bare_env(scan_over_vmap))
