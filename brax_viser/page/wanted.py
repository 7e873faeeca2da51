"""Reads episodes before they are shown, and keeps those that have been read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from brax_viser.records.episode import Episode, Episodes


@dataclass(frozen=True, eq=False)
class Read:
    """The episodes of one recording that could be read."""

    keys: tuple[str, ...]  # that were to be read
    episodes: tuple[Episode, ...]
    complaint: str | None  # why some could not
    endings: Mapping[str, str]  # by key, see `Ending`


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
    endings = {e.summary.key: ending(e) for e in found if e.summary.ended == "terminated"}
    return Read(keys, tuple(found), complaint, endings)


Ending = Callable[[Episode], str]
"""Says why an episode was terminated, and what touched what at its end, as far as it is known."""

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
        """Shows an episode that is kept nowhere."""
        self.keys = (f"trial {episode.summary.key}",)
        self.read = Read(self.keys, (episode,), None, {})

    def clear(self) -> None:
        """Wants nothing any more."""
        self.keys, self.read = (), NOTHING

    def _use(self, found: Read) -> None:
        if found.keys == self.keys:
            self.read = found
            self._used()
