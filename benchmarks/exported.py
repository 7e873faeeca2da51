"""Takes a picture of an exported page, in a real browser.

brax-viser export runs/ant ants.html --episode first best
python -m benchmarks.exported ants.html docs/export.webp --seconds 2

Needs Chromium and the `test` extra. Software rendering will do.
"""

import shutil
from pathlib import Path
from typing import Annotated

import tyro
from playwright.sync_api import sync_playwright

from benchmarks.screenshot import FLAGS, close_notice, save

REFLECTED = "document.querySelector('canvas[data-engine]')?.style.opacity === '1'"


def main(
    page: Annotated[Path, tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    *,
    seconds: float = 2.0,
    width: int = 1280,
    height: int = 720,
) -> None:
    """Takes the picture.

    Args:
        page: the exported page.
        path: where to save the picture.
        seconds: the time of the episodes to show.
        width: of the window, in pixels.
        height: of the window, in pixels.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.set_default_timeout(300_000)
        opened.goto(page.resolve().as_uri())
        opened.wait_for_function(REFLECTED)
        close_notice(opened)
        opened.locator("#root .mantine-NumberInput-input").fill(str(seconds))
        opened.mouse.move(5, 5)
        opened.wait_for_timeout(10_000)
        save(opened.screenshot(), path)
        browser.close()


if __name__ == "__main__":
    tyro.cli(main)
