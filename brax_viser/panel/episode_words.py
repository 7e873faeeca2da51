"""Writes what the panel says of recorded episodes. Pure functions."""

import textwrap
from collections.abc import Mapping
from html import escape

from brax_viser.host.progress import count
from brax_viser.panel.view import ReplayView
from brax_viser.panel.words import GREY, note
from brax_viser.records.episode import Summary

ENDED = {"terminated": "terminated", "truncated": "time limit", "nonfinite": "NaN or Inf"}
"""How an episode ended, in words."""

MOST_LETTERS = 48
"""Most letters in a list of how an episode ended."""

OF_DRAWN = "Best and worst are of the robots drawn then, 16 at most, not of the whole batch."

_CELL = "padding:0 0.7em 0 0"


def note_on(told: ReplayView, kept_in: str | None = None) -> str:
    """Says what is kept, and in which run directory, or why nothing is shown."""
    if told.complaint is not None:
        return note(told.complaint, warning=True)
    where = f" Kept in {kept_in}, with curves and policies." if kept_in else ""
    if not told.steps:
        return note(f"No episode has been recorded yet.{where}")
    many = len(told.steps)
    first, last = count(told.steps[0]), count(told.steps[-1])
    if many == 1:
        return note(
            f"One recording, of step {first}. Click on it in the time bar. {OF_DRAWN}{where}"
        )
    return note(
        f"{many:,} recordings, from step {first} to {last}. Click on one in the time bar below the "
        f"scene. {OF_DRAWN}{where}"
    )


def name(summary: Summary) -> str:
    """Names one episode of a recording."""
    return f"Env {summary.env} · {', '.join(summary.kept_as)}"


def ended(summary: Summary, endings: Mapping[str, str], dt: float) -> str:
    """Names an episode by how it ended, among those of all recordings."""
    how = endings.get(summary.key) or ENDED[summary.ended]
    how = textwrap.shorten(how, MOST_LETTERS, placeholder=" …")
    return (
        f"{count(summary.num_steps)} · env {summary.env} · {how} · {summary.length * dt:.1f} s "
        f"· return {summary.episode_return:,.1f}"
    )


def table(told: ReplayView, dt: float) -> str:
    """Lists the episodes of the chosen recording; the one that is shown alone is in bold."""
    head = "".join(
        f'<th style="{_CELL};text-align:{side};font-weight:normal;color:{GREY}">{title}</th>'
        for title, side in (
            *(("", "left"), ("env", "right"), ("return", "right"), ("s", "right")),
            *(("ended by", "left"),),
        )
    )
    rows = "".join(_row(summary, dt, bold=summary.key == told.only) for summary in told.episodes)
    return (
        '<div style="margin:0 0.75em 0.5em 0.75em;font-size:0.8em;line-height:1.45">'
        '<table style="width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"{_of_step(told)}<tr>{head}</tr>{rows}{_others(told, dt)}</table></div>{_endings(told)}"
    )


def pair(shown: Summary, ghost: Summary, *, alone: bool) -> str:
    """Names the episode and the ghost whose curves are drawn; `alone`: no other robot has a
    ghost."""
    one, other = (f"{name(s)} · step {s.recording:,}" for s in (shown, ghost))
    others = "" if alone else ". Click on another robot for its own"
    return note(f"{one}; its ghost: {other}{others}.")


def _of_step(told: ReplayView) -> str:
    """Names the recording."""
    return f'<tr><td colspan="5"><b>Step {told.steps[told.index]:,}</b></td></tr>'


def _others(told: ReplayView, dt: float) -> str:
    """Lists the episodes that are drawn as ghosts."""
    if told.compared is None:
        return ""
    title = f"Ghosts: step {count(told.steps[told.compared])}"
    head = f'<tr><td colspan="5" style="padding-top:0.5em;color:{GREY}">{title}</td></tr>'
    return head + "".join(_row(summary, dt, bold=False) for summary in told.others)


def _endings(told: ReplayView) -> str:
    """Says of each episode how it ended, as far as that is known."""
    lines = [
        f"At the end of env {summary.env}: {told.endings[summary.key]}."
        for summary in told.episodes
        if told.endings.get(summary.key)
    ]
    return "".join(map(note, lines))


def _row(summary: Summary, dt: float, *, bold: bool) -> str:
    cells = (
        (", ".join(summary.kept_as), "left"),
        (f"{summary.env:,}", "right"),
        (f"{summary.episode_return:,.1f}", "right"),
        (f"{summary.length * dt:.1f}", "right"),
        (ENDED[summary.ended], "left"),
    )
    weight = "600" if bold else "normal"
    told = "".join(
        f'<td style="{_CELL};text-align:{side}">{escape(text)}</td>' for text, side in cells
    )
    hint = f"Began at step {summary.num_steps:,}; {summary.length:,} steps."
    return f'<tr style="font-weight:{weight}" title="{escape(hint)}">{told}</tr>'
