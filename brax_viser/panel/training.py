"""The top of the panel: the training's progress, its hold, and the streaming."""

import functools

import viser

from brax_viser.host.control import MODES
from brax_viser.panel import words
from brax_viser.panel.limits import SPEED
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of, labels

MODE_LABELS = labels(MODES, "Real time", "Latest", "Every step")
STEPS = ("1 step", "10 steps", "Next fall")
HOLD, RESUME = "Hold training", "Resume training"
SHOW_NONFINITE, ALL_NONFINITE, DISMISS = "Select it", "Draw all such", "Dismiss"


class TrainingControls(Widgets):
    """Controls above the folders."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        self._head = gui.add_html("")
        self._nonfinite = gui.add_button_group(
            "NaN or Inf",
            (SHOW_NONFINITE, ALL_NONFINITE, DISMISS),
            hint="Selects the environment; draws those that have a NaN or an Inf right now; or "
            "takes this message away until something else turns NaN or Inf.",
            visible=False,
        )
        self._on_pick(
            self._nonfinite,
            {
                SHOW_NONFINITE: self._actions.select_nonfinite,
                ALL_NONFINITE: self._actions.draw_nonfinite,
                DISMISS: self._steering.dismiss_nonfinite,
            },
        )
        self._bar = gui.add_progress_bar(0.0)
        self._steps = gui.add_html("")
        self._add_hold()
        self._add_streaming()

    def _add_hold(self) -> None:
        gui = self._server.gui
        self._hold = gui.add_button(
            HOLD,
            icon=viser.Icon.PLAYER_PAUSE,
            hint="Holds the training itself at its next step, or lets it go on. Key: space.",
        )
        self._on_click(self._hold, self._actions.toggle_hold)
        self._step = gui.add_button_group(
            "Go on",
            STEPS,
            hint="Holds the training if it runs. Then: one env step (key N), ten of them (key M), "
            "or on until the selected robot's episode ends in a termination (key T).",
        )
        self._on_pick(
            self._step,
            {
                STEPS[0]: self._steering.step,
                STEPS[1]: functools.partial(self._steering.step, 10),
                STEPS[2]: self._actions.run_to_next_fall,
            },
        )
        self._hold_note = gui.add_html("")
        self._hold_on_nan = gui.add_checkbox(
            "Hold at the first NaN",
            False,
            hint="Holds the training once, at the very step at which anything of any environment "
            "turns NaN or Inf (reward, link poses, velocities, observations), and selects that "
            "environment. Tick it again for the next one.",
        )
        self._on_change(self._hold_on_nan, self._steering.set_hold_on_nan, bool)

    def _add_streaming(self) -> None:
        gui = self._server.gui
        self._streaming = gui.add_checkbox(
            "Streaming",
            initial_value=True,
            hint="On: robot states travel from the training to this page. Off: none does, and the "
            "training runs at full speed. The training itself goes on either way. Key: O.",
        )
        self._on_change(self._streaming, self._steering.set_streaming, bool)
        self._mode = gui.add_dropdown(
            "Motion",
            tuple(MODE_LABELS),
            initial_value="Real time",
            hint="Real time: stretches of consecutive steps at the robot's own speed, while the "
            "training runs on. Latest: the newest state, many times a second, a fast-forward. "
            "Every step: none is skipped; the training waits for the viewer when it must.",
        )
        self._on_change(self._mode, self._steering.set_mode, MODE_LABELS.__getitem__)
        self._speed = gui.add_slider(
            "Speed",
            SPEED.low,
            SPEED.high,
            0.1,
            1.0,
            hint="How fast real time is played: 1 is the robot's own speed.",
        )
        self._on_number(self._speed, self._steering.set_speed)
        self._cost = gui.add_html("")

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        progress, control = view.progress, view.control
        self._set(self._head, content=words.head(view))
        fraction = progress.fraction
        busy = progress.phase in ("waiting", "compiling", "quiet") and not view.paused
        self._set(
            self._bar, value=round(100 * (fraction or 0.0), 1), animated=busy or fraction is None
        )
        self._set(self._steps, content=words.steps(progress))
        self._show_hold(view)
        self._set(self._streaming, value=control.streaming)
        self._set(self._mode, value=label_of(MODE_LABELS, control.mode))
        self._set(self._speed, visible=control.mode == "realtime")
        self._show_number(self._speed, control.speed)
        self._set(self._cost, content=words.cost(view))

    def _show_hold(self, view: PanelView) -> None:
        self._set(
            self._hold,
            label=RESUME if view.paused else HOLD,
            color="orange" if view.paused else None,
        )
        icon = viser.Icon.PLAYER_PLAY if view.paused else viser.Icon.PLAYER_PAUSE
        self._set(self._hold, icon=icon)
        self._set(self._hold_note, content=words.hold_note(view))
        self._set(self._hold_on_nan, value=view.control.hold_on_nan)
        self._set(self._nonfinite, visible=bool(view.nonfinite))
