"""Serves the page: starts and stops viser's server, and tracks whether any page is open."""

import contextlib
import functools
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import viser

from brax_viser.compat import (
    VISER_LOOPS,
    asking_before_viser,
    stop_viser,
    viser_gate,
    without_viser_banner,
)
from brax_viser.host.state import SharedState
from brax_viser.page import address, browser
from brax_viser.page.access import Access, is_loopback
from brax_viser.page.announced import announce
from brax_viser.page.api import Api
from brax_viser.page.connection import ANSWER_SECONDS, REQUEST_SECONDS, Connection
from brax_viser.page.gate import Gate, full_name
from brax_viser.page.greeting import greeting, tunnel
from brax_viser.page.guard import Guard
from brax_viser.page.own import OwnReplays, RunDir
from brax_viser.page.page import Page
from brax_viser.page.relay import Relay
from brax_viser.page.snapshot import Snapshots

log = logging.getLogger("brax_viser")

RELOAD_SECONDS = 5.0
"""How long a held training stays held after the last page was closed: a page that is reloaded comes
back within this time."""


LOOKING_ON = "**You are looking on**: this page changes nothing but its own camera."

MOST_CHARACTERS = 200
"""Of a line about a connection: what a page has sent may be part of it."""

FIRST = -1e9
"""Order of what stands above all else in the panel."""


class PageServer:
    """Viser's server, on one address."""

    def __init__(self, host: str, port: int, access: Access):
        """Starts the server.

        Args:
            host: address to listen on.
            port: the first port to try; 0 takes any free one.
            access: who may open the page.

        Raises:
            RuntimeError: the installed viser cannot be kept from answering everybody, and `access`
                does not say that it may.
        """
        wanted, port = port, address.free_port(host, port) if port else 0
        self._host, self._access = host, access
        self.visitors: Visitors | None = None
        self._snapshots: Snapshots | None = None
        self._own: OwnReplays | None = None
        self._gate = gate = Gate(host, access)
        self._forget: Callable[[], None] = lambda: None  # where the page is

        def respond(connection: Any, request: Any, answer: Callable[[], Any]) -> Any:
            return gate.respond(connection, request, lambda: browser.add_to(answer()))

        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        settings: dict[str, Any] = {
            "logger": _websockets_log(),
            "create_connection": functools.partial(Connection, self._connections),
            "open_timeout": ANSWER_SECONDS,
        }
        if access.tls is not None:
            settings |= {"ssl": access.tls.context, "ssl_handshake_timeout": REQUEST_SECONDS}
        with contextlib.ExitStack() as undo:
            with (
                without_viser_banner(),
                asking_before_viser(respond, lambda one: one.served_by, **settings) as asks,
            ):
                if not asks:
                    _check_open(host, access)
                self.viser = viser.ViserServer(
                    host=host, port=port, label="brax_viser", verbose=False
                )
                undo.callback(stop_viser, self.viser)
            self._tokens = access.tokens if asks else None
            self._guard = self._standing_guard(gate, asks=asks)
            gate.guarded = True  # or the user has said that it need not be
            undo.pop_all()
        if wanted not in (0, self.port):
            # A privileged port cannot be told from a taken one.
            log.warning("port %d is taken or not allowed, using %d", wanted, self.port)

    def _standing_guard(self, gate: Gate, *, asks: bool) -> Guard | None:
        """Has the messages of pages checked. Raises RuntimeError as the constructor does."""
        parts = viser_gate(self.viser)
        if parts is not None:
            return Guard(parts, gate.role_of)
        if asks:
            _check_open(self._host, self._access)
        return None

    @property
    def port(self) -> int:
        return self.viser.get_port()

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return self.url_at(self._host)

    @property
    def place(self) -> str:
        """The address without its token."""
        return address.url_of(self._host, self.port, tls=self._access.tls is not None)

    @property
    def onlooker_url(self) -> str:
        """The address for onlookers; empty if all pages may steer."""
        return self.url_at(self._host, looking=True) if self._has_onlookers else ""

    @property
    def framed_url(self) -> str:
        """The address for a frame within another site's page, with the token in its path."""
        token = f"{self._tokens.steering}/" if self._tokens is not None else ""
        return f"{self.place}/{token}"

    def allow(self, origin: str) -> None:
        """Lets the page be opened at a further address, such as a proxy's; called on any thread.

        Raises:
            ValueError: it is not of the form "https://name" or "https://name:port".
        """
        self._gate.allow(origin)

    @property
    def has_origins(self) -> bool:
        """Whether further addresses of the page were given when it was made."""
        return bool(self._access.origins)

    @property
    def _has_onlookers(self) -> bool:
        return self._tokens is not None and self._guard is not None

    def url_at(self, host: str, *, looking: bool = False) -> str:
        """Returns the address for a machine that calls this one `host`."""
        tokens, tls = self._tokens, self._access.tls is not None
        token = tokens and (tokens.looking if looking else tokens.steering)
        return address.url_of(host, self.port, token, tls=tls)

    def greet(self) -> None:
        """Prints where the page is opened. Where nothing can be printed, the training goes on."""
        reached = not is_loopback(self._host)
        machine = full_name() if address.is_everywhere(self._host) else self._host
        line = tunnel(os.environ, self._host, self.port, full_name) if not reached else None
        lines = greeting(
            self.url,
            self.url_at(machine) if reached and machine != self._host else "",
            self.url_at(machine, looking=True) if reached and self._has_onlookers else "",
            line,
        )
        tls = self._access.tls
        self._forget = announce(self.url, self.port, tls.certificate if tls is not None else "")
        with contextlib.suppress(OSError, ValueError):  # closed, or the disk is full
            for words in lines:
                print(f"brax_viser: {words}", flush=True)
        if reached and tls is None:
            log.warning(
                "the page is served on %s without encryption: its token can be read on the way. "
                "Use Viewer(tls=...), or host='127.0.0.1' and ssh -L",
                self._host,
            )

    def serve(self, shared: SharedState, page: Page, run_dir: RunDir = lambda: None) -> None:
        """Begins to track open pages and their clicks.

        Args:
            shared: the shared state: records whether a page is open.
            page: the page that is served.
            run_dir: of what is shown.
        """
        is_onlooker = self._guard.is_onlooker if self._guard is not None else lambda _: False
        self.visitors = visitors = Visitors(shared, self.viser, page, is_onlooker)
        self._snapshots = Snapshots(shared, page, visitors.drawing, visitors.looking)
        self._own = own = OwnReplays(run_dir)
        parts = page.timeline, self.place, self._snapshots, lambda: own.refusal
        self._gate.api = Api(shared, page.steering, *parts)
        self._gate.relay = Relay(self._own)

    def stop(self) -> None:
        self._forget()
        if self._own is not None:
            self._own.close()
        with contextlib.suppress(RuntimeError):  # already stopped
            self.viser.get_event_loop().call_soon_threadsafe(self._end_waiting)
        stop_viser(self.viser)
        if self._snapshots is not None:
            self._snapshots.close()
        if self.visitors is not None:  # no page can disconnect any more and start the timer
            self.visitors.close()

    def _end_waiting(self) -> None:
        for connection in list(self._connections):
            connection.end_unless_open()


def _check_open(host: str, access: Access) -> None:
    """Checks that the page may be open to all who reach its port, as an untested viser has it.

    Raises:
        RuntimeError: the user has not said that no token is needed, or has asked for encryption, or
            other machines reach the port.
    """
    tested = " or ".join(f"'viser=={version}*'" for version in VISER_LOOPS)
    words = (
        f"viser {viser.__version__} has not been tested: it answers whoever reaches the port, and "
        "pages of other sites that are open in your browser"
    )
    if access.tokens is not None or access.tls is not None or not is_loopback(host):
        raise RuntimeError(
            f"{words}. Install a tested one: pip install {tested}. To serve the page all the same, "
            "to this machine alone: token=False, or --token none"
        )
    log.warning("%s, and none is asked for a token", words)


def _websockets_log() -> logging.Logger:
    """Returns a log for the connections of one server: a short line for each failure, as anybody
    can cause one. Python keeps the logs that it makes, and viser adds to them with each server."""
    found = logging.Logger("brax_viser.websockets", logging.WARNING)
    found.parent = log
    found.addFilter(_in_one_line)
    _ignore_values()
    return found


@functools.cache
def _ignore_values() -> None:
    """Keeps viser from printing in full a value that it cannot take: Python keeps such texts."""
    warnings.filterwarnings("ignore", r"\[viser\] .* does not match annotation")


def _in_one_line(record: logging.LogRecord) -> bool:
    """Drops the traceback of a record, and records of connections that are no page's."""
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        words = f"{record.getMessage()}: {type(error).__name__}: {error}"
        record.msg, record.args = words[:MOST_CHARACTERS], ()
        record.exc_info = record.exc_text = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return not record.getMessage().startswith("opening handshake failed")


class Visitors:
    """Tracks the open pages, and resumes a held training after the last one was closed."""

    def __init__(
        self,
        shared: SharedState,
        server: viser.ViserServer,
        page: Page,
        is_onlooker: Callable[[int], bool],
    ):
        """Registers callbacks for connections and clicks.

        Args:
            shared: the shared state: records whether a page is open.
            server: viser's server.
            page: the page that is served.
            is_onlooker: whether a page, by its number, may change nothing.
        """
        self._shared, self._page, self._server = shared, page, server
        self._is_onlooker = is_onlooker
        self.reload: threading.Timer | None = None  # runs while the last page may come back
        self._lookers = 0  # pictures that are being taken; changed on viser's loop
        self._server.on_client_connect(self._count)
        self._server.on_client_disconnect(self._count)
        clicked: Any = self._clicked  # viser takes a coroutine, which its types do not say
        page.events.now(lambda: self._server.scene.on_click()(clicked))

    def close(self) -> None:
        """Cancels the timer, and waits for its thread."""
        if (reload := self.reload) is not None:
            reload.cancel()
            if reload is not threading.current_thread():
                reload.join(timeout=5.0)

    def drawing(self) -> list[viser.ClientHandle]:
        """Returns the pages that are asked for pictures, the newest first: not an onlooker's, which
        could send any picture. Called on any thread."""
        pages = sorted(self._server.get_clients().items(), reverse=True)
        return [page for number, page in pages if not self._is_onlooker(number)]

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Has steps sent as if a page were open. Called on any thread."""
        self._page.events.now(functools.partial(self._look, 1))
        try:
            yield
        finally:
            self._page.events.now(functools.partial(self._look, -1))

    def _look(self, more: int) -> None:
        self._lookers += more
        self._tell_watched()
        if more > 0:
            self._shared.hold.refresh()  # a held training sends its step again

    def _tell_watched(self) -> None:
        self._shared.set(watched=bool(self._server.get_clients()) or self._lookers > 0)
        self._shared.mailbox.wake()

    async def _clicked(self, event: viser.SceneClickEvent) -> None:
        ray = np.asarray(event.ray_origin), np.asarray(event.ray_direction)
        self._page.inbox.enqueue(functools.partial(self._page.commands.click, *ray))

    # Coroutines run on the server's loop: viser's thread pool may be gone at exit, and would keep a
    # thread for each of the first 32 clicks.
    async def _count(self, client: viser.ClientHandle) -> None:
        if client.client_id not in self._server.get_clients():
            self._page.scene.forget(client.client_id)
        elif self._is_onlooker(client.client_id):
            client.gui.add_markdown(LOOKING_ON, order=FIRST)
        self._tell_watched()
        if self.reload is not None:
            self.reload.cancel()
            self.reload = None
        if not self._is_steered() and self._shared.hold.paused:
            self.reload = threading.Timer(RELOAD_SECONDS, self._let_go)
            self.reload.daemon = True
            self.reload.start()

    def _is_steered(self) -> bool:
        """Whether a page is open that could resume a held training: not an onlooker's."""
        return not all(map(self._is_onlooker, self._server.get_clients()))

    def _let_go(self) -> None:
        """Resumes a held training if no page has been opened again."""
        if self._shared.hold.paused and not self._is_steered():
            self._shared.let_go("The last page was closed while the training was held: it went on")
