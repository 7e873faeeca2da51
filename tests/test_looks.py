"""Tests how robots are marked, coloured, labelled, pointed at and followed."""

from dataclasses import replace

import numpy as np
import pytest
import viser
from brax import envs
from websockets.sync.client import connect

from benchmarks.client import SUBPROTOCOL, hello
from brax_viser.device.adapters import adapter_for
from brax_viser.model.framing import COVERED, UPRIGHT, VIEWS, CameraPose, framing_camera
from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.surfaces import linear
from brax_viser.model.tints import tints_of
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER, UNKNOWN
from brax_viser.records.view import View
from brax_viser.scene.block import Block
from brax_viser.scene.cells import FREE
from brax_viser.scene.labels import MAX_LABELS
from brax_viser.scene.look import ALIVE, BROKEN, FALLEN, UNKNOWN_RETURN, Look, colours_of, range_of
from brax_viser.scene.robots import FADED, PARKED
from brax_viser.scene.scene import Scene
from tests.conftest import eventually

COUNT = 6


def frame_of(model: Model, count: int = COUNT, first: int = 10) -> Frame:
    """Returns a frame of environments 10, 11, ... in their initial pose, with returns 0, 1, ..."""
    return Frame(
        role="train",
        env_steps=7,
        env_index=np.arange(first, first + count, dtype=np.int32),
        num_envs=1000,
        link_pos=np.repeat(model.init_pos[None], count, axis=0),
        link_rot=np.repeat(model.init_rot[None], count, axis=0),
        reward=np.linspace(1.0, 0.0, count, dtype=np.float32),
        episode_return=np.arange(count, dtype=np.float32),
        episode_length=np.full(count, 20, np.int32),
        since_termination=np.full(count, NEVER, np.int32),
        finite=np.ones(count, bool),
        finished_return=np.arange(count, dtype=np.float32),
        finished_length=np.full(count, 30, np.int32),
    )


def view_of(frame: Frame) -> View:
    hidden = np.zeros(len(frame.env_index), bool)
    return View(frame, frame.link_pos, frame.link_rot, hidden, 0.0, 0.0)


class Stage:
    """A scene with one block of robots."""

    def __init__(self, server: viser.ViserServer, name: str, grid: tuple[int, ...] = (3, 2)):
        adapter = adapter_for(envs.get_environment(name, backend="generalized"))
        self.grid = grid_of(adapter.mj_model, adapter.init_qpos, grid, None)
        self.model = Model.of(adapter.mj_model, self.grid, adapter.init_links(), 0.05)
        self.scene = Scene(server)
        self.scene.show("train", self.model, self.grid)
        self.scene.arrange(("train",))
        self.frame = frame_of(self.model, self.grid.capacity)

    @property
    def block(self) -> Block:
        return self.scene.blocks["train"]

    def draw(self, look: Look, **changes: object) -> None:
        self.frame = replace(self.frame, **changes)
        self.scene.draw({"train": view_of(self.frame)}, {"train": look})
        self.block.decorate(look)

    def move(self, env: int, by: tuple[float, float, float], look: Look) -> None:
        """Moves one robot by `by`, in metres, and draws it."""
        pos = self.frame.link_pos.copy()
        pos[env - 10] += np.array(by, np.float32)
        self.draw(look, link_pos=pos)


@pytest.fixture
def server():
    server = viser.ViserServer(port=0, verbose=False)
    yield server
    server.stop()


@pytest.fixture
def ants(server):
    stage = Stage(server, "ant")
    stage.draw(Look())
    return stage


def test_a_click_selects_the_robot_under_it_from_any_viewpoint(ants):
    scene, scale = ants.scene, ants.scene.scale
    for eye in (framing_camera(scene.bounds * scale).position, np.array([0.0, 0.0, 30.0])):
        for env in range(10, 16):
            target = scale * ants.block.place_of(env)
            ray = (target - eye) / np.linalg.norm(target - eye)
            assert scene.pick(eye, ray) == ("train", env)
        assert scene.pick(eye, np.array([0.0, 0.0, 1.0])) is None  # the sky
    # A hidden robot cannot be selected.
    ants.draw(Look(others="hide", selected_env=12))
    eye = np.array([0.0, 0.0, 30.0])
    target = scale * ants.block.place_of(14)
    assert scene.pick(eye, (target - eye) / np.linalg.norm(target - eye)) != ("train", 14)


def corners_in(camera: CameraPose, bounds: np.ndarray, aspect: float) -> np.ndarray:
    """Returns float [8, 2]: where a box's corners are in the picture, from -1 to 1."""
    forward = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    corners = np.array([[bounds[i][a] for a, i in enumerate(c)] for c in np.ndindex(2, 2, 2)])
    away = corners - camera.position
    depth = (away @ forward) * np.tan(camera.fov / 2)
    assert (depth > 0).all()
    return (
        np.stack([away @ right / aspect, away @ np.cross(right, forward)], axis=1) / depth[:, None]
    )


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("aspect", [0.5, 0.8, 1.33, 2.4])
def test_each_view_fills_the_free_part_of_a_window_of_any_shape(ants, view, aspect):
    bounds = ants.scene.bounds
    seen = corners_in(framing_camera(bounds, view, aspect=aspect), bounds, aspect)
    lowest = 1 - 2 * (1 - COVERED) if aspect < UPRIGHT else -1  # the panel is below it
    assert (seen[:, 1] >= lowest).all() and (np.abs(seen) <= 1).all()
    filled = np.ptp(seen, axis=0) / [2, 1 - lowest]
    assert 0.9 < filled.max() <= 1


def test_a_pages_camera_fits_its_window_until_its_user_moves_it(server):
    stage = Stage(server, "ant")
    bounds = stage.scene.scale * stage.scene.bounds
    wide, tall = (framing_camera(bounds, aspect=aspect) for aspect in (2.0, 0.5))
    start = server.initial_camera
    start = tuple(start.position), tuple(start.look_at)
    with connect(
        f"ws://127.0.0.1:{server.get_port()}", subprotocols=[SUBPROTOCOL], max_size=None
    ) as page:
        page.send(hello(*start, (1000, 500)))
        eventually(server.get_clients, "the page is there")
        camera = next(iter(server.get_clients().values())).camera

        def is_at(pose) -> bool:
            return np.allclose(camera.position, pose.position) and np.allclose(
                camera.look_at, pose.look_at
            )

        eventually(lambda: is_at(wide), "the camera fits a wide window")
        page.send(hello(tuple(wide.position), tuple(wide.look_at), (400, 800)))
        eventually(lambda: is_at(tall), "the camera fits a tall window")
        cells = stage.block.grid.origins(stage.block.count)[:2]  # where the replayed ones are
        of_two = stage.scene.scale * (cells[[0, -1]] + stage.block.grid.reach)
        of_two[0, 2] = bounds[0, 2]
        near = framing_camera(of_two, aspect=0.5)

        def fits(count: int | None, pose) -> bool:
            # Again, as its window's shape may not yet be known where the camera is moved.
            for again in (1 if count is None else None, count):
                stage.scene.fit(again)
            return is_at(pose)

        eventually(lambda: fits(2, near), "two robots that are replayed fill the window")
        eventually(lambda: fits(None, tall), "and then all do")
        moved = tuple(tall.position + np.array([3.0, 0.0, 0.0]))
        page.send(hello(moved, tuple(tall.look_at), (1000, 500)))
        eventually(lambda: camera.image_width == 1000, "the window is wide again")
        stage.scene.fit(2)
        np.testing.assert_allclose(camera.position, moved)
        # Close to the last robot, away from the others: two that are replayed are not in sight.
        places = stage.scene.scale * stage.block.grid.origins(stage.block.count)
        out = places[-1] - places.mean(axis=0)
        close = places[-1] - 2 * out / np.linalg.norm(out) + np.array([0.0, 0.0, 1.0])
        page.send(hello(tuple(close), tuple(places[-1]), (1000, 500)))
        eventually(lambda: np.allclose(camera.position, close), "its user has gone there")
        stage.scene.fit(None)
        np.testing.assert_allclose(camera.position, close)
        stage.scene.fit(2)
        assert np.linalg.norm(camera.position - close) > 1


def test_a_followed_robot_stays_in_place_and_the_world_moves(ants):
    scene, look = ants.scene, Look(selected_env=13)
    scene.follow(("train", 13))
    seen = lambda: scene.scale * ants.block.place_of(13) + np.array(scene._root.position)  # noqa: E731
    before = seen()
    ants.move(13, (1.7, -0.9, 0.4), look)
    np.testing.assert_allclose(seen()[:2], before[:2], atol=1e-5)
    assert seen()[2] > before[2] + 0.1 * scene.scale  # a jump stays visible
    scene.follow(None)
    assert tuple(scene._root.position) == (0.0, 0.0, 0.0)
    scene.follow(("train", 99))  # a robot that is not drawn cannot be followed
    assert scene.followed is None


def test_the_floor_moves_under_a_running_robot_that_stays_in_its_cell(ants):
    cell, cells = np.array(ants.grid.spacing[:2]), ants.block.cells
    home, marks = ants.block.place_of(12), np.array(cells._marks.batched_positions)
    near = FREE / 2 * cell[0]
    ants.move(12, (near, 0.0, 0.0), Look())  # near its start it is where it is
    np.testing.assert_allclose(ants.block.place_of(12)[:2] - home[:2], [near, 0.0], atol=1e-5)
    np.testing.assert_array_equal(cells._marks.batched_positions, marks)
    ants.move(12, (3.2 * cell[0] + 0.21, -1.4 * cell[1], 0.0), Look())
    gone = np.array([near + 3.2 * cell[0] + 0.21, -1.4 * cell[1]])
    seen = ants.block.place_of(12)[:2] - home[:2]
    np.testing.assert_allclose(seen, FREE * cell * [1, -1], atol=1e-4)
    # The marks under it are those of the place where it is.
    passed = (np.array(cells._marks.batched_positions)[2] - marks[2])[:2] + gone - seen
    np.testing.assert_allclose(passed / cells._pitch, np.round(passed / cells._pitch), atol=1e-3)
    assert (np.abs(passed - gone + seen) <= cells._pitch / 2 + 1e-4).all()
    # The whole robot is moved, and no other one, nor another one's floor.
    shift = ants.block.pos[2] - ants.model.init_pos
    np.testing.assert_allclose(shift, shift[:1].repeat(len(shift), 0), atol=1e-4)
    np.testing.assert_array_equal(ants.block.pos[3], ants.model.init_pos)
    np.testing.assert_array_equal(cells._marks.batched_positions[3], marks[3])
    ants.draw(Look(in_cells=False))
    np.testing.assert_array_equal(ants.block.pos[2], ants.frame.link_pos[2])
    np.testing.assert_array_equal(cells._marks.batched_positions, marks)


@pytest.mark.parametrize("cells", [(4, 4), (3, 2, 2), (8, 8)])
def test_neighbours_have_different_tints_and_tiles_do_not_meet(ants, server, cells):
    grid = replace(ants.grid, shape=(*cells, 1)[:3])
    tints, places = tints_of(grid, grid.capacity), grid.origins(grid.capacity)
    apart = np.abs(places[:, None] - places) / grid.spacing
    above, level = apart[..., 2], apart[..., :2].max(axis=-1)
    beside = (apart.max(axis=-1) < 1.5) & ((above < 0.5) != (level < 0.5))
    assert not (beside & (tints[:, None] == tints).all(axis=-1)).any()
    size = np.ptp(np.asarray(ants.block.cells._tiles.vertices), axis=0)
    assert (size[:2] < grid.spacing[:2]).all() and (
        size[:2] > 0.9 * np.array(grid.spacing[:2])
    ).all()


def test_tints_can_be_switched_off_and_give_way_to_colours_that_say_something(ants):
    part, tiles = ants.block.robots._parts[0], ants.block.cells._tiles
    own = np.array(part.handle.batched_colors)
    ants.draw(Look(tints=True))
    seen = np.reshape(part.handle.batched_colors, (COUNT, -1, 3))
    assert len(np.unique(seen, axis=0)) == COUNT == len(np.unique(tiles.batched_colors, axis=0))
    ants.draw(Look(tints=True, colour_by="return"))
    colours = colours_of("return", ants.frame, 0.05, "last_episode")
    assert colours is not None
    seen = np.reshape(part.handle.batched_colors, (COUNT, -1, 3))
    np.testing.assert_array_equal(seen[:, 0], linear(colours))
    ants.draw(Look())
    np.testing.assert_array_equal(part.handle.batched_colors, own)
    assert len(np.unique(tiles.batched_colors, axis=0)) == 1


def test_robots_with_colours_that_tell_parts_apart_are_not_tinted(server):
    pushers = Stage(server, "pusher")  # an arm, an object and a goal
    handles = pushers.block.robots.handles
    handles = [handle for handle in handles if isinstance(handle, viser.BatchedMeshHandle)]
    assert handles
    own = [np.array(handle.batched_colors) for handle in handles]
    pushers.draw(Look(tints=True))
    for handle, colour in zip(handles, own, strict=True):
        np.testing.assert_array_equal(handle.batched_colors, colour)
    assert len(np.unique(pushers.block.cells._tiles.batched_colors, axis=0)) == COUNT


@pytest.mark.parametrize(
    ("name", "roams"),
    [("halfcheetah", True), ("humanoid", True), ("inverted_pendulum", False), ("pusher", False)],
)
def test_only_robots_that_can_travel_without_limit_are_moved_back(server, name, roams):
    stage = Stage(server, name)
    assert (stage.model.roaming_link is not None) == roams
    stage.move(11, (50.0, 0.0, 0.0), Look())
    away = abs(stage.block.pos[1] - stage.model.init_pos).max()
    assert away < 0.51 * stage.grid.spacing[0] + 1e-3 if roams else away == 50.0


def test_other_robots_are_faded_or_hidden(ants):
    part = ants.block.robots._parts[0]
    per_robot = len(part.shape.body)
    ants.draw(Look(others="fade", selected_env=14))
    faded = np.reshape(part.handle.batched_opacities, (COUNT, per_robot))
    np.testing.assert_allclose(faded[4], 1.0)
    np.testing.assert_allclose(np.delete(faded, 4, axis=0), FADED)
    ants.draw(Look(others="hide", selected_env=14))
    height = np.reshape(part.handle.batched_positions, (COUNT, per_robot, 3))[..., 2]
    assert (height[4] > PARKED[2]).all() and (np.delete(height, 4, axis=0) == PARKED[2]).all()
    assert part.handle.batched_opacities is None
    ring = ants.block.ring.handle
    assert ring is not None and ring.visible
    np.testing.assert_allclose(ring.batched_positions[0, :2], ants.block.place_of(14)[:2])
    ants.draw(Look(others="hide"))  # without a selection no robot counts as another
    assert (np.reshape(part.handle.batched_positions, (-1, 3))[:, 2] > PARKED[2]).all()
    assert not ring.visible


def test_robots_are_coloured_by_return_and_get_their_own_colours_back(ants):
    part = ants.block.robots._parts[0]
    own = np.array(part.handle.batched_colors)
    np.testing.assert_array_equal(own, linear(part.shape.rgba[:3]))
    ants.draw(Look(colour_by="return"))
    shown = np.reshape(part.handle.batched_colors, (COUNT, len(part.shape.body), 3))
    expected = colours_of("return", ants.frame, 0.05, "last_episode")
    assert expected is not None
    expected_light = linear(expected)
    np.testing.assert_array_equal(shown, np.repeat(expected_light[:, None], shown.shape[1], axis=1))
    assert len(np.unique(expected, axis=0)) == COUNT
    ants.draw(Look())
    np.testing.assert_array_equal(part.handle.batched_colors, own)


def test_colours_encode_return_reward_and_termination(ants):
    frame = ants.frame
    assert colours_of("model", frame, 0.05) is None
    by_return, by_reward = colours_of("return", frame, 0.05), colours_of("reward", frame, 0.05)
    assert by_return is not None and by_reward is not None
    np.testing.assert_array_equal(by_return, by_reward[::-1])  # rewards fall where returns rise
    assert by_return[0].tolist() == [68, 1, 84] and by_return[-1].tolist() == [253, 231, 37]
    assert range_of("return", frame, 0.05) == (0.0, 5.0)
    assert range_of("termination", frame, 0.05) is None

    since = np.array([0, 10, NEVER, NEVER, 5, 0], np.int32)
    finite = np.array([True, True, True, False, True, True])
    ended = colours_of("termination", replace(frame, since_termination=since, finite=finite), 0.05)
    assert ended is not None
    assert tuple(ended[0]) == FALLEN and tuple(ended[2]) == ALIVE and tuple(ended[3]) == BROKEN
    assert FALLEN[0] > ended[4][0] > ended[1][0] > ALIVE[0]  # the colour fades within a second

    odd = replace(frame, episode_return=np.array([np.nan, 1, 2, 3, np.inf, 5], np.float32))
    shown = colours_of("return", odd, 0.05, "so_far")
    assert shown is not None and range_of("return", odd, 0.05, "so_far") == (1.0, 5.0)
    ones = replace(frame, episode_return=np.ones(COUNT, np.float32))
    same = colours_of("return", ones, 0.05, "so_far")
    assert same is not None and len(np.unique(same, axis=0)) == 1


def test_colours_by_return_follow_the_chosen_measure_and_unknown_returns_are_grey(ants):
    frame = replace(
        ants.frame,
        finished_return=np.array([5, np.nan, 3, 2, 1, 0], np.float32),
        episode_length=np.array([1, 2, 4, 8, 16, UNKNOWN], np.int32),
    )
    last, so_far = (colours_of("return", frame, 0.05, by) for by in ("last_episode", "so_far"))
    assert last is not None and so_far is not None
    assert tuple(last[1]) == UNKNOWN_RETURN == tuple(so_far[5])
    np.testing.assert_array_equal(last[0], [253, 231, 37])  # the highest return
    np.testing.assert_array_equal(so_far[4], [253, 231, 37])
    assert range_of("return", frame, 0.05, "per_second") == (0.0, 10.0)  # 1 in 2 steps, 2 in 4


def test_labels_show_env_return_time_and_distance_and_disappear_again(ants):
    pos = ants.frame.link_pos.copy()
    pos[:2, ants.block.model.roaming_link, :2] = [[3.0, 4.0], [-0.6, 0.8]]
    ants.frame = replace(ants.frame, link_pos=pos)
    away = ["5.0 m from start", "1.0 m from start"]
    ants.draw(Look(labels=True, others="hide", selected_env=11))
    labels = ants.block._labels.handles
    assert [label.text for label in labels[:2]] == [
        f"env 10 · last return 0.0 · for 1.0 s · {away[0]}",
        f"env 11 · last return 1.0 · for 1.0 s · {away[1]}",
    ]
    ants.draw(Look(labels=True, rank_by="per_second"))
    assert labels[1].text == f"env 11 · 1.0 reward/s · for 1.0 s · {away[1]}"
    none = np.full(COUNT, np.nan, np.float32)
    ants.draw(Look(labels=True), finished_return=none)
    assert labels[1].text == f"env 11 · no episode has ended yet · for 1.0 s · {away[1]}"
    unknown = np.full(COUNT, UNKNOWN, np.int32)
    ants.draw(Look(labels=True, rank_by="so_far"), episode_length=unknown)
    assert labels[1].text == f"env 11 · return unknown · {away[1]}"
    fell = {"fell": np.arange(COUNT) < 2, "fell_return": np.array([83.14, np.nan, *[0.0] * 4])}
    ants.draw(Look(labels=True), **fell, since_termination=np.full(COUNT, 24, np.int32))
    shown = [label.text for label in labels[:2]]
    fallen = [f"env 10 · fell 1.2 s ago · return 83.1 · {away[0]}"]
    assert shown == [*fallen, f"env 11 · fell 1.2 s ago · {away[1]}"]
    ants.draw(Look(labels=True, others="hide", selected_env=11))
    assert [label.visible for label in labels] == [env == 11 for env in range(10, 16)]
    assert labels[1].position[2] > ants.scene.scale * ants.block.place_of(11)[2]
    ants.draw(Look())
    assert ants.block._labels.handles == []


def test_the_number_of_labels_is_limited(server):
    stage = Stage(server, "inverted_pendulum", grid=(20, 20))
    stage.draw(Look(labels=True))
    assert len(stage.block._labels.handles) == MAX_LABELS


def test_a_robot_without_a_finite_pose_is_shown_at_its_last_one(ants):
    pos = ants.frame.link_pos.copy()
    pos[2, 3] = np.nan
    ants.draw(Look(), link_pos=pos, finite=np.arange(COUNT) != 2)
    assert np.isfinite(ants.block.pos).all()
    for handle in ants.block.robots.handles:
        assert np.isfinite(handle.batched_positions).all()
