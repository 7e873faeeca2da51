"""What moves is sent, and nothing else."""

import numpy as np
import viser

BatchedHandle = viser.BatchedMeshHandle | viser.BatchedGlbHandle


def send(handle: BatchedHandle, **fields: np.ndarray) -> int:
    """Gives a handle what is not as it was. Returns the bytes that each page is sent.

    Args:
        handle: of N instances.
        **fields: its own, by name; float32 [N, ...], which it copies.
    """
    sent = 0
    for name, new in fields.items():
        old = getattr(handle, name)
        # Whether anything moves, the first ones mostly tell, and all are compared only if not.
        if np.array_equal(old[:8], new[:8]) and np.array_equal(old, new):
            continue
        setattr(handle, name, new)
        sent += new.nbytes
    return sent
