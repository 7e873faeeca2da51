"""Checks and derives the grid's shape and spacing, and places a camera that sees all of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.scenery import must_hold
from brax_viser.model.scope import bounds_of as bounds_of
from brax_viser.model.scope import scope_of, within
from brax_viser.records.grid import Grid

MAX_CELLS = 4096


def grid_of(
    model: mujoco.MjModel,
    init_qpos: np.ndarray,
    grid: Sequence[int],
    spacing: Sequence[float] | None,
) -> Grid:
    """Checks a user's grid and spacing, and derives the spacing where it is None.

    Raises:
        TypeError: `grid` or `spacing` is not a sequence of numbers, or a side is not whole.
        ValueError: one has the wrong number of values, or a value is out of its limits.
    """
    shape = _checked_shape(grid)
    scope = scope_of(model, init_qpos)
    while True:
        spaced = _checked_spacing(spacing, scope.reach)
        cells = Grid(shape, spaced, scope.reach, scope.scenery, scope.farthest)
        # A cell that grows to hold an obstacle may reach further ones.
        met = [not within(scope.reach, *box) and must_hold(box, cells) for box in scope.obstacles]
        if not any(met):
            return cells
        scope = scope.holding(np.array(met))


def _checked_shape(grid: Sequence[int]) -> tuple[int, int, int]:
    sides = _numbers("grid", grid)
    if len(sides) not in (2, 3):
        raise ValueError(
            f"grid={grid!r} has {len(sides)} numbers: give (columns, rows) or "
            "(columns, rows, layers)"
        )
    if any(side != int(side) for side in sides):
        raise TypeError(f"grid={grid!r}: every side must be a whole number")
    if min(sides) < 1:
        raise ValueError(f"grid={grid!r}: every side must be at least 1")
    columns, rows, layers = (int(side) for side in (*sides, 1)[:3])
    if columns * rows * layers > MAX_CELLS:
        raise ValueError(
            f"grid={grid!r} has {columns * rows * layers} cells: at most {MAX_CELLS} can be "
            "drawn; the trainer may step any number"
        )
    return columns, rows, layers


def _checked_spacing(
    spacing: Sequence[float] | None, reach: np.ndarray
) -> tuple[float, float, float]:
    # Leave room between robots, and keep flat ones (a cheetah moves in a plane) well apart too.
    size = np.maximum(1.2 * (reach[1] - reach[0]), 0.4 * np.ptp(reach, axis=0).max())
    derived = (float(size[0]), float(size[1]), float(size[2]))
    if spacing is None:
        return derived
    steps = _numbers("spacing", spacing)
    if len(steps) not in (2, 3):
        raise ValueError(f"spacing={spacing!r} has {len(steps)} numbers: give (x, y) or (x, y, z)")
    if not all(np.isfinite(steps)) or min(steps) <= 0:
        raise ValueError(f"spacing={spacing!r}: every distance must be above 0 metres")
    x, y, z = (*steps, derived[2])[:3]
    return float(x), float(y), float(z)


def _numbers(name: str, values: object) -> list[float]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name}={values!r}: must be a sequence of numbers, such as (8, 8)")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name}={values!r}: {value!r} is not a number")
    return [float(value) for value in values]


def reach_of(model: mujoco.MjModel, init_qpos: np.ndarray) -> np.ndarray:
    """float [2, 3], m: box around all that one env can touch while its root stays in place; see
    `scope.scope_of`."""
    return scope_of(model, init_qpos).reach


@dataclass(frozen=True, eq=False)
class CameraPose:
    """A camera, in the scene's world frame."""

    position: np.ndarray  # float [3], m
    look_at: np.ndarray  # float [3], m
    fov: float  # rad, vertical


def framing_camera(
    bounds: np.ndarray,
    *,
    azimuth: float = np.radians(-145.0),
    elevation: float = np.radians(24.0),
    fov: float = np.radians(35.0),
    aspect: float = 1.25,
) -> CameraPose:
    """The nearest camera in a given direction that sees all of a box.

    Args:
        bounds: float [2, 3], m, the box.
        azimuth: rad, direction from the box to the camera: 0 is +x, -pi/2 is -y. From behind and
            from the right, robots that learn to run along +x, as Brax rewards, stay in view.
        elevation: rad above the horizon.
        fov: rad, vertical.
        aspect: width / height of the part of the window that shows the scene.
    """
    outward = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], outward)
    right /= np.linalg.norm(right)
    up = np.cross(outward, right)
    centre = bounds.mean(axis=0)
    corners = np.array([[bounds[i][axis] for axis, i in enumerate(c)] for c in np.ndindex(2, 2, 2)])
    offset = corners - centre
    # A corner is in view if its distance off the axis is at most tan(angle) x its depth.
    tan_up = np.tan(fov / 2)
    distance = max(
        np.max(offset @ outward + np.abs(offset @ right) / (tan_up * aspect)),
        np.max(offset @ outward + np.abs(offset @ up) / tan_up),
    )
    return CameraPose(centre + 1.05 * distance * outward, centre, float(fov))
