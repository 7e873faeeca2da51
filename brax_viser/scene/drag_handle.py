"""A handle in the scene by which a person drags a robot."""

from collections.abc import Callable

import numpy as np
import viser

SIZE = 0.35
"""Of the handle, in extents of the robot."""


class DragHandle:
    """One handle, shared by all pages. Used on viser's own thread alone."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        size: float,
        moved: Callable[[np.ndarray], None],
        released: Callable[[], None],
    ):
        """Shows it.

        Args:
            server: whose scene it is.
            path: of its scene node.
            size: of the robot, in scene units.
            moved: called with float [3], scene units in the frame of the node above, while it is
                dragged.
            released: called when it is let go.
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
        """Goes where the robot is, float [3], unless somebody holds it."""
        if not self._held and not np.allclose(self._handle.position, place, atol=1e-4):
            self._handle.position = tuple(place)

    def remove(self) -> None:
        self._handle.remove()
