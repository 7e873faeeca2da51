"""Places a camera that sees all of a box and fills the window with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FOV = float(np.radians(35.0))
"""rad, vertical angle of view of a page's own camera."""

ASPECT = 1.33
"""Width / height of the part of a usual window that the panel leaves free: 1280 by 720 pixels."""

UPRIGHT = 0.65
"""Where the window is narrower than this share of its height, as on a telephone, viser's panel
covers its lower part."""

COVERED = 0.6
"""Share of the height of such a window that the panel covers."""

FILLED = 0.94
"""Share of the free part of the window that is filled."""

VIEWS: dict[str, tuple[float, float]] = {
    "orbit": (-112.0, 36.0),
    "front": (0.0, 14.0),
    "side": (-90.0, 14.0),
    "top": (-90.0, 89.0),
}
"""View -> direction from the robots to the camera: degrees from +x, and above the horizon. Robots
that learn to run do so along +x, as Brax rewards: in the first view, a new page's, from left to
right."""

OTHERWISE = "orbit"
"""The view of a new page."""


@dataclass(frozen=True, eq=False)
class CameraPose:
    """A camera, in the scene's world frame."""

    position: np.ndarray  # float [3], m
    look_at: np.ndarray  # float [3], m
    fov: float  # rad, vertical


def framing_camera(
    bounds: np.ndarray,
    view: str | tuple[float, float] = OTHERWISE,
    *,
    fov: float = FOV,
    aspect: float = ASPECT,
) -> CameraPose:
    """The nearest camera in a given direction that sees all of a box, in the window's free part.

    Args:
        bounds: float [2, 3], m, the box.
        view: one of `VIEWS`, or a direction as there.
        fov: rad, vertical.
        aspect: width / height of the window without a panel beside it.
    """
    azimuth, elevation = np.radians(VIEWS[view] if isinstance(view, str) else view)
    outward = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    up = np.cross(outward, right)
    corners = np.array([[bounds[i][axis] for axis, i in enumerate(c)] for c in np.ndindex(2, 2, 2)])
    depth = -corners @ outward
    # The window's edges at unit depth, from the middle of the picture.
    top = FILLED * np.tan(fov / 2)
    bottom = -top * (1 - 2 * COVERED) if aspect < UPRIGHT else -top
    side = aspect * top
    across, behind = _between(corners @ right, depth, -side, side)
    above, further = _between(corners @ up, depth, bottom, top)
    back = min(behind, further)
    position = across(back) * right + above(back) * up - back * outward
    centre = bounds.mean(axis=0)
    # The point that the page's camera turns around: straight ahead, as far away as the robots.
    look_at = position - outward * ((position - centre) @ outward)
    return CameraPose(position, look_at, float(fov))


def _between(
    place: np.ndarray, depth: np.ndarray, low: float, high: float
) -> tuple[Callable[[float], float], float]:
    """Where a camera may be so that it sees points between two edges of its picture.

    Args:
        place: float [N], m, of the points along one of the picture's axes.
        depth: float [N], m, of the points along the direction of view.
        low: place of one edge at unit depth.
        high: place of the other.

    Returns:
        The camera's place along the axis, as a function of its depth, and the largest depth.
    """
    least, most = (place - high * depth).max(), (place - low * depth).min()
    deepest = (most - least) / (high - low)
    return (lambda at: (least + high * at + most + low * at) / 2), float(deepest)
