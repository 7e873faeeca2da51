"""Keeps what one viewer records: in memory, or in the run directory of each training."""

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.folder import DISK_BYTES, RunFolder
from brax_viser.runs.memory import RecentEpisodes, RecentPolicies
from brax_viser.runs.store import describe

MEMORY_AFTER = 10.0
"""s of training before the first recording, where there is no run directory."""


class Keeper:
    """The episodes, curves and policies of a viewer's training: an `Episodes`. Thread-safe.

    A viewer may show several trainings, one after the other. Each begins with no episodes; the
    first has the run directory, and those after it DIRECTORY-2, DIRECTORY-3 and so on.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str] | None = None, max_run_bytes: int = DISK_BYTES
    ):
        """Keeps nothing yet.

        Args:
            run_dir: a directory that does not exist yet or is empty; None keeps the newest episodes
                in memory.
            max_run_bytes: bytes that each training's directory may have; see `RunFolder`.

        Raises:
            ValueError: the directory cannot be used, or `max_run_bytes` is not above 0.
        """
        if max_run_bytes <= 0:
            raise ValueError(f"max_run_bytes={max_run_bytes}: must be a number of bytes above 0")
        self._max_bytes = max_run_bytes
        self._run_dir = None if run_dir is None else epath.Path(run_dir).expanduser()
        if self._run_dir is not None:
            check_free(self._run_dir)
        self._lock = threading.Lock()
        self._memory = RecentEpisodes()
        self._folder: RunFolder | None = None
        self._info: RunInfo | None = None
        self._begun = 0  # trainings
        self._before = 0  # versions of the stores of earlier trainings
        # Of a training not begun yet, or without a run directory.
        self._policies = RecentPolicies()
        self._problem: str | None = None

    @property
    def info(self) -> RunInfo | None:
        """The training; None before the first."""
        return self._info

    @property
    def path(self) -> str | None:
        """The training's run directory; None if there is none."""
        return self._folder.path if self._folder is not None else None

    @property
    def problem(self) -> str | None:
        """Why something could not be kept, in words for users; None if all is well."""
        folder = self._folder
        return self._problem or (folder.problem if folder is not None else None)

    @property
    def first_after(self) -> float:
        """s of training before the first recording. A run directory begins with the untrained
        policy; without one, trainings of seconds are left alone."""
        return MEMORY_AFTER if self._run_dir is None else 0.0

    def begin(self, info: RunInfo) -> None:
        """Begins to keep another training. The files of the one before are finished."""
        with self._lock:
            self._finish()
            self._info, self._begun = info, self._begun + 1
            self._memory, self._problem = RecentEpisodes(), None
            if self._run_dir is None:
                return
            try:
                self._folder = self._opened(self._run_dir, info)
            except ValueError as error:  # it has been taken since: the training must go on
                self._problem = f"{error} Episodes are kept in memory."
                return
            for num_steps in self._policies.steps():
                self._folder.add_policy(num_steps, self._policies.get(num_steps))
            self._policies = RecentPolicies()

    def _opened(self, path: epath.Path, info: RunInfo) -> RunFolder:
        if self._begun == 1:
            return RunFolder(path, info, max_bytes=self._max_bytes)
        for number in itertools.count(self._begun):
            place = path.with_name(f"{path.name}-{number}")
            if not place.exists():
                return RunFolder(place, info, max_bytes=self._max_bytes)
        raise AssertionError("unreachable")

    def add(self, episodes: Sequence[Episode]) -> None:
        """Keeps the episodes of one recording. Their arrays must not change afterwards."""
        with self._lock:
            (self._folder or self._memory).add(episodes)

    def add_policy(
        self, num_steps: int, params: Mapping[str, np.ndarray], best: int | None = None
    ) -> None:
        """Keeps a policy in the run directory, see `RunFolder.add_policy`, or else in memory, see
        `RecentPolicies.add`."""
        with self._lock:
            if self._folder is not None:
                self._folder.add_policy(num_steps, params, best)
            else:
                self._policies.add(num_steps, params, best)

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps that each kept policy was trained for, ascending."""
        return (self._policies.steps if self._folder is None else self._folder.policies)()

    def policy(self, num_steps: int) -> Mapping[str, np.ndarray]:
        """Returns the parameters of a policy, by their paths in the pytree. Called on any thread.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged.
        """
        folder = self._folder
        return self._policies.get(num_steps) if folder is None else folder.policy(num_steps)

    def set_curves(self, curves: Mapping[str, np.ndarray]) -> None:
        """Keeps the curves in the run directory, if there is one; see `RunFolder.set_curves`."""
        with self._lock:
            if self._folder is not None:
                self._folder.set_curves(curves)

    def set_holds(self, holds: Iterable[int]) -> None:
        """Keeps in the run directory, if there is one, where the training was held; see
        `RunFolder.set_holds`."""
        with self._lock:
            if self._folder is not None:
                self._folder.set_holds(holds)

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does."""
        return self._before + (self._folder or self._memory).version

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of the newest training, ordered by `key`."""
        return (self._folder or self._memory).summaries()

    def get(self, key: str) -> Episode:
        """Returns an episode of the newest training.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged.
        """
        return (self._folder or self._memory).get(key)

    def close(self) -> bool:
        """Finishes the files. Idempotent. Returns whether there are any episodes on disk."""
        with self._lock:
            if self._folder is not None:
                self._folder.close()
                return bool(self._folder.summaries())
            if self._run_dir is not None and self._info is None:
                with contextlib.suppress(
                    OSError, ValueError
                ):  # made by `check_free`; not if it has files
                    self._run_dir.rmdir()
            return False

    def _finish(self) -> None:
        self._before = self.version + 1
        if self._folder is not None:
            self._folder.close()
        self._folder = None


def check_free(path: epath.Path) -> None:
    """Checks that a training can be kept in a directory; creates it if it does not exist.

    Raises:
        ValueError: it holds another training, or can't be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        run = path / layout.RUN
        if run.exists():
            raise ValueError(f"it holds another training: {describe(run.read_bytes())}")
        probe = path / f".{layout.RUN}{files.UNFINISHED}"
        files.write(probe, b"")
        probe.unlink()
    except Exception as error:  # of the disk, or of any package that reaches another store
        why = str(error) or type(error).__name__
        raise ValueError(f"run_dir={str(path)!r}: {why}. Give another one, or delete it") from error
