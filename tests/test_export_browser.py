"""Plays an exported page in a real browser, from the file system, without a network."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from benchmarks.screenshot import close_notice
from brax_viser.export.html import write_html
from tests.conftest import eventually
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


@pytest.fixture(scope="module")
def player(chromium, tmp_path_factory) -> Iterator[Player]:
    path = tmp_path_factory.mktemp("page") / "ants.html"
    model = brax_model("ant")
    steps = np.linspace(0, 2e6, 400)
    curves = {name: np.stack([steps, steps, steps]) for name in ("eval/episode_reward", "loss")}
    episodes = [
        stepped(model, seconds=seconds, seed=seed, strength=0.4)
        for seed, seconds in enumerate((SECONDS, 2.0))
    ]
    write_html(path, run_info(model), episodes, curves)
    context = chromium.new_context(viewport=WINDOW)
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    player = Player(page)
    page.goto(path.as_uri())
    page.locator("#root [role=slider]").wait_for(state="attached")
    close_notice(page)
    yield player
    assert not errors
    context.close()


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
        eventually(lambda share=share: np.allclose(player.cursors, share, atol=0.02), "marked")
        assert len(player.cursors) == 4
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
    eventually(lambda: np.allclose(player.cursors, 0.5, atol=0.02), "it is marked")

    choice = page.get_by_label("Curve of the training")
    assert choice.input_value() == "eval/episode_reward"
    choice.select_option("loss")
    assert page.locator("#brax-viser line.mark").count() == 2

    assert all(url.startswith(("file:", "blob:", "data:")) for url in player.requests)

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
