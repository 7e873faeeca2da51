"""Curves of what the training reports, over the whole training."""

import html
import time
from typing import Any

import numpy as np
from viser import uplot

from brax_viser.host.progress import count
from brax_viser.panel.curve_lines import (
    GROUPS,
    MOST_LINES,
    STEPWISE,
    Plot,
    choices,
    episode_of,
    lines_of,
    marked,
    plot_of,
    terms_of,
)
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets
from brax_viser.panel.words import note

COLOURS = (
    "#1c7ed6",
    "#f76707",
    "#2f9e44",
    "#ae3ec9",
    "#e03131",
    "#0c8599",
    "#f08c00",
    "#868e96",
)
"""Colours of the lines, in order."""

EACH = 4
"""The plot is sent with every so many updates of the panel, about once a second."""

MARK_SECONDS = 0.4
"""Shortest time between two marks of the moment on screen, s: the page is sent the whole plot each
time."""

MARK_COLOUR = "#7048e8"
"""Colour of the line at the moment on screen, violet as in the time bar."""

BY_STEPS, BY_TIME = "Env steps", "Time"
NOT_LOGARITHMIC = "Not logarithmic: some values are not above 0."
IN_BAR = "The time bar below draws this too: click there to see the robots of that step."
_BAND = 2  # series in front of the lines: the limits of a spread
_ROOM = 0.05  # share of the height left free above and below


class CurvesControls(Widgets):
    """One plot, hidden until there is a number to show, and what it shows."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._updates = 0
        self._sent: Any = None  # what the plot was made of
        self._weight = 0.0  # of the past, when smoothing
        self._marked = 0.0  # s, when the moment on screen was marked last
        self._note = self._server.gui.add_html(note("Nothing has been reported yet."))
        self._add_controls()

    def _add_controls(self) -> None:
        gui = self._server.gui
        self._what = gui.add_dropdown(
            "Show",
            GROUPS,
            hint="What is plotted: rewards and episode lengths of training and evaluation, one "
            "robot's reward of each step, or any number that the trainer or the script has "
            "reported. Type to search. The time bar draws it too, if it is of the whole training.",
        )
        self._legend = gui.add_html("")
        none = np.zeros(1)
        self._plot = gui.add_uplot(
            (none,) * (1 + _BAND + MOST_LINES),
            self._series(()),
            bands=({"series": (2, 1), "fill": "rgba(247, 103, 7, 0.15)"},),
            scales={"x": {"time": False}},
            legend={"show": False},
            height=200,
            padding=(10, 24, 0, 0),
        )
        self._below = gui.add_html(note(IN_BAR), visible=False)
        with gui.add_folder("Axes", expand_by_default=False):
            self._along = gui.add_dropdown(
                "Horizontal",
                (BY_STEPS, BY_TIME),
                hint="What the horizontal axis counts: env steps over all environments, or the "
                "time of training since its first number, leaving out holds.",
            )
            self._smooth = gui.add_slider(
                "Smoothing",
                0.0,
                0.99,
                0.01,
                0.0,
                hint="Evens out the lines: the weight of the past in a moving average. 0: as "
                "reported.",
            )
            self._on_number(self._smooth, self._smoothen)
            self._log = gui.add_checkbox(
                "Logarithmic",
                False,
                hint="A logarithmic vertical axis, if all values are above 0.",
            )
        self._on_change(self._what, self._actions.draw_curve, str)
        for control in (self._what, self._along, self._log):
            self._on_change(control, self._again, lambda value: value)

    def _smoothen(self, weight: float) -> None:
        self._weight = weight
        self._again(weight)

    def _again(self, _: object) -> None:
        """Draws the plot at the next update: a person has changed what it shows."""
        self._sent, self._marked, self._updates = None, 0.0, 0

    @staticmethod
    def _series(shown: tuple[int, ...], plot: Plot | None = None) -> tuple[uplot.Series, ...]:
        marks = plot is not None and plot.now is not None
        band = plot is not None and plot.band is not None and not marks
        limits: list[uplot.Series] = [{"show": band, "width": 0} for _ in range(_BAND)]
        if marks:  # in place of a band
            limits[0] = {"stroke": MARK_COLOUR, "width": 1, "points": {"show": False}}
        lines: list[uplot.Series] = [
            {"show": i in shown, "stroke": COLOURS[i], "width": 1.5, "points": {"size": 4}}
            for i in range(MOST_LINES)
        ]
        return ({}, *limits, *lines)

    def show(self, view: PanelView) -> None:
        """Updates the plot."""
        self._updates += 1
        if view.metrics is None or not self._is_due(view):
            return
        stepwise = view.terms is not None or view.replayed is not None
        options = choices(view.metrics, stepwise=stepwise)
        for handle in (self._what, self._legend, self._plot):
            self._set(handle, visible=bool(options))
        self._set(self._note, visible=not options)
        if not options:
            return
        if self._what.options != options:
            self._what.options = options
        what = view.curve if view.curve in options else options[0]
        if what != self._what.value:
            self._sent = None
            self._set(self._what, value=what)
        recorded = bool(view.replay.steps) and self._what.value != STEPWISE
        self._set(self._below, visible=recorded)
        if self._what.value == STEPWISE:
            self._show_steps(view)
        elif self._sent != view.metrics.version:
            self._sent = view.metrics.version
            by_time = self._along.value == BY_TIME
            lines = lines_of(view.metrics, self._what.value)[:MOST_LINES]
            plot = plot_of(lines, by_time=by_time, weight=self._weight)
            if plot is not None:
                unit, name = _unit(float(plot.x.max()), by_time=by_time)
                plot.x /= unit
                self._draw(plot, name)

    def _is_due(self, view: PanelView) -> bool:
        """Whether to update: now and then, and sooner if another moment of a recorded episode is on
        screen."""
        moved = self._what.value == STEPWISE and self._has_moved(view)
        return moved or (self._updates - 1) % EACH == 0

    def _has_moved(self, view: PanelView) -> bool:
        """Whether the mark is late: a recorded episode has gone on."""
        waited = time.monotonic() - self._marked
        return view.replayed not in (None, self._sent) and waited >= MARK_SECONDS

    def _show_steps(self, view: PanelView) -> None:
        """Draws the reward of each step: of a recorded episode, or of the selected robot's last
        seconds."""
        terms = view.terms.terms() if view.terms is not None else None
        if view.replayed is not None:
            if self._has_moved(view):
                self._sent, self._marked = view.replayed, time.monotonic()
                env = view.replayed[0].summary.env
                self._draw(episode_of(*view.replayed), f"seconds of env {env}'s episode")
        elif terms is not None:
            self._sent = None
            self._draw(terms_of(terms), f"seconds of env {terms.env}, 0 is on screen")

    def _draw(self, plot: Plot, x_name: str) -> None:
        values = np.concatenate([*plot.lines, *(plot.band or ())])
        low, high, is_log = _limits(values[np.isfinite(values)], log=self._log.value)
        refused = note(NOT_LOGARITHMIC) if self._log.value and not is_log else ""
        self._set(self._legend, content=_legend(plot) + refused)
        plot = marked(plot, low, high)
        none = np.full(len(plot.x), np.nan)
        band = plot.band or (none, none)
        drawn = [none] * MOST_LINES
        for colour, line in zip(plot.colours, plot.lines, strict=True):
            drawn[colour] = line
        scale: uplot.Scale = {"range": (low, high), "distr": 3 if is_log else 1}
        shown = tuple(i for i, x in enumerate(drawn) if np.isfinite(x).any())
        with self._server.atomic():
            self._plot.data = (plot.x, *band, *drawn)
            self._set(
                self._plot,
                series=self._series(shown, plot),
                axes=({"label": x_name, "labelSize": 18, "size": 34}, {"size": 58}),
                scales={"x": {"time": False}, "y": scale},
            )


def _legend(plot: Plot) -> str:
    """Names the lines, each with its newest value or its value at the moment on screen."""
    moment = ""
    if plot.now is not None:
        moment = note(f"At {plot.now:.2f} of {plot.x[-1]:.2f} s, on screen now (violet line):")
    rows = "".join(
        f'<div style="display:flex;gap:.4em;align-items:center"><span style="flex:none;width:.9em;'
        f'height:.25em;background:{COLOURS[colour]}"></span>'
        f'<span style="flex:1">{html.escape(label)}</span>'
        f"<b>{'none' if np.isnan(value) else number(value)}</b></div>"
        for colour, label, value in zip(plot.colours, plot.labels, plot.newest, strict=True)
    )
    return f'{moment}<div style="font-size:.8em;line-height:1.35;padding:0 .75em">{rows}</div>'


def number(value: float) -> str:
    """Formats a value with three to four digits: 0.0123, 12.3, 1,234, 1.23 M."""
    if abs(value) >= 1e5:
        return count(value)
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value + 0.0:.3g}"  # 0, not -0


def _unit(most: float, *, by_time: bool) -> tuple[float, str]:
    """Returns what to divide the x-axis by, and its name."""
    if by_time:
        if most >= 2 * 3600:
            return 3600.0, "hours"
        return (60.0, "minutes") if most >= 120 else (1.0, "seconds")
    for unit, name in ((1e9, "billion "), (1e6, "million "), (1e3, "thousand ")):
        if most >= unit:
            return unit, f"{name}env steps"
    return 1.0, "env steps"


def _limits(values: np.ndarray, *, log: bool) -> tuple[float, float, bool]:
    """Returns the limits of the y-axis, and whether it is logarithmic."""
    if not len(values):
        return 0.0, 1.0, False
    low, high = float(values.min()), float(values.max())
    if log and low > 0:
        return 10.0 ** np.floor(np.log10(low)), 10.0 ** np.ceil(np.log10(high * 1.0001)), True
    room = _ROOM * (high - low) or max(abs(high), 1.0) * _ROOM
    step = 10.0 ** np.floor(np.log10(high - low + 2 * room)) / 5
    low, high = (
        step * np.floor((low - room) / step),
        step * np.ceil((high + room) / step),
    )
    return float(low), float(high), False
