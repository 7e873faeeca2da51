"""Plays recorded episodes: which recording, where in it, and how fast. Pure logic over a clock."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brax_viser.page.episode_frames import ALMOST, view_of
from brax_viser.panel.limits import REPLAY_SPEED
from brax_viser.panel.view import ReplayView
from brax_viser.records.episode import KEPT_AS, Episode, Episodes, Summary
from brax_viser.records.view import View

LAST_SECONDS = 3.0
"""s of each episode that are played if only its end is."""

MOST_FALLS = 30
"""Falls in the list."""


@dataclass(frozen=True, eq=False)
class Read:
    """The episodes of one recording that could be read."""

    keys: tuple[str, ...]  # that were to be read
    episodes: tuple[Episode, ...]
    complaint: str | None  # why some could not
    endings: Mapping[str, str]  # by key, what touched what at the end, if that is known


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
"""Says what touched what at the end of an episode; empty if that is not known."""

NOTHING = Read((), (), None, {})

Reader = Callable[[Callable[[], Any], Callable[[Any], object]], object]
"""Calls its first argument, possibly on another thread, and later its second one with the result,
on the thread of the `Replay`."""


class Replay:
    """The episodes of one recording, played side by side. Used on viser's loop only."""

    def __init__(
        self,
        episodes: Episodes,
        reader: Reader,
        ending: Ending = lambda episode: "",
        *,
        begins: bool = False,
    ):
        """Shows the live robots at first.

        Args:
            episodes: those that are kept.
            reader: reads episodes, which may take a while.
            ending: called where they are read.
            begins: whether the newest recording plays as soon as there is one.
        """
        self._begins, self._ending = begins, ending
        self.active = False  # whether recorded episodes are shown in place of the live robots
        self._episodes, self._reader = episodes, reader
        self._version: object = None  # of `_recordings`
        self._recordings: dict[int, tuple[Summary, ...]] = {}  # by step, in order
        self._step: int | None = None  # the recording that was chosen; None: the newest
        self._only: str | None = None  # key of the one episode that is shown; None: all
        self._wanted: tuple[str, ...] = ()  # keys of the episodes to show
        self._read = NOTHING
        self._compared: int | None = None  # the recording whose episodes are drawn as ghosts
        self._others_wanted: tuple[str, ...] = ()  # keys of its episodes
        self._others = NOTHING
        self._playing, self._speed, self._loop, self._only_end = False, 1.0, True, False
        self._position = 0.0  # s of robot time
        self._now: float | None = None  # s, of the last view while playing
        self._view: tuple[tuple[Any, ...], View] | None = None  # with the arguments it was made of

    def update(self) -> None:
        """Looks for new episodes."""
        version = self._episodes.version
        if version == self._version:
            return
        self._version, found = version, {}
        for summary in self._episodes.summaries():
            found.setdefault(summary.recording, []).append(summary)
        self._recordings = {step: tuple(sorted(found[step], key=_rank)) for step in sorted(found)}
        if self.active:
            self._want()
        elif self._begins and self._recordings:
            self._begins = False
            self.toggle()

    # What a person can do. Values out of their limits raise ValueError.

    def choose(self, index: int) -> None:
        """Goes to a recording, given its place among all, from 0."""
        steps = list(self._recordings)
        if not 0 <= index < len(steps):
            raise ValueError(f"There is no recording {index + 1}: {len(steps)} are kept")
        self._step, self._only, self._position = steps[index], None, 0.0
        if self.active:
            self._want()

    def compare(self, index: int | None) -> None:
        """Draws the episodes of another recording as ghosts over those that are shown, given its
        place among all, from 0; None: none."""
        steps = list(self._recordings)
        if index is not None and not 0 <= index < len(steps):
            raise ValueError(f"There is no recording {index + 1}: {len(steps)} are kept")
        self._compared = None if index is None else steps[index]
        if self.active:
            self._want()

    def show_only(self, key: str | None) -> None:
        """Shows one episode of the recording; None: all."""
        self._only, self._position = key, 0.0
        if self.active:
            self._want()

    def toggle(self) -> None:
        """Plays, or pauses. What is over begins again."""
        self._playing, self._now = not (self.active and self._playing), None
        if not self.active:
            self._open()
        elif self._playing and self._position >= self._seconds - ALMOST:
            self._position = 0.0

    def play_end(self, key: str) -> None:
        """Plays the last seconds of one episode, over and over."""
        summary = next(
            (s for many in self._recordings.values() for s in many if s.key == key), None
        )
        if summary is None:
            raise ValueError("This episode is not kept any more")
        self._step, self._only, self._position = summary.recording, key, 0.0
        self._only_end = self._loop = self._playing = True
        self._open()

    def close(self) -> None:
        """Goes back to the live robots."""
        self.active = self._playing = False
        self._view, self._wanted, self._read = None, (), NOTHING
        self._others_wanted, self._others = (), NOTHING

    def seek(self, seconds: float) -> None:
        """Goes to a time and pauses, if recorded episodes are shown."""
        if self.active:
            self._playing = False
            self._position = min(max(float(seconds), 0.0), self._seconds)

    def step(self, n: int) -> None:
        """Pauses, and goes on by `n` env steps; below 0: back."""
        self._open()
        self.seek((round(self._position / self._dt) + n) * self._dt)

    def set_speed(self, speed: float) -> None:
        """Sets robot seconds per second."""
        REPLAY_SPEED.check("speed", speed)
        self._speed = float(speed)

    def set_loop(self, on: bool) -> None:
        """Sets whether it begins again at its end."""
        self._loop = bool(on)

    def set_only_end(self, on: bool) -> None:
        """Sets whether only the last seconds of each episode are played, so that all end
        together."""
        self._only_end, self._position = bool(on), 0.0

    # What is seen.

    def view(
        self,
        now: float,
        cells: int,
        num_envs: int,
        selected: int | None,
        travels: int | None = None,
    ) -> View | None:
        """Returns the picture at a time; None until the episodes have been read.

        Args:
            now: s.
            cells: most robots that can be drawn.
            num_envs: environments of the training.
            selected: the environment whose details are wanted.
            travels: index of the link that can travel without limit; None: there is none.
        """
        self._advance(now)
        shown = self._read.episodes[:cells]
        if not self.active or not shown:
            return None
        key = self._read, self._others, self._position, self._only_end, cells, num_envs, selected
        if self._view is None or self._view[0] != key:
            robots = [(episode, self._place(episode)) for episode in shown]
            ghosts = [(episode, self._place(episode)) for episode in self._partners(shown)]
            made = view_of(robots, num_envs, selected, now, self._position, ghosts, travels)
            self._view = key, made
        return self._view[1]

    def _partners(self, shown: Sequence[Episode]) -> list[Episode]:
        """Returns, for each episode, the one of the recording that it is compared with which was
        kept for the same reason, or else that recording's best; nothing without one."""
        others = {why: e for e in self._others.episodes[::-1] for why in e.summary.kept_as}
        if not others:
            return []
        best = self._others.episodes[0]
        whys = [min(e.summary.kept_as, key=KEPT_AS.index) for e in shown]
        return [others.get(why, best) for why in whys]

    def shown(self) -> tuple[Episode, ...]:
        """Returns the episodes on screen, the best first; none while the robots are live."""
        return self._read.episodes if self.active else ()

    def models(self) -> dict[int, dict[str, np.ndarray]]:
        """Returns, by environment, the fields in which the models of those shown differ."""
        return {e.summary.env: dict(e.model) for e in self._read.episodes if e.model}

    def told(self) -> ReplayView:
        """Describes the replay for the panel."""
        steps, index = tuple(self._recordings), self._index
        falls = [s for many in self._recordings.values() for s in many if s.ended == "terminated"]
        return ReplayView(
            active=self.active,
            steps=steps,
            index=index,
            episodes=self._recordings[steps[index]] if steps else (),
            only=self._only,
            falls=tuple(falls[: -MOST_FALLS - 1 : -1]),
            playing=self._playing,
            reading=self.active and self._read.keys != self._wanted,
            position=min(self._position, self._seconds),
            seconds=self._seconds,
            dt=self._dt,
            speed=self._speed,
            loop=self._loop,
            only_end=self._only_end,
            endings=self._read.endings,
            compared=steps.index(self._compared) if self._compared in steps else None,
            others=self._recordings.get(-1 if self._compared is None else self._compared, ()),
            complaint=self._read.complaint if self.active else None,
        )

    @property
    def playing(self) -> bool:
        """Whether the picture moves."""
        return self.active and self._playing

    @property
    def _index(self) -> int:
        """The chosen recording's place, or that of the next one kept if it is gone."""
        steps = list(self._recordings)
        last = max(len(steps) - 1, 0)
        return last if self._step is None else min(bisect.bisect_left(steps, self._step), last)

    @property
    def _dt(self) -> float:
        """s per step; 0.02 until an episode has been read."""
        return self._read.episodes[0].dt if self._read.episodes else 0.02

    @property
    def _seconds(self) -> float:
        """How long it takes until all have ended, at the robots' own speed."""
        all_of_them = *self._read.episodes, *self._partners(self._read.episodes)
        return max((_seconds(e) - self._start(e) for e in all_of_them), default=0.0)

    def _start(self, episode: Episode) -> float:
        """s of an episode at which it is begun."""
        return max(_seconds(episode) - LAST_SECONDS, 0.0) if self._only_end else 0.0

    def _place(self, episode: Episode) -> float:
        """Steps of an episode that are over; it stays at its end."""
        at = (self._start(episode) + self._position) / episode.dt
        return min(at, episode.summary.length)

    def _open(self) -> None:
        """Shows recorded episodes."""
        if not self._recordings:
            self._playing = False
            raise ValueError("No episode has been recorded yet")
        if not self.active:
            self.active, self._now, self._position = True, None, 0.0
        self._step = list(self._recordings)[self._index]
        self._want()

    def _want(self) -> None:
        """Has the episodes read that will be shown, unless they are there."""
        # A recording may be thinned out while it is watched: it stays until another is chosen.
        kept = self._recordings.get(-1 if self._step is None else self._step, ())
        self._want_others()
        keys = tuple(s.key for s in kept if self._only in (None, s.key))
        if not keys or keys == self._wanted:
            return
        self._wanted = keys
        self._reader(lambda: read(self._episodes, keys, self._ending), self._use)

    def _want_others(self) -> None:
        """Has the episodes read that are drawn as ghosts, unless they are there."""
        kept = self._recordings.get(-1 if self._compared is None else self._compared, ())
        keys = tuple(summary.key for summary in kept)
        if self._compared is None:
            self._others_wanted, self._others = (), NOTHING
        elif keys and keys != self._others_wanted:
            self._others_wanted = keys
            self._reader(lambda: read(self._episodes, keys, lambda _: ""), self._use_others)

    def _use_others(self, found: Read) -> None:
        if found.keys == self._others_wanted:
            self._others = found

    def _use(self, found: Read) -> None:
        if found.keys == self._wanted:
            self._read, self._now = found, None

    def _advance(self, now: float) -> None:
        before, self._now = self._now, now
        if not self.playing or before is None or not self._read.episodes:
            return
        self._position += (now - before) * self._speed
        if self._position < self._seconds:
            return
        if self._loop:
            self._position %= self._seconds or 1.0
        else:
            self._position, self._playing = self._seconds, False


def _rank(summary: Summary) -> tuple[int, int]:
    """Sorts the episodes of a recording: the best first, then as `KEPT_AS` has them."""
    return min(map(KEPT_AS.index, summary.kept_as)), summary.env


def _seconds(episode: Episode) -> float:
    return episode.summary.length * episode.dt
