"""Uses the page as a person does: a real training, a real browser, real clicks."""

import contextlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.conftest import eventually

WINDOW = {"width": 960, "height": 640}
"""px. As small as possible: the CPU that trains also renders each pixel."""

PANEL = 324
BAR = 86  # px: height of the time bar, which moves as long as the training does
SCENE = {
    "x": 10,
    "y": 80,
    "width": WINDOW["width"] - PANEL - 20,
    "height": WINDOW["height"] - BAR - 90,
}
"""The part of the window that shows nothing but robots."""

COUNTS = {None: 1, " k": 1e3, " M": 1e6, " G": 1e9}


@contextlib.contextmanager
def trained(env: str, folder: Path, more: str = "") -> Iterator[str]:
    """Starts `brax-viser train` as a user does; yields its URL."""
    command = Path(sys.executable).with_name("brax-viser")
    log = (folder / "log").open("w+")
    # Far more steps than the test will take: it must still be running at the end.
    options = f"--grid 3 3 --num-envs 64 --num-timesteps 500000000 --port 0 {more}"
    process = subprocess.Popen(
        [command, "train", env, *options.split()],
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def address() -> str | None:
        assert process.poll() is None, Path(log.name).read_text()
        found = re.search(r"http://\S+", Path(log.name).read_text())
        return found and found[0]

    started = time.monotonic()
    eventually(address, "the address is printed", timeout=60)
    url = address()
    assert url is not None
    print(f"address after {time.monotonic() - started:.1f} s")
    yield url
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[str]:
    """The URL of the training that most of the tests share."""
    with trained("ant", tmp_path_factory.mktemp("training")) as url:
        yield url


def new_page(chromium):
    page = chromium.new_page(viewport=WINDOW)
    page.set_default_timeout(90_000)  # the CPU is busy training, so it draws slowly
    return page


@pytest.fixture(scope="module")
def page(chromium, training):
    """The page that most of the tests share, one after the other."""
    page = new_page(chromium)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(training)
    page.get_by_label("Streaming").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Look").click()
    page.get_by_label("Tints").uncheck()  # ants are found by their colour
    page.get_by_role("tab", name="Watch").click()
    yield page
    assert not errors
    page.close()


@pytest.fixture
def live(page) -> None:
    """Waits until the training has begun, whichever test is the first."""
    page.get_by_text("Live").wait_for(timeout=400_000)


def scene(page) -> np.ndarray:
    """Returns a picture of the 3-D view, int [H, W, 3]."""
    image = Image.open(io.BytesIO(page.screenshot(clip=SCENE))).convert("RGB")
    return np.asarray(image).astype(int)


def moved(page, seconds: float) -> bool:
    """Whether the robots look different `seconds` later."""
    before = scene(page)
    page.wait_for_timeout(1000 * seconds)
    return bool((np.abs(scene(page) - before).max(axis=2) > 40).sum() > 30)


def stands_still(page) -> None:
    """Waits for the end of the stretch that is being played; a slow page draws it late."""
    eventually(lambda: not moved(page, 2.0), "robots stand still", timeout=90)


def text(page) -> str:
    return page.inner_text("body")


def steps(page) -> float:
    """Returns the number of steps that the panel shows."""
    found = re.search(r"([\d.]+)( [kMG])? of 500 M steps", text(page))
    assert found is not None, text(page)
    return float(found[1]) * COUNTS[found[2]]


def held_at(page) -> str:
    """Returns the step at which the training is held, as the panel shows it."""
    found = []

    def held() -> bool:  # it is not held for a moment between two steps
        found[:] = re.findall(r"Held at step ([\d,]+)", text(page))
        return bool(found)

    eventually(held, "it is held", timeout=60)
    return found[0]


def tab(page, name: str) -> None:
    """Shows one of the panel's tabs."""
    page.get_by_text(name, exact=True).first.click()


def choose(page, label: str, option: str) -> None:
    """Picks an option from a list in the panel."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def ants(page) -> np.ndarray:
    """Returns bool [H, W]: True at ants, which are brown; all else is grey or bluish."""
    image = scene(page)
    return (image[..., 0] - image[..., 2]) > 10


def robots(page) -> list[tuple[float, float]]:
    """Returns (x, y) in the window of all that look like ants' torsos, the largest first."""
    brown = ants(page)
    # Legs are thin: torsos are the points that are furthest from the edge.
    depth = ndimage.distance_transform_edt(brown)
    assert isinstance(depth, np.ndarray)
    peaks = (depth == ndimage.maximum_filter(depth, 31)) & (depth > 7)
    labels, count = ndimage.label(peaks)
    centres = ndimage.center_of_mass(peaks, labels, range(1, count + 1))
    centres = sorted(centres, key=lambda at: -depth[round(at[0]), round(at[1])])
    return [(x + SCENE["x"], y + SCENE["y"]) for y, x in centres]


def select_a_robot(page) -> int:
    """Clicks on the robot that is most visible, and returns its env. Leaves the tab Robot open."""
    tab(page, "Robot")
    # First clicks far from all robots: an earlier selection must not be mistaken for the new one.
    away = ndimage.distance_transform_edt(~ants(page))
    assert isinstance(away, np.ndarray)
    y, x = np.unravel_index(int(away.argmax()), away.shape)
    page.mouse.click(SCENE["x"] + int(x), SCENE["y"] + int(y))
    page.get_by_text("Click a robot to select it.").wait_for(timeout=60_000)
    found: list[str] = []

    def clicked() -> bool:
        for x, y in robots(page)[:3]:
            page.mouse.click(x, y)
            for _ in range(20):  # a slow page shows the selection late
                page.wait_for_timeout(500)
                found[:] = re.findall(r"Env (\d+) · return -?[\d,.]+ so far", text(page))
                if found:
                    return True
        return False

    eventually(clicked, "a robot that is clicked is selected", timeout=120)
    return int(found[0])


def return_of_the_selected(page) -> float:
    found = re.search(r"Env \d+ · return (-?[\d,.]+) so far", text(page))
    assert found is not None
    return float(found[1].replace(",", ""))


@pytest.fixture
def swinging(tmp_path_factory) -> Iterator[str]:
    """The URL of a training that compiles sooner."""
    folder = tmp_path_factory.mktemp("swinging")
    with trained("inverted_pendulum", folder, "--backend spring") as url:
        yield url


def test_the_switch_stops_the_robots_on_all_pages_and_starts_them_again(chromium, swinging):
    page = new_page(chromium)
    page.goto(swinging)
    switch = page.get_by_label("Streaming")
    switch.wait_for(timeout=60_000)
    assert switch.is_checked()
    # Before XLA has compiled anything, the page shows robots and why they stand still.
    page.get_by_text(re.compile("Compiling|Live")).wait_for(timeout=60_000)
    eventually(lambda: np.ptp(scene(page)) > 100, "robots are drawn", timeout=60)

    page.get_by_text("Live", exact=False).wait_for(timeout=400_000)
    eventually(lambda: moved(page, 1.0), "robots move", timeout=60)

    switch.uncheck()
    page.get_by_text("Streaming is off").wait_for(timeout=30_000)
    known = steps(page)
    stands_still(page)
    eventually(lambda: steps(page) > known, "the training goes on", timeout=60)
    assert not moved(page, 1.0)

    other = new_page(chromium)
    other.goto(swinging)
    elsewhere = other.get_by_label("Streaming")
    elsewhere.wait_for(timeout=60_000)
    eventually(lambda: not elsewhere.is_checked(), "both pages show one state", timeout=60)
    elsewhere.check()
    eventually(switch.is_checked, "the first page follows the second", timeout=60)
    other.close()
    eventually(lambda: moved(page, 1.0), "robots move again", timeout=60)
    page.close()


@pytest.mark.usefixtures("live")
def test_each_mode_shows_its_budget_and_moves_the_robots(page):
    speed = page.get_by_text("Speed, ×", exact=True)
    speed.wait_for(timeout=60_000)
    for mode, words in (("Latest", "budget 2 %"), ("Every step", "no budget")):
        choose(page, "Motion", mode)
        page.get_by_text(words).wait_for(timeout=60_000)
        eventually(lambda: moved(page, 0.5), f"robots move in {mode}", timeout=60)
        eventually(lambda: speed.count() == 0, "speed is of real time alone", timeout=60)
    choose(page, "Motion", "Real time")
    speed.wait_for(timeout=60_000)
    eventually(lambda: moved(page, 0.5), "robots move in real time", timeout=60)


@pytest.mark.usefixtures("live")
def test_two_pages_agree_on_a_training_that_is_held_and_stepped(chromium, page, training):
    other = new_page(chromium)
    other.goto(training)
    page.get_by_role("button", name="Hold training").click()
    at = held_at(page)
    eventually(lambda: held_at(other) == at, "the other page says the same", timeout=60)
    other.get_by_role("button", name="Resume training").wait_for(timeout=60_000)
    stands_still(page)
    assert held_at(page) == at

    other.get_by_role("button", name="1 step", exact=True).click()
    eventually(lambda: held_at(page) != at, "one step further", timeout=60)
    at = held_at(page)
    page.get_by_role("button", name="10 steps").click()
    eventually(lambda: held_at(other) != at, "ten steps further", timeout=60)
    eventually(lambda: held_at(page) == held_at(other), "both say the same", timeout=60)
    at = held_at(page)
    page.mouse.move(400, 400)
    page.keyboard.press("n")
    eventually(lambda: held_at(page) != at, "one step further by key", timeout=60)
    other.close()  # one page is left: the training stays held
    page.wait_for_timeout(6000)
    held_at(page)
    page.keyboard.press("Space")
    page.get_by_role("button", name="Hold training").wait_for(timeout=60_000)
    eventually(lambda: moved(page, 1.0), "robots move again", timeout=60)


@pytest.mark.usefixtures("live")
def test_robots_are_selected_by_a_click_ranked_and_followed(page):
    page.get_by_role("button", name="Hold training").click()
    held_at(page)
    stands_still(page)
    tab(page, "Watch")
    choose(page, "Draw", "Best return")
    choose(page, "Return", "Episode so far")  # known for every robot
    page.wait_for_timeout(2000)
    select_a_robot(page)
    best = return_of_the_selected(page)
    tab(page, "Watch")
    page.get_by_text("9 of 64 envs are drawn").wait_for(timeout=60_000)
    first = scene(page)
    choose(page, "Draw", "Worst return")
    # The training stays held at this step.
    eventually(lambda: np.abs(scene(page) - first).max() > 40, "others are drawn", timeout=60)
    page.wait_for_timeout(1000)
    env = select_a_robot(page)
    worst = return_of_the_selected(page)
    assert worst < best

    nine = ants(page).sum()
    choose(page, "The others", "Hide")
    eventually(lambda: 0 < ants(page).sum() < 0.5 * nine, "one robot is left", timeout=60)
    page.get_by_label("Follow").check()
    page.get_by_role("button", name="Resume training").click()
    middles = []
    for _ in range(3):
        # An update of the policy can take seconds without a step.
        eventually(lambda: moved(page, 1.0), "it moves", timeout=60)
        # Held: a page that takes a second per frame shows robot and camera apart while they move.
        # The robot may be in the middle of a jump, so only its horizontal position counts.
        page.get_by_role("button", name="Hold training").click()
        held_at(page)
        stands_still(page)
        middle = (WINDOW["width"] - PANEL) / 2
        middles += [abs(middle - across) for across, _ in robots(page)[:1]]
        page.get_by_role("button", name="Resume training").click()
    # The camera follows it wherever it runs; a robot that is not followed leaves the picture.
    assert len(middles) >= 2 and np.median(middles) < 90, middles
    print("followed, pixels off the middle:", middles)
    assert f"Env {env} " in text(page)
    choose(page, "The others", "Show")
    tab(page, "Look")
    page.get_by_role("button", name="See all robots").click()
    tab(page, "Watch")
    choose(page, "Draw", "First ones")
    tab(page, "Robot")
    eventually(lambda: not page.get_by_label("Follow").is_checked(), "followed no more")
    tab(page, "Watch")


def violet(page) -> int:
    """Returns the number of pixels in the twins' colour, which nothing else in the scene has."""
    red, green, blue = np.moveaxis(scene(page), 2, 0)
    return int(((blue - green > 40) & (red - green > 10)).sum())


@pytest.mark.usefixtures("live")
def test_twins_are_drawn_and_a_robot_is_forked_into_a_sandbox_and_pushed(page):
    assert violet(page) < 20
    tab(page, "Twins")
    page.get_by_label("Twins", exact=True).check()
    page.get_by_text(re.compile(r"\d+ twins · .* ms a step")).wait_for(timeout=60_000)
    eventually(lambda: violet(page) > 200, "twins are drawn", timeout=60)
    page.get_by_text("Parted after").wait_for(timeout=60_000)
    eventually(lambda: page.locator(".uplot").count() == 2, "two curves are drawn", timeout=60)
    page.get_by_label("Twins", exact=True).uncheck()
    eventually(lambda: violet(page) < 20, "they are gone", timeout=60)

    # Held: a click misses a moving robot, and details would only come with the next step.
    page.get_by_role("button", name="Hold training").click()
    held_at(page)
    stands_still(page)
    env = select_a_robot(page)
    page.get_by_text(f"Env {env}, as MuJoCo sees it").wait_for(timeout=60_000)
    tab(page, "Twins")
    page.get_by_role("button", name="Fork the selected robot").click()
    page.get_by_text(re.compile(rf"Env {env}, forked at step .*: \d")).wait_for(timeout=120_000)
    page.get_by_role("button", name="Resume training").click()
    page.get_by_text("Driven by the policy of step").wait_for(timeout=60_000)
    # The camera has moved to the sandbox.
    eventually(lambda: ants(page).sum() > 200, "its robot is seen", timeout=60)
    choose(page, "Driven by", "Nothing")
    page.get_by_role("button", name="Up", exact=True).click()
    eventually(lambda: moved(page, 0.5), "it moves", timeout=60)
    page.get_by_role("button", name="End", exact=True).click()
    page.get_by_text(f"Takes env {env} as it is now").wait_for(timeout=60_000)
    tab(page, "Look")
    page.get_by_role("button", name="See all robots").click()
    tab(page, "Watch")
