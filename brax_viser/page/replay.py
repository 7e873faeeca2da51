"""Plays recorded episodes: which recording, where in it, and how fast. Pure logic over a clock."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brax_viser.page.episode_frames import view_of
from brax_viser.page.playhead import Playhead
from brax_viser.page.wanted import Ending, Endings, Reader, Wanted, read
from brax_viser.panel.view import ReplayView
from brax_viser.records.episode import KEPT_AS, Episode, Episodes, Summary
from brax_viser.records.view import View
from brax_viser.sandbox.trial import Trial

LAST_SECONDS = 3.0
"""s of each episode that are played if only ends are."""


class Replay:
    """The episodes of one recording, played side by side. Used on viser's loop only."""

    def __init__(
        self,
        episodes: Episodes,
        reader: Reader,
        ending: Ending = lambda episode: "",
        *,
        ghosts: Reader | None = None,
        listed: Reader | None = None,
        begins: bool = False,
    ):
        """Shows the live robots at first.

        Args:
            episodes: those that are kept.
            reader: reads episodes, which may take a while.
            ending: says how an episode ended; called where episodes are read.
            ghosts: reads those that are drawn as ghosts; None: `reader` does.
            listed: reads episodes to list how they ended; None: `reader` does.
            begins: whether the newest recording plays as soon as there is one.
        """
        self._episodes, self._begins = episodes, begins
        self.active = False  # whether recorded episodes are shown in place of the live robots
        self._version: object = None  # of `_recordings`
        self._recordings: dict[int, tuple[Summary, ...]] = {}  # by step, in order
        self._step: int | None = None  # the recording that was chosen; None: the newest
        self._only: str | None = None  # key of the one episode that is shown; None: all
        self._robots = Wanted(
            lambda keys, use: reader(lambda: read(self._episodes, keys, ending), use),
            self._has_read,
        )
        self._trial: Trial | None = None  # what two policies did, if that is shown instead
        self._compared: int | None = None  # the recording whose episodes are drawn as ghosts
        self._ghosts = Wanted(
            lambda k, use: (ghosts or reader)(lambda: read(self._episodes, k, lambda _: ""), use)
        )
        self.endings = Endings(
            lambda k, use: (listed or reader)(lambda: read(self._episodes, k, ending), use)
        )
        self._head, self._only_end = Playhead(), False
        self._view: tuple[tuple[Any, ...], View] | None = None  # with the arguments it was made of

    def update(self) -> None:
        """Looks for new episodes."""
        version = self._episodes.version
        if version == self._version:
            return
        self._version, found = version, {}
        for summary in self._episodes.summaries():
            found.setdefault(summary.recording, []).append(summary)
        self._recordings = {step: _ordered(found[step]) for step in sorted(found)}
        self.endings.update([s for many in self._recordings.values() for s in many])
        self._want()
        if not self.active and self._begins and self._recordings:
            self._begins = False
            self.toggle()

    def _has_read(self) -> None:
        self._head.known(self._seconds)
        self.endings.learn(self._robots.read)

    # What a person can do. Values outside their limits raise ValueError.

    def choose(self, index: int) -> None:
        """Goes to a recording, given its place among all, from 0."""
        self._step, self._only, self._trial = self._step_of(index), None, None
        self._head.begin()
        self._want()

    def turn(self, by: int) -> None:
        """Goes on by so many recordings, at most to the last one; below 0: back. If live robots are
        shown, it plays the chosen one instead."""
        place = self._index + (by if self.active else 0)
        self.choose(max(min(place, len(self._recordings) - 1), 0))
        if not self.active:
            self.toggle()

    def compare(self, index: int | None) -> None:
        """Draws another recording as ghosts, given its place among all, from 0; None: none."""
        self._compared = None if index is None else self._step_of(index)
        self._want()

    def _step_of(self, index: int) -> int:
        """Returns the step of a recording, given its place among all."""
        steps = list(self._recordings)
        if not 0 <= index < len(steps):
            raise ValueError(f"There is no recording {index + 1}: {len(steps)} are kept")
        return steps[index]

    def show_only(self, key: str | None) -> None:
        """Shows one episode of the recording; None: all."""
        self._only = key
        self._head.begin()
        self._want()

    def present(self, trial: Trial) -> None:
        """Plays what two policies did from the same start, the second one as a ghost over the
        first, until a recording is chosen."""
        self._trial, self.active, self._only, self._only_end = trial, True, None, False
        self._head.play(0.0)
        self._robots.give(trial.episodes[0])
        self._ghosts.give(trial.episodes[1])

    def toggle(self) -> None:
        """Plays, or pauses."""
        if self.playing:
            self._head.playing = False
        else:
            self.play()

    def play(self, *, backwards: bool = False) -> None:
        """Plays on, or backwards. At the end, it starts over."""
        if not self.active:
            self._open()
        self._head.play(self._seconds, backwards=backwards)

    def play_end(self, key: str) -> None:
        """Plays the last seconds of one episode, over and over."""
        by_key = {s.key: s for many in self._recordings.values() for s in many}
        if key not in by_key:
            raise ValueError("This episode is not kept any more")
        self._trial, self._step, self._only = None, by_key[key].recording, key
        self._only_end = self._head.loop = True
        self._open()
        self._head.play(0.0)

    def close(self) -> None:
        """Goes back to the live robots."""
        self.active = self._head.playing = False
        self._view = self._trial = None
        self._robots.clear()
        self._ghosts.clear()

    def seek(self, seconds: float) -> None:
        """Goes to a time and pauses, if recorded episodes are shown."""
        if self.active:
            self._head.seek(seconds, self._seconds)

    def step(self, n: int) -> None:
        """Pauses, and goes on by `n` env steps; below 0: back."""
        self._open()
        self.seek((round(self._head.position / self._dt) + n) * self._dt)

    def set_speed(self, speed: float) -> None:
        """Sets robot seconds per second."""
        self._head.set_speed(speed)

    def set_loop(self, on: bool) -> None:
        """Sets whether it starts over at the end."""
        self._head.loop = bool(on)

    def set_only_end(self, on: bool) -> None:
        """Plays only the last seconds of each episode, so that all end together, or all."""
        self._only_end = bool(on)
        self._head.begin()

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
        shown = self._robots.read.episodes[:cells]
        self._head.advance(now, self._seconds if shown else None)
        if not self.active or not shown:
            return None
        read = self._robots.read, self._ghosts.read
        key = *read, self._head.position, self._only_end, cells, num_envs, selected
        if self._view is None or self._view[0] != key:
            others = _partners(shown, self._ghosts.read.episodes)
            robots, ghosts = ([(e, self._place(e)) for e in some] for some in (shown, others))
            made = view_of(robots, num_envs, selected, now, self._head.position, ghosts, travels)
            self._view = key, made
        return self._view[1]

    def shown(self) -> tuple[Episode, ...]:
        """Returns the episodes on screen, the best first; none while the robots are live."""
        if self.active and self._trial is not None:
            return self._trial.episodes
        return self._robots.read.episodes if self.active else ()

    def focus(self, selected: int | None) -> tuple[Episode, float] | None:
        """Returns the episode on screen of an environment, or else the first one, and how many of
        its steps have been played; None if none is on screen."""
        shown = self.shown()
        one = next((e for e in shown if e.summary.env == selected), shown[0] if shown else None)
        return None if one is None else (one, self._place(one))

    def pair(self, selected: int | None) -> tuple[Episode, Episode] | None:
        """Returns the episode that `focus` returns and its ghost; None if there is no ghost."""
        shown = [found[0] for found in (self.focus(selected),) if found is not None]
        others = _partners(shown, self._ghosts.read.episodes)
        return (shown[0], others[0]) if others else None

    def models(self) -> dict[int, dict[str, np.ndarray]]:
        """Returns, by environment, the fields in which the models of those shown differ."""
        return {e.summary.env: dict(e.model) for e in self._robots.read.episodes if e.model}

    def told(self) -> ReplayView:
        """Describes the replay for the panel."""
        steps, index = tuple(self._recordings), self._index
        return ReplayView(
            active=self.active,
            steps=steps,
            index=index,
            episodes=self._recordings[steps[index]] if steps else (),
            only=self._only,
            ended=self.endings.listed,
            playing=self._head.playing,
            backwards=self._head.backwards,
            reading=self.active and self._robots.read.keys != self._robots.keys,
            position=min(self._head.position, self._seconds),
            seconds=self._seconds,
            dt=self._dt,
            speed=self._head.speed,
            loop=self._head.loop,
            only_end=self._only_end,
            endings=self.endings.known,
            compared=steps.index(self._compared) if self._compared in steps else None,
            others=self._recordings.get(-1 if self._compared is None else self._compared, ()),
            complaint=self._robots.read.complaint if self.active else None,
            trial=self._trial,
        )

    @property
    def recordings(self) -> Mapping[int, tuple[Summary, ...]]:
        """The episodes, by their recordings' steps, in order; a new object whenever they change."""
        return self._recordings

    @property
    def playing(self) -> bool:
        """Whether the picture moves."""
        return self.active and self._head.playing

    @property
    def _index(self) -> int:
        """The chosen recording's place, or that of the next one kept if it is gone."""
        steps = list(self._recordings)
        last = max(len(steps) - 1, 0)
        return last if self._step is None else min(bisect.bisect_left(steps, self._step), last)

    @property
    def _dt(self) -> float:
        """s per step; 0.02 until an episode has been read."""
        return self._robots.read.episodes[0].dt if self._robots.read.episodes else 0.02

    @property
    def _seconds(self) -> float:
        """How long it takes until all have ended, at the robots' own speed."""
        shown = self._robots.read.episodes
        all_of_them = *shown, *_partners(shown, self._ghosts.read.episodes)
        return max((_seconds(e) - self._start(e) for e in all_of_them), default=0.0)

    def _start(self, episode: Episode) -> float:
        """s of an episode at which it starts to play."""
        return max(_seconds(episode) - LAST_SECONDS, 0.0) if self._only_end else 0.0

    def _place(self, episode: Episode) -> float:
        """Steps of an episode that have been played; an episode stays at its end."""
        at = (self._start(episode) + self._head.position) / episode.dt
        return min(at, episode.summary.length)

    def _open(self) -> None:
        """Shows recorded episodes, unless those of a trial are there."""
        if self._trial is not None:
            return
        if not self._recordings:
            raise ValueError("No episode has been recorded yet")
        if not self.active:
            self.active = True
            self._head.begin()
        self._step = list(self._recordings)[self._index]
        self._want()

    def _want(self) -> None:
        """Has the chosen episodes read, unless they have been."""
        if self._trial is not None or not self.active:
            return
        # A recording may be thinned out while it is watched: it stays until another is chosen.
        kept = self._recordings.get(-1 if self._step is None else self._step, ())
        self._robots.want(tuple(s.key for s in kept if self._only in (None, s.key)))
        others = self._recordings.get(-1 if self._compared is None else self._compared, ())
        self._ghosts.want(tuple(summary.key for summary in others))
        if self._compared is None:
            self._ghosts.clear()


def _partners(shown: Sequence[Episode], others: Sequence[Episode]) -> list[Episode]:
    """Returns, for each episode, the one of the recording that it is compared with which was kept
    for the same reason, or else that recording's best; nothing without one."""
    if not others:
        return []
    kept = {why: e for e in others[::-1] for why in e.summary.kept_as}
    return [kept.get(min(e.summary.kept_as, key=KEPT_AS.index), others[0]) for e in shown]


def _ordered(recording: Sequence[Summary]) -> tuple[Summary, ...]:
    """Sorts the episodes of a recording: one of each kind as `KEPT_AS` has them, the best first,
    then the others, so that few cells show all kinds."""
    ordered = sorted(recording, key=lambda s: (_kind(s), s.env))
    first = {_kind(s): s for s in ordered[::-1]}
    return tuple(sorted(ordered, key=lambda s: first[_kind(s)] is not s))


def _kind(summary: Summary) -> int:
    return min(map(KEPT_AS.index, summary.kept_as))


def _seconds(episode: Episode) -> float:
    return episode.summary.length * episode.dt
