"""Marks the selected robot by a ring on the floor."""

import numpy as np
import trimesh
import viser

from brax_viser.model.surfaces import linear

RGB = (28, 126, 214)


class Ring:
    """One ring, made when it is first shown. Used on the page's loop only."""

    def __init__(self, server: viser.ViserServer, path: str, size: float, scale: float):
        """Shows nothing yet.

        Args:
            server: the server of the scene.
            path: of the ring's scene node.
            size: its radius, m.
            scale: scene units per metre.
        """
        self._server, self._path, self._size, self._scale = server, path, size, scale
        self.handle: viser.BatchedMeshHandle | None = None

    def draw(self, place: np.ndarray | None) -> None:
        """Puts the ring at a place, float [3] in m; None hides it."""
        if place is None:
            if self.handle is not None and self.handle.visible:
                self.handle.visible = False
            return
        if self.handle is None:
            self.handle = self._add()
        if not self.handle.visible:
            self.handle.visible = True
        self.handle.batched_positions = np.asarray(place, np.float32)[None]

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()

    def _add(self) -> viser.BatchedMeshHandle:
        size = self._size
        mesh = trimesh.creation.annulus(r_min=0.86 * size, r_max=size, height=0.02 * size)
        return self._server.scene.add_batched_meshes_simple(
            self._path,
            mesh.vertices,
            mesh.faces,
            batched_wxyzs=np.array([[1.0, 0.0, 0.0, 0.0]], np.float32),
            batched_positions=np.zeros((1, 3), np.float32),
            batched_colors=linear(np.array(RGB)),
            lod="off",
            cast_shadow=False,
            scale=self._scale,
        )
