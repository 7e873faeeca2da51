"""What the panel shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import mujoco

from brax_viser.host.control import Control
from brax_viser.host.findings import Finding
from brax_viser.host.progress import ProgressView
from brax_viser.host.selection import Selection
from brax_viser.model.shapes import USUAL, Parts
from brax_viser.panel.details import Inside
from brax_viser.records.frame import Frame
from brax_viser.sandbox.session import ForkView
from brax_viser.scene.look import Look
from brax_viser.twins.drift import Curves
from brax_viser.twins.worker import TwinCost, TwinSettings


@dataclass(frozen=True)
class StreamView:
    """The rollout that is shown, or the first of them."""

    role: str
    num_envs: int | None  # None before the first step
    following: bool  # whether every step is shown as it comes, the training being slow
    step: int | None  # env steps over all envs, of what is on screen
    age: float  # s since that came
    other_known: bool  # whether there is another rollout to look at


@dataclass(frozen=True)
class PanelView:
    """All that the panel shows."""

    env: str  # "Ant · positional"
    progress: ProgressView
    control: Control
    overhead: float  # share of wall-clock, 0 to 1
    bytes_per_second: float
    frames_per_second: float
    page_bytes_per_second: float  # of robots that move, to each page
    slowest_page: float | None  # share of it that the slowest page takes, 0 to 1, if known
    selection: Selection
    selected_env: int | None
    selected_facts: str | None  # how its episodes go, if it is drawn
    followed: bool
    look: Look
    paused: bool
    held: bool
    until_env: int | None
    drawn: int
    capacity: int
    frame: Frame | None  # whose numbers are on screen
    stream: StreamView
    complaint: str | None  # about the indices that were typed
    notice: str | None  # something that has happened and is worth knowing
    fault: str | None  # why streaming was switched off, if it was not the user
    waits: float = 0.0  # share of the last second that the training has waited for the viewer
    model: mujoco.MjModel | None = None  # of the robots
    unavailable: Mapping[str, str] = field(default_factory=dict)  # overlays, and why not
    inside: Inside | None = None  # the selected robot's, where its numbers are wanted and known
    dt: float = 1.0  # s per step of what is on screen
    has_detail: bool = False  # whether they are known at the step that is on screen
    surroundings: str = "light"  # one of scene.SURROUNDINGS
    looked_through: bool = False  # whether any page looks through a camera of the model
    parts: Parts = USUAL  # of the model, that are drawn
    lost: tuple[int, ...] = ()  # processes of the training that are not heard of any more
    refused: tuple[str, ...] = ()  # why those of other processes are not drawn
    twins: TwinSettings = TwinSettings()  # noqa: RUF009 (it is frozen)
    twin_cost: TwinCost = TwinCost()  # noqa: RUF009
    twin_fault: str | None = None  # why there are none
    controls_known: bool = True  # whether what goes to the physics is
    curves: Curves | None = None  # of drift
    fork: ForkView = ForkView()  # noqa: RUF009
    shown: str = ""  # the environment that is shown, among several
    stepped: tuple[str, ...] = ()  # all that are stepped
    nonfinite: tuple[Finding, ...] = ()  # what has turned NaN or Inf
    cells: tuple[str, ...] = ()  # what is to be known of where robots are drawn
