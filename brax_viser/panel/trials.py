"""The panel's folder in which two policies are compared: runs both from the same start."""

import functools
from typing import Any

import numpy as np
from viser import uplot

from brax_viser.panel import trial_words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets
from brax_viser.panel.words import note
from brax_viser.sandbox.trial import Trial

STARTS = {"With an episode": False, "As the selected robot": True}
SOLID_COLOUR, GHOST_COLOUR = "#1c7ed6", "#9747ff"

_GRID: uplot.Axis_Grid = {"stroke": "rgba(134,142,150,0.25)", "width": 1}


class TrialFolder(Widgets):
    """Controls that choose two policies, and curves of what they did."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._trials = tools.trials
        self._shown: Trial | None = None  # whose curves are drawn
        gui = self._server.gui
        with gui.add_folder("Compare policies"):
            self._note = gui.add_html("")
            self._solid: Any = gui.add_dropdown(
                "Solid",
                ("",),
                hint="The policy whose robot is drawn as it is. All that are kept of this training "
                "can be chosen; type to search.",
            )
            self._ghost: Any = gui.add_dropdown(
                "Ghost",
                ("",),
                hint="The policy whose robot is drawn as a ghost, such as an earlier one.",
            )
            self._start: Any = gui.add_dropdown(
                "Both begin",
                tuple(STARTS),
                hint="With an episode: in a state that the environment's own reset returns, "
                "another one each time. As the selected robot: in the state in which it is on "
                "screen, live or replayed.",
            )
            self._run = gui.add_button_group(
                "Run",
                (trial_words.RUN,),
                hint="Has each policy drive a robot of its own in MuJoCo, for up to 10 s of robot "
                "time, then plays both as a recording is played. The training goes on meanwhile.",
            )
            self._on_click(self._run, self._begin)
            self._table = gui.add_html("")
            titles = trial_words.TITLES
            reward, self._reward = gui.add_html(note(titles[0])), self._plot()
            distance, self._distance = gui.add_html(note(titles[1])), self._plot()
        self._choice = self._solid, self._ghost, self._start, self._run
        self._result = self._table, reward, self._reward, distance, self._distance
        for handle in (*self._choice, *self._result):
            handle.visible = False

    def _begin(self) -> None:
        start = STARTS[self._start.value]
        self._trials.begin(self._solid.value, self._ghost.value, start)

    def _plot(self) -> Any:
        return self._server.gui.add_uplot(
            (np.zeros(1),) * 3,
            ({}, {"stroke": SOLID_COLOUR, "width": 1.5}, {"stroke": GHOST_COLOUR, "width": 1.5}),
            scales={"x": {"time": False}},
            axes=(
                {"grid": _GRID, "label": "s", "labelSize": 18, "size": 34},
                {"grid": _GRID, "size": 48},
            ),
            legend={"show": False},
            height=140,
            padding=(10, 24, 0, 0),
        )

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        told, trial = view.trials, view.replay.trial
        self._set(self._note, content=trial_words.told(view))
        for handle in self._choice:
            self._set(handle, visible=bool(told.choices))
        if told.choices:
            for handle, usual in ((self._solid, 0), (self._ghost, -1)):
                self._offer(handle, told.choices, usual)
        for handle in self._result:
            self._set(handle, visible=trial is not None)
        if trial is not None and trial is not self._shown:
            self._shown = trial
            self._set(self._table, content=trial_words.table(trial))
            self._draw(self._reward, *(e.steps["reward"] for e in trial.episodes))
            self._draw(self._distance, trial.distance()[1:], np.zeros(0))

    def _offer(self, handle: Any, choices: tuple[str, ...], usual: int) -> None:
        """Updates a list; what was chosen stays, as far as it is still there."""
        if handle.options != choices:
            chosen = handle.value if handle.value in choices else _named(choices)[usual]
            handle.options = choices
            self._set(handle, value=chosen)

    def _draw(self, plot: Any, *lines: np.ndarray) -> None:
        """Draws lines whose first points belong to the ends of the first step."""
        assert self._shown is not None
        dt, most = self._shown.episodes[0].dt, max(map(len, lines))
        pad = functools.partial(_padded, most)
        values = np.concatenate(lines)
        values = values[np.isfinite(values)]
        low, high = (min(values, default=0.0), max(values, default=1.0))
        room = 0.05 * (high - low) or 0.5
        scales = {"x": {"time": False}, "y": {"range": (float(low - room), float(high + room))}}
        with self._server.atomic():
            plot.data = (dt * np.arange(1, most + 1), *map(pad, lines))
            self._set(plot, scales=scales)


def _named(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the choices that are particular moments of the training."""
    return tuple(name for name in choices if not name.startswith("Step "))


def _padded(length: int, line: np.ndarray) -> np.ndarray:
    return np.append(line, np.full(length - len(line), np.nan))
