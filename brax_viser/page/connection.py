"""Limits what a connection to the page's server may cost, whether or not it has shown a token.

A connection takes a descriptor as soon as it is there, and memory as it is read and answered. Each
of these has a limit here, and none of them shuts out a page that opens meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableSet
from http import HTTPStatus
from typing import Any, cast

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import SecurityError
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import State

from brax_viser.compat import accepted, limit_requests, read_at_most
from brax_viser.page.access import Role

MOST_CONNECTIONS = 256
"""Connections at once, whether or not they have shown a token. Each takes a descriptor, of which a
process often has 1,024: without any left, the training could not open a file to save its policy."""

MOST_LOOKING = MOST_CONNECTIONS // 2
"""Connections of onlookers at once, so that they leave room for pages that steer."""

MOST_ACCEPTED = 2 * MOST_CONNECTIONS
"""Connections at once, with those that have yet to agree upon encryption."""

REQUEST_SECONDS = 10.0
"""s in which a connection must have sent its request."""

ANSWER_SECONDS = 600.0
"""s in which a request must be answered: a slow network takes that long for the page's files."""

MOST_OF_REQUEST = 100_000
"""Most bytes of a request. A browser sends all cookies of a host to each of its ports, and those of
a hub's login are several thousand bytes each."""

MOST_UNREAD = 1_000_000
"""Most bytes of answers to pings that a client does not read. Browsers send no pings."""

PIECE = 1 << 12
"""Most bytes that are read from one connection before others have their turn."""

MOST_FRAMES = 20_000
"""Most pieces of one message: empty ones cost memory too, and a message has no end of them else."""

TOO_LONG = (
    f"This request has more than {MOST_OF_REQUEST:,} bytes, or 128 headers. Most of it is usually "
    "cookies, which a browser sends to all ports of a machine: remove those of this one, or open "
    "the page by another name of it, as 127.0.0.1 instead of localhost."
)


class Connection(ServerConnection):
    """One connection. On viser's loop only."""

    served_by: Callable[["Connection"], Awaitable[None]] | None = None  # in place of viser
    role: Role | None = None  # what the token of its request allows

    def __init__(self, there: MutableSet["Connection"], *args: Any, **kwargs: Any):
        """Takes what websockets' class does, after a set to which it adds itself."""
        super().__init__(*args, **kwargs)
        if accepted(self.server) >= MOST_ACCEPTED:
            raise ConnectionAbortedError("too many connections")  # asyncio closes its descriptor
        self._unread = 0  # bytes of answers to pings that wait
        self._frames = 0  # pieces of the message that is being received
        take = self.protocol.data_to_send
        self.protocol.data_to_send = lambda: joined(take())
        limit_requests(self.protocol, MOST_OF_REQUEST, self._refusal)
        there.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        read_at_most(transport, PIECE)
        asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._end_if_silent)
        there = _all(self.server)
        if len(there) > MOST_CONNECTIONS:
            # The one that has waited longest with its request, or with its end: a browser does not.
            # Of an answer that is still being read, some waits here.
            idle = [one for one in there if one.state is not State.OPEN and not one.waiting]
            (idle or [self])[0].transport.abort()

    @property
    def waiting(self) -> int:
        """How many bytes wait to be sent."""
        return self.transport.get_write_buffer_size()

    async def drain(self) -> None:
        await super().drain()
        # websockets counts the time in which a file must be read from its beginning: what still
        # waits here would be lost on a slow network.
        if self.state is State.CONNECTING and self.close_deadline is not None:
            self.close_deadline = max(self.close_deadline, self.loop.time() + REQUEST_SECONDS)

    def is_one_too_many(self) -> bool:
        """Whether this is an onlooker's, and there is no room for more of them."""
        looking = sum(one.role == "looking" for one in _all(self.server))
        return self.role == "looking" and looking > MOST_LOOKING

    def end_unless_open(self) -> None:
        """Ends a connection that is no open page's: its client may take its time."""
        if self.state is not State.OPEN and hasattr(self, "transport"):
            self.transport.abort()

    def _end_if_silent(self) -> None:
        if self.request is None:
            self.transport.abort()

    def _refusal(self, error: Exception) -> bytes:
        return refusal(error) if self.request is None else b""

    def data_received(self, data: bytes) -> None:
        before = self.waiting
        super().data_received(data)
        # Messages are sent elsewhere: what is written here are answers.
        self._unread = self._unread + max(self.waiting - before, 0) if before else 0
        if self._unread > MOST_UNREAD:
            self.transport.abort()

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._frames = 0 if event.fin else self._frames + 1
            if self._frames > MOST_FRAMES:
                self.transport.abort()
                return
        super().process_event(event)


def joined(data: list[bytes]) -> list[bytes]:
    """Joins what is sent at once, up to an empty piece, which stands for the end: thousands of
    pings would be answered one by one, while pages wait."""
    if len(data) < 2:
        return data
    whole = b"".join(data)
    return [*([whole] if whole else []), *([b""] if data[-1] == b"" else [])]


def _all(server: Any) -> list[Connection]:
    """Returns the connections of a server that are not being closed, the oldest first."""
    found = [cast(Connection, one) for one in server.handlers]
    return [one for one in found if not one.transport.is_closing()]


def refusal(error: Exception) -> bytes:
    """Returns the answer to a request that cannot be read: without one, browsers show nothing."""
    status, words = HTTPStatus.BAD_REQUEST, f"This is no request for a page: {error}."
    if isinstance(error, SecurityError):
        status, words = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LONG
    body = words.encode(errors="replace")
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
