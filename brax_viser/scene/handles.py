"""Sends a handle only those arrays that have changed, and parks what a handle does not show."""

import numpy as np
import viser

from brax_viser.compat import set_together

BatchedHandle = viser.BatchedMeshHandle | viser.BatchedGlbHandle

PARKED = np.array([0.0, 0.0, -1e4], np.float32)
"""m: place of hidden instances and unused lines, far outside of every camera's view. Unlike a scale
of zero it needs no message of its own, because positions are sent anyway."""


def send(handle: BatchedHandle, **fields: np.ndarray) -> int:
    """Sets those fields of a handle that have changed. Returns the bytes that each page is sent.

    Args:
        handle: of N instances.
        **fields: new values by name, [N, ...]; the handle copies them.
    """
    changed = {}
    for name, new in fields.items():
        old = getattr(handle, name)
        # The first instances mostly show that something moves: compare all only if they do not.
        if not (np.array_equal(old[:8], new[:8]) and np.array_equal(old, new)):
            changed[name] = new
    if len(changed) < 2 or not set_together(handle, changed):
        for name, new in changed.items():
            setattr(handle, name, new)
    return sum(new.nbytes for new in changed.values())
