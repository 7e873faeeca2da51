"""Runs the page's loop: carries out commands, takes packets, and draws."""

import asyncio
import concurrent.futures
import contextlib

import viser

from brax_viser.host.progress import count as in_words
from brax_viser.host.rollout import Rollout
from brax_viser.host.state import SharedState
from brax_viser.page.channel import Channel
from brax_viser.page.channels import Channels
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.finale import Finale
from brax_viser.page.inbox import Inbox
from brax_viser.page.panel_state import PanelState
from brax_viser.page.recording import Recording
from brax_viser.page.replay import Replay
from brax_viser.page.robots import Robots
from brax_viser.page.seen import Sampler
from brax_viser.page.shown import FrameFunctions, ShownFrame
from brax_viser.page.state import PageState
from brax_viser.page.timeline import Timeline
from brax_viser.panel.panel import Panel
from brax_viser.process import lower_priority
from brax_viser.records.frame import Frame
from brax_viser.records.view import ASIDE, View
from brax_viser.scene.look import Look

PANEL_SECONDS = 0.25
IDLE_SECONDS = 1.0
"""s between two updates of the panel while robots move, and while none is shown. Changes that a
person makes are shown at once."""

RECORDING_SECONDS = 0.1
"""s between two checks for recorded steps while no robot is shown."""

TITLES = {"train": "Training", "eval": "Evaluation"}


class Loop:
    """The task on viser's event loop. Its methods run there unless they say otherwise."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        server: viser.ViserServer,
        events: EventLoop,
        robots: Robots,
        channels: Channels,
        panel: Panel,
        panel_state: PanelState,
        inbox: Inbox,
        functions: FrameFunctions,
        finale: Finale,
        recording: Recording,
        replay: Replay,
        timeline: Timeline,
    ):
        """Does nothing yet; `start` starts the task.

        Args:
            shared: the state shared with the device's calls.
            state: how the page should look.
            server: the page's server.
            events: viser's loop.
            robots: the robots to draw.
            channels: the frames of each rollout.
            panel: the panel beside the scene.
            panel_state: makes the panel's view.
            inbox: the commands from the page.
            functions: the script's own functions, called with each picture.
            finale: what follows the training.
            recording: records episodes.
            replay: the recorded episodes, while these are shown in place of the rollouts.
            timeline: what the time bar shows.
        """
        self._shared, self._state, self._server, self._events = shared, state, server, events
        self._robots, self._channels, self._inbox = robots, channels, inbox
        self._functions, self._finale = functions, finale
        self._recording, self._replay, self._timeline = recording, replay, timeline
        self._panel, self._panel_state = panel, panel_state
        self._scene, self._sandbox = robots.scene, robots.sandbox
        self._replayed: Frame | None = None  # the last one of a recorded episode
        self._sampler = Sampler(shared.progress.metrics)
        self._rung = asyncio.Event()
        self._task: concurrent.futures.Future[None] | None = None
        shared.mailbox.ring = self._ring

    def start(self) -> None:
        """Called on any thread."""
        self._task = self._events.start(self._run())

    def join(self, timeout: float) -> None:
        """Called on any thread, once the shared state is closed."""
        if self._task is not None and not self._events.is_current():
            concurrent.futures.wait([self._task], timeout)
        # Compiled programs keep the shared state alive, and would keep the loop alive with it.
        self._shared.mailbox.ring = lambda: None

    def _ring(self) -> None:
        self._events.soon(self._rung.set)

    async def _run(self) -> None:
        shared, next_panel, woken = self._shared, 0.0, True
        lower_priority()  # the loop's thread, on which viser sends as well
        while not shared.control.closed:
            start = shared.wall_clock()
            control, session = shared.control, self._sandbox.session
            moves = control.streaming or session.thread is not None or self._replay.playing
            active = control.watched and moves
            try:
                self._take(start)
                self._draw(start)
                if woken or start >= next_panel:
                    self._update_panel(start)
                    next_panel = start + (PANEL_SECONDS if active else IDLE_SECONDS)
            # The task must survive: a frozen page would hide the fault.
            except Exception as error:
                shared.failed("the page", error)
            idle = RECORDING_SECONDS if shared.control.recording else IDLE_SECONDS
            wake_up = start + (1 / control.fps if active else idle)
            # Lets viser run at least once: its sending task is on the same loop.
            await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wake_up - shared.wall_clock()):
                    await self._rung.wait()
            self._rung.clear()
            woken = shared.mailbox.woken()

    def _take(self, now: float) -> None:
        """Carries out the commands, and takes the packets and the twins' frames."""
        self._inbox.carry_out()
        self._switch()
        packets = self._recording.take(self._shared.mailbox.take())
        self._channels.receive(self._channels.worth_opening(packets), now)
        self._channels.take_twins(now)
        self._recording.update()

    def _switch(self) -> None:
        """Requests no steps while recorded episodes are shown, and begins a stretch afterwards."""
        replayed = self._replay.active
        if replayed != self._shared.control.replayed:
            self._shared.set(replayed=replayed)
            if replayed:
                self._scene.bring_back_visitors()  # recorded robots stand where the live ones do
            else:
                self._channels.restart()

    def _draw(self, now: float) -> None:
        for role, source in self._shared.sources_shown().items():
            if role in self._robots.roles and role not in self._robots.channels:
                rollout = source.rollouts.get(role)
                self._robots.want(source, role, rollout.num_envs if rollout else None)
        self._robots.arrange()
        followed, selected = self._scene.followed, self._shared.selected_env
        if followed is not None and followed[1] != selected:  # a hold at a NaN has selected another
            self._scene.follow(None)
        views: dict[str, View | None] = {}
        if (view := self._sandbox.view(now)) is not None:
            views[ASIDE] = view
        if self._replay.active:
            self._add_replay(views, now)
        else:
            self._add_rollouts(views, now)
        if not views:
            return
        for role, view in views.items():
            if role == ASIDE or view is None:
                continue
            channel, num_envs = self._robots.channels[role], view.frame.num_envs
            if self._scene.blocks[role].count != min(num_envs, channel.source.capacity):
                self._robots.want(channel.source, role, num_envs)
        with self._server.atomic():  # a script's own nodes move together with the robots
            self._scene.draw(views, {role: self._look_of(role) for role in views})
            if self._functions and not self._replay.active:
                self._call_functions(views)
        self._sandbox.drawn()

    def _call_functions(self, views: dict[str, View | None]) -> None:
        shift, selected = self._scene.shift, self._shared.selected_env
        for role, view in views.items():
            if role != ASIDE and view is not None:
                block = self._scene.blocks[role]
                self._functions.call(ShownFrame.of(view, block, shift, selected))

    def _add_replay(self, views: dict[str, View | None], now: float) -> None:
        """Adds the view of the recorded episodes unless it is on screen already."""
        role, *others = self._robots.roles
        for other in others:
            if other in self._scene.blocks and self._scene.blocks[other].frame is not None:
                views[other] = None
        block, channel = self._robots.block_of(role), self._robots.channels.get(role)
        if block is None or channel is None:
            return
        num_envs = channel.num_envs or block.count
        selected, travels = self._shared.selected_env, block.model.roaming_link
        view = self._replay.view(now, block.count, num_envs, selected, travels)
        if view is not None:
            self._scene.fit(len(view.frame.env_index))
        own = self._replay.models()
        missing = {env: own[env] for env in own.keys() - channel.variants.of_env.keys()}
        if missing and channel.variants.update(missing):
            self._robots.want(channel.source, role, channel.num_envs)
        look = self._look_of(role)
        if view is not None and not (block.frame is view.frame and look == channel.look):
            views[role], self._replayed = view, view.frame
        channel.look = look

    def _add_rollouts(self, views: dict[str, View | None], now: float) -> None:
        self._scene.fit(None)
        for role in self._robots.roles:
            channel = self._robots.channels.get(role)
            rollout = channel and channel.source.rollouts.get(role)
            if channel is not None and rollout is not None:
                self._add_view(views, channel, role, rollout, now)

    def _add_view(
        self,
        views: dict[str, View | None],
        channel: Channel,
        role: str,
        rollout: Rollout,
        now: float,
    ) -> None:
        """Adds the view of a rollout unless it is on screen already; None: it draws no robot."""
        empty = not rollout.choice.pending and rollout.choice.found_none
        # Frames are played while the robots are still being read, and are there once they are.
        look, block = self._look_of(role), self._robots.block_of(role)
        if empty:
            channel.clear()
            if not channel.empty:
                channel.view = None
            if block is not None and len(block.drawn_envs):
                views[role] = None
        channel.empty = empty
        view = None if empty else self._channels.play(channel, role, rollout, now)
        channel.now = view or channel.now
        made_of = rollout.choice.made_of
        if made_of is not None and made_of.rule == "terminated" and channel.now and not empty:
            view = channel.falls.shown(channel.now, now, self._shared.control.speed)
        else:
            channel.falls.wanted = False
        if view is None and not empty:
            view = channel.view
        # The block may be a new one, and the look may have changed.
        shown = block is not None and view is not None and block.frame is view.frame
        same = view is None or (view.is_same_picture(channel.view) and look == channel.look)
        if view is not None and not (same and shown):
            channel.view = view
            as_made = self._state.twins.as_made
            channel.drift.add(view.frame, channel.source.adapter.dt, as_made=as_made)
            channel.terms.add(view.frame, channel.source.adapter.dt)
            channel.reasons.add(view.frame)
            if block is not None:
                views[role] = view
        elif view is None and block is not None and block.frame is self._replayed is not None:
            views[role] = None  # an episode was shown, and nothing live has come yet
        channel.look = look

    def _look_of(self, role: str) -> Look:
        look = self._state.look
        if role == ASIDE:
            return self._sandbox.look(look)
        # Selection is among the training's robots, unless only the evaluation's are shown.
        selects = role == self._robots.roles[0]
        return Look(
            look.colour_by,
            look.labels,
            look.others if selects else "show",
            self._shared.selected_env if selects else None,
            tints=look.tints,
            in_cells=look.in_cells,
            overlays=look.overlays if selects else frozenset(),
            body=look.body if selects else None,
            beside=self._state.twins.beside,
            rank_by="so_far" if self._replay.active else self._shared.selection.rank_by,
            agents=self._shared.control.agents,
        )

    def _update_panel(self, now: float) -> None:
        """Updates the panel, and the labels and titles in the scene."""
        if not self._shared.control.twins:
            self._channels.end_twins()
        for role, block in self._scene.blocks.items():
            with self._server.atomic():
                block.decorate(self._look_of(role))
                block.title.write(self._title_of(role) if len(self._scene.blocks) > 1 else "")
        self._finale.update()
        self._replay.update()
        if self._shared.control.watched and self._robots.first is not None:
            self._replay.endings.look_into()
        self._timeline.update()
        self._recording.keep_holds(self._timeline.holds)
        view, channel = self._panel_state.view(now), self._robots.channels.get("train")
        frame = channel.view.frame if channel is not None and channel.view is not None else None
        frame = None if self._replay.active else frame
        self._sampler.sample(view.progress, frame, view.selection.rule, self._shared.clock())
        self._panel.show(view)

    def _title_of(self, role: str) -> str:
        if role == ASIDE:
            return self._sandbox.title()
        if self._replay.active:
            return "Replay" if role == self._robots.roles[0] else ""
        channel = self._robots.channels.get(role)
        if channel is None or channel.view is None:
            return f"{TITLES[role]}: nothing has come yet"
        if self._shared.progress.playing_on:
            return "After the training" if role == "train" else ""
        frame = channel.view.frame
        return f"{TITLES[role]} · step {in_words(frame.env_steps * frame.num_envs)}"
