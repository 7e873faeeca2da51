"""Writes the panel's sentences as HTML. Pure functions."""

from datetime import datetime
from html import escape

from brax_viser.host.control import Control
from brax_viser.host.findings import Finding
from brax_viser.host.progress import ProgressView, count, waited
from brax_viser.host.selection import RANKED
from brax_viser.panel import details
from brax_viser.panel.endings import after_the_end, finished, last_end, where_held
from brax_viser.panel.playing import on_screen, played
from brax_viser.panel.view import PanelView
from brax_viser.scene.look import css_gradient, range_of

_DOT = {
    "training": "#2f9e44",
    "evaluating": "#1c7ed6",
    "failed": "#e03131",
    "done": "#868e96",
    "held": "#f08c00",
    "replay": "#7048e8",
}
_WAITING_DOT = "#f08c00"
GREY = "#868e96"

LINE = 1.45
"""Height of a line of the head, em. Its boxes are multiples of it: no control below moves."""

ONE_LINE = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis"
"""CSS of a line that is cut off at the panel's edge."""

WHOLE = "min-height:27px;line-height:13px;overflow-wrap:anywhere;user-select:text"
"""CSS of a text that is broken at the panel's edge, and can be copied. It is as high as the buttons
for steps, in whose place it is, so that no tab moves."""

WAITS = 0.01
"""Share of the time that the training waits for the viewer, from which on the cost mentions it."""

WAITS_MOSTLY = 0.5
"""The share from which on it becomes the status."""

FAST_ENOUGH = 0.8
"""Share of its messages that a page takes, below which it is called slow."""


def status(view: PanelView) -> str:
    """Describes the training's state in one sentence."""
    word, detail = state(view)
    return f"{word}: {detail}" if detail else word


def state(view: PanelView) -> tuple[str, str]:
    """Returns the training's state in a few words, and what there is to add, which may be empty."""
    if view.replay.active or view.recorded is not None:
        return replayed(view)
    return state_of_training(view)


def replayed(view: PanelView) -> tuple[str, str]:
    """Says which recording is on screen, and what the training does meanwhile."""
    told, seconds = view.replay, f"{view.replay.position:.1f} s of {view.replay.seconds:.1f} s"
    if told.trial is not None:
        word = f"Two policies: {seconds}"
    elif not told.steps:
        word = f"Replay: no episode {'is left' if told.active else 'has been recorded yet'}"
    elif not told.active:
        word = "Replay"
    elif told.reading or not told.seconds:
        word = f"Replay: reading step {count(told.steps[told.index])}"
    else:
        word = f"Replay: step {count(told.steps[told.index])}, {seconds}"
    if view.recorded is not None:
        began = datetime.fromtimestamp(view.recorded.started)
        seed = view.recorded.settings.get("seed")
        seeded = "" if seed is None else f", seed {seed}"
        return (
            word,
            f"from {began:%Y-%m-%d %H:%M}, {view.recorded.num_envs:,} envs{seeded}",
        )
    if view.fault is None and not view.paused and not view.progress.over:
        return word, "the training goes on, unseen"
    state = state_of_training(view)
    # After the end, in as many lines as while the live robots are shown.
    return word, state[1] if view.progress.phase == "done" else ": ".join(filter(None, state))


def state_of_training(view: PanelView) -> tuple[str, str]:
    """As `state`, of what is live."""
    progress, seconds = view.progress, f"{view.progress.phase_seconds:.0f} s"
    if view.fault is not None:
        return "Streaming stopped by a fault", f"the training goes on: {view.fault}"
    if progress.phase == "done":
        return finished(view)
    if progress.phase == "failed":
        return "The training has failed", progress.error or ""
    if view.held:
        # To the last digit, so that a single step shows.
        return f"Held at step {progress.num_steps:,}", where_held(view)
    if view.until_env is not None:
        return "Running on", f"until env {view.until_env} terminates"
    if view.paused:
        return "Holding", "at the next step"
    if progress.plays:
        return played(view)
    # Shown between two rollouts too, so that it is always clear that streaming is off.
    if not view.control.streaming and progress.phase in ("training", "evaluating", "quiet"):
        return "Streaming is off", "the training goes on unseen"
    if view.waits >= WAITS_MOSTLY and progress.phase in ("training", "evaluating", "quiet"):
        return "Live", "the training waits for the viewer, as no step may be skipped"
    match progress.phase:
        case "waiting":
            return "Waiting for a trainer", "hand it this environment"
        case "compiling":
            return compiling(progress)
        case "training":
            if view.control.show == "eval":
                return "Training", "the next evaluation is shown when it comes"
            return "Live", "but not all of it is finite" if view.nonfinite else on_screen(view)
        case "evaluating":
            if view.control.show == "train":
                return "Evaluating the policy", "the robots go on after it"
            return "Live", "evaluating the policy"
        case _:
            return f"No step for {seconds}", "updating, compiling, or finished"


def compiling(progress: ProgressView) -> tuple[str, str]:
    """Says what is waited for before a step, and how long that takes here."""
    return "Compiling the training step", waited(progress)


def head(view: PanelView) -> str:
    """Returns the environment's name and the training's state, in lines of a fixed height."""
    ended = view.progress.phase in ("done", "failed")
    dot = _DOT.get("held" if view.paused and not ended else view.progress.phase, _WAITING_DOT)
    if view.fault is not None or view.nonfinite:
        dot = _DOT["failed"]
    name = " · ".join(part for part in (view.env, view.progress.algorithm) if part)
    if view.replay.active or view.recorded is not None:
        dot = _DOT["replay"]
    if (run := view.recorded) is not None:
        name = "Replay of " + ", ".join(filter(None, (run.env, run.trainer, run.backend)))
    word, detail = map(escape, state(view))
    line = f"height:{LINE}em;{ONE_LINE}"
    return (
        f'<div style="padding:0.5em 0.75em 0.4em 0.75em;line-height:{LINE}">'
        f'<div style="font-size:1.15em;font-weight:600;{line}" title="{escape(name)}">'
        f"{escape(name)}</div>"
        f'<div class="brax-viser-state" style="{line}"><span><span style="color:{dot}">&#9679;'
        f"</span> {word}</span></div>"
        f'<div style="font-size:0.85em;color:{GREY};{line}" title="{detail}">{detail}</div></div>'
    )


def notices(view: PanelView) -> str:
    """Returns all notices; empty if there are none."""
    told = [*filter(None, (view.notice, view.hold_limit, view.unkept)), *view.cells]
    if view.fault is not None or view.progress.phase == "failed":
        told.insert(0, status(view))  # in full: the head has one line for it
    if view.lost:
        which = ", ".join(map(str, view.lost))
        many = "es" if len(view.lost) > 1 else ""
        told.append(f"Process{many} {which} not heard of: the robots there are not drawn")
    if len(view.stepped) > 1:
        others = ", ".join(name for name in view.stepped if name != view.shown)
        told.append(f"{view.shown} is shown. Stepped too, and not shown: {others}")
    told.extend(view.refused)
    lines = [f'<div style="color:#e8590c">{escape(text)}</div>' for text in told]
    red = "color:#e03131;font-weight:600"
    lines += [f'<div style="{red}">{_sentence(found)}</div>' for found in view.nonfinite]
    if not lines:
        return ""
    margin = "margin:0 0.75em 0.5em 0.75em;font-size:0.9em;line-height:1.4"
    return f'<div style="{margin}">{"".join(lines)}</div>'


def _sentence(found: Finding) -> str:
    text = str(found)
    return escape(text[:1].upper() + text[1:])


def cost(view: PanelView) -> str:
    """Says what watching costs the training, and what it sends."""
    control = view.control
    if not control.streaming:
        return lines_of(["Costs nothing: no state leaves the device"])
    if view.progress.over or view.progress.plays:
        why = "no training runs" if view.progress.plays else "the training is over"
        return lines_of([f"Costs nothing: {why}"])
    budget = "no budget" if control.mode == "every_step" else f"budget {_percent(control)}"
    lines = [
        f"Costs {100 * view.overhead:.1f} % of the time ({budget})",
        f"From the device: {_megabytes(view.bytes_per_second)}, "
        f"{view.frames_per_second:.0f} steps of each env a second",
        f"To each page: {_megabytes(view.page_bytes_per_second)}",
    ]
    if view.waits >= WAITS:
        lines.append(
            f"The training waits for the viewer {100 * view.waits:.0f} % of the time: in Every "
            "step no step is skipped"
        )
    if view.slowest_page is not None and view.slowest_page < FAST_ENOUGH:
        shows = f"it shows {100 * view.slowest_page:.0f} % of the frames"
        lines.append(f"A page is slow and skips frames: {shows}")
    return lines_of(lines)


def _megabytes(bytes_per_second: float) -> str:
    """Writes MB/s with about two significant digits: 0.42, 1.1, 17."""
    megabytes = bytes_per_second / 1e6
    digits = 2 if megabytes < 0.995 else 1 if megabytes < 9.95 else 0
    return f"{megabytes:.{digits}f} MB/s"


def _percent(control: Control) -> str:
    return f"{100 * control.max_overhead:.3g} %"


def drawn(view: PanelView) -> str:
    """Says how many environments are drawn, or why none is."""
    num_envs = view.stream.num_envs
    if view.complaint is not None and view.selection.rule == "indices":
        return note(view.complaint, warning=True)
    beyond = [i for i in view.selection.indices if num_envs is not None and i >= num_envs]
    if beyond and view.selection.rule == "indices":  # of a script, before their number was known
        return note(f"There is no env {beyond[0]:,}: there are {num_envs:,}", warning=True)
    if num_envs is None:
        return note(f"{view.drawn:,} robots, waiting for the first step")
    if view.drawn or view.selection.rule not in RANKED:
        by = view.selection.rank_by
        how = HOW_DRAWN.get(view.selection.rule, "").format(MEASURED[by])
        if view.selection.rule in ("best", "worst") and by == "last_episode":
            how += BEHIND
        verb = "is" if view.drawn == 1 else "are"
        return note(f"{view.drawn:,} of {num_envs:,} envs {verb} drawn{how}")
    none = {"nan": "has a NaN or an Inf", "terminated": "has terminated yet"}
    return note(f"None of {num_envs:,} envs {none.get(view.selection.rule, 'is drawn')}")


MEASURED = {
    "last_episode": "return of the last finished episode",
    "so_far": "return of the episode so far",
    "per_second": "reward per second of the episode so far",
}
"""Measure -> the return that robots are ranked and coloured by, in words."""

BEHIND = "; those without one behind them, by reward per second of the episode so far"

HOW_DRAWN = {
    "best": ", highest {} first",
    "worst": ", lowest {} first",
    "terminated": ", each as it fell, the latest fall first",
}


TO_PUSH = "To push it, fork it into a sandbox under Twins."


def selected(view: PanelView) -> str:
    """Describes the selected environment."""
    if view.selected_env is None:
        return note("Click a robot to select it.")
    facts = f" · {view.selected_facts}" if view.selected_facts is not None else ""
    name = view.control.agents.name_of(view.selected_env, view.stream.num_envs)
    return (
        '<div style="margin:0 0.75em 0.4em 0.75em;font-size:0.9em">'
        f"<b>{escape(name[:1].upper() + name[1:])}</b>{escape(facts)}</div>"
        + note(last_end(view.frame, view.selected_env, view.why_ended) if view.frame else "")
    )


def looked_into(view: PanelView) -> str:
    """Names the environment and body that details are shown of, or what is missing for them."""
    if view.selected_env is None:
        return note("Click a robot first: forces and numbers are those of the selected one.")
    lines = [f"Env {view.selected_env}, as MuJoCo sees it"]
    if not view.has_detail:
        lines = [f"Env {view.selected_env}: its details come with its next steps"]
    if view.model is not None and (part := details.clicked(view.model, view.look.body)):
        lines.append(part)
    return (
        '<div style="margin:0 0.75em 0.4em 0.75em;font-size:0.85em">'
        + "<br>".join(lines)
        + "</div>"
    )


def numbers(view: PanelView) -> str:
    """Returns the numbers of the selected robot, if they are switched on."""
    if not view.look.numbers:
        return ""
    if view.inside is not None:
        return details.inside(view.inside)
    if view.has_detail:
        return note("Its coordinates have a NaN or an Inf: there is nothing to work out.")
    return ""


def missing(view: PanelView) -> str:
    """Lists the overlays that this robot cannot have, and why."""
    reasons: dict[str, list[str]] = {}
    for name, why in view.unavailable.items():
        reasons.setdefault(why, []).append(OVERLAY_LABELS[name].lower())
    lines = [f"No {' and '.join(names)}: {why}." for why, names in reasons.items()]
    return lines_of(lines) if lines else ""


OVERLAY_LABELS = {
    "contacts": "Contact points",
    "contact_forces": "Contact forces",
    "trail": "Trail",
    "velocities": "Velocities",
    "actuators": "Actuators",
    "joint_axes": "Joint axes",
    "violations": "Overlaps and limits",
    "com": "Centre of mass",
    "inertia": "Inertia boxes",
    "tendons": "Tendons",
    "body_frames": "Body frames",
    "geom_frames": "Geom frames",
}
"""Overlay -> its label, in the panel's order."""


def legend(view: PanelView) -> str:
    """Explains the colours of the robots."""
    rule = view.look.colour_by
    if rule == "termination":
        return note("Red: has just terminated. Pink: NaN or Inf.")
    by = "so_far" if view.replay.active else view.selection.rank_by
    ends = None
    if view.frame is not None:
        ends = range_of(rule, view.frame, view.dt, by)
    said = ""
    if rule == "return":
        said = note(f"Colour: {MEASURED[by]}. Grey: not known.")
    if ends is None:
        return said
    low, high = (f"{end:,.3g}" for end in ends)
    return said + (
        '<div style="margin:-0.2em 0.75em 0.6em 0.75em;font-size:0.8em;display:flex;gap:0.6em;'
        f'align-items:center"><span>{low}</span><div style="flex:1;height:0.7em;'
        f'border-radius:0.2em;background:{css_gradient()}"></div><span>{high}</span></div>'
    )


def hold_note(view: PanelView) -> str:
    """Says what a step counts, and which keys there are, in two lines."""
    num_envs, env = view.stream.num_envs, view.selected_env
    several = num_envs is not None and num_envs > 1
    counted = f"One step of all {num_envs:,} envs counts {num_envs:,} steps." if several else ""
    fall = "T: click on a robot first" if env is None else f"T (next fall of env {env})"
    lines = (counted, f"Keys: space, N, M, {fall}")
    room = ""
    if view.progress.over and not view.paused:
        lines, saved = after_the_end(view), view.progress.saved
        # In whole, also where there is no tooltip.
        text = f"Policy saved to {escape(saved)}" if saved else ""
        room = f'<div style="{WHOLE}">{text}</div>'
    return (
        f'<div style="margin:-0.3em 0.75em 0.5em 0.75em;font-size:0.8em;color:{GREY}">{room}'
        + "".join(f'<div style="height:{LINE}em;{ONE_LINE}">{line}</div>' for line in lines)
        + "</div>"
    )


def note(text: str, *, warning: bool = False) -> str:
    """Returns small print under a control."""
    colour = "#e03131" if warning else GREY
    return (
        f'<div style="margin:-0.3em 0.75em 0.5em 0.75em;font-size:0.8em;color:{colour}">'
        f"{escape(text)}</div>"
    )


def lines_of(lines: list[str]) -> str:
    return (
        '<div style="margin:0.1em 0.75em 0.5em 0.75em;font-size:0.85em;line-height:1.5">'
        + "<br>".join(map(escape, lines))
        + "</div>"
    )
