"""Straight pieces between two points that move apart: tendons, ropes, and the rims of cloth."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
import trimesh
import viser

from brax_viser.scene.flexes import (
    colour_of_flex,
    edges_of,
    points_of,
    rgba_of_flex,
    rim_of,
)
from brax_viser.scene.handles import send
from brax_viser.scene.quaternions import points_on
from brax_viser.scene.surfaces import linear

_PULLEY, _SITE = int(mujoco.mjtWrap.mjWRAP_PULLEY), int(mujoco.mjtWrap.mjWRAP_SITE)
_JOINT = int(mujoco.mjtWrap.mjWRAP_JOINT)


@dataclass(frozen=True, eq=False)
class RodSet:
    """S rods of one robot, each from a point of one body to a point of another."""

    body: np.ndarray  # int [S, 2], body ids
    pos: np.ndarray  # float32 [S, 2, 3], m, in these bodies' frames
    radius: np.ndarray  # float32 [S], m
    rgb: np.ndarray  # uint8 [S, 3]


def rods_of(model: mujoco.MjModel, groups: Collection[int]) -> RodSet | None:
    """All rods of a model; None if it has none.

    A spatial tendon goes straight from site to site: around a geom that it wraps there is a corner
    cut, for the true way around is not known where only poses are. Of a flex, what has no surface:
    a rope, and the rim of a cloth, which is as thick as the cloth. See `flexes.surfaces_of`.

    Args:
        model: is not changed.
        groups: of which tendons and flexes.
    """
    rods = [*_tendons(model, groups), *_flexes(model, groups)]
    if not rods:
        return None
    body, pos, radius, rgb = zip(*rods, strict=True)
    return RodSet(
        np.array(body),
        np.array(pos, np.float32),
        np.array(radius, np.float32),
        np.array(rgb, np.uint8),
    )


_Rod = tuple[tuple[int, int], tuple[np.ndarray, np.ndarray], float, np.ndarray]


def _tendons(model: mujoco.MjModel, groups: Collection[int]) -> Iterator[_Rod]:
    for tendon in range(model.ntendon):
        material = int(model.tendon_matid[tendon])
        rgba = model.tendon_rgba[tendon] if material < 0 else model.mat_rgba[material]
        if model.tendon_group[tendon] not in groups or rgba[3] <= 0:
            continue
        start = int(model.tendon_adr[tendon])
        before: int | None = None
        for wrap in range(start, start + int(model.tendon_num[tendon])):
            kind = int(model.wrap_type[wrap])
            if kind == _JOINT:  # a fixed tendon, which is nowhere
                break
            if kind == _PULLEY:
                before = None
            elif kind == _SITE:
                site = int(model.wrap_objid[wrap])
                if before is not None:
                    body = int(model.site_bodyid[before]), int(model.site_bodyid[site])
                    pos = model.site_pos[before], model.site_pos[site]
                    yield body, pos, float(model.tendon_width[tendon]), _rgb(rgba)
                before = site


def _flexes(model: mujoco.MjModel, groups: Collection[int]) -> Iterator[_Rod]:
    for flex in range(model.nflex):
        hidden = model.flex_group[flex] not in groups or rgba_of_flex(model, flex)[3] <= 0
        if hidden or model.flex_dim[flex] > 2 or model.flex_interp[flex]:
            continue  # one that is interpolated has no body of its own at each vertex
        body, pos = points_of(model, flex)
        rgb = colour_of_flex(model, flex)
        for edge in edges_of(model, flex) if model.flex_dim[flex] == 1 else rim_of(model, flex):
            one, other = (int(vertex) for vertex in edge)
            ends = (int(body[one]), int(body[other])), (pos[one], pos[other])
            yield *ends, max(float(model.flex_radius[flex]), 1e-3), rgb


def _rgb(rgba: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(rgba[:3], 0, 1)).astype(np.uint8)


class Rods:
    """The rods of K robots: one batch of cylinders. Used on viser's own thread alone."""

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        rods: RodSet,
        origins: np.ndarray,
        scale: float,
    ):
        """Adds them; `draw` puts them into place.

        Args:
            server: whose scene they go into.
            path: the scene node.
            rods: of one robot.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self._rods, self._origins = rods, origins
        count = len(origins) * len(rods.radius)
        cylinder = trimesh.creation.cylinder(radius=1.0, height=1.0, sections=8)
        self._handle = server.scene.add_batched_meshes_simple(
            path,
            cylinder.vertices,
            cylinder.faces,
            batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
            batched_positions=np.zeros((count, 3), np.float32),
            batched_scales=np.zeros((count, 3), np.float32),
            batched_colors=np.tile(linear(rods.rgb), (len(origins), 1)),
            lod="off",
            scale=scale,
        )

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray, hidden: np.ndarray) -> int:
        """As `Robots.draw`. Returns how many bytes each page is sent."""
        one, other = (
            points_on(self._rods.body[:, end], self._rods.pos[:, end], link_pos, link_rot)
            for end in (0, 1)
        )
        along = other - one
        length = np.linalg.norm(along, axis=-1, keepdims=True)
        up = along / np.maximum(length, 1e-9)
        # The shortest turn that takes z there; upside down any axis across will do.
        turn = np.concatenate(
            [1 + up[..., 2:], -up[..., 1:2], up[..., :1], np.zeros_like(length)], axis=-1
        )
        norm = np.linalg.norm(turn, axis=-1, keepdims=True)
        turn = np.where(norm > 1e-4, turn / np.maximum(norm, 1e-9), [0.0, 1.0, 0.0, 0.0])
        radius = np.broadcast_to(self._rods.radius[:, None], length.shape)
        radius = np.where(hidden[:, None, None], 0.0, radius)
        middle = (one + other) / 2 + self._origins[:, None]
        scale = np.concatenate([radius, radius, length], axis=-1)
        return send(
            self._handle,
            batched_positions=middle.reshape(-1, 3).astype(np.float32),
            batched_wxyzs=turn.reshape(-1, 4).astype(np.float32),
            batched_scales=scale.reshape(-1, 3).astype(np.float32),
        )

    def remove(self) -> None:
        self._handle.remove()
