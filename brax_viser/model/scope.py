"""Decides which part of a world counts when cells are spaced and cameras placed.

It is the robot and all that it can get to. Skies, halls, or objects that are parked a hundred
metres away are drawn too, but would make the robot a dot if cells had to hold them.
"""

from dataclasses import dataclass, field, replace

import mujoco
import numpy as np

from brax_viser.model.pieces import boxes_of, pieces_of
from brax_viser.model.shapes import visible_geoms

SAMPLES = 64
"""Number of random joint poses in which the robot's reach is measured."""

BESIDE = 0.5
"""How far beyond the reach of a bolted-down robot its surroundings count, in robot sizes."""

UNDER = 2.0
"""How far below a robot the things that it stands on count, in robot sizes."""

AROUND, AROUND_METRES = 4.0, 2.0
"""How far from a travelling robot its surroundings count: in robot sizes, and at least in m."""

APART = 10.0
"""How far away another robot counts, in sizes of the first."""

TOUCHING = 0.05
"""How far apart parts of one table or one fence may be, in robot sizes."""

LARGE, SCENERY = 10.0, 3.0
"""In robot sizes, the largest things that count: those under or around the robot that it can touch,
and anything that it can't touch."""

_PLANE, _FIELD = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_HFIELD)
_MESH = int(mujoco.mjtGeom.mjGEOM_MESH)
_SLIDE, _HINGE = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


@dataclass(frozen=True, eq=False)
class Scope:
    """The part of a world that counts, in its own frame."""

    reach: np.ndarray  # float [2, 3], m: box around the robot and what it can get to
    # Ids of fixed geoms that are not entirely in that box, or that form a room around the robot.
    scenery: frozenset[int]
    farthest: float  # m from the middle of the box to the far end of all that is seen
    # float [O, 2, 3], m: boxes of the scenery that a travelling robot may run into.
    obstacles: np.ndarray = field(default_factory=lambda: np.zeros((0, 2, 3)))
    boxes: dict[int, np.ndarray] = field(default_factory=dict)  # of scenery, float [2, 3], m
    room: frozenset[int] = frozenset()  # scenery that is a roof, reaches up to it, or is a shell

    def holding(self, obstacles: np.ndarray) -> "Scope":
        """A scope whose reach includes some of the obstacles, bool [O]."""
        reach = np.concatenate([self.reach[None], self.obstacles[obstacles]])
        reach = np.stack([reach[:, 0].min(axis=0), reach[:, 1].max(axis=0)])
        out = {geom for geom in self.scenery if not within(reach, *self.boxes[geom])}
        return replace(self, reach=reach, scenery=self.room | out)


@dataclass(frozen=True, eq=False)
class _Things:
    """The contents of a world: N robots, objects, and single geoms that are fixed to it."""

    low: np.ndarray  # float [N, 3], m
    high: np.ndarray  # float [N, 3], m
    moves: np.ndarray  # bool [N]
    driven: np.ndarray  # bool [N], whether it has actuators
    seen: np.ndarray  # bool [N]
    solid: np.ndarray  # bool [N], whether a moving geom can touch it
    geom: np.ndarray  # int [N], id of a geom fixed to the world; else -1

    @property
    def size(self) -> np.ndarray:
        """float [N], m: the largest side of each."""
        return (self.high - self.low).max(axis=1)


def scope_of(model: mujoco.MjModel, init_qpos: np.ndarray) -> Scope:
    """Finds the robot, which has the most actuators, and all that it can get to.

    The box is the union over random positions of the joints with limits; the other joints stay
    where `reset` puts them, and so does the robot's root. Left out are planes, which have no end,
    terrain, which is much larger than the robot on it, and slides at least twice as long as the
    robot, which stand for free movement.

    Args:
        model: is not changed.
        init_qpos: float [nq], the pose after `reset`.
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
    """bool [...]: whether boxes, float [..., 3] to float [..., 3], lie (nearly) within a reach."""
    slack = 0.05 * np.ptp(reach, axis=0).max()
    return ((low >= reach[0] - slack) & (high <= reach[1] + slack)).all(axis=-1)


def moving_roots(model: mujoco.MjModel) -> np.ndarray:
    """int [R]: root bodies, directly on the world, of all that moves."""
    return np.unique(model.body_rootid[moving_bodies(model)])


def driven_roots(model: mujoco.MjModel) -> np.ndarray:
    """int [D]: for each degree of freedom that an actuator acts on, its root body."""
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
    """The robot's root body: the one with the most actuated, or else the most, degrees of freedom;
    None if nothing moves."""
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
        data: is changed; only its `qpos` is read.
        geoms: bool [ngeom] or int [G]. There must be at least one, or a flex.
    """
    mujoco.mj_kinematics(model, data)
    low, high = (side[geoms] for side in _boxes(model, data))
    if model.nflex:
        mujoco.mj_flex(model, data)
        low, high = (np.concatenate([box, data.flexvert_xpos]) for box in (low, high))
    return np.stack([low.min(axis=0), high.max(axis=0)])


def moving_bodies(model: mujoco.MjModel) -> np.ndarray:
    """bool [nbody]: bodies that joints move; mocap bodies do not count."""
    weld = model.body_weldid
    return (weld > 0) & (model.body_mocapid[weld] < 0)


def _counted(model: mujoco.MjModel) -> np.ndarray:
    """bool [ngeom]: geoms that are drawn and have an end, without terrain."""
    visible = np.zeros(model.ngeom, bool)
    visible[visible_geoms(model)] = True
    if model.nskin:  # a skin lies around its bones' geoms, which need not be drawn
        visible |= np.isin(model.geom_bodyid, model.skin_bonebodyid)
    if not visible.any():
        visible[:] = True
    return visible & (model.geom_type != _FIELD) & ~_endless(model)


def _endless(model: mujoco.MjModel) -> np.ndarray:
    """bool [ngeom]: planes, except walls that are drawn with an end."""
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
    """bool [njnt], joints whose ranges are part of the reach; and whether the robot travels."""
    low, high = _boxes(model, _at(model, init_qpos))
    size = 0.0
    own = visible & (model.body_rootid[model.geom_bodyid] == root)
    own &= moving_bodies(model)[model.geom_bodyid]
    if own.any():
        box = low[own].min(axis=0), high[own].max(axis=0)
        size = float((box[1] - box[0]).max())
        # Includes the rail that it runs on, and the like.
        fixed = visible & ~moving_bodies(model)[model.geom_bodyid]
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
    """All things in the world, and the index of the robot among them; None if nothing moves."""
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
    moving, rows = moving_bodies(model)[model.geom_bodyid], []
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
        # A geom on a mocap body is not scenery: it may go anywhere.
        own = int(geom) if bodies[geom] == 0 else -1
        fixed = (False, False, bool(visible[geom]), bool(solid[geom]), own)
        boxes = low[geom][None], high[geom][None]
        if own >= 0 and not solid[geom] and model.geom_type[geom] == _MESH:
            boxes = _pieces(model, data, own)
        rows.extend((*box, *fixed) for box in zip(*boxes, strict=True))
    return _Things(*(np.array(column) for column in zip(*rows, strict=True))), start


def _pieces(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> np.ndarray:
    """float [2, P, 3], m: boxes around the pieces of a mesh, such as a hall and its furniture."""
    mesh = model.geom_dataid[geom]
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    vertices = model.mesh_vert[start : start + count].astype(float)
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    faces = model.mesh_face[start : start + count]
    corners = data.geom_xpos[geom] + vertices @ data.geom_xmat[geom].reshape(3, 3).T
    return boxes_of(corners[faces], pieces_of(vertices, faces))


def _obstacles(things: _Things) -> np.ndarray:
    """bool [N]: fixed things to run into that are seen, or that overlap a seen thing."""
    looks = things.seen & ~things.solid & ~things.moves
    low, high = things.low[:, None], things.high[:, None]
    meets = ((low <= things.high[looks]) & (high >= things.low[looks])).all(axis=-1)
    return ~things.moves & things.solid & (things.seen | meets.any(axis=-1))


def _solid(model: mujoco.MjModel, moving: np.ndarray) -> np.ndarray:
    """bool [ngeom]: whether a moving geom can touch each geom."""
    types, affinities = (
        int(np.bitwise_or.reduce(bits[moving], initial=0))
        for bits in (model.geom_contype, model.geom_conaffinity)
    )
    solid = (model.geom_contype & affinities) | (model.geom_conaffinity & types)
    solid = solid.astype(bool)
    solid[np.concatenate([model.pair_geom1, model.pair_geom2])] = True
    return solid


def _counting(things: _Things, start: int, *, travels: bool) -> np.ndarray:
    """bool [N]: the robot and, step by step, all that it can get to from there."""
    counts = np.zeros(len(things.size), bool)
    counts[start] = True
    low, high = things.low[start], things.high[start]
    size = max(float((high - low).max()), 1e-6)
    edge = np.minimum(low - things.low, things.high - high)[:, :2].min(axis=1)
    around = edge >= (max(AROUND * size, AROUND_METRES) if travels else 0.0)
    if not travels:  # it needs only the part of a long table below it: see `scenery.place`
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
        if travels:  # from wall to wall: a wider maze has wider halls
            link[fixed & things.solid] = np.maximum(link, (high - low).max())[fixed & things.solid]
        else:  # it can't get to farther things, but they may be parts of things that it gets to
            link[fixed] = TOUCHING * size
            part = max(SCENERY * size, 1.5 * float((high - low).max()))
            may = things.moves | ((things.size <= part) & ~(large & around))
    return counts


def _reach(things: _Things, counts: np.ndarray) -> np.ndarray:
    """float [2, 3], m: box around the things that count, bool [N], and are seen."""
    low, high = _box(things, counts & things.seen)
    hidden = ~things.seen & counts
    if hidden.any():
        # Where invisible walls stand in a visible mesh, that part of the mesh counts.
        inner, outer = _box(things, hidden)
        for other in np.flatnonzero(things.seen & ~counts & ~things.moves):
            part = np.maximum(inner, things.low[other]), np.minimum(outer, things.high[other])
            if (part[0] <= part[1]).all():
                low, high = np.minimum(low, part[0]), np.maximum(high, part[1])
    return np.stack([low, high])


def _roofed(things: _Things, start: int) -> np.ndarray:
    """bool [N]: roofs over the robot, things as high as a roof, and shells around the robot."""
    low, high = things.low[start], things.high[start]
    wide = ((things.low <= low) & (things.high >= high))[:, :2].all(axis=1)
    top, bottom = things.high[:, 2], things.low[:, 2]
    shell = wide & (top >= high[2]) & (bottom < low[2])
    roof = wide & things.seen & (bottom >= high[2] - TOUCHING * float((high - low).max()))
    return shell | roof | (top >= 0.95 * bottom[roof].min(initial=np.inf))


def _box(things: _Things, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return things.low[which].min(axis=0), things.high[which].max(axis=0)


def _gap(lows: np.ndarray, highs: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float [N], m: distances of N boxes from another box."""
    return np.linalg.norm(np.maximum(0.0, np.maximum(lows - high, low - highs)), axis=1)
