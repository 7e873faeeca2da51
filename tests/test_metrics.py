"""Curves of a training's numbers stay bounded, evenly spread, and true."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.host.metrics import MOST_CURVES, MOST_POINTS, Metrics, smoothed
from brax_viser.host.progress import Progress


def test_values_come_back_in_order_with_their_steps_and_seconds():
    metrics = Metrics()
    metrics.add(10, {"a": 1}, now=100.0)
    metrics.add(20, {"a": 2.5, "b": np.float32(3)}, now=101.5)
    curve = metrics.curve("a")
    assert curve is not None
    assert curve.steps.tolist() == [10, 20]
    assert curve.seconds.tolist() == [0, 1.5]
    assert curve.values.tolist() == [1, 2.5]
    assert metrics.names() == ("a", "b")
    assert metrics.curve("c") is None


@given(st.integers(1, 5 * MOST_POINTS))
def test_a_long_curve_is_bounded_even_and_keeps_its_mean(count):
    metrics = Metrics()
    for i in range(count):
        metrics.add(i, {"a": i}, now=float(i))
    curve = metrics.curve("a")
    assert curve is not None
    assert 0 < len(curve.steps) <= MOST_POINTS
    np.testing.assert_allclose(curve.values, curve.steps)
    gaps = np.diff(curve.steps)
    assert (gaps > 0).all()
    assert len(gaps) < 3 or gaps[:-1].max() == gaps[:-1].min()  # the newest point may be partial
    assert curve.steps[-1] > count - 1 - max(gaps.max(initial=0), 1)


@pytest.mark.parametrize("value", ["text", None, [1, 2], {"a": 1}, object(), np.zeros((2, 2))])
def test_values_that_are_not_numbers_are_left_out(value):
    metrics = Metrics()
    metrics.add(1, {"odd": value, "good": np.ones((1,))}, now=0.0)
    assert metrics.names() == ("good",)


def test_nan_and_inf_are_kept_as_gaps():
    metrics = Metrics()
    for value in (1.0, np.nan, np.inf, 3.0):
        metrics.add(1, {"a": value}, now=0.0)
    curve = metrics.curve("a")
    assert curve is not None
    np.testing.assert_array_equal(curve.values, [1, np.nan, np.nan, 3])


def test_the_number_of_curves_is_bounded():
    metrics = Metrics()
    for i in range(2 * MOST_CURVES):
        metrics.add(i, {f"name {i}": i}, now=0.0)
    assert len(metrics.names()) == MOST_CURVES


def test_smoothing_keeps_constants_and_gaps_and_weighs_early_values_fully():
    np.testing.assert_allclose(smoothed(np.full(9, 4.0), 0.9), 4.0)
    np.testing.assert_array_equal(smoothed(np.array([1, np.nan, 1]), 0.5), [1, np.nan, 1])
    np.testing.assert_array_equal(smoothed(np.array([1.0, 5.0, 2.0]), 0), [1, 5, 2])
    assert smoothed(np.array([0.0, 1.0]), 0.9)[1] == pytest.approx(0.1 / 0.19)


def test_a_number_that_waits_for_the_device_keeps_no_call_of_the_device_waiting():
    progress, stepped = Progress(), threading.Event()

    class OnDevice:
        """A value that the device has once another step is taken."""

        def __array__(self, *_: object, **__: object) -> np.ndarray:
            assert stepped.wait(20), "the device's call waits for the report"
            return np.array(4.0)

    def step() -> None:
        progress.stepped("train", 64, now=1.0)
        stepped.set()

    call = threading.Timer(0.2, step)
    call.start()
    progress.reported(128, {"eval/episode_reward": OnDevice()}, now=0.0)
    call.join()
    rewards = progress.view(2.0).rewards
    assert rewards is not None and (rewards.newest, rewards.num_steps) == (4.0, 128)


def test_curves_can_be_replaced_by_others_as_they_were_read():
    metrics = Metrics()
    metrics.add(0, {"gone": 1.0, "reward": 2.0}, 0.0)
    points = np.array([[0.0, 100.0], [0.0, 3.0], [5.0, 7.0]])
    before = metrics.version
    metrics.replace({"reward": points})
    assert metrics.names() == ("reward",) and metrics.version > before
    curve = metrics.curve("reward")
    assert curve is not None
    np.testing.assert_array_equal([curve.steps, curve.seconds, curve.values], points)
