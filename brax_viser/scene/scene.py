"""Draws the whole 3-D scene: a block of robots for each rollout that is shown, on one stage."""

import numpy as np
import viser

from brax_viser.model.cameras import ModelCamera
from brax_viser.model.framing import FOV
from brax_viser.model.palettes import DARK, LIGHT, palette_of
from brax_viser.model.robot import Model
from brax_viser.records.grid import Grid
from brax_viser.records.view import ASIDE, View
from brax_viser.scene.block import Block
from brax_viser.scene.look import Look
from brax_viser.scene.stage import scene_scale, set_stage
from brax_viser.scene.views import Views

ROOT = "/scene"
"""The node above all others. It is moved to keep a followed robot in place: moving the cameras
instead would fight with the users who turn them."""

SURROUNDINGS = ("light", "dark", "model")


GAP = 1.5
"""Distance between two blocks, in cells."""

NEAR, WIDE = 0.6, 1.2
"""How far from the middle of a link, in its radii, a click may be: within the first, the link
nearest to the camera is picked; within the second, the one closest to the click."""


class Scene:
    """Shows rollouts side by side. Used on the page's loop only."""

    def __init__(self, server: viser.ViserServer):
        self._server = server
        self._root = server.scene.add_frame(ROOT, show_axes=False)
        self._wanted: dict[str, tuple[Model, Grid, int]] = {}
        self.blocks: dict[str, Block] = {}  # by role
        self.sent = 0  # bytes of moving robots that each page was sent, or could have taken
        self.scale = 1.0
        self._surroundings = "light"
        self.bounds = np.zeros((2, 3))
        self._fitted: int | None = None  # how many robots of the only block cameras must show
        self._followed: tuple[str, int] | None = None
        self._anchor = np.zeros(3)  # m, where a followed robot stays
        # By client id: the page's camera, and the model's camera that it looks through.
        self._eyes: dict[int, tuple[viser.CameraHandle, ModelCamera]] = {}
        self.views = Views(server)
        self._visitors: set[int] = set()  # pages, by client id, that look at the sandbox

    def show(self, role: str, model: Model, grid: Grid, num_envs: int | None = None) -> None:
        """Gives a rollout a new block, which `arrange` makes in place of the former one.

        Args:
            role: of the rollout.
            model: the robot.
            grid: its cells.
            num_envs: number of environments; None if it is not known yet.
        """
        count = grid.capacity if num_envs is None else min(num_envs, grid.capacity)
        self._wanted[role] = (model, grid, count)

    def arrange(self, roles: tuple[str, ...]) -> None:
        """Lays out side by side the blocks of the given rollouts that `show` was called for."""
        roles = tuple(role for role in roles if role in self._wanted)
        if not roles or (
            tuple(self.blocks) == roles and all(self._is_as_wanted(role) for role in roles)
        ):
            return
        some_stay = any(role in self.blocks and self._is_as_wanted(role) for role in roles)
        before = self.scale
        self.follow(None)
        # The robots of the training stay in place when another one is put beside them.
        settled = sum(role != ASIDE for role in roles)
        offsets, self.bounds = _side_by_side([self._wanted[role] for role in roles], settled)
        self.scale = scene_scale(self.bounds)
        places = dict(zip(roles, offsets, strict=True))
        others = {role: self._others(role, places) for role in places}
        kept = {
            role: block
            for role, block in self.blocks.items()
            if role in places
            and (not block.model.scenery or np.array_equal(block.others, others[role]))
            and self._can_stay(role, block, places[role])
        }
        for role, block in self.blocks.items():
            if role not in kept:
                block.remove()
        blocks = {}
        for role, offset in places.items():
            model, grid, count = self._wanted[role]
            path = f"{ROOT}/{role}"
            blocks[role] = kept.get(role) or Block(
                self._server, path, model, grid, count, offset, self.scale, others=others[role]
            )
        self.blocks, self._fitted = blocks, None
        self._set_stage()
        # Robots that stay do not move on the screen. New ones are all in view from there, because
        # every scene has the same size.
        stay = self.scale / before if some_stay else None
        self.views.frame(self.scale * self.bounds, stay=stay)
        if ASIDE not in blocks:
            self.bring_back_visitors()

    def fit(self, count: int | None) -> None:
        """Points cameras that no user has moved, or that see none of them, at so many robots of
        the only block; None: all."""
        count = count if len(self.blocks) == 1 else None
        if count != self._fitted:
            self._fitted = count
            box = _box(self.blocks, count, self.bounds)
            robots = self.scale * _places(self.blocks, count) + self.shift
            self.views.frame(self.scale * box, robots=robots)

    def bring_back_visitors(self) -> None:
        """Shows all robots again to the pages that were brought to the sandbox."""
        clients = self._server.get_clients()
        for page in self._visitors & clients.keys():
            self.views.show(clients[page].camera)
        self._visitors.clear()

    @property
    def shift(self) -> np.ndarray:
        """float [3], scene units: how far all robots are moved to keep a followed one in place."""
        return np.asarray(self._root.position)

    @property
    def surroundings(self) -> str:
        """One of `SURROUNDINGS`: day, night, or as the model of the first block says."""
        return self._surroundings

    @surroundings.setter
    def surroundings(self, wanted: str) -> None:
        if wanted != self._surroundings:
            self._surroundings = wanted
            if self.blocks:
                self._set_stage()

    def _set_stage(self) -> None:
        block = next(iter(self.blocks.values()))
        floor = block.model.floor
        match self._surroundings:
            case "light":
                palette = LIGHT
            case "dark":
                palette = DARK
            case _:
                palette = palette_of(block.model.variants.model)
        bounds, scale = self.bounds, self.scale
        lines, path = not block.cells.marked, f"{ROOT}/floor"
        set_stage(self._server, path, bounds, scale, block.grid, floor, palette, lines=lines)
        for block in self.blocks.values():
            block.palette = palette
            block.cells.paint(palette, tints=False)

    def draw(self, views: dict[str, View | None], looks: dict[str, Look]) -> None:
        """Draws the views of all blocks, by role; None: no robot of the block is drawn."""
        # The page applies what is sent within `atomic` at once: no robot is torn between frames.
        with self._server.atomic():
            for role, view in views.items():
                block = self.blocks[role]
                self.sent += block.clear() if view is None else block.draw(view, looks[role])
            self._keep_in_place()
        self._aim()

    def look_through(self, camera: viser.CameraHandle, eye: ModelCamera | None) -> None:
        """Makes a page look through a camera of the model from now on, whether robots move or not;
        None gives the page's camera back to its user."""
        if eye is None:
            if self._eyes.pop(camera.client.client_id, None) is not None:
                camera.up_direction, camera.fov = (0.0, 0.0, 1.0), FOV
                self.look_at_all(camera)
            return
        self._eyes[camera.client.client_id] = (camera, eye)
        self._aim()

    @property
    def is_looked_through(self) -> bool:
        """Whether any page looks through a camera of the model."""
        return bool(self._eyes)

    def forget(self, client_id: int) -> None:
        """Forgets a page that has been closed."""
        self._eyes.pop(client_id, None)

    def follow(self, whom: tuple[str, int] | None) -> None:
        """Keeps one robot, (role, env), in its current place and moves the world; None: stops."""
        if whom == self._followed:
            return
        place = None if whom is None else self._place_of(whom)
        self._followed = whom if place is not None else None
        if place is None:
            self._root.position = (0.0, 0.0, 0.0)
            return
        self._anchor = place + np.asarray(self._root.position) / self.scale

    @property
    def followed(self) -> tuple[str, int] | None:
        """(role, env) of the robot that is followed."""
        return self._followed

    def look_at_followed(self, camera: viser.CameraHandle) -> None:
        """Moves a page's camera to the followed robot, keeping its direction of view."""
        if self._followed is None:
            return
        role, _ = self._followed
        size = float(np.ptp(self.blocks[role].grid.reach, axis=0).max())
        target = self.scale * self._anchor
        away = np.asarray(camera.position) - np.asarray(camera.look_at)
        away /= max(float(np.linalg.norm(away)), 1e-9)
        camera.position = target + 3.0 * size * self.scale * away
        camera.look_at = target

    def look_at_block(self, camera: viser.CameraHandle, role: str) -> None:
        """Moves a page's camera to one block, keeping its direction of view."""
        block = self.blocks.get(role)
        if block is None:
            return
        if role == ASIDE:
            self._visitors.add(camera.client.client_id)
        low, high = block.grid.bounds(block.count)
        size = float((high - low).max())
        target = self.scale * ((low + high) / 2 + block.offset)
        away = np.asarray(camera.position) - np.asarray(camera.look_at)
        away /= max(float(np.linalg.norm(away)), 1e-9)
        camera.position = target + 2.0 * size * self.scale * away
        camera.look_at = target

    def look_at_all(self, camera: viser.CameraHandle, view: str | None = None) -> None:
        """Moves a page's camera so that all robots are in the picture.

        Args:
            camera: the page's.
            view: one of `framing.VIEWS`; None: the one that the page had last.
        """
        self._visitors.discard(camera.client.client_id)
        self.views.show(camera, view)

    def pick(self, origin: np.ndarray, direction: np.ndarray) -> tuple[str, int] | None:
        """The robot, (role, env), that a ray hits, or nearly; None if there is none.

        Args:
            origin: float [3], scene units, in the page's world frame.
            direction: float [3], of unit length.
        """
        start = (origin - np.asarray(self._root.position)) / self.scale
        best: tuple[int, float] | None = None
        picked = None
        for role, block in self.blocks.items():
            centres, radii, owners = block.robots.spheres()
            if not len(centres):
                continue
            depth = (centres - start) @ direction
            off = np.linalg.norm(centres - start - depth[:, None] * direction, axis=1) / radii
            off[depth <= 0] = np.inf
            near = off < NEAR
            if near.any():
                index = int(np.argmin(np.where(near, depth, np.inf)))
                rank = (0, float(depth[index]))
            else:
                index = int(np.argmin(off))
                rank = (1, float(off[index]))
                if off[index] > WIDE:
                    continue
            if owners[index] < len(block.drawn_envs) and (best is None or rank < best):
                best, picked = rank, (role, int(block.drawn_envs[owners[index]]))
        return picked

    def body_at(
        self, whom: tuple[str, int], origin: np.ndarray, direction: np.ndarray
    ) -> int | None:
        """The body of a robot, (role, env), that a ray hits or passes nearest to; see `pick`."""
        start = (origin - np.asarray(self._root.position)) / self.scale
        return self.blocks[whom[0]].body_at(whom[1], start, direction)

    def _others(self, role: str, places: dict[str, np.ndarray]) -> np.ndarray:
        """float [B, 2, 3], m: boxes of the blocks beside one block, in that block's frame.

        Args:
            role: of that block.
            places: by role, float [3], m, offsets of blocks.
        """
        boxes = [
            grid.bounds(count) + places[other] - places[role]
            for other, (_, grid, count) in self._wanted.items()
            if other in places and other != role
        ]
        return np.reshape(boxes, (-1, 2, 3))

    def _is_as_wanted(self, role: str) -> bool:
        model, _, count = self._wanted[role]
        return self.blocks[role].model is model and self.blocks[role].count == count

    def _can_stay(self, role: str, block: Block, offset: np.ndarray) -> bool:
        """Whether a block can stay, as making large meshes again takes the loop and pages long."""
        if not self._is_as_wanted(role):
            return False
        return block.scale == self.scale and np.array_equal(block.offset, offset)

    def _place_of(self, whom: tuple[str, int]) -> np.ndarray | None:
        role, env = whom
        return self.blocks[role].place_of(env) if role in self.blocks else None

    def _aim(self) -> None:
        """Moves the cameras of pages that look through a camera of the model."""
        for camera, eye in self._eyes.values():
            block = next(iter(self.blocks.values()), None)
            sight = block.sight_of(eye) if block is not None else None
            if sight is None:
                continue
            root = np.asarray(self._root.position)
            with camera.client.atomic():
                camera.position = root + self.scale * sight.position
                camera.look_at = root + self.scale * sight.look_at
                camera.up_direction = sight.up
                camera.fov = sight.fov

    def _keep_in_place(self) -> None:
        if self._followed is None:
            return
        place = self._place_of(self._followed)
        if place is not None:
            shift = self.scale * (self._anchor - place)
            # Not in z: a jump or a fall must be visible.
            self._root.position = (float(shift[0]), float(shift[1]), 0.0)


def _box(blocks: dict[str, Block], count: int | None, whole: np.ndarray) -> np.ndarray:
    """float [2, 3], m: the box around so many robots of the first block; None, 0: `whole`."""
    if not count:
        return whole
    block = next(iter(blocks.values()))
    # Cells keep their places, however few are looked at: `bounds` would centre these.
    places = block.grid.origins(block.count)[:count] + block.offset
    box = np.stack([places.min(axis=0), places.max(axis=0)]) + block.grid.reach
    box[0, 2] = min(box[0, 2], whole[0, 2])
    return box


def _places(blocks: dict[str, Block], count: int | None) -> np.ndarray:
    """float [K, 3], m: where so many robots of each block are; None, 0: all."""
    each = [b.grid.origins(b.count)[: count or None] + b.offset for b in blocks.values()]
    return np.concatenate(each)


def _side_by_side(
    blocks: list[tuple[Model, Grid, int]], settled: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Offsets of the blocks along y, each float [3] in m, and the box around all, float [2, 3]. If
    `settled` is above 1, y is 0 in the middle of the first `settled` blocks."""
    offsets, boxes, edge = [], [], 0.0
    for model, grid, count in blocks:
        box = grid.bounds(count)
        box[0, 2] = min(box[0, 2], model.floor)
        offset = np.zeros(3)
        if boxes:
            offset[1] = edge - GAP * grid.spacing[1] - box[1, 1]
        edge = box[0, 1] + offset[1]
        offsets.append(offset)
        boxes.append(box + offset)
    whole = np.stack([np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]])
    middle = np.zeros(3)
    if settled > 1:
        middle[1] = (boxes[0][1, 1] + boxes[settled - 1][0, 1]) / 2
    return [offset - middle for offset in offsets], whole - middle
