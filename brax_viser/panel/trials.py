"""The panel's folder in which two policies are compared: runs both from the same start."""

from typing import Any

from brax_viser.panel import trial_words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets

STARTS = {"With an episode": False, "As the selected robot": True}


class TrialFolder(Widgets):
    """Controls that choose two policies, and what they have achieved."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._trials = tools.trials
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
                hint="Has each policy drive a separate robot in MuJoCo, for up to 10 s of robot "
                "time, then plays both like a recording. The training goes on meanwhile.",
            )
            self._on_click(self._run, self._begin)
            self._table = gui.add_html("")
        self._choice = self._solid, self._ghost, self._start, self._run
        for handle in (*self._choice, self._table):
            handle.visible = False

    def _begin(self) -> None:
        start = STARTS[self._start.value]
        self._trials.begin(self._solid.value, self._ghost.value, start)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        told, trial = view.trials, view.replay.trial
        self._set(self._note, content=trial_words.told(view))
        for handle in self._choice:
            self._set(handle, visible=bool(told.choices))
        if told.choices:
            for handle, usual in ((self._solid, 0), (self._ghost, -1)):
                self._offer(handle, told.choices, usual)
        self._set(self._table, visible=trial is not None)
        if trial is not None:
            self._set(self._table, content=trial_words.table(trial))

    def _offer(self, handle: Any, choices: tuple[str, ...], usual: int) -> None:
        """Updates a list; the choice stays if it is still there."""
        if handle.options != choices:
            chosen = handle.value if handle.value in choices else _named(choices)[usual]
            handle.options = choices
            self._set(handle, value=chosen)


def _named(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the choices that are particular moments of the training."""
    return tuple(name for name in choices if not name.startswith("Step "))
