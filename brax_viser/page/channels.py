"""Takes what has come from the device, by way of the twins, to what is shown of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Source
from brax_viser.host.state import Switchboard
from brax_viser.page.channel import Channel, Lane
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.records.frame import Frame
from brax_viser.records.parcel import ModelParcel, Parcel
from brax_viser.records.view import View, beside
from brax_viser.twins.drift import Drift
from brax_viser.twins.worker import Follower

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.processes.leader import Others

TWIN_PATIENCE = 1.0
"""s: how far the page may be behind the training for the sake of twins."""

TWIN_LEISURE = 0.1
"""s for which a step of a stretch waits for others, to be taken by twins together with them. What
is shown as it comes is taken together as it is fetched, for the page's next frame."""


class Channels:
    """The rollouts on their way to the screen. Used on viser's loop, but where said otherwise."""

    def __init__(
        self,
        board: Switchboard,
        state: PageState,
        robots: Robots,
        twin_worker: Follower[Lane],
        others: "Others | None",
    ):
        """Nothing has come yet.

        Args:
            board: what is shared with the device's calls.
            state: tells how twins are stepped.
            robots: has the robots of a rollout drawn.
            twin_worker: steps the twins.
            others: the other processes of the training; None if it has but this one.
        """
        self._board, self._state, self._robots = board, state, robots
        self._twin_worker, self._others = twin_worker, others

    def worth_opening(
        self, parcels: Sequence[Parcel | ModelParcel]
    ) -> Sequence[Parcel | ModelParcel]:
        """Leaves out steps that nobody will see: where the newest alone is shown, those before it,
        unless something is made of every step of theirs."""
        if self._board.control.mode == "realtime":
            return parcels
        newest: set[tuple[object, str, int]] = set()
        kept: list[Parcel | ModelParcel] = []
        for parcel in reversed(parcels):
            if isinstance(parcel, Parcel) and parcel.is_whole:
                whose = parcel.feed, parcel.role, parcel.process
                if whose in newest and parcel.is_plain:
                    continue
                newest.add(whose)
            kept.append(parcel)
        return kept[::-1]

    def receive(self, parcels: Sequence[Parcel | ModelParcel], now: float) -> None:
        """Takes what has come from the device to the players and the twins."""
        for parcel in parcels:
            channel = self._channel_of(parcel)
            if isinstance(parcel, ModelParcel):
                if channel.variants.update(parcel.open()):
                    self._robots.want(parcel.feed, parcel.role, parcel.num_envs)
                continue
            if (rollout := parcel.feed.rollouts.get(parcel.role)) is not channel.rollout:
                channel.rollout = rollout
                channel.falls.clear()
            if parcel.ranked:
                channel.falls.learn(parcel.open())
                continue
            lane = channel.lane(parcel.process)
            frame = lane.receive(parcel)
            if frame is not None:
                self._hand_on(channel, lane, frame, now)
            if parcel.role not in self._robots.roles:
                lane.player.newest(now)  # nobody plays it: what has come must not pile up
        self._twin_worker.go()

    def _channel_of(self, parcel: Parcel | ModelParcel) -> Channel:
        channel = self._robots.channels.get(parcel.role)
        if channel is not None and channel.feed is parcel.feed:
            return channel
        # Another environment of this viewer is being stepped now: show that one.
        self._robots.want(parcel.feed, parcel.role, parcel.num_envs)
        return self._robots.channels[parcel.role]

    def take_twins(self, now: float) -> None:
        """Brings frames whose twins have been stepped to their players."""
        for lane, frame in self._twin_worker.take():
            lane.player.add(frame, now)

    def end_twins(self) -> None:
        """Nobody looks at any twins any more."""
        for channel in self._robots.channels.values():
            channel.end_twins(self._twin_worker)

    def _hand_on(self, channel: Channel, lane: Lane, frame: Frame, now: float) -> None:
        """Brings a frame to the player, by way of its twins if it is to have any."""
        channel.past.add(frame)
        channel.falls.add(frame)
        rows: list[int] = []
        if frame.coordinates is not None:
            channel.controls_known = (
                frame.coordinates.ctrl is not None or not channel.simulated.model.nu
            )
            if channel.controls_known:
                rows = self._rows_of_twins(channel, frame)
        if not rows and not self._twin_worker.pending(lane):
            lane.player.add(frame, now)
            return
        lane.has_twins |= bool(rows)
        own, settings = channel.variants.of_env, self._state.twins
        simulated = channel.made if settings.as_made else channel.simulated
        patience, leisure = self._time_for_twins(channel, frame)
        self._twin_worker.send(lane, frame, rows, simulated, own, settings, patience, leisure)

    def _time_for_twins(self, channel: Channel, frame: Frame) -> tuple[float, float]:
        """s, how long the page waits for a frame's twins, and they for the frames after it."""
        control = self._board.control
        if control.mode != "realtime":
            return TWIN_PATIENCE, 0.0
        # A stretch comes faster than it is played, and its last steps have time.
        patience = max(TWIN_PATIENCE, control.stretch_seconds / control.speed)
        rollout = channel.feed.rollouts.get(frame.role)
        as_it_comes = rollout is None or rollout.pacer.following or self._board.hold.paused
        return patience, 0.0 if as_it_comes else TWIN_LEISURE

    def _rows_of_twins(self, channel: Channel, frame: Frame) -> list[int]:
        """Which of a frame's environments have one: the selected one before all others."""
        drawn, rollout = frame.env_index, channel.feed.rollouts.get(frame.role)
        if (
            self._others is not None
            and rollout is not None
            and rollout.choice.env_index is not None
        ):
            drawn = rollout.choice.env_index  # of all processes
        places = np.argsort(drawn != self._board.selected_env, kind="stable")
        places = places[: self._board.control.twins]
        if drawn is frame.env_index:
            return np.sort(places).tolist()
        return np.flatnonzero(np.isin(frame.env_index, drawn[places])).tolist()

    def play(self, channel: Channel, role: str, rollout: Rollout, now: float) -> View | None:
        """What a rollout shows at a time, s; None: what it has shown before."""
        board, pacer = self._board, rollout.pacer
        if not board.control.streaming:
            # Who has switched it off wants stillness, not the rest of what was on its way.
            channel.clear()
            return None
        lane = channel.lane(0)
        view = self._play_lane(lane, now, sending=pacer.sending, following=pacer.following)
        if board.control.mode == "realtime":
            # The pacer goes by the clock that stands still while the training is held.
            pacer.stretch_due = lane.player.due + (board.clock() - now)
        if self._others is None:
            return view
        return self._play_beside(self._others, channel, role, rollout, view, now)

    def _play_lane(self, lane: Lane, now: float, *, sending: bool, following: bool) -> View | None:
        control, hold = self._board.control, self._board.hold
        if control.mode != "realtime":
            return lane.player.newest(now)
        sending |= self._twin_worker.pending(lane)  # what the twins still have is yet to come
        return lane.player.play(
            now,
            control.speed,
            sending=sending and not hold.held,
            following=following or hold.paused,
        )

    def _play_beside(
        self,
        others: "Others",
        channel: Channel,
        role: str,
        rollout: Rollout,
        own: View | None,
        now: float,
    ) -> View | None:
        """One view of what all processes send."""
        playing, changed = {0: own}, False
        for other in others.living():
            part = other.report.parts.get(role)
            if part is None or part.num_envs != rollout.num_envs:
                continue
            lane = channel.lane(other.process)
            playing[other.process] = self._play_lane(
                lane, now, sending=other.sending.get(role, False), following=part.following
            )
            other.due[role] = lane.player.due
        for process, lane in channel.lanes.items():
            # Of a process that is not heard of any more, nothing; of one that has nothing new,
            # what it had.
            view = (playing[process] or lane.view) if process in playing else None
            changed |= view is not None and not view.looks_like(lane.view)
            changed |= view is None and lane.view is not None
            lane.view = view
        views = [lane.view for _, lane in sorted(channel.lanes.items()) if lane.view]
        cells = rollout.choice.env_index
        if not views or cells is None:
            return None
        if not changed and channel.now is not None:
            return channel.now
        return beside(views, cells)

    def restart(self) -> None:
        """Called on any thread: other environments are wanted, and not only after this stretch."""
        with self._board.lock:
            for feed in self._board.shown.values():
                for rollout in feed.rollouts.values():
                    rollout.pacer.hurry()
        for channel in list(self._robots.channels.values()):
            for lane in list(channel.lanes.values()):
                lane.player.restart()
        if self._others is not None:
            self._others.hurry()
        self._board.hold.refresh()
        self._board.mailbox.wake()

    def shown_feed(self) -> Source | None:
        """What is stepped in the first rollout shown, or will be."""
        channel = self._robots.first
        shown = self._board.shown.get(self._robots.roles[0])
        return shown or (channel.feed if channel else None)

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
