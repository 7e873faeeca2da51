"""Reads episodes before they are shown, and keeps those that have been read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brax_viser.records.episode import Episode, Episodes, Summary

MOST_ENDED = 30
"""Episodes in the list of how they ended."""


@dataclass(frozen=True, eq=False)
class Read:
    """The episodes of one recording that could be read."""

    keys: tuple[str, ...]  # that were requested
    episodes: tuple[Episode, ...]
    complaint: str | None  # why some could not be read
    endings: Mapping[str, str]  # by key, how it ended, if that is known


def read(episodes: Episodes, keys: tuple[str, ...], ending: "Ending") -> Read:
    """Reads episodes, as far as that is possible. Called on any thread."""
    found, complaint = [], None
    for key in keys:
        try:
            found.append(episodes.get(key))
        except KeyError:
            complaint = "An episode of this recording is not kept any more"
        except ValueError as error:
            complaint = f"An episode cannot be read: {error}"
    endings = {e.summary.key: ending(e) for e in found if e.summary.ended != "truncated"}
    return Read(keys, tuple(found), complaint, endings)


Ending = Callable[[Episode], str]
"""Says how an episode ended, such as why and what touched what; empty if it is not known."""

NOTHING = Read((), (), None, {})

Reader = Callable[[Callable[[], Any], Callable[[Any], object]], object]
"""Calls its first argument, possibly on another thread, and later its second one with the result,
on the thread of the `Replay`."""


class Wanted:
    """Some episodes wanted on screen, and those of them that have been read."""

    def __init__(
        self,
        read: Callable[[tuple[str, ...], Callable[[Read], object]], object],
        used: Callable[[], object] = lambda: None,
    ):
        """Wants nothing.

        Args:
            read: reads episodes, by their keys, and later calls its second argument with them.
            used: called when they are there.
        """
        self._read, self._used = read, used
        self.keys: tuple[str, ...] = ()
        self.read = NOTHING

    def want(self, keys: tuple[str, ...]) -> None:
        """Has these episodes read, unless they are there or there are none."""
        if keys and keys != self.keys:
            self.keys = keys
            self._read(keys, self._use)

    def give(self, episode: Episode) -> None:
        """Shows an episode that is not stored anywhere."""
        self.keys = (f"trial {episode.summary.key}",)
        self.read = Read(self.keys, (episode,), None, {})

    def clear(self) -> None:
        """Wants nothing any more."""
        self.keys, self.read = (), NOTHING

    def _use(self, found: Read) -> None:
        if found.keys == self.keys:
            self.read = found
            self._used()


class Endings:
    """How episodes ended, as far as that is known, and a list of the last ones, which are read
    one by one."""

    def __init__(self, read: Callable[[tuple[str, ...], Callable[[Read], object]], object]):
        """Knows nothing yet.

        Args:
            read: reads episodes, by their keys, and later calls its second argument with them.
        """
        self._read = read
        self._asked: str | None = None  # the one that is being read
        self.listed: tuple[Summary, ...] = ()  # see `ReplayView.ended`
        self.known: Mapping[str, str] = {}  # by key; empty where it cannot be told

    def update(self, kept: Sequence[Summary]) -> None:
        """Lists the last ones of those that are kept, in order, and forgets all others."""
        newest = sorted(kept[::-1], key=lambda s: (s.ended == "truncated", -s.num_steps))
        self.listed = tuple(newest[:MOST_ENDED])
        self.known = {s.key: self.known[s.key] for s in kept if s.key in self.known}

    def learn(self, found: Read) -> None:
        """Takes over what episodes tell that have been read."""
        self.known = {**self.known, **found.endings}

    def look_into(self) -> None:
        """Has the next episode read whose ending is not known, unless another one is being read.
        For those that ended at a time limit, there is nothing to read."""
        keys = (s.key for s in self.listed if s.ended != "truncated" and s.key not in self.known)
        if self._asked is None and (key := next(keys, None)) is not None:
            self._asked = key
            self._read((key,), self._use)

    def _use(self, found: Read) -> None:
        self.known = {**self.known, **dict.fromkeys(found.keys, ""), **found.endings}
        self._asked = None
