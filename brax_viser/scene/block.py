"""Draws one rollout: its robots in their cells, with their labels, marks and overlays."""

from dataclasses import replace

import numpy as np
import viser

from brax_viser.model.cameras import ModelCamera, Sight, sight_of
from brax_viser.model.palettes import Palette
from brax_viser.model.physics import Physics, body_hit
from brax_viser.model.robot import GHOST_RGB, Model, ghostly
from brax_viser.model.scenery import cell_of, place
from brax_viser.model.tints import tints_of
from brax_viser.records.frame import Frame
from brax_viser.records.grid import Grid
from brax_viser.records.view import View
from brax_viser.scene.cells import Cells, moved_back
from brax_viser.scene.deformables import Rods, Sheets
from brax_viser.scene.look import Look, colours_of, in_words, measured
from brax_viser.scene.overlays import INSIDE, OVERLAYS, Overlays, Recent
from brax_viser.scene.ring import Ring
from brax_viser.scene.robots import CLEAR, FADED, Paint, Robots

MAX_LABELS = 256
"""Each label is a message, several times a second: more labels would crowd out the robots, on the
wire as on the screen."""

NO_BLOCKS = np.zeros((0, 2, 3))

_ALIKE: dict[str, np.ndarray] = {}
"""The model fields of its own that an environment has if all have the same model: none."""


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
        self.others = others
        self.offset = offset
        self._server, self._path = server, path
        self._origins = (grid.origins(count) + offset).astype(np.float32)
        self.robots = Robots(server, f"{path}/robots", model.shapes, self._origins, scale)
        self.cells = self._tiled()
        self.ring = Ring(server, f"{path}/selected", 0.45 * _width(grid), scale)
        placed = place(model.scenery, grid, count, others)
        middle = self._origins.mean(axis=0, keepdims=True)
        middle[:, 2] = self._origins[:, 2].min()
        self._scenery = [
            Robots(server, f"{path}/surroundings", placed.once, middle, scale),
            Robots(server, f"{path}/distance", placed.each, self._origins, scale),
        ]
        self._left_out = placed.left_out
        self._ghosts: Robots | None = None  # made for the first twins
        self._ghosts_shown = False
        self._ghostly = ghostly(model.shapes)
        self._bent = self._bendable()
        self.pos = np.repeat(model.init_pos[None], count, axis=0)
        self.rot = np.repeat(model.init_rot[None], count, axis=0)
        self._cell_of_env: dict[int, int] = {}
        self.drawn_envs = np.arange(count, dtype=np.int32)  # in the order of the cells
        self.frame: Frame | None = None  # the frame on screen; row i is in cell i
        self._hidden = np.zeros(count, bool)
        self._varied = 0  # the version of the model's variants that is drawn
        self._look = Look()
        self.palette: Palette | None = None  # of the surroundings
        self._labels: list[viser.LabelHandle] = []
        self._moved = np.zeros((count, 3), np.float32)  # m, shift of each robot back into its cell
        self._physics: Physics | None = None  # of the selected robot, made when first needed
        self._overlays: Overlays | None = None
        self._recent = Recent(model.dt)  # frames, for the trail
        self._title = server.scene.add_label(
            f"{path}/title",
            "",
            position=tuple(scale * self._title_place()),
            visible=False,
            anchor="center-center",
        )
        with server.atomic():
            self._draw_robots()

    def _tiled(self) -> Cells:
        """Lays a tile under each robot: under its middle if it may travel, else under its reach."""
        model, travels = self.model, self.model.roaming_link
        middle = self.grid.reach.mean(axis=0) if travels is None else model.init_pos[travels]
        at = np.array([*middle[:2], model.floor])
        marked = travels is not None and model.terrain is None
        path = f"{self._path}/cells"
        return Cells(self._server, path, self.grid, self._origins, at, self.scale, marked=marked)

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
            view: of a moment; at most `count` environments, in the order of the cells.
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
        self._recent.add(frame)
        self._hidden = np.ones(self.count, bool)
        self._hidden[:count] = view.hidden
        self._look = look
        others = self._others()
        if look.others == "hide":
            self._hidden |= others
        sent = self._draw_robots() + self.cells.draw(self._moved[:, :2])
        sent += self._draw_ghosts(view)
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
        self._hidden = np.ones(self.count, bool)
        sent = self._draw_robots()
        self._hide_ghosts()
        self._draw_ring()
        if self._overlays is not None:
            self._overlays.hide()
        return sent

    def decorate(self, look: Look) -> None:
        """Updates colours and labels; a few times a second is enough."""
        self._look = look
        colours, others = None, self._others()
        opacities = np.ones(self.count)
        if self.frame is not None:
            colours = colours_of(look.colour_by, self.frame, self.model.dt, look.rank_by)
            colours = self._for_all_cells(colours)
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
        self._draw_labels(look.labels)

    def title(self, text: str) -> None:
        """Writes a text in front of the block; an empty text removes it."""
        if self._title.text != text:
            self._title.text = text
        if self._title.visible != bool(text):
            self._title.visible = bool(text)

    def notes(self) -> list[str]:
        """Notes for the user on how the cells distort the picture."""
        notes, grid, model = [], self.grid, self.model
        if self._left_out:
            notes.append(
                "Scenery that is larger than the cells is not drawn around several robots: "
                "grid=(1, 1) shows it"
            )
        if model.roaming_link is not None or self.count == 1:
            return notes
        (x, y, _), (width, depth, _) = np.ptp(grid.reach, axis=0), grid.spacing
        beside = np.ptp(self._origins, axis=0) > 0
        if ((np.array([x, y]) > np.array([width, depth])) & beside[:2]).any():
            notes.append(
                f"This world is {x:.1f} by {y:.1f} m and its cells are {width:.1f} by {depth:.1f} "
                "m: neighbours overlap. spacing=None makes cells that hold it"
            )
        if self._look.in_cells and self._is_outside():
            notes.append(
                "Something has left its cell and is drawn where it is, for it has a place beside "
                "other things of its world"
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
        if not self.count or self._hidden.all():
            return None
        sight = sight_of(eye, self.pos[cell], self.rot[cell])
        origin = self._origins[cell]
        return replace(sight, position=sight.position + origin, look_at=sight.look_at + origin)

    def facts_of(self, env: int) -> str | None:
        """Text on an environment's episodes; None if it is not drawn."""
        cell = self._cell_of_env.get(env)
        if cell is None or self.frame is None:
            return None
        facts = in_words(self.frame, cell, self.model.dt, "so_far")
        last = measured(self.frame, self.model.dt, "last_episode")[cell]
        shown = self.frame.fell is not None and self.frame.fell[cell]
        return facts if shown or np.isnan(last) else f"{facts} · last episode's return {last:,.1f}"

    def inside(self, env: int) -> Physics | None:
        """MuJoCo's model and data in the state of an environment, until the next call or frame;
        None if the environment is not drawn, or its state is not known or not finite."""
        cell = self._cell_of_env.get(env)
        if cell is None or self.frame is None or self.frame.detail is None:
            return None
        if self.frame.detail.env != env:
            return None
        physics = self._own_physics()
        own = self.model.variants.of_env.get(env, _ALIKE)
        return physics if physics.place(self.frame, cell, own) else None

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
        if self._overlays is not None:
            self._overlays.remove()
        if self._ghosts is not None:
            self._ghosts.remove()
        for robots in (self.robots, *self._scenery):
            robots.remove()
        for bent in self._bent:
            bent.remove()
        self._draw_labels(False)
        self.ring.remove()
        self.cells.remove()
        self._title.remove()

    def _draw_robots(self) -> int:
        """Draws robots and parts that bend. Returns how many bytes each page is sent."""
        sent = self.robots.draw(self.pos, self.rot, self._hidden)
        for bent in self._bent:
            sent += bent.draw(self.pos, self.rot, self._hidden)
        return sent

    def _draw_ghosts(self, view: View) -> int:
        """Draws the twins' ghosts. Returns how many bytes each page is sent."""
        if view.ghost is None or view.frame.ghost is None:
            self._hide_ghosts()
            return 0
        if self._ghosts is None:
            self._ghosts = Robots(
                self._server,
                f"{self._path}/twins",
                self._ghostly,
                self._origins,
                self.scale,
            )
            self._ghosts.paint(Paint(np.tile(np.array(GHOST_RGB, np.uint8), (self.count, 1))))
            self._varied = -1
        if self._varied != self.model.variants.version:
            self._vary()
        count = len(view.frame.env_index)
        pos, rot = (np.zeros_like(array) for array in (self.pos, self.rot))
        pos[:count], rot[:count] = view.ghost
        hidden = self._hidden.copy()
        hidden |= ~(np.isfinite(pos).all(axis=(1, 2)) & np.isfinite(rot).all(axis=(1, 2)))
        hidden[:count] |= ~view.frame.ghost.there
        hidden[count:] = True
        pos += self._moved[:, None]
        if self._look.beside:
            pos[..., 1] += self.grid.spacing[1] / 2
        self._ghosts_shown = True
        return self._ghosts.draw(pos, rot, hidden)

    def _hide_ghosts(self) -> None:
        # Only once: ghosts that are hidden already need not be placed with each frame.
        if self._ghosts is not None and self._ghosts_shown:
            self._ghosts.draw(self.pos, self.rot, np.ones(self.count, bool))
            self._ghosts_shown = False

    def _vary(self) -> None:
        """Gives each cell's robot the look of its environment's model."""
        variants = self.model.variants
        self._varied = variants.version
        if not variants.apart:
            return
        nobody = [-1] * (self.count - len(self.drawn_envs))
        envs = [*self.drawn_envs.tolist(), *nobody]
        self.robots.vary(variants.places(self.model.shapes, envs))
        if self._ghosts is not None:
            self._ghosts.vary(variants.places(self._ghostly, envs))

    def _bring_back(self, count: int) -> None:
        """Moves robots that have left their cells back. Their motion is unchanged."""
        link = self.model.roaming_link
        moved = moved_back(self.model, self.grid, self.pos[:count, link, :2])
        if moved.any():
            self._moved[:count] = moved
            for axis in range(3):  # by axis: numpy is slow with three numbers per row
                self.pos[:count, :, axis] += moved[:, None, axis]

    def _selected_cell(self) -> int | None:
        """The cell of the selected environment; None if it is not drawn."""
        return self._cell_of_env.get(-1 if (env := self._look.selected_env) is None else env)

    def _is_outside(self) -> bool:
        """Whether any link that starts within its cell is beyond the cell's sides."""
        low, high = cell_of(self.grid)[:, :2]
        inside = ((self.model.init_pos[:, :2] >= low) & (self.model.init_pos[:, :2] <= high)).all(1)
        pos = self.pos[~self._hidden][:, inside, :2]
        return bool(((pos < low) | (pos > high)).any())

    def _others(self) -> np.ndarray:
        """bool [count]: cells other than the selected environment's; none if it is not drawn."""
        others = np.zeros(self.count, bool)
        cell = self._selected_cell()
        if cell is not None:
            others[:] = True
            others[cell] = False
        return others

    def _for_all_cells(self, colours: np.ndarray | None) -> np.ndarray | None:
        """uint8 [count, 3]: colours for all cells; those without a robot get an arbitrary one."""
        if colours is None:
            return None
        spread = np.zeros((self.count, 3), np.uint8)
        spread[: len(colours)] = colours
        return spread

    def _title_place(self) -> np.ndarray:
        low, high = self._origins.min(axis=0), self._origins.max(axis=0)
        reach = self.grid.reach
        return np.array(
            [(low[0] + high[0]) / 2, low[1] + 1.15 * reach[0, 1], self.model.floor], np.float64
        )

    def _draw_ring(self) -> None:
        """Marks the selected robot on the floor of its own layer."""
        env = self._look.selected_env
        place = None if env is None else self.place_of(env)
        if place is not None and env is not None:
            ground = self._origins[self._cell_of_env[env], 2] + self.model.floor
            place = np.array([*place[:2], ground])
        self.ring.draw(place)

    def _draw_overlays(self) -> None:
        env, frame = self._look.selected_env, self.frame
        cell = None if env is None else self._cell_of_env.get(env)
        if not self._look.overlays or cell is None or frame is None or self._hidden[cell]:
            if self._overlays is not None:
                self._overlays.hide()
            return
        if self._overlays is None:
            self._overlays = Overlays(
                self._server,
                f"{self._path}/overlays",
                self._own_physics(),
                dt=self.model.dt,
                scale=self.scale,
                shown=frozenset(OVERLAYS) - self.model.unavailable.keys(),
            )
        body = self._look.body
        if body is None:
            body = self.model.main_link + 1
        self._overlays.draw(
            self._look.overlays,
            self._recent,
            frame,
            cell,
            (self.pos[cell] - self._moved[cell], self.rot[cell]),
            self._origins[cell] + self._moved[cell],
            self.model.variants.of_env.get(int(frame.env_index[cell]), _ALIKE),
            body,
        )

    def _own_physics(self) -> Physics:
        if self._physics is None:
            self._physics = Physics(self.model.variants.model, native=self.model.native)
        return self._physics

    def _draw_labels(self, wanted: bool) -> None:
        frame = self.frame
        count = min(len(self.drawn_envs), MAX_LABELS) if wanted and frame is not None else 0
        while len(self._labels) > count:
            self._labels.pop().remove()
        while len(self._labels) < count:
            self._labels.append(
                self._server.scene.add_label(
                    f"{self._path}/label/{len(self._labels)}",
                    "",
                    font_screen_scale=0.8,
                    anchor="bottom-center",
                )
            )
        above = self.grid.reach[1, 2]
        for cell, label in enumerate(self._labels):
            assert frame is not None
            env = int(frame.env_index[cell])
            own = self.model.variants.in_words(env)
            text = f"env {env} · {in_words(frame, cell, self.model.dt, self._look.rank_by)}"
            text += f" · {own}" if own else ""
            if label.text != text:
                label.text = text
            label.visible = not self._hidden[cell]
            place = self._origins[cell] + self.pos[cell, self.model.main_link]
            place[2] = self._origins[cell, 2] + above
            label.position = tuple(self.scale * place)


def _width(grid: Grid) -> float:
    """The larger side of a robot's reach on the floor, m."""
    return float(np.ptp(grid.reach[:, :2], axis=0).max())
