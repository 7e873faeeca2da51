"""Takes the documentation's pictures of recorded episodes: the page, and the tab "Episodes".

python -m benchmarks.replay RUN_DIR docs

Needs Chromium and the `test` extra. Software rendering will do.
"""

import io
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.screenshot import FLAGS, close_notice, save, training

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
    width: int = 1280
    height: int = 800


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, goes to the moment, and takes both pictures."""
    page.set_default_timeout(90_000)
    page.goto(address)
    page.get_by_text("Replay: step").wait_for()
    time.sleep(5.0)
    close_notice(page)
    page.get_by_role("tab", name="Episodes").click()
    for part, share in (("track", settings.training), ("line", settings.episode)):
        line = page.locator(f"#brax-viser-bar .{part}")
        box = line.bounding_box()
        assert box is not None
        line.click(position={"x": share * box["width"], "y": 4})
        time.sleep(3.0)
    page.mouse.move(5, 5)
    time.sleep(3.0)
    picture = page.screenshot()
    save(picture, settings.folder / "replay.webp")
    top = page.get_by_role("tab", name="Episodes").bounding_box()
    last = page.get_by_text("Save as", exact=True).bounding_box()
    assert top is not None and last is not None
    box = (top["x"] - MARGIN, top["y"] - 2, settings.width, last["y"] + last["height"] + 2 * MARGIN)
    part = io.BytesIO()
    Image.open(io.BytesIO(picture)).crop(box).save(part, "png")
    save(part.getvalue(), settings.folder / "panel" / "episodes.webp")


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
