"""Tests the temporary replacement of an environment's methods."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from brax_viser.device.adapters import adapter_for
from brax_viser.device.wrappers import shadowed
from tests.sample import SwiftCartPole


class Meeting(SwiftCartPole):
    """An environment whose first step ends before its second, but after the second has begun."""

    def __init__(self) -> None:
        super().__init__("spring")
        self.second_is_in, self.first_is_over = threading.Event(), threading.Event()
        self.begun = 0

    def step(self, state, action):
        self.begun += 1
        if self.begun == 1:
            assert self.second_is_in.wait(60)
        elif self.begun == 2:
            self.second_is_in.set()
            assert self.first_is_over.wait(60)
        return super().step(state, action)


def test_two_threads_that_trace_one_environment_do_not_disturb_each_other():
    env = Meeting()
    adapter, state = adapter_for(env), jax.eval_shape(env.reset, jax.random.key(0))
    found: dict[int, Any] = {}

    def trace(number: int) -> None:
        def step(state, action):
            state, found[number] = adapter.step(env, state, action)
            return state

        jax.make_jaxpr(step)(state, jnp.zeros(1))
        env.first_is_over.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(trace, 1)
        while not env.begun:
            pass
        pool.submit(trace, 2).result(60)
        first.result(60)
    assert "pipeline_step" not in vars(env), "one is left behind for good"
    assert found[1] is not None and found[2] is not None, "each sees its own control"
    assert found[1] is not found[2]


class Stepper:
    def step(self, x: int) -> int:
        return x + 1


def test_a_replacement_can_call_the_original_and_is_gone_after_an_error():
    one, other = Stepper(), Stepper()

    def twice(x: int) -> int:
        return 2 * one.step(x)

    with pytest.raises(ZeroDivisionError), shadowed(one, "step", twice):
        assert one.step(1) == 4 and other.step(1) == 2
        with shadowed(one, "step", lambda x: 10 * one.step(x)):
            assert one.step(1) == 40
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(one.step, 1).result() == 2, "another thread sees it"
        assert one.step(1) == 4
        _ = 1 / 0
    assert one.step(1) == 2 and not vars(one)
    one.step = lambda x: x - 1  # an attribute of the instance
    own = one.step
    with shadowed(one, "step", twice):
        assert one.step(3) == 4
    assert one.step is own
