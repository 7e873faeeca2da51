"""The top of the panel, above its tabs: the training's progress, and its hold."""

import functools

import viser

from brax_viser.panel import figures, words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets

STEPS = ("1 step", "10 steps", "Next fall")
HOLD, RESUME = "Hold training", "Resume training"
SHOW_NONFINITE, ALL_NONFINITE, DISMISS = "Select it", "Draw them all", "Dismiss"


class Head(Widgets):
    """All that is above the tabs if only recorded episodes are shown."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._head = self._server.gui.add_html("")
        self._notices = self._server.gui.add_html("")

    def show(self, view: PanelView) -> None:
        """Updates the lines."""
        self._set(self._head, content=words.head(view))
        self._set(self._notices, content=words.notices(view))


class TrainingControls(Widgets):
    """Controls above the tabs. Lines that appear and disappear are below the buttons, so that the
    buttons do not move."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        self._head = gui.add_html("")
        self._bar = gui.add_progress_bar(0.0)
        self._figures = gui.add_html("")
        self._add_hold()
        self._add_notices()

    def _add_hold(self) -> None:
        gui = self._server.gui
        self._hold = gui.add_button(
            HOLD,
            icon=viser.Icon.PLAYER_PAUSE,
            hint="Holds the training itself at its next step, or lets it go on. Key: space.",
        )
        self._on_click(self._hold, self._actions.toggle_hold)
        self._step = gui.add_button_group(
            "Step each env",
            STEPS,
            hint="Holds the training if it runs. Then has each environment take one step (key N), "
            "ten steps (key M), or as many as it takes until the selected robot's episode ends in "
            "a termination (key T). One step of 64 environments counts as 64 steps above.",
        )
        self._on_pick(
            self._step,
            {
                STEPS[0]: self._actions.step,
                STEPS[1]: functools.partial(self._actions.step, 10),
                STEPS[2]: self._actions.run_to_next_fall,
            },
        )
        self._hold_note = gui.add_html("")

    def _add_notices(self) -> None:
        gui = self._server.gui
        self._notices = gui.add_html("")
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

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        progress = view.progress
        self._set(self._head, content=words.head(view))
        fraction = progress.fraction
        busy = progress.phase in ("waiting", "compiling", "quiet") and not view.paused
        self._set(
            self._bar, value=round(100 * (fraction or 0.0), 1), animated=busy or fraction is None
        )
        self._set(self._figures, content=figures.figures(view))
        self._show_hold(view)
        self._set(self._notices, content=words.notices(view))
        self._set(self._nonfinite, visible=bool(view.nonfinite))

    def _show_hold(self, view: PanelView) -> None:
        over = view.progress.over and not view.paused
        # On its way to the next fall it moves, so what is offered is to hold it at once.
        held = view.paused and view.until_env is None
        label = RESUME if held else HOLD
        self._set(self._step, visible=not over)
        self._set(
            self._hold,
            disabled=over,
            label=label.removesuffix(" training") if view.progress.plays else label,
            color="orange" if held else None,
        )
        icon = viser.Icon.PLAYER_PLAY if held else viser.Icon.PLAYER_PAUSE
        self._set(self._hold, icon=icon)
        self._set(self._hold_note, content=words.hold_note(view))
