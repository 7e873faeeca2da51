"""Takes meshes apart."""

import numpy as np
import trimesh


def pieces_of(corners: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """int [F]: numbers from 0 of what hangs together by its edges.

    Args:
        corners: float [V, 3], m. Those that are in one place are one.
        faces: int [F, 3].
    """
    digits = np.round(corners / max(float(np.abs(corners).max(initial=0.0)), 1e-9), 5)
    _, same = np.unique(digits, axis=0, return_inverse=True)
    adjacent = trimesh.graph.face_adjacency(same.reshape(-1)[faces])
    return trimesh.graph.connected_component_labels(adjacent, node_count=len(faces))


def boxes_of(triangles: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """float [2, P, 3], m: lowest and highest corners of each piece.

    Args:
        triangles: float [F, 3, 3], m.
        piece: int [F], as `pieces_of` returns it.
    """
    count = int(piece.max(initial=-1)) + 1
    low, high = np.full((2, count, 3), np.inf) * np.array([1, -1])[:, None, None]
    np.minimum.at(low, piece, triangles.min(axis=1))
    np.maximum.at(high, piece, triangles.max(axis=1))
    return np.stack([low, high])
