"""Computes where the cells of the grid are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """The cells in which environments are drawn: columns along x, rows along y, layers along z."""

    shape: tuple[int, int, int]  # columns, rows, layers
    spacing: tuple[float, float, float]  # m
    reach: np.ndarray  # float [2, 3], m: box around one env, in its own world frame
    scenery: frozenset[int] = frozenset()  # ids of geoms that need not fit in a cell
    farthest: float = 0.0  # m from the middle of the box: where the scenery ends

    @property
    def capacity(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape))

    def origins(self, count: int) -> np.ndarray:
        """Returns the cells' origins, float32 [count, 3], m, filled along x, then y, then z.

        The cells are centred in x and y, and the first layer is at z = 0.
        """
        assert 0 < count <= self.capacity
        columns, rows, _ = self.shape
        index = np.arange(count)
        cell = np.stack(
            [index % columns, index // columns % rows, index // (columns * rows)], axis=1
        )
        used = cell.max(axis=0)
        centre = np.array([used[0] / 2, used[1] / 2, 0.0])
        return ((cell - centre) * self.spacing).astype(np.float32)

    def bounds(self, count: int) -> np.ndarray:
        """Returns the box around the first `count` cells and their contents, float [2, 3], m."""
        origins = self.origins(count)
        return np.stack([origins.min(axis=0) + self.reach[0], origins.max(axis=0) + self.reach[1]])
