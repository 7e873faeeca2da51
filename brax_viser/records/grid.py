"""Where the cells of the grid are: numbers alone."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells in columns along x, rows along y and layers along z, centred on the origin."""

    shape: tuple[int, int, int]  # columns, rows, layers
    spacing: tuple[float, float, float]  # m
    reach: np.ndarray  # float [2, 3], m: box that holds one env, in its own world frame
    scenery: frozenset[int] = frozenset()  # ids of geoms that a cell need not hold
    farthest: float = 0.0  # m from the middle of the box: where the scenery ends

    @property
    def capacity(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape))

    def origins(self, count: int) -> np.ndarray:
        """float32 [count, 3], m: cells filled along x first, then y, then z.

        The block is centred in x and y, and its first layer stands on the floor.
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
        """float [2, 3], m: box that holds the first `count` cells with what is in them."""
        origins = self.origins(count)
        return np.stack([origins.min(axis=0) + self.reach[0], origins.max(axis=0) + self.reach[1]])
