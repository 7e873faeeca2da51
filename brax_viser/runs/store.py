"""Writes the files of one training's run directory. Each call waits for the disk, and may raise."""

import copy
import json
from collections.abc import Iterable, Mapping
from datetime import datetime

from etils import epath

from brax_viser.records.episode import RunInfo, Summary
from brax_viser.runs import files, layout
from brax_viser.runs.layout import Contents
from brax_viser.runs.thinning import acting_at, best_recording, surplus, surplus_recordings

POLICIES_SHARE = 0.2
"""Share of the directory's bytes that policies may have."""


class Store:
    """The run directory of one training, as its one writer sees it. Only one thread writes; what it
    contains can be read by any."""

    contents: Contents  # on disk

    def __init__(self, path: epath.Path, info: RunInfo, max_bytes: int) -> None:
        """Creates the directory, or takes one that has no training in it.

        Args:
            path: the directory.
            info: the training. Its model may change afterwards.
            max_bytes: bytes that all files may have together.

        Raises:
            ValueError: the directory holds another training.
            OSError: it cannot be written.
        """
        self._path, self._max_bytes = path, max_bytes
        self._holds: tuple[int, ...] = ()
        self._model = copy.copy(info.mj_model)
        self._model_bytes = layout.model_bytes(self._model)
        self._record = json.dumps(layout.run_record(info, self._model_bytes), indent=1).encode()
        self._claim()

    @property
    def has_model(self) -> bool:
        """Whether the model is on disk."""
        return self._model_size > 0

    def prepare(self) -> bool:
        """Ensures that the directory is there, has the model, and belongs to this training.

        Returns:
            Whether it had vanished, with all that was in it, and was created again.

        Raises:
            ValueError: it belongs to another training by now.
            OSError: it cannot be written.
        """
        try:
            found = (self._path / layout.RUN).read_bytes()
        except FileNotFoundError:
            self._claim()
            vanished = True
        else:
            if found != self._record:
                raise ValueError(f"it holds another training by now: {describe(found)}")
            vanished = False
        for folder in (layout.EPISODES, layout.POLICIES):
            (self._path / folder).mkdir(exist_ok=True)
        if not self.has_model:
            self._list({}, {})  # before the model: any directory that can be opened has a list
            arrays = files.pack(layout.model_arrays(self._model))
            files.write(self._path / layout.MODEL_ARRAYS, arrays)
            files.write(self._path / layout.MODEL, self._model_bytes)
            self._model_size = len(self._model_bytes) + len(arrays)
        return vanished

    def add_episodes(self, packed: Mapping[str, tuple[Summary, bytes]]) -> None:
        """Writes the episodes of one recording, by key, and drops others to make room for them."""
        coming = {key: (summary, len(data)) for key, (summary, data) in packed.items()}
        self._make_room(coming)
        for key, (_, data) in packed.items():
            files.write(self._path / layout.episode_file(key), data)
        self._list({**self.contents.episodes, **coming}, self.contents.policies)

    def add_policy(self, num_steps: int, data: bytes, best: int | None = None) -> None:
        """Writes a policy, and drops others to make room for it; never the first, the newest, or
        those that act in the best recording and at the best evaluation.

        Args:
            num_steps: env steps trained.
            data: the file.
            best: env steps trained at the best evaluation so far; None if there is none.
        """
        episodes, policies = self.contents.episodes, self.contents.policies
        sizes = dict(sorted({**policies, num_steps: len(data)}.items()))
        recording = best_recording(summary for summary, _ in episodes.values())
        acting = {acting_at(at, list(sizes)) for at in (recording, best) if at is not None}
        kept = {*acting, num_steps, max(policies, default=num_steps)}
        room = int(POLICIES_SHARE * self._max_bytes)
        gone = surplus(list(sizes), list(sizes.values()), room, kept)
        if gone:  # from the list first, so that a reader finds what is listed
            self._list(episodes, {n: size for n, size in policies.items() if n not in gone})
            for n in gone:
                (self._path / layout.policy_file(n)).unlink(missing_ok=True)
        files.write(self._path / layout.policy_file(num_steps), data)
        self._list(episodes, {**self.contents.policies, num_steps: len(data)})

    def write_curves(self, data: bytes) -> None:
        """Writes the curves, in place of older ones."""
        self._curves_size = len(data)
        self._make_room({})
        files.write(self._path / layout.CURVES, data)

    def write_holds(self, holds: Iterable[int]) -> None:
        """Writes at which env steps the training was held, in place of older ones."""
        self._holds = tuple(holds)
        self._list(self.contents.episodes, self.contents.policies)

    def _claim(self) -> None:
        run = self._path / layout.RUN
        self._path.mkdir(parents=True, exist_ok=True)
        if not run.exists():
            for folder in (self._path / layout.EPISODES, self._path / layout.POLICIES):
                if folder.is_dir() and any(p.suffix == ".npz" for p in folder.iterdir()):
                    raise ValueError(f"it has {folder.name}, but no {layout.RUN} to say of what")
        if not files.create(run, self._record):
            raise ValueError(f"it holds another training: {describe(run.read_bytes())}")
        for folder in (self._path, self._path / layout.EPISODES, self._path / layout.POLICIES):
            files.remove_unfinished(folder)
        self._model_size = self._curves_size = 0
        self.contents = Contents({}, {})

    def _make_room(self, coming: Mapping[str, tuple[Summary, int]]) -> None:
        """Drops recordings until those that stay, and the coming episodes, fit. The newest one on
        disk stays, too, as the coming one may never be written."""
        episodes = self.contents.episodes
        every = {**episodes, **coming}
        others = len(self._record) + self._model_size + self._curves_size
        others += layout.INDEX_BYTES * len(every) + int(POLICIES_SHARE * self._max_bytes)
        sizes = {key: size for key, (_, size) in every.items()}
        summaries = [summary for summary, _ in every.values()]
        newest = max((summary.recording for summary, _ in episodes.values()), default=None)
        gone = surplus_recordings(summaries, sizes, self._max_bytes - others, {newest})
        left = {key: x for key, x in episodes.items() if x[0].recording not in gone}
        if len(left) < len(episodes):  # from the list first, as above
            self._list(left, self.contents.policies)
            for key in episodes.keys() - left.keys():
                (self._path / layout.episode_file(key)).unlink(missing_ok=True)

    def _list(
        self, episodes: Mapping[str, tuple[Summary, int]], policies: Mapping[int, int]
    ) -> None:
        contents = Contents.of(episodes, policies, self._holds)
        files.write(self._path / layout.INDEX, layout.pack_index(contents))
        self.contents = contents


def describe(run: bytes) -> str:
    """Returns in words which training a run.json is of."""
    try:
        record = layout.parse_run(run)
        began = datetime.fromtimestamp(record["started"])
    except (ValueError, TypeError, OverflowError, OSError) as error:
        return str(error)
    trainer = f" with {record['trainer']}" if record["trainer"] else ""
    return f"{record['env']} ({record['backend']}){trainer}, begun {began:%Y-%m-%d %H:%M:%S}"
