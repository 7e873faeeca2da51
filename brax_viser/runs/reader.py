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
"""Shortest time between two checks for new episodes, on this machine and in other stores."""


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
        self._policies: tuple[int, ...] = ()
        self._holds: tuple[int, ...] = ()
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
                self._keep(self._kept)
            raise

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps that each kept policy was trained for, ascending."""
        self._look()
        return self._policies

    @property
    def known_policies(self) -> tuple[int, ...]:
        """What `policies` has found last: the page's loop does not wait for a disk."""
        return self._policies

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

    def holds(self) -> tuple[int, ...]:
        """Returns the env steps trained at which the training was held, ascending; none where the
        list is missing, or an older release wrote it."""
        self._look()
        return self._holds

    def _look(self) -> None:
        """Looks for new episodes, if it is time to."""
        with self._lock:
            now = time.monotonic()
            if now < self._looked + self._wait:
                return
            self._looked = now
            try:
                self._read_index()
            except Exception as error:  # of any store; what is known stays
                self._warn(self._path, f"{self._path} cannot be read: {error}")

    def _read_index(self) -> None:
        """Adopts what the index lists or, without a sound index, what is in the directory."""
        path = self._path / layout.INDEX
        try:
            index = path.read_bytes()
            if index == self._index:
                return
            listed = layout.parse_index(index)
        except (FileNotFoundError, ValueError) as error:
            self._index = None
            self._warn(
                path, f"{path} is missing or damaged, the episodes are read instead: {error}"
            )
            self._collect()
            return
        self._index, self._policies = index, tuple(listed.policies)
        self._holds = listed.holds
        # Other stores than the local one may remember old lists of what a folder has.
        sizes = _sizes_in(self._path / layout.EPISODES) if files.is_local(self._path) else None
        kept = {}
        for key, (summary, size) in listed.episodes.items():
            path = self._path / layout.episode_file(key)
            there = size if sizes is None else sizes.get(path.name)
            if there == size:
                kept[key] = summary
            elif there is not None:  # else it was dropped meanwhile
                self._skip(key, f"{path} is damaged: {there:,} B, not {size:,} B")
        self._keep(kept)

    def _collect(self) -> None:
        """Adopts the policies and the episodes that are in the directory."""
        policies = (path.stem for path in _npz_in(self._path / layout.POLICIES))
        self._policies = tuple(sorted(int(name) for name in policies if name.isdecimal()))
        kept = {}
        for key in sorted(path.stem for path in _npz_in(self._path / layout.EPISODES)):
            try:
                if key not in self._found and key not in self._damaged:
                    path = self._path / layout.episode_file(key)
                    self._found[key] = layout.read_episode(path, key).summary
            except KeyError:  # dropped meanwhile
                continue
            except ValueError as error:
                self._skip(key, str(error))
            if key in self._found:
                kept[key] = self._found[key]
        self._keep(kept)

    def _keep(self, kept: Mapping[str, Summary]) -> None:
        sound = {key: summary for key, summary in kept.items() if key not in self._damaged}
        if sound.keys() != self._kept.keys():
            self._kept = sound
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
        ValueError: it is not a run directory, its model is missing or of another version of MuJoCo,
            or it was written by a newer brax_viser. The message says what to do.
    """
    folder = files.path_of(path)
    try:
        record = layout.parse_run(files.read(folder / layout.RUN, layout.RUN))
    except KeyError:
        raise ValueError(
            f"{folder} is not a run directory: it has no {layout.RUN}{_runs_below(folder)}"
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
