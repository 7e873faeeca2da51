"""Makes the mesh of a geom, with its colour or texture."""

import mujoco
import numpy as np
import trimesh
from mjviser import conversions
from trimesh.visual import ColorVisuals

from brax_viser.model.surfaces import painted, texture_of
from brax_viser.model.terrain import terrain_mesh

PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
TERRAIN = int(mujoco.mjtGeom.mjGEOM_HFIELD)
CAPSULE = int(mujoco.mjtGeom.mjGEOM_CAPSULE)
_SPHERE = int(mujoco.mjtGeom.mjGEOM_SPHERE)
_CYLINDER = int(mujoco.mjtGeom.mjGEOM_CYLINDER)
_MESHES = (int(mujoco.mjtGeom.mjGEOM_MESH), int(mujoco.mjtGeom.mjGEOM_SDF))

CREASE = np.radians(30.0)
"""rad; edges sharper than this are shaded sharp, the others smooth."""


def _mesh_data(
    model: mujoco.MjModel, mesh: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Vertices, float32 [V, 3] in m, faces, int [F, 3], and texture coordinates, float32 [V, 2].

    A mesh may have no texture coordinates: None. If it has, each corner of a face becomes a
    separate vertex, because faces that share a vertex need not share its texture coordinates.
    """
    at, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    face = model.mesh_face[at : at + faces]
    start = int(model.mesh_vertadr[mesh])
    vertices = model.mesh_vert[start : start + int(model.mesh_vertnum[mesh])]
    if not model.mesh_texcoordnum[mesh]:
        return vertices, face, None
    corners = model.mesh_facetexcoord[at : at + faces].ravel()
    uv = model.mesh_texcoord[int(model.mesh_texcoordadr[mesh]) + corners]
    return vertices[face.ravel()], np.arange(3 * faces).reshape(-1, 3), uv


def geom_mesh(model: mujoco.MjModel, geom: int) -> trimesh.Trimesh:
    """The mesh of a geom in its own frame, with its colour or texture. Creases are split so that
    they are shaded sharp."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind in _MESHES:
        vertices, faces, uv = _mesh_data(model, int(model.geom_dataid[geom]))
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        if uv is not None and texture_of(model, geom) is not None:
            return painted(model, geom, mesh, uv)
    # Round primitives are our own: mjviser's capsule has 4,096 triangles, and a grid draws
    # thousands of capsules.
    elif kind == CAPSULE:
        mesh = trimesh.creation.capsule(radius=size[0], height=2 * size[1], count=(20, 12))
        mesh.apply_translation(-mesh.bounds.mean(axis=0))
    elif kind == _SPHERE:
        mesh = trimesh.creation.icosphere(radius=size[0], subdivisions=2)
    elif kind == _CYLINDER:
        mesh = trimesh.creation.cylinder(radius=size[0], height=2 * size[1], sections=24)
    elif kind == PLANE:  # mjviser's is a box, which is visible from behind and casts shadows
        half = np.where(size[:2] > 0, size[:2], max(10.0, model.stat.extent))
        corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [*half, 1]
        mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    elif kind == TERRAIN:
        mesh = terrain_mesh(model, geom)
    else:
        mesh = conversions.create_primitive_mesh(model, geom)
    return painted(model, geom, creased(mesh))


def creased(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """A mesh that is shaded smooth except at its creases."""
    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return trimesh.graph.smooth_shade(bare, angle=CREASE)


def one_colour(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """uint8 [4]: the colour of all of a mesh; None if it has several, or a texture."""
    if not isinstance(mesh.visual, ColorVisuals):
        return None
    colours = np.unique(np.asarray(mesh.visual.vertex_colors), axis=0)
    return colours[0] if len(colours) == 1 else None
