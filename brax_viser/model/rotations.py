"""Rotates many vectors at once, and moves points with bodies. Quaternions: unit length, wxyz."""

import numpy as np

# Computed by component: numpy's own `cross` and `matmul` take several times as long on arrays with
# three or four numbers per row. Where each component has its own plane, as from `planes`, each of
# these products is one pass over contiguous memory: 4 us instead of 20 for 4,096 ants.


def planes(array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """A view [..., C] of a copy in which each of the C components has its own plane.

    Args:
        array: [..., C].
        out: the result of an earlier call for an array of this shape, to be filled again.
    """
    if out is None:
        out = np.moveaxis(np.empty((array.shape[-1], *array.shape[:-1]), array.dtype), 0, -1)
    np.copyto(out, array)
    return out


def rotate(quat: np.ndarray, vector: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Rotates vectors [..., 3] by unit quaternions [..., 4] (wxyz), into `out` if it is given."""
    w, x, y, z = (quat[..., i] for i in range(4))
    a, b, c = (vector[..., i] for i in range(3))
    tx, ty, tz = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    if out is None:
        shape = np.broadcast_shapes(quat.shape[:-1], vector.shape[:-1])
        out = np.empty((*shape, 3), quat.dtype)
    out[..., 0] = a + w * tx + y * tz - z * ty
    out[..., 1] = b + w * ty + z * tx - x * tz
    out[..., 2] = c + w * tz + x * ty - y * tx
    return out


def multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Hamilton product of quaternions [..., 4] (wxyz), into `out` if it is given."""
    lw, lx, ly, lz = (left[..., i] for i in range(4))
    rw, rx, ry, rz = (right[..., i] for i in range(4))
    if out is None:
        out = np.empty(np.broadcast_shapes(left.shape, right.shape), left.dtype)
    out[..., 0] = lw * rw - lx * rx - ly * ry - lz * rz
    out[..., 1] = lw * rx + lx * rw + ly * rz - lz * ry
    out[..., 2] = lw * ry - lx * rz + ly * rw + lz * rx
    out[..., 3] = lw * rz + lx * ry - ly * rx + lz * rw
    return out


def cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cross products of vectors [..., 3]."""
    a, b, c = (left[..., i] for i in range(3))
    x, y, z = (right[..., i] for i in range(3))
    return np.stack([b * z - c * y, c * x - a * z, a * y - b * x], axis=-1)


def from_axes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Unit quaternions [..., 4] (wxyz) that turn the axes x and y to given unit vectors [..., 3].

    The vectors must be at right angles; otherwise the quaternion is arbitrary. Shepperd's method
    (Journal of Guidance and Control 1, 1978): of four equivalent formulas, takes the one that
    divides by the largest number.
    """
    z = cross(x, y)
    (a, b, c), (d, e, f), (g, h, i) = (np.moveaxis(v, -1, 0) for v in (x, y, z))
    ways = np.stack(
        [
            np.stack([1 + a + e + i, f - h, g - c, b - d], axis=-1),
            np.stack([f - h, 1 + a - e - i, b + d, g + c], axis=-1),
            np.stack([g - c, b + d, 1 - a + e - i, f + h], axis=-1),
            np.stack([b - d, g + c, f + h, 1 - a - e + i], axis=-1),
        ],
        axis=-2,
    )
    largest = np.argmax(np.diagonal(ways, axis1=-2, axis2=-1), axis=-1)
    quat = np.take_along_axis(ways, largest[..., None, None], axis=-2)[..., 0, :]
    return quat / np.maximum(np.linalg.norm(quat, axis=-1, keepdims=True), 1e-12)


def angle_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angles in rad, [...], between rotations [..., 4], from 0 to pi."""
    cosine = np.abs(np.einsum("...i,...i->...", one, other))
    return 2 * np.arccos(np.minimum(cosine, 1.0))


def points_on(
    body: np.ndarray, pos: np.ndarray, link_pos: np.ndarray, link_rot: np.ndarray
) -> np.ndarray:
    """float32 [K, S, 3], m, in each env's own world frame: positions of points on bodies.

    Args:
        body: int [S], body ids.
        pos: float32 [S, 3], m, in the bodies' frames.
        link_pos: float32 [K, L, 3], m, in each env's own world frame.
        link_rot: float32 [K, L, 4], wxyz.
    """
    # Body 0 is the world, which does not move; link i is body i + 1.
    link = np.maximum(body - 1, 0)
    moved = link_pos[:, link] + rotate(link_rot[:, link], pos)
    return np.where((body == 0)[:, None], pos, moved).astype(np.float32)
