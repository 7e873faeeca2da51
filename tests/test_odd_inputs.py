"""Tests environments with attributes that a wrapper looks for but that raise or mislead."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import pytest
from mujoco import mjx

from brax_viser import VisualizedEnv
from brax_viser.device.adapters import adapter_for
from tests.test_inputs import (
    arm_model,
    assert_same,
    assert_shown_and_the_same,
    shared,  # noqa: F401
    without_log,
)
from tests.toy import Toy


class NotReady(Toy):
    @property
    def mj_model(self) -> Any:
        raise RuntimeError("compile it first")

    @property
    def sys(self) -> Any:
        raise KeyError("sys")

    @property
    def dt(self) -> Any:
        raise AssertionError("not set")


class OfItsSettings(Toy):
    """Looks its attributes up in a dictionary, and lets the KeyError propagate."""

    def __init__(self):
        self.settings = {"gain": 1.0}
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return vars(self)["settings"][name]


class Named(NamedTuple):
    reset: Any
    step: Any
    model: mujoco.MjModel


def named() -> Named:
    toy = Toy()
    return Named(toy.reset, toy.step, toy.model)


@pytest.mark.parametrize("make", [NotReady, OfItsSettings])
def test_an_attribute_that_raises_counts_as_absent(shared, make):  # noqa: F811
    assert_shown_and_the_same(make, shared)


def test_a_named_tuple_of_functions_is_an_environment_too():
    env = named()
    assert adapter_for(env).mj_model is env.model


class OfTwo(Toy):
    """Holds two models and steps the second."""

    def __init__(self):
        super().__init__()
        self.parts = {"of the arm": arm_model()[1], "own": mjx.put_model(self.model)}


def test_a_given_model_decides_which_of_several_is_the_stepped_one(shared):  # noqa: F811
    env = OfTwo()
    adapter = adapter_for(env, mj_model=env.model)
    assert adapter._stepped == ("parts", "own") and adapter.mj_model is env.model
    with pytest.raises(ValueError, match=r"VisualizedEnv\(env, mj_model=model\)"):
        VisualizedEnv(env, viewer=shared)


class WithKeys(Toy):
    """Has random keys among its observations, and in `info` under "time", elsewhere a count."""

    def reset(self, rng: jax.Array) -> Any:
        return self.with_keys(super().reset(rng).replace(info={"time": jax.random.key(0)}))

    def step(self, state: Any, action: jax.Array) -> Any:
        return self.with_keys(super().step(state, action))

    def with_keys(self, state: Any) -> Any:
        obs = {"seen": state.pipeline_state.qpos, "keys": jax.random.split(jax.random.key(0), 3)}
        return state.replace(obs=obs)


def test_random_keys_are_not_treated_as_numbers(shared):  # noqa: F811
    keys, actions = jax.random.split(jax.random.PRNGKey(0), 2), jnp.ones((2, 1))

    @functools.partial(jax.jit, static_argnums=0)
    def seen(env: Any) -> Any:
        return jax.vmap(env.step)(jax.vmap(env.reset)(keys), actions).obs["seen"]

    before = shared.stats().frames
    watched = jax.block_until_ready(seen(VisualizedEnv(WithKeys(), viewer=shared)))
    assert shared.stats().frames == before + 1
    assert (watched == seen(WithKeys())).all()


class WithOptions(Toy):
    """Takes more arguments than a trainer gives."""

    def reset(self, key: jax.Array, options: Any = None) -> Any:  # type: ignore[override]
        state = super().reset(key)
        return state if options is None else state.replace(reward=options)

    def step(self, state: Any, action: Any, key: Any = None, *, gain: Any = 1.0) -> Any:
        assert key is not None or gain == 1.0
        return super().step(state, gain * action)


@pytest.mark.parametrize("of", [lambda env: env, lambda env: env.unwrapped])
def test_arguments_beyond_those_of_trainers_reach_the_env(shared, of):  # noqa: F811
    key, action = jax.random.PRNGKey(0), jnp.ones(1)
    env, bare = of(VisualizedEnv(WithOptions(), viewer=shared)), WithOptions()
    before = shared.stats().frames
    state, own = env.reset(key=key, options=2.0), bare.reset(key=key, options=2.0)
    assert_same(without_log(state), own)
    state, own = (e.step(s, action, key, gain=3.0) for e, s in ((env, state), (bare, own)))
    assert_same(without_log(state), own)
    assert_same(without_log(env.step(action=action, state=state)), bare.step(own, action))
    assert shared.stats().frames == before + 2
