"""Keeps the robots in the picture of each page, until its user moves the camera."""

from dataclasses import dataclass

import numpy as np
import viser

from brax_viser.model.framing import ASPECT, OTHERWISE, CameraPose, framing_camera

RESHAPED = 0.02
"""Relative change of a window's shape from which on its camera is placed again."""

SLIMMEST = 20.0
"""Longer over shorter side of a window for which a camera is placed: a page may report any
shape."""

MOVED = 0.01
"""Distance, relative to that of the robots, from which on a camera counts as moved by its user."""


@dataclass(frozen=True, eq=False)
class _Placed:
    """Where a page's camera has been put."""

    view: str  # one of framing.VIEWS
    aspect: float  # of the window at that time
    pose: CameraPose | None  # in scene units; None: there were no robots yet


class Views:
    """The pages' own cameras. Used on the page's loop only."""

    def __init__(self, server: viser.ViserServer):
        self._server = server
        self._bounds: np.ndarray | None = None  # float [2, 3], scene units
        self._placed: dict[int, _Placed] = {}  # by client id
        server.on_client_connect(self._connected)
        server.on_client_disconnect(self._disconnected)

    async def _connected(self, client: viser.ClientHandle) -> None:
        # A new page's camera is where `stage.set_stage` has put the initial one; that of a page
        # that comes back after a lost connection is where its user has left it.
        pose = None if self._bounds is None else framing_camera(self._bounds)
        self._placed[client.client_id] = _Placed(OTHERWISE, ASPECT, pose)
        client.camera.on_update(self._updated)
        await self._updated(client.camera)

    async def _disconnected(self, client: viser.ClientHandle) -> None:
        self._placed.pop(client.client_id, None)

    async def _updated(self, camera: viser.CameraHandle) -> None:
        """Places a camera again if its page's window has another shape now."""
        placed = self._placed.get(camera.client.client_id)
        if placed is None or placed.pose is None or not camera.image_height:
            return
        reshaped = abs(_aspect(camera) / placed.aspect - 1) > RESHAPED
        if reshaped and _is_there(camera, placed.pose):
            self.show(camera, placed.view)

    def show(self, camera: viser.CameraHandle, view: str | None = None) -> None:
        """Moves a page's camera so that it sees all robots.

        Args:
            camera: the page's.
            view: one of `framing.VIEWS`; None: the one that the page had last.
        """
        page = camera.client.client_id
        if view is None:
            view = self._placed[page].view if page in self._placed else OTHERWISE
        aspect = _aspect(camera)
        pose = None
        if self._bounds is not None:
            pose = framing_camera(self._bounds, view, aspect=aspect)
            with camera.client.atomic():
                camera.position, camera.look_at = pose.position, pose.look_at
        self._placed[page] = _Placed(view, aspect, pose)

    def frame(
        self,
        bounds: np.ndarray,
        *,
        stay: float | None = None,
        robots: np.ndarray | None = None,
    ) -> None:
        """Takes a new box around all robots.

        Args:
            bounds: float [2, 3], scene units.
            stay: cameras stay where they are, in metres, and there are this many times as many
                scene units in a metre now. None: those that no user has moved are placed again.
            robots: float [K, 3], scene units: cameras that see none of these are placed again,
                too. None: all of them see some.
        """
        self._bounds = bounds
        for page, client in self._server.get_clients().items():
            placed, camera = self._placed.get(page), client.camera
            if stay is not None:
                _scale(camera, stay)
            elif placed is not None and (
                placed.pose is None
                or _is_there(camera, placed.pose)
                or (robots is not None and not _sees(camera, robots))
            ):
                self.show(camera)


def _aspect(camera: viser.CameraHandle) -> float:
    """The shape of a page's window, width over height, within what a window can be."""
    if not camera.image_height:
        return ASPECT
    return float(np.clip(camera.aspect, 1 / SLIMMEST, SLIMMEST))


def _is_there(camera: viser.CameraHandle, pose: CameraPose) -> bool:
    """Whether a camera is still where it was put."""
    near = MOVED * float(np.linalg.norm(pose.position - pose.look_at))
    moved = (camera.position - pose.position, camera.look_at - pose.look_at)
    return max(float(np.linalg.norm(by)) for by in moved) < near


def _sees(camera: viser.CameraHandle, points: np.ndarray) -> bool:
    """Whether any of some points, float [K, 3], is in a camera's picture."""
    ahead = camera.look_at - camera.position
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    right = np.cross(ahead, camera.up_direction)
    right /= max(float(np.linalg.norm(right)), 1e-9)
    x, y, depth = np.stack([right, np.cross(right, ahead), ahead]) @ (points - camera.position).T
    half = np.tan(camera.fov / 2) * depth
    return bool(((np.abs(y) < half) & (np.abs(x) < _aspect(camera) * half)).any())


def _scale(camera: viser.CameraHandle, factor: float) -> None:
    position, look_at = factor * camera.position, factor * camera.look_at
    with camera.client.atomic():
        camera.position, camera.look_at = position, look_at
