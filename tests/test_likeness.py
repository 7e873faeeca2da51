"""Compares the page with MuJoCo's own renderer: silhouettes and colours of real robots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from benchmarks import likeness
from tests.models import oddities, small, soft

FEW = ("ant", "humanoid", "go1", "shadow_hand", "dog")
"""One robot per kind: capsules, textured colours, meshes, letters on a box, a skin."""


def compared(folder: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Runs the comparison in a subprocess: MuJoCo chooses its renderer when it is imported."""
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
    """Returns the installed ones of `names`; under CI a missing one fails the test."""
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


def test_a_small_robot_is_readable_in_black_or_white_and_casts_no_false_shadows(tmp_path):
    models = {"dark": small(0.1), "grey": small(0.5, glass=0.12), "pale": small(0.95)}
    files = {name: str(tmp_path / f"{name}.xml") for name in models}
    for name, xml in models.items():
        Path(files[name]).write_text(xml)
    figures = compared(tmp_path, list(files.values()))
    check(figures)
    dark, grey, pale = (figures[file] for file in files.values())
    assert grey["iou"] > 0.97, "the glass belongs to it"
    # With a scale of 1 this is 0.43: the page then draws shadows where MuJoCo has none.
    assert min(grey["structure"], pale["structure"]) > 0.52, figures
    # Without anything to mirror it is 0.04. White stays below the maximum brightness.
    assert 0.07 < dark["brightness"] < 0.2 and 0.6 < pale["brightness"] < 0.9, figures


@pytest.mark.slow
def test_all_robots_look_as_in_mujoco(tmp_path):
    every = (*likeness.BRAX, *likeness.PACKAGED)
    check(compared(tmp_path, there(tuple(name for name in every if name not in FEW))))


def test_the_likeness_measure_tells_pictures_apart():
    size = likeness.SIZE
    left, right = np.zeros((2, size, size), bool)
    left[:, : size // 2] = right[:, size // 4 : 3 * size // 4] = True
    red = np.full((size, size, 3), (200, 30, 30), np.uint8)
    dim = np.full((size, size, 3), (100, 15, 15), np.uint8)
    blue = np.full((size, size, 3), (30, 30, 200), np.uint8)
    assert likeness.Likeness("", red, red, left, right).iou == pytest.approx(1 / 3)
    assert likeness.Likeness("", red, dim, left, left).colour_difference < 0.01, "the same, darker"
    assert likeness.Likeness("", red, blue, left, left).colour_difference > 0.3


def test_the_structure_measure_tells_stripes_from_different_lighting():
    size = likeness.SIZE
    whole = np.ones((size, size), bool)
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    robot = np.where((x // 60 + y // 60) % 2 == 0, 60.0, 120.0)  # seams between the robot's parts

    def structure(ours: np.ndarray) -> float:
        ours, theirs = (np.repeat(p[..., None], 3, axis=2).astype(np.uint8) for p in (ours, robot))
        return likeness.Likeness("", ours, theirs, whole, whole).structure

    assert structure(1.8 * robot) > 0.98, "brighter"
    assert structure(robot * (0.6 + 0.8 * x / size)) > 0.95, "lit from one side"
    assert structure(robot * np.where(x % 12 < 6, 0.6, 1.0)) < 0.6, "striped"


def test_silhouettes_include_faint_pixels_but_not_smoothed_edges():
    size = likeness.SIZE
    opacity = np.zeros((size, size, 1))
    opacity[100:200, 100:200] = 1.0
    opacity[100:200, 200] = 0.3  # an edge pixel that is less than half covered
    opacity[300:400, 100:200] = 0.1
    for shade in (10, 128, 245):
        one, other = (
            np.round(opacity * shade + (1 - opacity) * np.array(background)).astype(np.uint8)
            for background in likeness.BACKGROUNDS
        )
        expected = opacity[..., 0] > 0
        expected[:, 200] = False
        np.testing.assert_array_equal(likeness.silhouette(one, other), expected)


def test_pictures_are_named_after_the_whole_path():
    names = [likeness.picture_name(n) for n in ("/a/go1/scene.xml", "/a/g1/scene.xml", "ant")]
    assert names == ["a_go1_scene.png", "a_g1_scene.png", "ant.png"]


class Late:
    """An easel whose page shows all through a white haze at the first `late` looks."""

    def __init__(self, late: int):
        self.looks, self.late = 0, late
        self.settled = False

    def _picture(self, background: tuple[int, int, int]) -> np.ndarray:
        picture = np.full((likeness.SIZE, likeness.SIZE, 3), background, np.uint8)
        picture[100:300, 100:300] = 40
        self.settled = self.looks >= self.late
        return picture if self.settled else picture // 2 + 127

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, None]:
        return self._picture(likeness.BACKGROUNDS[0]), None

    def again(self, camera: None) -> np.ndarray:
        self.looks += 1
        return self._picture(likeness.BACKGROUNDS[0])

    def on_the_other(self) -> np.ndarray:
        return self._picture(likeness.BACKGROUNDS[1])


def test_a_picture_of_a_page_that_is_not_ready_is_taken_again(monkeypatch):
    mask = np.zeros((likeness.SIZE, likeness.SIZE), bool)
    mask[100:300, 100:300] = True
    theirs = np.where(mask[..., None], np.uint8(40), np.uint8(0)).repeat(3, axis=2)
    monkeypatch.setattr(likeness, "mujoco_picture", lambda *_: (theirs, mask))
    # Half of the colour is left: the haze alone does not make the two pictures differ too much.
    monkeypatch.setattr(likeness, "LEAST_COVERAGE", 0.75)
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    for late in range(likeness.LOOKS + 1):
        found = likeness.compare(Late(late), "robot", model)  # type: ignore[arg-type]
        assert found.is_alike and (found.ours[mask] == 40).all()
    with pytest.raises(TimeoutError, match="robot: the page"):
        likeness.compare(Late(likeness.LOOKS + 1), "robot", model)  # type: ignore[arg-type]
