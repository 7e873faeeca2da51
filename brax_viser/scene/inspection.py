"""Looks inside one robot of a rollout: its overlays, and MuJoCo's model in its state."""

from collections.abc import Mapping

import numpy as np
import viser

from brax_viser.model.physics import Physics
from brax_viser.model.robot import Model
from brax_viser.records.frame import Frame
from brax_viser.scene.look import Look
from brax_viser.scene.overlays import OVERLAYS, Overlays, Recent

_ALIKE: dict[str, np.ndarray] = {}
"""An environment's own fields of the model if all have the same model: none."""


class Inspection:
    """What is known and drawn of the inside of one robot at a time. Used on the page's loop only.

    The physics and the overlays are made when they are first needed.
    """

    def __init__(self, server: viser.ViserServer, path: str, model: Model, scale: float):
        """Makes nothing visible yet.

        Args:
            server: the server of the scene.
            path: the scene node to put the overlays under.
            model: the robot.
            scale: scene units per metre.
        """
        self._server, self._path, self._model, self._scale = server, path, model, scale
        self._physics: Physics | None = None
        self._overlays: Overlays | None = None
        self._recent = Recent(model.dt)  # frames, for the trail

    def add(self, frame: Frame) -> None:
        """Keeps a frame that is drawn, for the trail."""
        self._recent.add(frame)

    def inside(self, frame: Frame, row: int) -> Physics | None:
        """MuJoCo's model and data in the state of an environment, until the next call; None if its
        state is not known or not finite."""
        physics = self._own_physics()
        return physics if physics.place(frame, row, self._own_fields(frame, row)) else None

    def draw(
        self,
        look: Look,
        frame: Frame,
        row: int,
        pose: tuple[np.ndarray, np.ndarray],
        shift: np.ndarray,
    ) -> None:
        """Shows the overlays of one robot, within `server.atomic()`.

        Args:
            look: which overlays, and of which body.
            frame: the current one.
            row: of the environment in the frame.
            pose: float [L, 3] in m and [L, 4] wxyz, of the links as they are drawn, in the
                environment's own world frame.
            shift: float [3], m, from that frame to the scene's.
        """
        if self._overlays is None:
            self._overlays = Overlays(
                self._server,
                self._path,
                self._own_physics(),
                dt=self._model.dt,
                scale=self._scale,
                shown=frozenset(OVERLAYS) - self._model.unavailable.keys(),
            )
        body = self._model.main_link + 1 if look.body is None else look.body
        own = self._own_fields(frame, row)
        self._overlays.draw(look.overlays, self._recent, frame, row, pose, shift, own, body)

    def hide(self) -> None:
        """Hides all overlays, within `server.atomic()`."""
        if self._overlays is not None:
            self._overlays.hide()

    def remove(self) -> None:
        """Removes all handles."""
        if self._overlays is not None:
            self._overlays.remove()

    def _own_physics(self) -> Physics:
        if self._physics is None:
            self._physics = Physics(self._model.variants.model, native=self._model.native)
        return self._physics

    def _own_fields(self, frame: Frame, row: int) -> Mapping[str, np.ndarray]:
        return self._model.variants.of_env.get(int(frame.env_index[row]), _ALIKE)
