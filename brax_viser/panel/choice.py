"""The panel's folder for choosing which robots are drawn."""

import functools
import re
from collections.abc import Sequence
from typing import Any

from brax_viser.host.control import SHOWS
from brax_viser.host.selection import OF_AGENTS, RANKED, RULES, Selection
from brax_viser.panel import words
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import PanelTools, Widgets, label_of, labels
from brax_viser.records.protocol import MEASURES

SHOW_LABELS = labels(SHOWS, "Training", "Evaluation", "Both, side by side")
RULE_LABELS = labels(
    RULES,
    "First ones",
    "Page by page",
    "Random",
    "Best return",
    "Worst return",
    "Just terminated",
    "NaN or Inf",
    "Some of each agent",
    "One agent",
    "Chosen by index",
)
MEASURE_LABELS = labels(MEASURES, "Last episode", "Episode so far", "Reward per second")
PAGES = ("Previous", "Next")


class ChoiceFolder(Widgets):
    """Controls for the rollout, and for the rule that chooses environments."""

    def __init__(self, tools: PanelTools):
        super().__init__(tools)
        self._shown_indices: tuple[int, ...] = ()
        self._room = MOST_INDICES  # cells that robots can fill, once that is known
        with self._server.gui.add_folder("Which robots"):
            self._add_rollout()
            self._add_rule()
            self._add_details()
            self._drawn = self._server.gui.add_html("")

    def _add_rollout(self) -> None:
        gui = self._server.gui
        self._stepped: Any = gui.add_dropdown(
            "Environment",
            ("",),
            hint="Several environments of this viewer are stepped in turn: which one is shown.",
            visible=False,
        )
        self._on_change(self._stepped, self._actions.show_stepped, str)
        self._show = gui.add_dropdown(
            "Rollout",
            tuple(SHOW_LABELS),
            initial_value="Training",
            hint="Training: the robots that the trainer learns from. Evaluation: those by which it "
            "now and then measures how good the policy is.",
        )
        self._on_change(self._show, self._steering.set_show, SHOW_LABELS.__getitem__)

    def _add_rule(self) -> None:
        gui = self._server.gui
        self._rule = gui.add_dropdown(
            "Draw",
            _rules_for(()),
            initial_value="First ones",
            hint="Which of the trainer's environments are drawn. Best, worst, terminated and NaN "
            "are chosen among all of them, also among those not drawn. Just terminated: each is "
            "shown as it fell, after the steps before its fall if they were sent.",
        )
        self._on_change(self._rule, self._actions.pick_rule, RULE_LABELS.__getitem__)
        self._add_how_many()
        self._rank_by = gui.add_dropdown(
            "Return",
            tuple(MEASURE_LABELS),
            initial_value="Last episode",
            hint="A return is the sum of an episode's rewards. Best and Worst, labels and colours "
            "go by that of each env's last finished episode (those without one come behind, by "
            "reward per second); by that of its episode so far, which is mostly its age; or by "
            "that divided by the episode's time, s.",
        )
        self._on_change(self._rank_by, self._steering.set_rank_by, MEASURE_LABELS.__getitem__)

    def _add_how_many(self) -> None:
        self._most = self._server.gui.add_number(
            "How many",
            1,
            step=1,
            hint="How many robots are drawn at most, of those that there is room for (--grid). "
            "Fewer are easier to follow, and leave fewer episodes to record.",
            visible=False,
        )
        self._on_number(self._most, self._actions.draw_most, int, lambda: (1, self._room))

    def _add_details(self) -> None:
        gui = self._server.gui
        self._agent: Any = gui.add_dropdown(
            "Agent",
            ("",),
            hint="Which agent's environments are drawn, where several are trained in one batch.",
            visible=False,
        )
        self._on_change(self._agent, self._actions.pick_agent, str)
        self._page = gui.add_button_group(
            "Page",
            PAGES,
            hint="Turns the pages of environments. Keys: page up, page down.",
            visible=False,
        )
        self._on_pick(
            self._page,
            {
                PAGES[0]: functools.partial(self._actions.turn_page, -1),
                PAGES[1]: functools.partial(self._actions.turn_page, 1),
            },
        )
        self._indices = gui.add_text(
            "Indices",
            "",
            hint="Numbers of the environments to draw, such as 3, 141, 7 or 100-131. The first one "
            "is 0.",
            visible=False,
        )
        self._on_text(self._indices, self._actions.type_indices)
        self._sticky = gui.add_checkbox(
            "Keep these",
            False,
            hint="On: keep the environments that were chosen. Off: choose again for each clip.",
            visible=False,
        )
        self._on_change(self._sticky, self._actions.keep_these, bool)

    def show(self, view: PanelView) -> None:
        """Updates the controls."""
        selection, num_envs = view.selection, view.stream.num_envs
        if view.stepped:
            if view.stepped != tuple(self._stepped.options):
                self._stepped.options = view.stepped
            self._set(self._stepped, value=view.shown)
        self._set(self._stepped, visible=len(view.stepped) > 1)
        self._set(
            self._show,
            value=label_of(SHOW_LABELS, view.control.show),
            visible=view.stream.other_known or view.control.show != "train",
        )
        agents = view.control.agents.names
        if tuple(self._rule.options) != _rules_for(agents):
            self._rule.options = _rules_for(agents)
            self._agent.options = agents or ("",)
        self._set(self._rule, value=label_of(RULE_LABELS, selection.rule))
        one = agents[selection.agent] if selection.rule == "agent" else None
        self._set(self._agent, visible=one is not None, value=one or (agents or ("",))[0])
        self._show_how_many(view)
        pages = selection.num_pages(num_envs, view.capacity) if num_envs and view.capacity else 1
        page = min(selection.page, pages)
        matters = selection.rule in ("best", "worst") or view.look.colour_by == "return"
        self._set(
            self._rank_by,
            value=label_of(MEASURE_LABELS, selection.rank_by),
            visible=matters or view.look.labels,
        )
        self._set(
            self._page,
            visible=selection.rule == "page",
            label=f"{page} of {pages}",
        )
        self._set(self._indices, visible=selection.rule == "indices")
        if selection.indices != self._shown_indices:
            # Text that means the same is left alone: a person may be typing it.
            self._shown_indices = selection.indices
            if _indices_or_none(str(self._indices.value)) != selection.indices:
                self._set(self._indices, value=written(selection.indices))
        moves = selection.rule in ("random", *RANKED)
        self._set(self._sticky, visible=moves, value=selection.sticky)
        self._set(self._drawn, content=words.drawn(view))

    def _show_how_many(self, view: PanelView) -> None:
        """Updates the limit on the drawn robots, which is hidden where these are listed."""
        selection, num_envs = view.selection, view.stream.num_envs
        if view.capacity:
            self._room = min(view.capacity, num_envs or view.capacity)
            self._set(self._most, visible=self._room > 1 and selection.rule != "indices")
            self._show_number(self._most, min(selection.room(view.capacity), self._room))


def _rules_for(agents: Sequence[str]) -> tuple[str, ...]:
    """Returns the labels of the rules that apply."""
    return tuple(label for label, rule in RULE_LABELS.items() if agents or rule not in OF_AGENTS)


def _indices_or_none(text: str) -> tuple[int, ...] | None:
    try:
        return parse_indices(text).indices
    except ValueError:
        return None


def written(indices: tuple[int, ...]) -> str:
    """Writes (0, 1, 2, 7) as "0-2, 7"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


MOST_INDICES = 100_000


def parse_indices(text: str) -> Selection:
    """Parses indices and ranges such as "3, 141, 7" or "100-131".

    Raises:
        ValueError: `text` is something else, or has more than `MOST_INDICES`.
    """
    indices: list[int] = []
    for part in re.split(r"[,\s]+", text.strip()):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise ValueError(f"{part!r} is neither an index nor a range such as 100-131")
        first, last = int(found[1]), int(found[2] or found[1])
        if len(indices) + last - first >= MOST_INDICES:
            raise ValueError(f"{part!r}: at most {MOST_INDICES:,} indices in all")
        indices.extend(range(first, last + 1))
    return Selection.of(list(dict.fromkeys(indices)))


def check_indices(indices: Sequence[int], num_envs: int | None) -> None:
    """Checks that there are environments of these indices.

    Raises:
        ValueError: an index is too high; not if `num_envs` is None, as their number is not known
            yet.
    """
    if num_envs is None:
        return
    beyond = [index for index in indices if index >= num_envs]
    if beyond:
        last = num_envs - 1
        raise ValueError(f"There is no env {beyond[0]:,}: there are {num_envs:,}, 0 to {last:,}")
