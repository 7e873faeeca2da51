"""The panel beside the scene: shows and steers the training and the cost of watching it."""

import functools
from collections.abc import Callable
from typing import Any

import viser

from brax_viser.panel.actions import PageActions, SteeringActions
from brax_viser.panel.choice import ChoiceFolder
from brax_viser.panel.curves import CurvesWindow
from brax_viser.panel.limits import STRETCH_SECONDS
from brax_viser.panel.looks import LookFolder, PartsFolder
from brax_viser.panel.robot import InsideFolder, SelectedFolder
from brax_viser.panel.sandbox import SandboxFolder
from brax_viser.panel.training import TrainingControls
from brax_viser.panel.twins import TwinFolder
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets


class PaceFolder(Widgets):
    """Controls for the budget, and for the length of a stretch."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        with gui.add_folder("Pace and budget", expand_by_default=False):
            self._budget = gui.add_number(
                "Budget, %",
                2.0,
                min=0.1,
                max=100.0,
                step=0.5,
                hint="Share of the training's time that watching may cost, in Real time and "
                "Latest: stretches and frames are spaced further apart to keep it.",
            )
            self._on_number(
                self._budget, self._steering.set_max_overhead, lambda percent: 0.01 * percent
            )
            self._stretch = gui.add_number(
                "Stretch, s",
                3.0,
                min=STRETCH_SECONDS.low,
                max=STRETCH_SECONDS.high,
                step=0.5,
                hint="How much of the robot's time one stretch of Real time shows.",
            )
            self._on_number(self._stretch, self._steering.set_stretch_seconds)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        self._show_number(self._budget, round(100 * view.control.max_overhead, 3))
        self._show_number(self._stretch, view.control.stretch_seconds)


class Panel:
    """All controls, on the server and shared by all pages. Their callbacks only enqueue."""

    def __init__(
        self,
        server: viser.ViserServer,
        enqueue: Callable[[Callable[[], object]], None],
        steering: SteeringActions,
        actions: PageActions,
    ):
        """Adds the controls to the page.

        Args:
            server: viser's server.
            enqueue: queues an action for the page's loop; called on any thread.
            steering: actions that a script has as well.
            actions: actions that only a person in the page has.
        """
        self._server, self._is_dark = server, False
        self._theme(dark=False)
        server.gui.set_panel_label("brax_viser")
        server.gui.main_panel.dock_right()
        tools = PanelTools(server, enqueue, steering, actions)
        self.training = TrainingControls(tools)
        self.choice = ChoiceFolder(tools)
        self.selected = SelectedFolder(tools)
        self.inside = InsideFolder(tools)
        self.look = LookFolder(tools)
        self.parts = PartsFolder(tools)
        self.twins = TwinFolder(tools)
        self.sandbox = SandboxFolder(tools)
        self.pace = PaceFolder(tools)
        self.curves = CurvesWindow(tools)
        self._add_keys(tools)

    @property
    def is_dark(self) -> bool:
        return self._is_dark

    def _theme(self, *, dark: bool) -> None:
        self._is_dark = dark
        self._server.gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            brand_color=(28, 126, 214),
            control_width="medium",
            dark_mode=dark,
        )

    def _add_keys(self, tools: PanelTools) -> None:
        steering, actions = tools.steering, tools.actions
        back, on = (functools.partial(actions.turn_page, by) for by in (-1, 1))
        keys: tuple[tuple[str, Any, Callable[[int], object]], ...] = (
            ("Hold or resume the training", "space", _by_any(actions.toggle_hold)),
            ("One env step further", "N", _by_any(steering.step)),
            ("Ten env steps further", "M", _by_any(functools.partial(steering.step, 10))),
            (
                "On to the selected robot's next termination",
                "T",
                _by_any(actions.run_to_next_fall),
            ),
            ("Switch the streaming on or off", "O", _by_any(actions.toggle_streaming)),
            ("Follow the selected robot, or not", "F", actions.toggle_follow),
            ("Previous page of environments", "pageup", _by_any(back)),
            ("Next page of environments", "pagedown", _by_any(on)),
        )
        for label, key, action in keys:
            command = self._server.gui.add_command(label, hotkey=key)

            async def trigger(event: Any, action: Callable[[int], object] = action) -> None:
                tools.enqueue(functools.partial(action, event.client_id))

            command.on_trigger(trigger)

    def show(self, view: PanelView) -> None:
        """Updates the controls; only changed values are sent."""
        dark = view.surroundings == "dark"
        if dark != self._is_dark:
            self._theme(dark=dark)
        for controls in (
            self.training,
            self.choice,
            self.selected,
            self.inside,
            self.look,
            self.parts,
            self.twins,
            self.sandbox,
            self.pace,
            self.curves,
        ):
            controls.show(view)


def _by_any(action: Callable[[], object]) -> Callable[[int], object]:
    """Adapts an action that does not need the page's client id."""
    return lambda client_id: action()
