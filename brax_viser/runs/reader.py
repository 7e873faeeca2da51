"""Opens the run directory of a finished or a running training, to look into it."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping

import numpy as np
from etils import epath

from brax_viser.records.episode import Episode, RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.files import Damaged

log = logging.getLogger("brax_viser")

LOOK_SECONDS, LOOK_SECONDS_REMOTE = 0.5, 5.0
"""Least time between two looks for new episodes, on this machine and in other stores."""


class SavedRun:
    """A training in its run directory: an `Episodes`. Nothing is written. Thread-safe.

    A running training adds episodes: `version` and `summaries` look for them now and then, which
    takes a millisecond where the directory is on this machine.
    """

    def __init__(self, path: epath.Path, info: RunInfo) -> None:
        """
        Args:
            path: the run directory.
            info: the training.
        """
        self._path, self._info = path, info
        self._wait = LOOK_SECONDS if files.is_local(path) else LOOK_SECONDS_REMOTE
        self._lock = threading.Lock()
        self._index: bytes | None = None  # as it was read last
        self._kept: Mapping[str, Summary] = {}
        self._found: dict[str, Summary] = {}  # read from the episodes' own files
        self._damaged: set[str] = set()
        self._warned: set[epath.Path] = set()
        self._looked = -np.inf
        self._version = 0
        self._look()

    @property
    def path(self) -> str:
        """The directory."""
        return os.fspath(self._path)

    @property
    def info(self) -> RunInfo:
        """The training."""
        return self._info

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does. Looks for new episodes at most twice a second."""
        self._look()
        return self._version

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of all episodes, ordered by `key`; without those found damaged."""
        self._look()
        return tuple(self._kept.values())

    def get(self, key: str) -> Episode:
        """Reads an episode.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged; it is not among the summaries any more.
        """
        try:
            return layout.read_episode(self._path / layout.episode_file(key), key)
        except Damaged as error:
            with self._lock:
                self._skip(key, str(error))
                self._keep({k: summary for k, summary in self._kept.items() if k != key})
            raise

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps trained of all kept policies, ascending."""
        names = (path.stem for path in _npz_in(self._path / layout.POLICIES))
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def policy(self, num_steps: int) -> dict[str, np.ndarray]:
        """Reads the parameters of a policy, by their paths in the pytree, such as
        "1/params/hidden_0/bias".

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged.
        """
        path = self._path / layout.policy_file(num_steps)
        return files.read_arrays(path, num_steps)

    def curves(self) -> dict[str, np.ndarray]:
        """Reads the curves: by name, float64 [3, P]: env steps trained, s of training, values.
        Empty if there are none, or if their file is damaged."""
        path = self._path / layout.CURVES
        try:
            return files.read_arrays(path, layout.CURVES)
        except KeyError:
            return {}
        except ValueError as error:
            with self._lock:
                self._warn(path, str(error))
            return {}

    def _look(self) -> None:
        """Looks for new episodes, if it is time to."""
        with self._lock:
            now = time.monotonic()
            if now < self._looked + self._wait:
                return
            self._looked = now
            try:
                kept = self._listed()
            except Exception as error:  # of any store; what is known stays
                self._warn(self._path, f"{self._path} cannot be read: {error}")
            else:
                self._keep({key: s for key, s in kept.items() if key not in self._damaged})

    def _listed(self) -> Mapping[str, Summary]:
        """Returns the summaries that the index lists; without a sound one, those in the episodes'
        own files."""
        path = self._path / layout.EPISODES / layout.INDEX
        try:
            index = path.read_bytes()
        except FileNotFoundError:
            return self._collected()
        if index == self._index:
            return self._kept
        self._index = index
        try:
            listed = layout.parse_index(index)
        except ValueError as error:
            self._index = None
            self._warn(path, f"{path} is damaged, and made again from the episodes: {error}")
            return self._collected()
        sizes = _sizes_in(self._path / layout.EPISODES) if files.is_local(self._path) else {}
        for key, (_, size) in listed.items():
            path = self._path / layout.episode_file(key)
            if sizes.get(path.name, size) != size:
                self._skip(key, f"{path} is damaged: {sizes[path.name]:,} B, not {size:,} B")
        gone = {key for key in listed if sizes and f"{key}.npz" not in sizes}
        return {key: summary for key, (summary, _) in listed.items() if key not in gone}

    def _collected(self) -> Mapping[str, Summary]:
        """Reads the summaries of the episodes that are there."""
        there = sorted(path.stem for path in _npz_in(self._path / layout.EPISODES))
        for key in there:
            if key in self._found or key in self._damaged:
                continue
            try:
                episode = layout.read_episode(self._path / layout.episode_file(key), key)
                self._found[key] = episode.summary
            except KeyError:  # dropped meanwhile
                continue
            except ValueError as error:
                self._skip(key, str(error))
        return {key: self._found[key] for key in there if key in self._found}

    def _keep(self, kept: Mapping[str, Summary]) -> None:
        if kept.keys() != self._kept.keys():
            self._kept = kept
            self._version += 1

    def _skip(self, key: str, why: str) -> None:
        self._damaged.add(key)
        self._warn(self._path / layout.episode_file(key), f"{why}. It is left out")

    def _warn(self, path: epath.Path, text: str) -> None:
        """Logs a warning, once for each file."""
        if path not in self._warned:
            self._warned.add(path)
            log.warning(text)


def open_run(path: str | os.PathLike[str]) -> SavedRun:
    """Opens a run directory.

    Args:
        path: as for `RunFolder`.

    Raises:
        ValueError: it is no run directory, its model is missing or of another version of MuJoCo, or
            it was written by a newer brax_viser. The message says what to do.
    """
    folder = files.path_of(path)
    try:
        record = layout.parse_run(files.read(folder / layout.RUN, layout.RUN))
    except KeyError:
        raise ValueError(
            f"{folder} is no run directory: it has no {layout.RUN}{_runs_below(folder)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder} cannot be opened: {error}") from error
    try:
        model = layout.load_model(files.read(folder / layout.MODEL, layout.MODEL), record)
    except KeyError:
        raise ValueError(
            f"{folder} cannot be opened: it has no {layout.MODEL}. Its training has just begun, or "
            "was stopped while it began"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder} cannot be opened: {error}") from error
    return SavedRun(folder, layout.run_info(record, model))


def _runs_below(folder: epath.Path) -> str:
    """Returns in words which run directory a folder contains, the newest by name."""
    try:
        runs = [path for path in folder.iterdir() if (path / layout.RUN).exists()]
    except OSError:  # no folder either
        return ""
    return f". Did you mean {max(runs, key=os.fspath)}?" if runs else ""


def _npz_in(folder: epath.Path) -> list[epath.Path]:
    """Returns the arrays' files in a folder; none if there is no such folder."""
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in paths if path.suffix == ".npz" and not path.name.startswith(".")]


def _sizes_in(folder: epath.Path) -> dict[str, int]:
    """Returns the bytes of the files in a local folder, by name."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                sizes[entry.name] = entry.stat().st_size
    return sizes
