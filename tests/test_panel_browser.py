"""Uses the panel in a real browser, beside a small training in this process."""

import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.page import address
from tests.conftest import eventually
from tests.recorded import Kept, recording_of
from tests.support import Probe
from tests.toy import Toy

NUM_ENVS = 16
WINDOW = {"width": 900, "height": 700}


class Training:
    """Steps a small environment until it is stopped."""

    def __init__(self, port: int = 0):
        self.viewer = Viewer(port=port)
        env = VisualizedEnv(Toy(), grid=(4, 4), viewer=self.viewer)
        self._reset, self._step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        state = self._reset(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
        while not self._stop.wait(0.02):
            state = jax.block_until_ready(self._step(state, np.zeros((NUM_ENVS, 1))))

    def end(self) -> None:
        self.viewer.resume()
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self.end()
        self.viewer.close()


@pytest.fixture(scope="module")
def training() -> Iterator[Training]:
    training = Training()
    yield training
    training.close()


@pytest.fixture(scope="module")
def page(chromium, training):
    page = chromium.new_page(viewport=WINDOW)
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(training.viewer.url)
    page.get_by_text("Live").wait_for()
    yield page
    assert not errors
    page.close()


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def top_of(page, name: str) -> float:
    box = page.get_by_role("button", name=name, exact=True).bounding_box()
    assert box is not None
    return box["y"]


def test_keys_work_after_clicks_on_controls_and_not_while_text_is_typed(page, training):
    viewer = training.viewer
    page.get_by_label("Streaming").uncheck()
    eventually(lambda: not viewer.streaming, "a click switches it off")
    page.keyboard.press("o")
    eventually(lambda: viewer.streaming, "the key works although the box was clicked on")
    page.get_by_label("Hold at the first NaN").check()
    eventually(lambda: viewer.hold_on_nan, "another box is ticked")
    page.keyboard.press("Space")
    eventually(lambda: viewer.stats().held, "space holds, and does not tick the box")
    assert viewer.hold_on_nan
    choose(page, "Motion", "Latest")
    eventually(lambda: viewer.mode == "latest", "an option is picked from a list")
    before = viewer.stats().env_steps
    page.keyboard.press("n")
    eventually(lambda: viewer.stats().env_steps == before + 1, "N steps after that")
    page.get_by_role("button", name="Resume training").click()
    eventually(lambda: not viewer.stats().held, "a click on the button resumes")
    page.keyboard.press("Space")
    eventually(lambda: viewer.stats().held, "space holds once, after a click on that very button")

    page.get_by_label("Hold at the first NaN").focus()  # as by the key Tab
    before = viewer.stats().env_steps
    page.keyboard.press("m")
    eventually(lambda: viewer.stats().env_steps == before + 10, "M works on a box with the focus")
    page.keyboard.press("Space")
    eventually(lambda: not viewer.hold_on_nan, "which space still ticks, without a mouse")
    assert viewer.stats().held

    probe = Probe(viewer)
    viewer.selected_env = 3
    page.get_by_label("Hold at the first NaN").check()
    page.keyboard.press("f")
    eventually(lambda: probe.panel_view().followed, "F follows after a click on a box")
    page.keyboard.press("f")
    eventually(lambda: not probe.panel_view().followed, "and no more")
    assert viewer.stats().held
    viewer.hold_on_nan, viewer.selected_env = False, None

    choose(page, "Draw", "Chosen by index")
    row = page.get_by_text("Indices", exact=True).locator("xpath=ancestor::*[.//input][1]")
    field = row.locator("input")
    eventually(lambda: field.input_value() == "0-15", "the field is there")
    before = viewer.stats().env_steps
    field.fill("")
    field.press_sequentially("n 1o m")
    eventually(lambda: "neither an index" in page.inner_text("body"), "what was typed is read")
    assert viewer.stats().env_steps == before and viewer.streaming
    field.fill("900")
    page.get_by_text(re.compile("There is no env 900")).first.wait_for()
    field.fill("1, 3")
    field.press("Enter")  # it is complete, and leaves the field
    page.keyboard.press("n")
    eventually(lambda: viewer.stats().env_steps == before + 1, "N steps again")
    choose(page, "Draw", "First ones")
    viewer.mode = "realtime"
    viewer.resume()


def test_no_button_moves_when_the_state_or_a_figure_changes(page, training):
    viewer = training.viewer
    page.get_by_text("Live").wait_for()
    tops = {top_of(page, "Hold training"), top_of(page, "1 step") - 0.0}
    for step in range(5):
        viewer.progress_fn(step * 1000, {"episode/sum_reward": 1e5 * step, "episode/length": 9e3})
    page.locator("svg.reward polyline").wait_for()
    page.get_by_text("Training reward 400,000").wait_for()
    page.get_by_role("button", name="Hold training").click()
    page.get_by_text(re.compile("Held at step")).wait_for()
    viewer.selected_env = 3
    page.get_by_text("T (next fall of env 3)").wait_for()
    Probe(viewer).state.notice = "A notice that is long enough for two lines. " * 3
    page.get_by_text("A notice that is long").wait_for()
    assert {top_of(page, "Resume training"), top_of(page, "1 step")} == tops
    Probe(viewer).state.notice = None
    viewer.selected_env = None
    viewer.resume()


def click_bar(page, part: str, share: float) -> None:
    """Clicks on a line of the time bar, at a share of its length."""
    line = page.locator(f"#brax-viser-bar .{part}")
    box = line.bounding_box()
    line.click(position={"x": share * box["width"], "y": 4})


def test_a_recording_is_chosen_played_scrubbed_and_left_for_the_live_robots(page, training):
    viewer, probe = training.viewer, Probe(training.viewer)
    viewer.select("first")
    probe.state.look = replace(probe.state.look, in_cells=False)  # poses as they were recorded
    replay, model = probe.replay, Toy().model
    recordings = [recording_of(model, step, (500, 20, 30, 40)) for step in (0, 1_200_000)]
    probe.keep(Kept(episode for recording in recordings for episode in recording))
    state = page.locator(".brax-viser-state")
    tops = page.evaluate(
        "[...document.querySelectorAll('[role=tab]')].map(tab => tab.getBoundingClientRect().y)"
    )
    assert len(tops) == 6 and len(set(tops)) == 1, "the tabs are in one row"
    page.get_by_role("tab", name="Episodes").click()
    page.get_by_text("2 recordings, from step 0 to 1.2 M.").wait_for()
    assert state.inner_text().endswith("Live")

    page.get_by_role("button", name="Replay", exact=True).click()
    page.get_by_text(re.compile(r"Replay: step 1.2 M, \d+\.\d s of 10\.0 s")).wait_for()
    assert "best" in page.inner_text("table") and "time limit" in page.inner_text("table")
    click_bar(page, "track", 0.0)
    page.get_by_text(re.compile("Replay: step 0, ")).wait_for()
    page.locator("table").get_by_text("Step 0", exact=True).wait_for()

    click_bar(page, "line", 0.4)
    page.get_by_text("Replay: step 0, 4.0 s of 10.0 s").wait_for()
    page.get_by_role("button", name="Play", exact=True).wait_for()  # it has paused
    at = replay.told().position
    assert at == pytest.approx(4.0, abs=0.05)
    page.get_by_role("button", name="One step on", exact=True).click()
    step = round(at / 0.02) + 1
    block, expected = probe.block_of("train"), recordings[0][0].link_pos[step]
    assert block is not None
    eventually(lambda: np.allclose(block.pos[0], expected, atol=1e-6), "it goes one step on")
    assert replay.told().position == pytest.approx(step * 0.02)

    page.get_by_role("tab", name="Watch").click()  # the way back is below all tabs
    page.get_by_role("button", name="Live", exact=True).click()
    eventually(lambda: state.inner_text().endswith("Live"), "the head says so")
    eventually(lambda: len(block.drawn_envs) == NUM_ENVS, "all robots are back")
    page.get_by_role("button", name="Play", exact=True).wait_for(state="hidden")
    assert not viewer.stats().held
    probe.state.look = replace(probe.state.look, in_cells=True)


def test_tabs_hold_the_controls_and_no_scrollbar_covers_them(page):
    for tab, control in (("Robot", "Trail"), ("Twins", "Twins"), ("Look", "Labels")):
        page.get_by_text(tab, exact=True).first.click()
        page.get_by_label(control, exact=True).wait_for()
    page.get_by_text("Watch", exact=True).click()
    page.set_viewport_size({"width": 900, "height": 420})  # so that there is a scrollbar
    bar = page.locator(".mantine-ScrollArea-scrollbar[data-orientation=vertical]").first
    bar.wait_for()
    left = bar.bounding_box()["x"]
    for name in ("Motion", "Draw"):
        box = page.get_by_label(name, exact=True).bounding_box()
        assert box["x"] + box["width"] <= left
    page.set_viewport_size(WINDOW)


def test_a_wrong_number_is_reported_beside_its_field_and_not_used(page, training):
    viewer = training.viewer
    field = page.get_by_label("Budget, %", exact=True)
    field.press("Control+a")
    field.press_sequentially("500", delay=80)
    page.get_by_text("500 is not used, 2 is: it must be 0.1 to 100.").wait_for()
    assert viewer.max_overhead == 0.02
    page.get_by_text("Watch", exact=True).click()  # the field is left
    page.wait_for_timeout(1500)
    assert viewer.max_overhead == 0.02 and field.input_value() == "500"
    field.press("Control+a")
    field.press_sequentially("7", delay=80)
    eventually(lambda: viewer.max_overhead == pytest.approx(0.07), "a possible one is used")
    page.get_by_text("is not used").wait_for(state="hidden")
    viewer.max_overhead = 0.02


def test_a_number_beyond_a_sliders_limits_is_replaced_in_words(page, training):
    viewer = training.viewer
    row = page.get_by_text("Speed, ×", exact=True).locator("xpath=ancestor::*[.//input][1]")
    field = row.locator("input[inputmode]")
    field.fill("500")
    page.get_by_text("500 is not used: it must be 0.1 to 4.").wait_for()
    assert viewer.speed == 1.0
    field.press("Enter")  # the box is left, and viser puts the slider's end into it
    page.get_by_text("4 is used instead of 500: it must be 0.1 to 4.").wait_for()
    assert field.input_value() == "4"
    eventually(lambda: viewer.speed == 4.0, "what is shown is used")
    field.fill("1")
    eventually(lambda: viewer.speed == 1.0, "a possible one is used")
    page.get_by_text("instead of").wait_for(state="hidden")


@pytest.fixture
def on_a_phone(page):
    page.set_viewport_size({"width": 420, "height": 860})
    yield page
    page.set_viewport_size(WINDOW)


def test_on_a_phone_all_tabs_stay_in_sight_and_show_their_controls(on_a_phone):
    page, state = on_a_phone, ".brax-viser-state"

    def out_of_sight() -> list[str]:
        """Returns the names of the tabs that cannot be tapped on."""
        return page.evaluate(
            """() => [...document.querySelectorAll("[role=tab]")].filter((tab) => {
                const box = tab.getBoundingClientRect();
                return ![box.left + 3, box.right - 3].every(
                    (x) => tab.contains(document.elementFromPoint(x, box.top + box.height / 2)));
            }).map((tab) => tab.innerText)"""
        )

    def shown() -> str | None:
        """Returns the name of the tab whose first control is in sight."""
        return page.evaluate(
            """() => {
                const tab = document.querySelector("[role=tab][aria-selected=true]");
                const shown = document.getElementById(tab.getAttribute("aria-controls"));
                if (!shown) return null;  // it is still being built
                const box = shown.getBoundingClientRect();
                const seen = document.elementFromPoint(box.left + 30, box.top + 20);
                return shown.contains(seen) ? tab.innerText : null; }"""
        )

    def shows(name: str) -> bool:
        """Taps on a tab, which may move as long as the page takes its new shape."""
        box = page.get_by_role("tab", name=name).bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(500)
        return shown() == name

    sheet = page.locator(f".mantine-ScrollArea-viewport:has({state})").first
    sheet.evaluate("sheet => { sheet.scrollTop = 0 }")
    assert page.get_by_role("tab").count() == 6
    eventually(lambda: not out_of_sight(), "all are below the head")
    assert shown() is None, "the head fills the sheet"
    for tab in ("Robot", "Curves", "Watch"):
        eventually(lambda: shows(tab), f"a tap on {tab} brings its controls into sight")  # noqa: B023
        assert sheet.evaluate("sheet => sheet.scrollWidth <= sheet.clientWidth")
    sheet.evaluate("sheet => { sheet.scrollTop = sheet.scrollHeight }")
    eventually(lambda: not out_of_sight(), "and they stay above its last control")
    sheet.evaluate("sheet => { sheet.scrollTop = 0 }")


def test_next_fall_without_a_robot_is_refused_with_a_notice(page):
    page.get_by_role("button", name="Next fall").click()
    page.get_by_text("Next fall: click on a robot first").wait_for()


def is_disconnected(page) -> bool:
    """Whether the page says so, in the head and above the scene, instead of its last state."""
    told = page.evaluate(
        """() => [
            getComputedStyle(document.body, "::after").content,
            getComputedStyle(document.querySelector(".brax-viser-state"), "::before").content,
        ]"""
    )
    hidden = (
        page.get_by_text("Waiting for a trainer").first.is_hidden()
        and page.evaluate(
            """() => getComputedStyle(document.querySelector(".brax-viser-state + *")).visibility"""
        )
        == "hidden"
    )
    return hidden and all("Disconnected" in words for words in told)


def test_a_page_says_that_its_server_is_gone_and_comes_back_by_itself(chromium):
    page = chromium.new_page(viewport=WINDOW)
    with Viewer(port=0, token="kept-over-a-restart") as viewer:
        VisualizedEnv(Toy(), grid=(1, 1), viewer=viewer)
        port = int(re.findall(r":(\d+)", viewer.url)[0])
        page.goto(viewer.url)
        page.get_by_text("Waiting for a trainer").wait_for(timeout=60_000)
        assert not is_disconnected(page)
    eventually(lambda: is_disconnected(page), "it says that it has no server")
    assert address.wait_until_free("127.0.0.1", port)
    with Viewer(port=port, token="kept-over-a-restart") as viewer:
        assert str(port) in viewer.url
        VisualizedEnv(Toy(), grid=(1, 1), viewer=viewer)
        page.get_by_text("Waiting for a trainer").wait_for(timeout=60_000)
        assert not is_disconnected(page)
    eventually(lambda: is_disconnected(page), "it has no server again")
    assert address.wait_until_free("127.0.0.1", port)
    with Viewer(port=port, token="another-than-before"):
        page.get_by_text("This training asks for a token").wait_for(timeout=60_000)
    page.close()


def test_the_end_of_a_training_is_shown_and_it_cannot_be_held(page, training):
    def end_of_lines(text: str) -> float:
        """px: lower end of the lines below the buttons; notices, which come and go, are below."""
        box = page.get_by_text(text).first.locator("xpath=..").bounding_box()
        return box["y"] + box["height"]

    before = end_of_lines("Keys: space")
    training.end()
    training.viewer.training_ended()
    training.viewer.policy_saved("runs/toy/policy")
    page.get_by_text("Finished").wait_for()
    page.get_by_role("button", name="The end", exact=True).wait_for()  # in the time bar
    page.get_by_text("Policy saved to runs/toy/policy", exact=True).wait_for()
    assert page.get_by_role("button", name="Hold training").is_disabled()
    page.get_by_role("button", name="1 step", exact=True).wait_for(state="hidden")
    after = end_of_lines("The training is over: there is nothing to hold.")
    assert abs(after - before) <= 1, "the tabs stay where they are"
    page.keyboard.press("Space")
    page.get_by_text("The training is over: there is nothing to hold or to step").wait_for()
    assert page.get_by_text("Live").count() == 0
