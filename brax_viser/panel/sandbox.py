"""The panel's folder for the MuJoCo sandbox: forks a robot, drives it, pushes it."""

import functools
from collections.abc import Callable
from typing import Any

import viser

from brax_viser.panel import twin_words
from brax_viser.panel.twin_words import DRIVER_LABELS
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of
from brax_viser.sandbox.limits import FRICTION, GRAVITY, MASS
from brax_viser.sandbox.session import DIRECTIONS

FORK, END = "Fork", "End"
UP = "Up"


class SandboxFolder(Widgets):
    """Controls of the sandbox; most are visible only while there is one."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._drivers: tuple[str, ...] = ()
        with self._server.gui.add_folder("MuJoCo sandbox"):
            self._add_fork()
            self._add_pushes()
            self._add_physics()
        self._inside = [
            self._go,
            self._driver,
            self._speed,
            self._direction,
            self._impulse,
            self._handle,
            self._gravity,
            self._friction,
            self._mass,
            self._body,
        ]
        for handle in self._inside:
            handle.visible = False

    def _add_fork(self) -> None:
        gui = self._server.gui
        self._note = gui.add_html("")
        self._fork = gui.add_button(
            "Fork the selected robot",
            icon=viser.Icon.GIT_FORK,
            hint="Copies the selected robot as it is on screen into a separate MuJoCo simulation, "
            "beside the others, where you can push it. The training is not touched.",
        )
        self._on_click_by(self._fork, self._actions.fork)
        self._go = gui.add_button_group(
            "Sandbox",
            (twin_words.BACK, END),
            hint="Back to the fork: the same moment once more. End: takes it away.",
        )
        self._on_pick(
            self._go,
            {twin_words.BACK: self._actions.reset_sandbox, END: self._steering.close_sandbox},
        )
        self._facts = gui.add_html("")  # below the buttons, which must not move
        self._driver: Any = gui.add_dropdown(
            "Driven by",
            tuple(DRIVER_LABELS),
            initial_value=label_of(DRIVER_LABELS, "still"),
            hint="The policy: the newest one that the trainer has handed out. Its last "
            "controls: those of its last steps in the training, over and over. The same "
            "control: that of the moment. Nothing: its motors are off.",
        )
        self._on_change(self._driver, self._change("driver"), DRIVER_LABELS.__getitem__)
        self._speed = self._slider(
            "Sandbox speed, ×",
            0.0,
            2.0,
            0.1,
            "As a multiple of the robot's own speed: 0 holds it still.",
        )
        self._on_number(self._speed, self._change("speed"))

    def _add_pushes(self) -> None:
        gui = self._server.gui
        self._direction = gui.add_button_group(
            "Push",
            (*DIRECTIONS, UP),
            hint="Pushes the robot in the sandbox, as seen from your camera.",
        )
        self._direction.on_click(self._pushed)
        self._impulse = gui.add_number(
            "Impulse, N s",
            1.0,
            step=0.1,
            hint="How hard: the change of the robot's momentum.",
        )
        self._on_number(self._impulse, self._change("impulse"), limits=(0.0, 1e5))
        self._handle = gui.add_checkbox(
            "Drag",
            False,
            hint="Gives the robot in the sandbox a handle: drag it, and a spring pulls the robot "
            "after it.",
        )
        self._on_change(self._handle, self._actions.drag_sandbox, bool)

    def _add_physics(self) -> None:
        self._gravity = self._slider(
            "Gravity, ×", *GRAVITY, 0.05, "As a multiple of the model's own; 0: none."
        )
        self._on_number(self._gravity, self._change("gravity"))
        self._friction = self._slider(
            "Friction, ×", *FRICTION, 0.05, "As a multiple of the model's own; 0: slippery as ice."
        )
        self._on_number(self._friction, self._change("friction"))
        self._mass = self._slider(
            "Mass, ×",
            *MASS,
            0.1,
            "Of the part that you clicked on, or of all parts; as a multiple of the model's.",
        )
        self._on_number(self._mass, self._change("mass"))
        self._body = self._server.gui.add_html("")

    def _change(self, name: str) -> Callable[[Any], None]:
        """Returns a function that changes one of the sandbox's settings."""
        return lambda value: self._actions.set_sandbox(**{name: value})

    def _slider(self, label: str, low: float, high: float, step: float, hint: str) -> Any:
        return self._server.gui.add_slider(label, low, high, step, 1.0, hint=hint)

    async def _pushed(self, event: viser.GuiEvent) -> None:
        if event.client_id is not None:
            push = self._actions.push_sandbox
            self._enqueue(functools.partial(push, event.target.value, event.client_id))

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        fork = view.fork
        there = fork.env is not None and fork.fault is None
        runs = there and not fork.preparing
        self._set(self._note, content=twin_words.fork(view))
        self._set(self._facts, content=twin_words.fork_facts(view))
        self._set(self._fork, disabled=view.selected_env is None or (there and fork.preparing))
        for handle in self._inside:
            self._set(handle, visible=runs)
        if not runs:
            return
        if fork.drivers != self._drivers:
            self._drivers = fork.drivers
            self._driver.options = tuple(label_of(DRIVER_LABELS, name) for name in fork.drivers)
        if fork.driver in fork.drivers:
            self._set(self._driver, value=label_of(DRIVER_LABELS, fork.driver))
        self._show_number(self._speed, fork.speed)
        self._show_number(self._impulse, fork.impulse)
        self._show_number(self._gravity, fork.gravity)
        self._show_number(self._friction, fork.friction)
        self._show_number(self._mass, round(fork.mass, 2))
        self._set(self._handle, value=fork.dragged)
        self._set(self._body, content=twin_words.pushed(view))
