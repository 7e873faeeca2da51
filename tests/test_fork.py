"""A process that is forked from a training, as data loaders are, leaves its viewer alone."""

import subprocess
import sys
import textwrap

import pytest

FORK = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from brax_viser import Viewer
    from brax_viser.process import _wakeups
    from tests.support import Probe

    # A shell has its background jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    viewer = Viewer(port=0)
    heard = threading.Event()
    Probe(viewer).shared.hold.pause()
    listeners = _wakeups._listeners
    for key in list(listeners):
        listeners[key] = heard.set
    child = os.fork()
    if child == 0:
        {child}
    start = time.monotonic()
    pid, status = os.waitpid(child, 0)
    print("status", os.waitstatus_to_exitcode(status), "after", time.monotonic() - start)
    print("heard" if heard.wait(1.0) else "not heard")
    import urllib.request
    print("serves", urllib.request.urlopen(viewer.url, timeout=10).status)
    os.kill(os.getpid(), signal.SIGINT)
    """
)


def run(child: str) -> dict[str, str]:
    """Runs a script that forks while a viewer is open; returns what it has printed, by word."""
    words = FORK.format(child=child)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", words], capture_output=True, text=True, timeout=60
    )
    assert "KeyboardInterrupt" in done.stderr, done.stderr  # its own Ctrl-C still ends it
    return {line.split()[0]: line for line in done.stdout.splitlines()}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_ctrl_c_in_a_forked_process_is_not_heard_by_the_training():
    said = run("signal.signal(signal.SIGINT, lambda *_: os._exit(7)); signal.raise_signal(2)")
    assert said["status"].startswith("status 7 ") and "not" in said and "heard" not in said
    assert said["serves"] == "serves 200"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_ends_at_once_and_closes_no_viewer_but_its_own():
    said = run("viewer.close(); sys.exit(3)")
    assert said["status"].startswith("status 3 after ")
    assert float(said["status"].split()[-1]) < 3.0
    assert said["serves"] == "serves 200"
