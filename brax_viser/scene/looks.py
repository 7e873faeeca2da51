"""Robots coloured by a number: which number, and which colour. Pure functions."""

import numpy as np

from brax_viser.frame import Frame

COLOUR_RULES = ("model", "return", "reward", "termination")
"""What robots can be coloured by; "model" leaves them as the model has them."""

_LOW_TO_HIGH = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64
)
"""The viridis colours (S. van der Walt, N. Smith, 2015) at five even places: their order can be
told in grey and by the colour-blind."""

ALIVE = (150, 160, 168)
FALLEN = (224, 49, 49)
BROKEN = (214, 51, 206)
"""For a robot whose state has a NaN or an Inf."""

TERMINATION_SECONDS = 1.0
"""s of robot time over which the colour of a termination fades."""


def colours_of(rule: str, frame: Frame, dt: float) -> np.ndarray | None:
    """uint8 [K, 3], or None where robots look as their model says.

    Args:
        rule: one of `COLOUR_RULES`.
        frame: whose numbers.
        dt: s per step.
    """
    match rule:
        case "model":
            return None
        case "return" | "reward":
            value = frame.episode_return if rule == "return" else frame.reward
            colours = _spread(value)
        case _:
            age = np.minimum(frame.since_termination * dt / TERMINATION_SECONDS, 1.0)[:, None]
            colours = (1 - age) * np.array(FALLEN) + age * np.array(ALIVE)
    colours = np.where(frame.finite[:, None], colours, np.array(BROKEN))
    return colours.astype(np.uint8)


def range_of(rule: str, frame: Frame) -> tuple[float, float] | None:
    """The lowest and the highest value that are coloured; None where there is no scale."""
    if rule not in ("return", "reward"):
        return None
    value = frame.episode_return if rule == "return" else frame.reward
    value = value[np.isfinite(value)]
    return (float(value.min()), float(value.max())) if len(value) else None


def css_gradient() -> str:
    """The colour scale, for a legend."""
    stops = ", ".join(f"rgb({int(r)}, {int(g)}, {int(b)})" for r, g, b in _LOW_TO_HIGH)
    return f"linear-gradient(to right, {stops})"


def _spread(value: np.ndarray) -> np.ndarray:
    """float [K, 3]: from the lowest to the highest of the values."""
    known = value[np.isfinite(value)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    share = np.nan_to_num((value - low) / (high - low) if high > low else 0.5 + 0 * value)
    places = np.linspace(0, 1, len(_LOW_TO_HIGH))
    return np.stack([np.interp(share, places, channel) for channel in _LOW_TO_HIGH.T], axis=-1)
