"""Writes the panel's sentences about twins and the sandbox. Pure functions."""

import math
from html import escape

import numpy as np

from brax_viser.host.progress import count
from brax_viser.model.physics import body_name, touching_nothing
from brax_viser.panel.view import PanelView
from brax_viser.panel.widgets import labels
from brax_viser.panel.words import GREY, lines_of, note
from brax_viser.sandbox.limits import DRIVERS
from brax_viser.twins.verdict import Verdict

_AGREES, _DISAGREES = "#2f9e44", "#e8590c"


def verdict(view: PanelView) -> str:
    """Says in one sentence whether MuJoCo agrees with the training's physics, and if it does not,
    why that is; empty while nothing can be said."""
    told, stopped = view.verdict, view.twin_fault is not None or view.control.mode == "latest"
    if told is None or stopped or not view.controls_known:
        return ""
    if not told.parted:
        return _headline(f"MuJoCo agrees: {_together(told)}", _AGREES)
    return _headline(f"MuJoCo disagrees: {_apart(told)}", _DISAGREES) + note(_why(view))


def _headline(sentence: str, colour: str) -> str:
    return (
        '<div style="margin:0.1em 0.75em 0.5em 0.75em;font-size:0.9em;font-weight:600">'
        f'<span style="color:{colour}">&#9679;</span> {escape(sentence)}</div>'
    )


def _together(told: Verdict) -> str:
    near, first = length(told.distance), f"for the first {told.seconds:.1f} s"
    if told.twins == 1:
        return f"env {told.env} and its twin stay within {near} {first}."
    return f"all {told.twins} robots stay within {near} of their twins {first}."


def _apart(told: Verdict) -> str:
    far = f" by up to {length(told.distance)}" if math.isfinite(told.distance) else ""
    if told.twins == 1:
        return f"env {told.env} parts from its twin{far}, after {told.seconds:.1f} s."
    return (
        f"{told.parted} of {told.twins} robots part from their twins{far}, env {told.env} first, "
        f"after {told.seconds:.1f} s."
    )


def _why(view: PanelView) -> str:
    if view.other_physics:
        return (
            f"Brax's {view.other_physics} physics is simpler than MuJoCo's, above all where robots "
            "touch the ground. What is learned in it may fail in MuJoCo: try it in a sandbox."
        )
    return (
        "Both solve the same equations. Small differences grow where robots touch something, above "
        "all where the environment allows the solver few iterations."
    )


def length(metres: float) -> str:
    """Writes a distance, rounded up to what can be seen: 0.4 mm, 2 cm, 1.3 m."""
    if metres <= 0.0099:
        return f"{_up(1000 * metres, 10) or 0.1} mm"
    return f"{_up(100 * metres, 1):.0f} cm" if metres <= 0.99 else f"{_up(metres, 10)} m"


def _up(number: float, parts: int) -> float:
    """Rounds up to a multiple of 1 / `parts`, but not for rounding errors."""
    return math.ceil(parts * number - 1e-6) / parts


def twins(view: PanelView) -> str:
    """Says how many twins there are and what they cost, or why there are none."""
    if view.control.twins == 0:
        return ""
    if view.twin_fault is not None:
        return note(f"Twins stopped by a fault, all else goes on: {view.twin_fault}", warning=True)
    if view.control.mode == "latest":
        return note("Twins need consecutive steps: choose Real time or Every step.", warning=True)
    if not view.controls_known:
        return note(
            "The controls of the actuators are not known here: give VisualizedEnv a ctrl_fn, which "
            "computes them from the action.",
            warning=True,
        )
    ghost, cost = view.frame.ghost if view.frame else None, view.twin_cost
    if ghost is None:
        if cost.skipped > 0.5:
            return note("MuJoCo does not keep up: fewer twins would.", warning=True)
        if view.progress.over and view.progress.plays_on != "now":
            return note("Twins step beside the training, which is over: fork a robot instead.")
        return note("Twins come with the next steps.")
    count = int(ghost.there.sum())
    text = (
        f"{count} twin{'s' if count != 1 else ''} · {1000 * cost.step_seconds:.1f} ms a step · "
        f"{100 * cost.share:.0f} % of the time, beside the training"
    )
    if cost.skipped > 0:
        text += f" · {100 * cost.skipped:.0f} % of the steps went without"
    return note(text)


BACK = "Back to the fork"

DRIVER_LABELS = labels(DRIVERS, "The policy", "Its last controls", "The same control", "Nothing")
"""The panel's label -> what drives the sandbox's robot."""


def fork(view: PanelView) -> str:
    """Describes the sandbox's state, or says how to make one."""
    sandbox = view.fork
    if sandbox.fault is not None:
        return note(f"There is no sandbox, all else goes on: {sandbox.fault}", warning=True)
    if sandbox.env is None:
        if view.selected_env is None:
            return note("Click a robot to take it as it is now into a separate MuJoCo simulation.")
        return note(f"Takes env {view.selected_env} as it is now into a separate simulation.")
    where = f"Env {sandbox.env}, forked at step {count(sandbox.num_steps)}"
    if sandbox.begins:
        where = f"Env {sandbox.env}, from the start of an episode"
    if sandbox.preparing:
        return note(f"{where}: compiling what drives it, which takes some seconds")
    if sandbox.trouble is not None:
        return note(f"{where}: {sandbox.trouble}", warning=True)
    lines = [f"{where}: {sandbox.time:.1f} s since"]
    if sandbox.reward is not None:
        lines.append(f"Reward {sandbox.reward:.2f} in this step")
    return lines_of(lines)


def fork_facts(view: PanelView) -> str:
    """Says what a sandbox's robot is driven by, and why it may do worse than in the training. The
    latter is said before the fork, too."""
    sandbox, lines = view.fork, []
    if sandbox.fault is not None or sandbox.preparing or sandbox.trouble is not None:
        return ""
    if sandbox.env is None:
        return "" if view.selected_env is None else _passing_through(view)
    if sandbox.done:
        lines.append(f"Its episode would have ended here: {BACK} starts it again")
    if sandbox.driver == "policy" and sandbox.policy_steps is not None:
        learned = f", learned in {view.other_physics} physics" if view.other_physics else ""
        lines.append(f"Driven by the policy of step {count(sandbox.policy_steps)}{learned}")
    elif "policy" not in sandbox.drivers:
        lines.append(
            f"No policy: {sandbox.no_policy}"
            if sandbox.no_policy is not None
            else "No policy: hand viewer.policy_params_fn to the trainer as policy_params_fn"
        )
    return (lines_of(lines) if lines else "") + _passing_through(view)


def _passing_through(view: PanelView) -> str:
    parts = touching_nothing(view.model) if view.model is not None else []
    if not parts:
        return ""
    more = f" and {len(parts) - 2} more" if len(parts) > 2 else ""
    return note(
        f"In MuJoCo these parts touch nothing, not even the floor, as the model says: "
        f"{', '.join(parts[:2])}{more}",
        warning=True,
    )


def pushed(view: PanelView) -> str:
    """Names the body that pushes and the mass setting apply to."""
    sandbox, model = view.fork, view.model
    if sandbox.body is None or model is None or sandbox.body >= model.nbody:
        return note("Click a part of the robot in the sandbox to push it or change its mass.")
    return note(f"Pushes and mass apply to: {body_name(model, sandbox.body)}")


MOST_DRIFTS = 16
"""Most twins in the table of drifts."""


def drifts(view: PanelView) -> str:
    """Returns a table of how far each twin has drifted, the furthest first."""
    frame = view.frame
    if frame is None or frame.ghost is None:
        return ""
    ghost = frame.ghost
    rows = np.flatnonzero(ghost.there)
    rows = rows[np.argsort(-np.nan_to_num(ghost.bodies[rows], nan=np.inf), kind="stable")]
    lines = []
    if len(rows) > 1:
        measures = (ghost.root, ghost.bodies, ghost.joints)
        middle = tuple(float(np.median(x[rows])) for x in measures)
        kept = int(np.isinf(ghost.passed[rows]).sum())
        lines.append(_drift_row("Median", middle, f"{len(rows) - kept} of {len(rows)}", bold=True))
    for row in rows[:MOST_DRIFTS]:
        passed = ghost.passed[row]
        when = "-" if np.isinf(passed) else f"{passed:.2f} s"
        env = int(frame.env_index[row])
        values = (float(ghost.root[row]), float(ghost.bodies[row]), float(ghost.joints[row]))
        lines.append(_drift_row(str(env), values, when, bold=env == view.selected_env))
    head = "".join(
        f'<th style="text-align:right;font-weight:400;color:{GREY}">{text}</th>'
        for text in ("Env", "Root, m", "Links, m", "Joints, rad", "Parted after")
    )
    return (
        '<div style="margin:0 0.75em 0.5em 0.75em;font-size:0.8em">'
        f'<table style="width:100%;border-collapse:collapse"><tr>{head}</tr>'
        + "".join(lines)
        + "</table></div>"
    )


def _drift_row(name: str, values: tuple[float, ...], when: str, *, bold: bool) -> str:
    shown = ["-" if np.isnan(x) else f"{x:.3f}" for x in values]
    weight = "600" if bold else "400"
    cells = "".join(f'<td style="text-align:right">{escape(x)}</td>' for x in (*shown, when))
    return f'<tr style="font-weight:{weight}"><td style="text-align:right">{name}</td>{cells}</tr>'
