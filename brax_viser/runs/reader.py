"""Opens the run directory of a finished or a running training, to look into it."""

import os

import numpy as np

from brax_viser.records.episode import Episode, RunInfo, Summary


class SavedRun:
    """A training in its run directory: an `Episodes`. Nothing is written. Thread-safe.

    A running training adds episodes: `version` and `summaries` look for them now and then.
    """

    @property
    def path(self) -> str:
        """The directory."""

    @property
    def info(self) -> RunInfo:
        """The training."""

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does. Looks for new episodes at most twice a second."""

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of all episodes, ordered by `key`; without those found damaged."""

    def get(self, key: str) -> Episode:
        """Reads an episode.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged; it is not among the summaries any more.
        """

    def policies(self) -> tuple[int, ...]:
        """Returns the env steps trained of all kept policies, ascending."""

    def policy(self, num_steps: int) -> dict[str, np.ndarray]:
        """Reads the parameters of a policy, by their paths in the pytree ("1/params/hidden_0/bias").

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged.
        """

    def curves(self) -> dict[str, np.ndarray]:
        """Reads the curves: by name, float64 [3, P]: env steps trained, s of training, values.
        Empty if there are none, or if their file is damaged."""


def open_run(path: str | os.PathLike[str]) -> SavedRun:
    """Opens a run directory.

    Args:
        path: as for `RunFolder`.

    Raises:
        ValueError: it is no run directory, its model is missing or of another version of MuJoCo, or
            it was written by a newer brax_viser. The message says what to do.
    """
