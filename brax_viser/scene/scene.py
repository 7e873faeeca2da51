"""The whole 3-D scene: one robot model, drawn once per chosen environment."""

import mujoco
import numpy as np
import viser

from brax_viser.frame import Frame
from brax_viser.scene.grid import Grid
from brax_viser.scene.robots import Robots
from brax_viser.scene.shapes import Shape, floor_height, shapes_of
from brax_viser.scene.stage import scene_scale, set_stage


class Scene:
    """Shows frames. Used by the publisher's thread alone, once `show` has run."""

    def __init__(self, server: viser.ViserServer):
        self._server = server
        self._shapes: list[Shape] = []
        self._floor = 0.0
        self._grid: Grid | None = None
        self._init_pos = self._init_rot = np.zeros((0, 0, 0), np.float32)
        self._pos = self._rot = np.zeros((0, 0, 0), np.float32)
        self._cell_of_env = np.zeros(0, np.int32)
        self.drawn_envs = np.zeros(0, np.int32)  # int32 [K], in the order of the cells
        self.robots: Robots | None = None

    def show(
        self,
        model: mujoco.MjModel,
        grid: Grid,
        init_links: tuple[np.ndarray, np.ndarray],
        num_envs: int | None = None,
    ) -> None:
        """Fills the grid with a model in its initial pose, in place of what was there.

        Args:
            model: read, never written.
            grid: its cells.
            init_links: poses before the first step, float32 [L, 3] and [L, 4] wxyz.
            num_envs: how many environments there will be; None if that is not known yet.
        """
        self._shapes, self._floor, self._grid = (
            shapes_of(model),
            floor_height(model, grid.reach),
            grid,
        )
        self._init_pos, self._init_rot = init_links
        count = grid.capacity if num_envs is None else min(num_envs, grid.capacity)
        self._fill(count)
        self._choose(np.arange(count, dtype=np.int32), count)

    def _fill(self, count: int) -> None:
        """New handles for `count` robots: the number of instances of a handle is fixed."""
        assert self._grid is not None
        if self.robots is not None:
            self.robots.remove()
        scale = scene_scale(self._grid, count)
        self.robots = Robots(self._server, self._shapes, self._grid.origins(count), scale)
        self._pos = np.repeat(self._init_pos[None], count, axis=0)
        self._rot = np.repeat(self._init_rot[None], count, axis=0)
        self.robots.draw(self._pos, self._rot)
        set_stage(self._server, self._grid, count, self._floor)

    def _choose(self, drawn_envs: np.ndarray, num_envs: int) -> None:
        self.drawn_envs = drawn_envs
        self._cell_of_env = np.full(
            max(num_envs, int(drawn_envs.max(initial=-1)) + 1), -1, np.int32
        )
        self._cell_of_env[drawn_envs] = np.arange(len(drawn_envs))

    def draw(self, frames: list[Frame], drawn_envs: np.ndarray) -> None:
        """Brings the newest poses to the screen.

        Args:
            frames: one per device, of the same rollout.
            drawn_envs: int32 [K], which environments have a cell, in the cells' order.
        """
        assert self.robots is not None and frames
        if len(drawn_envs) != len(self.drawn_envs):
            self._fill(len(drawn_envs))
        if not np.array_equal(drawn_envs, self.drawn_envs):
            self._choose(drawn_envs, frames[0].num_envs)
        for frame in frames:
            known = frame.env_index < len(self._cell_of_env)
            cell = self._cell_of_env[frame.env_index[known]]
            self._pos[cell[cell >= 0]] = frame.link_pos[known][cell >= 0]
            self._rot[cell[cell >= 0]] = frame.link_rot[known][cell >= 0]
        self.robots.draw(self._pos, self._rot)
