"""Records episodes as viser's messages, drawn by the scene of the live page."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple

import numpy as np
import viser
import viser.infra

from brax_viser.compat import asking_before_viser, stop_viser, without_viser_banner
from brax_viser.export.clip import Clip, Progress
from brax_viser.export.lighter import grain_of, lighter, rounded
from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.variants import Variants
from brax_viser.records.episode import RunInfo
from brax_viser.records.frame import Frame
from brax_viser.records.grid import Grid
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View
from brax_viser.scene.look import Look
from brax_viser.scene.scene import ROOT, Scene

ROLE = "train"
"""The scene's only block."""


class Recording(NamedTuple):
    """Episodes as they are drawn."""

    messages: viser.infra.StateSerializer
    grain: float  # a power of two; what is finer cannot be seen, in the scene's units


def record(info: RunInfo, clips: Sequence[Clip], progress: Progress) -> Recording:
    """Records episodes side by side, from their first drawn steps on.

    Args:
        info: the training.
        clips: at least one. They begin together; one that has ended stays in its last pose.
        progress: called with the share that is drawn, from 0 to 1.
    """
    server = unreachable_server()
    try:
        stage = _Stage(server, info, clips)
        stage.draw(0)
        recording = server.get_scene_serializer()
        longest = max(clips, key=lambda clip: len(clip.rows))
        for index, passed in enumerate(np.diff(longest.times), start=1):
            recording.insert_sleep(float(passed))
            stage.draw(index)
            progress(index / (len(longest.rows) - 1))
        return Recording(recording, stage.grain)
    finally:
        stop_viser(server)


class _Stage:
    """The scene, in which each episode has a cell."""

    def __init__(self, server: viser.ViserServer, info: RunInfo, clips: Sequence[Clip]):
        self._server, self._clips = server, clips
        self._poses = [clip.poses for clip in clips]
        first = clips[0].episode
        grid = grid_of(info.mj_model, first.qpos[0], _shape(len(clips)), None)
        variants = Variants(info.mj_model)
        variants.update({cell: clip.episode.model for cell, clip in enumerate(clips)})
        init_links = self._poses[0][0][0], self._poses[0][1][0]
        model = Model.of(info.mj_model, grid, init_links, info.dt, variants, backend=info.backend)
        size = float(np.ptp(grid.reach, axis=0).max())
        model = replace(model, shapes=rounded(lighter(model.shapes, size), size))
        self._scene = Scene(server)
        self._scene.show(ROLE, model, grid, len(clips))
        self._scene.arrange((ROLE,))
        block = self._scene.blocks[ROLE]
        block.decorate(Look())
        self.grain = grain_of(block.scale * size)
        self.draw(0)
        # Robots that travel stay in their cells, and marks pass under them. Rough ground cannot
        # move like that: there the only robot is followed.
        if model.roaming_link is None and model.terrain is not None and len(clips) == 1:
            self._scene.follow((ROLE, 0))
        if len(clips) > 1:
            self._number(grid, block.scale)

    def _number(self, grid: Grid, scale: float) -> None:
        """Numbers the cells, as the curves are."""
        for cell, origin in enumerate(grid.origins(len(self._clips))):
            place = origin + np.array([grid.reach[:, 0].mean(), grid.reach[0, 1], grid.reach[0, 2]])
            self._server.scene.add_label(
                f"{ROOT}/number/{cell}", f"{cell + 1}", position=tuple(scale * place)
            )

    def draw(self, index: int) -> None:
        """Draws the step of this index of each clip, or its last."""
        self._scene.draw({ROLE: self._view(index)}, {ROLE: Look()})

    def _view(self, index: int) -> View:
        rows = [min(index, len(clip.rows) - 1) for clip in self._clips]
        pos, rot = (
            np.stack([poses[part][row] for poses, row in zip(self._poses, rows, strict=True)])
            for part in (0, 1)
        )
        count = len(rows)
        none, zeros = np.zeros(count, np.int32), np.zeros(count, np.float32)
        frame = Frame(
            role=ROLE,
            env_steps=index,
            env_index=np.arange(count, dtype=np.int32),
            num_envs=count,
            link_pos=pos,
            link_rot=rot,
            reward=zeros,
            episode_return=zeros,
            episode_length=none,
            since_termination=none + NEVER,
            finite=np.ones(count, bool),
        )
        return View(frame, pos, rot, np.zeros(count, bool), robot_time=0.0, came=0.0)


def _shape(count: int) -> tuple[int, int]:
    """Columns and rows for so many cells, wider than deep."""
    columns = int(np.ceil(np.sqrt(count)))
    return columns, -(-count // columns)


def unreachable_server() -> viser.ViserServer:
    """A server that answers every request with a refusal: it exists only to be recorded."""

    def refuse(connection: Any, request: Any, answer: Any) -> Any:
        return connection.respond(HTTPStatus.FORBIDDEN, "This server only records.\n")

    log = logging.getLogger("brax_viser.export")
    with without_viser_banner(), asking_before_viser(refuse, logger=log):
        return viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
