"""Writes what the panel says of two policies that run from the same start. Pure functions."""

from html import escape

from brax_viser.host.progress import count
from brax_viser.panel.episode_words import ENDED
from brax_viser.panel.view import PanelView
from brax_viser.panel.words import GREY, note
from brax_viser.sandbox.trial import Trial

RUN = "Run both"

_CELL = "padding:0 0.7em 0 0"


def told(view: PanelView) -> str:
    """Says what can be compared, or why nothing can."""
    trials = view.trials
    if trials.fault is not None:
        return note(trials.fault, warning=True)
    if trials.running:
        return note(
            "Both policies run. The first time, this takes a while to compile. Run others "
            "meanwhile, and they take their place."
        )
    if view.replay.trial is not None and view.other_physics is not None:
        return note(
            f"Both ran in MuJoCo, not in the {view.other_physics} physics of the training, where a "
            "policy may do better."
        )
    if trials.choices:
        return ""
    if view.recorded is not None:
        return note("No policy of this training is kept.")
    return note("The trainer has handed out no policy yet: policy_params_fn hands them out.")


def named(trial: Trial) -> tuple[str, str]:
    """Names both policies, each with its step of the training."""
    names = []
    for chosen, episode in zip(trial.policies, trial.episodes, strict=True):
        step = f"step {count(episode.summary.num_steps)}"
        names.append(step if chosen.startswith("Step ") else f"{chosen.lower()} ({step})")
    return names[0], names[1]


def table(trial: Trial) -> str:
    """Says what each policy has achieved."""
    head = "".join(
        f'<th style="{_CELL};text-align:{side};font-weight:normal;color:{GREY}">{title}</th>'
        for title, side in (
            *(("", "left"), ("policy", "left"), ("return", "right"), ("s", "right")),
            *(("ended by", "left"),),
        )
    )
    rows = ""
    for drawn, name, episode in zip(("Solid", "Ghost"), named(trial), trial.episodes, strict=True):
        summary = episode.summary
        cells = (
            *((drawn, "left"), (name, "left"), (f"{summary.episode_return:,.1f}", "right")),
            *((f"{summary.length * episode.dt:.1f}", "right"), (ENDED[summary.ended], "left")),
        )
        told = "".join(
            f'<td style="{_CELL};text-align:{side}">{escape(text)}</td>' for text, side in cells
        )
        rows += f"<tr>{told}</tr>"
    return (
        '<div style="margin:0 0.75em 0.5em 0.75em;font-size:0.8em;line-height:1.45">'
        '<table style="width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"<tr>{head}</tr>{rows}</table></div>"
    )
