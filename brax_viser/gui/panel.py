"""The panel beside the scene: what the training does, what watching costs, and the switch."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import viser

from brax_viser.progress import ProgressView, count, duration

MODE_LABELS = {"latest": "Latest", "every_step": "Every step"}

Command = tuple[str, object]
"""("streaming", bool) or ("mode", str): what a person has asked for."""

_DOT = {"training": "#2f9e44", "evaluating": "#1c7ed6", "failed": "#e03131", "done": "#868e96"}
_WAITING_DOT = "#f08c00"


@dataclass(frozen=True)
class PanelView:
    """All that the panel shows."""

    env: str  # "Ant · positional"
    progress: ProgressView
    streaming: bool
    mode: str
    overhead: float  # share of wall-clock, 0 to 1
    max_overhead: float
    bytes_per_second: float
    frames_per_second: float
    drawn: int
    num_envs: int | None  # None before the first step
    fault: str | None  # why streaming was switched off, if it was not the user


class Panel:
    """Widgets on the server, shared by all pages. Callbacks only enqueue."""

    def __init__(self, server: viser.ViserServer, enqueue: Callable[[Command], None]):
        gui = server.gui
        gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            brand_color=(28, 126, 214),
            control_width="medium",
        )
        gui.set_panel_label("brax_viser")
        gui.main_panel.dock_right()
        self._head = gui.add_html("")
        self._bar = gui.add_progress_bar(0.0)
        self._steps = gui.add_html("")
        gui.add_divider()
        self._streaming = gui.add_checkbox(
            "Streaming",
            initial_value=True,
            hint="On: robot states travel from the training to this page. Off: none does, and the "
            "training runs at full speed. The training itself goes on either way.",
        )
        gui.add_html(_note("Off: no state leaves the device; the training goes on at full speed."))
        self._mode = gui.add_dropdown(
            "Show",
            tuple(MODE_LABELS.values()),
            initial_value=MODE_LABELS["latest"],
            hint="Latest: the newest state, many times a second, while the training runs ahead. "
            "Every step: each environment step reaches the viewer; the training waits for it when "
            "it must.",
        )
        self._cost = gui.add_html("")
        self._shown: dict[str, object] = {}

        @self._streaming.on_update
        def _(event: viser.GuiEvent) -> None:
            # Without a client it is our own `show` that has set the value.
            if event.client is not None:
                enqueue(("streaming", self._streaming.value))

        @self._mode.on_update
        def _(event: viser.GuiEvent) -> None:
            if event.client is not None:
                modes = {label: mode for mode, label in MODE_LABELS.items()}
                enqueue(("mode", modes[self._mode.value]))

    def show(self, view: PanelView) -> None:
        """Brings the widgets up to date; only what has changed is sent."""
        progress = view.progress
        self._set("head", self._head, "content", _head(view))
        fraction = progress.fraction
        self._set("bar", self._bar, "value", round(100 * (fraction or 0.0), 1))
        busy = progress.phase in ("waiting", "compiling", "quiet")
        self._set("busy", self._bar, "animated", busy or fraction is None)
        self._set("steps", self._steps, "content", _steps(progress))
        self._set("streaming", self._streaming, "value", view.streaming)
        self._set("mode", self._mode, "value", MODE_LABELS[view.mode])
        self._set("cost", self._cost, "content", _cost(view))

    def _set(self, key: str, handle: object, attribute: str, value: object) -> None:
        # Compared with the widget, not with what was last sent: a person may have changed it.
        if self._shown.get(key) != value or getattr(handle, attribute) != value:
            self._shown[key] = value
            setattr(handle, attribute, value)


def status(view: PanelView) -> str:
    """What is happening, in one sentence."""
    progress, seconds = view.progress, f"{view.progress.phase_seconds:.0f} s"
    if view.fault is not None:
        return f"Streaming stopped by a fault, the training goes on: {view.fault}"
    # Also between two rollouts, when no step comes: who has switched it off must always see so.
    if not view.streaming and progress.phase in ("training", "evaluating", "quiet"):
        return "Streaming is off: the training goes on unseen"
    match progress.phase:
        case "waiting":
            return "Waiting for a trainer: hand it this environment"
        case "compiling":
            return f"Compiling the training step, {seconds}"
        case "training":
            return "Live"
        case "evaluating":
            return "Evaluating the policy; the robots go on after it"
        case "quiet":
            return f"No step for {seconds}: updating, compiling, or finished"
        case "done":
            return "Training has finished"
        case _:
            return f"Training has failed: {progress.error}"


def _head(view: PanelView) -> str:
    dot = _DOT.get(view.progress.phase, _WAITING_DOT)
    if view.fault is not None:
        dot = _DOT["failed"]
    name = " · ".join(part for part in (view.env, view.progress.algorithm) if part)
    return (
        '<div style="padding:0.5em 0.75em 0.4em 0.75em;line-height:1.45">'
        f'<div style="font-size:1.15em;font-weight:600">{escape(name)}</div>'
        f'<div><span style="color:{dot}">&#9679;</span> {escape(status(view))}</div></div>'
    )


def _steps(progress: ProgressView) -> str:
    goal = f" of {count(progress.num_timesteps)}" if progress.num_timesteps else ""
    rows = [
        ("Steps", f"{count(progress.env_steps)}{goal}"),
        ("Speed", f"{count(progress.steps_per_second)} steps/s"),
        ("Elapsed", duration(progress.elapsed)),
        ("Left", "?" if progress.remaining is None else duration(progress.remaining)),
    ]
    if progress.reward:
        rows.append(("Reward", progress.reward))
    return _table(rows)


def _cost(view: PanelView) -> str:
    of = f" of {view.num_envs:,}" if view.num_envs is not None else ""
    if not view.streaming:
        cost, data = "nothing: no state leaves the device", "0 MB/s"
    else:
        # Only `latest` is paced by the budget; every_step has none, and says what it costs.
        budget = f" (budget {100 * view.max_overhead:.3g} %)" if view.mode == "latest" else ""
        cost = f"{100 * view.overhead:.1f} % of the time{budget}"
        data = f"{view.bytes_per_second / 1e6:.2f} MB/s, {view.frames_per_second:.0f} frames/s"
    return _table(
        [("Drawn", f"{view.drawn:,}{of} envs"), ("Watching costs", cost), ("From device", data)]
    )


def _note(text: str) -> str:
    return (
        '<div style="margin:-0.4em 0.75em 0.2em 0.75em;font-size:0.8em;color:#868e96">'
        f"{escape(text)}</div>"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><td style="color:#868e96;padding-right:1em;white-space:nowrap;vertical-align:top">'
        f"{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f'<table style="margin:0.25em 0.75em;font-size:0.9em;line-height:1.5">{cells}</table>'
