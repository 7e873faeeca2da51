"""The panel beside the scene: shows and steers the training and the cost of watching it."""

import functools
from collections.abc import Callable
from typing import Any

import viser

from brax_viser.panel.actions import PageActions, SteeringActions
from brax_viser.panel.choice import ChoiceFolder
from brax_viser.panel.curves import CurvesControls
from brax_viser.panel.looks import LookControls, PartsFolder
from brax_viser.panel.robot import InsideFolder, SelectedFolder
from brax_viser.panel.sandbox import SandboxFolder
from brax_viser.panel.training import TrainingControls
from brax_viser.panel.twins import TwinFolder
from brax_viser.panel.view import PanelView
from brax_viser.panel.watch import PaceFolder, WatchControls
from brax_viser.panel.widgets import PanelTools


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
        tabs = server.gui.add_tab_group()
        with tabs.add_tab("Watch"):
            self.watch = WatchControls(tools)
            self.choice = ChoiceFolder(tools)
            self.pace = PaceFolder(tools)
        with tabs.add_tab("Robot"):
            self.selected = SelectedFolder(tools)
            self.inside = InsideFolder(tools)
        with tabs.add_tab("Curves"):
            self.curves = CurvesControls(tools)
        with tabs.add_tab("Twins"):
            self.twins = TwinFolder(tools)
            self.sandbox = SandboxFolder(tools)
        with tabs.add_tab("Look"):
            self.look = LookControls(tools)
            self.parts = PartsFolder(tools)
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
        actions = tools.actions
        back, on = (functools.partial(actions.turn_page, by) for by in (-1, 1))
        keys: tuple[tuple[str, Any, Callable[[int], object]], ...] = (
            ("Hold or resume the training", "space", _by_any(actions.toggle_hold)),
            ("One env step further", "N", _by_any(actions.step)),
            ("Ten env steps further", "M", _by_any(functools.partial(actions.step, 10))),
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
            self.watch,
            self.choice,
            self.pace,
            self.selected,
            self.inside,
            self.twins,
            self.sandbox,
            self.look,
            self.parts,
            self.curves,
        ):
            controls.show(view)


def _by_any(action: Callable[[], object]) -> Callable[[int], object]:
    """Adapts an action that does not need the page's client id."""
    return lambda client_id: action()
