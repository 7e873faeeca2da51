"""Draws the cells on the floor: a tile under each robot, with marks that pass under one that
travels."""

import numpy as np
import trimesh
import viser

from brax_viser.model.palettes import RGB, Palette
from brax_viser.model.robot import Model
from brax_viser.model.scenery import cell_of
from brax_viser.model.surfaces import linear
from brax_viser.model.tints import tinted, tints_of
from brax_viser.records.grid import Grid
from brax_viser.scene.handles import send
from brax_viser.scene.stage import round_length

FREE = 0.05
"""How far from its start a robot is drawn where it is, in cells. Beyond, the floor moves."""

GAP = 0.05
"""Distance between two tiles, in cells."""

THIN = 0.002
"""How far a tile lies below the floor, and the marks above it, in cells. The tile is seen through
the floor, on which viser draws better shadows than on a mesh."""

MARKS = 6
"""About this many marks lie across a cell."""

STRENGTH = 0.75
"""How much of a cell's tint its tile has."""

ELSEWHERE = (
    "Each cell has the ground near the robot's start. A robot that has left its cell is drawn on "
    "the cell's other side, as high above the ground as it is; grid=(1, 1) shows all of the ground"
)
"""Said of robots on rough ground that are not drawn where they are."""


def moved_back(model: Model, grid: Grid, place: np.ndarray) -> np.ndarray:
    """float32 [K, 3], m: how far robots are moved so that they stay in their cells, and a grid of
    runners does not become an empty floor.

    Near its start a robot is drawn where it is. One that travels stays at the border of that area,
    and the marks on the floor move instead: it gets on, but not out of the picture, nor into its
    neighbours. Rough ground can't move like that: there it comes in on the other side of its cell,
    at the same height above the ground.

    Args:
        model: the robot, which may travel.
        grid: the cells.
        place: float [K, 2], m, of the link that carries each robot, in its own world.
    """
    spacing = np.array(grid.spacing[:2], np.float32)
    away = place - model.init_pos[model.roaming_link, :2]
    moved = np.zeros((len(place), 3), np.float32)
    if model.terrain is None:
        moved[:, :2] = np.clip(away, -FREE * spacing, FREE * spacing) - away
    else:
        moved[:, :2] = -spacing * np.round(away / spacing)
        height = model.terrain.height
        moved[:, 2] = np.nan_to_num(height(place + moved[:, :2]) - height(place))
    return moved


class Cells:
    """The tiles and marks of one block. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        model: Model,
        grid: Grid,
        origins: np.ndarray,
        scale: float,
    ):
        """Lays a tile under each robot: under its middle if it may travel, else under its reach.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            model: the robot. If it may travel on level ground, there are marks.
            grid: the cells.
            origins: float32 [K, 3], m, each cell's place in the scene.
            scale: scene units per metre.
        """
        travels = model.roaming_link
        below = grid.reach.mean(axis=0) if travels is None else model.init_pos[travels]
        place = np.array([*below[:2], model.floor])
        columns, rows, _ = grid.shape
        origins = origins[: columns * rows]  # higher layers have no floor
        self._count = len(origins)
        spacing = np.array(grid.spacing[:2])
        thin = THIN * float(spacing.max())
        size = spacing - GAP * spacing.min()
        middle = origins + place - np.array([0.0, 0.0, thin])
        self._tints = tints_of(grid, self._count)
        self._tiles = self._add(server, f"{path}/tiles", _tile(size), middle, scale)
        self._pitch = round_length(float(spacing.min()) / MARKS)
        self._places = (middle + np.array([0.0, 0.0, 2 * thin])).astype(np.float32)
        self._marks = None
        if travels is not None and model.terrain is None:
            mesh = _marks(size, self._pitch)
            self._marks = self._add(server, f"{path}/marks", mesh, self._places, scale)
        self._painted: tuple[Palette, bool] | None = None

    @property
    def marked(self) -> bool:
        """Whether there are marks, which move. Lines that do not would contradict them."""
        return self._marks is not None

    def draw(self, moved: np.ndarray) -> int:
        """Moves the marks with the robots' world. Returns how many bytes each page is sent.

        Args:
            moved: float [K, 2], m, of each robot's world in its cell.
        """
        if self._marks is None:
            return 0
        # From mark to mark, they look the same.
        moved, place = moved[: self._count], self._places.copy()
        place[:, :2] += moved - self._pitch * np.round(moved / self._pitch)
        return send(self._marks, batched_positions=place)

    def paint(self, palette: Palette, *, tints: bool) -> None:
        """Colours the tiles from now on, each with its tint or all alike."""
        if self._painted == (palette, tints):
            return
        self._painted = palette, tints
        tile = np.array(palette.tile)
        self._tiles.batched_colors = linear(
            tinted(tile, self._tints, STRENGTH) if tints else np.tile(tile, (self._count, 1))
        )
        if self._marks is not None:
            self._marks.batched_colors = linear(np.array(palette.mark))

    def hide(self) -> None:
        """Hides tiles and marks."""
        for handle in filter(None, (self._tiles, self._marks)):
            handle.visible = False

    def remove(self) -> None:
        """Removes all handles."""
        for handle in filter(None, (self._tiles, self._marks)):
            handle.remove()

    def _add(
        self,
        server: viser.ViserServer,
        name: str,
        mesh: trimesh.Trimesh,
        places: np.ndarray,
        scale: float,
        colour: RGB = (200, 200, 200),
    ) -> viser.BatchedMeshHandle:
        return server.scene.add_batched_meshes_simple(
            name,
            np.asarray(mesh.vertices),
            np.asarray(mesh.faces),
            batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (len(places), 1)),
            batched_positions=places.astype(np.float32),
            batched_colors=colour,
            lod="off",
            cast_shadow=False,
            scale=scale,
        )


def _tile(size: np.ndarray) -> trimesh.Trimesh:
    """A level rectangle with round corners; `size` is float [2], m."""
    radius = 0.06 * float(size.min())
    corner = radius * np.array(
        [[np.cos(angle), np.sin(angle)] for angle in np.linspace(0, np.pi / 2, 7)]
    )
    turn = np.array([[0, -1], [1, 0]])
    rim = []
    for side in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        rim.append(corner + np.array(side) * (size / 2 - radius))
        corner = corner @ turn.T
    around = np.concatenate(rim)
    vertices = np.column_stack([np.concatenate([[[0.0, 0.0]], around]), np.zeros(len(around) + 1)])
    index = np.arange(len(around))
    faces = np.stack([np.zeros_like(index), index + 1, (index + 1) % len(around) + 1], axis=1)
    return trimesh.Trimesh(vertices, faces, process=False)


def _marks(size: np.ndarray, pitch: float) -> trimesh.Trimesh:
    """Level crosses, `pitch` m apart, that stay on a tile when moved by half of that."""
    arm, half = 0.11 * pitch, 0.018 * pitch
    bars = [
        np.array(side) * [[-1, -1], [1, -1], [1, 1], [-1, 1]] for side in ((arm, half), (half, arm))
    ]
    count = np.maximum(np.floor(size / pitch), 1).astype(int)
    along = [pitch * (np.arange(n) - (n - 1) / 2) for n in count]
    places = np.stack(np.meshgrid(*along), axis=-1).reshape(-1, 1, 2)
    corners = np.concatenate([places + bar for bar in bars]).reshape(-1, 2)
    first = 4 * np.arange(len(corners) // 4)[:, None]
    faces = np.concatenate([first + np.array(corner) for corner in ((0, 1, 2), (0, 2, 3))])
    return trimesh.Trimesh(np.pad(corners, ((0, 0), (0, 1))), faces, process=False)


def notes_on(model: Model, grid: Grid, origins: np.ndarray, pos: np.ndarray | None) -> list[str]:
    """Notes for the user on cells that are too small for robots that do not roam.

    Args:
        model: the robot.
        grid: the cells.
        origins: float [K, 3], m, of the cells in the scene.
        pos: float [N, L, 3], m, of the links that are seen; None to say nothing of their places.
    """
    notes = []
    (x, y, _), (width, depth, _) = np.ptp(grid.reach, axis=0), grid.spacing
    beside = np.ptp(origins, axis=0) > 0
    if ((np.array([x, y]) > np.array([width, depth])) & beside[:2]).any():
        notes.append(
            f"This world is {x:.1f} by {y:.1f} m and its cells are {width:.1f} by {depth:.1f} "
            "m: neighbours overlap. spacing=None makes cells that hold it"
        )
    if pos is not None and _outside(model, grid, pos):
        notes.append(
            "Something has left its cell and is drawn where it is, for it has a place beside "
            "other things of its world"
        )
    return notes


def _outside(model: Model, grid: Grid, pos: np.ndarray) -> bool:
    """Whether any link that starts within its cell is beyond the cell's sides."""
    low, high = cell_of(grid)[:, :2]
    inside = ((model.init_pos[:, :2] >= low) & (model.init_pos[:, :2] <= high)).all(1)
    there = pos[:, inside, :2]
    return bool(((there < low) | (there > high)).any())
