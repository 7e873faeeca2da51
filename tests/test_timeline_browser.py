"""Uses the time bar in a real browser, beside a small training in this process."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import playwright.sync_api
import pytest
from PIL import Image

from benchmarks.screenshot import close_notice
from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import remote
from brax_viser.replay import ReplayViewer
from tests.conftest import eventually
from tests.recorded import Kept, recording_of, run_of
from tests.support import Probe
from tests.test_panel_browser import NUM_ENVS, Training, choose
from tests.toy import Toy

WINDOW = {"width": 1100, "height": 700}
SMALL = {"width": 700, "height": 400}
ARROW = 20  # px that a browser's own arrow takes beside the text of a list
MODEL = Toy().model
MOMENTS = """async () => {
  const found = [], line = document.querySelector("#brax-viser-bar .line");
  for (let i = 0; i < 8; i++) {
    await new Promise(requestAnimationFrame);
    found.push(Number(line.getAttribute("aria-valuenow")));
  }
  return found;
}"""  # s, of the moments that the bar shows in a row
STEPS = (0, 400_000, 1_200_000)
RECORDINGS = {step: recording_of(MODEL, step, (500, 20, 30, 40)) for step in STEPS}


class Bar:
    """The time bar of a page."""

    def __init__(self, page: Any):
        self.page, self.all = page, page.locator("#brax-viser-bar")
        self.all.and_(page.locator("[data-shows]")).wait_for()

    def part(self, name: str) -> Any:
        return self.all.locator(f".{name}")

    @property
    def shows(self) -> str:
        """Which of the two the bar says: "live" or "replay"."""
        shows, pressed = self.all.evaluate(
            """bar => [bar.dataset.shows, [...bar.querySelectorAll(
              ".shows [aria-pressed=true]")].map(button => button.className)]"""
        )
        assert pressed == [shows]
        return shows

    @property
    def text(self) -> str:
        parts = self.part("text").locator("> *").all_inner_texts()
        return " · ".join(filter(None, parts))

    @property
    def tip(self) -> str:
        return self.part("tip").inner_text()

    def place(self, share: float, part: str = "track") -> tuple[float, float]:
        box = self.part(part).bounding_box()
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2

    def dot(self, kind: str, number: int) -> tuple[float, float]:
        """Where the mark of an episode is drawn in the page."""
        drawn = self.all.locator(f"path.{kind}").get_attribute("d")
        x, y = map(float, re.findall(r"M([\d.]+) ([\d.]+)", drawn)[number])
        box = self.part("track").bounding_box()
        return box["x"] + x, box["y"] + y

    def click_curve(self, share: float) -> None:
        x, _ = self.place(share)
        self.page.mouse.click(x, self.part("track").bounding_box()["y"] + 4)


@pytest.fixture(scope="module")
def training() -> Iterator[Training]:
    training = Training()
    probe = Probe(training.viewer)
    probe.keep(Kept(episode for recording in RECORDINGS.values() for episode in recording))
    for step in range(0, 1_600_001, 100_000):
        rewards = {"episode/sum_reward": step / 1e4, "eval/episode_reward": step / 2e4}
        training.viewer.progress_fn(step, {**rewards, "loss": 80 - step / 2e4})
    yield training
    training.close()


@contextlib.contextmanager
def opened(chromium, url: str, size: dict[str, int] = WINDOW) -> Iterator[Any]:
    """Opens a page with cookies of its own."""
    context = chromium.new_context(viewport=size)
    page = context.new_page()
    page.set_default_timeout(180_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url, wait_until="commit")
    page.locator(".brax-viser-state").wait_for()
    yield page
    context.close()
    assert not errors


@pytest.fixture(scope="module")
def page(chromium, training) -> Iterator[Any]:
    probe = Probe(training.viewer)
    probe.now(probe.replay.close)  # an earlier page's
    with opened(chromium, training.viewer.url) as page:
        page.locator(".brax-viser-state").get_by_text("Live").wait_for()
        close_notice(page)
        yield page


@pytest.fixture
def bar(page, training) -> Bar:
    probe = Probe(training.viewer)
    probe.now(probe.replay.close)
    bar = Bar(page)
    eventually(lambda: bar.shows == "live", "it begins with the live robots")
    return bar


@pytest.fixture
def probe(training) -> Probe:
    return Probe(training.viewer)


def drawn(probe: Probe) -> list[int]:
    block = probe.block_of("train")
    return [] if block is None or block.frame is None else block.frame.env_index.tolist()


def beside(page: Any) -> str:
    """What the style writes above the scene."""
    return page.evaluate("getComputedStyle(document.body, '::before').content")


# Pages of their own, before there is one that stays open: software rendering is slow enough.


def test_a_page_at_a_path_of_its_own_and_an_onlookers_see_the_same(chromium, training, probe):
    place, _, token = training.viewer.url.partition("?token=")
    told = probe.replay.told
    with opened(chromium, f"{place}{token}/", SMALL) as other:  # as in a notebook's frame
        bar = Bar(other)
        bar.click_curve(0.0)
        eventually(lambda: told().active and told().index == 0, "it steers")
        assert "Looking on" not in beside(other)
        eventually(lambda: bar.text.startswith("step 0 · 4 episodes"), "and says so")
        bar.part("shows").locator(".live").click()
        eventually(lambda: not told().active and bar.shows == "live", "both ways")
    remote.ask(training.viewer.url, "replay/go", step=400_000)
    with opened(chromium, training.viewer.onlooker_url, SMALL) as other:
        bar = Bar(other)
        eventually(lambda: bar.text.startswith("step 400 k · 4 episodes"), "it sees what others do")
        for part in ("live", "reverse", "play", "on", "loop", "speed", "plot"):
            assert bar.part(part).is_disabled(), part
        bar.click_curve(0.99)
        other.mouse.click(*bar.place(0.5, "line"))
        other.mouse.move(*bar.place(0.5))
        eventually(lambda: bar.tip.startswith("step "), "it is told as others are")
        assert "Click" not in bar.tip
        assert told().index == 1 and told().playing
        assert "Looking on" in beside(other)
        other.get_by_role("tab", name="Look", exact=True).click()  # it may look at all controls
        box = other.get_by_label("Labels", exact=True)
        box.wait_for()
        with pytest.raises(playwright.sync_api.TimeoutError):
            box.click(timeout=2000)  # but use none
        assert not box.is_checked() and not probe.state.look.labels


def test_without_a_recording_it_has_the_curve_and_the_progress(chromium):
    with Viewer(port=0) as viewer, opened(chromium, viewer.url, SMALL) as page:
        VisualizedEnv(Toy(), grid=(1, 1), viewer=viewer)
        bar = Bar(page)
        viewer.progress_fn(0, {"eval/episode_reward": 1.0})
        viewer.progress_fn(5000, {"eval/episode_reward": 3.0})
        eventually(lambda: bar.text == "step 5 k", "how far it is")
        eventually(lambda: "L" in (bar.all.locator("path.line1").get_attribute("d") or ""), "curve")
        assert bar.part("hint").inner_text() == "no episode is recorded yet"
        assert bar.part("shows").locator(".replay").is_disabled()
        bar.click_curve(0.5)
        page.wait_for_timeout(300)
        assert bar.shows == "live"


def test_a_page_of_episodes_alone_has_no_live_and_plays(chromium):
    run = run_of(MODEL, 0.02, "Cart")
    recordings = *RECORDINGS.values(), recording_of(MODEL, 800_000, (50,))
    kept = Kept(episode for recording in recordings for episode in recording)
    with ReplayViewer(run, kept, port=0) as viewer, opened(chromium, viewer.url, SMALL) as page:
        viewer.show_curves({"eval/episode_reward": np.array([[0, 2e6], [0, 1], [5.0, 7.0]])})
        bar = Bar(page)
        eventually(lambda: bar.text.startswith("step 1.2 M · 4 episodes"), "the newest one plays")
        assert bar.part("shows").locator(".live").is_hidden()
        bar.click_curve(0.01)
        page.get_by_text(re.compile("Replay: step 0, ")).wait_for()
        bar.click_curve(0.4)
        eventually(lambda: bar.text.startswith("step 800 k · 1 episode · "), "there is but one")


def test_a_click_on_the_curve_takes_the_scene_there_and_live_is_one_click_away(bar, page, probe):
    state = page.locator(".brax-viser-state")
    assert re.fullmatch(r"step 1\.6\d* M", bar.text) and state.inner_text().endswith("Live")
    page.mouse.move(*bar.place(0.3))
    eventually(
        lambda: re.match(r"step 4\d\d k\s+Reward:\s*training 4\d[.\d]*\s*evaluation 2", bar.tip),
        "told",
    )
    assert "Click: the 4 episodes of step 400 k" in bar.tip
    bar.click_curve(0.3)
    page.get_by_text(re.compile(r"Replay: step 400 k, \d+\.\d s of 10\.0 s")).wait_for()
    eventually(lambda: bar.text.startswith("step 400 k · 4 episodes · "), "the bar says so")
    assert bar.shows == "replay"
    page.keyboard.press("k")
    eventually(lambda: not probe.replay.playing, "it pauses")
    told, block = probe.replay.told(), probe.block_of("train")
    assert block is not None and drawn(probe) == [1, 4, 7, 10]
    best = RECORDINGS[400_000][0]
    at = int(told.position / best.dt)
    low, high = np.sort(best.link_pos[at : at + 2], axis=0)
    probe.state.look = replace(probe.state.look, in_cells=False)  # poses as they were recorded
    eventually(
        lambda: ((low - 1e-5 <= block.pos[0]) & (block.pos[0] <= high + 1e-5)).all(), "there"
    )
    probe.state.look = replace(probe.state.look, in_cells=True)
    bar.part("shows").locator(".live").click()
    eventually(lambda: state.inner_text().endswith("Live"), "the head says so")
    assert bar.shows == "live"
    eventually(lambda: drawn(probe) == list(range(NUM_ENVS)), "the live robots are back")
    assert not probe.shared.hold.paused


def test_any_curve_can_be_drawn_and_a_click_on_it_takes_the_scene_there_too(bar, page, probe):
    line = lambda: bar.all.locator("path.line0").get_attribute("d")  # noqa: E731
    reward = line()
    bar.part("plot").select_option("loss")
    try:
        eventually(lambda: line() != reward, "it is drawn")
        assert probe.state.curve == "loss", "in the tab as well"
        first, *_, last = map(float, re.findall(r"[ML][\d.]+ ([\d.]+)", line()))
        assert first < last, "it goes down"
        page.mouse.move(*bar.place(0.3))
        eventually(lambda: re.search(r"loss:\s*5\d", bar.tip), "its value is told")
        assert "training" not in bar.tip
        bar.click_curve(0.3)
        eventually(lambda: bar.text.startswith("step 400 k · 4 episodes"), "the scene is there")
        assert bar.dot("best", 1)[0] == pytest.approx(bar.place(0.25)[0], abs=12)
    finally:
        bar.part("plot").select_option("Reward")
    eventually(lambda: "evaluation" in (page.mouse.move(*bar.place(0.3)) or bar.tip), "as before")


def test_marks_say_what_they_are_and_a_click_shows_an_episode_alone(bar, page, probe):
    marks = lambda name: bar.all.locator(f"path.{name}").get_attribute("d") or ""  # noqa: E731
    assert marks("points").count("M") == 17, "each evaluation has a point"
    assert [marks(kind).count("M") for kind in ("best", "worst", "fell", "random")] == 4 * [3]
    probe.now(lambda: probe.page.timeline.show_holds([800_000]))
    try:
        eventually(lambda: marks("holds"), "the hold is marked")
        held = float(re.fullmatch(r"M([\d.]+) 2V[\d.]+", marks("holds"))[1])
        held += bar.part("track").bounding_box()["x"]
        between = np.mean([bar.dot("best", place)[0] for place in (1, 2)])  # 0.4 M and 1.2 M
        assert held == pytest.approx(between, abs=1)
        page.mouse.move(held, bar.place(0)[1])
        eventually(lambda: "the training was held here" in bar.tip, "it says so")
    finally:
        probe.now(lambda: probe.page.timeline.show_holds([]))
    eventually(lambda: not marks("holds"), "it is gone")
    page.mouse.move(*bar.dot("worst", 2))
    eventually(lambda: "worst: env 4, return" in bar.tip, "the mark says what it is")
    summary = RECORDINGS[1_200_000][1].summary
    assert "0.4 s, terminated" in bar.tip and "Click: this episode alone" in bar.tip
    x, y = bar.dot("worst", 2)
    page.mouse.click(x, y)
    eventually(lambda: drawn(probe) == [4], "it is drawn alone")
    assert probe.replay.told().only == summary.key
    eventually(lambda: bar.text.startswith("step 1.2 M · env 4, worst"), "the bar says so")
    assert bar.dot("worst", 2)[1] == y, "the mark stays where it was clicked"
    bar.click_curve(0.99)
    eventually(lambda: drawn(probe) == [1, 4, 7, 10], "the curve shows all of them again")


def test_the_moment_is_dragged_stepped_looped_and_played_at_any_speed(bar, page, probe):
    told = probe.replay.told
    bar.part("shows").locator(".replay").click()
    eventually(lambda: told().playing and told().seconds, "the newest recording plays")
    assert told().steps[told().index] == 1_200_000
    eventually(lambda: bar.shows == "replay", "the bar says so")
    page.mouse.move(*bar.place(0.2, "line"))
    page.mouse.down()
    page.mouse.move(*bar.place(0.5, "line"), steps=4)
    page.mouse.move(*bar.place(0.6, "line"), steps=2)
    eventually(lambda: told().position == pytest.approx(6.0, abs=0.1), "the scene goes along")
    page.mouse.up()
    assert not told().playing
    eventually(lambda: re.search(r"· 6\.\d / 10\.0 s", bar.text), "the bar says where")
    page.get_by_role("button", name="Play", exact=True).wait_for()
    bar.part("speed").select_option("0.1")
    for button in (lambda: page.keyboard.press("Shift+J"), bar.part("reverse").click):
        button()
        eventually(lambda: told().playing and told().backwards, "it plays backwards")
        eventually(lambda: bar.part("reverse").get_attribute("aria-pressed") == "true", "and so on")
        page.route("**/api/timeline*", lambda route: route.abort())
        moved = np.diff(page.evaluate(MOMENTS))
        page.unroute("**/api/timeline*")
        assert (moved < 0).sum() > (moved > 0).sum(), "the bar goes back without any answer"
        page.keyboard.press("k")
        eventually(lambda: not told().playing, "it pauses")
    told_at = lambda: told().position == pytest.approx(6.0, abs=0.1)  # noqa: E731
    page.mouse.click(*bar.place(0.6, "line"))
    eventually(told_at, "there again")
    at = told().position
    for button, key, place in (("on", "l", 1), ("back", "j", -1)):
        step = round(told().position / 0.02)
        bar.part(button).click()
        eventually(lambda s=step + place: round(told().position / 0.02) == s, f"one step {button}")
        page.keyboard.press(key)
        eventually(lambda s=step + 2 * place: round(told().position / 0.02) == s, "and by key")
    assert told().position == pytest.approx(at, abs=0.03)
    room = bar.part("speed").evaluate(
        """select => {
          const canvas = document.createElement("canvas").getContext("2d");
          canvas.font = getComputedStyle(select).font;
          const widths = [...select.options].map(o => canvas.measureText(o.text).width);
          return select.clientWidth - Math.max(...widths);
        }"""
    )
    assert room >= ARROW, "no speed is cut off"
    bar.part("speed").select_option("0.1")
    eventually(lambda: told().speed == 0.1, "slow motion")
    bar.part("loop").click()
    eventually(lambda: not told().loop, "it ends at its end")
    bar.part("speed").select_option("16")
    bar.part("play").click()
    eventually(lambda: told().position == told().seconds == 10.0 and not told().playing, "there")
    eventually(lambda: "10.0 / 10.0 s" in bar.text, "the bar is at the end too")
    bar.part("loop").click()
    bar.part("speed").select_option("1")
    eventually(lambda: told().loop and told().speed == 1, "as before")


@pytest.mark.full
def test_dragging_along_the_curve_goes_through_the_recordings(bar, page, probe):
    seen = set()

    def at(share: float, step: int) -> None:
        page.mouse.move(*bar.place(share), steps=3)
        eventually(lambda: probe.replay.told().index == STEPS.index(step), f"at step {step}")
        seen.add(step)

    page.mouse.move(*bar.place(0.99))
    page.mouse.down()
    at(0.8, 1_200_000)
    at(0.3, 400_000)
    at(0.02, 0)
    page.mouse.up()
    assert seen == set(STEPS) and probe.replay.active


def test_the_bar_is_used_by_keyboard(bar, page, probe):
    told = probe.replay.told
    bar.part("track").focus()
    page.keyboard.press("End")
    eventually(lambda: told().active and told().index == 2, "the newest one")
    for key, index in (("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowRight", 1), ("Home", 0)):
        page.keyboard.press(key)
        eventually(lambda i=index: told().index == i, f"{key} goes to {index}")
    bar.part("line").focus()
    page.keyboard.press("End")
    eventually(lambda: told().seconds == told().position == 10.0, "the end of the episode")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("i")
    eventually(lambda: told().index == 1, "the recording after it, by key from anywhere")
    page.keyboard.press("u")
    eventually(lambda: told().index == 0, "and the one before")
    bar.part("play").focus()
    page.keyboard.press("Space")
    eventually(lambda: told().playing, "a button that has the focus is pressed")
    assert not probe.shared.hold.paused, "and the training is not held by that"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("b")
    eventually(lambda: bar.shows == "live", "back to live by key")


@pytest.mark.parametrize(
    "width",
    [420, pytest.param(900, marks=pytest.mark.full), pytest.param(1920, marks=pytest.mark.full)],
)
def test_nothing_is_covered_and_nothing_sticks_out(width, bar, page, probe):
    page.set_viewport_size({"width": width, "height": 800})

    def box(selector: str) -> dict[str, float]:
        return page.locator(selector).first.bounding_box()

    def bottom(selector: str) -> float:
        there = box(selector)
        return there["y"] + there["height"]

    try:
        for shows in ("live", "replay"):
            bar.part("shows").locator(f".{shows}").click()
            eventually(lambda s=shows: bar.shows == s, shows)
            top = box("#brax-viser-bar")["y"]
            assert 640 < top < 740
            eventually(lambda t=top: bottom("canvas[data-engine]") <= t, "the scene ends above it")
            assert bottom(".mantine-ScrollArea-root") <= top, "and so does the panel"
            if width == 420:  # the panel is a sheet below the scene
                sheet = box("#root .mantine-Paper-root:has(.brax-viser-state)")
                assert bottom("canvas[data-engine]") <= sheet["y"] + 1 and sheet["width"] == width
                assert sheet["height"] < 0.4 * top
            parts = bar.all.evaluate(
                """bar => [
                  "shows", "plot", "hint", "transport", "track", "line", "text",
                ].map((name) => {
                  const part = bar.querySelector(`.${name}`), box = part.getBoundingClientRect();
                  return [name, box.left, box.top, box.right, box.bottom, part.scrollWidth];
                }).filter(([, left, , right]) => right > left)"""
            )
            assert {name for name, *_ in parts} == {"shows", "plot", "track", "text"} | (
                {"hint"} if shows == "live" else {"transport", "line"}
            )
            for name, left, above, right, below, whole in parts:
                assert 0 <= left and right <= width and above >= top and below <= 800, name
                assert whole <= right - left + 1, f"{name} is cut off"
                for other, l2, t2, r2, b2, _ in parts:
                    apart = right <= l2 or r2 <= left or below <= t2 or b2 <= above
                    assert name == other or apart, f"{name} is over {other}"
    finally:
        page.set_viewport_size(WINDOW)


def test_it_is_dark_where_the_page_is(bar, page, probe):
    colour = lambda: bar.all.evaluate("bar => getComputedStyle(bar).backgroundColor")  # noqa: E731
    light = colour()
    probe.enqueue(lambda: probe.commands.surround("dark"))
    try:
        eventually(lambda: colour() != light, "its ground is another one")
        assert max(map(int, re.findall(r"\d+", colour())[:3])) < 64
    finally:
        probe.enqueue(lambda: probe.commands.surround("light"))
    eventually(lambda: colour() == light, "and back")


@pytest.mark.full
def test_it_asks_seldom_and_not_at_all_while_the_page_is_not_seen(bar, page):
    asked: Callable[[], list[float]] = lambda: page.evaluate(  # noqa: E731
        """() => performance.getEntriesByType("resource")
          .filter(({ name }) => name.includes("/api/timeline")).map(({ startTime }) => startTime)"""
    )
    page.evaluate("performance.clearResourceTimings()")
    eventually(lambda: len(asked()) >= 4, "it asks")
    assert np.diff(asked()).min() > 900, "ms"
    hide = """hidden => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.wait_for_timeout(1500)  # what was asked before is answered
    page.evaluate("performance.clearResourceTimings()")
    page.wait_for_timeout(3000)
    assert asked() == []
    page.evaluate(hide, False)
    eventually(asked, "it asks again once it is seen")


def scene(page: Any) -> np.ndarray:
    """The picture of the scene, [height, width, 3], once it is still."""
    page.mouse.move(5, 5)
    before = None
    while True:
        png = page.locator("canvas[data-engine]").screenshot()
        now = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
        if before is not None and np.array_equal(now, before):
            return now
        before = now


@pytest.mark.full
def test_an_earlier_recording_is_laid_over_a_later_one_as_a_ghost_by_clicks(bar, page, probe):
    bar.click_curve(0.99)
    page.get_by_text("Replay: step 1.2 M, ").wait_for()
    bar.part("line").click(position={"x": 200, "y": 4})
    page.get_by_role("button", name="Play", exact=True).wait_for()
    alone = scene(page)
    page.get_by_role("tab", name="Episodes").click()
    choose(page, "Compare with", "Step 400,000")
    page.get_by_text("Ghosts: step 400 k").wait_for()
    block = probe.block_of("train")

    def ghosts() -> list[bool]:
        ghost = block and block.frame and block.frame.ghost
        return [] if ghost is None else np.isfinite(ghost.link_pos).all(axis=(1, 2)).tolist()

    eventually(lambda: ghosts() == [True] * 4, "each robot has its ghost")

    def changed() -> int:
        return int((np.abs(scene(page) - alone).max(-1) > 30).sum())

    eventually(lambda: changed() > 5000, "which is seen")
    choose(page, "Compare with", "Nothing")
    eventually(lambda: ghosts() == [], "they are gone")
    # viser renders edges more coarsely while a page is slow: some hundred pixels may differ.
    eventually(lambda: changed() < 1000, "from the picture")
