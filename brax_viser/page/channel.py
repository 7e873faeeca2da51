"""One rollout on its way to the screen."""

import functools
from dataclasses import dataclass, field

import numpy as np

from brax_viser.host.mailbox import CAPACITY
from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Source
from brax_viser.model.robot import Model
from brax_viser.model.variants import Variants
from brax_viser.page.falls import Falls
from brax_viser.page.playback import Player
from brax_viser.records.frame import Frame, joined
from brax_viser.records.packet import Packet
from brax_viser.records.view import View
from brax_viser.sandbox.history import RecentDetails
from brax_viser.scene.look import Look
from brax_viser.twins.drift import DriftLog
from brax_viser.twins.worker import Simulated, TwinWorker

MOST_UNFINISHED = CAPACITY
"""Steps of which some device's part has yet to come. Of one that pushes no more, none ever does."""


@dataclass(eq=False)
class ProcessPlayback:
    """What one process of the training sends of a rollout."""

    player: Player
    view: View | None = None
    has_twins: bool = False  # whether any were ever asked for
    # By step and device, those that have come: (all that are drawn, what this device has of them).
    _parts: dict[int, dict[int, tuple[np.ndarray, Frame]]] = field(default_factory=dict)

    def receive(self, packet: Packet) -> Frame | None:
        """A device's part of a step; with the last of them, the step."""
        if self._parts and packet.env_steps < max(self._parts) - MOST_UNFINISHED:
            self._parts.clear()  # another training has begun, and counts anew
        parts = self._parts.setdefault(packet.env_steps, {})
        parts[packet.shard] = packet.drawn, packet.open()
        # While the training is held, other environments can be asked for at the same step.
        together = [f for drawn, f in parts.values() if np.array_equal(drawn, packet.drawn)]
        frame = joined(together, packet.drawn)
        if frame is not None:
            # Steps before it will not be completed any more.
            self._parts = {k: v for k, v in self._parts.items() if k > packet.env_steps}
        elif len(self._parts) > MOST_UNFINISHED:
            del self._parts[min(self._parts)]
        return frame


@dataclass(eq=False)
class Channel:
    """One rollout on its way to the screen."""

    source: Source
    variants: Variants
    model: Model | None = None  # its robots; None: they have yet to be read
    # Of what that was read, and what is being read: (parts that are drawn, `variants.apart`).
    read: tuple[object, ...] = ()
    reading: tuple[object, ...] = ()
    num_envs: int | None = None  # None: not known yet
    playbacks: dict[int, ProcessPlayback] = field(default_factory=dict)  # by process
    view: View | None = None  # what is on screen
    look: Look | None = None
    empty: bool = False  # whether the rule has found nobody
    drift: DriftLog = field(default_factory=DriftLog)  # of what was on screen
    recent: RecentDetails = field(default_factory=RecentDetails)  # of the selected environment
    now: View | None = None  # what they do now, where falls are on screen
    rollout: Rollout | None = None  # whose falls these are
    controls_known: bool = True  # whether what went to the physics came with the coordinates

    @functools.cached_property
    def falls(self) -> Falls:
        """How its environments fell."""
        return Falls(self.source.adapter.dt)

    @functools.cached_property
    def simulated(self) -> Simulated:
        """What the twins of this rollout step: the training's own."""
        adapter = self.source.adapter
        return Simulated(adapter.mujoco_model(), adapter.substeps, adapter.native)

    @functools.cached_property
    def made(self) -> Simulated:
        """The same as its file says."""
        adapter = self.source.adapter
        substeps = max(round(adapter.dt / adapter.mj_model.opt.timestep), 1)
        return Simulated(adapter.mj_model, substeps, adapter.native)

    def playback(self, process: int) -> ProcessPlayback:
        return self.playbacks.setdefault(process, ProcessPlayback(Player(self.source.adapter.dt)))

    def clear(self) -> None:
        """Forgets all that has come."""
        self.now = None
        for playback in self.playbacks.values():
            playback.player.clear()
            playback.view = None

    def end_twins(self, worker: "TwinWorker[ProcessPlayback]") -> None:
        """Nobody looks at its twins any more."""
        for playback in self.playbacks.values():
            if playback.has_twins:
                worker.forget(playback)
                playback.has_twins = False
