"""Identifies the environments of one viewer and keeps their rollouts."""

import functools
import hashlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from brax_viser.host.rollout import Rollout
from brax_viser.records.environment import Environment
from brax_viser.records.grid import Grid

_stamps = itertools.count()


class Source:
    """One wrapped environment, as the host sees it. The device calls its subclass
    `callbacks.Callbacks`."""

    def __init__(self, adapter: Environment, grid: Grid, role: str | None):
        self.adapter = adapter
        self.grid = grid
        self.role = role
        # Unique in this process: a state keeps the stamp of the source that set its countdown. It
        # is equal in all processes of a training, whose programs must be the same.
        self.stamp = next(_stamps)
        self.capacity = grid.capacity
        self.rollouts: dict[str, Rollout] = {}  # by role
        self.number = 0  # among the viewer's environments
        # What `launch.Launch` keeps between steps, by role and device.
        self.lanes: dict[tuple[str, int], Any] = {}

    @property
    def label(self) -> str:
        """Name of this environment among several of one viewer."""
        return f"{self.adapter.name} #{self.number + 1}"

    @functools.cached_property
    def kind(self) -> str:
        """Name, physics, role and structure of the model: equal in all processes that build the
        same environment. Sizes and masses are left out, as machines round them differently."""
        adapter, model = self.adapter, self.adapter.mj_model
        build = hashlib.blake2b(model.names, digest_size=6)
        for ids in (model.body_parentid, model.jnt_type, model.geom_type, model.actuator_trntype):
            build.update(np.ascontiguousarray(ids, np.int32).tobytes())
        role = self.role or "any rollout"
        return f"{adapter.name} · {adapter.backend} · {role} · model {build.hexdigest()}"

    def leave(self) -> None:
        """Called when the viewer is closed."""


class Sources:
    """The environments of one viewer, in the order in which they were made.

    References are weak. A `VisualizedEnv` and the programs compiled from it keep their source
    alive; a notebook makes another one each time its cell runs.
    """

    def __init__(self) -> None:
        self._sources: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
        self._count = 0  # of all ever added

    def add(self, source: Source) -> None:
        source.number = self._count
        self._sources[source.number] = source
        self._count += 1

    def get(self, number: int) -> Source | None:
        """Returns the source with this number; None if there was never one or it is gone."""
        return self._sources.get(number)

    def __iter__(self) -> Iterator[Source]:
        known = (reference() for reference in self._sources.valuerefs())
        return iter([source for source in known if source is not None])
