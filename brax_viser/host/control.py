"""What the person who watches wants."""

from dataclasses import dataclass

MODES = ("realtime", "latest", "every_step")


SHOWS = ("train", "eval", "both")


REACTION_SECONDS = 0.1
"""How often an idle stream asks: half of the 0.2 s within which a switch must be noticed."""


@dataclass(frozen=True)
class Control:
    """What the person who watches wants at the moment."""

    streaming: bool = True  # the switch
    watched: bool = False  # whether a page is open
    mode: str = "realtime"  # one of MODES
    fps: float = 30.0  # frames per second that a page is sent
    max_overhead: float = 0.02  # share of wall-clock that realtime and latest may take
    speed: float = 1.0  # of playback in realtime, robot seconds per second
    stretch_seconds: float = 3.0  # robot time of one stretch in realtime
    show: str = "train"  # one of SHOWS
    twins: int = 0  # how many of the environments that are drawn have one in MuJoCo
    hold_on_nan: bool = False  # whether the training is held where something turns NaN or Inf
    closed: bool = False

    def wants(self, role: str) -> bool:
        """Whether steps of a rollout are to be sent."""
        return self.streaming and self.watched and self.show in (role, "both")
