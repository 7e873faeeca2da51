"""The two ways to call the host: which one is chosen, and what only the direct one supports."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brax_viser.device import host_call
from brax_viser.device.host_call import call_host, mechanism
from brax_viser.records.protocol import FRESH
from tests.test_emit import RecordingHost, run, step


@pytest.fixture
def direct(monkeypatch):
    monkeypatch.setenv(host_call.VARIABLE, "direct")


@pytest.fixture
def unforced(monkeypatch):
    monkeypatch.delenv(host_call.VARIABLE, raising=False)
    host_call._best_known.cache_clear()
    yield monkeypatch
    host_call._best_known.cache_clear()


def test_direct_calls_are_used_with_the_installed_jax(unforced):
    assert mechanism() == "direct"


def test_an_unknown_jax_falls_back_with_one_log_line(unforced, caplog):
    unforced.setattr(jax, "__version__", "0.42.0")
    with caplog.at_level(logging.WARNING, "brax_viser"):
        assert [mechanism() for _ in range(3)] == ["io_callback"] * 3
    assert [r.getMessage() for r in caplog.records] == [
        "calling the host by io_callback, which costs more: jax 0.42.0 has not been tested with "
        "direct calls"
    ]


def test_a_jax_without_the_private_name_falls_back(unforced, caplog):
    import jax._src.callback

    unforced.delattr(jax._src.callback, "_callback_op_sharding")
    with caplog.at_level(logging.WARNING, "brax_viser"):
        assert mechanism() == "io_callback"
    assert "_callback_op_sharding" in caplog.text


@pytest.mark.parametrize("name", host_call.MECHANISMS)
def test_the_environment_variable_forces_either_mechanism(monkeypatch, name):
    monkeypatch.setenv(host_call.VARIABLE, name)
    assert mechanism() == name


def test_an_unknown_mechanism_is_refused(monkeypatch):
    monkeypatch.setenv(host_call.VARIABLE, "carrier pigeon")
    with pytest.raises(ValueError, match="BRAX_VISER_CALLBACK='carrier pigeon'"):
        mechanism()


@pytest.mark.parametrize("name", host_call.MECHANISMS)
@pytest.mark.parametrize("kept_alive", [True, False])
def test_the_hosts_answer_is_returned(monkeypatch, name, kept_alive):
    monkeypatch.setenv(host_call.VARIABLE, name)
    seen = []

    def double(x):
        seen.append(type(x))
        return 2 * np.asarray(x)

    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    call = partial(call_host, double, shape, kept_alive=kept_alive)
    for function in (call, jax.jit(call)):
        np.testing.assert_array_equal(run(function, jnp.arange(3.0)), [0.0, 2.0, 4.0])
    if name == "direct":
        assert set(seen) == {np.ndarray}


def test_direct_calls_work_in_a_checkpointed_step(direct):
    host = RecordingHost(push=True)

    def loss(x, countdown):
        y, _ = jax.checkpoint(jax.vmap(partial(step, host)))(x, countdown)
        return jnp.sum(y**2)

    gradient = run(jax.jit(jax.grad(loss)), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    np.testing.assert_allclose(gradient, 8.0)
    assert host.pushed


def test_direct_calls_work_in_a_loop_with_a_batched_predicate(direct):
    host = RecordingHost(push=True)

    def until(x, countdown):
        return jax.lax.while_loop(lambda c: c[0][0] < 9.0, lambda c: step(host, *c), (x, countdown))

    run(jax.jit(jax.vmap(until)), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    assert len(host.pushed) == 4
