"""Gives geoms the colours and textures with which MuJoCo would draw them.

mjviser's conversions texture meshes that come with texture coordinates. MuJoCo textures everything
else (a box with wood on it, a ball with letters) by the geom's own coordinates, and has its own
rule for which colour counts; both are done here.
"""

import weakref

import mujoco
import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

UNSET = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
"""The colour that MuJoCo gives to a geom without one."""

_RGB, _RGBA = int(mujoco.mjtTextureRole.mjTEXROLE_RGB), int(mujoco.mjtTextureRole.mjTEXROLE_RGBA)
_FLAT = int(mujoco.mjtTexture.mjTEXTURE_2D)
_CUBE = int(mujoco.mjtTexture.mjTEXTURE_CUBE)

PLAIN_SHARE, PLAIN_DISTANCE = 0.95, 0.1
"""A texture is drawn as one colour if this share of it is within this distance (of 1) of that
colour: a robot with hardly visible marks is one flat, cheap geometry that can be painted."""

MAX_SIDE = 512
"""Most pixels per side of a texture that is sent: a robot in a grid is rarely larger on screen."""

# For each face of a cube texture, in MuJoCo's order (+x, -x, +y, -y, +z, -z): which coordinate goes
# right and which goes down in its picture. OpenGL specification 4.6, table 8.19.
_RIGHT = np.array([[0, 0, -1], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [-1, 0, 0]], float)
_DOWN = np.array([[0, -1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1], [0, -1, 0], [0, -1, 0]], float)


def rgba_of(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """float32 [4], 0 to 1: a geom's own colour if it was given one, else its material's.

    Follows `mjv_addGeoms`. Textures are not included.
    """
    return chosen_rgba(model, model.geom_rgba[geom], int(model.geom_matid[geom]))


def chosen_rgba(model: mujoco.MjModel, own: np.ndarray, material: int) -> np.ndarray:
    """float32 [4], 0 to 1: an object's own colour unless it is the default, else its material's.

    Args:
        model: is not changed.
        own: float32 [4].
        material: its id; -1 is none.
    """
    unset = material >= 0 and np.array_equal(own, UNSET)
    return np.clip(model.mat_rgba[material] if unset else own, 0.0, 1.0)


def takes_material_colour(model: mujoco.MjModel, geom: int) -> bool:
    """Whether `rgba_of` returns the material's colour."""
    return bool(model.geom_matid[geom] >= 0 and np.array_equal(model.geom_rgba[geom], UNSET))


def plain_rgba(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """uint8 [4]: a geom's one colour, with the main colour of its texture if it has one."""
    return plain(model, rgba_of(model, geom), int(model.geom_matid[geom]))


def texture_of(model: mujoco.MjModel, geom: int) -> int | None:
    """Id of the texture that a geom must be drawn with; None if one colour is enough."""
    return _texture_to_draw(model, int(model.geom_matid[geom]))


def painted(
    model: mujoco.MjModel, geom: int, mesh: trimesh.Trimesh, uv: np.ndarray | None = None
) -> trimesh.Trimesh:
    """A geom's mesh with its colour or its texture.

    Args:
        model: is not changed.
        geom: its id.
        mesh: in the geom's own frame, m.
        uv: float [V, 2], texture coordinates that came with the mesh.
    """
    texture = texture_of(model, geom)
    if texture is not None and uv is None:
        if model.tex_type[texture] == _CUBE:
            mesh, uv = _wrapped(model, geom, mesh)
        else:
            uv = _projected(model, geom, mesh)
    return painted_with(model, mesh, uv, rgba_of(model, geom), int(model.geom_matid[geom]))


def painted_with(
    model: mujoco.MjModel,
    mesh: trimesh.Trimesh,
    uv: np.ndarray | None,
    rgba: np.ndarray,
    material: int,
) -> trimesh.Trimesh:
    """A mesh with a colour, or with a material's texture times that colour.

    Args:
        model: is not changed.
        mesh: its visual is replaced.
        uv: float [V, 2]; None: draw no texture.
        rgba: float [4], 0 to 1.
        material: its id; -1 is none.
    """
    texture = _texture_to_draw(model, material)
    if texture is None or uv is None:
        colour = np.tile(plain(model, rgba, material), (len(mesh.vertices), 1))
        mesh.visual = ColorVisuals(mesh, vertex_colors=colour)
        return mesh
    image = _picture(model, texture, rgba)
    surface = PBRMaterial(
        baseColorTexture=image,
        metallicFactor=0.0,
        roughnessFactor=roughness_of(model, material),
        alphaMode="BLEND" if image.mode == "RGBA" else "OPAQUE",
    )
    mesh.visual = TextureVisuals(uv=uv, material=surface)
    return mesh


def roughness_of(model: mujoco.MjModel, material: int) -> float:
    """How rough a surface is, from 0, a mirror, to 1, matt, as without a material.

    MuJoCo's highlight falls off with the 128 x shininess-th power of a cosine (Blinn and Phong);
    glTF's (Trowbridge and Reitz) is as wide at the fourth root of 2 / (power + 2).

    Args:
        model: is not changed.
        material: its id; -1 is none.
    """
    if material < 0:
        return 1.0
    if model.mat_roughness[material] >= 0:  # the model says so itself
        return min(float(model.mat_roughness[material]), 1.0)
    sharpest = (2 / (128 * float(model.mat_shininess[material]) + 2)) ** 0.25
    # glTF has no strength of its own: MuJoCo's default, 0.5, is taken as glTF's.
    strength = min(2 * float(model.mat_specular[material]), 1.0)
    return 1 - strength * (1 - sharpest)


def sampled(model: mujoco.MjModel, rgba: np.ndarray, material: int, uv: np.ndarray) -> np.ndarray:
    """uint8 [N, 4]: a colour times a material's texture at N points.

    Args:
        model: is not changed.
        rgba: float [4], 0 to 1.
        material: its id; -1 is none.
        uv: float [N, 2], texture coordinates, before the material repeats its texture.
    """
    texture = _texture_to_draw(model, material)
    if texture is None or model.tex_type[texture] != _FLAT:
        return np.tile(plain(model, rgba, material), (len(uv), 1))
    pixels = pixels_of(model, texture)
    height, width, channels = pixels.shape
    u, v = np.mod(uv * model.mat_texrepeat[material], 1.0).T
    found = np.ones((len(uv), 4))
    found[:, : max(channels, 3)] = pixels[(v * height).astype(int), (u * width).astype(int)] / 255.0
    return np.round(255 * found * rgba).astype(np.uint8)


def plain(model: mujoco.MjModel, rgba: np.ndarray, material: int) -> np.ndarray:
    """uint8 [4]: a colour, times the main colour of the material's texture if it has one."""
    texture = _texture_id(model, material)
    if texture is not None:
        rgba = rgba * _main_colour(model, texture)[0]
    return np.round(255 * rgba).astype(np.uint8)


def _texture_to_draw(model: mujoco.MjModel, material: int) -> int | None:
    texture = _texture_id(model, material)
    if texture is None or _main_colour(model, texture)[1] >= PLAIN_SHARE:
        return None
    return texture


def _texture_id(model: mujoco.MjModel, material: int) -> int | None:
    if material < 0:
        return None
    for role in (_RGB, _RGBA):
        texture = int(model.mat_texid[material, role])
        if texture >= 0 and model.tex_type[texture] in (_FLAT, _CUBE):
            return texture
    return None


def pixels_of(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """uint8 [H, W, C], in MuJoCo's order: the first row is the bottom one."""
    height, width = model.tex_height[texture], model.tex_width[texture]
    channels, start = model.tex_nchannel[texture], model.tex_adr[texture]
    data = model.tex_data[start : start + height * width * channels]
    return data.reshape(height, width, channels)


def linear(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3]: a colour as linear light (IEC 61966-2-1), for colours that a page multiplies
    with light unconverted: glTF's vertex colours and viser's instance colours."""
    srgb = np.asarray(rgb, float) / 255.0
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.round(255 * light).astype(np.uint8)


def _main_colour(model: mujoco.MjModel, texture: int) -> tuple[np.ndarray, float]:
    """(float [4], share): the median colour, and the share of the texture that is close to it.

    Cached per texture until the model is freed, so that it is not computed for each geom.
    """
    known = _main_colours.setdefault(model, {})
    if texture not in known:
        known[texture] = _find_main_colour(pixels_of(model, texture))
    return known[texture]


_main_colours: "weakref.WeakKeyDictionary[mujoco.MjModel, dict[int, tuple[np.ndarray, float]]]" = (
    weakref.WeakKeyDictionary()
)


def _find_main_colour(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    flat = pixels.reshape(-1, pixels.shape[-1])[:: max(pixels.size // 200_000, 1)] / 255.0
    if flat.shape[1] == 1:
        flat = np.repeat(flat, 3, axis=1)
    median = np.median(flat, axis=0)
    share = float((np.abs(flat - median).max(axis=1) < PLAIN_DISTANCE).mean())
    return np.append(median[:3], median[3] if len(median) == 4 else 1.0), share


def _picture(model: mujoco.MjModel, texture: int, rgba: np.ndarray) -> Image.Image:
    """The texture times the colour, multiplied as in MuJoCo: not in linear light, as a page would
    apply a colour factor."""
    pixels = pixels_of(model, texture)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    pixels = pixels * rgba[: pixels.shape[-1]]
    if pixels.shape[-1] == 3 and rgba[3] < 1.0:
        alpha = np.full((*pixels.shape[:2], 1), 255 * rgba[3])
        pixels = np.concatenate([pixels, alpha], axis=-1)
    # In trimesh and glTF the first row is at the top.
    image = Image.fromarray(np.flipud(pixels).astype(np.uint8))
    faces = 6 if model.tex_type[texture] == _CUBE else 1
    shrink = min(1.0, MAX_SIDE / image.width, MAX_SIDE * faces / image.height)
    if shrink < 1.0:
        size = max(round(image.width * shrink), 1), max(round(image.height * shrink), 1)
        image = image.resize(size, Image.Resampling.LANCZOS)
    if image.mode == "RGB":
        image.format = "JPEG"  # for a photograph of wood, a tenth of the bytes of a PNG
    return image


def _own_coordinates(model: mujoco.MjModel, geom: int, mesh: trimesh.Trimesh) -> np.ndarray:
    """float [V, 3]: coordinates by which MuJoCo lays a texture, in units of the geom's size for a
    primitive, in m for a mesh or a height field."""
    if model.geom_dataid[geom] >= 0:
        return np.asarray(mesh.vertices)
    return np.asarray(mesh.vertices) / np.maximum(_extent(model, geom), 1e-9)


def _extent(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """float [3], m: half of a geom's size along its axes, as in `mjvGeom.size`."""
    size = model.geom_size[geom]
    match mujoco.mjtGeom(model.geom_type[geom]):
        case mujoco.mjtGeom.mjGEOM_SPHERE:
            return np.repeat(size[0], 3)
        case mujoco.mjtGeom.mjGEOM_CAPSULE | mujoco.mjtGeom.mjGEOM_CYLINDER:
            return size[[0, 0, 1]]
        case mujoco.mjtGeom.mjGEOM_PLANE:
            return np.where(size > 0, size, 1.0) * [1, 1, 0] + [0, 0, 1]
        case mujoco.mjtGeom.mjGEOM_HFIELD:
            return model.hfield_size[model.geom_dataid[geom], :3]
        case _:
            return size


def _projected(model: mujoco.MjModel, geom: int, mesh: trimesh.Trimesh) -> np.ndarray:
    """float [V, 2]: texture coordinates of a picture projected along z.

    Follows `settexture` in MuJoCo's renderer.
    """
    material, extent = model.geom_matid[geom], _extent(model, geom)[:2]
    scale = model.mat_texrepeat[material].astype(float)
    if model.geom_dataid[geom] >= 0:
        scale = np.where(extent > 0, scale / np.maximum(extent, 1e-9), scale)
    if model.mat_texuniform[material]:
        scale = np.where(extent > 0, scale * extent, scale)
    own = _own_coordinates(model, geom, mesh)
    across = own[:, :2]
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_BOX:
        # Each side shows the whole picture. Sides share no vertices, because edges are sharp.
        side = np.argmax(np.abs(np.asarray(mesh.vertex_normals)), axis=1)
        across = np.stack([own[:, [1, 2]], own[:, [0, 2]], own[:, [0, 1]]])[
            side, np.arange(len(own))
        ]
    return across * scale * [0.5, -0.5] - 0.5


def _wrapped(
    model: mujoco.MjModel, geom: int, mesh: trimesh.Trimesh
) -> tuple[trimesh.Trimesh, np.ndarray]:
    """The mesh without shared vertices, and its texture coordinates, float [V, 2], in the six
    pictures of a cube, one above the other.

    Each triangle belongs to the face that its middle points at.
    """
    own = _own_coordinates(model, geom, mesh)
    if model.mat_texuniform[model.geom_matid[geom]]:
        own = own * np.maximum(_extent(model, geom), 1e-9)
    faces = np.asarray(mesh.faces)
    corners = own[faces]  # [F, 3, 3]
    middle = corners.mean(axis=1)
    axis = np.argmax(np.abs(middle), axis=1)
    along = np.take_along_axis(middle, axis[:, None], axis=1)[:, 0]
    face = 2 * axis + (along < 0)
    depth = np.abs(np.take_along_axis(corners, axis[:, None, None].repeat(3, 1), axis=2))
    depth = np.maximum(depth, 1e-9)[..., 0]
    right = np.einsum("fvx,fx->fv", corners, _RIGHT[face]) / depth
    down = np.einsum("fvx,fx->fv", corners, _DOWN[face]) / depth
    inside = 0.5 / MAX_SIDE  # half a pixel, so that no other face bleeds in
    across = np.clip((right + 1) / 2, inside, 1 - inside)
    row = np.clip((down + 1) / 2, inside, 1 - inside)
    uv = np.stack([across, (face[:, None] + row) / 6], axis=-1).reshape(-1, 2)
    split = trimesh.Trimesh(
        np.asarray(mesh.vertices)[faces.ravel()],
        np.arange(faces.size).reshape(-1, 3),
        vertex_normals=np.asarray(mesh.vertex_normals)[faces.ravel()],
        process=False,
    )
    return split, uv
