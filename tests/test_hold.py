"""Holding and stepping, with threads in place of devices."""

import functools
import math
import threading

import pytest

from brax_viser.host.hold import Hold
from brax_viser.host.steps import ShardSteps
from tests.conftest import eventually


class Device:
    """A thread that takes steps and waits at each, as a callback does."""

    def __init__(self, hold: Hold, role: str = "train", shard: int = 0, limit: float = math.inf):
        self.hold, self.role, self.shard = hold, role, shard
        self.count = ShardSteps()
        self.pushes, self.error = 0, None
        self.limit = limit
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def steps(self) -> int:
        return self.count.env_steps

    def _run(self):
        try:
            while not self._stop and self.steps < self.limit:
                self.count.env_steps += 1
                again = True
                while again:
                    self.pushes += 1
                    refreshed = self.hold.refreshes
                    again = self.hold.wait(
                        self.role, self.shard, self.count, refreshed, sharded=True
                    )
        except KeyboardInterrupt as error:
            self.error = error

    def stop(self):
        self._stop = True
        self.hold.resume()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


@pytest.fixture
def hold():
    hold = Hold()
    yield hold
    hold.close()


def held_at(hold, device):
    eventually(lambda: hold.held and device.hold._parts[device.role, device.shard].blocked, "held")
    return device.steps


def test_a_held_training_stands_still_and_advances_by_steps(hold):
    hold.pause()
    device = Device(hold)
    assert held_at(hold, device) == 1
    hold.step()
    eventually(lambda: device.steps == 2 and hold.held, "one step further")
    hold.step(10)
    eventually(lambda: device.steps == 12 and hold.held, "ten steps further")
    assert hold.paused
    hold.resume()
    assert not hold.held and not hold.paused
    eventually(lambda: device.steps > 1000, "it runs")
    hold.step()  # holds a running training
    before = held_at(hold, device)
    hold.step()
    eventually(lambda: device.steps == before + 1 and hold.held, "one step")
    device.stop()


def test_all_devices_stop_at_the_same_step(hold):
    devices = [Device(hold, shard=i) for i in range(4)]
    eventually(lambda: min(d.steps for d in devices) > 100, "all run")
    hold.pause()
    eventually(lambda: all(hold._parts["train", d.shard].blocked for d in devices), "all wait")
    furthest = max(d.steps for d in devices)
    eventually(lambda: {d.steps for d in devices} == {furthest} and hold.held, "at the furthest")
    hold.step(3)
    eventually(lambda: {d.steps for d in devices} == {furthest + 3} and hold.held, "aligned")
    for device in devices:
        device._stop = True
    for device in devices:
        device.stop()


def test_a_device_that_waits_goes_on_to_one_that_is_further_and_may_need_it(hold):
    """Has the further device wait in a collective before it calls again."""
    behind, ahead = ShardSteps(10), ShardSteps(12)
    hold.pause()
    wait = functools.partial(hold.wait, "train", refreshed=0, sharded=True)
    waits = threading.Thread(target=wait, args=(0, behind), daemon=True)
    waits.start()
    eventually(lambda: hold.held, "the first one waits")
    other = threading.Thread(target=wait, args=(1, ahead), daemon=True)
    other.start()
    waits.join(60)
    assert not waits.is_alive() and other.is_alive() and hold.orders.target == 12
    hold.resume()
    other.join(60)


def test_devices_of_other_processes_are_waited_for_too(hold):
    hold._sharded.add("train")
    hold.pause()
    hold.heard({("train", 1): (5, False), ("train", 2): (7, True)})
    assert hold.orders.target == 7
    hold.heard({("train", 1): (9, False)})
    assert hold.orders.target == 7  # it is under way, and will stop


def test_environments_of_one_device_each_stop_where_they_call(hold):
    """Has two of them, stepped in turn, which count for themselves."""
    hold.pause()
    for steps in (500, 300):
        waits = threading.Thread(
            target=hold.wait, args=("train", 0, ShardSteps(steps), 0), daemon=True
        )
        waits.start()
        waits.join(0.2)
        assert waits.is_alive() and hold.orders.target == 0


def test_a_hold_at_a_nan_leaves_the_device_at_its_step(hold):
    there = {("train", 0): (10, True), ("train", 1): (12, True)}
    follower = Hold()
    for one in (hold, follower):
        one._sharded.add("train")
    hold.pause(here=True)
    follower.obey(hold.orders)
    for one in (hold, follower):
        one.heard(there)
        assert all(one._must_wait("train", part) for part in one._parts.values())
    hold.pause()  # once more, by a person
    assert all(hold._must_wait("train", part) for part in hold._parts.values())
    hold.step()  # from the furthest
    assert hold.orders.target == 13


def test_a_device_that_was_released_and_is_held_again_goes_on_to_the_others(hold):
    hold._sharded.add("train")
    hold.pause()
    hold.heard({("train", 0): (10, True), ("train", 1): (12, True)})
    hold.resume()
    hold.pause()  # before either has woken up
    assert hold.orders.target == 12


def test_an_evaluation_is_held_too_and_runs_through_during_a_step_of_the_training(hold):
    hold.pause()
    evaluation = Device(hold, role="eval", limit=50)
    eventually(lambda: hold.held, "held in the evaluation")
    assert evaluation.steps == 1
    hold.step()
    eventually(lambda: evaluation.steps == 50, "the evaluation runs through")
    assert not hold.held
    training = Device(hold)
    assert held_at(hold, training) == 1
    training.stop()


def test_stepping_an_evaluation_that_has_not_begun_lets_the_training_run(hold):
    hold.pause("eval")
    training = Device(hold)
    held_at(hold, training)
    hold.step(role="eval")
    eventually(lambda: training.steps > 100, "the training runs on to the evaluation")
    evaluation = Device(hold, role="eval")
    assert held_at(hold, evaluation) == 1
    held_at(hold, training)
    training._stop = evaluation._stop = True
    hold.resume()


def test_a_held_training_runs_on_to_a_termination(hold):
    hold.pause()
    device = Device(hold)
    held_at(hold, device)
    hold.run_to_termination(7)
    assert hold.until_env == 7
    eventually(lambda: device.steps > 500, "it runs")
    hold.terminated("eval", 3)  # of another rollout
    assert hold.until_env == 7
    hold.terminated("train", device.steps)
    held_at(hold, device)
    assert hold.until_env is None and hold.paused
    hold.run_to_termination(7)
    eventually(lambda: not hold.held, "it runs again")
    hold.pause()  # cancels the wait for the termination
    held_at(hold, device)
    assert hold.until_env is None
    device.stop()


def test_a_termination_at_the_held_step_does_not_count(hold):
    hold.pause()
    device = Device(hold)
    at = held_at(hold, device)
    hold.run_to_termination(7)
    hold.terminated("train", at)  # the step at which it is held, pushed once more
    assert hold.until_env == 7
    eventually(lambda: device.steps > at + 10, "it runs on")
    device.stop()


def test_devices_run_on_to_the_furthest_one_when_an_env_terminates(hold):
    hold.pause()
    hold.run_to_termination(7)
    hold.wait("train", 0, ShardSteps(10), hold.refreshes)
    hold.wait("train", 1, ShardSteps(12), hold.refreshes)
    hold.terminated("train", 10)
    assert not hold._must_wait("train", hold._parts["train", 0])  # on to step 12
    assert hold._must_wait("train", hold._parts["train", 1])


def test_steps_are_counted_from_the_trainings_step_and_not_from_the_last_known_one(hold):
    device = Device(hold)
    eventually(lambda: device.steps > 1000, "it runs, uncounted")
    hold.pause("eval")
    held_at(hold, device)
    at = device.steps
    hold.resume()
    eventually(lambda: device.steps > at + 1000, "it runs on")
    hold.pause()
    hold.step(500)
    eventually(lambda: hold.held, "held")
    held = device.steps
    assert held >= at + 1000 + 499
    device.stop()


def test_steps_left_over_from_one_training_do_not_move_the_next(hold):
    hold.pause()
    device = Device(hold, limit=5)
    held_at(hold, device)
    hold.step(100)
    eventually(lambda: not device._thread.is_alive(), "it ends before")
    assert device.steps == 5
    hold.forget()
    another = Device(hold)
    assert held_at(hold, another) == 1
    another.stop()


def test_an_interrupt_between_two_steps_ends_the_training_at_the_next(hold):
    hold.pause()
    assert hold.interrupt()
    with pytest.raises(KeyboardInterrupt):
        hold.wait("train", 0, ShardSteps(1), hold.refreshes)
    assert not hold.paused


def test_while_held_a_refresh_pushes_the_same_step_again(hold):
    hold.pause()
    device = Device(hold)
    held_at(hold, device)
    pushes = device.pushes
    hold.refresh()
    eventually(lambda: device.pushes == pushes + 1, "pushed again")
    assert device.steps == 1 and hold.held
    device.stop()


def test_a_refresh_between_the_check_and_the_wait_is_not_lost(hold):
    hold.pause()
    seen = hold.refreshes
    hold.refresh()
    assert hold.wait("train", 0, ShardSteps(1), seen) is True


def test_a_closed_hold_never_holds_again(hold):
    hold.pause()
    device = Device(hold)
    held_at(hold, device)
    hold.close()
    eventually(lambda: device.steps > 100, "it runs")
    hold.pause()
    assert hold.wait("train", 0, ShardSteps(10**9), hold.refreshes) is False
    device._stop = True


def test_an_interrupt_ends_a_held_training_but_not_a_running_one(hold):
    device = Device(hold)
    eventually(lambda: device.steps > 10, "it runs")
    assert not hold.interrupt()
    hold.pause()
    held_at(hold, device)
    assert hold.interrupt()
    eventually(lambda: isinstance(device.error, KeyboardInterrupt), "it has ended")
    assert not hold.paused and not hold.held
    # The interrupt of one training does not end the next.
    assert hold.wait("train", 0, ShardSteps(1), hold.refreshes) is False


def test_the_training_clock_stands_still_while_held():
    now = [100.0]
    hold = Hold(clock=lambda: now[0])
    assert hold.training_clock() == 100.0
    hold.pause()
    device = Device(hold)
    held_at(hold, device)
    now[0] = 160.0
    assert hold.training_clock() == 100.0
    hold.step()
    eventually(lambda: device.steps == 2 and hold.held, "a step further")
    now[0] = 200.0
    assert hold.training_clock() == 100.0
    hold.resume()
    now[0] = 230.0
    assert hold.training_clock() == 130.0
    device.stop()
    hold.close()
