"""Writes episodes that are in memory into a run directory that lasts as long as it is used."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from brax_viser.records.episode import Episode, Episodes, RunInfo
from brax_viser.runs.folder import RunFolder


@contextlib.contextmanager
def copied(
    info: RunInfo, episodes: Sequence[Episode], curves: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yields the path of a run directory with these episodes, which is removed afterwards.

    Args:
        info: the training.
        episodes: of that training.
        curves: of the training, see `RunFolder.set_curves`.

    Raises:
        OSError, ValueError: it could not be written.
    """
    with tempfile.TemporaryDirectory(prefix="brax_viser-") as place:
        folder = RunFolder(Path(place) / "run", info)
        recording = lambda episode: episode.summary.recording  # noqa: E731
        for _, together in itertools.groupby(sorted(episodes, key=recording), recording):
            folder.add(list(together))
        folder.set_curves(curves)
        folder.close()
        yield folder.path


def gathered(kept: Episodes) -> list[Episode]:
    """Returns all episodes except those that are dropped meanwhile. Raises ValueError if a file is
    damaged."""
    found = []
    for summary in kept.summaries():
        with contextlib.suppress(KeyError):
            found.append(kept.get(summary.key))
    return found
