"""Takes the documentation's pictures of the panel: its head, and each of its folders.

python -m benchmarks.panel docs/panel

Needs Chromium and the `test` extra. Software rendering will do.
"""

import io
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from scipy import ndimage

from benchmarks.screenshot import FLAGS, close_notice, save, training

FOLDERS = {
    "Which robots": "which-robots",
    "Selected robot": "selected-robot",
    "Look inside": "look-inside",
    "Look": "look",
    "Parts of the model": "parts",
    "MuJoCo twins": "twins",
    "MuJoCo sandbox": "sandbox",
    "Pace and budget": "pace",
}
"""The panel's folders, in its order, and the names of their pictures."""

FOLDED = ("Look inside", "Parts of the model", "MuJoCo twins", "MuJoCo sandbox", "Pace and budget")
"""Folders that are closed at first."""

MARGIN = 9
"""Pixels around a folder, whose title is on its border."""


@dataclass(frozen=True)
class Settings:
    """Options of the pictures."""

    folder: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    width: int = 760
    height: int = 1000
    tall: int = 3600
    """Height of a window that holds the whole panel, in pixels."""
    seconds: float = 20.0
    """Time for twins and sandbox to run before their pictures are taken, in seconds."""
    tallest: int = 560
    """Limit on the height of a picture, in pixels; a taller folder is cut off at the bottom."""


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, selects the robot, and takes a picture of each part of the panel."""
    page.goto(address)
    page.get_by_text("Live").wait_for(timeout=300_000)
    time.sleep(5.0)
    close_notice(page)
    _select(settings, page)
    for name in FOLDED:
        _click(page.get_by_text(name, exact=True))
    for name in ("Joint axes", "Numbers", "Twins"):
        _click(page.get_by_label(name, exact=True))
    _click(page.get_by_role("button", name="Fork the selected robot"))
    page.get_by_text("Driven by", exact=True).wait_for(timeout=300_000)
    time.sleep(settings.seconds)
    page.set_viewport_size({"width": settings.width, "height": settings.tall})
    time.sleep(5.0)
    _save(settings, *_head(page))
    # While the training is held, nothing moves between locating a folder and the picture.
    _click(page.get_by_role("button", name="Hold training"))
    time.sleep(8.0)
    boxes = {picture: _box(page, name) for name, picture in FOLDERS.items()}
    _save(settings, page.screenshot(), boxes)


def _select(settings: Settings, page: Page) -> None:
    """Clicks the robot while the training is held, because it moves and the page is slow."""
    _click(page.get_by_role("button", name="Hold training"))
    page.get_by_text("Held at step").wait_for(timeout=60_000)
    time.sleep(5.0)
    panel = _box(page, "Which robots")
    scene = {"x": 0, "y": 0, "width": panel["x"] - 10, "height": settings.height}
    page.mouse.click(*_robot_in(page.screenshot(clip=scene)))  # pyright: ignore
    none = page.get_by_text("Click a robot to select it.")
    none.wait_for(state="detached", timeout=30_000)
    _click(page.get_by_role("button", name="Resume training"))


def _robot_in(png: bytes) -> tuple[float, float]:
    """Returns the pixel (x, y) that is deepest within something other than the floor."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
    usual = np.median(pixels.reshape(-1, 3), axis=0)
    differs = np.abs(pixels - usual).sum(axis=2) > 150
    within = np.asarray(ndimage.distance_transform_edt(differs))
    y, x = np.unravel_index(np.argmax(within), within.shape)
    return float(x), float(y)


def _click(control: Locator) -> None:
    """Clicks without waiting for the control to stand still: in a slow browser it never does."""
    control.wait_for(timeout=60_000)
    control.dispatch_event("click")
    time.sleep(2.0)


def _folder(page: Page, name: str) -> Locator:
    return page.get_by_text(name, exact=True).first.locator("..")


def _box(page: Page, name: str) -> dict[str, float]:
    """Returns the x, y, width and height of a folder, in pixels."""
    box = _folder(page, name).bounding_box()
    assert box is not None
    return {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"]}


def _head(page: Page) -> tuple[bytes, dict[str, dict[str, float]]]:
    """Returns a picture taken while the panel's head did not move, and the head's box."""
    while True:
        before, png = _box(page, "Which robots"), page.screenshot()
        if before == _box(page, "Which robots"):
            return png, {"head": {**before, "y": 0.0, "height": before["y"] - MARGIN}}


def _save(settings: Settings, png: bytes, boxes: dict[str, dict[str, float]]) -> None:
    whole = Image.open(io.BytesIO(png))
    for name, box in boxes.items():
        left, top = box["x"] - MARGIN, max(box["y"] - MARGIN, 0.0)
        bottom = min(box["y"] + box["height"] + MARGIN / 3, top + settings.tallest)
        part = io.BytesIO()
        whole.crop((left, top, left + box["width"] + 2 * MARGIN, bottom)).save(part, "png")
        save(part.getvalue(), settings.folder / f"{name}.webp")


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    settings.folder.mkdir(parents=True, exist_ok=True)
    options = f"train {settings.env} --port 0 --grid 1 1".split()
    with training(options) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        take(settings, browser.new_page(viewport=viewport), address)  # pyright: ignore
        browser.close()


if __name__ == "__main__":
    main()
