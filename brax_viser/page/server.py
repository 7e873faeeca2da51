"""Serves the page: starts and stops viser's server, and tracks whether any page is open."""

import contextlib
import functools
import ipaddress
import logging
import threading
from collections.abc import Sequence

import numpy as np
import rich
import viser

from brax_viser.compat import asking_before_viser, viser_gate
from brax_viser.host.state import SharedState
from brax_viser.page import address, browser
from brax_viser.page.gate import Gate
from brax_viser.page.guard import Guard
from brax_viser.page.page import Page

log = logging.getLogger("brax_viser")

RELOAD_SECONDS = 5.0
"""How long a held training stays held after the last page was closed: a page that is reloaded comes
back within this time."""


class PageServer:
    """Viser's server, on one address."""

    def __init__(
        self, host: str, port: int, names: Sequence[str] = (), origins: Sequence[str] = ()
    ):
        """Starts the server.

        Args:
            host: address to listen on.
            port: the first port to try; 0 takes any free one.
            names: as for `gate.Gate`; likewise `origins`.
            origins: addresses.

        Raises:
            RuntimeError: the installed viser cannot be kept from answering everybody, and `host` is
                not this machine alone.
        """
        wanted, port = port, address.free_port(host, port) if port else 0
        self._host = host
        self.visitors: Visitors | None = None
        # Suppresses viser's banner, whose address may not be the one to open. Rich's capture is
        # limited to this thread, so output of other threads is not lost.
        requests = Gate(host, names, origins)
        with (
            rich.get_console().capture(),
            asking_before_viser(requests.respond, _websockets_log(), browser.add_to) as asks,
        ):
            if not asks:
                _check_alone(host)
            self.viser = viser.ViserServer(host=host, port=port, label="brax_viser", verbose=False)
        gate = viser_gate(self.viser)
        self._guard = None if gate is None else Guard(gate)
        if wanted not in (0, self.port):
            # A privileged port cannot be told from a taken one.
            log.warning("port %d is taken or not allowed, using %d", wanted, self.port)

    @property
    def port(self) -> int:
        return self.viser.get_port()

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return address.url_of(self._host, self.port)

    def serve(self, shared: SharedState, page: Page) -> None:
        """Begins to track open pages and their clicks.

        Args:
            shared: the shared state: records whether a page is open.
            page: the page that is served.
        """
        self.visitors = Visitors(shared, self.viser, page)

    def stop(self) -> None:
        # viser prints a message on its loop's thread when it stops. Rich's capture is limited to
        # that thread, on which nothing else is printed, and ends with it.
        with contextlib.suppress(RuntimeError):  # already stopped
            loop = self.viser.get_event_loop()
            loop.call_soon_threadsafe(rich.get_console().begin_capture)
        self.viser.stop()
        if self.visitors is not None:  # no page can disconnect any more and start the timer
            self.visitors.close()


def _check_alone(host: str) -> None:
    """Checks that only this machine is listened for, where viser answers everybody.

    Raises:
        RuntimeError: it is not.
    """
    words = f"viser {viser.__version__} has not been tested: it answers whoever reaches the port"
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise RuntimeError(f"{words}, so the page is only served on 127.0.0.1, not on {host}")
    log.warning("%s, pages of other sites included", words)


@functools.cache
def _websockets_log() -> logging.Logger:
    """Returns the log for connections: a line for what went wrong, as anybody can cause it."""
    found = logging.getLogger("brax_viser.websockets")
    found.setLevel(logging.WARNING)
    found.addFilter(_in_one_line)
    return found


def _in_one_line(record: logging.LogRecord) -> bool:
    """Drops the traceback of a record, and records of connections that are no page's."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}: {error}", ()
        record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return not record.getMessage().startswith("opening handshake failed")


class Visitors:
    """Tracks the open pages, and resumes a held training after the last one was closed."""

    def __init__(self, shared: SharedState, server: viser.ViserServer, page: Page):
        """Registers callbacks for connections and clicks.

        Args:
            shared: the shared state: records whether a page is open.
            server: viser's server.
            page: the page that is served.
        """
        self._shared, self._page, self._server = shared, page, server
        self.reload: threading.Timer | None = None  # runs while the last page may come back
        self._server.on_client_connect(self._count)
        self._server.on_client_disconnect(self._count)
        page.events.now(lambda: self._server.scene.on_click()(self._clicked))

    def close(self) -> None:
        """Cancels the timer, and waits for its thread."""
        if (reload := self.reload) is not None:
            reload.cancel()
            if reload is not threading.current_thread():
                reload.join(timeout=5.0)

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        ray = np.asarray(event.ray_origin), np.asarray(event.ray_direction)
        self._page.inbox.enqueue(functools.partial(self._page.commands.click, *ray))

    async def _count(self, client: viser.ClientHandle) -> None:
        # A coroutine runs on the server's loop; viser's thread pool may be gone at exit.
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
        """Resumes a held training if no page has been opened again."""
        if self._shared.hold.paused and not self._shared.control.watched:
            self._page.steering.resume()
            self._page.state.notice = (
                "The last page was closed while the training was held: it went on"
            )
            log.warning("the last page was closed: the training that it held goes on")
