"""Passes packets from the mailbox through the twins to the players, and plays the rollouts."""

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

if TYPE_CHECKING:  # imports ZeroMQ, which is needed only if several processes train
    from brax_viser.processes.leader import Leader

TWIN_PATIENCE = 1.0
"""s: how long a frame may wait for its twins before it is shown without them."""

TWIN_LEISURE = 0.1
"""s: how long a step of a stretch waits for further steps, to be simulated in one batch. Steps that
are shown as they come are batched as they are fetched, once per frame of the page."""


class Channels:
    """The rollouts on their way to the screen. Used on viser's loop, except where noted."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        robots: Robots,
        twin_worker: TwinWorker[ProcessPlayback],
        leader: "Leader | None",
    ):
        """Starts without any rollout.

        Args:
            shared: the shared state.
            state: the page's state, with the settings of the twins.
            robots: the robots of each rollout, with its channel.
            twin_worker: steps the twins.
            leader: connects the training's other processes; None if this is the only one.
        """
        self._shared, self._state, self._robots = shared, state, robots
        self._twin_worker, self._leader = twin_worker, leader

    def worth_opening(
        self, packets: Sequence[Packet | ModelPacket]
    ) -> Sequence[Packet | ModelPacket]:
        """Drops packets that would not be seen: outside of "realtime" only the newest step of a
        rollout is shown. Packets with coordinates or details are kept, as each step is used."""
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
        """Passes packets on to the players and the twins."""
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
            if packet.role not in self._robots.roles or self._shared.control.replayed:
                playback.player.newest(now)  # not shown: frames must not pile up
        self._twin_worker.go()

    def _channel_of(self, packet: Packet | ModelPacket) -> Channel:
        channel = self._robots.channels.get(packet.role)
        if channel is not None and channel.source is packet.source:
            return channel
        # The trainer has gone over to another environment of this viewer: show that one.
        self._robots.want(packet.source, packet.role, packet.num_envs)
        return self._robots.channels[packet.role]

    def take_twins(self, now: float) -> None:
        """Passes frames whose twins have been stepped on to their players."""
        for playback, frame in self._twin_worker.take():
            playback.player.add(frame, now)

    def end_twins(self) -> None:
        """Ends all twins; they are not shown any more."""
        for channel in self._robots.channels.values():
            channel.end_twins(self._twin_worker)

    def _hand_on(
        self, channel: Channel, playback: ProcessPlayback, frame: Frame, now: float
    ) -> None:
        """Passes a frame on to the twin worker if it gets twins, otherwise to the player. A frame
        without twins goes through the worker if earlier frames are there, to keep the order."""
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
        """Returns (s that a frame waits for its twins, s that these wait for further frames)."""
        control = self._shared.control
        if control.mode != "realtime":
            return TWIN_PATIENCE, 0.0
        # A stretch arrives faster than it is played, so its last steps may take longer.
        patience = max(TWIN_PATIENCE, control.stretch_seconds / control.speed)
        rollout = channel.source.rollouts.get(frame.role)
        as_it_comes = rollout is None or rollout.pacer.following or self._shared.hold.paused
        return patience, 0.0 if as_it_comes else TWIN_LEISURE

    def _rows_of_twins(self, channel: Channel, frame: Frame) -> list[int]:
        """Returns the rows of a frame that get twins; the selected environment comes first."""
        drawn, rollout = frame.env_index, channel.source.rollouts.get(frame.role)
        if (
            self._leader is not None
            and rollout is not None
            and rollout.choice.env_index is not None
        ):
            drawn = rollout.choice.env_index  # over all processes
        places = np.argsort(drawn != self._shared.selected_env, kind="stable")
        places = places[: self._shared.control.twins]
        if drawn is frame.env_index:
            return np.sort(places).tolist()
        return np.flatnonzero(np.isin(frame.env_index, drawn[places])).tolist()

    def play(self, channel: Channel, role: str, rollout: Rollout, now: float) -> View | None:
        """Returns what a rollout shows at a time, s; None: the picture stays as it is."""
        shared, pacer = self._shared, rollout.pacer
        if not shared.control.streaming:
            # Frames that are still on their way are not played after the switch-off.
            channel.clear()
            return None
        playback = channel.playback(0)
        view = self._play_process(playback, now, sending=pacer.sending, following=pacer.following)
        if shared.control.mode == "realtime":
            # The pacer uses the training's clock, which stands still during a hold.
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
        sending |= self._twin_worker.pending(playback)  # these frames have yet to come
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
        """Returns one view of the frames of all processes."""
        playing, changed = {0: own}, False
        for worker in leader.living():
            part = worker.report.parts.get(role)
            if part is None or part.num_envs != rollout.num_envs:
                continue
            playback = channel.playback(worker.process)
            playing[worker.process] = self._play_process(
                playback, now, sending=worker.sending.get(role, False), following=part.following
            )
            worker.due[role] = playback.player.due
        for process, playback in channel.playbacks.items():
            # A process with nothing new keeps its last view; a process that is lost has none.
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
        """Called on any thread: ends the stretch at once, as other environments are wanted."""
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
        """The environment of the first rollout shown; None if there is none yet."""
        channel = self._robots.first
        shown = self._shared.shown.get(self._robots.roles[0])
        return shown or (channel.source if channel else None)

    def drawn_envs(self) -> tuple[int, ...]:
        """Indices drawn of the first rollout shown, in the order of the cells. On any thread."""
        for block in self._robots.scene.blocks.values():
            return tuple(block.drawn_envs.tolist())
        return ()

    def drift(self) -> Drift | None:
        """The drift of the twins on screen; None if there are no twins. Called on any thread."""
        channel = self._robots.first
        view = channel.view if channel else None
        return Drift.of(view.frame) if view is not None else None
