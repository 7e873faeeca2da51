"""Says how a robot's episode has ended, as far as what is on screen tells, and what there is after
the training. Pure functions."""

import numpy as np

from brax_viser.panel.view import PanelView
from brax_viser.records.frame import Frame

JUST_ENDED = "Its episode has ended in a termination with this step"


def last_end(frame: Frame, env: int, why: str = "") -> str:
    """Says how an environment's last episode ended, where the frame tells; else empty.

    Args:
        frame: on screen.
        env: the environment.
        why: its last termination's reason, as of `model.ending.why_ended`; empty: not known.
    """
    why = f": {why}" if why else ""
    rows = np.flatnonzero(frame.env_index == env)
    if not len(rows) or frame.finished_length is None or frame.fell is not None:
        return ""
    row = int(rows[0])
    length, since = int(frame.episode_length[row]), int(frame.since_termination[row])
    steps = int(frame.finished_length[row])
    if since == 0:
        return f"{JUST_ENDED}{why}."
    if steps == 0 or length < 1 or since == length + 1:  # not known, or not for certain
        return ""
    if since == length:
        return f"Its last episode ended in a termination, after {steps:,} steps{why}."
    return f"Its last episode ended without a termination (a time limit), after {steps:,} steps."


def where_held(view: PanelView) -> str:
    """Says what a held training waits for: the person, or to be looked at where the selected
    robot's episode has ended with the step that it is held at, as after Next fall."""
    frame, env = view.frame, view.selected_env
    if frame is not None and env is not None and not view.replay.active:
        if last_end(frame, env).startswith(JUST_ENDED):
            return f"env {env} terminated: {view.why_ended or 'see Robot'}"
    return f"{'the policy' if view.progress.plays else 'the training'} waits for you"


def plays_on(view: PanelView) -> bool:
    """Whether the policy drives a robot in the sandbox, as after the end of a training."""
    return view.fork.env is not None and view.fork.driver == "policy"


def finished(view: PanelView) -> tuple[str, str]:
    """Returns the state after the training, and where the policy was saved."""
    saved = view.progress.saved
    if view.progress.plays_on == "soon":
        return "Finished", "the trained policy plays on in a moment"
    goes_on = view.progress.plays_on == "now" or plays_on(view)
    word = "Finished, the policy plays on" if goes_on else "Finished"
    return word, f"policy saved to {saved}" if saved else "the training is over"


def after_the_end(view: PanelView) -> tuple[str, str]:
    """Returns two lines that say how robots go on after the training."""
    over = "The training is over: there is nothing to hold."
    if view.progress.plays_on == "soon":
        return over, "The trained policy plays on in a moment."
    if view.progress.plays_on == "now":
        return over, "The trained policy plays on; nothing is recorded."
    if not plays_on(view):
        return over, ""
    where = "The trained policy plays on in MuJoCo: see Twins."
    if view.other_physics:
        return where, f"It learned in {view.other_physics} physics: it may do worse here."
    return over, where
