"""Keeps the episodes of a training in memory, within a fixed size."""

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from brax_viser.records.episode import Episode, Summary
from brax_viser.runs.thinning import acting_at, surplus, surplus_recordings

MEMORY_BYTES = 200_000_000
"""Bytes that the episodes of a training without a run directory may have."""

POLICY_BYTES = 100_000_000
"""Bytes that its policies may have."""


class RecentEpisodes:
    """Episodes of one training in memory: an `Episodes`. Thread-safe.

    Above its bytes, whole recordings are dropped evenly over the training, never the first, the
    newest, or the one with the highest return.
    """

    def __init__(self, max_bytes: int = MEMORY_BYTES) -> None:
        """
        Args:
            max_bytes: bytes that the arrays of all episodes may have together.

        Raises:
            ValueError: `max_bytes` is not positive.
        """
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, got {max_bytes}")
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._episodes: dict[str, tuple[Episode, int]] = {}  # with its bytes, by key
        self._summaries: tuple[Summary, ...] = ()
        self._version = 0

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does."""
        return self._version

    def add(self, episodes: Sequence[Episode]) -> tuple[Summary, ...]:
        """Keeps the episodes of one recording. Their arrays must not change afterwards.

        Returns:
            The summaries of episodes that were dropped to make room for them.
        """
        if not episodes:
            return ()
        with self._lock:
            for episode in episodes:
                self._episodes[episode.summary.key] = episode, size_of(episode)
            summaries = [episode.summary for episode, _ in self._episodes.values()]
            sizes = {key: size for key, (_, size) in self._episodes.items()}
            gone = surplus_recordings(summaries, sizes, self._max_bytes)
            return self._drop({s.key for s in summaries if s.recording in gone})

    def discard(self, episodes: Iterable[Episode]) -> None:
        """Drops episodes, where they are still kept."""
        with self._lock:
            self._drop({episode.summary.key for episode in episodes})

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those of the kept episodes, ordered by `key`."""
        return self._summaries

    def get(self, key: str) -> Episode:
        """Returns an episode.

        Raises:
            KeyError: it is not kept, or not any more.
        """
        return self._episodes[key][0]

    def oldest(self) -> tuple[Episode, ...]:
        """Returns the episodes of the earliest recording; none if there is none."""
        with self._lock:
            episodes = [episode for episode, _ in self._episodes.values()]
        first = min((episode.summary.recording for episode in episodes), default=None)
        return tuple(e for e in episodes if e.summary.recording == first)

    def _drop(self, keys: set[str]) -> tuple[Summary, ...]:
        every = sorted(self._episodes.items())
        self._episodes = {key: kept for key, kept in every if key not in keys}
        self._summaries = tuple(episode.summary for episode, _ in self._episodes.values())
        self._version += 1
        return tuple(episode.summary for key, (episode, _) in every if key in keys)


class RecentPolicies:
    """Policies of one training in memory. Thread-safe.

    Above their bytes they are dropped evenly over the training, never the first, the newest, or the
    best. A policy of fewer steps than the newest belongs to another training: those before it are
    dropped.
    """

    def __init__(self, max_bytes: int = POLICY_BYTES) -> None:
        """
        Args:
            max_bytes: bytes that the parameters of all policies may have together.
        """
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._policies: dict[int, Mapping[str, np.ndarray]] = {}  # by steps, ascending

    def add(
        self, num_steps: int, params: Mapping[str, np.ndarray], best: int | None = None
    ) -> None:
        """Keeps a policy.

        Args:
            num_steps: env steps trained, over all environments.
            params: its parameters, by name. They must not change afterwards.
            best: env steps trained at the best evaluation so far; None if there is none.
        """
        with self._lock:
            if self._policies and num_steps < max(self._policies):
                self._policies = {}
            policies = {**self._policies, num_steps: params}
            sizes = [sum(np.asarray(x).nbytes for x in p.values()) for p in policies.values()]
            kept = () if best is None else {acting_at(best, list(policies))}
            gone = surplus(list(policies), sizes, self._max_bytes, kept)
            self._policies = {n: p for n, p in policies.items() if n not in gone}

    def steps(self) -> tuple[int, ...]:
        """Returns the env steps that each policy was trained for, ascending."""
        return tuple(self._policies)

    def get(self, num_steps: int) -> Mapping[str, np.ndarray]:
        """Returns the parameters of a policy.

        Raises:
            KeyError: it is not kept, or not any more.
        """
        return self._policies[num_steps]


def size_of(episode: Episode) -> int:
    """Returns the bytes of an episode's arrays."""
    own = (episode.qpos, episode.qvel, episode.link_pos, episode.link_rot)
    arrays = (*own, *episode.steps.values(), *episode.model.values())
    return sum(np.asarray(array).nbytes for array in arrays)
