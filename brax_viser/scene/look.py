"""Decides how robots look: by which number they are coloured, and how. Pure functions."""

from dataclasses import dataclass

import numpy as np

from brax_viser.records.agents import UNNAMED, Agents
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import MEASURES

COLOUR_RULES = ("model", "return", "reward", "termination")
"""Rules by which robots can be coloured; "model" keeps the model's own colours."""

_LOW_TO_HIGH = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64
)
"""The viridis colours (S. van der Walt, N. Smith, 2015) at five even places: their order is visible
in grey and to the colour-blind."""

ALIVE = (150, 160, 168)
FALLEN = (224, 49, 49)
BROKEN = (214, 51, 206)
"""For a robot whose state has a NaN or an Inf."""

UNKNOWN_RETURN = ALIVE
"""For a robot whose return is not known by the chosen measure."""

TERMINATION_SECONDS = 1.0
"""s of robot time over which the colour of a termination fades."""


def measured(frame: Frame, dt: float, rank_by: str) -> np.ndarray:
    """float [K]: the returns by which robots are ranked; NaN where unknown.

    Args:
        frame: holds the numbers.
        dt: s per step.
        rank_by: one of `protocol.MEASURES`. Rates are per second.
    """
    known = frame.episode_length >= 0
    match rank_by:
        case "last_episode":
            if frame.finished_return is None:
                return np.full(len(known), np.nan, np.float32)
            return frame.finished_return
        case "so_far":
            return np.where(known, frame.episode_return, np.nan)
        case _:
            seconds = np.maximum(frame.episode_length, 1) * dt
            return np.where(known, frame.episode_return / seconds, np.nan)


def colours_of(rule: str, frame: Frame, dt: float, rank_by: str = MEASURES[0]) -> np.ndarray | None:
    """uint8 [K, 3], or None if robots keep their model's colours.

    Args:
        rule: one of `COLOUR_RULES`.
        frame: holds the numbers.
        dt: s per step.
        rank_by: one of `protocol.MEASURES`: the return that the rule "return" uses.
    """
    match rule:
        case "model":
            return None
        case "return":
            value = measured(frame, dt, rank_by)
            known = np.isfinite(value)[:, None]
            colours = np.where(known, _spread(value), np.array(UNKNOWN_RETURN))
        case "reward":
            colours = _spread(frame.reward)
        case _:
            age = np.minimum(frame.since_termination * dt / TERMINATION_SECONDS, 1.0)[:, None]
            colours = (1 - age) * np.array(FALLEN) + age * np.array(ALIVE)
    colours = np.where(frame.finite[:, None], colours, np.array(BROKEN))
    return colours.astype(np.uint8)


def range_of(
    rule: str, frame: Frame, dt: float, rank_by: str = MEASURES[0]
) -> tuple[float, float] | None:
    """The lowest and the highest value that are coloured; None if there is no scale. Takes the
    arguments of `colours_of`."""
    if rule not in ("return", "reward"):
        return None
    value = measured(frame, dt, rank_by) if rule == "return" else frame.reward
    value = value[np.isfinite(value)]
    return (float(value.min()), float(value.max())) if len(value) else None


def css_gradient() -> str:
    """The colour scale as CSS, for a legend."""
    stops = ", ".join(f"rgb({int(r)}, {int(g)}, {int(b)})" for r, g, b in _LOW_TO_HIGH)
    return f"linear-gradient(to right, {stops})"


def in_words(frame: Frame, row: int, dt: float, rank_by: str) -> str:
    """Text of a label on a robot's episodes: the return by which robots are ranked, and the length
    of the episode; or, if the robot is shown as it fell, when it fell and with what return. The
    other arguments are those of `measured`."""
    if frame.fell is not None and frame.fell[row]:
        ago = f"fell {frame.since_termination[row] * dt:.1f} s ago"
        total = frame.fell_return[row] if frame.fell_return is not None else np.nan
        return ago + ("" if np.isnan(total) else f" · return {total:,.1f}")
    value = float(measured(frame, dt, rank_by)[row])
    if not np.isnan(value):
        said = RETURN_WORDS[rank_by].format(f"{value:,.1f}")
    elif rank_by == "last_episode":
        said = "no episode has ended yet"
    else:
        said = "return unknown"
    length = int(frame.episode_length[row])
    return f"{said} · for {length * dt:.1f} s" if length >= 0 else said


def facts_in_words(frame: Frame, row: int, dt: float) -> str:
    """Text on a robot's current episode and the return of its last one."""
    facts = in_words(frame, row, dt, "so_far")
    last = measured(frame, dt, "last_episode")[row]
    shown = frame.fell is not None and frame.fell[row]
    return facts if shown or np.isnan(last) else f"{facts} · last episode's return {last:,.1f}"


RETURN_WORDS = {
    "last_episode": "last return {}",
    "so_far": "return {} so far",
    "per_second": "{} reward/s",
}
"""Text for a return, by measure."""


def _spread(value: np.ndarray) -> np.ndarray:
    """float [K, 3]: colours, spread from the lowest to the highest of the values."""
    known = value[np.isfinite(value)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    share = np.nan_to_num((value - low) / (high - low) if high > low else 0.5 + 0 * value)
    places = np.linspace(0, 1, len(_LOW_TO_HIGH))
    return np.stack([np.interp(share, places, channel) for channel in _LOW_TO_HIGH.T], axis=-1)


OTHERS = ("show", "fade", "hide")
"""Ways to draw the robots that are not selected."""


@dataclass(frozen=True)
class Look:
    """How a person wants to see the robots."""

    colour_by: str = "model"  # one of COLOUR_RULES
    labels: bool = False
    others: str = "show"  # one of OTHERS
    selected_env: int | None = None
    tints: bool = False  # each cell and its robot have a tint of their own
    in_cells: bool = True  # a robot that travels stays in its cell, and the floor moves
    overlays: frozenset[str] = frozenset()  # some of overlays.OVERLAYS, of the selected robot
    numbers: bool = False  # whether the panel shows the numbers of the selected robot
    body: int | None = None  # the body of the selected robot that a person has pointed at
    beside: bool = False  # whether ghosts are drawn beside their robots instead of on them
    rank_by: str = MEASURES[0]  # one of protocol.MEASURES: the return for labels and colours
    agents: Agents = UNNAMED  # whose environments these are, for labels


def label_of(frame: Frame, row: int, dt: float, look: Look) -> str:
    """Text of a robot's label: its name, and its episodes as `in_words` says."""
    name = look.agents.name_of(int(frame.env_index[row]), frame.num_envs)
    return f"{name} · {in_words(frame, row, dt, look.rank_by)}"
