"""Reads straight rods between two points that move apart: tendons, ropes, and rims of cloth."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.model.flexes import colour_of_flex, edges_of, points_of, rgba_of_flex, rim_of
from brax_viser.model.rotations import multiply, points_on, rotate
from brax_viser.model.surfaces import UNSET

_PULLEY, _SITE = int(mujoco.mjtWrap.mjWRAP_PULLEY), int(mujoco.mjtWrap.mjWRAP_SITE)
_JOINT = int(mujoco.mjtWrap.mjWRAP_JOINT)
_BY_GEOM = (int(mujoco.mjtWrap.mjWRAP_SPHERE), int(mujoco.mjtWrap.mjWRAP_CYLINDER))
_UNTURNED = np.array([1.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True, eq=False)
class RodSet:
    """S rods of one robot, each from a point of one body to a point of another."""

    body: np.ndarray  # int [S, 2], body ids
    pos: np.ndarray  # float32 [S, 2, 3], m, in these bodies' frames
    radius: np.ndarray  # float32 [S], m
    rgb: np.ndarray  # uint8 [S, 3]
    tendon: np.ndarray  # int [S], id of its tendon; -1: none
    share: np.ndarray  # float [S], part of its length that the tendon counts: less after pulleys
    limits: "Limits | None" = None  # of the tendons


def rods_of(model: mujoco.MjModel, groups: Collection[int]) -> RodSet | None:
    """All rods of a model; None if it has none.

    A spatial tendon is drawn straight from site to site, cutting the corner at a geom that it
    wraps: its true path is not known from poses alone. A flex has rods where it has no surface: a
    rope, and the rim of a cloth, which is as thick as the cloth. See `flexes.surfaces_of`.

    Args:
        model: is not changed.
        groups: of the tendons and flexes to draw.
    """
    rods = [*_tendons(model, groups), *_flexes(model, groups)]
    if not rods:
        return None
    body, pos, radius, rgb, tendon, share = zip(*rods, strict=True)
    return RodSet(
        np.array(body),
        np.array(pos, np.float32),
        np.array(radius, np.float32),
        np.array(rgb, np.uint8),
        np.array(tendon),
        np.array(share, float),
        Limits.of(model),
    )


_Rod = tuple[tuple[int, int], tuple[np.ndarray, np.ndarray], float, np.ndarray, int, float]


def _tendons(model: mujoco.MjModel, groups: Collection[int]) -> Iterator[_Rod]:
    for tendon in range(model.ntendon):
        material = int(model.tendon_matid[tendon])
        rgba = model.tendon_rgba[tendon] if material < 0 else model.mat_rgba[material]
        if model.tendon_group[tendon] not in groups or rgba[3] <= 0:
            continue
        start = int(model.tendon_adr[tendon])
        before: int | None = None
        share = 1.0
        for wrap in range(start, start + int(model.tendon_num[tendon])):
            kind = int(model.wrap_type[wrap])
            if kind == _JOINT:  # a fixed tendon has no path
                break
            if kind == _PULLEY:
                before, share = None, 1.0 / float(model.wrap_prm[wrap])
            elif kind == _SITE:
                site = int(model.wrap_objid[wrap])
                if before is not None:
                    body = int(model.site_bodyid[before]), int(model.site_bodyid[site])
                    pos = model.site_pos[before], model.site_pos[site]
                    width = float(model.tendon_width[tendon])
                    yield body, pos, width, _rgb(rgba), tendon, share
                before = site


def _flexes(model: mujoco.MjModel, groups: Collection[int]) -> Iterator[_Rod]:
    for flex in range(model.nflex):
        hidden = model.flex_group[flex] not in groups or rgba_of_flex(model, flex)[3] <= 0
        if hidden or model.flex_dim[flex] > 2 or model.flex_interp[flex]:
            continue  # the vertices of an interpolated flex have no bodies of their own
        body, pos = points_of(model, flex)
        rgb = colour_of_flex(model, flex)
        for edge in edges_of(model, flex) if model.flex_dim[flex] == 1 else rim_of(model, flex):
            one, other = (int(vertex) for vertex in edge)
            ends = (int(body[one]), int(body[other])), (pos[one], pos[other])
            yield *ends, max(float(model.flex_radius[flex]), 1e-3), rgb, -1, 0.0


def _rgb(rgba: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(rgba[..., :3], 0, 1)).astype(np.uint8)


class Limits:
    """Finds the tendons that are longer or shorter than they may be. MuJoCo draws these in the
    colour of constraints, unless their own colour is not the default (`engine_vis_visualize.c`).
    """

    def __init__(self, model: mujoco.MjModel, tendons: np.ndarray):
        """`tendons`, int [T], are the ids of the tendons that change colour at their limits."""
        self.tendons = tendons
        self._model = model
        self._data: mujoco.MjData | None = None  # made when lengths are first computed
        self._range = model.tendon_range[tendons]
        # The share of the constraints' colour is the impedance of a broken constraint.
        most = model.tendon_solimp_lim[tendons, 1:2]
        own, broken = model.tendon_rgba[tendons, :3], np.asarray(model.vis.rgba.constraint[:3])
        self.rgb = _rgb(own + most * (broken - own))  # uint8 [T, 3], beyond the limits
        round_geoms = [
            not np.isin(model.wrap_type[start : start + count], (_SITE, _PULLEY)).all()
            for start, count in zip(
                model.tendon_adr[tendons], model.tendon_num[tendons], strict=True
            )
        ]
        self._round_geoms = np.flatnonzero(round_geoms)

    @classmethod
    def of(cls, model: mujoco.MjModel) -> "Limits | None":
        """The limits in a model; None if no tendon changes its colour."""
        off = mujoco.mjtDisableBit.mjDSBL_LIMIT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
        if model.opt.disableflags & int(off):
            return None
        plain = (model.tendon_matid < 0) & (model.tendon_rgba == UNSET).all(axis=1)
        spatial = model.wrap_type[model.tendon_adr] != _JOINT if model.ntendon else plain
        tendons = np.flatnonzero(model.tendon_limited.astype(bool) & plain & spatial)
        return cls(model, tendons) if len(tendons) else None

    def beyond(
        self, rods: RodSet, length: np.ndarray, link_pos: np.ndarray, link_rot: np.ndarray
    ) -> np.ndarray:
        """bool [K, T]: whether each tendon is beyond its limits.

        Args:
            rods: of one robot.
            length: float [K, S], m, of each rod.
            link_pos: float32 [K, L, 3], m.
            link_rot: float32 [K, L, 4], wxyz.
        """
        total = (length * rods.share) @ (rods.tendon[:, None] == self.tendons)
        if len(self._round_geoms):
            total[:, self._round_geoms] = self._lengths(link_pos, link_rot)
        # Slack for poses in single precision.
        return self._out_of_range(total, slack=1e-5)

    def broken(self, length: np.ndarray) -> dict[int, np.ndarray]:
        """Colours, uint8 [3], of the tendons beyond their limits, by id. `length` is that of all
        tendons, float [ntendon], m."""
        out = np.flatnonzero(self._out_of_range(length[self.tendons], slack=0.0))
        return {int(self.tendons[index]): self.rgb[index] for index in out}

    def _out_of_range(self, length: np.ndarray, *, slack: float) -> np.ndarray:
        """`slack` is a fraction of the range's upper end."""
        low, high = self._range.T
        room = slack * np.maximum(np.abs(high), 1e-3)
        return (length < low - room) | (length > high + room)

    def _lengths(self, link_pos: np.ndarray, link_rot: np.ndarray) -> np.ndarray:
        """float [K, W], m, lengths of the tendons that wrap geoms, where rods cut the corners."""
        model = self._model
        data = self._data = self._data or mujoco.MjData(model)
        geoms = model.wrap_objid[np.isin(model.wrap_type, _BY_GEOM)]
        owner = model.geom_bodyid[geoms]
        turned = np.where((owner == 0)[:, None], _UNTURNED, link_rot[:, np.maximum(owner - 1, 0)])
        turns = multiply(turned, model.geom_quat[geoms])
        places = points_on(owner, model.geom_pos[geoms], link_pos, link_rot)
        sites = points_on(model.site_bodyid, model.site_pos, link_pos, link_rot)
        found = np.zeros((len(link_pos), len(self._round_geoms)))
        for row in np.flatnonzero(np.isfinite(link_pos).all(axis=(1, 2))):
            data.site_xpos[:] = sites[row]
            data.geom_xpos[geoms] = places[row]
            axes = rotate(turns[row][:, None], np.eye(3))  # rows are the geom's axes
            data.geom_xmat[geoms] = axes.swapaxes(1, 2).reshape(-1, 9)
            mujoco.mj_tendon(model, data)
            found[row] = data.ten_length[self.tendons[self._round_geoms]]
        return found
