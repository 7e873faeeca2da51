"""The panel's folders for the selected robot: selection, overlays and numbers."""

import functools

from brax_viser.panel import words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of, labels
from brax_viser.scene.look import OTHERS

OTHER_LABELS = labels(OTHERS, "Show", "Fade", "Hide")
OVERLAY_HINTS = {
    "contacts": "A disc where two parts touch, or a part touches the floor.",
    "contact_forces": "The force of each contact, as an arrow as long as the force is large. "
    "MuJoCo works it out of this step's coordinates and controls.",
    "trail": "A line along which the part that you clicked on has moved in the last three seconds; "
    "the trunk, if you clicked on none.",
    "velocities": "How each part moves: its arrow ends where it would be 0.1 s later.",
    "actuators": "What each motor is told, as an arrow along what it moves: red forwards, blue "
    "backwards, full at the end of its range.",
    "joint_axes": "An arrow along the axis about which each joint turns, or along which it slides.",
    "violations": "Red where parts overlap, and along joints beyond their limits.",
    "com": "A ball at the centre of mass of the whole robot.",
    "inertia": "For each part, a box that has its mass and its inertia.",
    "tendons": "The paths of the tendons through the robot; red beyond their limits.",
    "body_frames": "The axes x, y and z of each body of the model, in red, green and blue.",
    "geom_frames": "The axes x, y and z of each shape (geom) of the model, in red, green and blue.",
}


class SelectedFolder(Widgets):
    """Controls for the selected robot, and for how the others are drawn."""

    def __init__(self, tools: PanelTools, *, has_sandbox: bool):
        """Adds the controls; `has_sandbox` tells whether the page has a tab for a sandbox."""
        super().__init__(tools)
        gui, self._has_sandbox = self._server.gui, has_sandbox
        with gui.add_folder("Selected robot"):
            self._follow = gui.add_checkbox(
                "Follow",
                False,
                hint="Keeps the selected robot in the middle. Key: F.",
                disabled=True,
            )
            self._on_change_by(self._follow, self._actions.follow, bool)
            self._others = gui.add_dropdown(
                "The others",
                tuple(OTHER_LABELS),
                initial_value="Show",
                hint="How robots that are not selected are drawn.",
                disabled=True,
            )
            self._on_change(
                self._others,
                self._look("others"),
                OTHER_LABELS.__getitem__,
            )
            # Below the controls, which must not move: its number of lines changes.
            self._selected = gui.add_html("")
            self._sandbox = gui.add_html("")

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        none = view.selected_env is None
        self._set(self._selected, content=words.selected(view))
        pushed = self._has_sandbox and not none
        self._set(self._sandbox, content=words.note(words.TO_PUSH) if pushed else "")
        self._set(self._follow, value=view.followed, disabled=none)
        self._set(self._others, value=label_of(OTHER_LABELS, view.look.others), disabled=none)


class InsideFolder(Widgets):
    """Controls for numbers and overlays of the selected robot, those asked for most first."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        gui = self._server.gui
        with gui.add_folder("Look inside"):
            self._looked_into = gui.add_html("")
            self._numbers_wanted = gui.add_checkbox(
                "Numbers",
                False,
                hint="Of the selected robot, live: where its parts and joints are, what the "
                "policy is given, camera images included, and what it does.",
            )
            self._on_change(self._numbers_wanted, self._look("numbers"), bool)
            self._inside = gui.add_html("")
            self._overlays = {}
            for name, label in words.OVERLAY_LABELS.items():
                handle = gui.add_checkbox(label, False, hint=OVERLAY_HINTS[name])
                self._overlays[name] = handle
                self._on_change(handle, functools.partial(self._actions.overlay, name), bool)
            self._missing = gui.add_html("")

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        self._set(self._looked_into, content=words.looked_into(view))
        for name, handle in self._overlays.items():
            none = name in view.unavailable
            self._set(handle, value=name in view.look.overlays and not none, disabled=none)
        self._set(self._missing, content=words.missing(view))
        self._set(self._numbers_wanted, value=view.look.numbers)
        self._set(self._inside, content=words.numbers(view))
