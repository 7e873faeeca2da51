"""A hold ends before a watchdog of XLA would end the process."""

import pytest

from brax_viser import Viewer
from brax_viser.host.hold import Hold
from brax_viser.host.watchdog import SHARE, HoldLimit, Watchdog, watchdog_of
from tests.conftest import eventually
from tests.support import Probe

EXECUTION = "xla_gpu_execution_terminate_timeout"
NCCL = "xla_gpu_nccl_termination_timeout_seconds"


@pytest.mark.parametrize(
    ("flags", "watchdog"),
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
def test_the_strictest_watchdog_is_read_from_the_flags(flags, watchdog):
    assert watchdog_of(flags) == watchdog


def test_a_hold_lasts_for_its_share_and_steps_do_not_prolong_it():
    hold, told = Hold(), []
    limit = HoldLimit(hold, Watchdog(EXECUTION, 60.0), told.append)
    assert limit.update(0.0) is None
    hold.pause()
    words = limit.update(100.0)
    assert words is not None and "in 30 s" in words
    hold.step(5)
    words = limit.update(110.0)
    assert words is not None and "in 20 s" in words
    assert limit.update(100.0 + SHARE * 60) is None
    assert not hold.paused
    assert EXECUTION in told[0]
    hold.pause()
    words = limit.update(200.0)
    assert words is not None and "in 30 s" in words


def test_without_a_watchdog_a_hold_may_last_for_ever():
    hold = Hold()
    hold.pause()
    assert HoldLimit(hold, None, pytest.fail).update(1e9) is None
    assert hold.paused


def test_a_viewer_ends_a_hold_and_says_why(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{EXECUTION}=400ms")
    with Viewer(port=0) as viewer:
        viewer.pause()
        hold = Probe(viewer).shared.hold
        eventually(lambda: not hold.paused, "the hold ends by itself")
        eventually(lambda: Probe(viewer).panel_view(0.0).notice, "the page says so")
        assert EXECUTION in str(Probe(viewer).panel_view(0.0).notice)
