"""Defines and checks the limits of the settings of a person or a script."""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_FPS = 60
"""Frames per second that a page can show at most."""

MOST_TWINS = 256
"""Most twins: MuJoCo has to step them all, and a person cannot watch more at once."""


@dataclass(frozen=True)
class Range:
    """A number's limits, both inclusive."""

    low: float
    high: float
    unit: str

    def check(self, name: str, value: float) -> None:
        """Validates a value.

        Raises:
            ValueError: `value` is outside of the range.
        """
        if not self.low <= value <= self.high:
            raise ValueError(f"{name}={value}: must be {self.low} to {self.high} {self.unit}")


SPEED = Range(0.1, 4.0, "robot seconds per second")
REPLAY_SPEED = Range(0.1, 16.0, "robot seconds per second")
STRETCH_SECONDS = Range(0.5, 30.0, "seconds of the robot's time")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Validates a choice.

    Raises:
        ValueError: `value` is not one of `choices`.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def check_share(share: float) -> None:
    """Validates a budget, as a share of the training's time.

    Raises:
        ValueError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"max_overhead={share}: must be above 0 and at most 1 (0.02 is 2 %)")


def check_fps(fps: float) -> None:
    """Validates a frame rate.

    Raises:
        ValueError: `fps` is not above 0 and at most `MOST_FPS`.
    """
    if not 0 < fps <= MOST_FPS:
        raise ValueError(f"fps={fps}: must be above 0 and at most {MOST_FPS}, what a page can show")
