"""Draws the ghosts of one rollout's robots: their twins, or another recording of them."""

import numpy as np
import viser

from brax_viser.model.robot import GHOST_RGB, Model, ghostly
from brax_viser.records.view import View
from brax_viser.scene.robots import Paint, Robots

_NO_ENVS = np.zeros(0, np.int32)


class Ghosts:
    """The ghosts in the cells of a block, made for the first view that has any. Used on the page's
    loop only."""

    def __init__(
        self, server: viser.ViserServer, path: str, model: Model, origins: np.ndarray, scale: float
    ):
        """Makes nothing visible yet.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            model: the robot.
            origins: float [K, 3], m, of the cells in the scene.
            scale: scene units per metre.
        """
        self._server, self._path, self._model = server, path, model
        self._origins, self._scale = origins, scale
        self._shapes = ghostly(model.shapes)
        self._shown = False
        # The version of the model's variants, and the environments, that the ghosts look like.
        self._look: tuple[int, np.ndarray] = -1, _NO_ENVS
        self.robots: Robots | None = None

    def draw(self, view: View, hidden: np.ndarray, moved: np.ndarray, beside: float) -> int:
        """Draws the ghosts of a view, or hides them if it has none, within `server.atomic()`.

        Returns how many bytes each page is sent.

        Args:
            view: of at most K environments, in the order of the cells.
            hidden: bool [K]: robots that are not shown, so that their ghosts are not either.
            moved: float [K, 3], m: how far each robot is drawn from where it is.
            beside: m along the y axis from a robot's place to its ghost's.
        """
        if view.ghost is None or view.frame.ghost is None:
            self.hide()
            return 0
        robots = self._made(view.frame.env_index)
        count, cells = len(view.frame.env_index), len(self._origins)
        links = view.ghost[0].shape[1]
        pos, rot = np.zeros((cells, links, 3), np.float32), np.zeros((cells, links, 4), np.float32)
        pos[:count], rot[:count] = view.ghost
        out = hidden | ~(np.isfinite(pos).all(axis=(1, 2)) & np.isfinite(rot).all(axis=(1, 2)))
        out[:count] |= ~view.frame.ghost.there
        out[count:] = True
        pos += moved[:, None]
        pos[..., 1] += beside
        self._shown = True
        return robots.draw(pos, rot, out)

    def hide(self) -> None:
        """Hides all ghosts, within `server.atomic()`."""
        # Only once: ghosts that are hidden already need not be placed with each frame.
        if self.robots is not None and self._shown:
            cells, links = len(self._origins), len(self._model.init_pos)
            pos, rot = np.zeros((cells, links, 3)), np.zeros((cells, links, 4))
            self.robots.draw(pos, rot, np.ones(cells, bool))
            self._shown = False

    def remove(self) -> None:
        """Removes all handles."""
        if self.robots is not None:
            self.robots.remove()

    def _made(self, envs: np.ndarray) -> Robots:
        """The handles, which look like the models of these environments."""
        count, variants = len(self._origins), self._model.variants
        if self.robots is None:
            self.robots = Robots(self._server, self._path, self._shapes, self._origins, self._scale)
            self.robots.paint(Paint(np.tile(np.array(GHOST_RGB, np.uint8), (count, 1))))
        version, drawn = self._look
        if version != variants.version or not np.array_equal(drawn, envs):
            self._look = variants.version, envs
            if variants.apart:
                self.robots.vary(variants.places(self._shapes, envs.tolist(), count))
        return self.robots
