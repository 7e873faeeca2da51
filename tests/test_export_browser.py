"""Plays an exported page in a real browser, from the file system, without a network."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.screenshot import close_notice
from brax_viser.export.html import write_html
from brax_viser.page import export_process
from brax_viser.replay import ReplayViewer
from tests.conftest import eventually
from tests.recorded import Kept
from tests.stepped import brax_model, run_info, stepped

WINDOW = {"width": 800, "height": 420}
SECONDS = 4.0


WATCH_FADING = """canvas => {
  window.faded = [];
  new MutationObserver(() => {
    if (canvas.style.opacity !== "1") faded.push(canvas.style.opacity);
  }).observe(canvas, { attributes: true, attributeFilter: ["style"] });
}"""


class Player:
    """The page, and the addresses that it has asked for."""

    def __init__(self, page):
        self.page, self.requests = page, []
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def time(self) -> float:
        bar = self.page.locator("#root [role=slider]")
        return float(bar.get_attribute("aria-valuenow"))

    @property
    def cursors(self) -> list[float]:
        """Places of the charts' cursors, from 0 to 1."""
        lines = self.page.locator("#brax-viser line.cursor")
        return [
            float(x) / 1000 for x in lines.evaluate_all("all => all.map(e => e.getAttribute('x1'))")
        ]

    def marks(self, share: float, within: float = 0.02) -> bool:
        """Whether all four charts have their cursors at a share of their widths."""
        cursors = self.cursors
        return len(cursors) == 4 and np.allclose(cursors, share, atol=within)

    def click(self, chart: int, share: float) -> None:
        svg = self.page.locator("#brax-viser .seeks svg").nth(chart)
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        self.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    def picture(self) -> np.ndarray:
        """The scene, uint8 [height, width, 3], once it is still."""
        self.page.mouse.move(5, 5)
        before = None
        while True:
            png = self.page.locator("canvas[data-engine]").screenshot()
            now = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
            if before is not None and np.array_equal(now, before):
                return now
            before = now


@contextlib.contextmanager
def playing(chromium: Any, path: Path, **options: Any) -> Iterator[Player]:
    """Opens an exported page in a context of its own."""
    context = chromium.new_context(viewport=WINDOW, **options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    player = Player(page)
    page.goto(path.as_uri())
    page.locator("#root [role=slider]").wait_for(state="attached")
    close_notice(page)
    yield player
    context.close()
    assert not errors
    assert all(url.startswith(("file:", "blob:", "data:")) for url in player.requests)


STEPS = np.linspace(0, 2e6, 400)
CURVES = {name: np.stack([STEPS, STEPS, STEPS]) for name in ("eval/episode_reward", "loss")}


@pytest.fixture(scope="module")
def player(chromium, tmp_path_factory) -> Iterator[Player]:
    path, model = tmp_path_factory.mktemp("page") / "ants.html", brax_model("ant")
    episodes = [
        stepped(model, seconds=seconds, seed=seed, strength=0.4)
        for seed, seconds in enumerate((SECONDS, 2.0))
    ]
    write_html(path, run_info(model), episodes, CURVES)
    with playing(chromium, path) as player:
        yield player


def test_an_exported_page_plays_from_the_file_system(player):
    page = player.page
    pane = page.locator("#brax-viser")
    text = pane.inner_text()
    assert "Ant · PPO" in text
    assert text.count("step 1,234,000 · return") == 2
    assert "reached the time limit after 4.0 s" in text

    eventually(lambda: player.time > 0.5, "it plays by itself")
    eventually(lambda: player.time < 0.5, "it begins again at its end")

    # A click on a curve goes to its time, and stays there.
    pictures = []
    for chart, share in ((0, 0.75), (2, 0.25), (1, 0.75)):
        player.click(chart, share)
        expected = 0.05 + share * (SECONDS - 0.05)
        eventually(lambda expected=expected: abs(player.time - expected) < 0.05, "it is shown")
        eventually(lambda share=share: player.marks(share), "marked")
        pictures.append(player.picture())
    one, other, again = pictures
    moved = (np.abs(one - other).max(axis=-1) > 30).mean()
    assert moved > 0.01, "the robot is seen, and moves"
    assert (np.abs(one - again).max(axis=-1) > 30).mean() < moved / 4, "as before at the same time"
    values = page.locator("#brax-viser .seeks figcaption b").first.inner_text().split()
    assert values[1] == "-", "the second episode has ended by then"

    # The player's own bar moves the cursors, too.
    bar = page.locator("#root .mantine-Slider-trackContainer").bounding_box()
    page.mouse.click(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    eventually(lambda: player.marks(0.5), "it is marked")

    choice = page.get_by_label("Curve of the training")
    assert choice.input_value() == "eval/episode_reward"
    choice.select_option("loss")
    assert page.locator("#brax-viser line.mark").count() == 2

    # Lights and reflections stay as they are when the time goes back: viser fades the scene in
    # again whenever it loads other reflections.
    canvas = page.locator("canvas[data-engine]")
    eventually(lambda: canvas.evaluate("e => e.style.opacity") == "1", "reflections are there")
    canvas.evaluate(WATCH_FADING)
    page.keyboard.press("Space")
    for _ in range(2):
        eventually(lambda: player.time > SECONDS - 1, "it plays")
        eventually(lambda: player.time < 1, "it begins again")
    assert page.evaluate("faded") == []


@pytest.mark.full
def test_what_a_page_replays_is_downloaded_by_a_click_and_plays_in_another_browser(
    chromium, tmp_path, monkeypatch
):
    monkeypatch.setattr(export_process, "NICENESS", 0)  # there is no training that it could slow
    model = brax_model("ant")
    kept = Kept([stepped(model, seconds=2.0, strength=0.4)])
    with ReplayViewer(run_info(model), kept, port=0) as viewer:
        viewer.show_curves(CURVES)
        context = chromium.new_context(viewport=WINDOW)
        page = context.new_page()
        page.set_default_timeout(180_000)
        page.goto(viewer.url)
        page.get_by_text("Replay: step 1.23 M, ").wait_for()
        page.get_by_role("button", name="Pause", exact=True).click()  # a page at rest takes no time
        page.get_by_role("tab", name="Episodes").click()
        with page.expect_download(timeout=600_000) as download:
            page.get_by_role("button", name="HTML", exact=True).click()
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        context.close()
    assert saved.name == "ant-step-1234000.html"
    with playing(chromium, saved, offline=True) as player:
        eventually(lambda: player.time > 0.2, "it plays by itself", 180)
        pane = player.page.locator("#brax-viser")
        assert "step 1,234,000 · return" in pane.inner_text()
        pictures = []
        for share in (0.2, 0.8):
            player.click(0, share)
            eventually(lambda s=share: player.marks(s, 0.05), "it goes there", 180)
            pictures.append(player.picture())
        moved = np.abs(pictures[0] - pictures[1]).max(axis=-1) > 30
        assert moved.mean() > 0.01, "the robot is seen, and moves"
        assert pane.get_by_label("Curve of the training").input_value() == "eval/episode_reward"
        line = pane.locator("figure").last.locator("polyline").get_attribute("points")
        assert len(line.split()) > 100 and pane.locator("line.mark").count() == 1
