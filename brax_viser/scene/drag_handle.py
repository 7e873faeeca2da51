"""Puts a handle into the scene by which a person drags a robot."""

from collections.abc import Callable

import numpy as np
import viser

SIZE = 0.35
"""Size of the handle, in extents of the robot."""


class DragHandle:
    """One handle, shared by all pages. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        size: float,
        moved: Callable[[np.ndarray], None],
        released: Callable[[], None],
    ):
        """Shows the handle.

        Args:
            server: the server of the scene.
            path: of the handle's scene node.
            size: of the robot, in scene units.
            moved: called while the handle is dragged, with its position: float [3], scene units in
                the frame of the node above.
            released: called when the handle is released.
        """
        self._held = False
        self._handle = server.scene.add_transform_controls(
            path, scale=SIZE * size, disable_rotations=True, depth_test=False
        )

        @self._handle.on_update
        async def _(event: viser.TransformControlsEvent) -> None:
            self._held = event.phase != "end"
            if self._held:
                moved(np.asarray(event.target.position))
            else:
                released()

    def follow(self, place: np.ndarray) -> None:
        """Moves the handle to the robot's place, float [3], unless a person is dragging it."""
        if not self._held and not np.allclose(self._handle.position, place, atol=1e-4):
            self._handle.position = tuple(place)

    def remove(self) -> None:
        self._handle.remove()
