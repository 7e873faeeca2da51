"""Sets up the surroundings of the robots: floor, light, sky and the first camera."""

import numpy as np
import viser

from brax_viser.model.framing import framing_camera
from brax_viser.model.palettes import LIGHT, MAX_SUNS, Palette
from brax_viser.records.grid import Grid

SHADOW_DEPTH = 18.0
"""Scene units from the first camera to the far end of all cells. The page casts shadows up to 20
units away, in three maps of 1,024 pixels that share this distance, and treats a surface less than
0.02 units behind another one as lit. So shadows are useless for robots that are too small for
these maps, or too far away."""

FLOOR_OPACITY = 0.65
"""The cells' tiles are seen through the floor, see `cells.THIN`."""

ENVIRONMENT_MAP = "city"
"""viser's environment map that surfaces mirror: grey, bright above and dark below."""

MOST_METRES = 4000.0
"""Largest distance, m, at which scenery is drawn."""


def scene_scale(bounds: np.ndarray) -> float:
    """Scene units per metre. They give every scene the size for which the page's shadows are made:
    a hand of 20 cm is made larger, a grid of 100 m smaller.

    Every node of the scene gets this as its `scale`, so the values in the handles stay in
    metres.

    Args:
        bounds: float [2, 3], m: box around all cells.
    """
    camera = framing_camera(bounds)
    distance = np.linalg.norm(camera.position - camera.look_at)
    farthest = distance + np.linalg.norm(np.ptp(bounds, axis=0)) / 2
    return float(SHADOW_DEPTH / max(farthest, 1e-9))


def set_stage(
    server: viser.ViserServer,
    floor_path: str,
    bounds: np.ndarray,
    scale: float,
    grid: Grid,
    floor: float,
    palette: Palette = LIGHT,
    *,
    lines: bool = True,
) -> None:
    """Lays the floor, lights it, and points the first camera at all cells.

    Called again when another robot, or another number of robots, is drawn; an open page keeps its
    camera where its user has put it.

    Args:
        server: the server of the scene.
        floor_path: the scene node of the floor.
        bounds: float [2, 3], m: box around all cells.
        scale: scene units per metre.
        grid: its robots' reach sets the spacing of the floor's lines.
        floor: z of the shared floor, m.
        palette: colours and lights.
        lines: whether the floor has lines.
    """
    far, beyond = _aim(server, bounds * scale, scale, grid.farthest)
    scene = server.scene
    scene.set_background_image(_sky(palette), format="jpeg")
    # Fading into the horizon's colour hides where the floor ends.
    clear, blurred = max(1.2 * far, beyond), max(5 * far, 2.5 * beyond)
    scene.configure_fog(clear, blurred, color=palette.horizon)
    _light(scene, palette)
    # In scene units from here on: the lines of viser's grid do not follow a node's scale.
    line = round_length(float(np.ptp(grid.reach[:, :2], axis=0).max()) / 4) * scale
    scene.add_grid(
        floor_path,
        width=2.4 * blurred,
        height=2.4 * blurred,
        cell_size=line,
        cell_color=palette.line,
        section_size=5 * line,
        section_color=palette.section,
        fade_distance=max(4 * far, 2 * beyond),  # far enough that walls don't hang in the air
        plane_color=palette.floor,
        cell_thickness=0.5 * lines,
        section_thickness=1.0 * lines,
        plane_opacity=FLOOR_OPACITY,
        shadow_opacity=0.45,
        position=(0.0, 0.0, floor * scale),
    )


def _aim(
    server: viser.ViserServer, bounds: np.ndarray, scale: float, farthest: float
) -> tuple[float, float]:
    """Points the first camera at all cells.

    Returns two distances from it in scene units: to the farthest cell, and to the farthest scenery.

    Args:
        server: the server of the scene.
        bounds: float [2, 3], in scene units: box around all cells.
        scale: scene units per metre.
        farthest: m, to the farthest scenery.
    """
    view, camera = framing_camera(bounds), server.initial_camera
    distance = float(np.linalg.norm(view.position - view.look_at))
    far = distance + float(np.linalg.norm(np.ptp(bounds, axis=0)))
    camera.position, camera.look_at, camera.fov = view.position, view.look_at, view.fov
    camera.near = distance / 200
    # Draw far-off scenery, and not in the fog; but not the instances that are parked out of sight.
    beyond = min(distance + scale * farthest, MOST_METRES * scale)
    camera.far = max(20 * far, 2 * beyond)
    return far, beyond


def _light(scene: viser.SceneApi, palette: Palette) -> None:
    """Replaces all lights."""
    # viser's default lights, with its environment map at full strength, bleach pale robots.
    scene.configure_default_lights(enabled=False)
    scene.configure_environment_map(
        ENVIRONMENT_MAP if palette.reflected > 0 else None, environment_intensity=palette.reflected
    )
    scene.add_light_hemisphere(
        "/lights/sky",
        sky_color=(255, 255, 255),
        ground_color=(170, 165, 160),
        intensity=palette.sky_light,
    )
    for index in range(MAX_SUNS):
        name = f"/lights/sun{index}"
        if index >= len(palette.suns):
            scene.remove_by_name(name)
            continue
        sun = palette.suns[index]
        scene.add_light_directional(
            name,
            color=sun.colour,
            intensity=sun.intensity,
            cast_shadow=sun.casts_shadow,
            position=sun.towards,
        )


def _sky(palette: Palette) -> np.ndarray:
    """uint8 [64, 2, 3]: a gradient, stretched over the window by the page."""
    height = np.linspace(1.0, 0.0, 64)[:, None, None]
    top, horizon = np.array(palette.sky_top), np.array(palette.horizon)
    return np.broadcast_to(horizon + (top - horizon) * height, (64, 2, 3)).astype(np.uint8)


def round_length(metres: float) -> float:
    """The nearest of 1, 2 or 5 times a power of ten, so that floor lines can be counted."""
    power = 10.0 ** np.floor(np.log10(metres))
    return float(min((1.0, 2.0, 5.0, 10.0), key=lambda digit: abs(digit * power - metres)) * power)
