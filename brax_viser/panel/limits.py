"""Limits of what a person or a script can set, for the controls and for what checks values."""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_FPS = 60
"""Frames per second: a page can show no more."""

MOST_TWINS = 256
"""A person sees no more at once, and MuJoCo has to step them."""


@dataclass(frozen=True)
class Range:
    """A number's limits, both of them included."""

    low: float
    high: float
    unit: str

    def check(self, name: str, value: float) -> None:
        """Refuses a value outside of it.

        Raises:
            ValueError: it is outside.
        """
        if not self.low <= value <= self.high:
            raise ValueError(f"{name}={value}: must be {self.low} to {self.high} {self.unit}")


SPEED = Range(0.1, 4.0, "robot seconds per second")
STRETCH_SECONDS = Range(0.5, 30.0, "seconds of the robot's time")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuses what is none of the choices.

    Raises:
        ValueError: it is none.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def check_share(share: float) -> None:
    """Refuses a budget that is no share of the training's time.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"max_overhead={share}: must be above 0 and at most 1 (0.02 is 2 %)")


def check_fps(fps: float) -> None:
    """Refuses a frame rate that no page can show.

    Raises:
        ValueError: it is not above 0 and at most `MOST_FPS`.
    """
    if not 0 < fps <= MOST_FPS:
        raise ValueError(f"fps={fps}: must be above 0 and at most {MOST_FPS}, what a page can show")
