"""Rotations of many vectors at once. Unit quaternions, wxyz."""

import numpy as np


def rotate(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotates vectors [..., 3] by unit quaternions [..., 4] (wxyz)."""
    # By components: on arrays this small numpy's own `cross` spends its time on other things.
    w, x, y, z = (quat[..., i] for i in range(4))
    a, b, c = (vector[..., i] for i in range(3))
    tx, ty, tz = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    shape = np.broadcast_shapes(quat.shape[:-1], vector.shape[:-1])
    rotated = np.empty((*shape, 3), quat.dtype)
    rotated[..., 0] = a + w * tx + y * tz - z * ty
    rotated[..., 1] = b + w * ty + z * tx - x * tz
    rotated[..., 2] = c + w * tz + x * ty - y * tx
    return rotated


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hamilton product of quaternions [..., 4] (wxyz)."""
    lw, lx, ly, lz = (left[..., i] for i in range(4))
    rw, rx, ry, rz = (right[..., i] for i in range(4))
    product = np.empty(np.broadcast_shapes(left.shape, right.shape), left.dtype)
    product[..., 0] = lw * rw - lx * rx - ly * ry - lz * rz
    product[..., 1] = lw * rx + lx * rw + ly * rz - lz * ry
    product[..., 2] = lw * ry - lx * rz + ly * rw + lz * rx
    product[..., 3] = lw * rz + lx * ry - ly * rx + lz * rw
    return product
