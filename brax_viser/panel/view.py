"""Defines the values that the panel shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import mujoco

from brax_viser.host.control import Control
from brax_viser.host.findings import Finding
from brax_viser.host.metrics import Metrics
from brax_viser.host.progress import ProgressView
from brax_viser.host.selection import Selection
from brax_viser.host.terms import TermLog
from brax_viser.model.shapes import USUAL, Parts
from brax_viser.panel.details import Inside
from brax_viser.records.episode import BRAXS_OWN, Episode, RunInfo, Summary
from brax_viser.records.frame import Frame
from brax_viser.sandbox.session import ForkView
from brax_viser.sandbox.trial import Trial
from brax_viser.scene.look import Look
from brax_viser.twins.drift import Curves
from brax_viser.twins.verdict import Verdict
from brax_viser.twins.worker import TwinCost, TwinSettings


@dataclass(frozen=True)
class StreamView:
    """The first rollout that is shown."""

    role: str
    num_envs: int | None  # None before the first step
    following: bool  # whether every step is shown as it comes, because the training is slow
    step: int | None  # env steps over all envs, of the frame on screen
    age: float  # s since that frame came
    other_known: bool  # whether there is another rollout to show


@dataclass(frozen=True)
class ReplayView:
    """The recorded episodes, and how they are played."""

    active: bool = False  # whether they are shown in place of the live robots
    steps: tuple[int, ...] = ()  # env steps trained when each recording began
    index: int = 0  # of the chosen recording
    episodes: tuple[Summary, ...] = ()  # of that recording
    only: str | None = None  # key of the one that is shown; None: all
    # The newest first: those that ended in a termination or with a NaN, then others.
    ended: tuple[Summary, ...] = ()
    playing: bool = False
    backwards: bool = False  # which way it plays
    reading: bool = False  # whether the episodes are still being read
    position: float = 0.0  # s of robot time
    seconds: float = 0.0  # s of robot time in all
    dt: float = 0.02  # s per step
    speed: float = 1.0  # robot seconds per second
    loop: bool = True
    only_end: bool = False  # whether only the last seconds are played
    endings: Mapping[str, str] = field(default_factory=dict)  # how they ended, by key
    compared: int | None = None  # place of the recording whose episodes are drawn as ghosts
    others: tuple[Summary, ...] = ()  # episodes of that recording
    complaint: str | None = None  # why an episode could not be read
    trial: Trial | None = None  # what two policies did from the same start, if that is shown


@dataclass(frozen=True)
class TrialView:
    """The policies that can be compared, and how the last comparison went."""

    choices: tuple[str, ...] = ()  # their names
    running: bool = False
    fault: str | None = None  # why the last two could not be compared


@dataclass(frozen=True)
class PanelView:
    """All values that the panel shows."""

    env: str  # "Ant · positional"
    progress: ProgressView
    control: Control
    overhead: float  # share of wall-clock, 0 to 1
    bytes_per_second: float
    frames_per_second: float
    page_bytes_per_second: float  # of moving robots, to each page
    slowest_page: float | None  # share of the messages that the slowest page takes, 0 to 1
    selection: Selection
    selected_env: int | None
    selected_facts: str | None  # about its episodes, if it is drawn
    followed: bool
    look: Look
    paused: bool
    held: bool
    until_env: int | None
    drawn: int
    capacity: int
    frame: Frame | None  # whose numbers are on screen
    stream: StreamView
    complaint: str | None  # why the typed indices were refused
    notice: str | None  # an event to tell the person about
    fault: str | None  # the error that switched the streaming off, if there was one
    why_ended: str = ""  # the selected robot's last episode, if it is known
    waits: float = 0.0  # share of the last second that the training has waited for the viewer
    model: mujoco.MjModel | None = None  # of the robots
    unavailable: Mapping[str, str] = field(default_factory=dict)  # overlay -> why there is none
    inside: Inside | None = None  # of the selected robot, if its numbers are shown and known
    dt: float = 1.0  # s per step of the environment on screen
    has_detail: bool = False  # whether the frame on screen has the selected robot's details
    curve: str | None = None  # the plot that was chosen for the tab and the time bar
    surroundings: str = "light"  # one of scene.SURROUNDINGS
    looked_through: bool = False  # whether any page looks through a camera of the model
    parts: Parts = USUAL  # of the model: those that are drawn
    lost: tuple[int, ...] = ()  # processes of the training that do not report any more
    refused: tuple[str, ...] = ()  # why robots of other processes are not drawn
    twins: TwinSettings = TwinSettings()  # noqa: RUF009 (it is frozen)
    twin_cost: TwinCost = TwinCost()  # noqa: RUF009
    twin_fault: str | None = None  # the error that stopped the twins, if there was one
    controls_known: bool = True  # whether the actuators' controls are known
    curves: Curves | None = None  # of the twins' drift
    verdict: Verdict | None = None  # whether robots and twins agree
    fork: ForkView = ForkView()  # noqa: RUF009
    shown: str = ""  # label of the environment that is shown
    stepped: tuple[str, ...] = ()  # labels of all environments that are stepped
    nonfinite: tuple[Finding, ...] = ()  # values that have turned NaN or Inf
    metrics: Metrics | None = None  # numbers that the training has reported
    exporting: str | None = None  # what is being written for a page, or was written last
    exported: float | None = None  # share of that file, 0 to 1; None: no file is being written
    unkept: str | None = None  # why something that was recorded could not be kept
    kept_in: str | None = None  # the training's run directory, if it has one
    hold_limit: str | None = None  # how long the hold may last, if that is limited
    terms: TermLog | None = None  # the selected robot's reward, if its details have come
    # The recorded episode on screen, of the selected robot or else the first, and how many of its
    # steps have been played; None while the robots are live.
    replayed: tuple[Episode, float] | None = None
    pair: tuple[Episode, Episode] | None = None  # that episode and its ghost, if it has one
    cells: tuple[str, ...] = ()  # notes about where robots are drawn
    replay: ReplayView = ReplayView()
    trials: TrialView = TrialView()
    recorded: RunInfo | None = None  # the training of the episodes, if nothing is live

    @property
    def other_physics(self) -> str | None:
        """Name of the training's physics, if that is Brax's own and not MuJoCo's."""
        run = self.recorded
        backend = run.backend if run is not None else self.env.rpartition(" · ")[2]
        return backend if backend in BRAXS_OWN else None
