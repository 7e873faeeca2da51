"""Holds one picture: link poses at one moment, and the frame whose numbers are shown with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from brax_viser.records.frame import Frame, assemble
from brax_viser.records.protocol import NEVER


@dataclass(frozen=True, eq=False)
class View:
    """The picture of one block at one moment."""

    frame: Frame  # step whose numbers are shown: the last that playback has reached
    link_pos: np.ndarray  # float32 [K, L, 3], m
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    hidden: np.ndarray  # bool [K]: not drawn: blinking at a reset, or not known
    robot_time: float  # s since the stretch began
    came: float  # s, when the frame arrived
    # The twins' link poses, as link_pos and link_rot; NaN where there is no twin.
    ghost: tuple[np.ndarray, np.ndarray] | None = None

    def is_same_picture(self, other: "View | None") -> bool:
        """Whether both show the same picture, so that nothing need be redrawn."""
        return (
            other is not None
            and self.link_pos is other.link_pos
            and self.frame is other.frame
            and np.array_equal(self.hidden, other.hidden)
        )


def beside(views: Sequence[View], cells: np.ndarray) -> View:
    """Merges the views of several processes of a training into one.

    Args:
        views: of different environments; the step shown is that of the first view.
        cells: int32 [K], the environments to draw, in the order of the grid's cells. If no view
            has one of them, its cell shows an environment of the views that has no cell, or else
            nothing.
    """
    have = np.concatenate([view.frame.env_index for view in views])
    have, rows = np.unique(have, return_index=True)  # duplicates: the first counts
    cells = cells.copy()
    free = np.flatnonzero(~np.isin(cells, have))
    others = have[~np.isin(have, cells)][: len(free)]
    cells[free[: len(others)]] = others
    place = np.minimum(np.searchsorted(have, cells), max(len(have) - 1, 0))
    there = have[place] == cells if len(have) else np.zeros(len(cells), bool)
    rows = rows[place[there]]

    def spread(arrays: list[np.ndarray]) -> np.ndarray:
        joint = np.concatenate(arrays)
        spread = np.zeros((len(cells), *joint.shape[1:]), joint.dtype)
        spread[there] = joint[rows]
        return spread

    first = views[0]
    frames = [view.frame for view in views]
    # A process whose part is older may have sent the details of a robot that is no longer drawn.
    details = [f.detail for f in frames if f.detail is not None and f.detail.env in cells[there]]
    frame = replace(assemble(frames, spread), env_index=cells, detail=next(iter(details), None))
    frame.finite[~there] = True
    frame.since_termination[~there] = NEVER
    ghosts = [view.ghost for view in views]
    return replace(
        first,
        frame=frame,
        ghost=tuple(spread(list(parts)) for parts in zip(*ghosts, strict=True))
        if all(ghost is not None for ghost in ghosts)
        else None,
        link_pos=spread([view.link_pos for view in views]),
        link_rot=spread([view.link_rot for view in views]),
        hidden=spread([view.hidden for view in views]) | ~there,
    )


ASIDE = "sandbox"
"""The role of the sandbox's block, which belongs to no rollout."""
