"""Checks that our threads give way to the training's, whose own priority stays unchanged."""

import subprocess
import sys

import pytest

from brax_viser.process import MORE, NICENESS

WATCHED = """
import os, sys, threading, time
os.nice(int(sys.argv[1]))
from benchmarks.overhead import Page
from brax_viser import Viewer, VisualizedEnv
from tests.support import Probe

with Viewer(port=0, mode="every_step") as viewer:  # before there is anything of JAX
    page = Page(viewer)
    page.open()
    import jax
    import jax.numpy as jnp
    from tests.sample import SwiftCartPole

    env = VisualizedEnv(SwiftCartPole("spring"), grid=(2, 2), viewer=viewer)
    viewer.twins = 4
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    step = jax.jit(jax.vmap(env.step))
    end = time.monotonic() + 60
    while viewer.drift() is None and time.monotonic() < end:
        state = step(state, jnp.zeros((4, 1)))
        time.sleep(0.02)
    assert viewer.drift() is not None
    whose = {thread.native_id: thread.name for thread in threading.enumerate()}
    Probe(viewer).now(lambda: whose.update({threading.get_native_id(): "page"}))
    for task in map(int, os.listdir("/proc/self/task")):
        interrupts = os.sched_getscheduler(task) == os.SCHED_OTHER
        niceness = os.getpriority(os.PRIO_PROCESS, task)
        print(niceness, interrupts, whose.get(task, "not of Python"), sep=",")
    page.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness by thread")
def test_the_page_and_the_twins_are_nicer_than_the_training():
    command = [sys.executable, "-c", WATCHED, "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split(",") for line in run.stdout.splitlines() if line.count(",") == 2]
    threads = [(int(niceness) - 2, name) for niceness, _, name in lines]
    assert (NICENESS, "page") in threads and (NICENESS, "brax_viser twins") in threads
    stepping = [name for niceness, name in threads if niceness == NICENESS + MORE]
    assert stepping and set(stepping) == {"not of Python"}
    assert (0, "MainThread") in threads
    # XLA's threads.
    assert sum(thread == (0, "not of Python") for thread in threads) > 2
    others = [thread for thread in threads if thread[0] not in (0, NICENESS + MORE)]
    assert sorted(others) == [(NICENESS, "brax_viser twins"), (NICENESS, "page")]
    # Threads with a raised niceness also run under SCHED_BATCH and pre-empt no other thread.
    assert all((interrupts == "True") == (niceness == "2") for niceness, interrupts, _ in lines)
