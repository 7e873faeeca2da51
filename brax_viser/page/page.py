"""The page of a viewer, put together of its parts."""

from typing import TYPE_CHECKING

import viser

from brax_viser.host.source import Source, Sources
from brax_viser.host.state import SharedState
from brax_viser.page.channel import ProcessPlayback
from brax_viser.page.channels import Channels
from brax_viser.page.clients import keep_openings_short
from brax_viser.page.commands import Commands
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.inbox import Inbox
from brax_viser.page.loop import Loop
from brax_viser.page.panel_state import PanelState
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.page.steering import Steering
from brax_viser.panel.panel import Panel
from brax_viser.scene.scene import Scene
from brax_viser.twins.worker import TwinWorker

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.processes.leader import Leader


class Page:
    """What is behind a page: its scene, its panel, and the loop that keeps both. All methods are
    called on any thread."""

    def __init__(
        self,
        shared: SharedState,
        sources: Sources,
        server: viser.ViserServer,
        leader: "Leader | None" = None,
    ):
        """Builds the scene and the panel; `start` has them live.

        Args:
            shared: what is shared with the device's calls.
            sources: the environments of the viewer.
            server: which serves the page.
            leader: the other processes of the training; None if it has but this one.
        """
        self.state = state = PageState()
        self.events = events = EventLoop(server, shared)
        self.inbox = Inbox(state, shared.mailbox.wake)
        self.scene = events.made(lambda: Scene(server))
        self.twin_worker: TwinWorker[ProcessPlayback] = TwinWorker(shared.wall_clock)
        self.robots = Robots(shared, state, server, self.scene, events, self.twin_worker)
        self.channels = Channels(shared, state, self.robots, self.twin_worker, leader)
        self.steering = Steering(
            shared,
            sources,
            state,
            events,
            self.inbox,
            self.robots,
            self.channels,
            self.twin_worker,
        )
        self.commands = commands = Commands(
            shared, state, server, self.robots, self.channels, self.steering
        )
        self.panel = events.made(lambda: Panel(server, self.inbox.enqueue, self.steering, commands))
        self.clients = keep_openings_short(server)
        self.panel_state = PanelState(
            shared, state, self.robots, self.channels, self.twin_worker, leader, self.clients
        )
        self.loop = Loop(
            shared,
            state,
            server,
            events,
            self.robots,
            self.channels,
            self.panel,
            self.panel_state,
            self.inbox,
        )

    def start(self) -> None:
        self.twin_worker.start()
        self.robots.start()
        self.loop.start()

    def join(self, timeout: float) -> None:
        """Once the shared state is closed: waits for what ends, s at most for each."""
        sandbox = self.robots.sandbox.session.thread
        self.loop.join(timeout)
        self.twin_worker.close()
        self.robots.close()
        if sandbox is not None:
            sandbox.close(timeout)

    def show_model(self, source: Source, role: str, num_envs: int | None) -> None:
        """Gives a rollout its robots, before any step has come."""
        self.robots.show_model(source, role, num_envs)

    def drawn_envs(self) -> tuple[int, ...]:
        """Indices, in the order of the cells, of the first rollout shown."""
        return self.channels.drawn_envs()
