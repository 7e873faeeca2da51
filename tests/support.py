"""What tests see of a viewer behind its public face."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import viser

from brax_viser import Viewer
from brax_viser.host.source import Sources
from brax_viser.host.state import Switchboard
from brax_viser.page.channels import Channel
from brax_viser.panel.panel import Panel
from brax_viser.panel.view import PanelView
from brax_viser.records.parcel import Parcel
from brax_viser.scene.block import Block
from brax_viser.scene.scene import Scene
from brax_viser.twins.worker import Follower


def feed_of(env: Any) -> Any:
    """Whom the device's calls of a `VisualizedEnv` reach."""
    return env._host


class Probe:
    """The parts of a viewer that a test looks at, by name: the one place that knows where they
    are."""

    def __init__(self, viewer: Viewer):
        self._viewer = viewer

    @property
    def board(self) -> Switchboard:
        return self._viewer._board

    @property
    def feeds(self) -> Sources:
        return self._viewer._feeds

    @property
    def server(self) -> viser.ViserServer:
        return self._viewer._server

    @property
    def others(self) -> Any:
        """The other processes of the training."""
        return self._viewer._others

    @property
    def reload(self) -> Any:
        """The timer that waits for a page to come back."""
        return self._viewer._reload

    @property
    def _page(self) -> Any:
        return self._viewer._publisher

    @property
    def scene(self) -> Scene:
        return self._page.scene

    @property
    def panel(self) -> Panel:
        return self._page.panel

    @property
    def channels(self) -> dict[str, Channel]:
        return self._page._channels

    @property
    def follower(self) -> Follower:
        return self._page.follower

    @property
    def sandbox_view(self) -> Any:
        return self._page.aside

    @property
    def sandbox_session(self) -> Any:
        return self._page.aside.forks

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop:
        """Viser's."""
        return self._page._loop

    @property
    def look(self) -> Any:
        return self._page.look

    @property
    def notice(self) -> str | None:
        return self._page.notice

    @property
    def complaint(self) -> str | None:
        return self._page.complaint

    @property
    def pages(self) -> Any:
        return self._page.pages

    @property
    def commands_left(self) -> Any:
        return self._page._commands

    @property
    def show_model(self) -> Any:
        return self._page.show_model

    @property
    def obey(self) -> Any:
        return self._page.obey

    def block_of(self, role: str) -> Block | None:
        return self._page._block_of(role)

    def panel_view(self, now: float = 0.0) -> PanelView:
        """What the panel is to show at a time, s."""
        return self._page._panel_view(now)

    def now(self, what: Callable[[], object]) -> None:
        """Does something on viser's loop, and waits for it."""
        self._page.now(what)

    def enqueue(self, command: Any) -> None:
        """Asks for something, as a widget of the panel does."""
        self._page.enqueue(command)

    def receive(self, parcels: Sequence[Parcel]) -> None:
        """Has the page take what has come."""
        page = self._page
        page.now(lambda: page._receive(page._worth_opening(parcels), 0.0))

    def watch_parcels(self, seen: Callable[[Sequence[Parcel]], object]) -> None:
        """Has a function called with all parcels that the page takes, after it has."""
        page, receive = self._page, self._page._receive

        def watching(parcels: Sequence[Parcel], now: float) -> None:
            receive(parcels, now)
            seen(parcels)

        page._receive = watching
