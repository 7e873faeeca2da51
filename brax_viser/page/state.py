"""What the parts of the page share on viser's loop."""

from dataclasses import dataclass

from brax_viser.host.control import Control
from brax_viser.model.shapes import USUAL, Parts
from brax_viser.scene.look import Look
from brax_viser.twins.worker import TwinSettings


@dataclass
class PageState:
    """What is to be seen, where the device's calls need not know of it."""

    look: Look = Look()  # noqa: RUF009 (it is frozen)
    parts: Parts = USUAL  # of the model, that are drawn
    twins: TwinSettings = TwinSettings()  # noqa: RUF009
    notice: str | None = None  # something that has happened and is worth knowing
    complaint: str | None = None  # about the indices that were typed


def roles_shown(control: Control) -> tuple[str, ...]:
    """The rollouts that are shown, the one that a person looks into first."""
    return ("train", "eval") if control.show == "both" else (control.show,)
