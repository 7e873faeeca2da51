"""Decides which part of a world counts when cells are spaced and cameras placed.

That is the robot, and what it can get to. A sky, a hall, or objects that are parked a hundred
metres away are drawn, but would make the robot a dot if cells had to hold them.
"""

from dataclasses import dataclass, field, replace

import mujoco
import numpy as np

from brax_viser.model.pieces import boxes_of, pieces_of
from brax_viser.model.shapes import visible_geoms

SAMPLES = 64
"""Random poses of the joints that the robot's reach is measured in."""

BESIDE = 0.5
"""How far from what a robot that is bolted down reaches its surroundings count, in sizes of it."""

UNDER = 2.0
"""How far below it is what it stands on, in sizes of it."""

AROUND, AROUND_METRES = 4.0, 2.0
"""The same of a robot that travels, in sizes of it, but at least that many metres."""

APART = 10.0
"""How far off another robot may start, in sizes of the first."""

TOUCHING = 0.05
"""How far apart, in sizes of the robot, are parts of one table or one fence."""

LARGE, SCENERY = 10.0, 3.0
"""How many times as large as the robot what lies under or around it may be, if the robot can touch
it, or anything else that it can't touch."""

_PLANE, _FIELD = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_HFIELD)
_MESH = int(mujoco.mjtGeom.mjGEOM_MESH)
_SLIDE, _HINGE = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


@dataclass(frozen=True, eq=False)
class Scope:
    """What counts of one world, in its own frame."""

    reach: np.ndarray  # float [2, 3], m: box around the robot and what it can get to
    # Ids of geoms that are fixed to the world, and not all in that box or a room around the robot.
    scenery: frozenset[int]
    farthest: float  # m from the middle of the box to the end of whatever else there is
    # float [O, 2, 3], m: boxes of all fixed geoms that a robot which travels may run into.
    obstacles: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))
    boxes: dict[int, np.ndarray] = field(default_factory=dict)  # of scenery, float [2, 3], m
    room: frozenset[int] = frozenset()  # of scenery, what is a roof or up to it, or a shell

    def holding(self, obstacles: np.ndarray) -> "Scope":
        """With a reach that has some obstacles in it, bool [O]."""
        reach = np.concatenate([self.reach[None], self.obstacles[obstacles]])
        reach = np.stack([reach[:, 0].min(axis=0), reach[:, 1].max(axis=0)])
        out = {geom for geom in self.scenery if not within(reach, *self.boxes[geom])}
        return replace(self, reach=reach, scenery=self.room | out)


@dataclass(frozen=True, eq=False)
class _Things:
    """What a world is made of: N robots, objects, and single geoms that are fixed to it."""

    low: np.ndarray  # float [N, 3], m
    high: np.ndarray  # float [N, 3], m
    moves: np.ndarray  # bool [N]
    driven: np.ndarray  # bool [N], whether it has actuators
    seen: np.ndarray  # bool [N]
    solid: np.ndarray  # bool [N], whether what moves can touch it
    geom: np.ndarray  # int [N], of what is fixed; else -1

    @property
    def size(self) -> np.ndarray:
        """float [N], m: the largest sides."""
        return (self.high - self.low).max(axis=1)


def scope_of(model: mujoco.MjModel, init_qpos: np.ndarray) -> Scope:
    """Finds the robot, which is what has most actuators, and what it can get to.

    The box is the union over random positions of the joints that have limits, the others staying
    where `reset` puts them; the robot's root stays in its place. Planes are left out, for they have
    no end, and terrain, which is much larger than who walks on it; so are slides longer than the
    robot, which stand for free movement.

    Args:
        model: is not changed.
        init_qpos: float [nq], where `reset` puts it.
    """
    visible = _counted(model)
    if not visible.any() and not model.nflex:
        fields = model.geom_type == _FIELD
        nothing = np.array([[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
        terrain = bounds_of(model, _at(model, init_qpos), fields) if fields.any() else nothing
        return Scope(terrain, frozenset(), 0.0)
    roots = moving_roots(model)
    driven = driven_roots(model)
    root = main_root(model, roots, driven)
    local, travels = _local_joints(model, init_qpos, visible, root)
    things, start = _things(model, init_qpos, visible, roots, driven, local)
    counts = things.seen if start is None else _counting(things, start, travels=travels)
    reach = _reach(things, counts)
    inside = within(reach, things.low, things.high)
    fixed = things.geom >= 0
    roofed = fixed & _roofed(things, start) if start is not None else np.zeros_like(fixed)
    scenery = roofed | (fixed & ~inside)
    away = np.maximum(np.abs(things.low - reach.mean(0)), np.abs(things.high - reach.mean(0)))
    farthest = float(np.linalg.norm(away[things.seen], axis=1).max(initial=0.0))
    ids = np.unique(things.geom[scenery]).tolist()
    boxes = {geom: np.stack(_box(things, things.geom == geom)) for geom in ids}
    met = scenery & _obstacles(things) & travels
    obstacles = np.stack([things.low[met], things.high[met]], axis=1)
    room = frozenset(things.geom[roofed].tolist())
    return Scope(reach, frozenset(ids), farthest, obstacles, boxes, room)


def within(reach: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """bool [...]: whether boxes, from float [..., 3] to float [..., 3], lie in a reach, all but."""
    slack = 0.05 * np.ptp(reach, axis=0).max()
    return ((low >= reach[0] - slack) & (high <= reach[1] + slack)).all(axis=-1)


def moving_roots(model: mujoco.MjModel) -> np.ndarray:
    """int [R]: bodies that hang on the world, with all that moves on each of them."""
    return np.unique(model.body_rootid[_moving_bodies(model)])


def driven_roots(model: mujoco.MjModel) -> np.ndarray:
    """int [D]: of each degree of freedom that an actuator acts upon, the body on the world."""
    if not model.nu:
        return np.zeros(0, int)
    data = _at(model, model.qpos0)
    mujoco.mj_comPos(model, data)
    if model.nflex:
        mujoco.mj_flex(model, data)
    mujoco.mj_tendon(model, data)
    mujoco.mj_transmission(model, data)
    dofs = np.concatenate(
        [
            data.moment_colind[start : start + count]
            for start, count in zip(data.moment_rowadr, data.moment_rownnz, strict=True)
        ]
    )
    return model.body_rootid[model.dof_bodyid[dofs]]


def main_root(
    model: mujoco.MjModel, roots: np.ndarray | None = None, driven: np.ndarray | None = None
) -> int | None:
    """The body on the world that carries the robot: what has most actuators or else most degrees of
    freedom; None where nothing moves."""
    roots = moving_roots(model) if roots is None else roots
    driven = driven_roots(model) if driven is None else driven
    if not len(roots):
        return None
    dofs = model.body_rootid[model.dof_bodyid]
    return int(
        max(roots, key=lambda root: (int((driven == root).sum()), int((dofs == root).sum())))
    )


def bounds_of(model: mujoco.MjModel, data: mujoco.MjData, geoms: np.ndarray) -> np.ndarray:
    """float [2, 3], m: axis-aligned box around some geoms and all flexes at `data.qpos`.

    Args:
        model: is not changed.
        data: is, for its `qpos` counts and nothing else.
        geoms: bool [ngeom] or int [G]. There must be any, or a flex.
    """
    mujoco.mj_kinematics(model, data)
    low, high = (side[geoms] for side in _boxes(model, data))
    if model.nflex:
        mujoco.mj_flex(model, data)
        low, high = (np.concatenate([box, data.flexvert_xpos]) for box in (low, high))
    return np.stack([low.min(axis=0), high.max(axis=0)])


def _moving_bodies(model: mujoco.MjModel) -> np.ndarray:
    """bool [nbody]: those that joints move, and no mocap."""
    weld = model.body_weldid
    return (weld > 0) & (model.body_mocapid[weld] < 0)


def _counted(model: mujoco.MjModel) -> np.ndarray:
    """bool [ngeom]: geoms that are drawn and have an end, terrain left out."""
    visible = np.zeros(model.ngeom, bool)
    visible[visible_geoms(model)] = True
    if model.nskin:  # it lies around the geoms of its bones, which need not be drawn
        visible |= np.isin(model.geom_bodyid, model.skin_bonebodyid)
    if not visible.any():
        visible[:] = True
    return visible & (model.geom_type != _FIELD) & ~_endless(model)


def _endless(model: mujoco.MjModel) -> np.ndarray:
    """bool [ngeom]: planes, but for walls that are drawn with an end."""
    level = np.zeros(model.ngeom, bool)
    data = _at(model, model.qpos0)
    level[:] = np.abs(data.geom_xmat[:, 8]) > 0.999
    return (model.geom_type == _PLANE) & (level | (model.geom_size[:, :2] <= 0).any(axis=1))


def _at(model: mujoco.MjModel, qpos: np.ndarray) -> mujoco.MjData:
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return data


def _boxes(model: mujoco.MjModel, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
    """float [ngeom, 3] each, m: lowest and highest corners of axis-aligned boxes around geoms."""
    rotation = data.geom_xmat.reshape(-1, 3, 3)
    centre, half = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    plane = (model.geom_type == _PLANE)[:, None]
    half = np.where(plane, model.geom_size * [1, 1, 0], half)
    middle = data.geom_xpos + (rotation @ np.where(plane, 0.0, centre)[..., None])[..., 0]
    extent = (np.abs(rotation) @ half[..., None])[..., 0]
    return middle - extent, middle + extent


def _local_joints(
    model: mujoco.MjModel, init_qpos: np.ndarray, visible: np.ndarray, root: int | None
) -> tuple[np.ndarray, bool]:
    """bool [njnt], joints whose limits are part of the robot's reach; and whether it travels."""
    low, high = _boxes(model, _at(model, init_qpos))
    size = 0.0
    own = visible & (model.body_rootid[model.geom_bodyid] == root)
    own &= _moving_bodies(model)[model.geom_bodyid]
    if own.any():
        box = low[own].min(axis=0), high[own].max(axis=0)
        size = float((box[1] - box[0]).max())
        # With the rail that it runs on, and the like.
        fixed = visible & ~_moving_bodies(model)[model.geom_bodyid]
        fixed &= _gap(low, high, *box) <= BESIDE * size
        fixed &= (high - low).max(axis=1) <= LARGE * size
        near = own | fixed
        size = float((high[near].max(axis=0) - low[near].min(axis=0)).max())
    elif visible.any():
        size = float((high[visible].max(axis=0) - low[visible].min(axis=0)).max())
    travel = model.jnt_range[:, 1] - model.jnt_range[:, 0]
    limited = model.jnt_limited.astype(bool)
    slides = model.jnt_type == _SLIDE
    short = limited & (travel < 2 * size)
    mine = model.body_rootid[model.jnt_bodyid] == root
    travels = bool((mine & ((model.jnt_type == _FREE) | (slides & ~short))).any())
    return limited & ((model.jnt_type == _HINGE) | (slides & short)), travels


def _things(
    model: mujoco.MjModel,
    init_qpos: np.ndarray,
    visible: np.ndarray,
    roots: np.ndarray,
    driven: np.ndarray,
    local: np.ndarray,
) -> tuple[_Things, int | None]:
    """All that there is, and which of it is the robot, if anything moves."""
    low, high = np.full((2, model.ngeom, 3), np.inf) * np.array([1, -1])[:, None, None]
    flex_low, flex_high = (
        np.full((2, model.nflexvert, 3), np.inf) * np.array([1, -1])[:, None, None]
    )
    random, data = np.random.default_rng(0), mujoco.MjData(model)
    address = model.jnt_qposadr[local]
    first, last = model.jnt_range[local].T
    for sample in range(SAMPLES):
        data.qpos[:] = init_qpos
        if sample:
            data.qpos[address] = random.uniform(first, last)
        mujoco.mj_kinematics(model, data)
        one, other = _boxes(model, data)
        low, high = np.minimum(low, one), np.maximum(high, other)
        if model.nflex:
            mujoco.mj_flex(model, data)
            flex_low = np.minimum(flex_low, data.flexvert_xpos)
            flex_high = np.maximum(flex_high, data.flexvert_xpos)
    moving, rows = _moving_bodies(model)[model.geom_bodyid], []
    main = main_root(model, roots, driven)
    start = None
    for root in roots:
        own = visible & moving & (model.body_rootid[model.geom_bodyid] == root)
        if own.any():
            start = len(rows) if root == main or start is None else start
            box = low[own].min(axis=0), high[own].max(axis=0)
            rows.append((*box, True, bool((driven == root).any()), True, True, -1))
    for flex in range(model.nflex):
        begin = model.flex_vertadr[flex]
        own = slice(begin, begin + model.flex_vertnum[flex])
        box = flex_low[own].min(axis=0), flex_high[own].max(axis=0)
        start = len(rows) if start is None else start
        rows.append((*box, True, False, True, True, -1))
    solid = _solid(model, moving)
    bodies = model.body_weldid[model.geom_bodyid]
    ends = (model.geom_type != _FIELD) & ~_endless(model)
    for geom in np.flatnonzero(~moving & ends & (visible | solid)):
        # What is on a mocap body is no scenery: it may be anywhere.
        own = int(geom) if bodies[geom] == 0 else -1
        fixed = (False, False, bool(visible[geom]), bool(solid[geom]), own)
        boxes = low[geom][None], high[geom][None]
        if own >= 0 and not solid[geom] and model.geom_type[geom] == _MESH:
            boxes = _pieces(model, data, own)
        rows.extend((*box, *fixed) for box in zip(*boxes, strict=True))
    return _Things(*(np.array(column) for column in zip(*rows, strict=True))), start


def _pieces(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> np.ndarray:
    """float [2, P, 3], m: boxes around what a mesh is made of, such as a hall and its furniture."""
    mesh = model.geom_dataid[geom]
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[start : start + count].astype(float)
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces = model.mesh_face[start : start + count]
    corners = data.geom_xpos[geom] + vertices @ data.geom_xmat[geom].reshape(3, 3).T
    return boxes_of(corners[faces], pieces_of(vertices, faces))


def _obstacles(things: _Things) -> np.ndarray:
    """bool [N]: what can be run into, and is seen, or has in it or around it what is."""
    looks = things.seen & ~things.solid & ~things.moves
    low, high = things.low[:, None], things.high[:, None]
    meets = ((low <= things.high[looks]) & (high >= things.low[looks])).all(axis=-1)
    return ~things.moves & things.solid & (things.seen | meets.any(axis=-1))


def _solid(model: mujoco.MjModel, moving: np.ndarray) -> np.ndarray:
    """bool [ngeom]: what something that moves can touch."""
    types, affinities = (
        int(np.bitwise_or.reduce(bits[moving], initial=0))
        for bits in (model.geom_contype, model.geom_conaffinity)
    )
    solid = (model.geom_contype & affinities) | (model.geom_conaffinity & types)
    solid = solid.astype(bool)
    solid[np.concatenate([model.pair_geom1, model.pair_geom2])] = True
    return solid


def _counting(things: _Things, start: int, *, travels: bool) -> np.ndarray:
    """bool [N]: the robot, and step by step what it can get to from there."""
    counts = np.zeros(len(things.size), bool)
    counts[start] = True
    low, high = things.low[start], things.high[start]
    size = max(float((high - low).max()), 1e-6)
    edge = np.minimum(low - things.low, things.high - high)[:, :2].min(axis=1)
    around = edge >= (max(AROUND * size, AROUND_METRES) if travels else 0.0)
    if not travels:  # of a long table it needs what is below it: see `scenery.place`
        around |= things.high[:, 2] <= (low[2] + high[2]) / 2
    large = things.size > np.where(things.solid, LARGE, SCENERY) * size
    may = things.moves | ~(large & (around | ~things.solid))
    link = np.full(len(counts), max(AROUND * size, AROUND_METRES) if travels else BESIDE * size)
    beside = np.maximum(things.low - high, low - things.high)[:, :2].max(axis=1)
    under = (beside <= 0) & (things.high[:, 2] <= low[2]) & ~things.moves
    link[under] = np.maximum(link, UNDER * size)[under]
    link[things.driven] = np.maximum(link, APART * size)[things.driven]
    while (more := may & ~counts & (_gap(things.low, things.high, low, high) <= link)).any():
        counts |= more
        low, high = _box(things, counts)
        fixed = ~things.moves
        if travels:  # from wall to wall: the wider a maze is, the wider its halls
            link[fixed & things.solid] = np.maximum(link, (high - low).max())[fixed & things.solid]
        else:  # it can't get to what is farther, but that may be a part of what it gets to
            link[fixed] = TOUCHING * size
            part = max(SCENERY * size, 1.5 * float((high - low).max()))
            may = things.moves | ((things.size <= part) & ~(large & around))
    return counts


def _reach(things: _Things, counts: np.ndarray) -> np.ndarray:
    """float [2, 3], m: around what counts, bool [N], and is seen."""
    low, high = _box(things, counts & things.seen)
    hidden = ~things.seen & counts
    if hidden.any():
        # Where walls that are not drawn stand in a mesh that is, that part of the mesh counts.
        inner, outer = _box(things, hidden)
        for other in np.flatnonzero(things.seen & ~counts & ~things.moves):
            part = np.maximum(inner, things.low[other]), np.minimum(outer, things.high[other])
            if (part[0] <= part[1]).all():
                low, high = np.minimum(low, part[0]), np.maximum(high, part[1])
    return np.stack([low, high])


def _roofed(things: _Things, start: int) -> np.ndarray:
    """bool [N]: a roof over the robot, what is as high as it, and a shell around the robot."""
    low, high = things.low[start], things.high[start]
    wide = ((things.low <= low) & (things.high >= high))[:, :2].all(axis=1)
    top, bottom = things.high[:, 2], things.low[:, 2]
    shell = wide & (top >= high[2]) & (bottom < low[2])
    roof = wide & things.seen & (bottom >= high[2] - TOUCHING * float((high - low).max()))
    return shell | roof | (top >= 0.95 * bottom[roof].min(initial=np.inf))


def _box(things: _Things, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return things.low[which].min(axis=0), things.high[which].max(axis=0)


def _gap(lows: np.ndarray, highs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float [N], m: distance of each of N boxes from another one."""
    return np.linalg.norm(np.maximum(0.0, np.maximum(lows - high, low - highs)), axis=1)
