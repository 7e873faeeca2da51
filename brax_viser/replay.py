"""`ReplayViewer`: serves the page of a training that is not in this process, from its episodes."""

import functools
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from brax_viser.host.source import Source
from brax_viser.model.grid import grid_of
from brax_viser.page.own import announce
from brax_viser.page.recorded import Recorded
from brax_viser.page.server import PageServer
from brax_viser.records.episode import Episodes, RunInfo, Summary
from brax_viser.sandbox.trial import PolicyStore
from brax_viser.viewer import Viewer

GRID = (2, 2)
"""Cells of the episodes of a recording: one for each kind of which some are kept."""


class ReplayViewer(Viewer):
    """A `Viewer` that shows recorded episodes alone. It needs neither JAX nor a GPU."""

    def __init__(
        self,
        run: RunInfo,
        episodes: Episodes,
        policies: PolicyStore | None = None,
        *,
        run_dir: str | None = None,
        relayed: bool = False,
        **options: Any,
    ):
        """Starts the server; the newest recording plays as soon as there is one.

        Args:
            run: the training.
            episodes: those that are kept.
            policies: those that can be compared; None: none.
            run_dir: directory of the episodes, of which each page can have a separate replay; None:
                it has one of a copy.
            relayed: whether another viewer relays the page, for one person alone: it prints only
                its port, and the page writes no files.
            options: those of `Viewer`.

        Raises:
            ValueError, RuntimeError: as `Viewer` does.
        """
        self._listed = _Listed(episodes)
        self._episodes, self._recorded = self._listed, run
        self._place_kept, self._relayed = run_dir, relayed
        environment = Recorded.of(run, episodes)
        grid = grid_of(run.mj_model, environment.init_qpos, GRID, None)
        self._source = Source(environment, grid, "train")  # the viewer's own reference is weak
        super().__init__(**options)
        if policies is not None:
            self.offer_policies(policies)
        self._sources.add(self._source)
        self._shared.show_source("train", self._source)
        self._end.show_model(self._source, "train", run.num_envs)

    def _run_dir(self) -> AbstractContextManager[str] | None:
        return super()._run_dir() if self._place_kept is None else nullcontext(self._place_kept)

    def _greet(self, server: PageServer) -> None:
        if self._relayed:
            announce(server.port)
        else:
            super()._greet(server)

    def look(self) -> None:
        """Shows episodes that have been recorded since the last call."""
        self._listed.look()

    def show_curves(self, curves: Mapping[str, np.ndarray]) -> None:
        """Shows these curves in place of those before.

        Args:
            curves: by name, float64 [3, P]: env steps trained, s of training, values.
        """
        self._shared.progress.metrics.replace(curves)

    def show_holds(self, steps: Iterable[int]) -> None:
        """Marks in the time bar the env steps at which the training was held, in place of earlier
        marks."""
        if self._page is not None:
            self._page.inbox.enqueue(functools.partial(self._page.timeline.show_holds, steps))


class _Listed:
    """Episodes as they were listed last: the page's loop does not wait for a disk or a network."""

    def __init__(self, episodes: Episodes):
        self._episodes = episodes
        self.get = episodes.get
        self.look()

    def look(self) -> None:
        """Lists them again."""
        self.version, self._found = self._episodes.version, self._episodes.summaries()

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those that were listed last."""
        return self._found
