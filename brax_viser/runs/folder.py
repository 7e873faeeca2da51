"""Keeps one training in its run directory, on a separate thread, and never fails its caller."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.memory import MEMORY_BYTES, RecentEpisodes
from brax_viser.runs.store import Store
from brax_viser.runs.thinning import acting_at, surplus

log = logging.getLogger("brax_viser")

DISK_BYTES = 1_000_000_000
"""Bytes that a run directory may take."""

RETRY_SECONDS = 5.0
"""s after a failure until writing is tried again."""


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
                dropped evenly over the training, never the first, the newest, or the best, even
                if these alone do not fit.

        Raises:
            ValueError: it is not a directory, cannot be written or holds another training, finished
                or running; or `max_bytes` is not positive.
        """
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self._path = files.path_of(path)
        self._info = info
        try:
            self._store = Store(self._path, info, max_bytes)
        except Exception as error:  # of the disk, or of any package that reaches another store
            raise ValueError(
                f"{self._path} cannot be the run directory: {_reason(error)}. Choose another one"
            ) from error
        self._waiting = RecentEpisodes(MEMORY_BYTES)  # not on disk yet
        self._policies: dict[int, Mapping[str, np.ndarray]] = {}  # likewise
        self._best: int | None = None  # env steps trained at the best evaluation
        self._curves = self._written_curves = {}
        self._holds: tuple[int, ...] = ()
        self._changed = threading.Condition()
        self._closing = False
        self._failure: str | None = None  # why nothing can be written now
        self._loss: str | None = None  # what was dropped before it was on disk, and why
        self._lost = 0  # recordings
        self._warned: set[str] = set()
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
        return self._failure or self._loss

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
            self._version += 1
            self._changed.notify_all()
        if dropped:
            self._lost += len(dropped)
            self._loss = (
                f"{self.path} could not be written in time: {self._lost} recordings were dropped"
            )
            self._warn(self._loss, "dropped")

    def add_policy(
        self, num_steps: int, params: Mapping[str, np.ndarray], best: int | None = None
    ) -> None:
        """Keeps a policy.

        Args:
            num_steps: env steps trained, over all environments.
            params: its parameters by their paths in the pytree, such as "1/params/hidden_0/bias".
                They must not change afterwards.
            best: env steps trained at the best evaluation so far, whose policy is not dropped; None
                if there is none.
        """
        with self._changed:
            if self._closing:
                return
            self._best = best
            waiting = dict(sorted({**self._policies, num_steps: params}.items()))
            sizes = [sum(map(_bytes_of, policy.values())) for policy in waiting.values()]
            kept = () if best is None else {acting_at(best, list(waiting))}
            gone = surplus(list(waiting), sizes, MEMORY_BYTES, kept)
            self._policies = {n: policy for n, policy in waiting.items() if n not in gone}
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
            self._curves = dict(curves)
            self._changed.notify_all()

    def set_holds(self, holds: Iterable[int]) -> None:
        """Keeps the env steps at which the training was held, in place of those given before."""
        with self._changed:
            if not self._closing:
                self._holds = tuple(sorted(holds))
                self._changed.notify_all()

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of all episodes, in memory or on disk, ordered by `key`."""
        # In this order, as the thread adds to the second before it takes from the first.
        waiting = {summary.key: summary for summary in self._waiting.summaries()}
        written = {summary.key: summary for summary, _ in self._store.contents.episodes.values()}
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
            path = self._path / layout.episode_file(key)
        return layout.read_episode(path, key)

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps that each kept policy was trained for, ascending."""
        return tuple(sorted({*self._policies, *self._store.contents.policies}))

    def policy(self, num_steps: int) -> dict[str, np.ndarray]:
        """Returns the parameters of a policy, by their paths in the pytree.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged, or cannot be read.
        """
        waiting = self._policies.get(num_steps)
        if waiting is not None:
            return dict(waiting)
        path = self._path / layout.policy_file(num_steps)
        return files.read_arrays(path, num_steps)

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
        waiting = self._waiting.summaries() or self._policies or not self._store.has_model
        held = self._holds != self._store.contents.holds
        return bool(waiting) or held or self._curves is not self._written_curves

    def _work(self) -> None:
        """Writes what waits until `close`; runs on the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._has_work() or self._closing)
                if not self._has_work():
                    return
            try:
                self._write()
            except Exception as error:  # of the disk, or of any package that reaches another store
                self._failure = (
                    f"{self.path} cannot be written: {_reason(error)}. What was recorded waits "
                    f"in memory; writing is tried again every {RETRY_SECONDS:g} s"
                )
                self._warn(self._failure, _reason(error))
                with self._changed:
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            else:
                self._failure = None

    def _write(self) -> None:
        """Writes the model, the oldest recording, a policy, curves and holds, as far as they
        wait."""
        if self._store.prepare():
            self._version += 1
            self._written_curves = {}
            self._warn(f"{self.path} had vanished; it was created again", "vanished")
        with self._changed:
            episodes, curves = self._waiting.oldest(), self._curves
            num_steps, params = next(iter(self._policies.items()), (0, None))
        if episodes:
            packed = self._packed(lambda: {e.summary.key: _packed(e) for e in episodes})
            if packed:
                self._store.add_episodes(packed)
            with self._changed:
                self._waiting.discard(episodes)
                self._version += 1
        if params is not None:
            if data := self._packed(lambda: files.pack(params)):
                self._store.add_policy(num_steps, data, self._best)
            with self._changed:
                if self._policies.get(num_steps) is params:
                    self._policies = {n: p for n, p in self._policies.items() if n != num_steps}
        if curves is not self._written_curves:
            if data := self._packed(lambda: files.pack(curves)):
                self._store.write_curves(data)
            self._written_curves = curves
        if (holds := self._holds) != self._store.contents.holds:
            self._store.write_holds(holds)

    def _packed(self, pack: Callable[[], Any]) -> Any:
        """Returns the result of `pack`; None if it fails, as trying again would not help."""
        try:
            return pack()
        except Exception as error:
            self._loss = f"Something could not be kept in {self.path}: {_reason(error)}"
            self._warn(self._loss, _reason(error))
            return None

    def _warn(self, text: str, reason: str) -> None:
        """Logs a warning, once for each reason."""
        if reason not in self._warned:
            self._warned.add(reason)
            log.warning("%s. The training goes on.", text)


def _packed(episode: Episode) -> tuple[Summary, bytes]:
    return episode.summary, layout.pack_episode(episode)


def _bytes_of(array: object) -> int:
    return np.asarray(array).nbytes


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "it is not a directory"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
