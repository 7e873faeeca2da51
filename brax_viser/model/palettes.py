"""Chooses colours and lights for the surroundings: day, night, or as the robots' model says."""

from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.shapes import floor_of
from brax_viser.model.surfaces import pixels_of, plain_rgba

RGB = tuple[int, int, int]

MAX_SUNS = 4
"""A page computes each light for every pixel."""

_POINT, _IMAGE = int(mujoco.mjtLightType.mjLIGHT_POINT), int(mujoco.mjtLightType.mjLIGHT_IMAGE)
_SKYBOX = int(mujoco.mjtTexture.mjTEXTURE_SKYBOX)

_BRIGHTEST = 1.2
"""Limit on the sum of all lights, as MuJoCo adds them. MuJoCo clips at 1, where all is white."""


@dataclass(frozen=True)
class Sun:
    """A light that comes from one direction."""

    towards: tuple[float, float, float]  # direction to the light
    colour: RGB
    intensity: float  # in three.js's unit: pi shows a white surface as white
    casts_shadow: bool


@dataclass(frozen=True)
class Palette:
    """Colours and lights around the robots, which keep their own colours."""

    sky_top: RGB
    horizon: RGB
    floor: RGB
    tile: RGB  # of each cell
    mark: RGB  # on the tiles
    line: RGB
    section: RGB
    sky_light: float  # intensity, in three.js's unit
    reflected: float  # intensity of the surroundings' dull reflection in surfaces; 0: none
    suns: tuple[Sun, ...]


def _day(intensity: float) -> tuple[Sun]:
    # viser's default light shines straight down, which hides shadows under the robots.
    return (Sun((-0.55, -0.5, 1.0), (255, 247, 235), intensity, True),)


# Without reflections a black robot is black from all sides, and its shape cannot be seen. As they
# brighten every surface, dark or pale, by a little, the sky's own light is weaker.
LIGHT = Palette(
    sky_top=(152, 186, 222),
    horizon=(226, 235, 243),
    floor=(196, 203, 211),
    tile=(190, 192, 194),
    mark=(104, 112, 122),
    line=(184, 192, 200),
    section=(150, 160, 171),
    sky_light=0.5,
    reflected=0.7,
    suns=_day(1.9),
)
DARK = Palette(
    sky_top=(16, 20, 27),
    horizon=(44, 52, 63),
    floor=(53, 60, 70),
    tile=(66, 73, 84),
    mark=(112, 122, 135),
    line=(66, 74, 85),
    section=(92, 102, 115),
    sky_light=0.4,
    reflected=0.6,
    suns=_day(2.0),
)


def palette_of(model: mujoco.MjModel) -> Palette:
    """The sky, the lights and the floor of a model, as far as all cells can share them.

    The sky has the skybox's colours at zenith and horizon; without a skybox it is black, as in
    MuJoCo. Lights keep only their directions: their positions suit one robot, not a grid of them.
    The headlight at MuJoCo's camera becomes light from the whole sky. The floor has its main
    colour.

    Args:
        model: is not changed.
    """
    top, horizon = _sky(model)
    floor = floor_of(model)
    ground = LIGHT.floor if floor is None else _rgb(plain_rgba(model, floor)[:3] / np.float64(255))
    shade = 0.85 if np.mean(ground) > 80 else 1.35
    head = model.vis.headlight
    around = bool(head.active) * (np.array(head.ambient) + head.diffuse)
    lights = [light for light in range(model.nlight) if _shines(model, light)][:MAX_SUNS]
    around = around + model.light_ambient[lights].sum(axis=0)
    total = float((around + model.light_diffuse[lights].sum(axis=0)).mean())
    # MuJoCo adds light in display values, a page in linear light.
    strength = np.pi * min(total, _BRIGHTEST) ** 2.2 / max(total, 1e-6)
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    suns = []
    for light in lights:
        diffuse = model.light_diffuse[light]
        away = data.light_xdir[light]
        if model.light_type[light] == _POINT:
            away = -data.light_xpos[light]
        x, y, z = (-away / max(float(np.linalg.norm(away)), 1e-9)).tolist()
        suns.append(
            Sun(
                (x, y, z),
                _rgb(diffuse / diffuse.max()),
                float(strength * diffuse.mean()),
                bool(model.light_castshadow[light]) and not any(sun.casts_shadow for sun in suns),
            )
        )
    return Palette(
        sky_top=top,
        horizon=horizon,
        floor=ground,
        tile=_rgb(0.8 * np.array(ground) / 255),
        mark=_rgb(shade**2 * np.array(ground) / 255),
        line=_rgb(shade * np.array(ground) / 255),
        section=_rgb(shade**2 * np.array(ground) / 255),
        sky_light=float(strength * around.mean()),
        reflected=0.0,
        suns=tuple(suns),
    )


def _shines(model: mujoco.MjModel, light: int) -> bool:
    lit = model.light_active[light] and model.light_diffuse[light].max() > 0
    return bool(lit and model.light_type[light] != _IMAGE)


def _sky(model: mujoco.MjModel) -> tuple[RGB, RGB]:
    """Colours of zenith and horizon."""
    for texture in range(model.ntex):
        if model.tex_type[texture] == _SKYBOX:
            pixels = pixels_of(model, texture)
            side = pixels.shape[1]
            # Six faces, one above the other: +x, -x, +y, -y, +z, -z, of which MuJoCo turns +y
            # upwards; or a single one, which is used for all.
            up = pixels[2 * side : 3 * side] if len(pixels) == 6 * side else pixels
            middle = pixels[side // 2 - 1 : side // 2 + 1]
            top = up[side // 3 : side - side // 3, side // 3 : side - side // 3]
            return _mean(top), _mean(middle)
    return (0, 0, 0), (0, 0, 0)


def _mean(pixels: np.ndarray) -> RGB:
    return _rgb(pixels.reshape(-1, pixels.shape[-1])[:, :3].mean(axis=0) / 255)


def _rgb(colour: np.ndarray) -> RGB:
    """Converts float [3] or [1], 0 to 1."""
    r, g, b = np.round(255 * np.clip(np.broadcast_to(colour, 3), 0, 1)).astype(int).tolist()
    return r, g, b
