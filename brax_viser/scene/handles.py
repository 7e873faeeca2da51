"""Sends a handle only those arrays that have changed."""

import numpy as np
import viser

BatchedHandle = viser.BatchedMeshHandle | viser.BatchedGlbHandle


def send(handle: BatchedHandle, **fields: np.ndarray) -> int:
    """Sets those fields of a handle that have changed. Returns the bytes that each page is sent.

    Args:
        handle: of N instances.
        **fields: new values by name, [N, ...]; the handle copies them.
    """
    sent = 0
    for name, new in fields.items():
        old = getattr(handle, name)
        # The first instances mostly show that something moves: compare all only if they do not.
        if np.array_equal(old[:8], new[:8]) and np.array_equal(old, new):
            continue
        setattr(handle, name, new)
        sent += new.nbytes
    return sent
