"""What brings what has come from the device to the page, and a person's wishes back."""

import asyncio
import concurrent.futures
import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import viser

from brax_viser.host.progress import count as in_words
from brax_viser.host.rollout import Rollout
from brax_viser.host.source import Source
from brax_viser.host.state import Switchboard
from brax_viser.model.robot import Model
from brax_viser.model.shapes import USUAL, Parts
from brax_viser.model.variants import Variants
from brax_viser.page.channels import Channel, Lane
from brax_viser.page.clients import keep_openings_short
from brax_viser.page.reader import Reader, Reading
from brax_viser.page.sandbox_view import Aside
from brax_viser.panel.details import Inside
from brax_viser.panel.panel import Command, Panel, PanelView, StreamView
from brax_viser.process import give_way
from brax_viser.records.frame import Frame
from brax_viser.records.parcel import ModelParcel, Parcel
from brax_viser.records.view import ASIDE, View, beside
from brax_viser.scene.block import Block
from brax_viser.scene.look import Look
from brax_viser.scene.scene import Scene
from brax_viser.twins.drift import Drift
from brax_viser.twins.worker import Follower, TwinSettings

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.processes.leader import Others

T = TypeVar("T")

PANEL_SECONDS = 0.25
IDLE_SECONDS = 1.0
"""How often the panel is brought up to date while robots move, and while none is shown: seconds
tick, and what a person changes is shown at once in either case."""

TWIN_PATIENCE = 1.0
"""s: how far the page may be behind the training for the sake of twins."""

TWIN_LEISURE = 0.1
"""s for which a step of a stretch waits for others, to be taken by twins together with them. What
is shown as it comes is taken together as it is fetched, for the page's next frame."""

TITLES = {"train": "Training", "eval": "Evaluation"}


class Publisher:
    """Draws, and keeps the panel.

    A task on viser's own event loop, and everything here runs there, but where said otherwise.
    Writing viser's handles from any other thread is a race: its buffer sets an `asyncio.Event` at
    once, which raises now and then while the loop is looking at it.
    """

    def __init__(self, board: Switchboard, server: viser.ViserServer):
        """Sets the page up; `start` starts the task.

        Args:
            board: what is shared with the device's calls.
            server: whose page it is.
        """
        self.board = board
        self._loop = server.get_event_loop()
        self._rung = asyncio.Event()
        board.mailbox.ring = self._ring
        self.scene, self.panel = asyncio.run_coroutine_threadsafe(
            _call(lambda: (Scene(server), Panel(server, self.enqueue))), self._loop
        ).result()
        self.look = Look()
        self.parts = USUAL  # of the model, that are drawn
        self.notice: str | None = None  # something that has happened and is worth knowing
        self.complaint: str | None = None  # about the indices that were typed
        self.others: Others | None = None  # processes of the training; None: it has but this one
        self.twins = TwinSettings()
        self.follower: Follower[Lane] = Follower(board.wall_clock)
        self._reader = Reader(self._use, lambda error: board.failed("the page", error))
        self.aside = Aside(server, self.scene, board.mailbox.wake, self._reader.read)
        self.obey: Callable[[Command], None]  # what a person has asked for; set by the viewer
        self.pages = keep_openings_short(server)
        self._server = server
        self._commands: deque[Command] = deque()  # appended by any thread, drained on the loop
        self._channels: dict[str, Channel] = {}
        # Of the last panels: (s, `scene.sent`, s that devices had waited for room).
        self._sent: deque[tuple[float, int, float]] = deque()
        self._task: concurrent.futures.Future[None] | None = None

    def start(self) -> None:
        """Called by the viewer."""
        self.follower.start()
        self._reader.start()
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self._loop)

    def join(self, timeout: float) -> None:
        """Called by the viewer, once the board is closed."""
        if self._task is not None and not self._on_loop():
            concurrent.futures.wait([self._task], timeout)
        self.board.mailbox.ring = lambda: None  # programs that were compiled keep the board
        self.follower.close()
        self._reader.close()
        self.aside.forks.close()

    def enqueue(self, command: Command) -> None:
        """Called on any thread: something is to be done."""
        self._commands.append(command)
        self.board.mailbox.wake()

    def show_model(self, feed: Source, role: str, num_envs: int | None) -> None:
        """Called on any thread: gives a rollout its robots, before any step has come. When this
        returns they are there, unless it is called on the loop, which does not wait for them."""
        if self._on_loop():
            self._want(feed, role, num_envs)
            return
        missing: list[Reading] = []
        self.now(lambda: missing.extend(self._missing(feed, role, num_envs)))
        for reading in missing:
            self.now(functools.partial(reading.use, reading.read()))

    def _want(self, feed: Source, role: str, num_envs: int | None) -> None:
        """On the loop: the same, without waiting for what has to be read first."""
        for reading in self._missing(feed, role, num_envs):
            self._reader.read(reading)

    def _missing(self, feed: Source, role: str, num_envs: int | None) -> list[Reading]:
        """On the loop: shows a rollout's robots as far as they are read, and returns what is not,
        and is not being read either."""
        channel = self._channels.get(role)
        if channel is None or channel.feed is not feed:
            if channel is not None:
                self._end_twins(channel)
            channel = self._channels[role] = Channel(feed, Variants(feed.adapter.mj_model))
        channel.num_envs = num_envs
        self._show(role, channel)
        what = self.parts, channel.variants.apart
        if what == channel.reading:
            return []
        channel.reading = () if what == channel.read else what
        if not channel.reading:
            return []
        return [
            Reading(
                role,
                functools.partial(_model_of, feed, channel.variants, self.parts),
                functools.partial(self._has_read, role, channel, what),
            )
        ]

    def _has_read(
        self, role: str, channel: Channel, what: tuple[object, ...], model: Model
    ) -> None:
        """On the loop: a rollout's robots are known, if they are still those that are wanted."""
        if channel.reading == what:
            channel.model, channel.read, channel.reading = model, what, ()
            self._show(role, channel)

    def _show(self, role: str, channel: Channel) -> None:
        if channel.model is not None and self._channels.get(role) is channel:
            self.scene.show(role, channel.model, channel.feed.grid, channel.num_envs)
            self._arrange()

    def _use(self, what: Callable[[], object]) -> None:
        """Called on the reader's thread: something has been read."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._use_now, what)

    def _use_now(self, what: Callable[[], object]) -> None:
        if self.board.control.closed:
            return
        try:
            what()
            self._arrange()
        except Exception as error:
            self.board.failed("the page", error)
        self._rung.set()

    def _block_of(self, role: str) -> Block | None:
        """A rollout's block; None as long as its robots are read, and others are there still."""
        block, channel = self.scene.blocks.get(role), self._channels.get(role)
        if block is None or channel is None or block.model.variants is not channel.variants:
            return None
        return block

    def show_parts(self, parts: Parts) -> None:
        """On the loop: draws other parts of the models from now on."""
        self.parts = parts
        self.aside.remodel()
        for role, channel in tuple(self._channels.items()):
            self._want(channel.feed, role, channel.num_envs)

    def shown_feed(self) -> Source | None:
        """What is stepped in the first rollout shown, or will be."""
        role = self._roles()[0]
        channel = self._channels.get(role)
        return self.board.shown.get(role) or (channel.feed if channel else None)

    def drawn_envs(self) -> tuple[int, ...]:
        """Called on any thread: indices, in the order of the cells, of the first rollout shown."""
        for block in self.scene.blocks.values():
            return tuple(block.drawn_envs.tolist())
        return ()

    def drift(self) -> Drift | None:
        """Called on any thread: of what is on screen."""
        channel = self._channels.get(self._roles()[0])
        view = channel.view if channel else None
        return Drift.of(view.frame) if view is not None else None

    def unfollow(self) -> None:
        """Called on any thread: another robot is selected than the one that is followed."""
        self.now(lambda: self.scene.follow(None))

    def hurry(self) -> None:
        """Called on any thread: other environments are wanted, and not only after this stretch."""
        with self.board.lock:
            for feed in self.board.shown.values():
                for rollout in feed.rollouts.values():
                    rollout.pacer.hurry()
        for channel in list(self._channels.values()):
            for lane in list(channel.lanes.values()):
                lane.player.hurry()
        if self.others is not None:
            self.others.hurry()
        self.board.hold.refresh()
        self.board.mailbox.wake()

    def _roles(self) -> tuple[str, ...]:
        show = self.board.control.show
        return ("train", "eval") if show == "both" else (show,)

    def _on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def now(self, what: Callable[[], object]) -> None:
        """Called on any thread: does something on the loop and waits for it, unless the viewer is
        closed."""
        if self._on_loop():
            what()
            return
        if self.board.control.closed:
            return
        done = asyncio.run_coroutine_threadsafe(_call(what), self._loop)
        while not (done.done() or self.board.control.closed):
            concurrent.futures.wait([done], timeout=0.1)
        if done.done():
            done.result()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(self._rung.set)

    async def _run(self) -> None:
        board, next_panel, woken = self.board, 0.0, True
        give_way()  # the loop's thread, on which viser sends as well
        while not board.control.closed:
            start = board.wall_clock()
            control = board.control
            active = control.watched and (control.streaming or self.aside.forks.thread is not None)
            try:
                while self._commands:
                    self.obey(self._commands.popleft())
                self._receive(self._worth_opening(board.mailbox.take()), start)
                for lane, frame in self.follower.take():
                    lane.player.add(frame, start)
                self._draw(start)
                if woken or start >= next_panel:
                    if not board.control.twins:
                        for channel in self._channels.values():
                            self._end_twins(channel)
                    self._decorate()
                    self.panel.show(self._panel_view(start))
                    next_panel = start + (PANEL_SECONDS if active else IDLE_SECONDS)
            # The task must live on: a page that is stuck hides the very fault.
            except Exception as error:
                board.failed("the page", error)
            wake_up = start + (1 / control.fps if active else IDLE_SECONDS)
            # At least a turn for viser, whose task of sending is on the same loop.
            await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wake_up - board.wall_clock()):
                    await self._rung.wait()
            self._rung.clear()
            woken = board.mailbox.woken()

    def _worth_opening(
        self, parcels: Sequence[Parcel | ModelParcel]
    ) -> Sequence[Parcel | ModelParcel]:
        """Without steps that nobody will see: where the newest alone is shown, those before it,
        unless something is made of every step of theirs."""
        if self.board.control.mode == "realtime":
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

    def _receive(self, parcels: Sequence[Parcel | ModelParcel], now: float) -> None:
        for parcel in parcels:
            channel = self._channels.get(parcel.role)
            if channel is None or channel.feed is not parcel.feed:
                # Another environment of this viewer is being stepped now: show that one.
                self._want(parcel.feed, parcel.role, parcel.num_envs)
                channel = self._channels[parcel.role]
            if isinstance(parcel, ModelParcel):
                if channel.variants.update(parcel.open()):
                    self._want(parcel.feed, parcel.role, parcel.num_envs)
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
            if parcel.role not in self._roles():
                lane.player.newest(now)  # nobody plays it: what has come is not to pile up
        self.follower.go()

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
        if rows or self.follower.pending(lane):
            lane.has_twins |= bool(rows)
            own, made = channel.variants.of_env, self.twins.as_made
            simulated = channel.made if made else channel.simulated
            # A stretch comes faster than it is played, and its last steps have time.
            control, patience, leisure = self.board.control, TWIN_PATIENCE, 0.0
            if control.mode == "realtime":
                patience = max(patience, control.stretch_seconds / control.speed)
                rollout = channel.feed.rollouts.get(frame.role)
                if rollout is not None and not (rollout.pacer.following or self.board.hold.paused):
                    leisure = TWIN_LEISURE
            self.follower.send(lane, frame, rows, simulated, own, self.twins, patience, leisure)
        else:
            lane.player.add(frame, now)

    def fork(self) -> None:
        """On the loop: makes a sandbox of the selected environment, as it is on screen.

        Raises:
            ValueError: none is selected, or what is inside of it is not known yet.
        """
        env, channel = self.board.selected_env, self._channels.get(self._roles()[0])
        frame = channel.view.frame if channel is not None and channel.view is not None else None
        if env is None:
            raise ValueError("To fork a robot, select it first: click on it")
        if channel is None or frame is None or frame.detail is None or frame.detail.env != env:
            raise ValueError(
                f"What is inside of env {env} is not known yet: it comes with its steps"
            )
        own = channel.variants.of_env.get(env, {})
        self.aside.fork(channel.feed.adapter, channel.past, own, frame)
        self._arrange()

    def end_fork(self) -> None:
        """On the loop: takes the sandbox away."""
        self.aside.end()
        self._arrange()

    def _arrange(self) -> None:
        self.aside.arrange(self._roles(), self.parts)

    def _end_twins(self, channel: Channel) -> None:
        """Nobody looks at a rollout's twins any more."""
        for lane in channel.lanes.values():
            if lane.has_twins:
                self.follower.forget(lane)
                lane.has_twins = False

    def _rows_of_twins(self, channel: Channel, frame: Frame) -> list[int]:
        """Which of a frame's environments have one: the selected one before all others."""
        drawn, rollout = frame.env_index, channel.feed.rollouts.get(frame.role)
        if self.others is not None and rollout is not None and rollout.choice.env_index is not None:
            drawn = rollout.choice.env_index  # of all processes
        places = np.argsort(drawn != self.board.selected_env, kind="stable")
        places = places[: self.board.control.twins]
        if drawn is frame.env_index:
            return np.sort(places).tolist()
        return np.flatnonzero(np.isin(frame.env_index, drawn[places])).tolist()

    def _draw(self, now: float) -> None:
        for role, feed in self.board.feeds_shown().items():
            if role in self._roles() and role not in self._channels:
                rollout = feed.rollouts.get(role)
                self._want(feed, role, rollout.num_envs if rollout else None)
        self._arrange()
        followed, selected = self.scene.followed, self.board.selected_env
        if followed is not None and followed[1] != selected:  # held at a NaN, another one is
            self.scene.follow(None)
        views: dict[str, View | None] = {}
        if (view := self.aside.view(now)) is not None:
            views[ASIDE] = view
        for role in self._roles():
            channel = self._channels.get(role)
            rollout = channel and channel.feed.rollouts.get(role)
            if channel is None or rollout is None:
                continue
            empty = not rollout.choice.pending and rollout.choice.found_nobody
            # What comes is played while its robots are read, and is there when they are.
            look, block = self._look_at(role), self._block_of(role)
            if empty:
                channel.clear()
                if not channel.empty:
                    channel.view = None
                if block is not None and len(block.drawn_envs):
                    views[role] = None
            channel.empty = empty
            view = None if empty else self._play(channel, role, rollout, now)
            channel.now = view or channel.now
            made_of = rollout.choice.made_of
            if made_of is not None and made_of.rule == "terminated" and channel.now and not empty:
                view = channel.falls.shown(channel.now, now, self.board.control.speed)
            if view is None and not empty:
                view = channel.view
            # A block may have been made anew, or be looked at in another way.
            shown = block is not None and view is not None and block.frame is view.frame
            same = view is None or (view.looks_like(channel.view) and look == channel.look)
            if view is not None and not (same and shown):
                channel.view = view
                channel.drift.add(view.frame, channel.feed.adapter.dt)
                if block is not None:
                    views[role] = view
            channel.look = look
        if not views:
            return
        for role, view in views.items():
            if role == ASIDE or view is None:
                continue
            channel, num_envs = self._channels[role], view.frame.num_envs
            if self.scene.blocks[role].count != min(num_envs, channel.feed.capacity):
                self._want(channel.feed, role, num_envs)
        self.scene.draw(views, {role: self._look_at(role) for role in views})
        self.aside.drawn()

    def _play(self, channel: Channel, role: str, rollout: Rollout, now: float) -> View | None:
        board, pacer = self.board, rollout.pacer
        if not board.control.streaming:
            # Who has switched it off wants stillness, not the rest of what was on its way.
            channel.clear()
            return None
        lane = channel.lane(0)
        view = self._play_lane(lane, now, sending=pacer.sending, following=pacer.following)
        if board.control.mode == "realtime":
            # The pacer goes by the clock that stands still while the training is held.
            pacer.stretch_due = lane.player.due + (board.clock() - now)
        if self.others is None:
            return view
        return self._play_beside(self.others, channel, role, rollout, view, now)

    def _play_lane(self, lane: Lane, now: float, *, sending: bool, following: bool) -> View | None:
        control, hold = self.board.control, self.board.hold
        if control.mode != "realtime":
            return lane.player.newest(now)
        sending |= self.follower.pending(lane)  # what the twins still have is yet to come
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

    def _look_at(self, role: str) -> Look:
        if role == ASIDE:
            return self.aside.look(self.look)
        # A person selects among the robots of the training, unless only the others are shown.
        selects = role == self._roles()[0]
        return Look(
            self.look.colour_by,
            self.look.labels,
            self.look.others if selects else "show",
            self.board.selected_env if selects else None,
            self.look.in_cells,
            self.look.overlays if selects else frozenset(),
            body=self.look.body if selects else None,
            beside=self.twins.beside,
            rank_by=self.board.selection.rank_by,
        )

    def _decorate(self) -> None:
        for role, block in self.scene.blocks.items():
            with self._server.atomic():
                block.decorate(self._look_at(role))
                block.title(self._title_of(role) if len(self.scene.blocks) > 1 else "")

    def _title_of(self, role: str) -> str:
        if role == ASIDE:
            return self.aside.title()
        channel = self._channels.get(role)
        if channel is None or channel.view is None:
            return f"{TITLES[role]}: nothing has come yet"
        frame = channel.view.frame
        return f"{TITLES[role]} · step {in_words(frame.env_steps * frame.num_envs)}"

    def _lately(self, now: float) -> tuple[float, float]:
        """Over the last second or a little more: bytes per second of the robots that each page is
        sent, and the share of the time, 0 to 1, that the training has waited for this task."""
        while len(self._sent) > 1 and self._sent[1][0] <= now - IDLE_SECONDS:
            self._sent.popleft()
        sent, waited = self.scene.sent, self.board.mailbox.waited
        self._sent.append((now, sent, waited))
        since, sent_before, waited_before = self._sent[0]
        if now <= since:
            return 0.0, 0.0
        return (sent - sent_before) / (now - since), min(
            (waited - waited_before) / (now - since), 1
        )

    def _slowest_page(self, now: float) -> float | None:
        """Share of what it is told that the slowest page takes, 0 to 1; None if that is unknown."""
        taken = self.pages.taken(now) if self.pages is not None else {}
        return min(taken.values(), default=None)

    def _panel_view(self, now: float) -> PanelView:
        board, others = self.board, self.others
        role = self._roles()[0]
        channel = self._channels.get(role)
        shown = self.shown_feed()
        rollout = shown.rollouts.get(role) if shown else None
        training = board.clock()
        blocks, block = self.scene.blocks, self._block_of(role)
        frame = channel.view.frame if channel and channel.view else None
        detail = block.frame.detail if block and block.frame else None
        # Of one moment; what follows is worked out of it while the device's calls go on.
        at = board.reading()
        control, selected = at.control, at.selected_env
        has_detail = detail is not None and detail.env == selected
        inside = self._inside(block, selected) if has_detail and self.look.numbers else None
        page_bytes_per_second, waits = self._lately(now)
        return PanelView(
            env=f"{shown.adapter.name} · {shown.adapter.backend}" if shown else "",
            progress=board.progress.view(training),
            control=control,
            overhead=at.cost.share(training) + (others.share() if others else 0.0),
            bytes_per_second=at.cost.bytes_per_second(training),
            frames_per_second=at.cost.frames_per_second(training),
            page_bytes_per_second=page_bytes_per_second,
            slowest_page=self._slowest_page(now),
            selection=at.selection,
            selected_env=selected,
            selected_facts=block.facts_of(selected) if block and selected is not None else None,
            followed=self.scene.followed is not None,
            look=self.look,
            paused=board.hold.paused,
            held=board.hold.held,
            until_env=board.hold.until_env,
            drawn=len(block.drawn_envs) if block else 0,
            capacity=shown.capacity if shown else 0,
            frame=frame,
            stream=StreamView(
                role=role,
                num_envs=rollout.num_envs if rollout else None,
                following=rollout.pacer.following if rollout else False,
                step=frame.env_steps * frame.num_envs if frame else None,
                age=now - channel.view.came if channel and channel.view else math.inf,
                other_known=any(r != role for r in at.shown),
            ),
            complaint=self.complaint,
            notice=self.notice,
            fault=at.fault,
            waits=waits,
            model=shown.adapter.mj_model if shown else None,
            unavailable=block.model.unavailable if block else {},
            inside=inside,
            dt=shown.adapter.dt if shown else 1.0,
            has_detail=has_detail,
            parts=self.parts,
            surroundings=self.scene.surroundings,
            looked_through=self.scene.is_looked_through,
            lost=others.lost() if others else (),
            refused=others.refused() if others else (),
            twins=self.twins,
            twin_cost=self.follower.cost(),
            twin_fault=self.follower.fault,
            controls_known=channel.controls_known if channel else True,
            curves=channel.drift.curves(selected) if channel and control.twins else None,
            fork=self.aside.forks.panel(),
            shown=shown.label if shown else "",
            stepped=board.stepped(role),
            nonfinite=at.findings,
            cells=tuple(dict.fromkeys(note for b in blocks.values() for note in b.notes())),
        )

    def _inside(self, block: Block | None, env: int | None) -> Inside | None:
        physics = block.inside(env) if block and env is not None else None
        if physics is None or block is None or block.frame is None or block.frame.detail is None:
            return None
        return Inside(
            block.frame.detail,
            physics.model,
            physics.data,
            physics.native,
            block.model.backend,
            self.look.body,
        )


def _model_of(feed: Source, variants: Variants, parts: Parts) -> Model:
    """On any thread: reads the robots of an environment."""
    adapter = feed.adapter
    return Model.of(
        adapter.mj_model,
        feed.grid,
        adapter.init_links(),
        adapter.dt,
        variants,
        parts,
        native=adapter.native,
        backend=adapter.backend,
    )


async def _call(what: Callable[[], T]) -> T:
    return what()
