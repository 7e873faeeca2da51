"""The page against MuJoCo's own renderer: silhouettes and colours of real robots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import likeness
from tests.models import oddities, small, soft

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
    striped = {n: f for n, f in figures.items() if f["structure"] < likeness.LEAST_STRUCTURE}
    assert not striped, f"edges differ: {striped}"


def test_robots_look_as_in_mujoco(tmp_path):
    own = {"oddities.xml": oddities(), "soft.xml": soft()}
    for name, xml in own.items():
        (tmp_path / name).write_text(xml)
    check(compared(tmp_path, [*there(FEW), *(str(tmp_path / name) for name in own)]))


def test_a_small_robot_is_readable_black_or_white_and_has_no_shadows_of_its_own(tmp_path):
    models = {"dark": small(0.1), "grey": small(0.5, glass=0.12), "pale": small(0.95)}
    files = {name: str(tmp_path / f"{name}.xml") for name in models}
    for name, xml in models.items():
        Path(files[name]).write_text(xml)
    figures = compared(tmp_path, list(files.values()))
    check(figures)
    dark, grey, pale = (figures[file] for file in files.values())
    assert grey["iou"] > 0.97, "the glass belongs to it"
    # 0.43 with a scale of 1, at which the page's shadows fall where none are.
    assert min(grey["structure"], pale["structure"]) > 0.52, figures
    # Without anything to mirror it is 0.04. White stays short of the brightest there is.
    assert 0.07 < dark["brightness"] < 0.2 and 0.6 < pale["brightness"] < 0.9, figures


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


def test_the_measure_of_structure_tells_stripes_from_another_light():
    size = likeness.SIZE
    whole = np.ones((size, size), bool)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    robot = np.where((x // 60 + y // 60) % 2 == 0, 60.0, 120.0)  # seams between its parts

    def structure(ours: np.ndarray) -> float:
        ours, theirs = (np.repeat(p[..., None], 3, axis=2).astype(np.uint8) for p in (ours, robot))
        return likeness.Likeness("", ours, theirs, whole, whole).structure

    assert structure(1.8 * robot) > 0.98, "brighter"
    assert structure(robot * (0.6 + 0.8 * x / size)) > 0.95, "lit from one side"
    assert structure(robot * np.where(x % 12 < 6, 0.6, 1.0)) < 0.6, "striped"


def test_what_is_almost_transparent_belongs_to_the_silhouette_and_smooth_edges_do_not():
    size = likeness.SIZE
    opacity = np.zeros((size, size, 1))
    opacity[100:200, 100:200] = 1.0
    opacity[100:200, 200] = 0.3  # of the edge, less than half is covered
    opacity[300:400, 100:200] = 0.1
    for shade in (10, 128, 245):
        one, other = (
            np.round(opacity * shade + (1 - opacity) * np.array(background)).astype(np.uint8)
            for background in likeness.BACKGROUNDS
        )
        expected = opacity[..., 0] > 0
        expected[:, 200] = False
        np.testing.assert_array_equal(likeness.silhouette(one, other), expected)


def test_pictures_are_named_by_the_whole_path():
    names = [likeness.picture_name(n) for n in ("/a/go1/scene.xml", "/a/g1/scene.xml", "ant")]
    assert names == ["a_go1_scene.png", "a_g1_scene.png", "ant.png"]
