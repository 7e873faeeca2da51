"""Holds the state of one rollout on its way to the screen."""

import functools
from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.mailbox import CAPACITY
from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Source
from brax_viser.host.terms import TermLog
from brax_viser.model.robot import Model
from brax_viser.model.variants import Variants
from brax_viser.page.falls import Falls
from brax_viser.page.playback import Player
from brax_viser.page.reasons import Reasons
from brax_viser.records.frame import Frame, joined
from brax_viser.records.packet import Packet
from brax_viser.records.view import View
from brax_viser.sandbox.history import RecentDetails
from brax_viser.scene.look import Look
from brax_viser.twins.drift import DriftLog
from brax_viser.twins.worker import Simulated, TwinWorker

MOST_UNFINISHED = CAPACITY
"""Most steps kept while a device's part is missing: a device that has stopped never sends it."""


@dataclass(eq=False)
class ProcessPlayback:
    """Playback of the frames of a rollout that one process of the training sends."""

    player: Player
    view: View | None = None
    has_twins: bool = False  # whether twins were requested since the last `end_twins`
    # By step and shard, the parts received: (environments drawn at this step, the shard's frame).
    _parts: dict[int, dict[int, tuple[np.ndarray, Frame]]] = field(default_factory=dict)

    def receive(self, packet: Packet) -> Frame | None:
        """Adds a shard's part of a step; returns the joined frame once all parts are there."""
        if self._parts and packet.env_steps < max(self._parts) - MOST_UNFINISHED:
            self._parts.clear()  # another training has begun, and counts from 0 again
        parts = self._parts.setdefault(packet.env_steps, {})
        parts[packet.shard] = packet.drawn, packet.open()
        # While the training is held, other environments can be requested at the same step.
        together = [f for drawn, f in parts.values() if np.array_equal(drawn, packet.drawn)]
        frame = joined(together, packet.drawn)
        if frame is not None:
            # Earlier steps will not be completed any more.
            self._parts = {k: v for k, v in self._parts.items() if k > packet.env_steps}
        elif len(self._parts) > MOST_UNFINISHED:
            del self._parts[min(self._parts)]
        return frame


@dataclass(eq=False)
class Channel:
    """The state of one rollout on its way to the screen."""

    source: Source
    variants: Variants
    model: Model | None = None  # its robots; None: not read yet
    # What `model` was read from, and what is being read: (drawn parts, `variants.apart`).
    read: tuple[object, ...] = ()
    reading: tuple[object, ...] = ()
    num_envs: int | None = None  # None: not known yet
    playbacks: dict[int, ProcessPlayback] = field(default_factory=dict)  # by process
    view: View | None = None  # on screen
    look: Look | None = None
    empty: bool = False  # whether the rule has found no environment
    drift: DriftLog = field(default_factory=DriftLog)  # of the frames that were on screen
    terms: TermLog = field(default_factory=TermLog)  # of the selected environment
    recent: RecentDetails = field(default_factory=RecentDetails)  # of the selected environment
    now: View | None = None  # played last; `view` is this with falls put in, if these are shown
    rollout: Rollout | None = None  # the rollout of `falls`
    controls_known: bool = True  # whether controls came with the coordinates, if needed

    @functools.cached_property
    def falls(self) -> Falls:
        """The falls of its environments."""
        return Falls(self.source.adapter.dt)

    @functools.cached_property
    def reasons(self) -> Reasons:
        """Why its environments were terminated."""
        return Reasons(self.source.adapter.limits)

    @functools.cached_property
    def simulated(self) -> Simulated:
        """The model that twins step by default: as the training simulates it."""
        adapter = self.source.adapter
        return Simulated(adapter.mujoco_model(), adapter.substeps, adapter.native)

    @functools.cached_property
    def made(self) -> Simulated:
        """The same model with the physics settings of its file."""
        adapter = self.source.adapter
        substeps = max(round(adapter.dt / adapter.mj_model.opt.timestep), 1)
        return Simulated(adapter.mj_model, substeps, adapter.native)

    def playback(self, process: int) -> ProcessPlayback:
        return self.playbacks.setdefault(process, ProcessPlayback(Player(self.source.adapter.dt)))

    def clear(self) -> None:
        """Drops all frames received."""
        self.now = None
        for playback in self.playbacks.values():
            playback.player.clear()
            playback.view = None

    def end_twins(self, worker: "TwinWorker[ProcessPlayback]") -> None:
        """Ends its twins; they are not shown any more."""
        for playback in self.playbacks.values():
            if playback.has_twins:
                worker.forget(playback)
                playback.has_twins = False
