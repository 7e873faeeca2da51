"""One picture: link poses of a moment, and the frame that its numbers are from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from brax_viser.records.frame import Frame, assemble
from brax_viser.records.protocol import NEVER


@dataclass(frozen=True, eq=False)
class View:
    """What to draw."""

    frame: Frame  # the step whose numbers are shown: the last one that playback has reached
    link_pos: np.ndarray  # float32 [K, L, 3], m
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    hidden: np.ndarray  # bool [K]: blinks, for it is being reset
    robot_time: float  # s since the stretch began
    came: float  # s, when the frame did
    # Of the twins in MuJoCo, as link_pos and link_rot; NaN where there is none.
    ghost: tuple[np.ndarray, np.ndarray] | None = None

    def is_same_picture(self, other: "View | None") -> bool:
        """Whether there is nothing to draw anew."""
        return (
            other is not None
            and self.link_pos is other.link_pos
            and self.frame is other.frame
            and np.array_equal(self.hidden, other.hidden)
        )


def beside(views: Sequence[View], cells: np.ndarray) -> View:
    """What several processes of a training have of it, as one view.

    Args:
        views: of different environments; the first one's step is the one that is named.
        cells: int32 [K], the environments that are drawn, in the order of the grid's cells. Of
            those that no view has, nothing is shown; another one that is on screen still takes
            the cell of such a one.
    """
    have = np.concatenate([view.frame.env_index for view in views])
    have, rows = np.unique(have, return_index=True)  # of one that two have, the first counts
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
    frame = replace(assemble([view.frame for view in views], spread), env_index=cells)
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
"""The role of the block that is no rollout's."""
