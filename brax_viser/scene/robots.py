"""Draws K copies of one robot with one batched handle per distinct geometry."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import trimesh
import viser
from trimesh.exchange.gltf import export_glb
from trimesh.visual import ColorVisuals, TextureVisuals

from brax_viser.model.rotations import multiply, planes, rotate
from brax_viser.model.shapes import Shape
from brax_viser.model.surfaces import linear
from brax_viser.model.tints import has_one_colour, tinted
from brax_viser.model.variants import Places
from brax_viser.scene.handles import PARKED, BatchedHandle, send

_IDENTITY = np.array([1.0, 0.0, 0.0, 0.0], np.float32)

FOCAL_LENGTH = 1600.0
"""Pixels, for a page 1,000 pixels high with the first camera's angle of view."""

LEAST_TRIANGLES = 100
"""No shape is simplified to fewer: the page's simplifier would have to tear it."""

FADED = 0.12
"""Opacity of robots that are faded."""

TINTED = 0.5
"""How much of its cell's tint a robot has."""

CLEAR = 0.35
"""Opacity of robots that show what is inside of them."""


@dataclass
class _Part:
    """One distinct geometry and its handles."""

    shape: Shape
    places: slice  # this shape's among all places of the robot
    handle: BatchedHandle
    # Buffers that each `draw` fills; the handle copies them.
    pos: np.ndarray  # float32 [K, M, 3], m
    rot: np.ndarray  # float32 [K, M, 4], wxyz
    # A textured mesh has no colour or opacity per instance: robots that are painted or faded are
    # drawn by a plain copy of it instead. None until there are any.
    plain: viser.BatchedMeshHandle | None = None
    rgba: np.ndarray | None = None  # uint8 [K, 3], if environments differ in it


@dataclass(frozen=True, eq=False)
class Paint:
    """Colours and opacities of robots in place of their model's."""

    colours: np.ndarray | None = None  # uint8 [K, 3]
    opacities: np.ndarray | None = None  # float [K], as a fraction of the model's own
    tints: np.ndarray | None = None  # float [K, 3], 0 to 255: for robots of a single plain colour


class Robots:
    """The viser handles of K environments. Used on the page's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        shapes: list[Shape],
        origins: np.ndarray,
        scale: float,
    ):
        """Adds the handles, with every robot folded up at its cell's origin until `draw`.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            shapes: the parts of one robot.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self.origins = origins
        self._server, self._path, self._scale = server, path, scale
        self._paint = Paint()
        self._plain = has_one_colour(shapes)
        self._parts: list[_Part] = []
        # All places of all shapes are concatenated, so that one computation serves the whole
        # robot. There may be no shape at all, if a person has chosen empty groups.
        none = np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 4))
        self._body = np.concatenate([none[0], *(shape.body for shape in shapes)])
        self._offset = np.concatenate([none[1], *(shape.pos for shape in shapes)])
        self._turn = np.concatenate([none[2], *(shape.quat for shape in shapes)])
        self._offset, self._turn = (a.astype(np.float32) for a in (self._offset, self._turn))
        self._static = np.flatnonzero(self._body == 0)
        self._link = np.maximum(self._body - 1, 0)
        self._place(*self._alike())
        # Made once and filled at each `draw`: see `rotations.planes`.
        self._at_pos, self._at_rot = (
            np.empty((len(origins), len(self._body), n), np.float32) for n in (3, 4)
        )
        self._base, self._pos = planes(self._at_rot), planes(self._at_pos)
        self._rot = planes(self._at_rot)
        start = 0
        for index, shape in enumerate(shapes):
            pos, quat = _static_poses(shape, origins)
            handle = _add(server, f"{path}/{index}", shape, pos, quat, scale)
            stop = start + len(shape.body)
            places = (len(origins), len(shape.body))
            self._parts.append(
                _Part(
                    shape,
                    slice(start, stop),
                    handle,
                    pos=np.empty((*places, 3), np.float32),
                    rot=np.empty((*places, 4), np.float32),
                )
            )
            start = stop

    @property
    def handles(self) -> list[BatchedHandle]:
        """One per distinct geometry; instance [k * M + m] is env k's m-th occurrence of it."""
        return [part.handle for part in self._parts]

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray, hidden: np.ndarray) -> int:
        """Moves all K robots. Within `server.atomic()`, so that none is torn between frames.

        Returns how many bytes each page is sent: 28 per instance of each handle that has a moving
        instance.

        Args:
            link_pos: float32 [K, L, 3], m, in each env's own world frame.
            link_rot: float32 [K, L, 4], wxyz.
            hidden: bool [K], robots that must not be seen.
        """
        # Link i is body i + 1. Body 0 is the world, which does not move.
        at_pos, at_rot = self._at_pos, self._at_rot
        # mode="clip": if numpy must check for indices out of range, it fills `out` through a copy.
        np.take(link_pos, self._link, axis=1, out=at_pos, mode="clip")
        np.take(link_rot, self._link, axis=1, out=at_rot, mode="clip")
        if len(self._static):
            at_pos[:, self._static], at_rot[:, self._static] = 0.0, _IDENTITY
        base = planes(at_rot, self._base)
        pos = rotate(base, self._own_offset, self._pos)
        for axis in range(3):
            pos[..., axis] += at_pos[..., axis]
            pos[..., axis] += self.origins[:, None, axis]
        rot = multiply(base, self._own_turn, self._rot)
        if hidden.any():
            pos[hidden] = PARKED
        sent = 0
        for part in self._parts:
            own_pos, own_rot = pos[:, part.places], rot[:, part.places]
            for axis in range(3):
                part.pos[..., axis] = own_pos[..., axis]
            for axis in range(4):
                part.rot[..., axis] = own_rot[..., axis]
            sent += self._move(part, part.pos, part.rot.reshape(-1, 4))
        return sent

    def vary(self, places: list[Places | None]) -> None:
        """Gives shapes a place, a size and a colour of their own in each environment, from now on.

        Within `server.atomic()`, and before the next `draw` and `paint`.

        Args:
            places: one per shape; None for a shape that is equal in all environments.
        """
        offset, turn = self._alike()
        for part, own in zip(self._parts, places, strict=True):
            if own is None:
                continue
            offset[:, part.places.start], turn[:, part.places.start] = own.pos, own.quat
            part.handle.batched_scales = own.scale.astype(np.float32)
            if part.plain is not None:
                part.plain.batched_scales = part.handle.batched_scales
            part.rgba = own.rgba[:, :3]
        self._place(offset, turn)
        self.paint(self._paint)

    def paint(self, paint: Paint) -> None:
        """Colours and fades robots from now on; `Paint()` gives them their model's look again."""
        if not self._plain:
            paint = replace(paint, tints=None)
        special = paint.colours is not None or paint.opacities is not None
        self._paint = paint
        for part in self._parts:
            if part.shape.rgba is None and part.plain is None and special:
                part.plain = self._plain_copy(part)
            handle = part.handle if part.shape.rgba is not None else part.plain
            if handle is None:
                continue
            assert isinstance(handle, viser.BatchedMeshHandle)
            rgba = _base_colour(part.shape)
            count = len(part.shape.body)
            handle.batched_colors = linear(_colours(part, paint, rgba[:3]))
            handle.batched_opacities = (
                None
                if paint.opacities is None
                # These replace the handle's single opacity.
                else np.repeat(paint.opacities * (rgba[3] / 255), count).astype(np.float32)
            )

    def spheres(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spheres around the shapes that can be pointed at: centres, float [S, 3] in m, radii,
        float [S] in m, and the index of the robot that each belongs to, int [S]."""
        centres: list[np.ndarray] = [np.zeros((0, 3))]
        radii: list[np.ndarray] = [np.zeros(0)]
        owners: list[np.ndarray] = [np.zeros(0, int)]
        for part in self._parts:
            moving = part.shape.body > 0
            if not moving.any():
                continue
            pos = np.reshape(part.handle.batched_positions, (len(self.origins), -1, 3))
            if part.plain is not None:
                other = np.reshape(part.plain.batched_positions, pos.shape)
                pos = np.where(pos[..., 2:] == PARKED[2], other, pos)
            centres.append(pos[:, moving].reshape(-1, 3))
            radius = np.linalg.norm(part.shape.mesh.vertices, axis=1).max()
            radii.append(np.full(len(centres[-1]), radius))
            owners.append(np.repeat(np.arange(len(self.origins)), moving.sum()))
        return np.concatenate(centres), np.concatenate(radii), np.concatenate(owners)

    def remove(self) -> None:
        for part in self._parts:
            part.handle.remove()
            if part.plain is not None:
                part.plain.remove()
        self._parts.clear()

    def _alike(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [K, M, 3] in m and [K, M, 4] wxyz: places in robots that equal the model."""
        count = len(self.origins)
        offset, turn = (np.repeat(a[None], count, axis=0) for a in (self._offset, self._turn))
        return offset, turn

    def _place(self, offset: np.ndarray, turn: np.ndarray) -> None:
        """Sets the places of shapes on their bodies: float32 [K, M, 3] in m and [K, M, 4] wxyz."""
        self._own_offset, self._own_turn = planes(offset), planes(turn)

    def _move(self, part: _Part, pos: np.ndarray, rot: np.ndarray) -> int:
        """Sends the poses of a part, float32 [K, M, 3] and [K * M, 4]. Returns the bytes sent."""
        sent = 0
        if part.plain is not None:
            special = np.zeros(len(pos), bool)
            if self._paint.colours is not None:
                special[:] = True
            elif self._paint.opacities is not None:
                special = self._paint.opacities < 1.0
            stand_in = np.where(special[:, None, None], pos, PARKED)
            sent += send(part.plain, batched_positions=stand_in.reshape(-1, 3), batched_wxyzs=rot)
            pos = np.where(special[:, None, None], PARKED, pos)
        pos = pos.reshape(-1, 3)
        return sent + send(part.handle, batched_positions=pos, batched_wxyzs=rot)

    def _plain_copy(self, part: _Part) -> viser.BatchedMeshHandle:
        handle = part.handle
        copy = _add_plain(
            self._server,
            f"{self._path}/{self._parts.index(part)}_plain",
            part.shape,
            np.broadcast_to(PARKED, handle.batched_positions.shape),
            handle.batched_wxyzs,
            self._scale,
        )
        copy.batched_scales = handle.batched_scales
        return copy


def _colours(part: _Part, paint: Paint, own: np.ndarray) -> np.ndarray:
    """uint8 [K * M, 3], or [3] if all instances have one colour.

    Args:
        part: of the robot.
        paint: replaces its look.
        own: uint8 [3], its colour in the model.
    """
    count = len(part.shape.body)
    if paint.colours is not None:
        return np.repeat(paint.colours, count, axis=0)
    if part.rgba is not None:
        return part.rgba
    if paint.tints is not None and (part.shape.body > 0).all():
        return np.repeat(tinted(own, paint.tints, TINTED), count, axis=0)
    return own


def _static_poses(shape: Shape, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K * M, 3] and [K * M, 4]: the shape's poses if its body is at the env's origin."""
    count = len(origins) * len(shape.body)
    pos = np.broadcast_to(origins[:, None] + shape.pos, (len(origins), len(shape.body), 3))
    rot = np.broadcast_to(shape.quat, (len(origins), len(shape.body), 4))
    return pos.reshape(count, 3).astype(np.float32), rot.reshape(count, 4).astype(np.float32)


def _add(
    server: viser.ViserServer,
    name: str,
    shape: Shape,
    pos: np.ndarray,
    quat: np.ndarray,
    scale: float,
) -> BatchedHandle:
    if shape.rgba is not None:
        return _add_plain(server, name, shape, pos, quat, scale)
    # lod="off": viser's automatic levels reduce small links to nothing within a few metres.
    return server.scene.add_batched_glb(
        name,
        _glb(shape.mesh, shape.roughness),
        batched_wxyzs=quat,
        batched_positions=pos,
        lod="off",
        cast_shadow=shape.casts_shadow,
        receive_shadow=shape.receives_shadow,
        scale=scale,
    )


def _add_plain(
    server: viser.ViserServer,
    name: str,
    shape: Shape,
    pos: np.ndarray,
    quat: np.ndarray,
    scale: float,
) -> viser.BatchedMeshHandle:
    rgba = _base_colour(shape)
    return server.scene.add_batched_meshes_simple(
        name,
        shape.mesh.vertices,
        shape.mesh.faces,
        batched_wxyzs=quat,
        batched_positions=pos,
        batched_colors=linear(rgba[:3]),
        opacity=None if rgba[3] == 255 else float(rgba[3]) / 255,
        lod=levels_of(shape.mesh) or "off",
        cast_shadow=shape.casts_shadow,
        receive_shadow=shape.receives_shadow,
        scale=scale,
    )


def _glb(mesh: trimesh.Trimesh, roughness: float) -> bytes:
    """Exports a mesh as glTF, with the intended colours and gloss.

    By default a glTF surface is metal, which is black where there is nothing to mirror, and vertex
    colours are linear light (glTF 2.0, 3.7.2.1 and 3.9.2).
    """
    if isinstance(mesh.visual, ColorVisuals):
        colours = np.asarray(mesh.visual.vertex_colors)
        alpha = float(colours[:, 3].min())
        mesh = mesh.copy(include_cache=True)  # the cache holds the normals
        light = linear(colours[:, :3])
        mesh.visual = ColorVisuals(mesh, vertex_colors=np.column_stack([light, colours[:, 3]]))

        def finished(tree: dict[str, Any]) -> None:
            surface = {"metallicFactor": 0.0, "roughnessFactor": roughness}
            mode = "OPAQUE" if alpha == 255 else "BLEND"
            tree["materials"] = [{"pbrMetallicRoughness": surface, "alphaMode": mode}]
            for part in tree["meshes"]:
                for primitive in part["primitives"]:
                    primitive["material"] = 0

        return export_glb(trimesh.Scene([mesh]), tree_postprocessor=finished)
    return export_glb(trimesh.Scene([mesh]))


def levels_of(mesh: trimesh.Trimesh) -> tuple[tuple[float, float], ...]:
    """(distance in m, share): from each distance on, a page draws this share of the triangles.

    Nearer than the first distance it draws all of them. At each distance the circle around the mesh
    has as many pixels as triangles are drawn from there on, so that the loss is invisible. 1,024
    Unitree Go1s have 426 million triangles, and the page draws 7 million. viser's own levels
    (`lod="auto"`) begin at a distance of a link length or two, where the mesh fills the window.
    """
    count = len(mesh.faces)
    radius = float(np.linalg.norm(mesh.vertices, axis=1).max())
    levels = []
    for level in range(1, 6):
        share = 0.25**level
        if share * count < LEAST_TRIANGLES:
            break
        levels.append((radius * FOCAL_LENGTH * float(np.sqrt(np.pi / (share * count))), share))
    return tuple(levels)


def _base_colour(shape: Shape) -> np.ndarray:
    """uint8 [4]: a shape's colour; the mean colour if it has several."""
    if shape.rgba is not None:
        return np.asarray(shape.rgba, np.uint8)
    visual = shape.mesh.visual
    if not isinstance(visual, ColorVisuals):
        assert isinstance(visual, TextureVisuals)
        visual = visual.to_color()
    return np.asarray(visual.main_color, np.uint8)
