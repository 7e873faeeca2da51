"""The panel's curves of a robot and its ghost: of two policies, or of two recorded episodes."""

import functools
from typing import Any

import numpy as np
from viser import uplot

from brax_viser.panel import episode_words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets
from brax_viser.panel.words import note
from brax_viser.records.episode import Episode, distance

SOLID_COLOUR, GHOST_COLOUR = "#1c7ed6", "#9747ff"

TITLES = (
    "Reward of each step: blue, of the solid robot; violet, of the ghost.",
    "Mean distance between the links of both, m.",
)
"""What the curves show."""

_GRID: uplot.Axis_Grid = {"stroke": "rgba(134,142,150,0.25)", "width": 1}


class PairCurves(Widgets):
    """Curves of one episode on screen and of the one that is drawn as its ghost."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._shown: tuple[Episode, Episode] | None = None  # whose curves are drawn
        add = self._server.gui.add_html
        self._names = add("")
        reward, self._reward = add(note(TITLES[0])), self._plot()
        apart, self._distance = add(note(TITLES[1])), self._plot()
        self._curves = reward, self._reward, apart, self._distance
        for handle in (self._names, *self._curves):
            handle.visible = False

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
        """Updates the curves."""
        pair = view.pair
        # The policies of a trial are named by its table.
        self._set(self._names, visible=pair is not None and view.replay.trial is None)
        for handle in self._curves:
            self._set(handle, visible=pair is not None)
        if pair is None:
            return
        told, (one, ghost) = view.replay, (episode.summary for episode in pair)
        alone = told.only is not None or len(told.episodes) == 1
        self._set(self._names, content=episode_words.pair(one, ghost, alone=alone))
        if pair != self._shown:
            self._shown = pair
            self._draw(self._reward, *(e.steps["reward"] for e in pair))
            self._draw(self._distance, distance(*pair)[1:], np.zeros(0))

    def _draw(self, plot: Any, *lines: np.ndarray) -> None:
        """Draws lines; their first points are at the end of the first step."""
        assert self._shown is not None
        dt, most = self._shown[0].dt, max(map(len, lines))
        pad = functools.partial(_padded, most)
        values = np.concatenate(lines)
        values = values[np.isfinite(values)]
        low, high = (min(values, default=0.0), max(values, default=1.0))
        room = 0.05 * (high - low) or 0.5
        scales = {"x": {"time": False}, "y": {"range": (float(low - room), float(high + room))}}
        with self._server.atomic():
            plot.data = (dt * np.arange(1, most + 1), *map(pad, lines))
            self._set(plot, scales=scales)


def _padded(length: int, line: np.ndarray) -> np.ndarray:
    return np.append(line, np.full(length - len(line), np.nan))
