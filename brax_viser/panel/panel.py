"""The panel beside the scene: shows and steers the training and the cost of watching it."""

import functools
from collections.abc import Callable
from typing import Any

from brax_viser.panel.choice import ChoiceFolder
from brax_viser.panel.curves import CurvesControls
from brax_viser.panel.episodes import EpisodesControls
from brax_viser.panel.looks import LookControls, PartsFolder
from brax_viser.panel.pair import PairCurves
from brax_viser.panel.robot import InsideFolder, SelectedFolder
from brax_viser.panel.sandbox import SandboxFolder
from brax_viser.panel.training import Head, TrainingControls
from brax_viser.panel.trials import TrialFolder
from brax_viser.panel.twins import TwinFolder
from brax_viser.panel.view import PanelView
from brax_viser.panel.watch import PaceFolder, WatchControls
from brax_viser.panel.widgets import PanelTools, Widgets


class Panel:
    """All controls, on the server and shared by all pages. Their callbacks only enqueue."""

    def __init__(
        self,
        tools: PanelTools,
        *,
        is_live: bool = True,
    ):
        """Adds the controls to the page.

        Args:
            tools: what controls are made with.
            is_live: whether there is a training; otherwise only recorded episodes are shown.
        """
        self._server, self._is_dark = tools.server, False
        self._theme(dark=False)
        gui = self._server.gui
        gui.set_panel_label("brax_viser")
        gui.main_panel.dock_right()
        if is_live:
            self.training = TrainingControls(tools)
        else:
            self.head = Head(tools)
        tabs = gui.add_tab_group()
        if is_live:
            with tabs.add_tab("Watch"):
                self.watch = WatchControls(tools)
                self.choice = ChoiceFolder(tools)
                self.pace = PaceFolder(tools)
        with tabs.add_tab("Episodes"):
            self.episodes = EpisodesControls(tools)
            if not tools.relayed:
                self.trials = TrialFolder(tools)
            self.pair = PairCurves(tools)
        with tabs.add_tab("Robot"):
            self.selected = SelectedFolder(tools, has_sandbox=is_live)
            self.inside = InsideFolder(tools)
        with tabs.add_tab("Curves"):
            self.curves = CurvesControls(tools)
        if is_live:
            with tabs.add_tab("Twins"):
                self.twins = TwinFolder(tools)
                self.sandbox = SandboxFolder(tools)
        with tabs.add_tab("Look"):
            self.look = LookControls(tools)
            self.parts = PartsFolder(tools)
        self._controls = [part for part in vars(self).values() if isinstance(part, Widgets)]
        self._add_keys(tools, is_live=is_live)

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

    def _add_keys(self, tools: PanelTools, *, is_live: bool) -> None:
        actions, replay = tools.actions, tools.replay
        back, on = (functools.partial(actions.turn_page, by) for by in (-1, 1))
        backwards = functools.partial(replay.play, backwards=True)
        steps = {n: _by_any(functools.partial(replay.step, n)) for n in (-1, 1, 10)}
        both: tuple[tuple[str, Any, Callable[[int], object]], ...] = (
            ("Play or pause the recorded episodes", "K", _by_any(replay.toggle)),
            ("Recorded episodes: one step back", "J", steps[-1]),
            ("Recorded episodes: one step on", "L", steps[1]),
            ("Play the recorded episodes backwards", "shift+J", _by_any(backwards)),
            ("The recording before", "U", _by_any(functools.partial(replay.turn, -1))),
            ("The recording after", "I", _by_any(functools.partial(replay.turn, 1))),
            ("Follow the selected robot, or not", "F", actions.toggle_follow),
        )
        recorded: tuple[tuple[str, Any, Callable[[int], object]], ...] = (
            ("Play or pause the episodes", "space", _by_any(replay.toggle)),
            ("One step forward", "N", steps[1]),
            ("Ten steps forward", "M", steps[10]),
        )
        live: tuple[tuple[str, Any, Callable[[int], object]], ...] = (
            ("Back to the live robots", "B", _by_any(replay.close)),
            ("Hold or resume the training", "space", _by_any(actions.toggle_hold)),
            ("One env step further", "N", _by_any(actions.step)),
            ("Ten env steps further", "M", _by_any(functools.partial(actions.step, 10))),
            (
                "On to the selected robot's next termination",
                "T",
                _by_any(actions.run_to_next_fall),
            ),
            ("Switch the streaming on or off", "O", _by_any(actions.toggle_streaming)),
            ("Previous page of environments", "pageup", _by_any(back)),
            ("Next page of environments", "pagedown", _by_any(on)),
        )
        for label, key, action in (*(live if is_live else recorded), *both):
            parts: list[Any] = key.split("+")  # a modifier, if there is one, and the key
            modifier = parts[0] if len(parts) > 1 else None
            command = self._server.gui.add_command(label, hotkey=parts[-1], modifier=modifier)

            async def trigger(event: Any, action: Callable[[int], object] = action) -> None:
                tools.enqueue(functools.partial(action, event.client_id))

            command.on_trigger(trigger)

    def show(self, view: PanelView) -> None:
        """Updates the controls; only changed values are sent."""
        dark = view.surroundings == "dark"
        if dark != self._is_dark:
            self._theme(dark=dark)
        for controls in self._controls:
            controls.show(view)


def _by_any(action: Callable[[], object]) -> Callable[[int], object]:
    """Adapts an action that does not need the page's client id."""
    return lambda client_id: action()
