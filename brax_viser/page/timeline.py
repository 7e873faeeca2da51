"""Collects what the time bar below the scene shows, and carries out what is clicked in it.

The bar's script (bar.js) asks about once a second. The long parts, curves and marks, are made when
a page asks, and sent only if they differ from those that the page has.
"""

import bisect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from brax_viser.host.metrics import Metrics
from brax_viser.host.state import SharedState
from brax_viser.page.replay import Replay
from brax_viser.page.state import PageState
from brax_viser.panel.curve_lines import REWARD, SPEED, choices, lines_of
from brax_viser.records.episode import RunInfo, Summary

MOST_POINTS = 256
"""Most points of each curve: about one for each four pixels of a wide page."""

MOST_RECORDINGS = 240
"""Most recordings with marks. If there are more, evenly spaced ones are shown; a click finds the
others too."""

MOST_HOLDS = 128
"""Most marks of holds. When there are more, every second one is dropped."""

LARGEST = 2.0**53
"""Largest number that a page can send exactly."""


class Timeline:
    """The training from its start to now, as the time bar shows it. Used on viser's loop only."""

    def __init__(
        self, shared: SharedState, state: PageState, replay: Replay, recorded: RunInfo | None
    ):
        """Collects nothing yet.

        Args:
            shared: the shared state.
            state: the page's state, with the plot that is drawn.
            replay: the recorded episodes.
            recorded: their training, if nothing is live.
        """
        self._shared, self._state = shared, state
        self._replay, self._recorded = replay, recorded
        self._holds: list[int] = []  # env steps trained, over all environments
        self._held, self._begun = False, shared.progress.begun
        self._plots: tuple[str, ...] = ()  # see `choices`
        self._reported = 0  # the last step of which a number was reported
        # Never the same in two processes: a page outlives a training that is started again.
        self._numbers = map(str, itertools.count(time.time_ns()))
        self._made_of: dict[str, object] = {}  # by part
        self._parts: dict[str, tuple[str, Any]] = {}  # by name: a version, and the part
        self._commands: dict[str, Callable[[Mapping[str, str]], object]] = {
            "go": self._go,
            "turn": lambda query: replay.turn(int(_number(query, "by"))),
            "toggle": lambda query: replay.toggle(),
            "play": lambda query: replay.play(backwards=_number(query, "backwards") != 0),
            "seek": lambda query: replay.seek(_number(query, "seconds")),
            "step": lambda query: replay.step(int(_number(query, "n"))),
            "speed": lambda query: replay.set_speed(_number(query, "speed")),
            "loop": lambda query: replay.set_loop(_number(query, "on") != 0),
            "live": lambda query: replay.close(),
            "curve": self._draw_curve,
        }

    @property
    def commands(self) -> Sequence[str]:
        """Names that `carry_out` takes."""
        return tuple(self._commands)

    def carry_out(self, name: str, query: Mapping[str, str]) -> None:
        """Carries out one of `commands`. Raises ValueError if a value is missing or wrong."""
        self._commands[name](query)
        self._shared.mailbox.wake()

    def _draw_curve(self, query: Mapping[str, str]) -> None:
        what, known = query.get("what", ""), choices(self._shared.progress.metrics)
        if what not in known:
            raise ValueError(f"what={what!r}: must be one of {', '.join(known)}")
        self._state.curve = what

    def _go(self, query: Mapping[str, str]) -> None:
        if "episode" in query:
            self.go_to_episode(query["episode"])
        else:
            self.go_to(_number(query, "step"))

    def go_to(self, step: float) -> None:
        """Shows the recording that began nearest to a step of the training."""
        steps = self._steps()
        after = bisect.bisect(steps, step)
        near = range(max(after - 1, 0), min(after + 1, len(steps)))
        self._show(min(near, key=lambda place: abs(steps[place] - step)))

    def go_to_episode(self, key: str) -> None:
        """Shows one recorded episode alone."""
        steps = self._steps()
        for place, step in enumerate(steps):
            if any(summary.key == key for summary in self._replay.recordings[step]):
                self._show(place)
                self._replay.show_only(key)
                return
        raise ValueError("This episode is not kept any more")

    def _steps(self) -> list[int]:
        """Steps at which recordings began. Raises ValueError if there is none."""
        if not self._replay.recordings:
            raise ValueError("No episode has been recorded yet")
        return list(self._replay.recordings)

    def _show(self, place: int) -> None:
        """Shows a recording; it plays, unless another one was shown that is paused."""
        self._replay.choose(place)
        if not self._replay.active:
            self._replay.toggle()

    def update(self) -> None:
        """Notes where the training is held. Called as often as the panel is updated."""
        progress, held = self._shared.progress, self._shared.hold.held
        if progress.begun != self._begun:
            self._begun, self._holds = progress.begun, []
        if held and not self._held and progress.num_steps not in self._holds[-1:]:
            self._holds.append(progress.num_steps)
            if len(self._holds) > MOST_HOLDS:
                self._holds = self._holds[::2]
        self._held = held

    @property
    def holds(self) -> Sequence[int]:
        """The env steps trained at which the training was held."""
        return tuple(self._holds)

    def show_holds(self, steps: Iterable[int]) -> None:
        """Shows where a recorded training was held."""
        self._holds = list(steps)

    def told(self, query: Mapping[str, str], *, steers: bool) -> dict[str, Any]:
        """Describes the bar, in JSON's types.

        Args:
            query: by "curves", "plots", "marks" and "holds", the versions that the page has.
            steers: whether that page may change anything.
        """
        self._make()
        shared = self._shared
        progress = shared.progress.view(shared.clock())
        found: dict[str, Any] = {
            "live": self._recorded is None,
            "steers": steers,
            "phase": progress.phase,
            "held": shared.hold.held,
            "now": progress.num_steps,
            "end": progress.num_timesteps,
            "replay": self._told_of_replay(),
        }
        if self._recorded is not None:
            found["now"] = self._last_step()
            found["end"] = self._recorded.settings.get("num_timesteps")
        for name, (version, part) in self._parts.items():
            if query.get(name) != version:
                found[name] = {"version": version, "of": part}
        return found

    def _told_of_replay(self) -> dict[str, Any]:
        told = self._replay.told()
        policies = [e.summary.num_steps for e in told.trial.episodes] if told.trial else None
        return {
            "active": told.active,
            "policies": policies,  # that are compared, by step: then no recording is shown
            "reading": told.reading,
            "playing": told.playing,
            "backwards": told.backwards,
            "step": told.steps[told.index] if told.steps else None,
            "only": told.only,
            "episodes": [self._mark(summary) for summary in told.episodes] if told.active else [],
            "position": round(told.position, 4),
            "seconds": round(told.seconds, 4),
            "dt": told.dt,
            "speed": told.speed,
            "loop": told.loop,
        }

    def _last_step(self) -> int:
        """The last step of a training that is not live, as far as it is known."""
        return max([self._reported, *list(self._replay.recordings)[-1:]])

    def _make(self) -> None:
        """Makes those parts that have changed."""
        metrics, recordings = self._shared.progress.metrics, self._replay.recordings
        if self._made_of.get("plots") != metrics.version:
            self._plots, self._reported = choices(metrics), _last_of(metrics)
            # The speed is known first, and says least: the reward comes first even before it is
            # known.
            if self._plots[:1] == (SPEED,):
                self._plots = REWARD, *self._plots
        self._part("plots", metrics.version, lambda: self._plots)
        chosen = self._state.curve if self._state.curve in self._plots else None
        what = chosen or next(iter(self._plots), REWARD)
        self._part("curves", (metrics.version, what), lambda: self._curves(what))
        self._part("marks", (recordings, self._dt), self._marks)
        self._part("holds", tuple(self._holds), lambda: list(self._holds))

    def _part(self, name: str, made_of: object, make: Callable[[], Any]) -> None:
        if name in self._parts and self._made_of[name] == made_of:
            return
        self._made_of[name], part = made_of, make()
        if name not in self._parts or self._parts[name][1] != part:
            self._parts[name] = next(self._numbers), part

    def _curves(self, what: str) -> dict[str, Any]:
        """Returns the name of a plot, and the labels and the points of its lines."""
        lines = lines_of(self._shared.progress.metrics, what)
        points = [(li.label, points_of(li.curve.steps, li.curve.values)) for li in lines]
        return {"what": what, "lines": points}

    def _marks(self) -> list[tuple[int, list[list[Any]]]]:
        """Returns the steps of the recordings, and their episodes."""
        recordings = self._replay.recordings
        steps = list(recordings)
        if len(steps) > MOST_RECORDINGS:
            places = np.linspace(0, len(steps) - 1, MOST_RECORDINGS).round().astype(int)
            steps = [steps[place] for place in places]
        return [(step, [self._mark(summary) for summary in recordings[step]]) for step in steps]

    def _mark(self, summary: Summary) -> list[Any]:
        whole = math.isfinite(summary.episode_return)
        return [
            summary.key,
            int(summary.env),
            _short(summary.episode_return) if whole else None,
            round(summary.length * self._dt, 3),
            summary.ended,
            list(summary.kept_as),
        ]

    @property
    def _dt(self) -> float:
        """s of robot time per step."""
        if self._recorded is not None:
            return self._recorded.dt
        source = self._shared.sources_shown().get("train")
        return source.adapter.dt if source is not None else self._replay.told().dt


def points_of(steps: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    """Returns at most `MOST_POINTS` finite points of a curve, in order, the last one among them.

    Args:
        steps: [P], env steps trained.
        values: [P].
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    order = np.argsort(steps, kind="stable")  # a corrected count may step back
    every = math.ceil(len(order) / MOST_POINTS)
    if every > 1:
        order = order[::-1][::every][::-1]
    return [(int(steps[place]), _short(float(values[place]))) for place in order]


def _last_of(metrics: Metrics) -> int:
    curves = [curve for name in metrics.names() if (curve := metrics.curve(name)) is not None]
    return max((int(curve.steps[-1]) for curve in curves if len(curve.steps)), default=0)


def _short(value: float) -> float:
    """Rounds to the digits that a person sees."""
    return float(f"{value:.5g}")


def _number(query: Mapping[str, str], name: str) -> float:
    """Returns a number of an address. Raises ValueError if it is missing, or cannot be used."""
    try:
        number = float(query[name])
    except (KeyError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"{name}={query.get(name, '')!r}: must be a number")
    return number
