"""The panel's controls for how robots look, and for the parts of them that are drawn."""

import functools
from typing import Any

from brax_viser.model.cameras import cameras_of
from brax_viser.model.framing import VIEWS
from brax_viser.model.shapes import GROUPS, USUAL, groups_of
from brax_viser.panel import words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of, labels
from brax_viser.scene.look import COLOUR_RULES
from brax_viser.scene.scene import SURROUNDINGS

SURROUNDING_LABELS = labels(SURROUNDINGS, "Light", "Dark", "As the model")
COLOUR_LABELS = labels(COLOUR_RULES, "As the model", "Return", "Reward of this step", "Termination")
VIEW_LABELS = labels(tuple(VIEWS), "Orbit", "Front", "Side", "Top")
YOUR_CAMERA = "Your own camera"


class LookControls(Widgets):
    """Controls for colours, labels, surroundings and cameras."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._model: Any = None  # the mujoco.MjModel whose cameras are listed
        self._add_look()
        self._add_cameras()

    def _add_look(self) -> None:
        gui = self._server.gui
        self._colour = gui.add_dropdown(
            "Colour by",
            tuple(COLOUR_LABELS),
            initial_value="As the model",
            hint="What the colour of a robot says. Return: the one chosen under Watch. Reward of "
            "this step. Termination: red where an episode has just ended in one, as by a fall.",
        )
        self._on_change(self._colour, self._look("colour_by"), COLOUR_LABELS.__getitem__)
        self._legend = gui.add_html("")
        self._labels = gui.add_checkbox(
            "Labels",
            False,
            hint="Above each robot: the number of its environment, the return chosen under "
            "Watch, the time of its episode, s, and if it travels, how far it is from the origin "
            "of its world, m.",
        )
        self._on_change(self._labels, self._look("labels"), bool)
        self._tints = gui.add_checkbox(
            "Tints",
            True,
            hint="Each cell, and its robot if that has one colour alone, has a slight colour of "
            "its own, to tell robots apart. Off: the model's own colours.",
        )
        self._on_change(self._tints, self._look("tints"), bool)
        self._in_cells = gui.add_checkbox(
            "Stay in cells",
            True,
            hint="On: a robot that travels stays in its cell, and the marks on the floor pass "
            "under it, if there is nothing in its world but the floor. Off: robots are shown where "
            "they are, however far they run.",
        )
        self._on_change(self._in_cells, self._look("in_cells"), bool)
        self._surroundings = gui.add_dropdown(
            "Surroundings",
            tuple(SURROUNDING_LABELS),
            initial_value="Light",
            hint="Dark: night in the scene and in the panel. As the model: its own sky, lights and "
            "floor.",
        )
        self._on_change(self._surroundings, self._actions.surround, SURROUNDING_LABELS.__getitem__)

    def _add_cameras(self) -> None:
        gui = self._server.gui
        self._all = gui.add_button_group(
            "Camera", ("See all robots",), hint="Brings all robots back into the picture."
        )
        self._on_click_by(self._all, self._actions.see_all)
        self._view = gui.add_button_group(
            "View from",
            tuple(VIEW_LABELS),
            hint="All robots, seen from there. They stay in the picture when the window's shape "
            "changes, until you move the camera.",
        )
        self._on_pick_by(self._view, self._actions.view_from, VIEW_LABELS.__getitem__)
        self._eye: Any = gui.add_dropdown(
            "Look through",
            (YOUR_CAMERA,),
            initial_value=YOUR_CAMERA,
            hint="A camera of the model, on the selected robot or else on the first one.",
            visible=False,
        )
        self._on_change_by(self._eye, self._actions.look_through, str)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        self._set(self._colour, value=label_of(COLOUR_LABELS, view.look.colour_by))
        self._set(self._legend, content=words.legend(view))
        self._set(self._labels, value=view.look.labels)
        self._set(self._tints, value=view.look.tints)
        self._set(self._in_cells, value=view.look.in_cells)
        self._set(self._surroundings, value=label_of(SURROUNDING_LABELS, view.surroundings))
        if view.model is not self._model:
            self._model = view.model
            eyes = [] if view.model is None else [eye.name for eye in cameras_of(view.model)]
            self._eye.options = (YOUR_CAMERA, *eyes)
            self._set(self._eye, visible=bool(eyes))
        if not view.looked_through:
            self._set(self._eye, value=YOUR_CAMERA)


class PartsFolder(Widgets):
    """Controls for the parts of the model that are drawn."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._model: Any = None  # the mujoco.MjModel whose groups are listed
        gui = self._server.gui
        with gui.add_folder("Parts of the model", expand_by_default=False):
            self._groups = {}
            for group in GROUPS:
                handle = gui.add_checkbox(
                    f"Group {group}",
                    group in USUAL.groups,
                    hint="Shapes (geoms), skins, marked places (sites) and tendons that the model "
                    "has put into this group. Usually 0 to 2 are meant to be seen, and 3 collides.",
                    visible=False,
                )
                self._groups[group] = handle
                self._on_change(handle, functools.partial(self._actions.show_group, group), bool)
            self._sites = gui.add_checkbox(
                "Sites",
                USUAL.sites,
                hint="Marked places of the model, such as those of sensors, in the groups above.",
                visible=False,
            )
            self._on_change(self._sites, self._actions.show_sites, bool)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        model = view.model
        if model is not self._model:
            self._model = model
            groups = set() if model is None else groups_of(model)
            for group, handle in self._groups.items():
                self._set(handle, visible=group in groups)
            self._set(self._sites, visible=model is not None and model.nsite > 0)
        for group, handle in self._groups.items():
            self._set(handle, value=group in view.parts.groups)
        self._set(self._sites, value=view.parts.sites)
