"""The panel's tab for recorded episodes: which of a recording are shown, and how.

The recording and the moment are chosen in the time bar below the scene (page/bar.js).
"""

import functools
import importlib.util
from typing import Any

import viser

from brax_viser.panel import episode_words
from brax_viser.panel.view import PanelView, ReplayView
from brax_viser.panel.widgets import PanelTools, Widgets
from brax_viser.panel.words import note
from brax_viser.records.episode import Summary

ALL, NO_END, NO_GHOST = "All of them", "Pick a recorded one", "Nothing"


class EpisodesControls(Widgets):
    """Controls for the recording that is chosen."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._active = False  # whether recorded episodes are on screen
        self._shown: tuple[Any, ...] = ()  # what the lists were made of
        self._keys: dict[str, str] = {}  # keys of the recording's episodes, by label
        self._ended: dict[str, Summary] = {}  # by label
        self._places_of_ghosts: dict[str, int] = {}  # places of recordings among all, by label
        self._note = self._server.gui.add_html("")
        self._table = self._server.gui.add_html("")
        self._add_choice()
        self._add_endings()
        self._inside = self._table, self._only, self._compare, self._only_end, self._end
        if not tools.relayed:
            self._inside = *self._inside, self._add_files()
        self._bar = self._server.gui.add_progress_bar(0.0, visible=False, animated=True)
        self._written = self._server.gui.add_html("", visible=False)
        for handle in self._inside:
            handle.visible = False

    def _add_choice(self) -> None:
        gui = self._server.gui
        self._only: Any = gui.add_dropdown(
            "Episodes",
            (ALL,),
            hint="All episodes of the recording side by side, each in a cell, or one of them.",
        )
        self._on_change(self._only, self._show_only, lambda label: self._keys.get(label))
        self._compare: Any = gui.add_dropdown(
            "Compare with",
            (NO_GHOST,),
            hint="Draws the episodes of another recording, such as an earlier one, as ghosts over "
            "these: each over the one that was kept for the same reason. A robot that travels has "
            "its ghost drawn where it is itself.",
        )
        self._on_change(self._compare, self._replay.compare, self._places_of_ghosts.get)
        self._only_end = gui.add_checkbox(
            "Only the end",
            False,
            hint="Plays only the last 3 s of each episode, so that all end together.",
        )
        self._on_change(self._only_end, self._replay.set_only_end, bool)

    def _show_only(self, key: str | None) -> None:
        """Shows one episode of the recording, or all, in place of live robots too."""
        if not self._active:
            self._replay.turn(0)
        self._replay.show_only(key)

    def _add_endings(self) -> None:
        gui = self._server.gui
        self._end: Any = gui.add_dropdown(
            "Last endings",
            (NO_END,),
            hint="Recorded episodes by how they ended: falls and NaNs first, then those at a time "
            "limit, the newest first. Picking one plays its last 3 s over and over, selects that "
            "robot and draws its contacts.",
        )
        self._end.on_update(self._end_was_picked)

    def _add_files(self) -> Any:
        save = self._server.gui.add_button_group(
            "Save as",
            saved_as(),
            hint="Writes what is on screen into a file that this page downloads: a page that plays "
            "without a server, a video or an animation of the first episode, a picture of it at "
            "this moment, the numbers, or a recording for Rerun, where that is installed.",
        )
        self._on_pick_by(save, self._actions.export, str)
        return save

    async def _end_was_picked(self, event: viser.GuiEvent) -> None:
        picked = self._ended.get(self._end.value)
        if event.client is None or picked is None:
            return
        self._enqueue(functools.partial(self._replay.play_end, picked.key))
        self._enqueue(functools.partial(self._steering.set_selected_env, picked.env))
        self._enqueue(functools.partial(self._actions.overlay, "contacts", True))

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        told, self._active = view.replay, view.replay.active
        self._set(self._note, content=episode_words.note_on(told, view.kept_in))
        for handle in self._inside:
            self._set(handle, visible=bool(told.steps))
        for handle in (self._table, self._only, self._compare):  # they describe the recording
            self._set(handle, visible=bool(told.steps) and told.trial is None)
        if not told.steps:
            return
        made_of = told.steps, told.index, told.episodes, told.ended, told.endings, view.dt
        if made_of != self._shown:
            self._shown = made_of
            self._show_choice(told, view.dt)
        label = next((label for label, key in self._keys.items() if key == told.only), ALL)
        self._set(self._only, value=label)
        with_step = None if told.compared is None else f"Step {told.steps[told.compared]:,}"
        self._set(self._compare, value=with_step or NO_GHOST)
        self._set(self._table, content=episode_words.table(told, view.dt))
        self._set(self._only_end, value=told.only_end)
        self._set(self._bar, value=round(100 * (view.exported or 0.0)))
        self._set(self._bar, visible=view.exported is not None)
        written = view.exporting or ""
        self._set(self._written, content=note(written), visible=bool(written))

    def _show_choice(self, told: ReplayView, dt: float) -> None:
        """Updates the lists to the recordings that are kept."""
        self._keys = {episode_words.name(s): s.key for s in told.episodes}
        self._ended = {episode_words.ended(s, told.endings, dt): s for s in told.ended}
        self._places_of_ghosts.clear()
        self._places_of_ghosts |= {
            f"Step {step:,}": place for place, step in reversed([*enumerate(told.steps)])
        }
        alone = len(told.steps) == 1
        self._set(self._compare, options=(NO_GHOST, *self._places_of_ghosts), disabled=alone)
        self._set(self._only, options=(ALL, *self._keys))
        self._set(self._end, options=(NO_END, *self._ended), disabled=not self._ended)


def saved_as() -> tuple[str, ...]:
    """Returns the kinds of files that can be written here."""
    rerun = importlib.util.find_spec("rerun") is not None
    return "HTML", "MP4", "GIF", "PNG", "CSV", *(("RRD",) if rerun else ())
