"""Checks and derives the grid's shape and spacing."""

from collections.abc import Sequence

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
        ValueError: one has the wrong number of values, or a value is outside its limits.
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
