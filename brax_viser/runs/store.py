"""Writes the files of one training's run directory; every call waits for the disk, and may raise."""

import contextlib
import copy
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from etils import epath

from brax_viser.records.episode import RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.thinning import best_recording, surplus, surplus_recordings

POLICIES_SHARE = 0.25
"""Share of the directory's bytes that policies may have. Episodes have the rest."""


class Store:
    """The run directory of one training, as its one writer sees it. For one thread at a time."""

    def __init__(self, path: epath.Path, info: RunInfo, max_bytes: int) -> None:
        """Creates the directory, or takes an empty one.

        Args:
            path: the directory.
            info: the training. Its model may change afterwards.
            max_bytes: bytes that all files may have together.

        Raises:
            ValueError: the directory holds another training.
            OSError: it cannot be written.
        """
        self._path, self._max_bytes = path, max_bytes
        self._model = copy.copy(info.mj_model)
        self._model_bytes = layout.model_bytes(self._model)
        self._record = json.dumps(layout.run_record(info, self._model_bytes), indent=1).encode()
        self.episodes: dict[str, tuple[Summary, int]] = {}  # on disk: summary and bytes, by key
        self.policies: dict[int, int] = {}  # on disk: bytes, by env steps trained
        self._model_written = False
        self._others = len(self._record)  # bytes of all other files
        self._curves = 0  # bytes
        self._claim()

    def prepare(self) -> bool:
        """Ensures that the directory is there and belongs to this training, and has its model.

        Returns:
            Whether it had to be created again, and has lost what was in it.

        Raises:
            ValueError: it belongs to another training by now.
            OSError: it cannot be written.
        """
        lost = False
        try:
            found = (self._path / layout.RUN).read_bytes()
        except FileNotFoundError:
            self._claim()
            lost = True
        else:
            if found != self._record:
                raise ValueError(f"it holds another training by now: {describe(found)}")
        if not self._model_written:
            self._write_model()
        return lost

    def add_episodes(self, packed: Mapping[str, tuple[Summary, bytes]]) -> None:
        """Writes the episodes of one recording, by key, and drops others to make room."""
        with_new = {**self.episodes, **{k: (s, len(data)) for k, (s, data) in packed.items()}}
        sizes = {key: size for key, (_, size) in with_new.items()}
        room = self._max_bytes - self._others - self._curves - sum(self.policies.values())
        gone = surplus_recordings([s for s, _ in with_new.values()], sizes, room)
        dropped = [key for key, (s, _) in self.episodes.items() if s.recording in gone]
        if dropped:
            left = {key: kept for key, kept in self.episodes.items() if key not in dropped}
            self._write_index(left)
            for key in dropped:
                self._episode(key).unlink(missing_ok=True)
        (self._path / layout.EPISODES).mkdir(parents=True, exist_ok=True)
        for key, (_, data) in packed.items():
            files.write(self._episode(key), data)
        left = {**self.episodes, **{k: kept for k, kept in with_new.items() if k in packed}}
        self._write_index(dict(sorted(left.items())))

    def add_policy(self, num_steps: int, data: bytes) -> None:
        """Writes a policy, and drops others to make room; never the first, the newest, or the one
        that the best recording shows."""
        with_new = dict(sorted({**self.policies, num_steps: len(data)}.items()))
        room = int(POLICIES_SHARE * self._max_bytes)
        best = best_recording([summary for summary, _ in self.episodes.values()])
        shown = max((n for n in with_new if best is not None and n <= best), default=None)
        kept = () if shown is None else (shown,)
        for gone in surplus(list(with_new), list(with_new.values()), room, kept):
            self._policy(gone).unlink(missing_ok=True)
            self.policies.pop(gone, None)
        (self._path / layout.POLICIES).mkdir(parents=True, exist_ok=True)
        files.write(self._policy(num_steps), data)
        self.policies = dict(sorted({**self.policies, num_steps: len(data)}.items()))

    def write_curves(self, data: bytes) -> None:
        """Writes the curves, in place of older ones."""
        files.write(self._path / layout.CURVES, data)
        self._curves = len(data)

    def read_episode(self, key: str) -> bytes:
        """Returns the file of an episode. Raises FileNotFoundError if it is gone."""
        return self._episode(key).read_bytes()

    def read_policy(self, num_steps: int) -> bytes:
        """Returns the file of a policy. Raises FileNotFoundError if it is gone."""
        return self._policy(num_steps).read_bytes()

    def _claim(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        for name in (layout.EPISODES, layout.POLICIES):
            folder = self._path / name
            if not (self._path / layout.RUN).exists():
                files.remove_unfinished(folder)
                if folder.exists() and any(folder.iterdir()):
                    raise ValueError(
                        f"it has {name} but no {layout.RUN} that says of which training"
                    )
        if not files.create(self._path / layout.RUN, self._record):
            found = (self._path / layout.RUN).read_bytes()
            raise ValueError(f"it holds another training: {describe(found)}")
        files.remove_unfinished(self._path)
        self.episodes, self.policies = {}, {}
        self._model_written, self._curves = False, 0

    def _write_model(self) -> None:
        arrays = files.pack(layout.model_arrays(self._model))
        files.write(self._path / layout.MODEL, self._model_bytes)
        files.write(self._path / layout.MODEL_ARRAYS, arrays)
        self._others = len(self._record) + len(self._model_bytes) + len(arrays)
        self._model_written = True

    def _write_index(self, episodes: dict[str, tuple[Summary, int]]) -> None:
        (self._path / layout.EPISODES).mkdir(parents=True, exist_ok=True)
        files.write(
            self._path / layout.EPISODES / layout.INDEX, layout.pack_index(episodes.values())
        )
        self.episodes = episodes

    def _episode(self, key: str) -> epath.Path:
        return self._path / layout.EPISODES / f"{key}.npz"

    def _policy(self, num_steps: int) -> epath.Path:
        return self._path / layout.POLICIES / f"{num_steps:015d}.npz"


def describe(run: bytes) -> str:
    """Returns in words which training a run.json is of."""
    try:
        record: dict[str, Any] = layout.parse_run(run)
        began = datetime.fromtimestamp(record["started"])
    except (ValueError, TypeError, OverflowError, OSError) as error:
        return str(error)
    with_trainer = f" with {record['trainer']}" if record["trainer"] else ""
    return f"{record['env']} ({record['backend']}){with_trainer}, begun {began:%Y-%m-%d %H:%M:%S}"
