"""The environments of one viewer: what each is, and the rollouts that are known of it."""

import functools
import hashlib
import itertools
import weakref
from collections.abc import Iterator

import numpy as np

from brax_viser.host.rollout import Rollout
from brax_viser.records.environment import Environment
from brax_viser.records.grid import Grid

_stamps = itertools.count()


class Source:
    """One wrapped environment, as all on the host see it. What the device calls is a
    `callbacks.Callbacks`, which is one of these."""

    def __init__(self, adapter: Environment, grid: Grid, role: str | None):
        self.adapter = adapter
        self.grid = grid
        self.role = role
        # Of all in this process: states tell by it who has set their countdown. Equal in all
        # processes of a training, whose programs must be the same.
        self.stamp = next(_stamps)
        self.capacity = grid.capacity
        self.rollouts: dict[str, Rollout] = {}  # by role
        self.number = 0  # among the viewer's

    @property
    def label(self) -> str:
        """What this environment is called among several of one viewer."""
        return f"{self.adapter.name} #{self.number + 1}"

    @functools.cached_property
    def kind(self) -> str:
        """What is stepped: name, physics, role and build of the model. Alike in each process of a
        training that makes it alike; without sizes and masses, which machines round differently."""
        adapter, model = self.adapter, self.adapter.mj_model
        build = hashlib.blake2b(model.names, digest_size=6)
        for ids in (model.body_parentid, model.jnt_type, model.geom_type, model.actuator_trntype):
            build.update(np.ascontiguousarray(ids, np.int32).tobytes())
        role = self.role or "any rollout"
        return f"{adapter.name} · {adapter.backend} · {role} · model {build.hexdigest()}"

    def leave(self) -> None:
        """The viewer is closed."""


class Sources:
    """The environments of one viewer, in the order in which they were made.

    They are held weakly. Whoever steps one holds it: its environment does, and so do the programs
    that were compiled of it. A notebook makes one with each run of a cell.
    """

    def __init__(self) -> None:
        self._sources: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
        self._count = 0  # of all that were ever made

    def add(self, source: Source) -> None:
        source.number = self._count
        self._sources[source.number] = source
        self._count += 1

    def get(self, number: int) -> Source | None:
        """None: there has never been such a one, or it is gone."""
        return self._sources.get(number)

    def __iter__(self) -> Iterator[Source]:
        known = (reference() for reference in self._sources.valuerefs())
        return iter([source for source in known if source is not None])
