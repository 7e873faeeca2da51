"""Collects everything that is drawn of a robot from its model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from brax_viser.model.flexes import Surfaces, surfaces_of
from brax_viser.model.marks import unavailable
from brax_viser.model.patches import cropped
from brax_viser.model.rods import RodSet, rods_of
from brax_viser.model.scenery import Scenery, ground_of, scenery_of
from brax_viser.model.scope import main_root
from brax_viser.model.shapes import (
    USUAL,
    Parts,
    Shape,
    floor_height,
    floor_of,
    shapes_of,
    wrapped_body,
)
from brax_viser.model.terrain import Terrain
from brax_viser.model.variants import Variants
from brax_viser.records.grid import Grid

GHOST_RGB = (151, 71, 255)


GHOST_OPACITY = 0.4
"""Ghosts of twins have a colour that no robot has, and let the robot show through."""


@dataclass(frozen=True)
class Model:
    """The parts of one robot, and its pose before any step has run."""

    shapes: list[Shape]
    init_pos: np.ndarray  # float32 [L, 3], m
    init_rot: np.ndarray  # float32 [L, 4], wxyz
    floor: float  # z of the floor, m
    dt: float  # s per step
    roaming_link: int | None  # the link that may be drawn some cells away; see `wrapped_body`
    rods: RodSet | None  # tendons and the like
    surfaces: Surfaces | None  # of flexes
    terrain: Terrain | None  # the ground, if it is not level
    variants: Variants  # how the environments' robots differ from this one
    native: bool = True  # whether the training's physics is MuJoCo's
    backend: str = ""  # name of that physics
    main_link: int = 0  # the link that carries the robot: its place is the robot's
    scenery: tuple[Scenery, ...] = ()  # too large for a cell

    @classmethod
    def of(
        cls,
        model: mujoco.MjModel,
        grid: Grid,
        init_links: tuple[np.ndarray, np.ndarray],
        dt: float,
        variants: Variants | None = None,
        wanted: Parts = USUAL,
        *,
        native: bool = True,
        backend: str = "",
    ) -> "Model":
        """Reads a MuJoCo model without changing it."""
        variants = variants or Variants(model)
        terrain = Terrain.of(model)
        body, main = wrapped_body(model, wanted.groups), main_root(model)
        whole = grid.capacity == 1  # a single cell shows the whole terrain
        if terrain is not None and whole:
            body = None
        link = None if body is None else body - 1
        main_link = max(main or 1, 1) - 1 if link is None else link
        shapes = shapes_of(model, variants.apart, wanted, grid.scenery)
        shapes, scenery = scenery_of(model, shapes, grid)
        at, half = init_links[0][main_link, :2], np.array(grid.spacing[:2]) / 2
        shapes, ground = cropped(model, shapes, np.stack([at - half, at + half]), whole=whole)
        ground = ground_of(scenery, grid) if ground is None else ground
        floor = floor_height(model, grid.reach)
        if ground is not None and floor_of(model) is None:  # the shared floor must not hide it
            floor = min(floor, ground - 0.01 * float(np.ptp(grid.reach[:, 2])))
        return cls(
            shapes,
            *init_links,
            floor,
            dt,
            link,
            rods_of(model, wanted.groups),
            surfaces_of(model, wanted.groups),
            terrain,
            variants,
            native,
            backend,
            main_link,
            tuple(scenery),
        )

    @property
    def unavailable(self) -> dict[str, str]:
        """Overlays that this robot cannot have, and why."""
        return unavailable(self.variants.model, native=self.native, backend=self.backend)


def ghostly(shapes: Sequence[Shape]) -> list[Shape]:
    """The moving shapes of a robot, as the ghost of its twin is drawn."""
    rgba = np.array([*GHOST_RGB, round(255 * GHOST_OPACITY)], np.uint8)
    found = []
    for shape in shapes:
        moves = shape.body > 0
        if moves.any():
            body, pos, quat = shape.body[moves], shape.pos[moves], shape.quat[moves]
            look = replace(shape, body=body, pos=pos, quat=quat, rgba=rgba, casts_shadow=False)
            found.append(look)
    return found
