"""Has two policies run from the same start by clicks in a real browser."""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from brax import envs
from PIL import Image

from benchmarks.screenshot import close_notice
from brax_viser import Viewer
from brax_viser.page.trials import NEWEST
from brax_viser.panel.pair import GHOST_COLOUR, SOLID_COLOUR, TITLES
from brax_viser.panel.trial_words import RUN
from tests.conftest import eventually
from tests.support import Probe
from tests.test_aside import PENDULUM, leaning
from tests.test_detail import Rollout
from tests.test_panel_browser import choose, click_bar
from tests.test_trials import advance

WINDOW = {"width": 1000, "height": 700}


@pytest.fixture(scope="module")
def rollout() -> Iterator[Rollout]:
    with Viewer(port=0) as viewer:
        rollout = Rollout(viewer, envs.get_environment(PENDULUM, backend="spring"), grid=(1, 1))
        advance(rollout)
        # The solid one lasts longer, so that its curve is not covered by the ghost's throughout.
        for step, push in ((0, 0.0), (700, -0.5), (1400, 0.2)):
            viewer.policy_params_fn(step, leaning, {"push": np.float32(push)})
        yield rollout


def pixels(what: Any) -> np.ndarray:
    """The picture of an element, int [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(what.screenshot())).convert("RGB"), int)


def count_of(picture: np.ndarray, colour: str) -> int:
    """How many pixels have about a colour, given as "#rrggbb"."""
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(picture - rgb).max(axis=-1) < 60).sum())


def violet(page: Any) -> int:
    """How many pixels of the scene are as violet as a ghost, which lets through what is behind."""
    red, green, blue = np.moveaxis(pixels(page.locator("canvas[data-engine]")), -1, 0)
    return int(((red - green > 15) & (blue - green > 40)).sum())


@pytest.mark.full
def test_run_both_is_clicked_and_the_ghost_and_both_curves_are_seen(chromium, rollout):
    viewer, probe = rollout.viewer, Probe(rollout.viewer)
    page = chromium.new_page(viewport=WINDOW)
    page.set_default_timeout(180_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(viewer.url)
    state = page.locator(".brax-viser-state")
    state.wait_for()

    def step_until_live() -> None:
        live = lambda: advance(rollout) or state.inner_text().endswith("Live")  # noqa: E731
        eventually(live, "the live robot is drawn", 180)

    step_until_live()
    close_notice(page)
    assert violet(page) == 0
    page.get_by_role("tab", name="Episodes").click()
    choose(page, "Ghost", "Step 700")
    assert page.get_by_label("Solid", exact=True).input_value() == NEWEST
    page.get_by_role("button", name=RUN, exact=True).click()
    page.get_by_text(re.compile(r"Two policies: \d")).wait_for()

    page.get_by_role("button", name="Pause", exact=True).click()
    click_bar(page, "line", 0.9)
    trial = probe.replay.told().trial
    assert trial is not None and [e.summary.num_steps for e in trial.episodes] == [1400, 700]
    eventually(lambda: violet(page) > 200, "the ghost is seen", 180)
    rows = page.locator("table").filter(has_text="Ghost").inner_text().splitlines()
    assert [row.split("\t")[:2] for row in rows[1:]] == [
        ["Solid", "newest (step 1.4 k)"],
        ["Ghost", "step 700"],
    ]
    for title, colours in zip(TITLES, ((SOLID_COLOUR, GHOST_COLOUR), (SOLID_COLOUR,)), strict=True):
        page.get_by_text(title).scroll_into_view_if_needed()
        plot = page.locator(".uplot:visible").nth(TITLES.index(title))
        plot.scroll_into_view_if_needed()
        for colour in colours:
            eventually(
                lambda p=plot, c=colour: count_of(pixels(p), c) > 40, f"{title} {colour}", 180
            )

    page.get_by_role("button", name="Live", exact=True).click()
    step_until_live()
    eventually(lambda: violet(page) == 0, "the ghost is gone with the trial", 180)
    page.get_by_text(TITLES[0]).wait_for(state="hidden")
    page.close()
    assert not errors
