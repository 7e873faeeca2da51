"""Tests pacing and its cost, with a clock that the test sets."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from brax_viser.host.budget import SENDING_SHARE, Budget, CostMeter, Rate
from brax_viser.host.control import Control
from brax_viser.host.modes import FAST, SLOW, Moment, Realtime
from brax_viser.host.pacing import Pacer
from brax_viser.host.state import SharedState
from brax_viser.page.playback import Player
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import FOREVER, FRESH, NEVER
from brax_viser.records.view import View

RATES = st.floats(0.2, 100_000.0)  # batched steps per second
DT = 0.05  # s of robot time per step


class Device:
    """A training that takes steps at a given rate and asks when its countdown says so."""

    def __init__(self, rate: float, call_cost: float = 0.0, shards: int = 1, dt: float = DT):
        self.pacer, self.rate, self.call_cost = Pacer(dt), rate, call_cost
        self.now, self.spent, self.polling, self.steps = 1000.0, 0.0, 0.0, 0
        self.left = [FRESH] * shards
        self.player, self.played = Player(dt), 0
        self.asks: list[float] = []
        self.pushes: list[float] = []
        self.sent: list[list[int]] = [[] for _ in range(shards)]  # steps, by shard
        self.worst_debt = -math.inf  # s by which the budget was exceeded
        self.began, self.allowed = self.now, 0.0

    def step(self, control: Control, *, active: bool = True, steps: int = 1) -> None:
        """Takes `steps` steps, of which only the last can be due."""
        self.now += steps / self.rate
        self.allowed += steps / self.rate * control.max_overhead
        self.steps += steps
        for shard, left in enumerate(self.left):
            self.left[shard] = left - steps
            if left >= steps:
                continue
            countdown = FRESH if left == FRESH else 0
            answer = self.pacer.ask(
                self.now,
                countdown,
                control,
                self.spent,
                active=active,
                shard=shard,
                polling=self.polling,
            )
            cost = self.call_cost * (1 + answer.push)
            self.spent += cost
            self.polling += 0.0 if answer.push else cost
            self.now += cost
            self.allowed += cost * control.max_overhead
            self.worst_debt = max(self.worst_debt, self.spent - self.allowed)
            self.left[shard] = answer.skip
            if shard == 0:
                self.asks.append(self.now)
                self.pushes += [self.now] * answer.push
            if answer.push:
                self.sent[shard].append(self.steps)

    def run(self, seconds: float, control: Control, *, active: bool = True) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step(control, active=active, steps=max(min(self.left), 0) + 1)


REALTIME = Control(watched=True)
LATEST = Control(watched=True, mode="latest")


def stretches(steps: list[int]) -> list[list[int]]:
    """Splits step numbers into runs of consecutive ones."""
    breaks = np.flatnonzero(np.diff(steps) != 1) + 1
    return [list(run) for run in np.split(np.array(steps), breaks)]


def frame(step: int) -> Frame:
    """Returns a frame of one env that never resets."""
    one = np.array([0.0])
    return Frame(
        role="train",
        env_steps=step,
        env_index=np.array([0]),
        num_envs=1,
        link_pos=np.full((1, 1, 3), float(step), np.float32),
        link_rot=np.array([[[1.0, 0.0, 0.0, 0.0]]], np.float32),
        reward=one,
        episode_return=one,
        episode_length=np.array([step]),
        since_termination=np.array([NEVER]),
        finite=np.array([True]),
    )


def play(device: Device, control: Control, seconds: float) -> list[tuple[float, View]]:
    """Runs the device and plays its steps 30 times a second; returns pairs (time in s, view)."""
    end, shown, now = device.now + seconds, [], device.now
    pacer, player = device.pacer, device.player
    while device.now < end:
        device.run(1 / 30, control)
        # The page also looks while the training stands still for an update.
        while now < device.now:
            now = min(now + 1 / 30, device.now)
            while device.played < len(device.sent[0]) and device.pushes[device.played] <= now:
                player.add(frame(device.sent[0][device.played]), now)
                device.played += 1
            if control.mode == "realtime":
                view = player.play(
                    now, control.speed, sending=pacer.sending, following=pacer.following
                )
                pacer.stretch_due = player.due
            else:
                view = player.newest(now)
            if view is not None:
                shown.append((now, view))
    return shown


@given(rate=RATES, seconds=st.floats(1.0, 20.0))
@settings(deadline=None, max_examples=30)
def test_the_known_steps_are_the_steps_taken(rate, seconds):
    device = Device(rate)
    device.run(seconds, LATEST)
    assert device.pacer.steps.env_steps == device.steps


@given(rate=RATES)
@settings(deadline=None, max_examples=30)
def test_an_idle_stream_notices_a_switch_within_a_fifth_of_a_second(rate):
    device = Device(rate)
    device.run(5.0 + 3 / rate, LATEST, active=False)
    assert not device.pushes
    gaps = np.diff(device.asks)
    # Below five steps a second, the next step is the first chance to notice.
    assert gaps.max() <= max(0.2, 1.5 / rate)
    # Nor does it ask much more often than it must.
    assert len(device.asks) <= 5.0 / 0.05 + 40
    # Once switched on, it sends with the very next call, whatever the budget says.
    before = device.now
    device.run(0.25 + 1.5 / rate, REALTIME)
    assert device.pushes[0] - before <= max(0.2, 1.5 / rate)


@given(rate=RATES, mode=st.sampled_from(["realtime", "latest"]), cost=st.floats(1e-6, 1e-3))
@settings(deadline=None, max_examples=15)
def test_it_asks_every_fifth_of_a_second_between_stretches_and_frames(rate, mode, cost):
    device = Device(rate, cost)
    control = Control(watched=True, mode=mode)
    play(device, control, 8.0 + 3 / rate)
    gaps = np.diff(device.asks)
    assert gaps.max() <= max(0.2, 1.5 / rate) + 2 * cost


@given(rate=RATES, stretch=st.integers(1, 200), pause=st.floats(0.0, 2.0))
@settings(deadline=None, max_examples=30)
def test_pauses_between_rollouts_do_not_stop_it_from_asking(rate, stretch, pause):
    """PPO's steps come in bursts. A skip may exceed 0.2 s by two steps and two pauses."""
    pacer, now = Pacer(DT), 0.0
    left, last_ask, worst = FRESH, None, 0.0
    for step in range(6000):
        now += 1 / rate + (pause if step % stretch == 0 else 0.0)
        if left > 0:
            left -= 1
            continue
        if last_ask is not None and step > 3000:
            worst = max(worst, now - last_ask)
        last_ask = now
        left = pacer.ask(now, FRESH if step == 0 else 0, LATEST, 0.0, active=False).skip
        if now > 200:
            break
    assert worst <= 0.2 + 2 * (pause + 1 / rate)


@given(rate=st.floats(200.0, 100_000.0), fps=st.floats(1.0, 60.0))
@settings(deadline=None, max_examples=30)
def test_latest_mode_keeps_its_frame_rate(rate, fps):
    device = Device(rate)
    control = Control(watched=True, mode="latest", fps=fps)
    device.run(3.0, control)  # warm-up
    device.pushes.clear()
    device.run(10.0, control)
    # Ten seconds of frames have one more at the start, and the last step may end beyond them.
    assert 0.8 * fps * 10 - 1 <= len(device.pushes) <= fps * 10 + 2


@given(
    rate=RATES,
    cost=st.floats(1e-6, 5e-3),
    budget=st.floats(0.005, 0.5),
    mode=st.sampled_from(["realtime", "latest"]),
    dt=st.floats(0.005, 0.1),
    twins=st.sampled_from([0, 16]),
)
@settings(deadline=None, max_examples=25)
def test_the_budget_is_exceeded_by_five_calls_at_most(rate, cost, budget, mode, dt, twins):
    # Noticing the switch in time takes this much asking: a smaller budget cannot be kept.
    assume(cost / 0.05 < (1 - SENDING_SHARE) * budget)
    device = Device(rate, cost, dt=dt)
    control = Control(watched=True, mode=mode, max_overhead=budget, twins=twins)
    # While the rate is unknown, it must ask more often than later. Budget that is left by then may
    # be spent later, up to a limit.
    device.run(3.0 + 3 / rate, control, active=False)
    saved = device.pacer._budget.credit
    assert saved <= max(budget, 1.27 * max(3.0 / dt, 2) * max(2 * cost, 150e-6))
    device.allowed = device.spent + max(saved, 0.0)
    device.worst_debt = -math.inf
    play(device, control, 20.0)
    # A step that is sent takes two calls, and the next one finds that it was one too many; an ask
    # in vain may not have been paid for yet, either.
    assert device.worst_debt <= 5 * cost


@given(
    rate=st.floats(20.0, 100_000.0),
    cost=st.floats(1e-6, 5e-3),
    budget=st.floats(0.005, 0.5),
    mode=st.sampled_from(["realtime", "latest"]),
    twins=st.sampled_from([0, 16]),
)
@settings(deadline=None, max_examples=12)
def test_sending_never_starves(rate, cost, budget, mode, twins):
    assume(cost / 0.05 < 0.5 * budget)
    device = Device(rate, cost)
    control = Control(watched=True, mode=mode, max_overhead=budget, twins=twins)
    play(device, control, 5.0)
    # The cost of one stretch, saved up besides that of asking; and a stretch lasts three seconds.
    stretch = 2 * cost * 60 if mode == "realtime" else 2 * cost
    patience = 2.0 + 1.3 * stretch / (budget - cost / 0.05) + (3.0 if mode == "realtime" else 0.0)
    times = [device.now]
    count = len(device.pushes)
    play(device, control, 6 * patience)
    times += device.pushes[count:]
    times.append(device.now)
    assert np.diff(times).max() <= patience


@given(
    rate=st.floats(60.0, 100_000.0),
    seconds=st.floats(0.5, 5.0),
    speed=st.floats(0.1, 1.9),
)
@settings(deadline=None, max_examples=8)
def test_stretches_are_complete_and_consecutive_and_follow_one_another(rate, seconds, speed):
    device = Device(rate, call_cost=1e-6)
    control = Control(watched=True, stretch_seconds=seconds, speed=speed)
    device.run(3.0, control, active=False)
    play(device, control, 6 * seconds / speed + 3.0)
    runs = stretches(device.sent[0])
    # The first is as long as could be afforded; the last may still be under way.
    whole = runs[1:-1]
    assert len(whole) >= 3
    assert {len(run) for run in whole} == {max(round(seconds / DT), 2)}


@given(rate=st.floats(0.2, 20.0), twins=st.sampled_from([0, 16]))
@settings(deadline=None, max_examples=15)
def test_a_training_slower_than_the_robot_shows_every_step(rate, twins):
    device = Device(rate, call_cost=1e-5)
    device.run(30.0 + 10 / rate, replace(REALTIME, twins=twins))
    assert device.pacer.following
    assert len(device.pushes) == device.steps


@given(rate=st.floats(15.0, 20.0), dear=st.floats(1.3, 1.9))
@settings(deadline=None, max_examples=4)
def test_when_not_every_step_can_be_paid_for_twins_get_long_consecutive_runs(rate, dear):
    """A twin restarts after each gap: from every other step it would learn nothing."""
    cost = dear * REALTIME.max_overhead / rate / 2  # an ask and a push per step: `dear` budgets
    sent = {}
    for twins in (0, 16):
        device = Device(rate, call_cost=cost)
        play(device, replace(REALTIME, twins=twins, stretch_seconds=1.0), 120.0)
        assert device.pacer.following
        sent[twins] = stretches(device.sent[0])
    lengths = {twins: [len(run) for run in runs[3:-1]] for twins, runs in sent.items()}
    assert np.median(lengths[16]) >= 0.9 / DT and min(lengths[16]) >= 0.5 / DT
    assert np.median(lengths[0]) < 0.3 / DT
    counts = {twins: sum(map(len, runs)) for twins, runs in sent.items()}
    assert counts[16] > 0.8 * counts[0]


def test_a_training_that_speeds_up_changes_over_to_stretches_and_back():
    device = Device(10.0)
    device.run(20.0, REALTIME)
    assert device.pacer.following
    device.rate = 1000.0
    device.run(60.0, REALTIME)
    assert not device.pacer.following
    device.rate = 10.0
    device.run(60.0, REALTIME)
    assert device.pacer.following


@pytest.mark.parametrize("mode", ["realtime", "latest", "every_step"])
@given(
    rate=st.floats(5.0, 5_000.0),
    shards=st.integers(2, 5),
    resets=st.lists(st.floats(0.1, 3.0), max_size=3),
)
@settings(deadline=None, max_examples=4)
def test_all_devices_send_the_same_steps(mode, rate, shards, resets):
    device = Device(rate, shards=shards)
    control = Control(watched=True, mode=mode, stretch_seconds=1.0)
    for seconds in [*resets, 1.0]:
        play(device, control, seconds)
        # A reset reaches all shards at the same step, wherever their countdowns are.
        device.left = [FRESH] * shards
    play(device, control, 4.0)
    device.run(0.3, control, active=False)
    assert device.sent[0]
    for sent in device.sent[1:]:
        # Steps granted to one shard and cut off by a reset are missing there.
        assert sent == device.sent[0] or len(set(sent) ^ set(device.sent[0])) <= len(resets) + 1
    assert len({own.env_steps + own.skip for own in device.pacer.steps.of.values()}) <= 2


@given(rate=RATES)
@settings(deadline=None, max_examples=15)
def test_every_step_mode_skips_nothing(rate):
    device = Device(rate)
    device.run(min(3.0, 2000 / rate), Control(watched=True, mode="every_step"))
    assert len(device.pushes) == device.steps


@given(rate=st.floats(200.0, 100_000.0), mode=st.sampled_from(["realtime", "latest"]))
@settings(deadline=None, max_examples=8)
def test_sending_every_step_ends_with_that_mode(rate, mode):
    device = Device(rate)
    device.run(500 / rate, Control(watched=True, mode="every_step"))
    count = len(device.pushes)
    before = device.steps
    play(device, Control(watched=True, mode=mode), 12.0)
    assert len(device.pushes) - count < 0.3 * (device.steps - before) + 65


@pytest.mark.parametrize("mode", ["realtime", "latest"])
@pytest.mark.parametrize("jump", [3600.0, -5.0, -3600.0], ids=["suspended", "back", "far back"])
def test_a_clock_that_jumps_stalls_nothing(jump, mode):
    device = Device(1000.0, call_cost=1e-4)
    control = Control(watched=True, mode=mode)
    play(device, control, 3.0)
    device.now += jump
    count = len(device.pushes)
    play(device, control, 10.0)
    assert len(device.pushes) - count > 100
    # An hour of suspension does not earn an hour's budget.
    assert len(device.pushes) - count < 10 * (60 if mode == "realtime" else 31)


def test_a_changed_budget_is_kept_from_then_on():
    device = Device(1000.0, call_cost=5e-4)
    for budget in (0.01, 0.1, 0.02):
        control = Control(watched=True, max_overhead=budget)
        play(device, control, 20.0)
        before, start = device.spent, device.now
        play(device, control, 60.0)
        share = (device.spent - before) / (device.now - start)
        assert 0.7 * min(budget, 0.02) <= share <= budget + 0.06 / 60


def test_a_drop_of_the_rate_is_followed():
    device = Device(50_000.0)
    device.run(5.0, LATEST, active=False)
    device.rate = 50.0
    before = len(device.asks)
    device.run(120.0, LATEST, active=False)  # the first gap was granted at the old rate
    assert np.diff(device.asks[before + 40 :]).max() <= 0.2


def test_nothing_is_sent_without_a_page_and_never_again_once_closed():
    assert not Control(watched=False).wants("train")
    assert not Control(watched=True, streaming=False).wants("train")
    assert Control(watched=True).wants("train") and not Control(watched=True).wants("eval")
    assert Control(watched=True, show="both").wants("eval")
    device = Device(1000.0)
    device.run(2.0, LATEST, active=False)
    assert not device.pushes
    closed = Control(watched=True, closed=True)
    answer = device.pacer.ask(device.now, 0, closed, 0.0, active=True)
    assert (answer.push, answer.skip) == (False, FOREVER)


def test_a_reset_counts_one_step_and_not_the_granted_ones():
    pacer = Pacer(DT)
    pacer.ask(0.0, FRESH, LATEST, 0.0, active=False)
    pacer.steps.of[0].skip = 50
    pacer.ask(1.0, FRESH, LATEST, 0.0, active=False)
    assert pacer.steps.env_steps == 2


def test_steps_continued_without_asking_count_like_those_asked_about():
    every, rate = Control(watched=True, mode="every_step"), 500.0
    asked, going_on = Pacer(DT), Pacer(DT)
    left = FRESH
    for step in range(2000):
        now = step / rate
        answer = asked.ask(now, left, every, 0.0, active=True)
        assert answer.push and asked.is_next(0)
        # Asks every tenth of a second, and continues without asking in between.
        if step % 50 == 0:
            going_on.ask(now, left, every, 0.0, active=True)
        else:
            assert going_on.go_on(0)
        left = 0
        assert going_on.steps.env_steps == asked.steps.env_steps == step + 1
    assert going_on.rate == pytest.approx(rate, rel=0.06)
    assert going_on.rate == pytest.approx(asked.rate, rel=0.06)


def test_a_stretch_continues_up_to_its_last_step_but_one():
    """The last step is left to `ask`, which says what comes after."""
    pacer = Pacer(DT)
    control = Control(watched=True, stretch_seconds=10 * DT, max_overhead=1.0)
    pacer.ask(0.0, FRESH, control, 0.0, active=True)  # its rate is not known yet: step by step
    for step in range(1, 2000):
        pacer.ask(step * 1e-3, 0, control, 0.0, active=True)
        if not pacer.following and pacer.is_next(0):
            break
    gone_on = 0
    while pacer.go_on(0):
        gone_on += 1
    assert gone_on == 8 and pacer.is_next(0)
    answer = pacer.ask(3.0, 0, control, 0.0, active=True)
    assert answer.push and not pacer.is_next(0) and not pacer.go_on(0)
    pacer.steps.of[0].skip = 5  # some steps are skipped
    assert not pacer.go_on(0)
    pacer.restart()
    assert not pacer.go_on(0)


def test_a_changed_selection_is_shown_before_the_stretch_is_over():
    device = Device(1000.0, call_cost=1e-4)
    play(device, REALTIME, 10.0)
    count, before = len(device.pushes), device.now
    device.pacer.stretch_due = math.inf
    device.pacer.restart()
    device.run(0.2, REALTIME)
    assert len(device.pushes) > count
    assert device.pushes[count] - before < 0.2


def test_a_device_that_finds_no_env_to_draw_does_not_ask_at_every_step():
    device = Device(1000.0)
    asks = 0
    for _ in range(200):
        device.run(0.01, REALTIME)
        if len(device.pushes) > asks:
            asks = len(device.pushes)
            device.pacer.abandon(device.now, 0.5)
    assert 2 <= len(device.pushes) < 30


def test_rate_weighs_recent_events_most():
    rate = Rate(seconds=1.0)
    for _ in range(100):
        rate.add(0.1, 10)
    assert rate.value == pytest.approx(100.0)
    for _ in range(30):
        rate.add(0.1, 1)
    assert 10.0 <= rate.value < 16.0


@given(rate=st.floats(60.0, 10_000.0), mode=st.sampled_from(["realtime", "latest"]))
@settings(deadline=None, max_examples=3)
def test_sending_goes_on_even_if_asking_alone_costs_more_than_the_budget(rate, mode):
    """On a busy processor, calls can take milliseconds."""
    device = Device(rate, call_cost=5e-3)
    control = Control(watched=True, mode=mode, max_overhead=0.02)
    play(device, control, 30.0)
    count = len(device.pushes)
    play(device, control, 600.0)
    assert device.spent - device.began > 0.02 * 600 or len(device.asks) > 100
    assert len(device.pushes) - count >= 0.5 * SENDING_SHARE * 0.02 * 600 / 10e-3


@pytest.mark.parametrize("mode", ["realtime", "latest"])
def test_a_process_stopped_within_a_call_does_not_pay_for_it_for_ever(mode):
    device = Device(200.0, call_cost=100e-6)
    control = Control(watched=True, mode=mode)
    play(device, control, 10.0)
    device.spent, device.now = device.spent + 3600.0, device.now + 3600.0
    count = len(device.pushes)
    play(device, control, 30.0)
    assert len(device.pushes) > count + 60


def test_a_budget_is_saved_up_to_what_is_needed_at_once():
    budget = Budget()
    update = functools.partial(budget.update, polling=0.0, share=0.02)
    update(0.0, 5.0, at_once=0.0)  # earlier spending does not count
    assert budget.credit == 0.0
    update(0.5, 5.0, at_once=0.0)
    assert budget.credit == pytest.approx(0.01)
    update(100.0, 5.0, at_once=0.0)
    assert budget.credit == pytest.approx(0.02)
    update(200.0, 5.0, at_once=0.4)
    assert budget.credit == pytest.approx(0.5)
    update(200.0, 5.7, at_once=0.4)
    assert budget.credit == pytest.approx(-0.2)
    update(100.0, 5.7, at_once=0.4)  # a clock that is set back
    assert budget.credit == pytest.approx(-0.2)
    update(100.0, 55.7, at_once=0.4)
    assert budget.credit == pytest.approx(-0.4)  # limited to what is paid back within 20 s


def test_the_cost_of_another_rollout_leaves_no_debt():
    """Each rollout has its own budget, and all are charged with everything."""
    evaluation = Budget()
    evaluation.update(0.0, 0.0, 0.0, 0.02, 0.02)
    # A minute later, the training has spent a quarter of its allowance.
    evaluation.update(60.0, 0.3, 0.0, 0.02, 0.02)
    assert evaluation.credit > 0.0


def test_asking_is_paid_for_but_leaves_a_part_of_the_budget_for_sending():
    budget = Budget()
    budget.update(0.0, 0.0, 0.0, 0.02, 1.0)
    budget.update(1.0, 0.01, 0.01, 0.02, 1.0)
    assert budget.credit == pytest.approx(0.01)
    budget.update(2.0, 1.01, 1.01, 0.02, 1.0)  # asking has cost a whole second
    assert budget.credit == pytest.approx(0.01 + SENDING_SHARE * 0.02)
    budget.update(3.0, 1.01, 1.01, 0.02, 1.0)  # and is paid off gradually
    assert budget.credit == pytest.approx(0.01 + 2 * SENDING_SHARE * 0.02)
    for second in range(4, 104):
        budget.update(float(second), 1.01, 1.01, 0.02, 1.0)
    assert budget.credit > 1.0


def test_what_a_recording_costs_does_not_keep_the_page_waiting_and_stays_within_the_budget():
    shared = SharedState(Control(max_overhead=0.02))
    meter = shared.meter
    meter.asked(0.0, 0.1)
    assert meter.watching == meter.spent and shared.pacing == shared.control
    before = meter.watching
    meter.recording = True
    for start in range(1, 9):
        meter.asked(start, start + 0.01)
    assert meter.watching == before  # to the last bit: the cost of a step is read from it
    assert meter.recorded == pytest.approx(meter.spent - before)
    assert shared.pacing.max_overhead + shared.recording_share == pytest.approx(0.02)
    shared.set(max_overhead=0.001)
    assert shared.recording_share == shared.pacing.max_overhead == 0.0005
    shared.budget_parts = 2
    assert shared.pacing.max_overhead == 0.00025


@pytest.mark.parametrize("rate", [5.0, 200.0])
def test_the_page_is_sent_its_steps_after_a_recording_that_took_the_cost_of_all(rate):
    device = Device(rate, call_cost=1e-4)
    device.run(30.0, REALTIME)
    known = device.pacer._step_cost
    device.call_cost = 0.0  # on the recording's account
    device.run(2000 / rate + 30.0, REALTIME)
    assert device.pacer._step_cost == known
    device.call_cost, before = 1e-4, len(device.pushes)
    device.run(30.0, REALTIME)
    assert len(device.pushes) > before
    assert device.worst_debt < 0.1


def test_cost_is_a_share_of_the_last_seconds():
    meter = CostMeter()
    for tick in range(400):
        start = tick * 0.1
        meter.asked(start, start + 1e-4)
        meter.pushed(start + 1e-4, start + 3e-4, start + 1e-3, nbytes=1000)
        meter.pushed(start + 1e-3, start + 1.2e-3, start + 1.3e-3, nbytes=500, frame=False)
    crossing = meter.crossing  # the measured cost of a call into Python: 0.2 ms here
    assert crossing == pytest.approx(2e-4, rel=0.01)
    assert meter.polling == 0.0
    assert meter.reading().share(39.9) == pytest.approx((1.3e-3 + crossing) / 0.1, rel=0.05)
    assert meter.reading().bytes_per_second(39.9) == pytest.approx(15_000, rel=0.05)
    assert meter.reading().frames_per_second(39.9) == pytest.approx(10, rel=0.05)
    assert meter.reading().share(1000.0) == 0.0
    # A push without an ask is charged the measured cost of a call.
    spent, calls = meter.spent, meter.calls
    meter.pushed(None, 1500.0, 1500.001, nbytes=1)
    assert meter.spent - spent == pytest.approx(1e-3 + crossing)
    meter.went_on(1501.0, 5e-3, nbytes=700, frames=7)
    assert meter.spent - spent == pytest.approx(6e-3 + 8 * crossing)
    assert meter.calls - calls == 8 and meter.crossing == crossing
    meter.pushed(2000.0, 2000.5, 2000.6, nbytes=1)  # one that had to wait does not count
    assert meter.crossing == crossing
    meter.asked(2001.0, 2001.1, pushes=False)
    assert meter.polling == pytest.approx(0.1 + crossing)


def test_realtime_goes_over_to_single_steps_and_back_at_different_paces():
    mode = Realtime()

    def is_slow_at(pace: float) -> bool:
        mode.plan(Moment(0.0, Control(), Budget(), 1e-4, pace, dt=0.02, restarts=False))
        return mode.slow

    between = (SLOW + FAST) / 2
    paces = (FAST + 0.1, between, SLOW - 0.1, between, FAST + 0.1)
    assert [is_slow_at(pace) for pace in paces] == [False, False, True, True, False]
