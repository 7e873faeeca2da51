"""Writes the head's figures as HTML: steps, time, reward with its curve, cost. Pure functions.

Each figure has its line, whether it is known or not: what is below never moves.
"""

import math
from collections.abc import Sequence
from html import escape

from brax_viser.host.progress import ProgressView, count, duration
from brax_viser.host.rewards import SEEN, RewardView
from brax_viser.panel.view import PanelView
from brax_viser.panel.words import GREY, LINE, ONE_LINE

REWARD_NAMES = {
    "training": ("Training reward", "Mean return of the latest training episodes."),
    "evaluation": ("Evaluation reward", "Mean return of the latest evaluation's episodes."),
    SEEN: (
        "Return on screen",
        "Mean return of the last finished episodes of the robots that are drawn: the trainer has "
        "reported no reward.",
    ),
}
"""Kind of reward -> its name in the head, and its hint."""

_WIDTH, _HEIGHT = 240, 34
_BLUE = "#1c7ed6"


def figures(view: PanelView) -> str:
    """Returns the steps, the time, the reward with its curve, and the cost."""
    progress = view.progress
    rows = [_steps(progress), _time(progress), _reward(progress)]
    lines = "".join(_line(*left, *right) for left, right in rows)
    return (
        f'<div style="margin:0 0.75em 0.4em 0.75em;font-size:0.85em;line-height:{LINE};'
        f'font-variant-numeric:tabular-nums">{lines}{_curve(progress.rewards)}'
        f"{_line(*_cost(view), '', '')}</div>"
    )


Figure = tuple[str, str]
"""(text, hint)."""


def _steps(progress: ProgressView) -> tuple[Figure, Figure]:
    goal, hint = progress.num_timesteps, ""
    if goal and progress.num_steps > goal:
        hint = f" {count(goal)} were asked for: the trainer takes whole updates."
    of = f" of {count(goal)}" if goal and not hint else ""
    return (
        f"{count(progress.num_steps)}{of} steps",
        "Env steps over all environments, as the trainer counts them: one step of 64 environments "
        f"counts 64.{hint}",
    ), (
        f"{count(progress.steps_per_second)} steps/s" if progress.elapsed else "",
        "Env steps over all environments.",
    )


def _time(progress: ProgressView) -> tuple[Figure, Figure]:
    ended = progress.phase in ("done", "failed")
    left = ""
    if progress.remaining is not None and not ended:
        left = f"{duration(progress.remaining)} left"
    elif not ended:
        left = "" if progress.plays else "time left: not known yet"
    spent = f"{'took' if ended else 'for'} {duration(progress.elapsed)}" if progress.elapsed else ""
    return (left, "At the speed so far, not counting holds."), (
        spent,
        "Since the first step, without the time for which the training was held.",
    )


def _reward(progress: ProgressView) -> tuple[Figure, Figure]:
    told = progress.rewards
    if told is None and progress.plays:
        return ("no return yet", "Known once the first episodes have ended."), ("", "")
    if told is None:
        return ("no reward yet", "Known from the trainer's reports (progress_fn)."), ("", "")
    name, hint = REWARD_NAMES[told.kind]
    length = f"over {told.episode_length:,.0f} steps" if told.episode_length else ""
    return (
        f"{name} {number(told.newest)}",
        f"{hint} Reported at {count(told.num_steps)} steps.",
    ), (
        length,
        "Mean length of these episodes, in steps of one environment.",
    )


def _cost(view: PanelView) -> Figure:
    if not view.control.streaming:
        return "Watching costs nothing", "Streaming is off."
    if view.progress.over:
        return "Watching costs nothing any more", "The training is over."
    if view.progress.plays:
        return "Watching costs nothing", "No training runs."
    if not view.progress.elapsed:
        return "", ""  # before the first step
    return f"Watching costs {100 * view.overhead:.1f} % of the time", (
        "Share of the training's time that goes into sending robots to this page. Its limit is "
        "the budget, under Watch."
    )


def _line(left: str, hint: str, right: str, right_hint: str) -> str:
    return (
        f'<div style="display:flex;justify-content:space-between;gap:0.8em;height:{LINE}em">'
        f'<span style="{ONE_LINE}" title="{escape(hint)}">{escape(left)}</span>'
        f'<span style="white-space:nowrap;color:{GREY}" title="{escape(right_hint)}">'
        f"{escape(right)}</span></div>"
    )


def number(value: float) -> str:
    """Writes about four digits: 0.0123, 1.234, 12.34, 1,234."""
    if not math.isfinite(value):
        return str(value)
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 4)}f}"


def _curve(told: RewardView | None) -> str:
    """Returns the curve of the rewards over the whole training, and its lowest and highest."""
    points = [p for p in told.curve if math.isfinite(p[1])] if told is not None else []
    box = f"height:{_HEIGHT}px;margin:0.15em 0"
    if told is None or len(points) < 2:
        line = f"border-bottom:1px dashed {GREY};opacity:0.4"
        return f'<div style="{box};{line};box-sizing:border-box"></div>'
    low, high = min(y for _, y in points), max(y for _, y in points)
    ends = "".join(f"<span>{number(y)}</span>" for y in (high, low))
    name = (
        f"{REWARD_NAMES[told.kind][0]}, from step {count(points[0][0])} to {count(points[-1][0])}"
    )
    return (
        f'<div style="{box};display:flex;gap:0.5em" title="{escape(name)}">'
        f'<svg class="reward" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'style="flex:1;min-width:0;height:100%" role="img" aria-label="{escape(name)}">'
        f'<polyline points="{_polyline(points, low, high)}" fill="none" stroke="{_BLUE}" '
        'stroke-width="1.6" vector-effect="non-scaling-stroke" stroke-linejoin="round"/></svg>'
        '<span style="display:flex;flex-direction:column;justify-content:space-between;'
        f'line-height:1;font-size:0.85em;color:{GREY};text-align:right">{ends}</span></div>'
    )


def _polyline(points: Sequence[tuple[int, float]], low: float, high: float) -> str:
    """Returns the points in the picture's coordinates, 2 px away from its upper and lower edge."""
    first, last = points[0][0], points[-1][0]
    width, height = max(last - first, 1), (high - low) or 1.0
    middle = 0.5 if high == low else 0.0
    return " ".join(
        f"{_WIDTH * (step - first) / width:.1f},"
        f"{_HEIGHT - 2 - (_HEIGHT - 4) * ((value - low) / height + middle):.1f}"
        for step, value in points
    )
