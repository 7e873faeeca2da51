"""Keeps one training in its run directory, on a thread of its own, and never fails its caller."""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.memory import MEMORY_BYTES, RecentEpisodes
from brax_viser.runs.store import Store
from brax_viser.runs.thinning import surplus

log = logging.getLogger("brax_viser")

DISK_BYTES = 1_000_000_000
"""Bytes that a run directory may have."""

RETRY_SECONDS = 5.0
"""After a failure, how long until writing is tried again."""


class RunFolder:
    """The run directory of one training, written while it runs: an `Episodes`. Thread-safe.

    What is added waits in memory until a thread has written it. No call waits for the disk except
    `get`, `policy` and `close`, and none raises because of it: while nothing can be written,
    `problem` says so, and what waits is thinned to `MEMORY_BYTES`.
    """

    def __init__(
        self, path: str | os.PathLike[str], info: RunInfo, *, max_bytes: int = DISK_BYTES
    ) -> None:
        """Creates the directory, or takes one that has no training in it.

        Args:
            path: the directory, local or, where their packages are installed, gs:// or s3://. One
                directory is for one training.
            info: the training. Its model may change afterwards.
            max_bytes: bytes that all files may have together. Above, recordings and policies are
                dropped evenly over the training, never the first, the newest, or the best.

        Raises:
            ValueError: it is no directory, cannot be written or holds another training, finished
                or running; or `max_bytes` is not positive.
        """
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self._path = epath.Path(path).expanduser()
        self._info = info
        try:
            self._store = Store(self._path, info, max_bytes)
        except Exception as error:  # of the disk, or of any package that reaches another store
            raise ValueError(
                f"{self._path} cannot be the run directory: {_reason(error)}. Give another one, or "
                "delete it"
            ) from error
        self._waiting = RecentEpisodes(MEMORY_BYTES)
        self._policies: dict[int, Mapping[str, np.ndarray]] = {}  # not written yet
        self._curves: Mapping[str, np.ndarray] = {}
        self._curves_waiting = False
        self._changed = threading.Condition()  # guards what follows and what waits
        self._closing = False
        self._problem: str | None = None
        self._lost = 0  # recordings that were dropped before they were on disk
        self._version = 0
        self._thread = threading.Thread(target=self._work, name="brax_viser run", daemon=True)
        self._thread.start()

    @property
    def path(self) -> str:
        """The directory."""
        return os.fspath(self._path)

    @property
    def info(self) -> RunInfo:
        """The training."""
        return self._info

    @property
    def problem(self) -> str | None:
        """Why something is not on disk, in words for users; None if all is well."""
        return self._problem

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does."""
        return self._version

    def add(self, episodes: Sequence[Episode]) -> None:
        """Keeps the episodes of one recording. Their arrays must not change afterwards."""
        with self._changed:
            if self._closing or not episodes:
                return
            dropped = {summary.recording for summary in self._waiting.add(episodes)}
            self._lost += len(dropped)
            self._version += 1
            self._changed.notify_all()
        if dropped:
            self._report(
                f"The disk of {self.path} is too slow, or cannot be written: {self._lost} recordings "
                "were dropped. The training goes on"
            )

    def add_policy(self, num_steps: int, params: Mapping[str, np.ndarray]) -> None:
        """Keeps a policy.

        Args:
            num_steps: env steps trained, over all environments.
            params: its parameters by their paths in the pytree, such as "1/params/hidden_0/bias".
                They must not change afterwards.
        """
        with self._changed:
            if self._closing:
                return
            self._policies = dict(sorted({**self._policies, num_steps: params}.items()))
            sizes = [sum(x.nbytes for x in kept.values()) for kept in self._policies.values()]
            for gone in surplus(list(self._policies), sizes, MEMORY_BYTES):
                del self._policies[gone]
            self._changed.notify_all()

    def set_curves(self, curves: Mapping[str, np.ndarray]) -> None:
        """Keeps the curves, in place of those given before.

        Args:
            curves: by name, float64 [3, P]: env steps trained, s of training, values. They must not
                change afterwards.
        """
        with self._changed:
            if self._closing:
                return
            self._curves, self._curves_waiting = dict(curves), True
            self._changed.notify_all()

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of all episodes, in memory or on disk, ordered by `key`."""
        written = {summary.key: summary for summary, _ in self._store.episodes.values()}
        waiting = {summary.key: summary for summary in self._waiting.summaries()}
        return tuple(summary for _, summary in sorted({**written, **waiting}.items()))

    def get(self, key: str) -> Episode:
        """Returns an episode; reads it from the disk if it is not in memory any more.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged, or cannot be read.
        """
        try:
            return self._waiting.get(key)
        except KeyError:
            data = _read(self._store.read_episode, key)
        return layout.unpack_episode(data)

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps trained of all kept policies, ascending."""
        return tuple(sorted({*self._policies, *self._store.policies}))

    def policy(self, num_steps: int) -> dict[str, np.ndarray]:
        """Returns the parameters of a policy, by their paths in the pytree.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged, or cannot be read.
        """
        waiting = self._policies.get(num_steps)
        if waiting is not None:
            return dict(waiting)
        return files.unpack(_read(self._store.read_policy, num_steps))

    def curves(self) -> dict[str, np.ndarray]:
        """Returns the curves: by name, float64 [3, P], as `set_curves` describes them."""
        return dict(self._curves)

    def close(self, timeout: float = 10.0) -> bool:
        """Writes what waits, and ends the thread. What was kept can still be read; nothing more is
        added. Idempotent.

        Args:
            timeout: s to wait for the disk.

        Returns:
            Whether everything is on disk.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._has_work()

    def _has_work(self) -> bool:
        return bool(self._waiting.summaries() or self._policies or self._curves_waiting)

    def _work(self) -> None:
        """Writes what waits until `close`; runs on the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work() or self._closing)
                if not self._has_work():
                    return
            try:
                if self._store.prepare():
                    log.warning("%s had vanished: it was created again.", self.path)
                    self._curves_waiting = bool(self._curves)
                self._write_next()
            except Exception as error:  # of the disk, or of any package that reaches another store
                self._report(
                    f"{self.path} cannot be written: {_reason(error)}. The training goes on; what "
                    f"there is to keep waits in memory, and writing is tried again every "
                    f"{RETRY_SECONDS:g} s"
                )
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            else:
                self._problem = None

    def _write_next(self) -> None:
        """Writes one thing that waits: the oldest recording, a policy, or the curves."""
        ...
