"""Calls a script's own functions with each picture: see `Viewer.on_frame`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from brax_viser.page.state import PageState
from brax_viser.records.frame import Frame
from brax_viser.records.view import View
from brax_viser.scene.block import Block

log = logging.getLogger("brax_viser")


@dataclass(frozen=True, eq=False)
class ShownFrame:
    """One picture of a rollout, as functions of `Viewer.on_frame` get it.

    It has K environments, in the order of the grid's cells. Positions are those of viser's scene:
    nodes of `viewer.server.scene` can be given them as they are. Arrays must not be written to.
    """

    frame: Frame  # the numbers of the last step that playback has reached
    link_names: tuple[str, ...]  # L of them, MuJoCo's names of the bodies
    # float32 [K, L, 3], scene units: where the links are drawn. They may be between two steps.
    link_pos: np.ndarray
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    hidden: np.ndarray  # bool [K], whether a robot is not drawn at the moment
    scale: float  # scene units per metre
    selected: int | None  # row of the selected environment; None if it is not in the picture

    @classmethod
    def of(
        cls, view: View, block: Block, shift: np.ndarray, selected_env: int | None
    ) -> "ShownFrame":
        """Describes the view that a block has just drawn.

        Args:
            view: the view.
            block: the block.
            shift: float [3], scene units, by which the whole scene is moved.
            selected_env: the selected environment, if there is one.
        """
        count = len(view.frame.env_index)
        origins = block.grid.origins(block.count)[:count] + block.offset
        pos = block.scale * (block.pos[:count] + origins[:, None]) + shift
        rows = np.flatnonzero(
            view.frame.env_index == (-1 if selected_env is None else selected_env)
        )
        return cls(
            view.frame,
            _link_names(block.model.variants.model),
            pos.astype(np.float32),
            block.rot[:count].copy(),
            view.hidden,
            block.scale,
            int(rows[0]) if len(rows) else None,
        )


Function = Callable[[ShownFrame], object]


class FrameFunctions:
    """The functions of a script that are called with each picture."""

    def __init__(self, state: PageState):
        """Starts without functions.

        Args:
            state: gets a notice when a function fails.
        """
        self._state = state
        self._functions: tuple[Function, ...] = ()  # replaced as a whole, by any thread

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(self, function: Function) -> None:
        """Adds a function, unless it is there already. Called on any thread."""
        if function not in self._functions:
            self._functions = (*self._functions, function)

    def remove(self, function: Function) -> None:
        """Removes a function, if it is there. Called on any thread."""
        self._functions = tuple(known for known in self._functions if known != function)

    def call(self, shown: ShownFrame) -> None:
        """Calls all functions, on viser's loop. A function that fails is removed, with a notice."""
        for function in self._functions:
            try:
                function(shown)
            except Exception as error:  # a script's mistake must not stop the page
                name = getattr(function, "__qualname__", repr(function))
                self.remove(function)
                self._state.notice = (
                    f"The script's function {name} failed and is not called any more: "
                    f"{type(error).__name__}: {error}"
                )
                log.error("%s, called by on_frame, failed and was removed", name, exc_info=error)


def _link_names(model: mujoco.MjModel) -> tuple[str, ...]:
    return tuple(model.body(index).name for index in range(1, model.nbody))
