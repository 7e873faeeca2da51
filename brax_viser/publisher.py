"""What brings what has come from the device to the page, and a person's wishes back."""

import asyncio
import concurrent.futures
import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import viser

from brax_viser.aside import Aside, Past
from brax_viser.backlog import keep_openings_short
from brax_viser.drift import Drift, DriftLog
from brax_viser.feed import Feed
from brax_viser.follower import Follower, Simulated, TwinSettings
from brax_viser.frame import Frame, joined
from brax_viser.gui.details import Inside
from brax_viser.gui.panel import Command, Panel, PanelView, StreamView
from brax_viser.mailbox import ModelParcel, Parcel
from brax_viser.niceness import give_way
from brax_viser.playback import Player, View, beside
from brax_viser.progress import count as in_words
from brax_viser.rollout import Rollout
from brax_viser.scene.block import Block, Look, Model
from brax_viser.scene.scene import ASIDE, Scene
from brax_viser.scene.shapes import USUAL, Parts
from brax_viser.scene.variants import Variants
from brax_viser.switchboard import Switchboard

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.hosts.others import Others

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


@dataclass(eq=False)
class Lane:
    """What one process of the training sends of a rollout."""

    player: Player
    view: View | None = None
    # By step and device, those that have come: (all that are drawn, what this device has of them).
    _parts: dict[int, dict[int, tuple[np.ndarray, Frame]]] = field(default_factory=dict)

    def receive(self, parcel: Parcel) -> Frame | None:
        """A device's part of a step; with the last of them, the step."""
        parts = self._parts.setdefault(parcel.env_steps, {})
        parts[parcel.shard] = parcel.drawn, parcel.open()
        # While the training is held, other environments can be asked for at the same step.
        together = [f for drawn, f in parts.values() if np.array_equal(drawn, parcel.drawn)]
        frame = joined(together, parcel.drawn)
        if frame is not None:
            # Steps before it will not be completed any more.
            self._parts = {k: v for k, v in self._parts.items() if k > parcel.env_steps}
        return frame


@dataclass(eq=False)
class Channel:
    """One rollout on its way to the screen."""

    feed: Feed
    variants: Variants
    lanes: dict[int, Lane] = field(default_factory=dict)  # by process
    view: View | None = None  # what is on screen
    look: Look | None = None
    empty: bool = False  # whether the rule has found nobody
    drift: DriftLog = field(default_factory=DriftLog)  # of what was on screen
    past: Past = field(default_factory=Past)  # of the selected environment
    controls_known: bool = True  # whether what went to the physics came with the coordinates

    @functools.cached_property
    def simulated(self) -> Simulated:
        """What the twins of this rollout step: the training's own."""
        adapter = self.feed.adapter
        return Simulated(adapter.mujoco_model(), adapter.substeps, adapter.native)

    @functools.cached_property
    def made(self) -> Simulated:
        """The same as its file says."""
        adapter = self.feed.adapter
        substeps = max(round(adapter.dt / adapter.mj_model.opt.timestep), 1)
        return Simulated(adapter.mj_model, substeps, adapter.native)

    def lane(self, process: int) -> Lane:
        return self.lanes.setdefault(process, Lane(Player(self.feed.adapter.dt)))

    def clear(self) -> None:
        """Forgets all that has come."""
        for lane in self.lanes.values():
            lane.player.clear()
            lane.view = None


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
        self.aside = Aside(server, self.scene, board.mailbox.wake)
        self.obey: Callable[[Command], None]  # what a person has asked for; set by the viewer
        self.pages = keep_openings_short(server)
        self._server = server
        self._commands: deque[Command] = deque()  # appended by any thread, drained on the loop
        self._channels: dict[str, Channel] = {}
        self._sent: deque[tuple[float, int]] = deque()  # (s, `scene.sent`) of the last panels
        self._task: concurrent.futures.Future[None] | None = None

    def start(self) -> None:
        """Called by the viewer."""
        self.follower.start()
        self._task = asyncio.run_coroutine_threadsafe(self._run(), self._loop)

    def join(self, timeout: float) -> None:
        """Called by the viewer, once the board is closed."""
        if self._task is not None and not self._on_loop():
            concurrent.futures.wait([self._task], timeout)
        self.follower.close()
        self.aside.forks.close()

    def enqueue(self, command: Command) -> None:
        """Called on any thread: something is to be done."""
        self._commands.append(command)
        self.board.mailbox.wake()

    def show_model(self, feed: Feed, role: str, num_envs: int | None) -> None:
        """Called on any thread: gives a rollout its robots, before any step has come."""
        adapter = feed.adapter
        known = self._channels.get(role)
        if known is not None and known.feed is feed:
            variants = known.variants
        else:
            variants = Variants(adapter.mj_model)
        # Reading the model takes a while, which the loop need not wait for.
        model = Model.of(
            adapter.mj_model,
            feed.grid,
            adapter.init_links(),
            adapter.dt,
            variants,
            self.parts,
            native=adapter.native,
            backend=adapter.backend,
        )

        def show() -> None:
            known = self._channels.get(role)
            if known is None or known.feed is not feed:
                self._channels[role] = Channel(feed, variants)
            self.scene.show(role, model, feed.grid, num_envs)
            self._arrange()

        self.now(show)

    def show_parts(self, parts: Parts) -> None:
        """On the loop: draws other parts of the models from now on."""
        self.parts = parts
        self.aside.remodel()
        for role, channel in tuple(self._channels.items()):
            rollout = channel.feed.rollouts.get(role)
            self.show_model(channel.feed, role, rollout.num_envs if rollout else None)

    def shown_feed(self) -> Feed | None:
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
        for channel in tuple(self._channels.values()):
            for lane in tuple(channel.lanes.values()):
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
                self.show_model(parcel.feed, parcel.role, parcel.num_envs)
                channel = self._channels[parcel.role]
            if isinstance(parcel, ModelParcel):
                if channel.variants.update(parcel.open()):
                    self.show_model(parcel.feed, parcel.role, parcel.num_envs)
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
        rows: list[int] = []
        if frame.coordinates is not None:
            channel.controls_known = (
                frame.coordinates.ctrl is not None or not channel.simulated.model.nu
            )
            if channel.controls_known:
                rows = self._rows_of_twins(channel, frame)
        if rows or self.follower.pending(lane):
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
        for role, feed in tuple(self.board.shown.items()):
            if role in self._roles() and role not in self._channels:
                rollout = feed.rollouts.get(role)
                self.show_model(feed, role, rollout.num_envs if rollout else None)
        self._arrange()
        views: dict[str, View | None] = {}
        if (view := self.aside.view(now)) is not None:
            views[ASIDE] = view
        for role in self._roles():
            channel = self._channels.get(role)
            rollout = channel and channel.feed.rollouts.get(role)
            if channel is None or rollout is None:
                continue
            empty = not rollout.choice.pending and rollout.choice.found_nobody
            if empty:
                channel.clear()
                if not channel.empty:
                    channel.view = views[role] = None
            channel.empty = empty
            view = None if empty else self._play(channel, role, rollout, now)
            look, block = self._look_at(role), self.scene.blocks.get(role)
            if view is None and not empty:
                view = channel.view
            # A block may have been made anew, or be looked at in another way.
            shown = block is not None and view is not None and block.frame is view.frame
            same = view is None or (view.looks_like(channel.view) and look == channel.look)
            if view is not None and not (same and shown):
                views[role] = channel.view = view
                channel.drift.add(view.frame, channel.feed.adapter.dt)
            channel.look = look
        if not views:
            return
        for role, view in views.items():
            block = self.scene.blocks.get(role)
            if role == ASIDE:
                continue
            channel = self._channels[role]
            cells = min(view.frame.num_envs, channel.feed.capacity) if view else None
            if block is None or (cells is not None and block.count != cells):
                self.show_model(channel.feed, role, view.frame.num_envs if view else None)
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
        if not changed and channel.view is not None:
            return channel.view
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

    def _page_bytes_per_second(self, now: float) -> float:
        """What each page is sent of the robots, over the last second or a little more."""
        while len(self._sent) > 1 and self._sent[1][0] <= now - IDLE_SECONDS:
            self._sent.popleft()
        self._sent.append((now, self.scene.sent))
        (since, before), sent = self._sent[0], self.scene.sent
        return (sent - before) / (now - since) if now > since else 0.0

    def _slowest_page(self, now: float) -> float | None:
        """Share of what it is told that the slowest page takes, 0 to 1; None if that is unknown."""
        taken = self.pages.taken(now) if self.pages is not None else {}
        return min(taken.values(), default=None)

    def _panel_view(self, now: float) -> PanelView:
        board = self.board
        role = self._roles()[0]
        channel = self._channels.get(role)
        shown = self.shown_feed()
        rollout = shown.rollouts.get(role) if shown else None
        training = board.clock()
        block = self.scene.blocks.get(role)
        selected = board.selected_env
        frame = channel.view.frame if channel and channel.view else None
        detail = block.frame.detail if block and block.frame else None
        has_detail = detail is not None and detail.env == selected
        inside = self._inside(block, selected) if has_detail and self.look.numbers else None
        with board.lock:
            control, meter = board.control, board.meter
            return PanelView(
                env=f"{shown.adapter.name} · {shown.adapter.backend}" if shown else "",
                progress=board.progress.view(training),
                control=control,
                overhead=meter.share(training) + (self.others.share() if self.others else 0.0),
                bytes_per_second=meter.bytes_per_second(training),
                frames_per_second=meter.frames_per_second(training),
                page_bytes_per_second=self._page_bytes_per_second(now),
                slowest_page=self._slowest_page(now),
                selection=board.selection,
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
                    other_known=any(r != role for r in board.shown),
                ),
                complaint=self.complaint,
                notice=self.notice,
                fault=board.fault,
                model=shown.adapter.mj_model if shown else None,
                unavailable=block.model.unavailable if block else {},
                inside=inside,
                has_detail=has_detail,
                parts=self.parts,
                surroundings=self.scene.surroundings,
                looked_through=self.scene.is_looked_through,
                lost=self.others.lost() if self.others else (),
                twins=self.twins,
                twin_cost=self.follower.cost(),
                twin_fault=self.follower.fault,
                controls_known=channel.controls_known if channel else True,
                curves=channel.drift.curves(selected) if channel and control.twins else None,
                fork=self.aside.forks.panel(),
                shown=shown.label if shown else "",
                stepped=board.stepped(role),
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


async def _call(what: Callable[[], T]) -> T:
    return what()
