"""Takes the documentation's picture of the time bar: of a live training, and while it replays.

python -m benchmarks.timebar docs/timebar.webp

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
from playwright.sync_api import FloatRect, Page, sync_playwright

from benchmarks.screenshot import FLAGS, close_notice, save, training

GAP = 10
"""Pixels between the two."""


@dataclass(frozen=True)
class Settings:
    """Options of the picture."""

    path: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    after: float = 240.0
    """Seconds of live training before the picture: about one recording is made each minute."""
    place: float = 0.5
    """Where the bar is clicked, as a share of its length."""
    width: int = 1280
    height: int = 800


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, waits for recordings, and takes both pictures."""
    page.set_default_timeout(300_000)
    page.goto(address)
    page.get_by_text("Live").wait_for()
    time.sleep(settings.after)
    close_notice(page)
    track, bar = box_of(page, ".track"), box_of(page, ".shows >> xpath=..")
    x, y = track["x"] + settings.place * track["width"], track["y"] + 8
    page.mouse.move(x, y)
    time.sleep(2.0)
    top = box_of(page, ".tip")["y"] - GAP
    live = page.screenshot()
    page.mouse.click(x, y)
    page.get_by_text("Replay: step").wait_for()
    page.mouse.move(5, 5)
    time.sleep(3.0)
    stacked(settings, (live, top), (page.screenshot(), bar["y"]))


def box_of(page: Page, part: str) -> FloatRect:
    """Returns where a part of the bar is, in pixels."""
    box = page.locator(f"#brax-viser-bar {part}").bounding_box()
    assert box is not None
    return box


def stacked(settings: Settings, *pictures: tuple[bytes, float]) -> None:
    """Writes the lower parts of several pictures, one above the other.

    Args:
        settings: where to write to.
        pictures: each with the height from which on it is taken, px.
    """
    parts = []
    for png, top in pictures:
        whole = Image.open(io.BytesIO(png)).convert("RGB")
        parts.append(whole.crop((0, int(top), whole.width, whole.height)))
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    found, y = Image.new("RGB", (parts[0].width, height), "white"), 0
    for part in parts:
        found.paste(part, (0, y))
        y += part.height + GAP
    png = io.BytesIO()
    found.save(png, "png")
    save(png.getvalue(), settings.path)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    with training(["train", settings.env, "--port", "0"]) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        take(settings, browser.new_page(viewport=viewport), address)  # pyright: ignore
        browser.close()


if __name__ == "__main__":
    main()
