"""Takes the documentation's pictures of the panel: its head, and each of its folders.

python -m benchmarks.panel docs/panel

Wants Chromium and the `test` extra. Software rendering will do.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from playwright.sync_api import Locator, Page, sync_playwright

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
"""Of the panel, in its order, and what their pictures are called."""

FOLDED = ("Look inside", "Parts of the model", "MuJoCo twins", "MuJoCo sandbox", "Pace and budget")
"""At first."""


@dataclass(frozen=True)
class Settings:
    """Options of the pictures."""

    folder: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    width: int = 760
    height: int = 1000
    seconds: float = 20.0
    """That twins and a sandbox are given, before their pictures are taken."""
    tallest: int = 560
    """Pixels of a picture; of a taller folder it has the upper part."""


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, selects the robot in its middle, and takes a picture of each part."""
    page.goto(address)
    page.get_by_text("Live", exact=True).wait_for(timeout=300_000)
    time.sleep(5.0)
    close_notice(page)
    _select(settings, page)
    for name in FOLDED:
        page.get_by_text(name, exact=True).click()
    for name in ("Contact forces", "Numbers", "Twins"):
        page.get_by_label(name, exact=True).check()
    page.get_by_role("button", name="Fork the selected robot").click()
    page.get_by_text("Driven by", exact=True).wait_for(timeout=300_000)
    time.sleep(settings.seconds)
    for name, picture in FOLDERS.items():
        _save(settings, page, _folder(page, name), picture)
    page.get_by_role("button", name="Hold training").scroll_into_view_if_needed()
    first = _folder(page, "Which robots").bounding_box()
    assert first is not None
    clip = {"x": first["x"], "y": 0.0, "width": first["width"], "height": first["y"] - 4}
    save(page.screenshot(clip=clip), settings.folder / "head.webp")  # pyright: ignore


def _select(settings: Settings, page: Page) -> None:
    """Clicks around the middle of the scene, of a training that is held, until it hits."""
    panel = _folder(page, "Which robots").bounding_box()
    assert panel is not None
    page.get_by_role("button", name="Hold training").click()
    page.get_by_text("Held at step").wait_for(timeout=60_000)
    time.sleep(3.0)
    none = page.get_by_text("Click a robot to select it.")
    for dx, dy in ((x, y) for y in (0, 30, -30, 60, 90) for x in (0, 25, -25, 50, -50)):
        page.mouse.click(panel["x"] / 2 + dx, settings.height / 2 + dy)
        time.sleep(2.0)
        if not none.count():
            break
    else:
        raise RuntimeError("no robot was hit around the middle of the scene")
    page.get_by_role("button", name="Resume training").click()


def _folder(page: Page, name: str) -> Locator:
    return page.get_by_text(name, exact=True).first.locator("..")


def _save(settings: Settings, page: Page, folder: Locator, picture: str) -> None:
    folder.scroll_into_view_if_needed()
    box = folder.bounding_box()
    assert box is not None
    top = max(box["y"] - 8, 0.0)  # the title sits on the border
    height = min(box["height"] + 16, settings.tallest, settings.height - top)
    clip = {"x": box["x"] - 4, "y": top, "width": box["width"] + 8, "height": height}
    save(page.screenshot(clip=clip), settings.folder / f"{picture}.webp")  # pyright: ignore


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
