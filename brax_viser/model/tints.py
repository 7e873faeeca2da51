"""Chooses the muted tints by which neighbouring robots are told apart."""

from collections.abc import Sequence

import numpy as np

from brax_viser.model.shapes import Shape
from brax_viser.records.grid import Grid

TINTS = np.array(
    [
        (66, 133, 214),  # blue
        (226, 142, 58),  # orange
        (86, 168, 104),  # green
        (140, 146, 152),  # grey; violet is the twins'
        (214, 98, 112),  # red
        (62, 168, 178),  # teal
        (186, 166, 62),  # yellow
        (206, 112, 176),  # pink
    ],
    float,
)

_LIGHT = np.array([0.2126, 0.7152, 0.0722])


def tints_of(grid: Grid, count: int) -> np.ndarray:
    """float [count, 3], 0 to 255: each cell's tint, which differs from its neighbours'."""
    columns, rows, _ = grid.shape
    index = np.arange(count)
    column, row, layer = index % columns, index // columns % rows, index // (columns * rows)
    return TINTS[(column + 3 * row + 5 * layer) % len(TINTS)]


def has_one_colour(shapes: Sequence[Shape]) -> bool:
    """Whether all that moves has the same colour. Several colours tell parts and objects apart, and
    must not be changed."""
    colours = {
        None if shape.rgba is None else tuple(shape.rgba[:3].tolist())
        for shape in shapes
        if shape.body.any()
    }
    return len(colours) == 1 and None not in colours


def tinted(colour: np.ndarray, tints: np.ndarray, strength: float) -> np.ndarray:
    """uint8 [K, 3]: a colour with K tints. Black stays black, and white pale.

    Args:
        colour: uint8 [3].
        tints: float [K, 3], 0 to 255.
        strength: 0 to 1.
    """
    alike = tints * ((colour @ _LIGHT) / (tints @ _LIGHT))[:, None]
    return np.round(np.clip((1 - strength) * colour + strength * alike, 0, 255)).astype(np.uint8)
