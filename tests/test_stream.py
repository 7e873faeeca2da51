"""Pacing and selection, with a clock of the test's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brax_viser.emit import FRESH
from brax_viser.stream import (
    FOREVER,
    Control,
    CostMeter,
    Pacer,
    Rate,
    Selection,
)

RATES = st.floats(0.2, 100_000.0)  # batched steps per second


class Device:
    """A training that takes steps at a given rate and asks when its countdown says so."""

    def __init__(self, rate: float, call_cost: float = 0.0):
        self.pacer, self.rate, self.call_cost = Pacer(), rate, call_cost
        self.now, self.spent, self.steps = 1000.0, 0.0, 0
        self.left = FRESH
        self.asks: list[float] = []
        self.pushes: list[float] = []

    def run(self, seconds: float, control: Control) -> None:
        end = self.now + seconds
        while self.now < end:
            passed = max(self.left, 0)
            self.now += (passed + 1) / self.rate
            self.steps += passed + 1
            answer = self.pacer.ask(self.now, min(self.left, 0), control, self.spent)
            self.asks.append(self.now)
            self.spent += self.call_cost
            if answer.push:
                self.pushes.append(self.now)
                self.spent += self.call_cost
            self.now += self.call_cost * (1 + answer.push)
            self.left = answer.skip


WATCHED = Control(watched=True)


@given(rate=RATES, seconds=st.floats(1.0, 20.0))
@settings(deadline=None, max_examples=60)
def test_known_steps_are_the_steps_taken(rate, seconds):
    device = Device(rate)
    device.run(seconds, WATCHED)
    assert device.pacer.env_steps == device.steps


@given(rate=RATES)
@settings(deadline=None, max_examples=60)
def test_an_idle_stream_notices_a_switch_within_a_fifth_of_a_second(rate):
    device = Device(rate)
    device.run(5.0 + 3 / rate, Control(watched=True, streaming=False))
    assert not device.pushes
    gaps = np.diff(device.asks)
    # Slower than five steps a second nothing can be noticed sooner than the next step.
    assert gaps.max() <= max(0.2, 1.5 / rate)
    # And it does not ask much more often than it must.
    assert len(device.asks) <= 5.0 / 0.05 + 40


@given(rate=RATES, burst=st.integers(1, 200), pause=st.floats(0.0, 2.0))
@settings(deadline=None, max_examples=60)
def test_pauses_between_rollouts_do_not_make_it_deaf(rate, burst, pause):
    """PPO steps in bursts. What is skipped may span at most one pause more than 0.2 s."""
    pacer, now, control = Pacer(), 0.0, Control(watched=True, streaming=False)
    left, last_ask, worst = FRESH, None, 0.0
    for step in range(6000):
        now += 1 / rate + (pause if step % burst == 0 else 0.0)
        if left > 0:
            left -= 1
            continue
        if last_ask is not None and step > 3000:
            worst = max(worst, now - last_ask)
        last_ask = now
        left = pacer.ask(now, FRESH if step == 0 else 0, control, 0.0).skip
        if now > 200:
            break
    assert worst <= 0.2 + 2 * (pause + 1 / rate)


@given(rate=st.floats(200.0, 100_000.0), fps=st.floats(1.0, 60.0))
@settings(deadline=None, max_examples=60)
def test_latest_keeps_its_frame_rate(rate, fps):
    device = Device(rate)
    device.run(3.0, Control(watched=True, fps=fps))  # warm-up
    device.pushes.clear()
    device.run(10.0, Control(watched=True, fps=fps))
    # A fence has one post more than panels, and the last step may end beyond the ten seconds.
    assert 0.8 * fps * 10 - 1 <= len(device.pushes) <= fps * 10 + 2


@given(
    rate=st.floats(20.0, 100_000.0),
    cost=st.floats(1e-5, 2e-2),
    budget=st.floats(0.005, 0.5),
)
@settings(deadline=None, max_examples=60)
def test_latest_stays_within_its_budget(rate, cost, budget):
    control = Control(watched=True, max_overhead=budget)
    device = Device(rate, cost)
    device.run(5.0, control)
    before, start = device.spent, device.now
    device.run(20.0, control)
    # The asking between frames is spread by the reaction time, and is all that can exceed it.
    floor = cost / 0.1
    assert (device.spent - before) / (device.now - start) <= 1.3 * budget + 1.3 * floor
    assert device.pushes


@given(rate=RATES)
@settings(deadline=None, max_examples=30)
def test_every_step_skips_nothing(rate):
    device = Device(rate)
    device.run(min(3.0, 2000 / rate), Control(watched=True, mode="every_step"))
    assert len(device.pushes) == device.steps


@pytest.mark.parametrize("jump", [3600.0, -5.0], ids=["suspended", "stepped back"])
def test_a_clock_that_jumps_stalls_nothing(jump):
    device = Device(1000.0)
    device.run(3.0, WATCHED)
    device.now += jump
    device.pushes.clear()
    device.run(10.0, WATCHED)
    assert len(device.pushes) > 100


def test_a_rate_that_drops_is_followed():
    device = Device(50_000.0)
    off = Control(watched=True, streaming=False)
    device.run(5.0, off)
    device.rate = 50.0
    before = len(device.asks)
    device.run(120.0, off)  # the first gap is what was granted at the old rate
    assert np.diff(device.asks[before + 40 :]).max() <= 0.2


def test_nothing_is_sent_while_nobody_looks_and_never_again_once_closed():
    device = Device(1000.0)
    device.run(2.0, Control(watched=False))
    assert not device.pushes
    answer = device.pacer.ask(device.now, 0, Control(watched=True, closed=True), 0.0)
    assert answer == (False, FOREVER)


def test_a_reset_counts_one_step_and_not_what_was_granted():
    pacer = Pacer()
    pacer.ask(0.0, FRESH, WATCHED, 0.0)
    pacer._grant(False, 50)
    pacer.ask(1.0, FRESH, WATCHED, 0.0)
    assert pacer.env_steps == 2


def test_rate_weighs_recent_events_most():
    rate = Rate(seconds=1.0)
    for _ in range(100):
        rate.add(0.1, 10)
    assert rate.value == pytest.approx(100.0)
    for _ in range(30):
        rate.add(0.1, 1)
    assert 10.0 <= rate.value < 16.0


def test_cost_is_a_share_of_the_last_seconds():
    meter = CostMeter()
    for tick in range(200):
        start = tick * 0.1
        meter.asked(start, start + 1e-4)
        meter.pushed(start + 1e-4, start + 3e-4, start + 1e-3, nbytes=1000)
    crossing = meter.crossing  # what it has found a call into Python to cost: 0.2 ms here
    assert crossing == pytest.approx(2e-4, rel=0.01)
    assert meter.share(19.9) == pytest.approx((1e-3 + crossing) / 0.1, rel=0.05)
    assert meter.bytes_per_second(19.9) == pytest.approx(10_000, rel=0.05)
    assert meter.frames_per_second(19.9) == pytest.approx(10, rel=0.05)
    assert meter.share(1000.0) == 0.0


def test_selection_is_the_first_ones_or_the_given_ones():
    assert Selection.of("first").drawn(256, 64).tolist() == list(range(64))
    assert Selection.of("first").drawn(8, 64).tolist() == list(range(8))
    assert Selection.of([5, 2, 900]).drawn(256, 64).tolist() == [5, 2]
    assert Selection.of(np.array([7, 3, 1])).drawn(256, 2).tolist() == [7, 3]


@pytest.mark.parametrize("what", ["last", 3, [], [1, 1], [-1]])
def test_a_bad_selection_is_refused(what):
    with pytest.raises(ValueError, match="select"):
        Selection.of(what)
