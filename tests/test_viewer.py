"""Tests the viewer by itself: its server, its switch, its page's state."""

import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import viser

from brax_viser import Stats, Viewer, VisualizedEnv
from brax_viser.host.progress import Progress, count, duration
from brax_viser.page import address
from brax_viser.panel.words import status
from brax_viser.records.trainer_call import TrainerCall
from brax_viser.sandbox.runner import SandboxThread
from tests.conftest import Page, eventually
from tests.sample import SwiftCartPole
from tests.support import Probe, port_of


def test_the_page_is_served_at_the_url(viewer):
    assert viewer.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(viewer.url, timeout=10) as answer:
        assert b"<html" in answer.read()


def test_a_taken_port_is_replaced_by_the_next_free_one(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Viewer(port=port) as viewer:
            assert port_of(viewer) > port
            assert viewer.url in capsys.readouterr().out


def test_output_of_other_threads_while_a_viewer_opens_or_closes_is_not_lost(capsys, monkeypatch):
    def saying(what: Callable[..., Any], word: str) -> Callable[..., Any]:
        def said(*args: Any, **kwargs: Any) -> Any:
            try:
                return what(*args, **kwargs)
            finally:
                # Prints from another thread, as a training would.
                thread = threading.Thread(target=print, args=(word,))
                thread.start()
                thread.join()

        return said

    monkeypatch.setattr(viser, "ViserServer", saying(viser.ViserServer, "reward: 1"))
    viewer = Viewer(port=0)
    monkeypatch.setattr(
        Probe(viewer).server, "stop", saying(Probe(viewer).server.stop, "reward: 2")
    )
    viewer.close()
    out = capsys.readouterr().out.splitlines()
    assert out == ["reward: 1", f"brax_viser: {viewer.url}", "reward: 2"]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"mode": "fast"}, "mode='fast': must be one of 'realtime', 'latest', 'every_step'"),
        ({"fps": 0}, "fps=0: must be above 0"),
        ({"fps": 1000}, "at most 60"),
        ({"max_overhead": 0}, "max_overhead=0: must be above 0"),
        ({"max_overhead": 2}, "at most 1"),
        ({"port": -1}, "port=-1"),
        ({"port": 70000}, "port=70000"),
    ],
)
def test_a_bad_argument_is_refused_with_value_limit_and_remedy(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Viewer(**{"port": 0, **kwargs})


def test_an_unknown_mode_is_also_refused_by_the_property(viewer):
    with pytest.raises(ValueError, match="mode='slow'"):
        viewer.mode = "slow"
    assert viewer.mode == "realtime"


def test_close_is_idempotent_and_the_viewer_is_a_context_manager():
    with Viewer(port=0) as viewer:
        viewer.close()
    viewer.close()


def test_two_viewers_live_side_by_side():
    before = sys.getswitchinterval()
    one, other = Viewer(port=0), Viewer(port=0)
    assert one.url != other.url
    assert sys.getswitchinterval() < before
    one.close()
    assert sys.getswitchinterval() < before
    other.close()
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize(
    "broken",
    [
        "PageServer",
        "PageServer.serve",
        "Page",
        "Page.start",
        "SignalWatch.start",
        "_named.add",
        "PageServer.greet",
    ],
)
def test_a_viewer_that_cannot_be_built_releases_its_resources(broken, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no more of these")

    with Viewer(port=0):
        pass  # so that everything that outlives a viewer exists already
    port = address.free_port("127.0.0.1", 8500)
    interval, threads = sys.getswitchinterval(), set(threading.enumerate())
    wakeup = signal.set_wakeup_fd(-1)
    monkeypatch.setattr(f"brax_viser.viewer.{broken}", fail)
    with pytest.raises(OSError, match="no more of these"):
        Viewer(port=port)
    monkeypatch.undo()
    assert sys.getswitchinterval() == interval
    assert signal.set_wakeup_fd(wakeup) == -1
    eventually(lambda: address.is_free("127.0.0.1", port), "the port is free", timeout=10)
    eventually(lambda: set(threading.enumerate()) <= threads, "no thread is left", timeout=10)
    with Viewer(port=port) as viewer:
        assert port_of(viewer) == port


def test_closing_ends_the_timer_that_waits_for_a_page_to_return(viewer):
    page = Page(viewer)
    viewer.pause()
    page.close()
    eventually(lambda: Probe(viewer).reload is not None, "the timer runs")
    timer = Probe(viewer).reload
    viewer.close()
    assert timer.finished.is_set() and not timer.is_alive()


def test_closing_waits_for_the_sandbox(viewer):
    class Slow:
        """The part of a sandbox that its thread needs."""

        dt, trouble, pose = 0.01, None, SimpleNamespace(time=0.0, done=False)

        def step(self) -> SimpleNamespace:
            time.sleep(0.3)
            return self.pose

    sandbox = SandboxThread(Slow())  # type: ignore[arg-type]
    sandbox.start()
    Probe(viewer).sandbox_session._thread = sandbox
    viewer.close()
    assert not sandbox._thread.is_alive()


def test_the_page_shows_robots_and_its_waiting_state_before_anything_has_run(viewer):
    VisualizedEnv(SwiftCartPole(), grid=(2, 2), viewer=viewer)
    assert len(Probe(viewer).scene.blocks["train"].robots.handles) > 0
    assert "Waiting for a trainer" in status(Probe(viewer).panel_view(0.0))
    assert viewer.stats() == Stats(0, 0, 0, 0.0, False, (0, 1, 2, 3), {})


def test_the_pages_switch_and_the_property_share_one_state(viewer, page):
    box = Probe(viewer).panel.watch._streaming
    assert box.value is viewer.streaming is True
    viewer.streaming = False
    eventually(lambda: box.value is False, "the page's switch follows the property")
    viewer.streaming = True
    eventually(lambda: box.value is True, "and back")
    Probe(viewer).use(box, False)
    eventually(lambda: viewer.streaming is False, "the property follows the page's switch")
    Probe(viewer).use(Probe(viewer).panel.watch._mode, "Every step")
    eventually(lambda: viewer.mode == "every_step", "and so does the mode")


def test_nothing_is_sent_while_no_page_is_open(viewer):
    viewer.mode = "every_step"
    env = VisualizedEnv(SwiftCartPole(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    for _ in range(50):
        state = jax.block_until_ready(step(state, jnp.zeros((4, 1))))
    assert viewer.stats().frames == 0
    page = Page(viewer)
    before = viewer.stats().frames
    for _ in range(2000):
        state = jax.block_until_ready(step(state, jnp.zeros((4, 1))))
        if viewer.stats().frames > before:
            break
    assert viewer.stats().frames > before
    page.close()
    eventually(lambda: not Probe(viewer).shared.control.watched, "the page is seen to leave")


def test_the_bytes_moved_are_those_of_the_drawn_envs_alone(viewer, page):
    viewer.mode = "every_step"
    env = VisualizedEnv(SwiftCartPole(), grid=(2, 2), viewer=viewer)
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 500))
    for _ in range(10):
        state = jax.block_until_ready(step(state, jnp.zeros((500, 1))))
    stats = viewer.stats()
    # For each of 4 of the 500 envs: 2 links of 7 numbers, reward, return, length, termination,
    # finiteness, the last episode's return and length, and whether it was reset within the step; 5
    # integers in the header; and 2 integers for all. 4 bytes each.
    assert stats.frames == 10
    assert stats.bytes_moved == 10 * (4 * (2 * 7 + 8) + 4 * 5 + 2) * 4
    assert 0 < stats.overhead <= 1


def test_progress_tells_the_phases_of_a_training_apart():
    class Env:
        pass

    import weakref

    env = Env()
    call = TrainerCall("PPO", False, 1000, 8, weakref.ref(env))
    progress = Progress()
    assert progress.view(0.0).phase == "waiting"
    assert progress.traced(call, 10.0)
    assert not progress.traced(call, 11.0)  # the same run
    view = progress.view(24.0)
    assert (view.phase, view.phase_seconds, view.num_timesteps) == ("compiling", 14.0, 1000)
    for tick in range(11):
        progress.stepped("train", 10, 30.0 + tick / 10)
    view = progress.view(31.0)
    assert (view.phase, view.num_steps, view.fraction) == ("training", 110, 0.11)
    assert view.steps_per_second == pytest.approx(100.0)
    assert view.elapsed == pytest.approx(1.0)
    assert view.remaining == pytest.approx(1.0 * 0.89 / 0.11)
    assert progress.view(40.0).phase == "quiet"
    progress.traced(None, 41.0)
    assert progress.view(45.0).phase == "compiling"
    progress.stepped("eval", 10, 50.0)
    assert progress.view(50.1).phase == "evaluating"
    progress.reported(500, {"eval/episode_reward": 12.34}, 51.0)
    view = progress.view(51.0)
    assert view.num_steps == 500
    assert view.reward == "evaluation reward 12.3 at 500"
    progress.reported(1000, {"episode/sum_reward": 20.0}, 52.0)
    assert progress.view(52.0).phase != "done"  # reported from within the last epoch
    progress.reported(1000, {"eval/episode_reward": 20.0}, 53.0)
    assert progress.view(60.0).phase == "done"
    other = Env()
    assert progress.traced(TrainerCall("PPO", False, 5, 8, weakref.ref(other)), 70.0)
    assert progress.view(71.0).num_steps == 0
    progress.ended(72.0, "ValueError: too few")
    assert progress.view(73.0).phase == "failed"


def test_numbers_are_written_for_people():
    assert [count(n) for n in (0, 999, 1234, 12_345_678, 3e9)] == [
        "0", "999", "1.23 k", "12.3 M", "3 G",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 75, 4000)] == ["0:00", "1:15", "1:06:40"]
