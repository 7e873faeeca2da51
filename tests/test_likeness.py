"""The page against MuJoCo's own renderer: silhouettes and colours of real robots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import likeness
from tests.models import oddities, soft

FEW = ("ant", "humanoid", "go1", "shadow_hand", "dog")
"""One of each kind: capsules, colours by a texture, meshes, letters on a box, a skin."""


def compared(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """In a process of its own, for MuJoCo chooses how to render when it is imported."""
    if likeness.browser_path() is None:
        reason = "no Chromium found: install it, or set CHROMIUM to its path"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    figures = folder / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.likeness", str(folder / "report.html")),
            *("--json", str(figures), "--models", *names),
        ],
        env={**os.environ, "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(figures.read_text())


def there(names: tuple[str, ...]) -> list[str]:
    """Those that are installed; all of them where CI looks."""
    installed = likeness.available()
    missing = [name for name in names if name not in installed]
    assert not (missing and os.environ.get("CI")), f"{missing} are not installed"
    return [name for name in names if name in installed]


def check(figures: dict[str, dict[str, float]]) -> None:
    for name, figure in figures.items():
        assert figure["pixels"] > 500, f"MuJoCo shows nothing of {name} to compare with"
    bad = {n: f for n, f in figures.items() if f["iou"] < likeness.LEAST_IOU}
    assert not bad, f"silhouettes differ: {bad}"
    pale = {n: f for n, f in figures.items() if f["colour_difference"] > likeness.MOST_COLOUR}
    assert not pale, f"colours differ: {pale}"


def test_robots_look_as_in_mujoco(tmp_path):
    own = {"oddities.xml": oddities(), "soft.xml": soft()}
    for name, xml in own.items():
        (tmp_path / name).write_text(xml)
    check(compared(tmp_path, [*there(FEW), *(str(tmp_path / name) for name in own)]))


@pytest.mark.slow
def test_all_robots_look_as_in_mujoco(tmp_path):
    every = (*likeness.BRAX, *likeness.PACKAGED)
    check(compared(tmp_path, there(tuple(name for name in every if name not in FEW))))


def test_the_measure_tells_pictures_apart():
    size = likeness.SIZE
    left, right = np.zeros((2, size, size), bool)
    left[:, : size // 2] = right[:, size // 4 : 3 * size // 4] = True
    red = np.full((size, size, 3), (200, 30, 30), np.uint8)
    dim = np.full((size, size, 3), (100, 15, 15), np.uint8)
    blue = np.full((size, size, 3), (30, 30, 200), np.uint8)
    assert likeness.Likeness("", red, red, left, right).iou == pytest.approx(1 / 3)
    assert likeness.Likeness("", red, dim, left, left).colour_difference < 0.01, "the same, darker"
    assert likeness.Likeness("", red, blue, left, left).colour_difference > 0.3
