"""Opens replays of single pages by the time bar's button, in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brax_viser import Viewer
from brax_viser.cli import remote
from tests.conftest import eventually
from tests.recorded import recording_of
from tests.support import Probe
from tests.test_own import MODEL, RUN, own_url, training
from tests.test_timeline_browser import SMALL, Bar, beside, opened

OWN = re.compile(r"/own/[a-z0-9]{12}/")


@pytest.fixture(scope="module")
def viewer(tmp_path_factory) -> Iterator[Viewer]:
    with training(tmp_path_factory.mktemp("own") / "run") as viewer:
        yield viewer


def opened_by(bar: Bar) -> Bar:
    """Clicks on the bar's button, and returns the bar of the page that opens."""
    button = bar.part("own")
    eventually(button.is_enabled, "it is offered")
    assert button.get_attribute("aria-label") == "Replay on my own"
    with bar.page.context.expect_page() as opening:
        button.click()
    page = opening.value
    page.set_default_timeout(180_000)
    page.set_viewport_size(SMALL)
    assert OWN.search(page.url)
    bar = Bar(page)
    eventually(lambda: bar.shows == "replay" and "4 episodes" in bar.text, "it plays", 120)
    return bar


def step_of(bar: Bar) -> str:
    return bar.part("step").inner_text()


def test_two_pages_open_replays_and_scrubbing_one_moves_no_other_page(chromium, viewer, tmp_path):
    live = Probe(viewer).replay
    with (
        opened(chromium, viewer.url, SMALL) as steering,
        opened(chromium, viewer.onlooker_url, SMALL) as looking,
    ):
        mine, theirs = opened_by(Bar(steering)), opened_by(Bar(looking))
        assert "Looking on" not in beside(theirs.page) and "Looking on" in beside(looking)
        looking.close()  # software rendering is slow enough
        for bar in (mine, theirs):
            assert step_of(bar) == "step 1.2 M" and not bar.part("play").is_disabled()
            assert bar.page.get_by_text("Save as").count() == 0
        theirs.click_curve(0.01)
        eventually(lambda: step_of(theirs) == "step 0", "an onlooker goes back")
        theirs.page.get_by_text(re.compile("Replay: step 0, ")).wait_for()
        mine.page.mouse.move(*mine.place(0.2, "line"))
        mine.page.mouse.down()
        mine.page.mouse.move(*mine.place(0.6, "line"), steps=4)
        mine.page.mouse.up()
        eventually(lambda: re.search(r"· 6\.\d / 10\.0 s", mine.text), "and I scrub")
        assert step_of(mine) == "step 1.2 M" and not live.active
        assert Bar(steering).shows == "live"
        save(mine.page, tmp_path / "own.png")
        back = mine.part("own")
        assert back.get_attribute("aria-label") == "Live page"
        back.click()
        mine.page.wait_for_url(lambda url: not OWN.search(url))
        eventually(lambda: Bar(mine.page).shows == "live", "the live page is one click away")
        assert not live.active
        save(mine.page, tmp_path / "live.png")


def save(page: Any, path: Path) -> None:
    assert page.screenshot(path=path)


def test_before_the_first_recording_the_button_says_why_it_is_disabled(chromium):
    with Viewer(port=0) as kept_in_memory, opened(chromium, kept_in_memory.url, SMALL) as page:
        own = Bar(page).part("own")
        eventually(lambda: own.get_attribute("title") == "No episode is recorded yet", "it says so")
        assert own.is_disabled()
        keeper = Probe(kept_in_memory).page._keeper
        keeper.begin(RUN)
        keeper.add(recording_of(MODEL, 0, (50,)))
        eventually(own.is_enabled, "it is offered, of what is in memory")


def test_it_is_reached_in_a_frame_with_the_token_in_its_path(chromium, viewer):
    place, _, token = viewer.url.partition("?token=")
    with opened(chromium, f"{place}{token}/", SMALL) as page:
        page.context.clear_cookies()
        bar = opened_by(Bar(page))
        assert f"/{token}/own/" in bar.page.url
        name = re.search(r"/own/([a-z0-9]{12})/", bar.page.url)
        assert name is not None
        told = remote.ask(own_url(viewer, name[1]), "timeline")
        assert told["replay"]["active"]
