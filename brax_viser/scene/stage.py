"""What stands around the robots: floor, light, sky and the first camera."""

import numpy as np
import viser

from brax_viser.scene.grid import Grid, framing_camera

SKY_TOP = (152, 186, 222)
SKY_HORIZON = (226, 235, 243)
FLOOR = (208, 214, 220)
FLOOR_LINE = (184, 192, 200)
FLOOR_SECTION = (150, 160, 171)


SHADOW_DEPTH = 18.0
"""How far from the camera the page casts shadows, in scene units: viser fixes it at 20."""


def scene_scale(bounds: np.ndarray) -> float:
    """Scene units per metre: 1, or less where what is drawn would outgrow the shadows.

    Every node of the scene is given this as its `scale`, so what the handles hold stays in
    metres.

    Args:
        bounds: float [2, 3], m: box around all cells.
    """
    camera = framing_camera(bounds)
    distance = np.linalg.norm(camera.position - camera.look_at)
    return float(min(1.0, SHADOW_DEPTH / (distance + np.linalg.norm(np.ptp(bounds, axis=0)) / 2)))


def set_stage(
    server: viser.ViserServer,
    floor_path: str,
    bounds: np.ndarray,
    scale: float,
    grid: Grid,
    floor: float,
) -> None:
    """Lays the floor, lights it, and points the first camera at all cells.

    Called again when another robot or another number of them is drawn; a page that is open
    keeps its camera where the person has put it.

    Args:
        server: whose scene it is.
        floor_path: the scene node of the floor.
        bounds: float [2, 3], m: box around all cells.
        scale: scene units per metre.
        grid: what the floor's lines are fitted to.
        floor: z of the shared floor, m.
    """
    bounds = bounds * scale
    camera = framing_camera(bounds)
    distance = float(np.linalg.norm(camera.position - camera.look_at))
    far = distance + float(np.linalg.norm(np.ptp(bounds, axis=0)))
    server.initial_camera.position = camera.position
    server.initial_camera.look_at = camera.look_at
    server.initial_camera.fov = camera.fov
    server.initial_camera.near = distance / 200
    server.initial_camera.far = 20 * far

    scene = server.scene
    scene.set_background_image(_sky(), format="jpeg")
    # Fading into the horizon's colour hides where the floor ends.
    scene.configure_fog(1.2 * far, 5 * far, color=SKY_HORIZON)
    # viser's own lights bleach pale robots and fall straight down, which hides shadows under them.
    scene.configure_default_lights(enabled=False)
    scene.configure_environment_map(None)
    scene.add_light_hemisphere(
        "/lights/sky", sky_color=(255, 255, 255), ground_color=(170, 165, 160), intensity=1.6
    )
    scene.add_light_directional(
        "/lights/sun",
        color=(255, 247, 235),
        intensity=2.2,
        cast_shadow=True,
        position=(-0.55, -0.5, 1.0),
    )
    # In scene units from here on: a grid's lines do not follow a scale.
    line = _round_length(float(np.ptp(grid.reach[:, :2], axis=0).max()) / 4) * scale
    scene.add_grid(
        floor_path,
        width=12 * far,
        height=12 * far,
        cell_size=line,
        cell_color=FLOOR_LINE,
        section_size=5 * line,
        section_color=FLOOR_SECTION,
        fade_distance=4 * far,
        plane_color=FLOOR,
        plane_opacity=1.0,
        shadow_opacity=0.35,
        position=(0.0, 0.0, floor * scale),
    )


def _sky() -> np.ndarray:
    """uint8 [64, 2, 3]: a gradient, stretched over the window by the page."""
    height = np.linspace(1.0, 0.0, 64)[:, None, None]
    top, horizon = np.array(SKY_TOP), np.array(SKY_HORIZON)
    return np.broadcast_to(horizon + (top - horizon) * height, (64, 2, 3)).astype(np.uint8)


def _round_length(metres: float) -> float:
    """The nearest of 1, 2 or 5 times a power of ten, so that floor lines can be counted."""
    power = 10.0 ** np.floor(np.log10(metres))
    return float(min((1.0, 2.0, 5.0, 10.0), key=lambda digit: abs(digit * power - metres)) * power)
