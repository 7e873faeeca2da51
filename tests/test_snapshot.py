"""Pictures of what is on screen: drawn by an open page, or by MuJoCo where there is none."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import mujoco
import numpy as np
import pytest
from PIL import Image

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import remote
from brax_viser.export.still import Still, draw_still, draws_together
from brax_viser.model.grid import grid_of
from brax_viser.page import snapshot
from tests.conftest import Page, eventually
from tests.support import Probe
from tests.test_remote import at, get
from tests.toy import XML, Toy

CAPTION = 44
"""Pixels at the lower edge that the caption may take."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def viewer(cache):
    with Viewer(port=0) as viewer:
        yield viewer


class Training(threading.Thread):
    """Steps eight toys until the context is left."""

    def __init__(self, viewer: Viewer):
        super().__init__(daemon=True)
        self.env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        self.over, self.taken = threading.Event(), 0

    def run(self) -> None:
        state = jax.jit(jax.vmap(self.env.reset))(jax.random.split(jax.random.PRNGKey(0), 8))
        step = jax.jit(jax.vmap(self.env.step))
        while not self.over.wait(0.01):
            state = jax.block_until_ready(step(state, np.zeros((8, 1), np.float32)))
            self.taken += 1

    def __enter__(self) -> "Training":
        self.start()
        eventually(lambda: self.taken > 5, "it steps")
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(60)


@pytest.fixture
def training(viewer) -> Iterator[Training]:
    with Training(viewer) as training:
        yield training
        viewer.resume()


def opened(told: dict[str, Any]) -> np.ndarray:
    """Returns the picture of an answer, uint8 [height, width, 3]."""
    picture = Image.open(io.BytesIO(base64.b64decode(told["png"])))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def is_drawn_upon(picture: np.ndarray) -> bool:
    return picture[:-CAPTION].std() > 20


def test_without_a_page_mujoco_draws_a_step_that_was_sent_for_the_picture(viewer, training):
    assert not viewer.stats().frames, "nothing is sent while no page is open"
    told = remote.picture(viewer.url)
    assert (told["drawn_by"], told["env"], told["envs"]) == ("mujoco", "Toy", [0, 1, 2, 3])
    assert told["num_envs"] == 8 and told["env_steps"] > 0 and len(told["returns"]) == 4
    assert told["selected_env"] is None and told["role"] == "train" and told["num_steps"] > 0
    picture = opened(told)
    assert picture.shape == (720, 1280, 3) and is_drawn_upon(picture)
    assert not Probe(viewer).shared.control.watched
    eventually(lambda: nothing_more_is_sent(viewer, training), "nothing is sent any more")


def nothing_more_is_sent(viewer: Viewer, training: Training) -> bool:
    frames, taken = viewer.stats().frames, training.taken
    eventually(lambda: training.taken > taken + 10, "it steps on")
    return viewer.stats().frames == frames


def test_a_held_training_is_drawn_at_its_step_and_stays_held(viewer, training, monkeypatch):
    viewer.pause()
    eventually(lambda: viewer.stats().held, "it is held")
    taken = training.taken
    eventually(lambda: Probe(viewer).scene.blocks["train"].frame, "its step has come")
    monkeypatch.setattr(snapshot, "FRAME_SECONDS", 600.0)  # its step comes again, so it never waits
    told = remote.picture(viewer.url)
    assert told["held"] and told["env_steps"] in (taken, taken + 1) and training.taken == taken
    viewer.selected_env = 2
    assert remote.picture(viewer.url)["selected_env"] == 2
    assert viewer.stats().held and training.taken == taken


def test_before_the_first_step_the_robots_stand_where_they_begin(viewer):
    with pytest.raises(ValueError, match="no robot is on screen yet"):
        remote.picture(viewer.url)
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    begun = time.monotonic()
    told = remote.picture(viewer.url)
    assert told["env_steps"] is None and told["returns"] is None and is_drawn_upon(opened(told))
    assert time.monotonic() - begun < 60


def test_onlookers_take_pictures_and_other_sites_do_not(viewer):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    assert remote.picture(viewer.onlooker_url)["drawn_by"] == "mujoco"
    assert get(at(viewer, "api/snapshot"))[0] == 403
    header = {"X-Brax-Viser": "1"}
    assert get(at(viewer, "api/snapshot", token="wrong-token"), **header)[0] == 403
    assert get(at(viewer, "api/snapshot"), Origin="http://evil.example", **header)[0] == 403
    assert get(at(viewer, "api/snapshot") + "&id=x", **header)[0] == 400
    assert get(at(viewer, "api/snapshot") + "&id=99", **header)[0] == 404


def test_one_picture_is_taken_at_a_time_and_few_are_kept(viewer, monkeypatch):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    go_on, drawn = threading.Event(), []

    def drawing(still: Still, size: tuple[int, int]) -> np.ndarray:
        drawn.append(still)
        assert go_on.wait(60)
        return np.zeros((90, 160, 3), np.uint8)

    monkeypatch.setattr(snapshot, "draw_still", drawing)
    first = [remote.ask(viewer.url, "snapshot")["id"] for _ in range(20)]
    assert set(first) == {1}
    go_on.set()
    told = [remote.picture(viewer.url) for _ in range(6)]
    assert all("png" in one for one in told) and len(drawn) <= 7
    with pytest.raises(ValueError, match="no picture 1 any more"):
        remote.ask(viewer.url, "snapshot", id=1)


def test_the_command_writes_the_file_and_tells_programs_what_is_seen(
    viewer, tmp_path, monkeypatch, capsys
):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    done = subprocess.run(
        [sys.executable, "-m", "brax_viser", "snapshot", "one.png"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["drawn_by"] == "mujoco" and told["path"] == str(tmp_path / "one.png")
    assert "png" not in told and Image.open(told["path"]).size == (1280, 720)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for where in ((viewer.url, "two.png"), ("three.png", viewer.onlooker_url)):
        assert remote.snapshot(where) == 0
        assert json.loads(capsys.readouterr().out)["envs"] == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.glob("*.png")} == {"one.png", "two.png", "three.png"}
    for where in ((), ("out.jpg",), ("a.png", "b.png"), ("a.png", "http://x", "http://y")):
        assert remote.snapshot(where) == 2
        assert "ends in .png" in " ".join(capsys.readouterr().err.split())


def test_where_mujoco_cannot_draw_the_command_says_what_to_install(viewer, monkeypatch, capsys):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    told = None
    try:
        told = remote.picture(viewer.url)
    except ValueError as error:
        assert "apt install libegl1" in str(error)
    if told is not None:
        pytest.skip("OSMesa is installed")
    assert remote.snapshot((viewer.url, "out.png")) == 2
    assert "MuJoCo needs EGL or OSMesa" in " ".join(capsys.readouterr().err.split())
    assert not os.path.exists("out.png")


def test_a_page_that_sends_no_picture_is_passed_over(viewer, monkeypatch):
    monkeypatch.setattr(snapshot, "PAGE_SECONDS", 0.5)
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    page = Page(viewer)  # which is no browser: it answers no such request
    assert remote.picture(viewer.url)["drawn_by"] == "mujoco"
    assert Probe(viewer).shared.control.watched, "the page is open as before"
    page.close()


def test_what_is_drawn_stays_bit_by_bit_the_same_while_pictures_are_taken(viewer):
    def trained(env: Any, pictures: bool) -> list[np.ndarray]:
        state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
        step, seen = jax.jit(jax.vmap(env.step)), []
        for n in range(60):
            if pictures and n % 20 == 5:
                remote.ask(viewer.url, "snapshot")
            state = jax.block_until_ready(step(state, np.full((4, 1), np.sin(n), np.float32)))
            seen.append(np.asarray(state.obs))
        return seen

    watched = trained(VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer), True)
    assert all(map(np.array_equal, watched, trained(Toy(), False)))


def still_of(model: mujoco.MjModel, count: int, **own: np.ndarray) -> Still:
    """Robots in their initial pose, in a row of cells along x."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    grid = grid_of(model, model.qpos0, (count, 1), None)
    pos = np.tile(data.xpos[None, 1:], (count, 1, 1))
    rot = np.tile(data.xquat[None, 1:], (count, 1, 1))
    fields = [{name: of[index] for name, of in own.items()} for index in range(count)]
    return Still(model, pos, rot, grid.origins(count), grid.bounds(count), fields)


def islands(picture: np.ndarray) -> list[int]:
    """Returns how many pixels each spot of red has, from left to right."""
    from scipy import ndimage

    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    labels, count = ndimage.label((r > 60) & (r > 2 * g) & (r > 2 * b))
    found = ndimage.find_objects(labels)
    order = np.argsort([box[1].start for box in found])
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, np.arange(1, count + 1))
    return [int(sizes[index]) for index in order if sizes[index] > 20]


def test_each_robot_stands_in_its_cell_and_looks_like_its_own_model():
    red = XML.replace('type="box"', 'type="box" rgba="1 0 0 1"')
    model = mujoco.MjModel.from_xml_string(
        red.replace(
            "<worldbody>", '<worldbody><light pos="0 0 9"/><geom type="plane" size="1 1 1"/>'
        )
    )
    sizes = np.tile(model.geom_size, (4, 1, 1))
    sizes[2, 1] *= 0.5
    spots = islands(draw_still(still_of(model, 4, geom_size=sizes), (640, 360)))
    assert len(spots) == 4
    assert spots[2] < 0.6 * min(spots[0], spots[1], spots[3])


def test_what_is_fixed_to_a_robots_world_is_drawn_in_each_cell():
    xml = XML.replace(
        "<worldbody>", '<worldbody><geom type="box" size=".1 .1 .1" pos="0 .4 .1" rgba="1 0 0 1"/>'
    )
    model = mujoco.MjModel.from_xml_string(xml)
    assert len(islands(draw_still(still_of(model, 3), (640, 360)))) == 3


def test_rough_ground_is_drawn_with_one_robot_alone():
    ground = '<asset><hfield name="h" nrow="4" ncol="4" size="2 2 1 .1"/></asset><worldbody>'
    rough = XML.replace("<worldbody>", ground + '<geom type="hfield" hfield="h"/>')
    assert draws_together(mujoco.MjModel.from_xml_string(XML))
    assert not draws_together(mujoco.MjModel.from_xml_string(rough))


def test_captions_briefly_describe_the_picture():
    status = {"env": "Ant", "held": False, "phase": "training", "num_steps": 1_200_000}
    status["reward"] = 468.04
    facts = {"envs": list(range(16)), "num_envs": 4096, "role": "train"}
    left, right = snapshot.captions(status, facts)
    assert left == "Ant · training · step 1.2 M · reward 468.0" and right == "envs 0-15 of 4,096"
    facts = {"envs": list(range(0, 128, 2)), "num_envs": None, "role": "eval"}
    left, right = snapshot.captions({**status, "held": True, "reward": None}, facts)
    assert left == "Ant · held · step 1.2 M" and right == "evaluation, 64 envs"


def test_an_open_browser_page_draws_the_picture_as_its_user_sees_it(viewer, chromium, monkeypatch):
    monkeypatch.setattr(snapshot, "PAGE_SECONDS", 150.0)  # software draws it on a busy machine
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    page = chromium.new_page(viewport={"width": 900, "height": 600})
    page.goto(viewer.url)
    eventually(
        lambda: page.wait_for_timeout(100) or Probe(viewer).shared.control.watched, "it is open"
    )
    page.get_by_label("Streaming").wait_for(timeout=120_000)
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(remote.picture(viewer.url)))
    asking.start()
    while asking.is_alive():  # the page works only while Playwright does
        page.wait_for_timeout(100)
    told = answers[0]
    picture = opened(told)
    assert told["drawn_by"] == "page" and told["envs"] == [0, 1, 2, 3]
    assert picture.shape[1] <= 900 and picture.shape[0] <= 600 and is_drawn_upon(picture)
    page.close()
