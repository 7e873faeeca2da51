"""The panel's controls for how the training is watched: what is sent, played, and paid for it."""

from brax_viser.host.control import MODES
from brax_viser.panel import words
from brax_viser.panel.limits import SPEED, STRETCH_SECONDS
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of, labels

MODE_LABELS = labels(MODES, "Real time", "Latest", "Every step")


class WatchControls(Widgets):
    """Controls for the stream of robots, and for the hold at a NaN."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._add_streaming()

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
            hint="Real time: clips of consecutive steps at the robot's own speed, while the "
            "training runs on. Latest: the newest state, many times a second, a fast-forward. "
            "Every step: none is skipped; the training waits for the viewer when it must.",
        )
        self._on_change(self._mode, self._steering.set_mode, MODE_LABELS.__getitem__)
        self._speed = gui.add_slider(
            "Speed, ×",
            SPEED.low,
            SPEED.high,
            0.1,
            1.0,
            hint="How fast Real time is played, as a multiple of the robot's own speed: 0.5 is "
            "slow motion.",
        )
        self._on_number(self._speed, self._steering.set_speed)
        self._hold_on_nan = gui.add_checkbox(
            "Hold at the first NaN",
            False,
            hint="Holds the training once, at the very step at which a reward, pose, velocity or "
            "observation of any environment turns NaN or Inf, and selects that environment. "
            "Tick it again for the next one.",
        )
        self._on_change(self._hold_on_nan, self._steering.set_hold_on_nan, bool)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        control = view.control
        self._set(self._streaming, value=control.streaming)
        self._set(self._mode, value=label_of(MODE_LABELS, control.mode))
        self._set(self._speed, visible=control.mode == "realtime")
        self._show_number(self._speed, control.speed)
        self._set(self._hold_on_nan, value=control.hold_on_nan)


class PaceFolder(Widgets):
    """Controls for the budget, and for the length of a stretch."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        with gui.add_folder("Pace and cost"):
            self._budget = gui.add_number(
                "Budget, %",
                2.0,
                step=0.5,
                hint="Share of the training's time that watching may cost, in Real time and "
                "Latest: clips and frames are spaced further apart to keep it.",
            )
            self._on_number(self._budget, self._steering.set_max_overhead, _share_of, (0.1, 100.0))
            self._stretch = gui.add_number(
                "Clip length, s",
                3.0,
                step=0.5,
                hint="How many seconds of the robot's time one clip of Real time shows. After "
                "it comes the newest clip of the training.",
            )
            limits = STRETCH_SECONDS.low, STRETCH_SECONDS.high
            self._on_number(self._stretch, self._steering.set_stretch_seconds, limits=limits)
            self._cost = gui.add_html("")

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        self._show_number(self._budget, round(100 * view.control.max_overhead, 3))
        self._show_number(self._stretch, view.control.stretch_seconds)
        self._set(self._cost, content=words.cost(view))


def _share_of(percent: float) -> float:
    return 0.01 * percent
