"""Records episodes of the training that the page shows, whether or not anybody looks."""

from collections.abc import Callable, Sequence

import mujoco
import numpy as np

from brax_viser.host.source import Source
from brax_viser.host.state import SharedState
from brax_viser.page.channel import Channel
from brax_viser.page.robots import Robots
from brax_viser.records.episode import Episode
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.runs.recorder import Recorder
from brax_viser.runs.window import LinksOf, Window


class Recording:
    """Hands the recorder its steps, and what it has recorded on. Used on viser's loop only."""

    def __init__(
        self,
        shared: SharedState,
        robots: Robots,
        recorder: Recorder | None,
        keep: Callable[[Source, Sequence[Episode]], object],
    ):
        """Records nothing yet.

        Args:
            shared: the shared state.
            robots: the robots of each rollout, with its channel.
            recorder: says when to record; None: never.
            keep: receives the episodes of each recording, with their environment.
        """
        self._shared, self._robots = shared, robots
        self._recorder, self._keep = recorder, keep

    def take(self, packets: Sequence[Packet | ModelPacket]) -> list[Packet | ModelPacket]:
        """Returns those of the packets that the page wants, and records others of the training."""
        window = self._recorder.window if self._recorder is not None else None
        if window is not None:
            now = self._shared.clock()
            for packet in packets:
                if isinstance(packet, Packet) and packet.role == "train":
                    window.receive(packet, self._trained_before(packet), now)
        return [packet for packet in packets if isinstance(packet, ModelPacket) or packet.shown]

    def _trained_before(self, packet: Packet) -> int:
        """Returns the env steps trained, over all environments, before a packet's step."""
        rollout = packet.source.rollouts.get("train")
        since = rollout.pacer.env_steps - packet.env_steps if rollout is not None else 0
        return max(self._shared.progress.num_steps - (since + 1) * packet.num_envs, 0)

    def update(self) -> None:
        """Begins or ends a recording."""
        recorder, shared = self._recorder, self._shared
        if recorder is None:
            return
        training = shared.progress.under_way
        window = recorder.update(shared.clock(), shared.meter.spent, training=training)
        wanted = recorder.window is not None
        if wanted != shared.control.recording:
            shared.set(recording=wanted)
        channel = self._robots.channels.get("train")
        if window is None or channel is None:
            return
        episodes = self._episodes(window, channel)
        if episodes:
            self._keep(channel.source, episodes)
        else:
            recorder.found_none()

    def _episodes(self, window: Window, channel: Channel) -> list[Episode]:
        adapter = channel.source.adapter
        return window.episodes(adapter.dt, _links_of(adapter.mj_model), channel.variants.of_env)


def _links_of(model: mujoco.MjModel) -> LinksOf:
    data = mujoco.MjData(model)

    def links_of(qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)

    return links_of
