"""Assembles a viewer's page from its parts."""

import functools
import logging
from typing import TYPE_CHECKING

import viser

from brax_viser.host.source import Source, Sources
from brax_viser.host.state import SharedState
from brax_viser.page.channel import ProcessPlayback
from brax_viser.page.channels import Channels
from brax_viser.page.clients import keep_openings_short
from brax_viser.page.commands import Commands
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.exporting import Exporting
from brax_viser.page.finale import Finale
from brax_viser.page.inbox import Inbox
from brax_viser.page.loop import Loop
from brax_viser.page.panel_state import PanelState
from brax_viser.page.recording import Recording
from brax_viser.page.replay import Replay
from brax_viser.page.robots import Robots
from brax_viser.page.shown import FrameFunctions
from brax_viser.page.state import PageState
from brax_viser.page.steering import Steering
from brax_viser.page.timeline import Timeline
from brax_viser.page.tracking import Tracking, tracker_of
from brax_viser.page.trials import HandedOut, Trials
from brax_viser.panel.panel import Panel
from brax_viser.panel.widgets import PanelTools
from brax_viser.records.episode import Episodes, RunInfo
from brax_viser.runs.keeper import Keeper
from brax_viser.scene.scene import Scene
from brax_viser.twins.worker import TwinWorker

if TYPE_CHECKING:  # imports ZeroMQ, which is needed only if several processes train
    from brax_viser.processes.leader import Leader


log = logging.getLogger("brax_viser")


class Page:
    """The host side of the page: its scene, its panel, and the loop that updates both. All methods
    may be called on any thread."""

    trackings: tuple[Tracking, ...] = ()  # trackers that get all reports

    def __init__(
        self,
        shared: SharedState,
        sources: Sources,
        server: viser.ViserServer,
        keeper: Keeper,
        leader: "Leader | None",
        episodes: Episodes,
        recorded: RunInfo | None = None,
        relayed: bool = False,
    ):
        """Builds the scene and the panel; `start` begins to update them.

        Args:
            shared: the shared state.
            sources: the environments of the viewer.
            server: the server that serves the page.
            keeper: keeps what is recorded.
            leader: connects the training's other processes; None if this is the only one.
            episodes: the episodes that are shown.
            recorded: their training, if nothing but its episodes is shown; None: it is live.
            relayed: whether the page is one person's own: then it writes and compiles nothing.
        """
        self.server, self._keeper, self._shared = server, keeper, shared
        self.state = state = PageState()
        self.events = events = EventLoop(server, shared)
        self.inbox = Inbox(state, shared.mailbox.wake)
        self.scene = events.made(lambda: Scene(server))
        self.twin_worker: TwinWorker[ProcessPlayback] = TwinWorker(shared.wall_clock)
        self.robots = Robots(shared, state, server, self.scene, events, self.twin_worker)
        self.channels = Channels(shared, state, self.robots, self.twin_worker, leader)
        shown = self.robots, self.channels
        self.steering = Steering(
            shared, sources, state, events, self.inbox, *shown, self.twin_worker, keeper
        )
        is_live, reads, ending = recorded is None, self.robots.read_episodes, self.robots.ending_of
        others = {what: functools.partial(reads, what=what) for what in ("ghosts", "listed")}
        self.replay = Replay(episodes, reads, ending, begins=not is_live, **others)
        self.exporting = self._exporting(shared, recorded)
        exporting = None if relayed else self.exporting
        self.commands = Commands(shared, state, server, *shown, self.steering, exporting)
        policies = HandedOut(keeper, self.robots.sandbox.session)
        self.trials = Trials(shared, self.robots, self.replay, self.inbox, policies)
        tools = PanelTools(
            *(server, self.inbox.enqueue, self.steering, self.commands),
            *(self.replay, self.trials, relayed),
        )
        self.panel = events.made(lambda: Panel(tools, is_live=is_live))
        self.clients = keep_openings_short(server)
        self.panel_state = PanelState(
            *(shared, state, *shown, self.twin_worker, leader, self.clients),
            *(self.replay, self.trials, recorded),
        )
        self.functions = FrameFunctions(state)
        self.finale = Finale(shared, server, self.robots, self.steering)
        self.recording = Recording(shared, state, self.robots, keeper)
        parts = self.panel, self.panel_state, self.inbox, self.functions, self.finale
        self.timeline = Timeline(shared, state, self.replay, recorded)
        both = self.recording, self.replay
        self.loop = Loop(shared, state, server, events, *shown, *parts, *both, self.timeline)

    def _exporting(self, shared: SharedState, recorded: RunInfo | None) -> Exporting:
        return Exporting(
            *(self.server, self.state, self.replay, lambda: recorded or self._keeper.info),
            *(shared.progress.metrics.arrays, shared.mailbox.wake),
        )

    def start(self) -> None:
        self._shared.let_go = self._let_go
        self._shared.hold_limit.start(self._let_go)
        self.twin_worker.start()
        self.robots.start()
        self.loop.start()

    def join(self, timeout: float) -> None:
        """Ends the page's threads, once the shared state is closed; `timeout` is s for the loop and
        for the sandbox."""
        self._shared.hold_limit.close()
        # Compiled programs keep the state alive; it must not keep the page alive.
        self._shared.let_go = lambda why: None
        sandbox = self.robots.sandbox.session.thread
        self.loop.join(timeout)
        self.twin_worker.close()
        self.robots.close()
        self.recording.close()
        self.exporting.close()
        self.trials.close()
        for tracking in self.trackings:
            tracking.close()
        if sandbox is not None:
            sandbox.close(timeout)

    def track(self, target: object, *, clips: bool) -> None:
        """Sends what is reported to a tracker from now on; see `Viewer.track`."""
        tracking = Tracking(self._keeper, tracker_of(target), self._complain, clips=clips)
        self.trackings = (*self.trackings, tracking)

    def _let_go(self, why: str) -> None:
        """Lets a held training go on although no page has asked for it, and shows the reason."""
        self.steering.resume()
        self._complain(why)

    def _complain(self, why: str) -> None:
        log.warning(why)
        self.state.notice = why

    def show_model(self, source: Source, role: str, num_envs: int | None) -> None:
        """Shows a rollout's robots before its first step."""
        self.robots.show_model(source, role, num_envs)

    def drawn_envs(self) -> tuple[int, ...]:
        """Returns the indices drawn of the first rollout shown, in the order of the cells."""
        return self.channels.drawn_envs()
