"""The panel's folder for MuJoCo twins: their drift, their number, and their settings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import viser
from viser import uplot

from brax_viser.panel import twin_words
from brax_viser.panel.limits import MOST_TWINS
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of
from brax_viser.twins.drift import Curves

PLACES = {"On their robots": False, "Beside them": True}
PHYSICS = {"As the training": False, "As the model's file": True}

PLOT_EVERY = 2
"""Updates of the panel per update of the plots, because a plot is sent as a whole."""

_MEDIAN, _SELECTED = "#9747ff", "#1c7ed6"
_EMPTY = np.array([-1.0, 0.0])
_GRID: uplot.Axis_Grid = {"stroke": "rgba(134,142,150,0.25)", "width": 1}


class TwinFolder(Widgets):
    """Controls of the twins, and two plots that are visible while there are twins."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        self._shown = 0
        self._curves: Curves | None = None
        self._inside: list[Any] = []
        with gui.add_folder("MuJoCo twins"):
            self._on = gui.add_checkbox(
                "Twins",
                False,
                hint="Violet: MuJoCo's own simulation of the same robot, from the same state and "
                "with the same controls as in the training, step by step. Where the two part, "
                "MuJoCo does not agree with the physics that is trained in.",
            )
            self._on_change(self._on, self._actions.switch_twins, bool)
            self._verdict = gui.add_html("")
            self._note = gui.add_html("")
            self._place = gui.add_dropdown(
                "Draw them",
                tuple(PLACES),
                initial_value="On their robots",
                hint="Over their robots, to see where the two part, or beside them.",
            )
            self._on_change(self._place, self._change("beside"), PLACES.__getitem__)
            self._restart = gui.add_button_group(
                "Restart",
                ("All twins now",),
                hint="Brings all twins back onto their robots. They restart by themselves when "
                "an episode begins, and with each clip of Real time.",
            )
            self._on_click(self._restart, self._steering.restart_twins)
            self._metres = self._plot(("Root", "All links"), "m")
            self._radians = self._plot(("Joints",), "rad")
            self._table = gui.add_html("")
            self._more = gui.add_folder("More of twins", expand_by_default=False, visible=False)
            with self._more:
                self._add_more()
        self._inside = [self._place, self._restart, self._table, self._more]
        for handle in self._inside:
            handle.visible = False

    def _add_more(self) -> None:
        gui = self._server.gui
        self._count = gui.add_number(
            "Number of twins",
            16,
            step=1,
            hint="How many of the drawn robots have one at most; the selected robot comes first.",
        )
        self._on_number(self._count, self._steering.set_twins, int, (1, MOST_TWINS))
        self._physics = gui.add_dropdown(
            "Physics",
            tuple(PHYSICS),
            initial_value="As the training",
            hint="As the training: with the time step, the motors and the solver's "
            "settings that the environment's code has given the training. As the model's "
            "file: with those that the robot's own file says, which is what others would "
            "load.",
        )
        self._on_change(self._physics, self._change("as_made"), PHYSICS.__getitem__)
        self._every = gui.add_number(
            "Restart after, steps",
            0,
            step=1,
            hint="Steps of its robot after which each twin is brought back onto it; 0: only "
            "where an episode or a clip begins.",
        )
        self._on_number(self._every, self._change("every"), lambda n: int(n) or None, (0, 100_000))
        self._limit = gui.add_number(
            "Threshold, m",
            0.1,
            step=0.001,
            hint="Mean distance between the parts of a robot and those of its twin from which on "
            "the two count as parted, and MuJoCo as disagreeing.",
        )
        self._on_number(self._limit, self._change("limit"), limits=(0.001, 10.0))

    def _change(self, name: str) -> Callable[[Any], None]:
        """Returns a function that changes one of the twins' settings."""
        return lambda value: self._steering.change_twins(**{name: value})

    def _plot(self, names: tuple[str, ...], unit: str) -> viser.GuiUplotHandle:
        dashes: tuple[tuple[float, ...], ...] = ((), (4, 3))
        series: list[uplot.Series] = [{"label": "s"}]
        for name, dash in zip(names, dashes, strict=False):
            series.append({"label": f"{name}, median", "stroke": _MEDIAN, "dash": dash})
            series.append({"label": f"{name}, selected", "stroke": _SELECTED, "dash": dash})
        return self._server.gui.add_uplot(
            tuple(_EMPTY for _ in series),
            tuple(series),
            scales={"x": {"time": False}},
            axes=({"grid": _GRID, "label": "s"}, {"grid": _GRID, "label": unit}),
            height=170,
            padding=(10, 24, 0, 0),  # at the top for the upper half of a number
            visible=False,
        )

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        twins, on = view.twins, view.control.twins > 0
        self._set(self._on, value=on)
        self._set(self._verdict, content=twin_words.verdict(view) if on else "")
        self._set(self._note, content=twin_words.twins(view))
        for handle in self._inside:
            self._set(handle, visible=on)
        if on:
            self._show_number(self._count, view.control.twins)
        self._set(self._place, value=label_of(PLACES, twins.beside))
        self._set(self._physics, value=label_of(PHYSICS, twins.as_made))
        self._show_number(self._every, twins.every or 0)
        self._show_number(self._limit, twins.limit)
        self._set(self._table, content=twin_words.drifts(view) if on else "")
        self._show_curves(view.curves if on else None)

    def _show_curves(self, curves: Curves | None) -> None:
        there = curves is not None
        self._set(self._metres, visible=there)
        self._set(self._radians, visible=there and bool(np.isfinite(curves.median[2]).any()))
        self._shown += 1
        if curves is None or self._shown % PLOT_EVERY:
            return
        lines = [line for pair in zip(curves.median, curves.selected, strict=True) for line in pair]
        self._plot_lines(self._metres, curves.seconds, lines[:4])
        if self._radians.visible:
            self._plot_lines(self._radians, curves.seconds, lines[4:])

    def _plot_lines(
        self, plot: viser.GuiUplotHandle, seconds: np.ndarray, lines: list[np.ndarray]
    ) -> None:
        """Updates a plot.

        uPlot cannot find an axis' limits if a line begins with NaN (as for a robot that has just
        been selected), and then draws no line at all. Limits are therefore set, and lines without
        any number are hidden.
        """
        known = [line[np.isfinite(line)] for line in lines]
        most = max((float(line.max()) for line in known if len(line)), default=0.0)
        with self._server.atomic():
            plot.data = (seconds, *lines)
            shown = [True, *(len(line) > 0 for line in known)]
            series = tuple(
                {**one, "show": show} for one, show in zip(plot.series, shown, strict=True)
            )
            limits = 0.0, _ceiling(most)
            self._set(plot, series=series, scales={"x": {"time": False}, "y": {"range": limits}})


def _ceiling(value: float) -> float:
    """Rounds up to 1, 2 or 5 times a power of ten, as the plot is rebuilt for each new limit."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-6)))
    return float(power * min(digit for digit in (1, 2, 5, 10) if digit * power >= value))
