"""Finds the distinct geometries of a MuJoCo model, each with all bodies that carry it."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import trimesh
from mjviser import conversions

from brax_viser.model.geoms import CAPSULE, PLANE, TERRAIN, creased, geom_mesh, one_colour
from brax_viser.model.rotations import rotate
from brax_viser.model.skins import pieces_of
from brax_viser.model.surfaces import (
    painted,
    painted_with,
    plain_rgba,
    rgba_of,
    roughness_of,
    texture_of,
)
from brax_viser.model.terrain import slope_of

_BY_SITE = int(mujoco.mjtWrap.mjWRAP_SITE)

VISIBLE_GROUPS = frozenset((0, 1, 2))
"""Groups that MuJoCo's own viewer shows by default; 3 and up hold collision geometry."""

GROUPS = tuple(range(6))
"""All groups that MuJoCo has."""


@dataclass(frozen=True)
class Parts:
    """Which parts of a model are drawn."""

    groups: frozenset[int] = VISIBLE_GROUPS  # of geoms, skins, sites, tendons and flexes
    sites: bool = False


USUAL = Parts()


@dataclass(frozen=True, eq=False)
class Shape:
    """One geometry, and the M places where the robot carries it."""

    mesh: trimesh.Trimesh
    rgba: np.ndarray | None  # uint8 [4] if it has one colour; None if the mesh has its own
    body: np.ndarray  # int [M], body ids; 0 is the world: static, one in every cell
    pos: np.ndarray  # float [M, 3], m, in the body's frame
    quat: np.ndarray  # float [M, 4], wxyz, in the body's frame
    geom: int | None = None  # id of the geom, if it is drawn on its own; then M is 1
    end: int = 0  # part of a capsule that is drawn on its own: 1 and -1 for its ends, 0 between
    casts_shadow: bool = True  # false for planes: they have no back and must not block the light
    is_terrain: bool = False  # a height field, or a slope without an end
    # False for moving shapes: at the size of a robot in a grid, the page's shadows are too coarse
    # for a shape to cast one on itself, and show as stripes.
    receives_shadow: bool = False
    roughness: float = 1.0  # of one with several colours, see `surfaces.roughness_of`
    is_scenery: bool = False  # fixed to the world, and larger than a cell


def shapes_of(
    model: mujoco.MjModel,
    apart: Collection[int] = (),
    wanted: Parts = USUAL,
    scenery: Collection[int] = (),
) -> list[Shape]:
    """Groups a model's visible geoms into as few distinct geometries as possible.

    The geoms of one body move together, so those that can share a mesh (see `_groups`) form one
    geometry, placed by the first of them. Bodies whose geometries are equal up to that placement
    share one, so an ant's four legs are drawn by two batches. The floor is left out: see
    `floor_of`. Each body has its own piece of a skin: see `skins.pieces_of`.

    Args:
        model: is not changed.
        apart: ids of geoms that get a shape of their own, because environments differ in them.
        wanted: the parts to draw.
        scenery: ids of geoms that get a shape of their own, because no cell holds them.
    """
    shown = visible_geoms(model, wanted.groups)
    together = [g for g in shown if g not in apart and g not in scenery]
    places: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    members: dict[tuple[object, ...], list[int]] = {}
    for body in range(model.nbody):
        geoms = [g for g in together if model.geom_bodyid[g] == body]
        for group in _groups(model, geoms):
            key = _fingerprint(model, group)
            members.setdefault(key, group)
            places.setdefault(key, []).append((body, group[0]))
    shapes, slope = [], slope_of(model)
    for key, group in members.items():
        bodies, first = np.array(places[key]).T
        mesh, rgba = _merged_mesh(model, group)
        places_of = model.geom_pos[first], model.geom_quat[first]
        kind = model.geom_type[group[0]]
        shapes.append(
            Shape(
                mesh,
                rgba,
                bodies,
                *places_of,
                casts_shadow=bool(kind != PLANE),
                is_terrain=bool(kind == TERRAIN or group[0] == slope),
                roughness=float(np.mean([roughness_of(model, model.geom_matid[g]) for g in group])),
            )
        )
    for geom in shown:
        if geom in apart:
            shapes.extend(_parts_of(model, geom))
        elif geom in scenery:
            mesh = geom_mesh(model, geom)
            at = model.geom_bodyid[[geom]], model.geom_pos[[geom]], model.geom_quat[[geom]]
            shapes.append(Shape(mesh, one_colour(mesh), *at, is_scenery=True))
    if wanted.sites:
        shapes.extend(_sites(model, wanted.groups))
    for body, mesh in pieces_of(model, wanted.groups):
        # `rgba` is None, so that the piece is drawn as glTF, which keeps its normals.
        unmoved = np.zeros((1, 3)), np.array([[1.0, 0.0, 0.0, 0.0]])
        shapes.append(Shape(mesh, None, np.array([body]), *unmoved))
    return [replace(s, receives_shadow=not model.body_weldid[s.body].any()) for s in shapes]


def capsule_end(pos: np.ndarray, quat: np.ndarray, size: np.ndarray, end: int) -> np.ndarray:
    """float [..., 3], m: centre of a part of a capsule; see `Shape.end`.

    Args:
        pos: float [..., 3], m, of the capsule.
        quat: float [..., 4], wxyz, of the capsule.
        size: float [..., 3], MuJoCo's: radius, and half of the length between the ends.
        end: 1 or -1 for an end, 0 for the part between them.
    """
    along = np.zeros_like(pos)
    along[..., 2] = end * size[..., 1]
    return pos + rotate(quat, along)


def _parts_of(model: mujoco.MjModel, geom: int) -> list[Shape]:
    """Shapes of one geom. A capsule has three: scaled as one, its ends would not stay round."""
    body, size = model.geom_bodyid[[geom]], model.geom_size[geom]
    pos, quat = model.geom_pos[geom], model.geom_quat[geom]
    if model.geom_type[geom] != CAPSULE:
        mesh = geom_mesh(model, geom)
        return [Shape(mesh, one_colour(mesh), body, pos[None], quat[None], geom)]
    shapes = []
    for end in (0, 1, -1):
        mesh = (
            trimesh.creation.icosphere(radius=size[0], subdivisions=2)
            if end
            else trimesh.creation.cylinder(radius=size[0], height=2 * size[1], sections=24)
        )
        mesh = painted(model, geom, creased(mesh))
        place = capsule_end(pos, quat, size, end)
        shapes.append(Shape(mesh, one_colour(mesh), body, place[None], quat[None], geom, end))
    return shapes


def visible_geoms(model: mujoco.MjModel, groups: Collection[int] = VISIBLE_GROUPS) -> list[int]:
    """Ids of the geoms to draw: of some groups, not fully transparent, not the floor. If the usual
    groups are empty, those of all groups: a whole robot in group 3 must be visible."""
    floor = floor_of(model)
    shown = [
        g for g in range(model.ngeom) if rgba_of(model, g)[3] > 0 and (floor is None or g != floor)
    ]
    chosen = [g for g in shown if model.geom_group[g] in groups]
    return chosen or (shown if set(groups) == VISIBLE_GROUPS else [])


def groups_of(model: mujoco.MjModel) -> set[int]:
    """Groups that a model uses."""
    used = (model.geom_group, model.site_group, model.skin_group, model.tendon_group)
    return {int(group) for groups in (*used, model.flex_group) for group in groups}


def _sites(model: mujoco.MjModel, groups: Collection[int]) -> list[Shape]:
    """Makes one shape for each kind of site."""
    places: dict[tuple[object, ...], list[int]] = {}
    for site in range(model.nsite):
        if model.site_group[site] in groups and model.site_rgba[site][3] > 0:
            key = (
                int(model.site_type[site]),
                int(model.site_matid[site]),
                tuple(np.round(model.site_size[site], 6)),
                tuple(model.site_rgba[site]),
            )
            places.setdefault(key, []).append(site)
    shapes = []
    for sites in places.values():
        mesh = creased(conversions.create_site_mesh(model, sites[0]))
        material = int(model.site_matid[sites[0]])
        rgba = model.mat_rgba[material] if material >= 0 else model.site_rgba[sites[0]]
        mesh = painted_with(model, mesh, None, rgba, material)
        at = model.site_pos[sites], model.site_quat[sites]
        shapes.append(Shape(mesh, one_colour(mesh), model.site_bodyid[sites], *at))
    return shapes


def floor_of(model: mujoco.MjModel) -> int | None:
    """Id of the lowest level plane that is fixed to the world: one floor serves all cells."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    level = [
        g
        for g in range(model.ngeom)
        if model.geom_type[g] == PLANE
        and model.body_weldid[model.geom_bodyid[g]] == 0
        and data.geom_xmat[g][8] > 0.999  # its normal, which is its z axis, points up
    ]
    return min(level, key=lambda g: data.geom_xpos[g][2], default=None)


def floor_height(model: mujoco.MjModel, reach: np.ndarray) -> float:
    """z of the shared floor, m: the model's own, or just below the robot's reach."""
    floor = floor_of(model)
    if floor is None:
        return float(reach[0, 2] - 0.1 * (reach[1, 2] - reach[0, 2]))
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return float(data.geom_xpos[floor][2])


def _groups(model: mujoco.MjModel, geoms: list[int]) -> list[list[int]]:
    """Splits geoms into groups that can share one mesh: without a texture and of equal opacity, or
    with the same material."""
    groups: dict[tuple[str, int], list[int]] = {}
    for geom in geoms:
        if model.geom_type[geom] in (PLANE, TERRAIN):
            key = "ground", geom
        elif texture_of(model, geom) is None:
            key = "alpha", int(plain_rgba(model, geom)[3])
        else:
            key = "material", int(model.geom_matid[geom])
        groups.setdefault(key, []).append(geom)
    return list(groups.values())


def _fingerprint(model: mujoco.MjModel, group: list[int]) -> tuple[object, ...]:
    """A key that is equal for groups that differ only in the place of their first geom."""
    first = group[0]
    parts = []
    for geom in group:
        pos, quat = _relative_pose(model, first, geom)
        # q and -q are one rotation.
        quat = quat * (1 if quat[np.argmax(np.abs(quat))] > 0 else -1)
        parts.append(
            (
                int(model.geom_type[geom]),
                int(model.geom_dataid[geom]),
                int(model.geom_matid[geom]),
                tuple(np.round(model.geom_size[geom], 6)),
                tuple(model.geom_rgba[geom]),
                tuple(np.round(pos, 5) + 0.0),  # + 0.0 makes -0.0 equal to 0.0
                tuple(np.round(quat, 5) + 0.0),
            )
        )
    return tuple(parts)


def _relative_pose(model: mujoco.MjModel, base: int, geom: int) -> tuple[np.ndarray, np.ndarray]:
    """Pose of a geom in the frame of another geom of its body: float [3] m, float [4] wxyz."""
    inverse_pos, inverse_quat = np.zeros(3), np.zeros(4)
    mujoco.mju_negPose(inverse_pos, inverse_quat, model.geom_pos[base], model.geom_quat[base])
    pos, quat = np.zeros(3), np.zeros(4)
    mujoco.mju_mulPose(
        pos, quat, inverse_pos, inverse_quat, model.geom_pos[geom], model.geom_quat[geom]
    )
    return pos, quat


def _merged_mesh(
    model: mujoco.MjModel, group: list[int]
) -> tuple[trimesh.Trimesh, np.ndarray | None]:
    meshes = []
    for geom in group:
        mesh = geom_mesh(model, geom)
        pos, quat = _relative_pose(model, group[0], geom)
        transform = trimesh.transformations.quaternion_matrix(quat)
        transform[:3, 3] = pos
        meshes.append(mesh.apply_transform(transform))
    merged = meshes[0] if len(meshes) == 1 else trimesh.util.concatenate(meshes)
    assert isinstance(merged, trimesh.Trimesh)
    return merged, one_colour(merged)


def roaming_body(model: mujoco.MjModel) -> int | None:
    """The first body that can travel without limit; None if there is none.

    It travels by a free joint, or by a slide without a range, as planar walkers do.
    If a body with such a slide carries another one that can travel, the innermost of
    them is returned.
    """
    found = None
    for body in range(1, model.nbody):
        parent = model.body_parentid[body]
        if model.body_weldid[body] == 0 or not (
            parent == found or (found is None and model.body_weldid[parent] == 0)
        ):
            continue
        joints = model.body_jntadr[body] + np.arange(model.body_jntnum[body])
        kinds = model.jnt_type[joints]
        slides = kinds == mujoco.mjtJoint.mjJNT_SLIDE
        unlimited = slides & (model.jnt_limited[joints] == 0)
        if unlimited.any() or (kinds == mujoco.mjtJoint.mjJNT_FREE).any():
            found = body
            if not slides.all():
                break
    return found


def wrapped_body(model: mujoco.MjModel, groups: Collection[int] = VISIBLE_GROUPS) -> int | None:
    """The body of a robot that may be drawn some cells from where it is; None if that would show
    it in a false place beside other things: those that are fixed to the world, other than the
    shared floor and level terrain, and others that move.

    Args:
        model: is not changed.
        groups: those that are drawn.
    """
    weld = model.body_weldid
    fixed = (weld == 0) | (model.body_mocapid[weld] >= 0)
    groups = VISIBLE_GROUPS.union(groups)
    geoms = visible_geoms(model, groups)
    sites = np.isin(model.site_group, tuple(groups)) & (model.site_rgba[:, 3] > 0)
    seen = np.zeros(model.nbody, bool)
    for bodies in (
        model.geom_bodyid[[g for g in geoms if not _is_ground(model, g)]],
        model.site_bodyid[sites],
        model.site_bodyid[model.wrap_objid[model.wrap_type == _BY_SITE]],
        model.skin_bonebodyid,
        model.flex_vertbodyid,
        model.flex_nodebodyid,
    ):
        seen[bodies[bodies >= 0]] = True
    roaming = roaming_body(model)
    if roaming is None or (seen & fixed).any():
        return None
    beside = seen & (model.body_rootid != model.body_rootid[roaming])
    return None if beside.any() else roaming


def _is_ground(model: mujoco.MjModel, geom: int) -> bool:
    """Whether a geom looks the same from everywhere, or is patched into each cell."""
    if geom == slope_of(model):
        return True
    endless = model.geom_type[geom] == PLANE and not model.geom_size[geom, :2].any()
    if not (endless or model.geom_type[geom] == TERRAIN):
        return False
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    return bool(model.body_weldid[model.geom_bodyid[geom]] == 0 and data.geom_xmat[geom][8] > 0.999)
