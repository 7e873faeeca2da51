"""Fields of a handle are sent only if they have changed."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from brax_viser.scene.handles import send


def test_a_field_is_sent_if_any_of_its_instances_has_moved():
    before = np.zeros((20, 3), np.float32)
    handle: Any = SimpleNamespace(batched_positions=before, batched_scales=before)
    assert send(handle, batched_positions=before.copy(), batched_scales=before.copy()) == 0
    assert handle.batched_positions is before
    for moved in (2, 19):
        new = handle.batched_positions.copy()
        new[moved] += 1
        assert send(handle, batched_positions=new, batched_scales=before.copy()) == new.nbytes
        assert handle.batched_positions is new and handle.batched_scales is before
