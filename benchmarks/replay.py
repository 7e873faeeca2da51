"""Takes the documentation's pictures of recorded episodes: the page, the tab "Episodes", and the
curves of an episode that ended in a fall.

python -m benchmarks.replay RUN_DIR docs

Needs Chromium and the `test` extra. Software rendering will do.
"""

import io
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from benchmarks.panel import click
from benchmarks.screenshot import FLAGS, close_notice, save, training
from brax_viser.panel.curve_lines import STEPWISE

MARGIN = 9
"""Pixels around the picture of the tab."""


@dataclass(frozen=True)
class Settings:
    """Options of the pictures."""

    run_dir: Annotated[str, tyro.conf.Positional]
    folder: Annotated[Path, tyro.conf.Positional]
    training: float = 0.0
    """Where the training's line of the time bar is clicked, as a share of its length."""
    episode: float = 0.2
    """The same of the episodes' line."""
    fall: float = 0.9
    """The same of that line while the episode plays alone that ended in a fall."""
    width: int = 1280
    height: int = 800


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, goes to the moment, and takes the pictures."""
    page.set_default_timeout(90_000)
    page.goto(address)
    page.get_by_text("Replay: step").wait_for()
    time.sleep(5.0)
    close_notice(page)
    page.get_by_role("tab", name="Episodes").click()
    _go(page, "track", settings.training)
    _go(page, "line", settings.episode)
    page.mouse.move(5, 5)
    time.sleep(3.0)
    picture = page.screenshot()
    save(picture, settings.folder / "replay.webp")
    _save(settings, page, picture, "Episodes", page.get_by_text("Save as", exact=True))
    choose(page, "Episodes", re.compile("fell"))
    page.get_by_role("tab", name="Curves").click()
    choose(page, "Show", STEPWISE)
    _go(page, "line", settings.fall)
    page.mouse.move(5, 5)
    time.sleep(3.0)
    last = page.get_by_text("Axes", exact=True)
    _save(settings, page, page.screenshot(), "Curves", last, "steps")


def choose(page: Page, label: str, option: str | re.Pattern[str]) -> None:
    """Chooses from a list of the panel."""
    click(page.locator("input:visible").and_(page.get_by_label(label, exact=True)))
    click(page.get_by_role("option", name=option).first)


def _go(page: Page, part: str, share: float) -> None:
    """Clicks a line of the time bar, at a share of its length."""
    line = page.locator(f"#brax-viser-bar .{part}")
    box = line.bounding_box()
    assert box is not None
    line.click(position={"x": share * box["width"], "y": 4})
    time.sleep(3.0)


def _save(
    settings: Settings, page: Page, png: bytes, tab: str, last: Locator, name: str | None = None
) -> None:
    """Saves the picture of a tab, down to its last control."""
    top, end = page.get_by_role("tab", name=tab).bounding_box(), last.bounding_box()
    left = page.get_by_role("tab").first.bounding_box()
    assert top is not None and left is not None and end is not None
    bottom = end["y"] + end["height"] + 2 * MARGIN
    part = io.BytesIO()
    picture = Image.open(io.BytesIO(png))
    picture.crop((left["x"] - MARGIN, top["y"] - 2, settings.width, bottom)).save(part, "png")
    save(part.getvalue(), settings.folder / "panel" / f"{name or tab.lower()}.webp")


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    options = ["replay", settings.run_dir, "--port", "0"]
    with training(options) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        take(settings, browser.new_page(viewport=viewport), address)  # pyright: ignore
        browser.close()


if __name__ == "__main__":
    main()
