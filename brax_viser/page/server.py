"""Serves the page: starts and stops viser's server, and looks after who is connected to it."""

import contextlib
import functools
import logging
import threading

import numpy as np
import rich
import viser

from brax_viser.host.state import SharedState
from brax_viser.page import address
from brax_viser.page.page import Page

log = logging.getLogger("brax_viser")

RELOAD_SECONDS = 5.0
"""How long a held training waits for a page to come back after the last one has gone: reloading
one is no reason to let it go on."""


class PageServer:
    """Viser's server, on one address."""

    def __init__(self, host: str, port: int):
        """Starts it.

        Args:
            host: address to listen on.
            port: the first to be tried; 0 takes any.
        """
        wanted, port = port, address.free_port(host, port) if port else 0
        self._host = host
        self.visitors: Visitors | None = None
        # viser prints a banner of its own, with an address that need not be the one to open. Rich
        # captures what this thread prints alone: whatever others print now is not lost.
        with rich.get_console().capture():
            self.viser = viser.ViserServer(host=host, port=port, label="brax_viser", verbose=False)
        if wanted not in (0, self.port):
            # It may as well be one of those that only an administrator may have.
            log.warning("port %d is taken or not allowed, using %d", wanted, self.port)

    @property
    def port(self) -> int:
        return self.viser.get_port()

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return address.url_of(self._host, self.port)

    def serve(self, shared: SharedState, page: Page) -> None:
        """Looks after who visits the page from now on.

        Args:
            shared: is told whether a page is open.
            page: what is shown there.
        """
        self.visitors = Visitors(shared, self.viser, page)

    def stop(self) -> None:
        # That it has stopped, viser prints on its loop's thread, where nobody else prints, and
        # which ends with that, and Rich's capture with it.
        with contextlib.suppress(RuntimeError):  # it is stopped
            loop = self.viser.get_event_loop()
            loop.call_soon_threadsafe(rich.get_console().begin_capture)
        self.viser.stop()
        if self.visitors is not None:  # none can go any more
            self.visitors.close()


class Visitors:
    """Who looks at the page: a training that is held goes on once nobody does."""

    def __init__(self, shared: SharedState, server: viser.ViserServer, page: Page):
        """Looks after them from now on.

        Args:
            shared: is told whether a page is open.
            server: of the page.
            page: what is shown there.
        """
        self._shared, self._page, self._server = shared, page, server
        self.reload: threading.Timer | None = None  # waits for a page to come back
        self._server.on_client_connect(self._count)
        self._server.on_client_disconnect(self._count)
        page.events.now(lambda: self._server.scene.on_click()(self._clicked))

    def close(self) -> None:
        """Waits for nobody any more."""
        if (reload := self.reload) is not None:
            reload.cancel()
            if reload is not threading.current_thread():
                reload.join(timeout=5.0)

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        ray = np.asarray(event.ray_origin), np.asarray(event.ray_direction)
        self._page.inbox.enqueue(functools.partial(self._page.commands.click, *ray))

    async def _count(self, client: viser.ClientHandle) -> None:
        # Async, so that it runs on the server's loop: its thread pool may be gone at exit.
        watched = bool(self._server.get_clients())
        if client.client_id not in self._server.get_clients():
            self._page.scene.forget(client.client_id)
        self._shared.set(watched=watched)
        self._shared.mailbox.wake()
        if self.reload is not None:
            self.reload.cancel()
            self.reload = None
        if not watched and self._shared.hold.paused:
            self.reload = threading.Timer(RELOAD_SECONDS, self._let_go)
            self.reload.daemon = True
            self.reload.start()

    def _let_go(self) -> None:
        """Nobody looks any more: a training is not to stand still for nobody."""
        if self._shared.hold.paused and not self._shared.control.watched:
            self._page.steering.resume()
            self._page.state.notice = (
                "The last page was closed while the training was held: it went on"
            )
            log.warning("the last page was closed: the training that it held goes on")
