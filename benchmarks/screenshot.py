"""Takes a picture of the page, in a real browser, during a real training.

python -m benchmarks.screenshot docs/twins.webp --env humanoid --grid 4 3 --twins

Needs Chromium and the `test` extra. Software rendering will do.
"""

import contextlib
import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--ignore-gpu-blocklist --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()


@dataclass(frozen=True)
class Settings:
    """Options of the picture."""

    path: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    grid: tuple[int, int] = (8, 8)
    after: float = 20.0
    """Seconds of live training before the picture."""
    twins: bool = False
    """Whether to switch the twins on, and to show their folder of the panel."""
    width: int = 1440
    height: int = 900


def take(settings: Settings, page: Page, address: str) -> None:
    """Opens the page, waits for the training, and takes the picture."""
    page.goto(address)
    page.get_by_text("Live").wait_for(timeout=300_000)
    if settings.twins:
        page.get_by_text("Twins", exact=True).first.click()
        page.get_by_label("Twins", exact=True).check()
        page.get_by_label("Twins", exact=True).scroll_into_view_if_needed()
    time.sleep(settings.after)
    close_notice(page)
    time.sleep(2.0)
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    save(page.screenshot(), settings.path)


def save(png: bytes, path: Path, quality: int = 80) -> None:
    """Writes a picture in the format given by its file name."""
    Image.open(io.BytesIO(png)).convert("RGB").save(path, quality=quality, method=6)


def close_notice(page: Page) -> None:
    """Closes the notice that software rendering causes: with a GPU it does not appear."""
    notice = page.locator(".mantine-Notification-closeButton")
    if notice.count():
        notice.first.click()


@contextlib.contextmanager
def training(options: Sequence[str]) -> Iterator[str]:
    """Runs `brax-viser` with these options until the context is left; yields the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", "from brax_viser.cli import main; main()", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = (re.search(r"http://\S+", line) for line in process.stdout)
        yield next(filter(None, lines))[0]
    finally:
        process.kill()
        process.wait()


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    columns, rows = settings.grid
    options = f"train {settings.env} --port 0 --grid {columns} {rows}".split()
    with training(options) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        take(settings, browser.new_page(viewport=viewport), address)  # pyright: ignore
        browser.close()


if __name__ == "__main__":
    main()
