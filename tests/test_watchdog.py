"""A hold ends before a watchdog of XLA would end the process."""

import threading

import pytest

from brax_viser import Viewer
from brax_viser.cli.remote import ask
from brax_viser.host import watchdog
from brax_viser.host.hold import Hold
from brax_viser.host.watchdog import SHARE, HoldLimit, Watchdog, watchdog_of
from tests.conftest import eventually
from tests.support import Probe
from tests.test_faults import ends_the_pages_loop

EXECUTION = "xla_gpu_execution_terminate_timeout"
NCCL = "xla_gpu_nccl_termination_timeout_seconds"


@pytest.mark.parametrize(
    ("flags", "strictest"),
    [
        ("", None),
        ("--xla_force_host_platform_device_count=4", None),
        (f"--{EXECUTION}=90s", (EXECUTION, 90)),
        (f"--{EXECUTION}=1m30s --xla_dump_to=/a/b=c", (EXECUTION, 90)),
        (f"--{EXECUTION}=infinite", None),
        (f"--{EXECUTION}=1e9x", None),
        (f"--{NCCL}=-1", None),
        (f"--{NCCL}=0", None),
        (f"--{NCCL}=600 --{EXECUTION}=1h", (NCCL, 600)),
    ],
)
def test_the_strictest_watchdog_is_read_from_the_flags(flags, strictest):
    assert watchdog_of(flags) == strictest


def test_a_hold_lasts_for_its_share_and_steps_do_not_prolong_it(monkeypatch):
    hold, told, now = Hold(), [], 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    limit = HoldLimit(hold, Watchdog(EXECUTION, 60.0))
    limit._tell = told.append

    def left(at: float) -> float | None:
        nonlocal now
        now = at
        limit.update(now)
        words = limit.words()
        assert (words is None) == (limit.left is None)
        assert words is None or f"in {limit.left:.0f} s" in words
        return limit.left

    assert left(0.0) is None and limit.seconds == 30
    hold.pause()
    assert left(100.0) == 30
    hold.step(5)
    assert left(110.0) == 20
    assert left(100.0 + SHARE * 60) is None
    assert not hold.paused
    assert EXECUTION in told[0]
    hold.pause()
    assert left(200.0) == 30


def test_without_a_watchdog_a_hold_may_last_for_ever():
    hold, threads = Hold(), threading.active_count()
    hold.pause()
    limit = HoldLimit(hold, None)
    limit.start(pytest.fail)
    limit.update(1e9)
    assert hold.paused and limit.seconds is limit.left is limit.words() is None
    assert threading.active_count() == threads


def test_a_viewer_ends_a_hold_and_says_why(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{EXECUTION}=10s")
    with Viewer(port=0) as viewer:
        told = ask(viewer.url, "status")
        assert (told["hold_seconds"], told["hold_seconds_left"]) == (5, None)
        viewer.pause()
        hold = Probe(viewer).shared.hold
        eventually(lambda: ask(viewer.url, "status")["hold_seconds_left"], "it says how long")
        eventually(lambda: not hold.paused, "the hold ends by itself")
        eventually(lambda: Probe(viewer).panel_view(0.0).notice, "the page says so")
        assert EXECUTION in str(Probe(viewer).panel_view(0.0).notice)
        assert Probe(viewer).panel_view(0.0).hold_limit is None


def fails(viewer: Viewer, until: threading.Event) -> None:
    def fail() -> None:
        raise OSError("each time")

    Probe(viewer).inbox.carry_out = fail


def waits(viewer: Viewer, until: threading.Event) -> None:
    """As a function given to `on_frame` may."""
    Probe(viewer).enqueue(lambda: until.wait(60))


def has_ended(viewer: Viewer, until: threading.Event) -> None:
    ends_the_pages_loop(viewer)


@pytest.mark.parametrize("trouble", [fails, waits, has_ended])
def test_a_hold_ends_in_time_whatever_the_pages_loop_does(trouble, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{EXECUTION}=400ms")
    until = threading.Event()
    with Viewer(port=0) as viewer:
        trouble(viewer, until)
        viewer.pause()
        eventually(lambda: not Probe(viewer).shared.hold.paused, "the hold ends by itself", 30)
        until.set()
