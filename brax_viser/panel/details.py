"""Writes the details of the selected robot as HTML: tables, bars and strips. Pure functions."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import mujoco
import numpy as np
from PIL import Image

from brax_viser.model.physics import AXIAL, body_name, limits_exceeded, named
from brax_viser.records.frame import Detail

MOST_ROWS = 40
"""Most rows of a table, bars included: a robot hand has more joints than fit the panel."""

_AT_MOST_CELLS = 64
"""Most cells in one row of a strip."""

_BLUE, _RED, _GREY, _LINE = "#1c7ed6", "#e03131", "#868e96", "rgba(134,142,150,0.25)"
_ANGLES = (int(mujoco.mjtJoint.mjJNT_HINGE),)


@dataclass(frozen=True, eq=False)
class Inside:
    """The selected robot's details at the step that is on screen."""

    detail: Detail
    model: mujoco.MjModel
    data: mujoco.MjData  # in the state of `detail`
    native: bool  # whether the training's physics is MuJoCo's
    backend: str
    body: int | None  # the body that was clicked on


def inside(view: Inside) -> str:
    """Returns all tables and strips, one below the other."""
    parts = [
        *images(view.detail),
        strain(view),
        bodies(view),
        joints(view),
        actions(view),
        controls(view),
        *observations(view.detail),
    ]
    return (
        '<div style="margin:0 0.75em 0.5em 0.75em;font-size:0.8em;line-height:1.4">'
        + "".join(parts)
        + "</div>"
    )


def clicked(model: mujoco.MjModel, body: int | None) -> str:
    """Names the body that was clicked on, and its mass; empty if none was. The choice stays
    when another robot is selected."""
    if body is None or body >= model.nbody:
        return ""
    name = escape(body_name(model, body))
    return f"Part <b>{name}</b>, {model.body_mass[body]:.3g} kg"


def strain(view: Inside) -> str:
    """Counts contacts, and lists violations: overlapping geoms, joints beyond their limits."""
    depth = -view.data.contact.dist
    deep = depth[depth > 0]
    lines = [f"{len(depth)} contact{'' if len(depth) == 1 else 's'}"]
    if len(deep):
        overlap = "overlaps" if len(deep) == 1 else "overlap"
        lines.append(f"{len(deep)} of them {overlap}, by {1000 * deep.max():.3g} mm at most")
    for joint, beyond in limits_exceeded(view.model, view.detail.qpos)[:4]:
        name = named(view.model, mujoco.mjtObj.mjOBJ_JOINT, joint, "joint")
        unit = view.model.jnt_type[joint] in _ANGLES
        much = f"{np.degrees(abs(beyond)):.2g}°" if unit else f"{1000 * abs(beyond):.2g} mm"
        lines.append(f"{name} is {much} {'below' if beyond < 0 else 'beyond'} its limit")
    return "<div>" + "<br>".join(map(escape, lines)) + "</div>"


def bodies(view: Inside) -> str:
    """Returns each body's position and speed; the one that was clicked on is bold."""
    model, data = view.model, view.data
    rows = []
    for body in range(1, min(model.nbody, MOST_ROWS + 1)):
        speed = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body, speed, 0)
        place = " ".join(f"{x:.2f}" for x in data.xpos[body])
        row = (body_name(model, body), place, f"{np.linalg.norm(speed[3:]):.2f}")
        rows.append(_row(row, bold=body == view.body))
    left = model.nbody - 1 - MOST_ROWS
    return _table(("Body", "x y z, m", "m/s"), rows, left)


def joints(view: Inside) -> str:
    """Returns each hinge's and slide's position, velocity, and place within its range."""
    model, rows = view.model, []
    single = [j for j in range(model.njnt) if model.jnt_type[j] in AXIAL]
    for joint in single[:MOST_ROWS]:
        value = float(view.detail.qpos[model.jnt_qposadr[joint]])
        speed = float(view.detail.qvel[model.jnt_dofadr[joint]])
        turns = model.jnt_type[joint] in _ANGLES
        shown = (f"{np.degrees(value):.1f}°", f"{np.degrees(speed):.0f}°/s")
        if not turns:
            shown = (f"{value:.3f} m", f"{speed:.2f} m/s")
        name = named(model, mujoco.mjtObj.mjOBJ_JOINT, joint, "joint")
        low, high = model.jnt_range[joint]
        within = _slot(value, low, high) if model.jnt_limited[joint] else ""
        rows.append(_row((name, *shown), extra=within))
    return _table(("Joint", "at", "moves", "range"), rows, len(single) - MOST_ROWS)


def actions(view: Inside) -> str:
    """Returns the policy's action as bars."""
    action = view.detail.action
    if action is None:
        return ""
    return _title("Action") + _bars([str(i) for i in range(len(action))], action, -1.0, 1.0)


def controls(view: Inside) -> str:
    """Returns the actuators' controls as bars; or says why there are none."""
    model, ctrl = view.model, view.detail.ctrl
    if model.nu == 0:
        return _title("Controls") + _small("This robot has no actuators.")
    if ctrl is None:
        return _title("Controls") + _small(
            "The controls of the actuators are not known here, only the action."
        )
    kind = mujoco.mjtObj.mjOBJ_ACTUATOR
    names = [named(model, kind, i, "actuator") for i in range(model.nu)]
    limited = model.actuator_ctrllimited.astype(bool)[:, None]
    low, high = np.where(limited, model.actuator_ctrlrange, [[-1.0, 1.0]]).T
    return _title("Controls") + _bars(names, ctrl, low, high)


def images(detail: Detail) -> list[str]:
    """Returns the images in the policy's observation."""
    return [
        _title(f"What the policy sees: {name}".removesuffix(": ")) + picture(image)
        for name, image in detail.images.items()
    ]


def observations(detail: Detail) -> list[str]:
    """Returns the numbers in the policy's observation as strips of colours: blue below zero, red
    above."""
    if not detail.observation and not detail.images:
        return [_title("Observation") + _small("Too long to be sent along.")]
    return [
        _title(f"Observation {name}".strip()) + strip(values)
        for name, values in detail.observation.items()
    ]


def picture(image: np.ndarray) -> str:
    """Returns an image, [H, W, C] of 0 to 1, as the policy is given it: one channel in grey, three
    in colour, and of more channels, which are consecutive frames, the last ones. Values beyond 1,
    as of depths, are shown as shares of the largest."""
    height, width, channels = image.shape
    shown = np.nan_to_num(image[..., -3:] if channels % 3 == 0 else image[..., -1])
    shown = shown / max(float(shown.max()), 1.0)
    png = io.BytesIO()
    Image.fromarray((255 * shown.clip(0.0, 1.0)).astype(np.uint8)).save(png, "png")
    content = base64.b64encode(png.getvalue()).decode()
    note = f"{width} by {height} pixels, {channels} channels"
    if channels > 3:
        note += ": the last frame of several"
    return (
        f'<img alt="{note}" src="data:image/png;base64,{content}" '
        f'style="width:100%;max-width:16em;image-rendering:pixelated;outline:1px solid {_LINE}">'
        + _small(note)
    )


def strip(values: np.ndarray) -> str:
    """Returns a cell per number, left to right and then down, with index and value as a tooltip."""
    known = np.abs(values[np.isfinite(values)])
    largest = max(float(known.max(initial=0.0)), 1e-9)
    cells = []
    for index, value in enumerate(values):
        if not np.isfinite(value):
            colour = "#d633ce"
        else:
            rgb = "224,49,49" if value > 0 else "28,126,214"
            # A square root, so that small numbers can be told from zero.
            colour = f"rgba({rgb},{np.sqrt(abs(value) / largest):.2f})"
        cells.append(f'<div title="{index}: {value:.4g}" style="background:{colour}"></div>')
    columns = min(len(values), _AT_MOST_CELLS) or 1
    note = f"{len(values)} numbers, the largest {largest:.3g}; blue is below zero, red above"
    return (
        f'<div style="display:grid;grid-template-columns:repeat({columns},1fr);'
        f'grid-auto-rows:1.1em;outline:1px solid {_LINE}">{"".join(cells)}</div>' + _small(note)
    )


def _bars(
    names: Sequence[str],
    values: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
) -> str:
    low, high = np.broadcast_to(low, values.shape), np.broadcast_to(high, values.shape)
    rows = [
        _row((name, f"{value:.2f}"), extra=_slot(float(value), float(a), float(b), fill=True))
        for name, value, a, b in list(zip(names, values, low, high, strict=True))[:MOST_ROWS]
    ]
    return _table((), rows, len(names) - MOST_ROWS)


def _slot(value: float, low: float, high: float, *, fill: bool = False) -> str:
    """Draws a value within its range, as a mark or as a bar from zero; red if it is outside."""
    span = max(high - low, 1e-9)
    beyond = not low <= value <= high
    at = 100 * min(max((value - low) / span, 0.0), 1.0) if np.isfinite(value) else 0.0
    zero = 100 * min(max(-low / span, 0.0), 1.0)
    left, width = (min(at, zero), abs(at - zero)) if fill else (max(at - 2, 0.0), 4.0)
    colour = _RED if beyond else _BLUE
    return (
        f'<div style="position:relative;height:0.7em;min-width:4em;background:{_LINE}">'
        f'<div style="position:absolute;left:{left:.1f}%;width:{width:.1f}%;height:100%;'
        f'background:{colour}"></div></div>'
    )


def _row(cells: Sequence[str], *, bold: bool = False, extra: str = "") -> str:
    weight = ' style="font-weight:700"' if bold else ""
    shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    last = f'<td style="width:35%">{extra}</td>' if extra else ""
    return f"<tr{weight}>{shown}{last}</tr>"


def _table(heads: Sequence[str], rows: Sequence[str], left: int) -> str:
    if not rows:
        return ""
    style = f"text-align:left;color:{_GREY};font-weight:400"
    head = "".join(f'<th style="{style}">{escape(cell)}</th>' for cell in heads)
    more = _small(f"and {left} more") if left > 0 else ""
    return (
        '<table style="width:100%;margin-top:0.4em;border-spacing:0 0.1em">'
        f"<tr>{head}</tr>{''.join(rows)}</table>{more}"
    )


def _title(text: str) -> str:
    return f'<div style="margin-top:0.6em;font-weight:600">{escape(text)}</div>'


def _small(text: str) -> str:
    return f'<div style="color:{_GREY}">{escape(text)}</div>'
