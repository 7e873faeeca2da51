"""Gives tests access to a viewer's internals."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import viser
from viser import GuiEvent

from brax_viser import Viewer
from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState
from brax_viser.page.channel import Channel, ProcessPlayback
from brax_viser.page.clients import Pages
from brax_viser.page.commands import Commands
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.inbox import Inbox
from brax_viser.page.own import OwnReplay
from brax_viser.page.page import Page
from brax_viser.page.replay import Replay
from brax_viser.page.sandbox_view import SandboxView
from brax_viser.page.state import PageState
from brax_viser.page.steering import Steering
from brax_viser.panel.panel import Panel
from brax_viser.panel.view import PanelView
from brax_viser.records.episode import Episode, Episodes
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.runs.recorder import Recorder
from brax_viser.sandbox.session import SandboxSession
from brax_viser.scene.block import Block
from brax_viser.scene.scene import Scene
from brax_viser.twins.worker import TwinWorker


def source_of(env: Any) -> Any:
    """Returns the object that the device calls of a `VisualizedEnv` reach on the host."""
    return env._host


def adapter_of(env: Any) -> Any:
    """Returns what a `VisualizedEnv` knows of its environment: its model, and how states are
    read."""
    assert env._adapter is not None
    return env._adapter


def port_of(viewer: Viewer) -> int:
    """Returns the port of a viewer's page."""
    port = urlsplit(viewer.url).port
    assert port is not None
    return port


class Probe:
    """The parts of a viewer that tests look at, by name: the only place that knows where they
    are."""

    def __init__(self, viewer: Viewer):
        self._viewer = viewer

    @property
    def shared(self) -> SharedState:
        return self._viewer._shared

    @property
    def sources(self) -> Sources:
        return self._viewer._sources

    @property
    def server(self) -> viser.ViserServer:
        assert self._viewer._server is not None
        return self._viewer._server.viser

    @property
    def opens_a_port(self) -> bool:
        """Whether this process serves the page itself, not the first one of several."""
        return self._viewer._server is not None

    @property
    def leader(self) -> Any:
        """The link to the other processes of the training, in the first one."""
        return self._viewer._leader

    @property
    def reload(self) -> Any:
        """The timer that waits for a page to reconnect."""
        assert self._viewer._server is not None and self._viewer._server.visitors is not None
        return self._viewer._server.visitors.reload

    @property
    def own(self) -> dict[str, OwnReplay]:
        """The replays of single pages that run, by their names."""
        assert self._viewer._server is not None and self._viewer._server._own is not None
        return self._viewer._server._own._running

    @property
    def page(self) -> Page:
        assert self._viewer._page is not None
        return self._viewer._page

    @property
    def steering(self) -> Steering:
        return self.page.steering

    @property
    def commands(self) -> Commands:
        return self.page.commands

    @property
    def inbox(self) -> Inbox:
        return self.page.inbox

    @property
    def state(self) -> PageState:
        return self.page.state

    @property
    def scene(self) -> Scene:
        return self.page.scene

    @property
    def panel(self) -> Panel:
        return self.page.panel

    @property
    def replay(self) -> Replay:
        return self.page.replay

    def keep(self, episodes: Episodes) -> None:
        """Makes these the recorded episodes of the training."""
        self.page.replay._episodes = episodes
        self.now(self.page.replay.update)

    @property
    def channels(self) -> dict[str, Channel]:
        return self.page.robots.channels

    @property
    def twin_worker(self) -> TwinWorker[ProcessPlayback]:
        return self.page.twin_worker

    @property
    def sandbox_view(self) -> SandboxView:
        return self.page.robots.sandbox

    @property
    def sandbox_session(self) -> SandboxSession:
        return self.page.robots.sandbox.session

    @property
    def events(self) -> EventLoop:
        """Viser's loop."""
        return self.page.events

    @property
    def clients(self) -> Pages | None:
        """The message queues of the open pages; None if viser's own are used."""
        return self.page.clients

    def show_model(self, source: Any, role: str, num_envs: int | None) -> None:
        self.page.show_model(source, role, num_envs)

    def block_of(self, role: str) -> Block | None:
        return self.page.robots.block_of(role)

    def panel_view(self, now: float = 0.0) -> PanelView:
        """Returns the panel's state at a time, s."""
        return self.page.panel_state.view(now)

    def now(self, what: Callable[[], object]) -> None:
        """Calls a function on viser's loop, and waits for it."""
        self.events.now(what)

    def enqueue(self, action: Callable[[], object]) -> None:
        """Queues an action, as a control of the panel does."""
        self.inbox.enqueue(action)

    def receive(self, packets: Sequence[Packet | ModelPacket]) -> None:
        """Passes packets to the page, on viser's loop."""
        channels = self.page.channels
        self.now(lambda: channels.receive(channels.worth_opening(packets), 0.0))

    def record_from_now(self) -> Callable[[], list[Episode]]:
        """Begins a recording at the next step of a training. Returns a function for the episodes
        that were recorded since."""
        recording, found = self.page.recording, []
        add = recording._keeper.add

        def kept(episodes: Sequence[Episode]) -> None:
            found.extend(episodes)
            add(episodes)

        def begin() -> None:
            recording._keeper.add, recording._recorder = kept, Recorder(after=0.0)  # type: ignore[method-assign]

        self.now(begin)
        return lambda: found

    def watch_packets(self, seen: Callable[[Sequence[Any]], object]) -> None:
        """Calls a function with the packets that the page receives, after it has handled them."""
        channels: Any = self.page.channels
        receive = channels.receive

        def watching(packets: Sequence[Any], now: float) -> None:
            receive(packets, now)
            seen(packets)

        channels.receive = watching

    def record_packets(self) -> list[Packet]:
        """Returns a list to which each packet is added, in the order in which they are pushed."""
        packets: list[Packet] = []
        put = self.shared.mailbox.put

        def put_down(packet: Packet, *, wait: bool) -> None:
            packets.append(packet)
            put(packet, wait=wait)

        self.shared.mailbox.put = put_down
        return packets

    def use(self, control: Any, value: Any) -> None:
        """Uses a control of the panel as a person does: sets it, or clicks on it.

        Args:
            control: viser's handle.
            value: the new value; for a group of buttons, the label of one.
        """

        def on_loop() -> None:  # as viser does, between two updates of the panel
            control._impl.value = value
            for callback in tuple(control._impl.update_cb):
                event = GuiEvent(client=object(), client_id=0, target=control)  # type: ignore[arg-type]
                with contextlib.suppress(StopIteration):  # the callback never awaits
                    callback(event).send(None)

        self.now(on_loop)
