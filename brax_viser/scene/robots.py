"""K copies of one robot, drawn by one batched handle per distinct geometry."""

import numpy as np
import viser

from brax_viser.scene.shapes import Shape

_IDENTITY = np.array([1.0, 0.0, 0.0, 0.0])

BatchedHandle = viser.BatchedMeshHandle | viser.BatchedGlbHandle


class Robots:
    """The viser handles of K environments. Used by the publisher thread alone."""

    def __init__(
        self, server: viser.ViserServer, shapes: list[Shape], origins: np.ndarray, scale: float
    ):
        """Adds the handles, with every robot folded up at its cell's origin until `draw`.

        Args:
            server: whose scene they go into.
            shapes: what one robot is made of.
            origins: float32 [K, 3], m, each env's place in the scene.
            scale: scene units per metre.
        """
        self.origins = origins
        self._server = server
        self._parts: list[tuple[Shape, BatchedHandle]] = []
        for index, shape in enumerate(shapes):
            pos, quat = _static_poses(shape, origins)
            self._parts.append((shape, _add(server, f"/robots/{index}", shape, pos, quat, scale)))

    @property
    def handles(self) -> list[BatchedHandle]:
        """One per distinct geometry; instance [k * M + m] is env k's m-th occurrence of it."""
        return [handle for _, handle in self._parts]

    def draw(self, link_pos: np.ndarray, link_rot: np.ndarray) -> None:
        """Moves all K robots.

        Args:
            link_pos: float32 [K, L, 3], m, in each env's own world frame.
            link_rot: float32 [K, L, 4], wxyz.
        """
        origins = self.origins[:, None]
        # The page applies what is inside of `atomic` at once: no robot is torn between frames.
        with self._server.atomic():
            for shape, handle in self._parts:
                if not shape.body.any():
                    continue  # the world's own geometry never moves
                link = shape.body - 1
                base_pos, base_rot = link_pos[:, link], link_rot[:, link]
                pos = base_pos + rotate(base_rot, shape.pos) if shape.pos.any() else base_pos
                rot = base_rot
                if not np.array_equal(shape.quat, np.broadcast_to(_IDENTITY, shape.quat.shape)):
                    rot = multiply(base_rot, shape.quat)
                handle.batched_positions = (pos + origins).reshape(-1, 3).astype(np.float32)
                handle.batched_wxyzs = rot.reshape(-1, 4).astype(np.float32)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self._parts.clear()


def _static_poses(shape: Shape, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K * M, 3] and [K * M, 4]: where the shape is if its body is at the env's origin."""
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
    # lod="off": the automatic levels decimate small links to nothing within a few metres.
    if shape.rgba is None:
        return server.scene.add_batched_meshes_trimesh(
            name, shape.mesh, batched_wxyzs=quat, batched_positions=pos, lod="off", scale=scale
        )
    return server.scene.add_batched_meshes_simple(
        name,
        shape.mesh.vertices,
        shape.mesh.faces,
        batched_wxyzs=quat,
        batched_positions=pos,
        batched_colors=np.asarray(shape.rgba[:3], np.uint8),
        opacity=None if shape.rgba[3] == 255 else float(shape.rgba[3]) / 255,
        lod="off",
        scale=scale,
    )


def rotate(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates vectors [..., 3] by unit quaternions [..., 4] (wxyz)."""
    real, imaginary = quat[..., :1], quat[..., 1:]
    twice = 2.0 * np.cross(imaginary, vector)
    return vector + real * twice + np.cross(imaginary, twice)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hamilton product of quaternions [..., 4] (wxyz)."""
    lw, lx, ly, lz = np.moveaxis(left, -1, 0)
    rw, rx, ry, rz = np.moveaxis(right, -1, 0)
    return np.stack(
        [
            lw * rw - lx * rx - ly * ry - lz * rz,
            lw * rx + lx * rw + ly * rz - lz * ry,
            lw * ry - lx * rz + ly * rw + lz * rx,
            lw * rz + lx * ry - ly * rx + lz * rw,
        ],
        axis=-1,
    )
