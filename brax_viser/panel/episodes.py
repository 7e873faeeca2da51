"""The panel's tab for recorded episodes: a time bar over the training, and their playback."""

import functools
from typing import Any

import viser

from brax_viser.host.progress import count
from brax_viser.panel import episode_words
from brax_viser.panel.limits import REPLAY_SPEED
from brax_viser.panel.view import PanelView, ReplayView
from brax_viser.panel.widgets import PanelTools, Widgets
from brax_viser.panel.words import note

ALL, NO_FALL, NO_GHOST = "All of them", "Pick one", "Nothing"
NUDGE = 1e-6
"""s, too little to be seen."""

SAVED_AS = ("HTML", "MP4", "PNG", "CSV")
BACKWARD, FORWARD = "1 back", "1 on"


class EpisodesControls(Widgets):
    """Controls for the recording that is shown, and for its playback."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._shown: tuple[Any, ...] = ()  # what the time bar and the lists were made of
        self._keys: dict[str, str] = {}  # of the recording's episodes, by label
        self._falls: dict[str, Any] = {}  # summaries, by label
        self._places_of_ghosts: dict[str, int] = {}  # of recordings among all, by label
        self._was_playing = False
        self._note = self._server.gui.add_html("")
        self._add_choice()
        self._add_playback()
        self._add_falls_and_files()
        self._inside = (
            *(self._bar, self._table, self._only, self._play, self._steps, self._time),
            *(self._speed, self._loop, self._only_end, self._fall, self._compare, self._save),
        )
        for handle in self._inside:
            handle.visible = False

    def _add_choice(self) -> None:
        gui = self._server.gui
        self._bar: Any = gui.add_slider(
            "At step",
            1,
            1,
            1,
            1,
            hint="The training from its start to now. Each place is a recording: up to four "
            "complete episodes that began at about that step.",
        )
        self._on_change(self._bar, self._replay.choose, lambda place: int(place) - 1)
        self._table = gui.add_html("")
        self._only: Any = gui.add_dropdown(
            "Episodes",
            (ALL,),
            hint="All episodes of the recording side by side, each in a cell, or one of them.",
        )
        self._on_change(self._only, self._replay.show_only, lambda label: self._keys.get(label))
        self._compare: Any = gui.add_dropdown(
            "Compare with",
            (NO_GHOST,),
            hint="Draws the episodes of another recording, such as an earlier one, as ghosts over "
            "these: each over the one that was kept for the same reason. A robot that travels has "
            "its ghost drawn where it is itself.",
        )
        self._on_change(self._compare, self._replay.compare, self._places_of_ghosts.get)

    def _add_playback(self) -> None:
        gui = self._server.gui
        self._play = gui.add_button(
            "Play",
            icon=viser.Icon.PLAYER_PLAY,
            hint="Shows the recording in place of the live robots, or pauses it. The training "
            "goes on meanwhile.",
        )
        self._on_click(self._play, self._replay.toggle)
        self._steps = gui.add_button_group(
            "Step",
            (BACKWARD, FORWARD),
            hint="Pauses, and goes one step of the environment back or on.",
        )
        back, on = (functools.partial(self._replay.step, n) for n in (-1, 1))
        self._on_pick(self._steps, {BACKWARD: back, FORWARD: on})
        self._time: Any = gui.add_slider(
            "Time, s",
            0.0,
            1.0,
            0.01,
            0.0,
            hint="Seconds of robot time. Drag it to look at any moment: playing pauses.",
        )
        self._on_change(self._time, self._replay.seek, float)
        self._speed = gui.add_slider(
            "Replay speed",
            REPLAY_SPEED.low,
            REPLAY_SPEED.high,
            0.1,
            1.0,
            hint="As a multiple of the robot's own speed: 0.5 is slow motion.",
        )
        self._on_number(self._speed, self._replay.set_speed)
        self._loop = gui.add_checkbox(
            "Loop",
            True,
            hint="Begins again once the longest episode is over; the others stand still at their "
            "ends until then.",
        )
        self._on_change(self._loop, self._replay.set_loop, bool)
        self._only_end = gui.add_checkbox(
            "Only the end",
            False,
            hint="Plays only the last 3 s of each episode, so that all end together.",
        )
        self._on_change(self._only_end, self._replay.set_only_end, bool)

    def _add_falls_and_files(self) -> None:
        gui = self._server.gui
        self._fall: Any = gui.add_dropdown(
            "Last falls",
            (NO_FALL,),
            hint="Recorded episodes that ended in a termination, the newest first. Picking one "
            "plays its last 3 s over and over, selects that robot and draws its contacts.",
        )
        self._fall.on_update(self._fall_was_picked)
        self._save = gui.add_button_group(
            "Save as",
            SAVED_AS,
            hint="Writes what is on screen into a file that this page downloads: a page that plays "
            "without a server, a video or a picture of the first episode, or the numbers.",
        )
        self._on_pick_by(self._save, self._actions.export, str)
        self._written = gui.add_html("", visible=False)

    async def _fall_was_picked(self, event: viser.GuiEvent) -> None:
        fall = self._falls.get(self._fall.value)
        if event.client is None or fall is None:
            return
        self._enqueue(functools.partial(self._replay.play_end, fall.key))
        self._enqueue(functools.partial(self._steering.set_selected_env, fall.env))
        self._enqueue(functools.partial(self._actions.overlay, "contacts", True))

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        told = view.replay
        self._set(self._note, content=episode_words.note_on(told))
        for handle in self._inside:
            self._set(handle, visible=bool(told.steps))
        if not told.steps:
            return
        made_of = told.steps, told.index, told.episodes, told.falls, view.dt
        if made_of != self._shown:
            self._shown = made_of
            self._show_choice(told, view.dt)
        label = next((label for label, key in self._keys.items() if key == told.only), ALL)
        self._set(self._only, value=label)
        with_step = None if told.compared is None else f"Step {told.steps[told.compared]:,}"
        self._set(self._compare, value=with_step or NO_GHOST)
        self._set(self._table, content=episode_words.table(told, view.dt))
        self._show_playback(told)
        written = view.exporting or ""
        self._set(self._written, content=note(written), visible=bool(written))

    def _show_choice(self, told: ReplayView, dt: float) -> None:
        """Updates the time bar and the lists to the recordings that are kept."""
        last = len(told.steps)
        self._set(self._bar, max=max(last, 2), disabled=last == 1)
        self._set(self._bar, label=f"At step {count(told.steps[told.index])}", value=told.index + 1)
        self._keys = {episode_words.name(s): s.key for s in told.episodes}
        self._falls = {episode_words.fall(s, dt): s for s in told.falls}
        self._places_of_ghosts.clear()
        self._places_of_ghosts |= {
            f"Step {step:,}": place for place, step in reversed([*enumerate(told.steps)])
        }
        self._set(self._compare, options=(NO_GHOST, *self._places_of_ghosts), disabled=last == 1)
        self._set(self._only, options=(ALL, *self._keys))
        self._set(self._fall, options=(NO_FALL, *self._falls), disabled=not self._falls)

    def _show_playback(self, told: ReplayView) -> None:
        icon = viser.Icon.PLAYER_PAUSE if told.playing else viser.Icon.PLAYER_PLAY
        self._set(self._play, label="Pause" if told.playing else "Play", icon=icon)
        self._set(self._time, disabled=not told.seconds)
        if told.seconds:
            self._set(self._time, max=round(told.seconds, 6), step=told.dt)
            position = round(told.position, 3)
            if self._was_playing and not told.playing:
                # A place that was sent while it played may reach the page after a person has set
                # another one. Viser sends only what differs from that.
                self._time.value = position + NUDGE
            else:
                self._set(self._time, value=position)
        self._was_playing = told.playing
        self._show_number(self._speed, told.speed)
        self._set(self._loop, value=told.loop)
        self._set(self._only_end, value=told.only_end)
