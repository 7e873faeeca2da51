"""Takes what has come from the device, by way of the twins, to what is shown of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Source
from brax_viser.host.state import SharedState
from brax_viser.page.channel import Channel, ProcessPlayback
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.records.frame import Frame
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.view import View, beside
from brax_viser.twins.drift import Drift
from brax_viser.twins.worker import TwinWorker

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.processes.leader import Leader

TWIN_PATIENCE = 1.0
"""s: how far the page may be behind the training for the sake of twins."""

TWIN_LEISURE = 0.1
"""s for which a step of a stretch waits for others, to be taken by twins together with them. What
is shown as it comes is taken together as it is fetched, for the page's next frame."""


class Channels:
    """The rollouts on their way to the screen. Used on viser's loop, but where said otherwise."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        robots: Robots,
        twin_worker: TwinWorker[ProcessPlayback],
        leader: "Leader | None",
    ):
        """Nothing has come yet.

        Args:
            shared: what is shared with the device's calls.
            state: tells how twins are stepped.
            robots: has the robots of a rollout drawn.
            twin_worker: steps the twins.
            leader: the other processes of the training; None if it has but this one.
        """
        self._shared, self._state, self._robots = shared, state, robots
        self._twin_worker, self._leader = twin_worker, leader

    def worth_opening(
        self, packets: Sequence[Packet | ModelPacket]
    ) -> Sequence[Packet | ModelPacket]:
        """Leaves out steps that nobody will see: where the newest alone is shown, those before it,
        unless something is made of every step of theirs."""
        if self._shared.control.mode == "realtime":
            return packets
        newest: set[tuple[object, str, int]] = set()
        kept: list[Packet | ModelPacket] = []
        for packet in reversed(packets):
            if isinstance(packet, Packet) and packet.is_whole:
                whose = packet.source, packet.role, packet.process
                if whose in newest and packet.is_plain:
                    continue
                newest.add(whose)
            kept.append(packet)
        return kept[::-1]

    def receive(self, packets: Sequence[Packet | ModelPacket], now: float) -> None:
        """Takes what has come from the device to the players and the twins."""
        for packet in packets:
            channel = self._channel_of(packet)
            if isinstance(packet, ModelPacket):
                if channel.variants.update(packet.open()):
                    self._robots.want(packet.source, packet.role, packet.num_envs)
                continue
            if (rollout := packet.source.rollouts.get(packet.role)) is not channel.rollout:
                channel.rollout = rollout
                channel.falls.clear()
            if packet.ranked:
                channel.falls.learn(packet.open())
                continue
            playback = channel.playback(packet.process)
            frame = playback.receive(packet)
            if frame is not None:
                self._hand_on(channel, playback, frame, now)
            if packet.role not in self._robots.roles:
                playback.player.newest(now)  # nobody plays it: what has come must not pile up
        self._twin_worker.go()

    def _channel_of(self, packet: Packet | ModelPacket) -> Channel:
        channel = self._robots.channels.get(packet.role)
        if channel is not None and channel.source is packet.source:
            return channel
        # Another environment of this viewer is being stepped now: show that one.
        self._robots.want(packet.source, packet.role, packet.num_envs)
        return self._robots.channels[packet.role]

    def take_twins(self, now: float) -> None:
        """Brings frames whose twins have been stepped to their players."""
        for playback, frame in self._twin_worker.take():
            playback.player.add(frame, now)

    def end_twins(self) -> None:
        """Nobody looks at any twins any more."""
        for channel in self._robots.channels.values():
            channel.end_twins(self._twin_worker)

    def _hand_on(
        self, channel: Channel, playback: ProcessPlayback, frame: Frame, now: float
    ) -> None:
        """Brings a frame to the player, by way of its twins if it is to have any."""
        channel.recent.add(frame)
        channel.falls.add(frame)
        rows: list[int] = []
        if frame.coordinates is not None:
            channel.controls_known = (
                frame.coordinates.ctrl is not None or not channel.simulated.model.nu
            )
            if channel.controls_known:
                rows = self._rows_of_twins(channel, frame)
        if not rows and not self._twin_worker.pending(playback):
            playback.player.add(frame, now)
            return
        playback.has_twins |= bool(rows)
        own, settings = channel.variants.of_env, self._state.twins
        simulated = channel.made if settings.as_made else channel.simulated
        patience, leisure = self._time_for_twins(channel, frame)
        self._twin_worker.send(playback, frame, rows, simulated, own, settings, patience, leisure)

    def _time_for_twins(self, channel: Channel, frame: Frame) -> tuple[float, float]:
        """s, how long the page waits for a frame's twins, and they for the frames after it."""
        control = self._shared.control
        if control.mode != "realtime":
            return TWIN_PATIENCE, 0.0
        # A stretch comes faster than it is played, and its last steps have time.
        patience = max(TWIN_PATIENCE, control.stretch_seconds / control.speed)
        rollout = channel.source.rollouts.get(frame.role)
        as_it_comes = rollout is None or rollout.pacer.following or self._shared.hold.paused
        return patience, 0.0 if as_it_comes else TWIN_LEISURE

    def _rows_of_twins(self, channel: Channel, frame: Frame) -> list[int]:
        """Which of a frame's environments have one: the selected one before all others."""
        drawn, rollout = frame.env_index, channel.source.rollouts.get(frame.role)
        if (
            self._leader is not None
            and rollout is not None
            and rollout.choice.env_index is not None
        ):
            drawn = rollout.choice.env_index  # of all processes
        places = np.argsort(drawn != self._shared.selected_env, kind="stable")
        places = places[: self._shared.control.twins]
        if drawn is frame.env_index:
            return np.sort(places).tolist()
        return np.flatnonzero(np.isin(frame.env_index, drawn[places])).tolist()

    def play(self, channel: Channel, role: str, rollout: Rollout, now: float) -> View | None:
        """What a rollout shows at a time, s; None: what it has shown before."""
        shared, pacer = self._shared, rollout.pacer
        if not shared.control.streaming:
            # Who has switched it off wants stillness, not the rest of what was on its way.
            channel.clear()
            return None
        playback = channel.playback(0)
        view = self._play_process(playback, now, sending=pacer.sending, following=pacer.following)
        if shared.control.mode == "realtime":
            # The pacer goes by the clock that stands still while the training is held.
            pacer.stretch_due = playback.player.due + (shared.clock() - now)
        if self._leader is None:
            return view
        return self._play_beside(self._leader, channel, role, rollout, view, now)

    def _play_process(
        self, playback: ProcessPlayback, now: float, *, sending: bool, following: bool
    ) -> View | None:
        control, hold = self._shared.control, self._shared.hold
        if control.mode != "realtime":
            return playback.player.newest(now)
        sending |= self._twin_worker.pending(playback)  # what the twins still have is yet to come
        return playback.player.play(
            now,
            control.speed,
            sending=sending and not hold.held,
            following=following or hold.paused,
        )

    def _play_beside(
        self,
        leader: "Leader",
        channel: Channel,
        role: str,
        rollout: Rollout,
        own: View | None,
        now: float,
    ) -> View | None:
        """One view of what all processes send."""
        playing, changed = {0: own}, False
        for other in leader.living():
            part = other.report.parts.get(role)
            if part is None or part.num_envs != rollout.num_envs:
                continue
            playback = channel.playback(other.process)
            playing[other.process] = self._play_process(
                playback, now, sending=other.sending.get(role, False), following=part.following
            )
            other.due[role] = playback.player.due
        for process, playback in channel.playbacks.items():
            # Of a process that is not heard of any more, nothing; of one that has nothing new,
            # what it had.
            view = (playing[process] or playback.view) if process in playing else None
            changed |= view is not None and not view.is_same_picture(playback.view)
            changed |= view is None and playback.view is not None
            playback.view = view
        views = [
            playback.view for _, playback in sorted(channel.playbacks.items()) if playback.view
        ]
        cells = rollout.choice.env_index
        if not views or cells is None:
            return None
        if not changed and channel.now is not None:
            return channel.now
        return beside(views, cells)

    def restart(self) -> None:
        """Called on any thread: other environments are wanted, and not only after this stretch."""
        with self._shared.lock:
            for source in self._shared.shown.values():
                for rollout in source.rollouts.values():
                    rollout.pacer.restart()
        for channel in list(self._robots.channels.values()):
            for playback in list(channel.playbacks.values()):
                playback.player.restart()
        if self._leader is not None:
            self._leader.restart()
        self._shared.hold.refresh()
        self._shared.mailbox.wake()

    def shown_source(self) -> Source | None:
        """What is stepped in the first rollout shown, or will be."""
        channel = self._robots.first
        shown = self._shared.shown.get(self._robots.roles[0])
        return shown or (channel.source if channel else None)

    def drawn_envs(self) -> tuple[int, ...]:
        """Called on any thread: indices, in the order of the cells, of the first rollout shown."""
        for block in self._robots.scene.blocks.values():
            return tuple(block.drawn_envs.tolist())
        return ()

    def drift(self) -> Drift | None:
        """Called on any thread: of what is on screen."""
        channel = self._robots.first
        view = channel.view if channel else None
        return Drift.of(view.frame) if view is not None else None
