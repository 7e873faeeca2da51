"""Chooses and computes the lines of the plot of curves."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brax_viser.host.metrics import (
    RECORDED,
    SEEN_LENGTH,
    SEEN_REWARD,
    STEPS_PER_SECOND,
    CurveView,
    Metrics,
    smoothed,
)
from brax_viser.host.terms import REWARD as WHOLE
from brax_viser.host.terms import Terms, terms_among
from brax_viser.records.episode import Episode

REWARD, LENGTH, SPEED, TERMS = "Reward", "Episode length", "Steps per second", "Reward terms"
STEPWISE = "Reward of each step"
GROUPS: tuple[str, ...] = (REWARD, LENGTH, SPEED, TERMS)
"""Choices that stand above the metrics' own names."""

MOST_LINES = 8
"""Maximum number of lines in the plot."""

ALMOST = 1e-6
"""Fraction of a step below which a difference is rounding."""

TRAINING, EVALUATION = "training", "evaluation"

# What Brax's trainers call them: the training's, the evaluation's, and the latter's deviation.
_NAMES = {
    REWARD: ("episode/sum_reward", "eval/episode_reward", "eval/episode_reward_std", SEEN_REWARD),
    LENGTH: ("episode/length", "eval/avg_episode_length", "eval/std_episode_length", SEEN_LENGTH),
}
_TERMS = (
    ("episode/", ("sum_reward", "length"), ""),
    ("eval/episode_", ("reward", "length"), ""),
    (RECORDED, (), ", recorded episodes"),
)
"""Beginnings of their names, other names that begin so, and what the labels add."""


@dataclass(frozen=True, eq=False)
class Line:
    """A labelled curve, with its standard deviation if that was reported."""

    label: str
    curve: CurveView
    deviation: CurveView | None = None
    colour: int | None = None  # index; None: its place among the lines


@dataclass(eq=False)
class Plot:
    """Arrays over a common x-axis, [P] each."""

    x: np.ndarray
    lines: list[np.ndarray] = field(default_factory=list)  # NaN where a curve has not begun
    band: tuple[np.ndarray, np.ndarray] | None = None  # lower and upper limits of one of them
    labels: list[str] = field(default_factory=list)
    colours: list[int] = field(default_factory=list)
    newest: list[float] = field(default_factory=list)  # value of each line, not smoothed
    now: float | None = None  # the moment on screen, on the x-axis; `newest` holds the values there


def choices(metrics: Metrics, *, stepwise: bool = False) -> tuple[str, ...]:
    """Returns what can be shown: the groups that have a curve, one robot's reward of each step if
    that is known, then the metrics' names."""
    groups = (group for group in GROUPS if lines_of(metrics, group))
    return (*groups, *((STEPWISE,) if stepwise else ()), *metrics.names())


def terms_of(terms: Terms) -> Plot:
    """Returns the plot of a robot's reward over its last seconds, with its terms; if the
    environment names none, with its other metrics."""
    values = dict(terms.values)
    reward = values.pop(WHOLE, np.full(len(terms.seconds), np.nan))
    named = terms_among(values)
    order = sorted(named, key=lambda name: -np.nanmax(np.abs(named[name]), initial=0))
    plot = Plot(terms.seconds)
    for name, line in [("whole reward", reward), *((_short(k), named[k]) for k in order)]:
        if len(plot.lines) == MOST_LINES:
            break
        plot.colours.append(len(plot.lines))
        plot.lines.append(line)
        plot.labels.append(name)
        plot.newest.append(float(line[-1]))
    return plot


def episode_of(episode: Episode, place: float) -> Plot:
    """Returns the plot of a recorded episode's reward, with its terms, from its first step to its
    end, over s of robot time.

    Args:
        episode: the episode.
        place: how many of its steps have been played.
    """
    values = {
        name.removeprefix("metrics/"): np.where(np.isfinite(x), x, np.nan).astype(float)
        for name, x in episode.steps.items()
        if name == WHOLE or name.startswith("metrics/")
    }
    seconds = episode.dt * np.arange(1, episode.summary.length + 1)
    plot, step = terms_of(Terms(episode.summary.env, seconds, values)), int(place + ALMOST)
    plot.newest = [float(line[step - 1]) if step else np.nan for line in plot.lines]
    plot.now = episode.dt * place
    return plot


def marked(plot: Plot, low: float, high: float) -> Plot:
    """Returns a plot whose band is a vertical line at `now`, from the lower to the upper limit of
    the y-axis: two points, at which the lines get values too."""
    if plot.now is None:
        return plot
    at, gap = int(np.searchsorted(plot.x, plot.now)), np.full(len(plot.x), np.nan)

    def with_two(values: np.ndarray, one: float, other: float) -> np.ndarray:
        return np.insert(values, at, (one, other))

    there = [float(np.interp(plot.now, plot.x, y, np.nan)) for y in plot.lines]
    return replace(
        plot,
        x=with_two(plot.x, plot.now, plot.now),
        lines=[with_two(y, v, v) for y, v in zip(plot.lines, there, strict=True)],
        band=(with_two(gap, low, high), with_two(gap, np.nan, np.nan)),
    )


def _short(term: str) -> str:
    return term.removeprefix("reward/").removeprefix("reward_")


def lines_of(metrics: Metrics, what: str) -> list[Line]:
    """Returns the curves of a group, or of the metric of that name."""
    if what in _NAMES:
        return _two(metrics, *_NAMES[what])
    if what == TERMS:
        return _terms(metrics)
    curve = metrics.curve(STEPS_PER_SECOND if what == SPEED else what)
    return [] if curve is None else [Line(what, curve)]


def _two(metrics: Metrics, train: str, evaluation: str, deviation: str, seen: str) -> list[Line]:
    """Returns the training's curve, from the environments on screen if the trainer reports none,
    and the evaluation's."""
    found = []
    for name, label in ((train, TRAINING), (seen, f"{TRAINING}, robots on screen")):
        curve = metrics.curve(name)
        if curve is not None and not found:
            found.append(Line(label, curve))
    if (curve := metrics.curve(evaluation)) is not None:
        found.append(Line(EVALUATION, curve, metrics.curve(deviation), colour=1))
    return found


def _terms(metrics: Metrics) -> list[Line]:
    """Returns the means per episode of the terms that the environment keeps in `state.metrics`: of
    training episodes if the trainer reports them, else of evaluations, else of those recorded.
    Those that are the same over the whole training, as two of Brax's ant, share a line."""
    for prefix, others, said in _TERMS:
        began = [name for name in metrics.names() if name.startswith(prefix)]
        names = {name.removeprefix(prefix): name for name in began}
        terms = [t for t in names if t not in others and not t.endswith("_std") and "reward" in t]
        same: dict[bytes, tuple[CurveView, list[str]]] = {}
        for term in terms:
            if (curve := metrics.curve(names[term])) is not None:
                points = curve.steps.tobytes() + curve.values.tobytes()
                same.setdefault(points, (curve, []))[1].append(_short(term))
        found = [Line(" = ".join(terms) + said, curve) for curve, terms in same.values()]
        if found:  # only the largest, if there are many
            found.sort(key=lambda line: -np.nanmax(np.abs(line.curve.values), initial=0))
            return found[:MOST_LINES]
    return []


def plot_of(lines: Sequence[Line], *, by_time: bool = False, weight: float = 0.0) -> Plot | None:
    """Brings curves to a common x-axis.

    Args:
        lines: the curves.
        by_time: whether the axis is time, s, instead of env steps.
        weight: of the past when smoothing, see `metrics.smoothed`.

    Returns:
        None if there is no point.
    """
    axes = [line.curve.seconds if by_time else line.curve.steps for line in lines]
    x = np.unique(np.concatenate(axes)) if axes else np.zeros(0)
    if not len(x):
        return None
    plot = Plot(x)
    for i, (line, axis) in enumerate(zip(lines, axes, strict=True)):
        values = smoothed(line.curve.values, weight)
        plot.lines.append(_at(x, axis, values))
        plot.labels.append(line.label)
        plot.colours.append(i if line.colour is None else line.colour)
        plot.newest.append(float(line.curve.values[-1]))
        if line.deviation is not None and len(line.deviation.values) == len(values):
            plot.band = _band(x, axis, values, line.deviation.values)
    return plot


def _band(
    x: np.ndarray, axis: np.ndarray, values: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns limits without NaN, at which uPlot would fill false areas: outside its curve the band
    has no width."""
    middle, width = _at(x, axis, values), np.nan_to_num(_at(x, axis, spread))
    known = np.isfinite(middle)
    middle = np.interp(x, x[known], middle[known]) if known.any() else np.zeros(len(x))
    return middle - width, middle + width


def _at(x: np.ndarray, axis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Interpolates a curve at `x`: NaN before its first and after its last number."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(x), np.nan)
    order = np.argsort(axis[known], kind="stable")  # a corrected count may step back
    return np.interp(x, axis[known][order], values[known][order], left=np.nan, right=np.nan)
