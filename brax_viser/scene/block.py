"""Draws one rollout: its robots in their cells, with their labels, marks and overlays."""

from dataclasses import replace

import numpy as np
import viser

from brax_viser.model.cameras import ModelCamera, Sight, sight_of
from brax_viser.model.palettes import Palette
from brax_viser.model.physics import Physics, body_hit
from brax_viser.model.robot import Model
from brax_viser.model.scenery import place
from brax_viser.model.tints import tints_of
from brax_viser.records.frame import Frame
from brax_viser.records.grid import Grid
from brax_viser.records.view import View
from brax_viser.scene.cells import ELSEWHERE, Cells, moved_back, notes_on
from brax_viser.scene.deformables import Rods, Sheets
from brax_viser.scene.ghosts import Ghosts
from brax_viser.scene.inspection import Inspection
from brax_viser.scene.labels import Labels, Title, distance_of, label_texts
from brax_viser.scene.look import Look, colours_of, facts_in_words
from brax_viser.scene.overlays import INSIDE
from brax_viser.scene.ring import Ring
from brax_viser.scene.robots import CLEAR, FADED, Paint, Robots
from brax_viser.scene.shadows import ContactShadows

NO_BLOCKS = np.zeros((0, 2, 3))


class Block:
    """The robots of one rollout. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        model: Model,
        grid: Grid,
        count: int,
        offset: np.ndarray,
        scale: float,
        *,
        others: np.ndarray = NO_BLOCKS,
    ):
        """Fills `count` cells with robots in their initial pose.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            model: the robot.
            grid: the cells.
            count: number of cells in use: a handle's number of instances is fixed.
            offset: float [3], m, of the block in the scene.
            scale: scene units per metre.
            others: float [B, 2, 3], m: boxes around other blocks, as seen from this one.
        """
        self.count, self.scale, self.model, self.grid = count, scale, model, grid
        self.others, self.offset = others, offset
        self._server, self._path = server, path
        self._origins = (grid.origins(count) + offset).astype(np.float32)
        self.robots = Robots(server, f"{path}/robots", model.shapes, self._origins, scale)
        self.cells = Cells(server, f"{path}/cells", model, grid, self._origins, scale)
        self.ring = Ring(server, f"{path}/selected", 0.45 * _width(grid), scale)
        self._scenery, self._left_out = self._surrounded(others)
        self._ghosts = Ghosts(server, f"{path}/twins", model, self._origins, scale)
        self._bent = self._bendable()
        self.shadows = ContactShadows(server, f"{path}/shadows", model, grid, self._origins, scale)
        self.pos = np.repeat(model.init_pos[None], count, axis=0)
        self.rot = np.repeat(model.init_rot[None], count, axis=0)
        self._cell_of_env: dict[int, int] = {}
        self.drawn_envs = np.arange(count, dtype=np.int32)  # in the order of the cells
        self.frame: Frame | None = None  # the frame on screen; row i is in cell i
        self.hidden = np.zeros(count, bool)  # by cell
        self._varied = 0  # the version of the model's variants that is drawn
        self._look = Look()
        self.palette: Palette | None = None  # of the surroundings
        self._labels = Labels(server, f"{path}/label", scale)
        self._moved = np.zeros((count, 3), np.float32)  # m, shift of each robot back into its cell
        self._inspection = Inspection(server, f"{path}/overlays", model, scale)
        self.title = Title(server, f"{path}/title", scale * self._title_place())
        with server.atomic():
            self._draw_robots()

    def _surrounded(self, others: np.ndarray) -> tuple[list[Robots], bool]:
        """Adds the scenery that no cell holds. Returns it, and whether any is left out."""
        placed = place(self.model.scenery, self.grid, self.count, others)
        middle = self._origins.mean(axis=0, keepdims=True)
        middle[:, 2] = self._origins[:, 2].min()
        scenery = [
            Robots(self._server, f"{self._path}/surroundings", placed.once, middle, self.scale),
            Robots(self._server, f"{self._path}/distance", placed.each, self._origins, self.scale),
        ]
        return scenery, placed.left_out

    def _bendable(self) -> list[Rods | Sheets]:
        """Adds the parts that change their shape."""
        model, at = self.model, (self._origins, self.scale)
        bent: list[Rods | Sheets] = []
        if model.rods is not None:
            bent.append(Rods(self._server, f"{self._path}/rods", model.rods, *at))
        if model.surfaces is not None:
            bent.append(Sheets(self._server, f"{self._path}/flexes", model.surfaces, *at))
        return bent

    def draw(self, view: View, look: Look) -> int:
        """Draws a view, within `server.atomic()`.

        Returns how many bytes of robots each page is sent.

        Args:
            view: what is drawn; at most `count` environments, in the order of the cells.
            look: how to draw them.
        """
        frame, count = view.frame, len(view.frame.env_index)
        if not np.array_equal(frame.env_index, self.drawn_envs) or not self._cell_of_env:
            self.drawn_envs = frame.env_index
            self._cell_of_env = {int(env): cell for cell, env in enumerate(frame.env_index)}
            self.pos[:], self.rot[:] = self.model.init_pos, self.model.init_rot
            self._varied = -1
        if self._varied != self.model.variants.version:
            self._vary()
        pos, rot = view.link_pos, view.link_rot
        # One test of all poses takes a tenth of the time of finding the rows that are not finite.
        if np.isfinite(pos).all() and np.isfinite(rot).all():
            self.pos[:count], self.rot[:count] = pos, rot
        else:
            # A robot whose pose is not finite stays in its last pose, or in the initial one.
            good = np.isfinite(pos).all(axis=(1, 2)) & np.isfinite(rot).all(axis=(1, 2))
            self.pos[:count][good], self.rot[:count][good] = pos[good], rot[good]
        self._moved[:] = 0
        if look.in_cells and self.model.roaming_link is not None:
            self._bring_back(count)
        self.frame = frame
        self._inspection.add(frame)
        self.hidden = np.ones(self.count, bool)
        self.hidden[:count] = view.hidden
        self._look = look
        others = self._others()
        if look.others == "hide":
            self.hidden |= others
        sent = self._draw_robots() + self.cells.draw(self._moved[:, :2])
        beside = self.grid.spacing[1] / 2 if look.beside else 0.0
        sent += self._ghosts.draw(view, self.hidden, self._moved, beside)
        self._draw_ring()
        self._draw_overlays()
        return sent

    def origin_of(self, env: int) -> np.ndarray | None:
        """float [3], m, in the scene: origin of the world frame in which an environment's robot is
        drawn; None if it is not drawn."""
        cell = self._cell_of_env.get(env)
        return None if cell is None else self._origins[cell] + self._moved[cell]

    def clear(self) -> int:
        """Hides all robots, within `server.atomic()`. Returns the same as `draw`."""
        self.drawn_envs, self._cell_of_env, self.frame = np.zeros(0, np.int32), {}, None
        self.hidden = np.ones(self.count, bool)
        sent = self._draw_robots()
        self._ghosts.hide()
        self._draw_ring()
        self._inspection.hide()
        return sent

    def decorate(self, look: Look) -> None:
        """Updates colours and labels; a few times a second is enough."""
        self._look = look
        colours, others = None, self._others()
        opacities = np.ones(self.count)
        if self.frame is not None:
            colours = colours_of(look.colour_by, self.frame, self.model.dt, look.rank_by)
            colours = _padded(colours, self.count)
            if others.any() and look.others == "fade":
                opacities[others] = FADED
            # Overlays inside of the robot must be visible through it.
            cell = self._selected_cell()
            if cell is not None and look.overlays & INSIDE - self.model.unavailable.keys():
                opacities[cell] = CLEAR
        tints = tints_of(self.grid, self.count) if look.tints else None
        self.robots.paint(Paint(colours, opacities if (opacities < 1.0).any() else None, tints))
        if self.palette is not None:
            self.cells.paint(self.palette, tints=look.tints)
        frame = self.frame if look.labels else None
        texts = [] if frame is None else label_texts(frame, self.model, look)
        self._labels.draw(texts, self.hidden, self._tops())

    def notes(self) -> list[str]:
        """Notes for the user on how the cells distort the picture."""
        notes, pos = [], self.pos[~self.hidden]
        if self._left_out:
            notes.append(
                "Scenery that is larger than the cells is not drawn around several robots: "
                "grid=(1, 1) shows it"
            )
        if self.model.terrain is not None and self._moved.any():
            notes.append(ELSEWHERE)
        if self.model.roaming_link is None and self.count > 1:
            notes += notes_on(
                self.model, self.grid, self._origins, pos if self._look.in_cells else None
            )
        return notes

    def place_of(self, env: int, link: int | None = None) -> np.ndarray | None:
        """float [3], m, in the scene: place of a link of an environment's robot, by default of its
        main link; None if it is not drawn."""
        cell = self._cell_of_env.get(env)
        link = self.model.main_link if link is None else link
        return None if cell is None else self._origins[cell] + self.pos[cell, link]

    def sight_of(self, eye: ModelCamera) -> Sight | None:
        """The view through a camera of the selected robot, or of the first if none is selected; m,
        in the scene. None if no robot is drawn."""
        cell = self._cell_of_env.get(-1 if (env := self._look.selected_env) is None else env, 0)
        if not self.count or self.hidden.all():
            return None
        sight = sight_of(eye, self.pos[cell], self.rot[cell])
        origin = self._origins[cell]
        return replace(sight, position=sight.position + origin, look_at=sight.look_at + origin)

    def facts_of(self, env: int) -> str | None:
        """Text on an environment's episodes and its distance; None if it is not drawn."""
        cell = self._cell_of_env.get(env)
        if cell is None or self.frame is None:
            return None
        facts = facts_in_words(self.frame, cell, self.model.dt)
        return facts + distance_of(self.frame, cell, self.model)

    def inside(self, env: int) -> Physics | None:
        """MuJoCo's model and data in the state of an environment, until the next call or frame;
        None if the environment is not drawn, or its state is not known or not finite."""
        cell = self._cell_of_env.get(env)
        if cell is None or self.frame is None or self.frame.detail is None:
            return None
        return self._inspection.inside(self.frame, cell) if self.frame.detail.env == env else None

    def body_at(self, env: int, start: np.ndarray, direction: np.ndarray) -> int | None:
        """The body of an environment's robot that a ray hits, or else passes nearest to.

        Args:
            env: must be drawn.
            start: float [3], m, in the scene.
            direction: float [3], of unit length.
        """
        cell = self._cell_of_env[env]
        start = start - self._origins[cell]
        model = self.model.variants.model
        return body_hit(model, self.pos[cell], self.rot[cell], start, direction)

    def remove(self) -> None:
        """Removes all handles of the block."""
        self._inspection.remove()
        for robots in (self.robots, self._ghosts, self.shadows, *self._scenery):
            robots.remove()
        for bent in self._bent:
            bent.remove()
        self._labels.remove()
        self.ring.remove()
        self.cells.remove()
        self.title.remove()

    def _draw_robots(self) -> int:
        """Draws robots and parts that bend. Returns how many bytes each page is sent."""
        sent = self.robots.draw(self.pos, self.rot, self.hidden)
        for bent in self._bent:
            sent += bent.draw(self.pos, self.rot, self.hidden)
        faint = self._others() if self._look.others != "show" else False
        return sent + self.shadows.draw(self.pos, self.rot, self.hidden | faint)

    def _vary(self) -> None:
        """Gives each cell's robot the look of its environment's model."""
        variants = self.model.variants
        self._varied = variants.version
        if variants.apart:
            shapes = self.model.shapes
            self.robots.vary(variants.places(shapes, self.drawn_envs.tolist(), self.count))

    def _bring_back(self, count: int) -> None:
        """Moves robots that have left their cells back into them. Their motion is unchanged."""
        link = self.model.roaming_link
        moved = moved_back(self.model, self.grid, self.pos[:count, link, :2])
        if moved.any():
            self._moved[:count] = moved
            for axis in range(3):  # by axis: numpy is slow with three numbers per row
                self.pos[:count, :, axis] += moved[:, None, axis]

    def _selected_cell(self) -> int | None:
        """The cell of the selected environment; None if it is not drawn."""
        return self._cell_of_env.get(-1 if (env := self._look.selected_env) is None else env)

    def _others(self) -> np.ndarray:
        """bool [count]: cells other than the selected environment's; none if it is not drawn."""
        cell = self._selected_cell()
        return np.zeros(self.count, bool) if cell is None else np.arange(self.count) != cell

    def _title_place(self) -> np.ndarray:
        low, high = self._origins.min(axis=0), self._origins.max(axis=0)
        reach = self.grid.reach
        return np.array(
            [(low[0] + high[0]) / 2, low[1] + 1.15 * reach[0, 1], self.model.floor], np.float64
        )

    def _draw_ring(self) -> None:
        """Marks the selected robot on the floor of its own layer."""
        cell, place = self._selected_cell(), None
        if cell is not None:
            place = self._origins[cell] + self.pos[cell, self.model.main_link]
            place[2] = self._origins[cell, 2] + self.model.floor
        self.ring.draw(place)

    def _draw_overlays(self) -> None:
        frame, cell = self.frame, self._selected_cell()
        if not self._look.overlays or cell is None or frame is None or self.hidden[cell]:
            self._inspection.hide()
            return
        pose = self.pos[cell] - self._moved[cell], self.rot[cell]
        shift = self._origins[cell] + self._moved[cell]
        self._inspection.draw(self._look, frame, cell, pose, shift)

    def _tops(self) -> np.ndarray:
        """float [count, 3], m, in the scene: places above the robots, for their labels."""
        places = self._origins + self.pos[:, self.model.main_link]
        places[:, 2] = self._origins[:, 2] + self.grid.reach[1, 2]
        return places


def _width(grid: Grid) -> float:
    """The larger side of a robot's reach on the floor, m."""
    return float(np.ptp(grid.reach[:, :2], axis=0).max())


def _padded(colours: np.ndarray | None, count: int) -> np.ndarray | None:
    """uint8 [count, 3]: colours for all cells; those without a robot get an arbitrary one."""
    if colours is None:
        return None
    padded = np.zeros((count, 3), np.uint8)
    padded[: len(colours)] = colours
    return padded
