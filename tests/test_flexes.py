"""Cloth and soft bodies: surfaces that bend, drawn with rigid triangles."""

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brax_viser.model import flexes
from brax_viser.model.grid import reach_of
from brax_viser.model.rods import rods_of
from brax_viser.model.rotations import rotate
from brax_viser.scene import deformables
from tests.models import soft

BLOCK, JELLY = 3, 4
"""Indices of flexes in `tests.models.soft`."""

GROUPS = frozenset((0, 1, 2))


@pytest.fixture(scope="module")
def fallen() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The keyframe: the pinned cloth hangs, the other one and the soft bodies lie on the ground."""
    model = mujoco.MjModel.from_xml_string(soft())
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return model, data


class Recorded:
    """Replaces the part of viser's server that `Sheets` uses, and records its arguments."""

    def __init__(self):
        self.scene = self

    def add_batched_meshes_simple(self, path, vertices, faces, **fields):
        self.vertices = vertices
        for name, value in fields.items():
            setattr(self, name, value)
        return self


def drawn(surfaces: flexes.Surfaces, data: mujoco.MjData, hidden: bool = False) -> np.ndarray:
    """Returns the triangles drawn for one robot, halves of its faces, float [T, 3, 3], m."""
    server = Recorded()
    sheets = deformables.Sheets(server, "", surfaces, np.zeros((1, 3), np.float32), 1.0)  # type: ignore[arg-type]
    links = data.xpos[None, 1:].astype(np.float32), data.xquat[None, 1:].astype(np.float32)
    assert sheets.draw(*links, np.array([hidden])) > 0 or hidden
    corners = server.vertices * server.batched_scales[:, None]
    return rotate(server.batched_wxyzs[:, None], corners) + server.batched_positions[:, None]


def area(triangles: np.ndarray) -> float:
    one, other = (triangles[..., i, :] - triangles[..., 0, :] for i in (1, 2))
    return float(np.linalg.norm(np.cross(one, other), axis=-1).sum() / 2)


@given(arrays(np.float64, (2, 3, 3, 3), elements=st.floats(-10, 10, width=32)))
def test_two_halves_make_up_the_triangle(corners):
    place, turn, scale = deformables.right_triangles(corners)
    corner = deformables._CORNERS * scale[..., None, :]
    halves = rotate(turn[..., None, :], corner) + place[..., None, :]
    assert area(halves) == pytest.approx(area(corners), abs=1e-4, rel=1e-4)
    # Each corner of the triangle is a corner of a half, and no half leaves the triangle's box.
    apart = np.linalg.norm(corners[:, None, :, :, None] - halves[:, :, :, None], axis=-1)
    assert apart.min(axis=(1, 4)).max() < 1e-3
    low, high = corners.min(axis=2), corners.max(axis=2)
    assert (halves >= low[:, None, :, None] - 1e-3).all()
    assert (halves <= high[:, None, :, None] + 1e-3).all()
    assert np.linalg.norm(turn, axis=-1) == pytest.approx(1.0, abs=1e-5)


def test_corners_are_where_mujocos_are(fallen):
    model, data = fallen
    assert np.ptp(data.flexvert_xpos[35:60, 2]) > 0.05, "the pinned cloth hangs"
    for flex in range(model.nflex):
        body, pos = flexes.points_of(model, flex)
        at = data.xpos[body] + rotate(data.xquat[body], pos)
        weights = flexes.weights_of(model, flex)
        assert (weights is not None) == (flex == JELLY)
        if weights is not None:
            assert weights.sum(axis=1) == pytest.approx(1.0)
            at = weights @ at
        start = model.flex_vertadr[flex]
        assert at == pytest.approx(
            data.flexvert_xpos[start : start + model.flex_vertnum[flex]], abs=1e-6
        )


def test_each_face_of_a_surface_is_drawn(fallen):
    model, data = fallen
    surfaces = flexes.surfaces_of(model, GROUPS)
    assert surfaces is not None
    cloths, shells = model.flex_dim == 2, model.flex_dim == 3
    faces = model.flex_elemnum[cloths].sum() + model.flex_shellnum[shells].sum()
    assert len(surfaces.faces) == faces == len(surfaces.rgb)
    triangles = drawn(surfaces, data)
    assert len(triangles) == 2 * faces
    middles = flexes.Surfaces(**{**vars(surfaces), "outwards": 0 * surfaces.outwards})
    assert area(drawn(middles, data)) == pytest.approx(
        sum(
            area(data.flexvert_xpos[model.flex_vertadr[f] + flexes._faces(model, f)])
            for f in np.flatnonzero(cloths | shells)
        ),
        rel=1e-4,
    )
    # A soft body reaches beyond its vertices by up to its radius, at corners as elsewhere.
    block = data.flexvert_xpos[model.flex_vertadr[BLOCK] :][: model.flex_vertnum[BLOCK]]
    mine = triangles[np.abs(triangles[..., 1].mean(axis=1) + 0.6) < 0.25].reshape(-1, 3)
    beyond = np.concatenate(
        [block.min(axis=0) - mine.min(axis=0), mine.max(axis=0) - block.max(axis=0)]
    )
    assert (beyond > 0.5 * 0.02).all() and (beyond <= 0.02 + 1e-5).all()
    assert area(drawn(surfaces, data, hidden=True)) == 0.0


def test_flexes_are_drawn_by_group_and_in_their_colours():
    model = mujoco.MjModel.from_xml_string(soft())
    assert flexes.surfaces_of(model, (3,)) is None and rods_of(model, (3,)) is None
    surfaces = flexes.surfaces_of(model, GROUPS)
    assert surfaces is not None
    count = model.flex_elemnum[0]
    assert (surfaces.rgb[:count] == (51, 102, 204)).all()
    checks = surfaces.rgb[count : count + model.flex_elemnum[1]]
    assert {tuple(rgb) for rgb in checks} == {(229, 51, 51), (51, 178, 76)}
    rods = rods_of(model, GROUPS)
    assert rods is not None
    # The rope, and the rims of two cloths of 7 by 5 and 5 by 5.
    assert len(rods.radius) == 7 + 2 * (6 + 4) + 2 * (4 + 4)
    low, high = reach_of(model, model.qpos0)
    assert low[0] < -0.9 and high[0] > 0.9, "flexes count to how far a robot reaches"
