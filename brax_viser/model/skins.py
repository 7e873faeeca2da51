"""Cuts skins up: MuJoCo bends one mesh over many bodies; here each body moves its own piece."""

from collections.abc import Collection, Iterator

import mujoco
import numpy as np
import trimesh

from brax_viser.model.surfaces import chosen_rgba, painted_with

SHARED = 0.3
"""A triangle with at least this weight on a second bone is in the pieces of both, so that they
overlap and no gap opens between them when the joint bends."""


def pieces_of(
    model: mujoco.MjModel, groups: Collection[int]
) -> Iterator[tuple[int, trimesh.Trimesh]]:
    """Cuts each visible skin into pieces by the body that moves a triangle most.

    A batch of instances can be moved, but not bent; bending a skin for each of a thousand robots
    would send all its vertices with each frame. In the pose in which the skin was made the pieces
    form the skin itself; in others they fold at the joints, where MuJoCo's skin would stretch.

    Args:
        model: is not changed.
        groups: of the skins to draw.

    Yields:
        (body id, mesh in the body's frame, m, with the normals of the whole skin).
    """
    for skin in range(model.nskin):
        if model.skin_group[skin] in groups and model.skin_rgba[skin][3] > 0:
            yield from _cut(model, skin)


def _cut(model: mujoco.MjModel, skin: int) -> Iterator[tuple[int, trimesh.Trimesh]]:
    vertices = _rows(model.skin_vert, model.skin_vertadr[skin], model.skin_vertnum[skin])
    faces = _rows(model.skin_face, model.skin_faceadr[skin], model.skin_facenum[skin])
    whole = trimesh.Trimesh(vertices, faces, process=False)
    normals, uv = np.asarray(whole.vertex_normals), None
    if model.skin_texcoordadr[skin] >= 0:
        uv = _rows(model.skin_texcoord, model.skin_texcoordadr[skin], len(vertices))
    weight = _weights(model, skin, len(vertices))[:, faces].mean(axis=2)  # [bones, faces]
    strongest = weight.argmax(axis=0)
    material = int(model.skin_matid[skin])
    rgba = chosen_rgba(model, model.skin_rgba[skin], material)
    for bone, weights in enumerate(weight):
        mine = (strongest == bone) | (weights >= SHARED)
        if not mine.any():
            continue
        used, index = np.unique(faces[mine], return_inverse=True)
        at = model.skin_boneadr[skin] + bone
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, model.skin_bonebindquat[at].astype(float))
        turn = turn.reshape(3, 3)  # its transpose is applied by multiplying from the right
        piece = trimesh.Trimesh(
            (vertices[used] - model.skin_bonebindpos[at]) @ turn,
            index.reshape(-1, 3),
            vertex_normals=normals[used] @ turn,
            process=False,
        )
        piece = painted_with(model, piece, None if uv is None else uv[used], rgba, material)
        yield int(model.skin_bonebodyid[at]), piece


def _weights(model: mujoco.MjModel, skin: int, count: int) -> np.ndarray:
    """float [bones, V]: how much each bone moves each vertex."""
    weights = np.zeros((model.skin_bonenum[skin], count))
    for bone in range(len(weights)):
        at = model.skin_boneadr[skin] + bone
        rows = slice(
            model.skin_bonevertadr[at], model.skin_bonevertadr[at] + model.skin_bonevertnum[at]
        )
        weights[bone, model.skin_bonevertid[rows]] = model.skin_bonevertweight[rows]
    return weights


def _rows(array: np.ndarray, start: int, count: int) -> np.ndarray:
    return np.asarray(array[start : start + count])
