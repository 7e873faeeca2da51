"""Takes the documentation's pictures of the panel: its head, and each of its tabs.

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
from brax_viser.panel.curve_lines import TERMS

TABS = ("Watch", "Robot", "Curves", "Twins", "Look")
"""The panel's tabs, below its head."""

MARGIN = 9
"""Pixels around a picture."""


@dataclass(frozen=True)
class Settings:
    """Options of the pictures."""

    folder: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    width: int = 760
    height: int = 1000
    tall: int = 2400
    """Height of a window that holds the longest tab, in pixels."""
    seconds: float = 20.0
    """Time for twins and sandbox to run before their pictures are taken, in seconds."""
    tallest: int = 760
    """Limit on the height of a picture, in pixels; a taller tab is cut off at the bottom."""


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, selects the robot, and takes a picture of each part of the panel."""
    page.goto(address)
    page.get_by_text("Live").wait_for(timeout=300_000)
    time.sleep(5.0)
    close_notice(page)
    select(page)
    for tab, names in (("Robot", ("Joint axes", "Numbers")), ("Twins", ("Twins",))):
        open_tab(page, tab)
        for name in names:
            click(page.get_by_label(name, exact=True))
    click(page.get_by_role("button", name="Fork the selected robot"))
    page.get_by_text("Driven by", exact=True).wait_for(timeout=300_000)
    time.sleep(settings.seconds)
    page.set_viewport_size({"width": settings.width, "height": settings.tall})
    for tab in TABS:
        open_tab(page, tab)
        if tab == "Curves":
            click(page.get_by_label("Show", exact=True))
            # The last one: the time bar's list has one of the same name.
            click(page.get_by_role("option", name=TERMS, exact=True).last)
        time.sleep(5.0)
        _save(settings, page, tab)


def open_tab(page: Page, tab: str) -> None:
    """Shows a tab. Viser's tabs can be dragged, so they want the mouse, not just a click."""
    box = page.get_by_text(tab, exact=True).first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    time.sleep(2.0)


def select(page: Page) -> None:
    """Clicks a robot while the training is held, because it moves and the page is slow."""
    hold(page)
    open_tab(page, "Robot")  # which says whether a robot is selected
    scene = {"x": 0, "y": 0, "width": _left(page) - 10, "height": _bottom(page)}
    page.mouse.click(*_robot_in(page.screenshot(clip=scene)))  # pyright: ignore
    none = page.get_by_text("Click a robot to select it.")
    none.wait_for(state="detached", timeout=30_000)
    click(page.get_by_role("button", name="Resume training"))


def hold(page: Page) -> None:
    """Holds the training, and waits for its step to be on screen."""
    click(page.get_by_role("button", name="Hold training"))
    page.get_by_text("Held at step").wait_for(timeout=60_000)
    time.sleep(5.0)


def _robot_in(png: bytes) -> tuple[float, float]:
    """Returns the pixel (x, y) that is deepest within something other than the floor."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)
    usual = np.median(pixels.reshape(-1, 3), axis=0)
    differs = np.abs(pixels - usual).sum(axis=2) > 150
    within = np.asarray(ndimage.distance_transform_edt(differs))
    y, x = np.unravel_index(np.argmax(within), within.shape)
    return float(x), float(y)


def click(control: Locator) -> None:
    """Clicks without waiting for the control to stand still: in a slow browser it never does."""
    control.wait_for(timeout=60_000)
    control.dispatch_event("click")
    time.sleep(2.0)


def _left(page: Page) -> float:
    """Returns the panel's left edge, in pixels."""
    box = page.get_by_text("Watch", exact=True).first.bounding_box()
    assert box is not None
    return box["x"]


def _bottom(page: Page) -> float:
    """Returns the scene's lower edge, in pixels."""
    box = page.locator("#brax-viser-bar").bounding_box()
    assert box is not None
    return box["y"]


def _save(settings: Settings, page: Page, tab: str) -> None:
    """Saves a picture of a tab, and with the first of one of the head."""
    strip = page.get_by_text(tab, exact=True).first.bounding_box()
    viewport = page.viewport_size
    assert strip is not None and viewport is not None
    left, top = _left(page) - MARGIN, strip["y"] - 2.0  # the head ends right above
    right, bottom = viewport["width"], _end(page)
    whole = Image.open(io.BytesIO(page.screenshot()))
    boxes = {tab.lower(): (left, top, right, min(bottom, top + settings.tallest))}
    if tab == TABS[0]:
        boxes["head"] = (left, 0.0, right, top)
    for name, box in boxes.items():
        part = io.BytesIO()
        whole.crop(box).save(part, "png")
        save(part.getvalue(), settings.folder / f"{name}.webp")


def _end(page: Page) -> float:
    """Returns the lower edge of what the panel shows, in pixels."""
    return float(
        page.evaluate(
            """() => document.querySelector(".brax-viser-state")
                .closest(".mantine-ScrollArea-content").getBoundingClientRect().bottom"""
        )
    )


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
