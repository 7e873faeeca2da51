"""A person with a browser: a real training, a real page, real clicks."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import eventually

SCENE = {"x": 40, "y": 160, "width": 800, "height": 500}
"""The part of the window that holds robots and nothing else."""


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[str]:
    """`brax-viser train` as a user starts it; yields its address."""
    command = Path(sys.executable).with_name("brax-viser")
    log = (tmp_path_factory.mktemp("training") / "log").open("w+")
    process = subprocess.Popen(
        # Far more steps than the test will take: it must still be running at the end.
        f"{command} train ant --grid 3 3 --num-envs 64 --num-timesteps 500000000 --port 0".split(),
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def address() -> str | None:
        assert process.poll() is None, Path(log.name).read_text()
        found = re.search(r"http://\S+", Path(log.name).read_text())
        return found and found[0]

    started = time.monotonic()
    eventually(address, "the address is printed", timeout=60)
    url = address()
    assert url is not None
    print(f"address after {time.monotonic() - started:.1f} s")
    yield url
    process.kill()
    process.wait()


def scene(page) -> np.ndarray:
    """int [H, W, 3]: what the 3-D view shows."""
    image = Image.open(io.BytesIO(page.screenshot(clip=SCENE))).convert("RGB")
    return np.asarray(image).astype(int)


def moved(page, seconds: float) -> bool:
    """Whether the robots look different `seconds` later."""
    before = scene(page)
    page.wait_for_timeout(1000 * seconds)
    return bool((np.abs(scene(page) - before).max(axis=2) > 40).sum() > 30)


def steps(page) -> float:
    """The number of steps that the panel tells."""
    found = re.search(r"Steps\s+([\d.]+)( [kMG])?", page.inner_text("body"))
    assert found is not None, page.inner_text("body")
    return float(found[1]) * {None: 1, " k": 1e3, " M": 1e6, " G": 1e9}[found[2]]


def test_robots_move_stop_at_the_switch_and_move_again(chromium, training):
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(training)
    switch = page.get_by_label("Streaming")
    switch.wait_for(timeout=60_000)
    assert switch.is_checked()
    # Before XLA has compiled anything there are robots, and the reason why they stand still.
    page.get_by_text(re.compile("Compiling|Live")).wait_for(timeout=60_000)
    eventually(lambda: np.ptp(scene(page)) > 100, "robots are drawn", timeout=60)

    page.get_by_text("Live", exact=False).wait_for(timeout=180_000)
    eventually(lambda: moved(page, 1.0), "robots move", timeout=60)

    switch.uncheck()
    page.get_by_text("streaming is off").wait_for(timeout=30_000)
    page.wait_for_timeout(1000)  # what was under way is drawn
    known = steps(page)
    assert not moved(page, 3.0)
    eventually(lambda: steps(page) > known, "the training goes on", timeout=30)
    assert not moved(page, 1.0)

    other = chromium.new_page(viewport={"width": 900, "height": 700})
    other.goto(training)
    elsewhere = other.get_by_label("Streaming")
    elsewhere.wait_for(timeout=60_000)
    assert not elsewhere.is_checked()  # both pages show one state
    elsewhere.check()
    eventually(switch.is_checked, "the first page follows the second", timeout=10)
    other.close()
    eventually(lambda: moved(page, 1.0), "robots move again", timeout=60)
    assert not errors
    page.close()
