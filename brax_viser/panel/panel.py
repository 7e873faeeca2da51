"""The panel beside the scene: what the training does, what watching costs, and how to steer it."""

import re
from collections.abc import Callable
from typing import Any

import viser

from brax_viser.host.selection import RANKED, Selection
from brax_viser.model.cameras import cameras_of
from brax_viser.model.shapes import GROUPS, USUAL, groups_of
from brax_viser.panel import words
from brax_viser.panel.sandbox import SandboxFolder
from brax_viser.panel.twins import TwinFolder
from brax_viser.panel.view import PanelView, StreamView
from brax_viser.panel.widgets import Command, Widgets, label_of
from brax_viser.panel.words import status

__all__ = ["STEPS", "Command", "Panel", "PanelView", "StreamView", "parse_indices", "status"]

MODES = {"Real time": "realtime", "Latest": "latest", "Every step": "every_step"}
SHOWS = {"Training": "train", "Evaluation": "eval", "Both, side by side": "both"}
RULES = {
    "First ones": "first",
    "Page by page": "page",
    "Random": "random",
    "Best return": "best",
    "Worst return": "worst",
    "Just terminated": "terminated",
    "NaN or Inf": "nan",
    "Chosen by index": "indices",
}
SURROUNDINGS = {"Light": "light", "Dark": "dark", "As the model": "model"}
OTHERS = {"Show": "show", "Fade": "fade", "Hide": "hide"}
MEASURES = {
    "Last episode": "last_episode",
    "Episode so far": "so_far",
    "Reward per second": "per_second",
}
COLOURS = {
    "As the model": "model",
    "Return": "return",
    "Reward of this step": "reward",
    "Termination": "termination",
}
OVERLAY_HINTS = {
    "contacts": "Where two geoms touch: a disc across the contact.",
    "contact_forces": "The force of each contact, as an arrow as long as the force is large. "
    "MuJoCo works it out of this step's coordinates and controls.",
    "joint_axes": "An arrow along the axis of each hinge and slide.",
    "actuators": "What each actuator is told, as an arrow along what it moves: red forwards, blue "
    "backwards, full at the end of its range.",
    "violations": "Red where geoms are within each other, and along joints beyond their limits.",
    "velocities": "How each body moves: its arrow ends where it would be a tenth of a second on.",
    "com": "A ball at the centre of mass of the whole robot.",
    "inertia": "For each body, a box that has its mass and its inertia.",
    "tendons": "The paths of the tendons, from site to site.",
    "trail": "Where the body that you clicked on has been in the last three seconds; the trunk, if "
    "none was.",
    "body_frames": "x, y and z of each body in red, green and blue.",
    "geom_frames": "x, y and z of each geom in red, green and blue.",
}
YOUR_CAMERA = "Your own camera"
STEPS = ("1 step", "10 steps", "Next fall")
PAGES = ("Previous", "Next")
HOLD, RESUME = "Hold training", "Resume training"
SHOW_NONFINITE, ALL_NONFINITE, DISMISS = "Select it", "Draw all such", "Dismiss"


class Panel(Widgets):
    """Widgets on the server, shared by all pages. Callbacks only enqueue."""

    def __init__(self, server: viser.ViserServer, enqueue: Callable[[Command], None]):
        super().__init__(server, enqueue)
        self._shown_indices: tuple[int, ...] = ()
        self._model: Any = None  # a mujoco.MjModel, whose groups and cameras there are to choose
        gui = server.gui
        self._theme(dark=False)
        gui.set_panel_label("brax_viser")
        gui.main_panel.dock_right()
        self._head = gui.add_html("")
        self._nonfinite = gui.add_button_group(
            "NaN or Inf",
            (SHOW_NONFINITE, ALL_NONFINITE, DISMISS),
            hint="Selects the environment; draws those that have a NaN or an Inf right now; or "
            "takes this message away until something else turns NaN or Inf.",
            visible=False,
        )
        self._on_pick(self._nonfinite, "nonfinite")
        self._bar = gui.add_progress_bar(0.0)
        self._steps = gui.add_html("")
        self._add_hold()
        self._add_streaming()
        with gui.add_folder("Which robots"):
            self._add_choice()
        with gui.add_folder("Selected robot"):
            self._add_selected()
        with gui.add_folder("Look inside", expand_by_default=False):
            self._add_inside()
        with gui.add_folder("Look"):
            self._add_look()
        with gui.add_folder("Parts of the model", expand_by_default=False):
            self._add_parts()
        self._twins = TwinFolder(server, enqueue)
        self._sandbox = SandboxFolder(server, enqueue)
        with gui.add_folder("Pace and budget", expand_by_default=False):
            self._add_pace()
        self._add_keys()

    def _theme(self, *, dark: bool) -> None:
        self._is_dark = dark
        self._server.gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            brand_color=(28, 126, 214),
            control_width="medium",
            dark_mode=dark,
        )

    def _add_hold(self) -> None:
        gui = self._server.gui
        self._hold = gui.add_button(
            HOLD,
            icon=viser.Icon.PLAYER_PAUSE,
            hint="Holds the training itself at its next step, or lets it go on. Key: space.",
        )
        self._on_click(self._hold, "hold")
        self._step = gui.add_button_group(
            "Go on",
            STEPS,
            hint="Holds the training if it runs. Then: one env step (key N), ten of them (key M), "
            "or on until the selected robot's episode ends in a termination (key T).",
        )
        self._on_pick(self._step, "go_on")
        self._hold_note = gui.add_html("")
        self._hold_on_nan = gui.add_checkbox(
            "Hold at the first NaN",
            False,
            hint="Holds the training once, at the very step at which anything of any environment "
            "turns NaN or Inf (reward, link poses, velocities, observations), and selects that "
            "environment. Tick it anew for the next one.",
        )
        self._on_change(self._hold_on_nan, "hold_on_nan", bool)

    def _add_streaming(self) -> None:
        gui = self._server.gui
        self._streaming = gui.add_checkbox(
            "Streaming",
            initial_value=True,
            hint="On: robot states travel from the training to this page. Off: none does, and the "
            "training runs at full speed. The training itself goes on either way. Key: O.",
        )
        self._on_change(self._streaming, "streaming", bool)
        self._mode = gui.add_dropdown(
            "Motion",
            tuple(MODES),
            initial_value="Real time",
            hint="Real time: stretches of consecutive steps at the robot's own speed, while the "
            "training runs on. Latest: the newest state, many times a second, a fast-forward. "
            "Every step: none is skipped; the training waits for the viewer when it must.",
        )
        self._on_change(self._mode, "mode", MODES.__getitem__)
        self._speed = gui.add_slider(
            "Speed",
            0.1,
            4.0,
            0.1,
            1.0,
            hint="How fast real time is played: 1 is the robot's own speed.",
        )
        self._on_number(self._speed, "speed")
        self._cost = gui.add_html("")

    def _add_choice(self) -> None:
        gui = self._server.gui
        self._stepped: Any = gui.add_dropdown(
            "Environment",
            ("",),
            hint="Several environments of this viewer are stepped in turn: which one is shown.",
            visible=False,
        )
        self._on_change(self._stepped, "stepped", str)
        self._show = gui.add_dropdown(
            "Rollout",
            tuple(SHOWS),
            initial_value="Training",
            hint="The trainer steps its training and, now and then, an evaluation of the policy.",
        )
        self._on_change(self._show, "show", SHOWS.__getitem__)
        self._rule = gui.add_dropdown(
            "Envs",
            tuple(RULES),
            initial_value="First ones",
            hint="Which of the trainer's environments are drawn. Best, worst, terminated and NaN "
            "are chosen among all of them, on the device. Just terminated: each is shown as it "
            "fell, after the steps that led there where they have come.",
        )
        self._on_change(self._rule, "rule", RULES.__getitem__)
        self._rank_by = gui.add_dropdown(
            "Return",
            tuple(MEASURES),
            initial_value="Last episode",
            hint="Which return Best and Worst go by, and labels and colours: that of each env's "
            "last finished episode (those without one come behind, by reward per second); that of "
            "its episode so far, which is mostly its age; or that over its time.",
        )
        self._on_change(self._rank_by, "rank_by", MEASURES.__getitem__)
        self._page = gui.add_button_group(
            "Page",
            PAGES,
            hint="Turns the pages of environments. Keys: page up, page down.",
            visible=False,
        )
        self._on_pick(self._page, "page")
        self._indices = gui.add_text(
            "Indices",
            "",
            hint="Such as 3, 141, 7 or 100-131. The first is index 0.",
            visible=False,
        )
        self._on_change(self._indices, "indices", str)
        self._sticky = gui.add_checkbox(
            "Keep these",
            False,
            hint="On: keep the environments that were chosen. Off: choose anew at each stretch.",
            visible=False,
        )
        self._on_change(self._sticky, "sticky", bool)
        self._drawn = gui.add_html("")

    def _add_selected(self) -> None:
        gui = self._server.gui
        self._selected = gui.add_html("")
        self._follow = gui.add_checkbox(
            "Follow", False, hint="Keeps the selected robot in the middle. Key: F.", disabled=True
        )
        self._on_change(self._follow, "follow", bool, with_client=True)
        self._others = gui.add_dropdown(
            "The others",
            tuple(OTHERS),
            initial_value="Show",
            hint="What becomes of the robots that are not selected.",
            disabled=True,
        )
        self._on_change(self._others, "others", OTHERS.__getitem__)

    def _add_inside(self) -> None:
        gui = self._server.gui
        self._looked_into = gui.add_html("")
        self._overlays = {}
        for name, label in words.OVERLAY_LABELS.items():
            handle = gui.add_checkbox(label, False, hint=OVERLAY_HINTS[name])
            self._overlays[name] = handle
            self._on_change(handle, "overlay", lambda on, name=name: (name, bool(on)))
        self._missing = gui.add_html("")
        self._numbers_wanted = gui.add_checkbox(
            "Numbers",
            False,
            hint="Of the selected robot, live: where its bodies and joints are, what the policy is "
            "given and what it does.",
        )
        self._on_change(self._numbers_wanted, "numbers", bool)
        self._inside = gui.add_html("")

    def _add_look(self) -> None:
        gui = self._server.gui
        self._colour = gui.add_dropdown(
            "Colour by",
            tuple(COLOURS),
            initial_value="As the model",
            hint="Return: the one chosen under Which robots. Reward: of this step. Termination: "
            "red where an episode has just ended in one.",
        )
        self._on_change(self._colour, "colour_by", COLOURS.__getitem__)
        self._legend = gui.add_html("")
        self._labels = gui.add_checkbox(
            "Labels",
            False,
            hint="Above each robot: env index, the return chosen under Which robots, and the time "
            "of its episode.",
        )
        self._on_change(self._labels, "labels", bool)
        self._in_cells = gui.add_checkbox(
            "Stay in cells",
            True,
            hint="On: a robot that runs out of its cell comes back in on the other side, if there "
            "is nothing in its world but the floor. Off: robots are shown where they are, however "
            "far they run.",
        )
        self._on_change(self._in_cells, "in_cells", bool)
        self._surroundings = gui.add_dropdown(
            "Surroundings",
            tuple(SURROUNDINGS),
            initial_value="Light",
            hint="Dark: night in the scene and in the panel. As the model: its own sky, lights and "
            "floor.",
        )
        self._on_change(self._surroundings, "surroundings", SURROUNDINGS.__getitem__)
        self._all = gui.add_button_group(
            "Camera", ("See all robots",), hint="Brings your camera back to where it was first."
        )
        self._on_pick(self._all, "see_all", with_client=True)
        self._eye: Any = gui.add_dropdown(
            "Look through",
            (YOUR_CAMERA,),
            initial_value=YOUR_CAMERA,
            hint="A camera of the model, on the selected robot or else on the first one.",
            visible=False,
        )
        self._on_change(self._eye, "camera", str, with_client=True)

    def _add_parts(self) -> None:
        gui = self._server.gui
        self._groups = {}
        for group in GROUPS:
            handle = gui.add_checkbox(
                f"Group {group}",
                group in USUAL.groups,
                hint="Geoms, skins, sites and tendons that the model has put into this group. "
                "Usually 0 to 2 are what is to be seen, and 3 is what collides.",
                visible=False,
            )
            self._groups[group] = handle
            self._on_change(handle, "group", lambda on, group=group: (group, bool(on)))
        self._sites = gui.add_checkbox(
            "Sites",
            USUAL.sites,
            hint="Marked places of the model, those in the groups above.",
            visible=False,
        )
        self._on_change(self._sites, "sites", bool)

    def _add_pace(self) -> None:
        gui = self._server.gui
        self._budget = gui.add_number(
            "Budget, %",
            2.0,
            min=0.1,
            max=100.0,
            step=0.5,
            hint="Share of the training's time that watching may cost, in Real time and Latest: "
            "stretches and frames are spaced further apart to keep it.",
        )
        self._on_number(self._budget, "max_overhead", 0.01)
        self._stretch = gui.add_number(
            "Stretch, s",
            3.0,
            min=0.5,
            max=30.0,
            step=0.5,
            hint="How much of the robot's time one stretch of Real time shows.",
        )
        self._on_number(self._stretch, "stretch_seconds")

    def _add_keys(self) -> None:
        keys: tuple[tuple[str, Any, Command], ...] = (
            ("Hold or resume the training", "space", ("hold", None)),
            ("One env step further", "N", ("go_on", STEPS[0])),
            ("Ten env steps further", "M", ("go_on", STEPS[1])),
            ("On to the selected robot's next termination", "T", ("go_on", STEPS[2])),
            ("Switch the streaming on or off", "O", ("toggle_streaming", None)),
            ("Follow the selected robot, or not", "F", ("toggle_follow", None)),
            ("Previous page of environments", "pageup", ("page", PAGES[0])),
            ("Next page of environments", "pagedown", ("page", PAGES[1])),
        )
        for label, key, (name, value) in keys:
            command = self._server.gui.add_command(label, hotkey=key)

            async def trigger(event: Any, name: str = name, value: object = value) -> None:
                self._enqueue((name, event.client_id if value is None else value))

            command.on_trigger(trigger)

    def show(self, view: PanelView) -> None:
        """Brings the widgets up to date; only what has changed is sent."""
        progress, control = view.progress, view.control
        self._set(self._head, content=words.head(view))
        fraction = progress.fraction
        busy = progress.phase in ("waiting", "compiling", "quiet") and not view.paused
        self._set(
            self._bar, value=round(100 * (fraction or 0.0), 1), animated=busy or fraction is None
        )
        self._set(self._steps, content=words.steps(progress))
        self._show_hold(view)
        self._set(self._streaming, value=control.streaming)
        self._set(self._mode, value=label_of(MODES, control.mode))
        self._set(self._speed, visible=control.mode == "realtime")
        self._show_number(self._speed, control.speed)
        self._set(self._cost, content=words.cost(view))
        self._show_choice(view)
        self._set(self._selected, content=words.selected(view))
        none = view.selected_env is None
        self._set(self._follow, value=view.followed, disabled=none)
        self._set(self._others, value=label_of(OTHERS, view.look.others), disabled=none)
        self._set(self._looked_into, content=words.looked_into(view))
        for name, handle in self._overlays.items():
            none = name in view.unavailable
            self._set(handle, value=name in view.look.overlays and not none, disabled=none)
        self._set(self._missing, content=words.missing(view))
        self._set(self._numbers_wanted, value=view.look.numbers)
        self._set(self._inside, content=words.numbers(view))
        self._set(self._colour, value=label_of(COLOURS, view.look.colour_by))
        self._set(self._legend, content=words.legend(view))
        self._set(self._labels, value=view.look.labels)
        self._set(self._in_cells, value=view.look.in_cells)
        self._set(self._surroundings, value=label_of(SURROUNDINGS, view.surroundings))
        dark = view.surroundings == "dark"
        if dark != self._is_dark:
            self._theme(dark=dark)
        self._show_parts(view)
        self._twins.show(view)
        self._sandbox.show(view)
        self._show_number(self._budget, round(100 * control.max_overhead, 3))
        self._show_number(self._stretch, control.stretch_seconds)

    def _show_hold(self, view: PanelView) -> None:
        self._set(
            self._hold,
            label=RESUME if view.paused else HOLD,
            color="orange" if view.paused else None,
        )
        icon = viser.Icon.PLAYER_PLAY if view.paused else viser.Icon.PLAYER_PAUSE
        self._set(self._hold, icon=icon)
        self._set(self._hold_note, content=words.hold_note(view))
        self._set(self._hold_on_nan, value=view.control.hold_on_nan)
        self._set(self._nonfinite, visible=bool(view.nonfinite))

    def _show_parts(self, view: PanelView) -> None:
        model = view.model
        if model is not self._model:
            self._model = model
            eyes = [] if model is None else [eye.name for eye in cameras_of(model)]
            self._eye.options = (YOUR_CAMERA, *eyes)
            self._set(self._eye, visible=bool(eyes))
            groups = set() if model is None else groups_of(model)
            for group, handle in self._groups.items():
                self._set(handle, visible=group in groups)
            self._set(self._sites, visible=model is not None and model.nsite > 0)
        if not view.looked_through:
            self._set(self._eye, value=YOUR_CAMERA)
        for group, handle in self._groups.items():
            self._set(handle, value=group in view.parts.groups)
        self._set(self._sites, value=view.parts.sites)

    def _show_choice(self, view: PanelView) -> None:
        selection, num_envs = view.selection, view.stream.num_envs
        if view.stepped:
            if view.stepped != tuple(self._stepped.options):
                self._stepped.options = view.stepped
            self._set(self._stepped, value=view.shown)
        self._set(self._stepped, visible=len(view.stepped) > 1)
        self._set(
            self._show,
            value=label_of(SHOWS, view.control.show),
            visible=view.stream.other_known or view.control.show != "train",
        )
        self._set(self._rule, value=label_of(RULES, selection.rule))
        pages = selection.num_pages(num_envs, view.capacity) if num_envs and view.capacity else 1
        page = min(selection.page, pages)
        self._set(self._rank_by, value=label_of(MEASURES, selection.rank_by))
        self._set(
            self._page,
            visible=selection.rule == "page",
            label=f"{page} of {pages}",
        )
        self._set(self._indices, visible=selection.rule == "indices")
        if selection.indices != self._shown_indices:
            # Not what is being typed, but what was chosen otherwise.
            self._shown_indices = selection.indices
            if _indices_or_none(str(self._indices.value)) != selection.indices:
                self._set(self._indices, value=written(selection.indices))
        moves = selection.rule in ("random", *RANKED)
        self._set(self._sticky, visible=moves, value=selection.sticky)
        self._set(self._drawn, content=words.drawn(view))


def _indices_or_none(text: str) -> tuple[int, ...] | None:
    try:
        return parse_indices(text).indices
    except ValueError:
        return None


def written(indices: tuple[int, ...]) -> str:
    """(0, 1, 2, 7) as "0-2, 7"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_indices(text: str) -> Selection:
    """What a person has typed, such as "3, 141, 7" or "100-131".

    Raises:
        ValueError: something else.
    """
    indices: list[int] = []
    for part in re.split(r"[,\s]+", text.strip()):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise ValueError(f"{part!r} is neither an index nor a range such as 100-131")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first >= 100_000:
            raise ValueError(f"{part!r}: at most 100,000 indices")
        indices.extend(range(first, last + 1))
    return Selection.of(list(dict.fromkeys(indices)))
