"""Takes the documentation's picture of two policies that are compared.

python -m benchmarks.compared RUN_DIR docs/policies.webp

The directory must be of a training of `brax-viser train`. Needs Chromium and the `test` extra.
Software rendering will do.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from playwright.sync_api import Page, sync_playwright

from benchmarks.screenshot import FLAGS, close_notice, save
from brax_viser.cli.comparing import RunPolicies
from brax_viser.cli.policies import Given
from brax_viser.replay import ReplayViewer
from brax_viser.runs.reader import open_run


@dataclass(frozen=True)
class Settings:
    """Options of the picture."""

    run_dir: Annotated[str, tyro.conf.Positional]
    picture: Annotated[Path, tyro.conf.Positional]
    solid: str = "Newest"
    ghost: str = "At the start"
    seconds: float = 2.2
    """Moment of the two, in seconds."""
    width: int = 1180
    height: int = 900


def take(settings: Settings, page: Page, viewer: ReplayViewer) -> None:
    """Opens the page, in which the two policies play, and takes the picture."""
    page.set_default_timeout(300_000)
    page.goto(viewer.url)
    page.get_by_text("Two policies:").first.wait_for()
    close_notice(page)
    page.get_by_text("Mean distance between").first.scroll_into_view_if_needed()
    assert viewer._page is not None
    replay = viewer._page.replay
    viewer._page.events.now(lambda: replay.seek(settings.seconds))
    time.sleep(8.0)
    save(page.screenshot(), settings.picture)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    run = open_run(settings.run_dir)
    viewer = ReplayViewer(run.info, run, RunPolicies(run, Given("replay")), port=0)
    with viewer, sync_playwright() as play:
        viewer.show_curves(run.curves())
        viewer.compare_policies(settings.solid, settings.ghost)
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        take(settings, browser.new_page(viewport=viewport), viewer)  # pyright: ignore
        browser.close()


if __name__ == "__main__":
    main()
