"""The settings of the page: what to show, how fast and at what cost."""

from dataclasses import dataclass

from brax_viser.records.agents import UNNAMED, Agents

MODES = ("realtime", "latest", "every_step")


SHOWS = ("train", "eval", "both")


REACTION_SECONDS = 0.1
"""How often an idle stream asks: half of the 0.2 s within which a switch must be noticed."""


@dataclass(frozen=True)
class Control:
    """The current settings of the page."""

    streaming: bool = True  # the switch
    watched: bool = False  # whether a page is open
    mode: str = "realtime"  # one of MODES
    fps: float = 30.0  # frames per second that a page is sent
    max_overhead: float = 0.02  # share of wall-clock that realtime and latest may take
    speed: float = 1.0  # playback speed in realtime, robot seconds per second
    stretch_seconds: float = 3.0  # robot time of one stretch in realtime
    show: str = "train"  # one of SHOWS
    twins: int = 0  # how many of the drawn environments have a twin in MuJoCo
    hold_on_nan: bool = False  # whether the training is held when something turns NaN or Inf
    # Whether every step of the drawn environments of the training is wanted, page or not, because
    # whole episodes are being recorded.
    recording: bool = False
    # s of training between the beginnings of two recordings; None: one at each evaluation.
    record_every: float | None = 60.0
    replayed: bool = False  # whether recorded episodes are shown in place of the rollouts
    closed: bool = False
    agents: Agents = UNNAMED  # whose environments form one batch

    def wants(self, role: str) -> bool:
        """Whether steps of a rollout should be sent."""
        seen = self.watched and not self.replayed
        return self.streaming and seen and self.show in (role, "both")

    def records(self, role: str) -> bool:
        """Whether every step of a rollout is recorded. With the switch off nothing is sent."""
        return self.recording and self.streaming and role == "train"
