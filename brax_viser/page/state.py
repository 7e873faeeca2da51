"""Holds the state that the parts of the page share on viser's loop."""

from dataclasses import dataclass

from brax_viser.host.control import Control
from brax_viser.model.shapes import USUAL, Parts
from brax_viser.scene.look import Look
from brax_viser.twins.worker import TwinSettings


@dataclass
class PageState:
    """Settings of the picture that device callbacks do not need, and messages to the person."""

    look: Look = Look(tints=True)  # noqa: RUF009 (it is frozen)
    parts: Parts = USUAL  # of the models: those that are drawn
    twins: TwinSettings = TwinSettings()  # noqa: RUF009
    curve: str | None = None  # the plot of the tab "Curves" and the time bar; None: the first one
    notice: str | None = None  # an event to show in the panel
    exporting: str | None = None  # what is being written for a page, or was written last
    exported: float | None = None  # share of that file, 0 to 1; None: no file is being written
    unkept: str | None = None  # why something that was recorded could not be kept
    kept_in: str | None = None  # the training's run directory, if it has one
    complaint: str | None = None  # why the typed indices were refused


def roles_shown(control: Control) -> tuple[str, ...]:
    """Returns the roles of the rollouts shown; the first is the one that details are about."""
    return ("train", "eval") if control.show == "both" else (control.show,)
