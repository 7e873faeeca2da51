"""Takes the documentation's pictures of the first minutes: all that a newcomer sees, in order.

python -m benchmarks.first_minutes docs/first_minutes

Needs Chromium and the `test` extra. Software rendering will do.
"""

import contextlib
import io
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.panel import click, hold, open_tab, select
from benchmarks.screenshot import FLAGS, close_notice, save, training

MOST_BYTES = 60_000
"""Most bytes of a picture."""

QUALITIES = (80, 70, 60, 50, 40, 30, 20)
"""Qualities of a picture, of which the first is used with which it is small enough."""

WIDE, NARROW = {"width": 1920, "height": 1080}, {"width": 420, "height": 860}
ASIDE = {"width": 640, "height": 700}  # of a window that is not looked at, and draws little
MINUTE_MS = 60_000
PARTS = ("beginning", "sizes", "held", "twins", "sandbox", "replay", "end")


@dataclass(frozen=True)
class Settings:
    """Options of the pictures."""

    folder: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    moments: tuple[int, ...] = (3, 10, 30, 60, 120)
    """Seconds after the page has opened."""
    parts: tuple[str, ...] = PARTS
    """Which pictures are taken: those of the beginning, of other sizes of the window, and so on."""
    settle: float = 15.0
    """Seconds from what is clicked to its picture: software rendering is slow."""
    steps: int = 100_000
    """Env steps of the training whose end is shown."""
    width: int = 1440
    height: int = 900

    @property
    def usual(self) -> dict[str, int]:
        """Size of the window, in pixels."""
        return {"width": self.width, "height": self.height}


def shoot(settings: Settings, page: Page, name: str) -> None:
    """Takes one picture of the window."""
    close_notice(page)
    png, path = page.screenshot(timeout=3 * MINUTE_MS), settings.folder / f"{name}.webp"
    quality = QUALITIES[0]
    for quality in QUALITIES:
        save(png, path, quality)
        if path.stat().st_size <= MOST_BYTES:
            break
    size = Image.open(io.BytesIO(png)).size
    told = f"{size[0]} x {size[1]}, {path.stat().st_size / 1000:.0f} kB, quality {quality}"
    print(f"{datetime.now():%H:%M:%S} {path}: {told}", flush=True)


def opened(browser: Browser, address: str, size: dict[str, int]) -> Page:
    """Opens the page in a window of its own."""
    page = browser.new_page(viewport=size)  # pyright: ignore
    page.set_default_timeout(20 * MINUTE_MS)  # a busy machine compiles for long
    page.goto(address)
    return page


def warm(browser: Browser) -> None:
    """Has the browser start what draws in 3-D, as one that has been in use has done."""
    page = browser.new_page()
    page.evaluate("document.createElement('canvas').getContext('webgl2').clear(16384)")
    page.screenshot()
    page.close()


def surround(page: Page, surroundings: str) -> None:
    """Makes the page light or dark, and waits for the scene to be so: a slow page takes a while."""
    open_tab(page, "Look")
    click(page.get_by_label("Surroundings", exact=True))
    click(page.get_by_role("option", name=surroundings, exact=True))
    while is_dark(page) != (surroundings == "Dark"):
        time.sleep(1.0)


def is_dark(page: Page) -> bool:
    """Whether the scene is, at its upper left corner."""
    png = page.screenshot(clip={"x": 4, "y": 4, "width": 4, "height": 4})
    return Image.open(io.BytesIO(png)).convert("L").getextrema()[1] < 128  # pyright: ignore


def beginning(settings: Settings, page: Page) -> None:
    """Takes the pictures at the moments."""
    start = time.monotonic()
    for moment in settings.moments:
        time.sleep(max(start + moment - time.monotonic(), 0.0))
        print(f"{time.monotonic() - start:.1f} s after the page has opened:", end=" ")
        shoot(settings, page, f"{moment:03d}s")


def in_both(settings: Settings, page: Page, name: str, tab: str, begin: str | None = None) -> None:
    """Takes a picture of a tab by night and by day; a moment after a button there was clicked, if
    one is given as `begin`."""
    for surroundings, ending in (("Dark", "-dark"), ("Light", "")):
        surround(page, surroundings)
        open_tab(page, tab)
        time.sleep(settings.settle)
        if begin is not None:
            click(page.get_by_role("button", name=begin))
        shoot(settings, page, name + ending)


def sizes(settings: Settings, browser: Browser, page: Page, address: str) -> None:
    """Takes the pictures of other windows, and of the night."""
    in_both(settings, page, "live", "Watch")
    page.set_viewport_size(WIDE)  # pyright: ignore
    in_both(settings, page, "wide", "Watch")
    page.set_viewport_size(ASIDE)  # pyright: ignore
    for surroundings, ending in (("Dark", "-dark"), ("Light", "")):
        surround(page, surroundings)
        narrow = opened(browser, address, NARROW)
        narrow.locator(".brax-viser-state").wait_for()
        time.sleep(2 * settings.settle)
        shoot(settings, narrow, f"narrow{ending}")
        narrow.close()
    page.set_viewport_size(settings.usual)  # pyright: ignore


def held(settings: Settings, page: Page) -> None:
    """Takes the pictures of a training that is held, with a look inside the selected robot."""
    open_tab(page, "Robot")
    for name in ("Numbers", "Contact points"):
        click(page.get_by_label(name, exact=True))
    hold(page)
    in_both(settings, page, "held", "Robot")
    for name in ("Contact points", "Numbers"):
        click(page.get_by_label(name, exact=True))
    click(page.get_by_role("button", name="Resume training"))


def twins(settings: Settings, page: Page) -> None:
    """Takes the picture of twins, and of what they say."""
    open_tab(page, "Twins")
    click(page.get_by_label("Twins", exact=True))
    page.get_by_text("MuJoCo disagrees").or_(page.get_by_text("MuJoCo agrees")).wait_for()
    time.sleep(settings.settle)
    shoot(settings, page, "twins")
    click(page.get_by_label("Twins", exact=True))


def sandbox(settings: Settings, page: Page) -> None:
    """Takes the pictures of a sandbox, a moment after the fork: ants soon fall in MuJoCo."""
    open_tab(page, "Twins")
    click(page.get_by_role("button", name="Fork the selected robot"))
    page.get_by_text("Driven by", exact=True).wait_for()
    time.sleep(settings.settle)
    in_both(settings, page, "sandbox", "Twins", begin="Back to the fork")
    click(page.get_by_role("button", name="End", exact=True))


def replay(settings: Settings, page: Page) -> None:
    """Takes the picture of recorded episodes."""
    page.get_by_text("recordings: click").wait_for()  # in the plural: more than the first
    open_tab(page, "Episodes")
    page.get_by_role("button", name="Replay", exact=True).click()
    page.get_by_text("Replay: step").wait_for()
    time.sleep(settings.settle)
    shoot(settings, page, "replay")


USES = {"held": held, "twins": twins, "sandbox": sandbox, "replay": replay}


def end(settings: Settings, browser: Browser) -> None:
    """Takes the pictures of the end of a short training."""
    options = ["train", settings.env, "--port", "0", "--num-timesteps", str(settings.steps)]
    with training(options) as address:
        page = opened(browser, address, settings.usual)
        page.get_by_text("The trained policy plays on; nothing is recorded").wait_for()
        time.sleep(settings.settle)
        in_both(settings, page, "end", "Watch")
        page.close()


def one_training(settings: Settings, browser: Browser, parts: set[str]) -> None:
    """Takes the pictures of some parts."""
    with training(["train", settings.env, "--port", "0"]) as address:
        page = opened(browser, address, settings.usual)
        if "beginning" in parts:
            beginning(settings, page)
        page.get_by_text("Training reward").wait_for()  # some episodes are over
        if "sizes" in parts:
            sizes(settings, browser, page, address)
        if parts & {*USES}:
            select(page)
        for use, take in USES.items():
            if use in parts:
                take(settings, page)
        page.close()


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    settings.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # As for a newcomer, of whom it is not known how long a start takes.
        os.environ["XDG_CACHE_HOME"] = stack.enter_context(tempfile.TemporaryDirectory())
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        warm(browser)
        # Two trainings, as in software all pictures take longer than one.
        for parts in ({"beginning", "sizes"}, {*USES}):
            if parts & {*settings.parts}:
                one_training(settings, browser, parts & {*settings.parts})
        if "end" in settings.parts:
            end(settings, browser)
        browser.close()


if __name__ == "__main__":
    main()
