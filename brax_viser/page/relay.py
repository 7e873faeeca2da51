"""Relays the pages of single persons' replays, which other processes serve, at this page's port.

What comes here has passed the gate. A request is written afresh for the upstream process, and its
answer for the browser: neither sees the other's tokens, cookies or headers.
"""

import asyncio
import contextlib
import functools
import http.client
import io
import re
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from brax_viser.compat import CLOSE_SECONDS, limit_messages
from brax_viser.page import own
from brax_viser.page.api import HEADER, REPLAY, TIMELINE
from brax_viser.page.own import OwnReplay, OwnReplays, Unavailable

PREFIX = "/own/"
"""Beginning of the paths that are answered here."""

_PLACE = re.compile(
    rf"{PREFIX}([a-z0-9]{{8,16}})(|/|/[a-zA-Z0-9_-][a-zA-Z0-9._-]*|/api/(?:{TIMELINE}|{REPLAY}[a-z]+))"
)
"""A replay's name, and the path at its page: a file, or a request of the time bar, no other."""

HOST = "127.0.0.1"

MOST_SENT = 2_000_000
"""Most bytes of a message that a page sends: the limit for onlookers, since it may be one."""

MOST_RECEIVED = 1 << 28
"""Most bytes of an answer, or of a message, of the upstream process."""

MOST_WAITING = 2
"""Messages of the upstream process that wait for the page. With more, the process waits."""

ANSWER_SECONDS = 60.0
"""s in which the upstream process must have answered a request."""

KEPT = ("Content-Type", "Content-Encoding", "Cache-Control")
"""Headers of its answers that reach the browser."""

CODES = (1002, 1008)
"""Codes with which the upstream process may end a page's websocket: its viser is another version's,
or what the page has sent was wrong. Any other is no reason for the page not to come back."""


class Relay:
    """Stands between browsers and the processes of `OwnReplays`. On viser's loop only."""

    def __init__(self, replays: OwnReplays):
        self._replays = replays

    async def respond(self, connection: Any, request: Any) -> Any | None:
        """Returns the response to a request; None has the websocket opened.

        Args:
            connection: by which the request has come.
            request: with `headers` and `path`.
        """
        place, _, query = request.path.partition("?")
        found = _PLACE.fullmatch(place)
        if found is None:
            return connection.respond(HTTPStatus.NOT_FOUND, "There is no such page.\n")
        if "cross-site" in request.headers.get_all("Sec-Fetch-Site"):  # it may start a process
            return connection.respond(HTTPStatus.FORBIDDEN, "Open it from the page itself.\n")
        try:
            # A late request of the bar does not start the replay again: its page may be gone.
            one, port = await self._replays.get(found[1], starts=not found[2].startswith("/api/"))
            if any(value.lower() == "websocket" for value in request.headers.get_all("Upgrade")):
                if one.pages >= own.MOST_PAGES:
                    raise Unavailable(own.CROWDED)
                limit_messages(connection, MOST_SENT)
                connection.served_by = functools.partial(self._serve, one, port)
                return None
            path = f"/{one.token}{found[2] or '/'}?{_without_token(query)}"
            return _written(connection, *await _asked(one, port, path, _kept(request.headers)))
        except Unavailable as error:
            words = f"No replay of your own: {error}.\n"
        except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
            words = f"Your replay does not answer: {str(error) or type(error).__name__}.\n"
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, words)

    async def _serve(self, one: OwnReplay, port: int, connection: Any) -> None:
        """Passes on what a page and its replay say to each other, until one of them ends."""
        code = 1001
        with one.connected(), contextlib.suppress(OSError, WebSocketException):
            async with await _connected(one, port, connection.subprotocol) as upstream:
                both = [
                    asyncio.create_task(_passed_on(connection, upstream)),
                    asyncio.create_task(_passed_on(upstream, connection)),
                ]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in both:
                        task.cancel()
                    await asyncio.gather(*both, return_exceptions=True)
                code = upstream.close_code if upstream.close_code in CODES else code
        await connection.close(code)


async def _passed_on(source: Any, sink: Any) -> None:
    """Passes messages on until either end is closed. Nothing is read while the sink is full."""
    with contextlib.suppress(ConnectionClosed):
        async for message in source:
            await sink.send(message)


async def _connected(one: OwnReplay, port: int, subprotocol: Any) -> ClientConnection:
    """Opens a websocket to a replay. Raises OSError or WebSocketException if it does not answer."""
    # A socket of our own, so that proxies named in the environment are not used.
    link = socket.socket()
    try:
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, (HOST, port))
        one.check()
        return await connect(
            f"ws://{HOST}:{port}/{one.token}/",
            sock=link,
            subprotocols=[subprotocol] if subprotocol else None,
            compression=None,
            max_size=MOST_RECEIVED,
            max_queue=MOST_WAITING,
            open_timeout=ANSWER_SECONDS,
            ping_interval=None,  # if the process ends, so does the connection
            close_timeout=CLOSE_SECONDS,
        )
    except BaseException:
        link.close()
        raise


def _without_token(query: str) -> str:
    """Returns a query without this page's token."""
    parts = parse_qsl(query, keep_blank_values=True)
    return urlencode([(name, value) for name, value in parts if name != "token"])


def _kept(headers: Any) -> list[str]:
    """Returns the lines of a request's headers that are passed to the upstream process."""
    zipped = any("gzip" in value for value in headers.get_all("Accept-Encoding"))
    return ["Accept-Encoding: gzip"] * zipped + [f"{HEADER}: 1"] * (HEADER in headers)


async def _asked(
    one: OwnReplay, port: int, path: str, lines: Sequence[str]
) -> tuple[int, Any, bytes]:
    """Returns the status, the headers and the body of the answer to a request.

    Raises:
        OSError, ValueError, LookupError, HTTPException: no answer comes in time, or it is not a
        valid one.
    """
    reader, writer = await asyncio.open_connection(HOST, port)
    data = bytearray()
    try:
        one.check()
        head = [f"GET {path} HTTP/1.1", f"Host: {HOST}:{port}", *lines, "", ""]
        writer.write("\r\n".join(head).encode("ascii"))
        async with asyncio.timeout(ANSWER_SECONDS):
            while part := await reader.read(1 << 16):
                data += part
                if len(data) > MOST_RECEIVED:
                    raise ValueError("too much has come")
    finally:
        writer.close()
    stream = io.BytesIO(data)
    status = int(stream.readline().split()[1])
    headers, body = http.client.parse_headers(stream), stream.read()
    if headers["Content-Length"] != str(len(body)):
        raise ValueError("its answer is incomplete")
    return status, headers, body


def _written(connection: Any, status: int, headers: Any, body: bytes) -> Any:
    """Returns the response to a browser."""
    response = connection.respond(HTTPStatus(status), "")
    response.body = body
    kept = {name: headers[name] for name in KEPT if name in headers}
    for name, value in (kept | {"Content-Length": str(len(body))}).items():
        response.headers.pop(name, None)
        response.headers[name] = value
    return response
