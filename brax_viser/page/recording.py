"""Records episodes of the training that the page shows, whether or not a page is open."""

import time
from collections.abc import Sequence

import mujoco
import numpy as np

from brax_viser.host.metrics import RECORDED
from brax_viser.host.selection import RANKED
from brax_viser.host.source import Source
from brax_viser.host.state import SharedState
from brax_viser.host.terms import terms_among
from brax_viser.page.channel import Channel
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.records.episode import Episode, RunInfo
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.runs.keeper import Keeper
from brax_viser.runs.recorder import Recorder
from brax_viser.runs.window import LinksOf, Window

CURVE_SECONDS = 10.0
"""s between two copies of the curves that are kept."""


class Recording:
    """Passes steps to the recorder, and what was recorded to the keeper. Used on viser's loop
    only."""

    def __init__(self, shared: SharedState, state: PageState, robots: Robots, keeper: Keeper):
        """Records nothing yet.

        Args:
            shared: the shared state.
            state: the page's state, which says what can't be kept.
            robots: the robots of each rollout, with its channel.
            keeper: keeps what was recorded.
        """
        self._shared, self._state, self._robots = shared, state, robots
        self._recorder, self._keeper = Recorder(keeper.first_after), keeper
        self._source: Source | None = None  # the environment of the training that is kept
        self._training: int | None = None  # its number
        self._curves: object = None  # version of those that are kept
        self._next_curves = 0.0  # s
        self._holds: Sequence[int] = ()  # that are kept

    def take(self, packets: Sequence[Packet | ModelPacket]) -> list[Packet | ModelPacket]:
        """Records the packets of the training, and returns those that the page wants."""
        window = self._recorder.window
        if window is not None and packets:
            self._begin()
            seconds = self._shared.progress.seconds(self._shared.clock())
            for packet in packets:
                if isinstance(packet, Packet) and packet.source is self._source:
                    if packet.role == "train":
                        window.receive(packet, self._trained_before(packet), seconds)
        return [packet for packet in packets if isinstance(packet, ModelPacket) or packet.shown]

    def _trained_before(self, packet: Packet) -> int:
        """Returns the env steps trained, over all environments, before a packet's step."""
        rollout = packet.source.rollouts.get("train")
        since = rollout.steps.env_steps - packet.env_steps if rollout is not None else 0
        return max(self._shared.progress.num_steps - (since + 1) * packet.num_envs, 0)

    def update(self) -> None:
        """Begins or ends a recording where one is due."""
        shared, recorder, channel = self._shared, self._recorder, self._robots.channels.get("train")
        progress = shared.progress
        # What a recording needs from the first step on must be requested before that step.
        early = self._keeper.first_after == 0 and progress.seconds(shared.clock()) == 0
        training = channel is not None and (progress.under_way or early)
        if progress.under_way and channel is not None:
            self._begin()
            training = channel.source is self._source
        spent, share = shared.meter.recorded, shared.recording_share
        rhythm = shared.control.record_every, progress.metrics.evaluations
        window = recorder.update(shared.clock(), *rhythm, spent, share, training=training)
        wanted = recorder.window is not None
        if wanted != shared.control.recording:
            shared.set(recording=wanted)
        if window is not None and channel is not None:
            episodes = self._episodes(window, channel)
            if episodes:
                self._keeper.add(episodes)
                self._report(window)
            else:
                recorder.found_none()
        self._keep_curves()
        self._state.unkept, self._state.kept_in = self._keeper.problem, self._keeper.path

    def keep_holds(self, holds: Sequence[int]) -> None:
        """Keeps the steps at which the training was held, if that training is being recorded."""
        if self._shared.progress.begun == self._training and holds != self._holds:
            self._holds = holds
            self._keeper.set_holds(holds)

    def close(self) -> bool:
        """Finishes what is kept. Called on any thread. Returns whether episodes are on disk."""
        self._next_curves = 0.0
        self._keep_curves()
        return self._keeper.close()

    def _begin(self) -> None:
        """Begins to keep another training once there is one. Of several environments that are
        stepped in turn, the first is recorded."""
        progress, source = self._shared.progress, self._shared.sources_shown().get("train")
        rollout = source.rollouts.get("train") if source is not None else None
        if source is None or rollout is None or progress.begun == self._training:
            return
        if not progress.under_way:
            return
        self._training, self._source, self._holds = progress.begun, source, ()
        adapter, call = source.adapter, progress.call
        settings = {} if call is None else {**call.settings, "num_timesteps": call.num_timesteps}
        self._keeper.begin(
            RunInfo(
                env=adapter.name,
                backend=adapter.backend,
                dt=adapter.dt,
                num_envs=rollout.num_envs,
                mj_model=adapter.mj_model,
                trainer=call.algorithm if call is not None else None,
                started=time.time(),
                settings=settings,
                limits=adapter.limits,
            )
        )

    def _report(self, window: Window) -> None:
        """Adds the terms of the reward to the curves, as not every trainer reports them. Robots
        that are drawn because they do well or badly are not representative."""
        if self._shared.selection.rule not in RANKED:
            found = {RECORDED + name: x for name, x in terms_among(window.metrics()).items()}
            progress = self._shared.progress
            progress.metrics.add(progress.num_steps, found, self._shared.clock())

    def _episodes(self, window: Window, channel: Channel) -> list[Episode]:
        adapter = channel.source.adapter
        return window.episodes(adapter.dt, _links_of(adapter.mj_model), channel.variants.of_env)

    def _keep_curves(self) -> None:
        metrics, now = self._shared.progress.metrics, self._shared.wall_clock()
        if self._training is None or now < self._next_curves or metrics.version == self._curves:
            return
        self._next_curves, self._curves = now + CURVE_SECONDS, metrics.version
        self._keeper.set_curves(metrics.arrays())


def _links_of(model: mujoco.MjModel) -> LinksOf:
    data = mujoco.MjData(model)

    def links_of(qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)

    return links_of
