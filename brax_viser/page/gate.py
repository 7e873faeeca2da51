"""Decides which requests the page's server answers, by the addresses and tokens that they carry.

A browser lets any site that is open in it connect to this machine, with its own address in the
header Origin; and a site can have its name resolved to this machine, which its Host then shows.
Both are refused. Programs other than browsers send no Origin.
"""

import functools
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from brax_viser.compat import limit_messages
from brax_viser.page.access import (
    Access,
    Role,
    cookie_of,
    cookies_in,
    is_loopback,
    tokens_in,
    with_token_in_query,
)
from brax_viser.page.api import HEADER, PREFIX, Api
from brax_viser.page.asking import asking
from brax_viser.page.connection import MOST_LOOKING
from brax_viser.page.relay import PREFIX as OWN
from brax_viser.page.relay import Relay

NAME_SECONDS = 0.8
"""Timeout for finding out this machine's full name."""

LOCAL_FRAMES = ("http://localhost:*", "http://127.0.0.1:*", "vscode-webview:")
"""Pages of this machine, such as a notebook's, and VS Code's."""

MOST_OF_ONLOOKERS = 2_000_000
"""Most bytes of an onlooker's message: a picture of its page, which a script has asked for."""

CROWDED = f"Too many look on: there is room for {MOST_LOOKING} connections of onlookers.\n"

_NETLOC = re.compile(r"([^\[\]@:]+|\[[^\[\]@]+\])(:\d*)?")
"""A name or a number, and a port. Python takes what follows a bracket for nothing."""

_DEFAULT_PORTS = {"http": 80, "https": 443, "": 80}


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Returns addresses without what follows the port.

    Raises:
        ValueError: one is not of the form "https://name" or "https://name:port".
    """
    if isinstance(origins, str):
        raise ValueError(f"origins={origins!r}: must be a list of addresses")
    for origin in origins:
        parts = _parts(str(origin))
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"origins={origin!r}: must look like 'https://name' or with ':port'")
    return tuple(str(origin) for origin in origins)


class Gate:
    """Knows the addresses at which one page may be opened, and its tokens."""

    def __init__(self, listening: str, access: Access):
        """Collects the addresses.

        Args:
            listening: numeric address that is listened on.
            access: who may open the page.
        """
        self._access = access
        self.guarded = False  # nothing is answered before what pages send is checked
        self.api: Api | None = None  # answers programs, once there is a page
        self.relay: Relay | None = None  # likewise for replays of single pages
        self._origins: set[tuple[str, int] | None] = set()
        self._frames = ["'self'"] if access.tokens is not None else ["'self'", *LOCAL_FRAMES]
        self._names = {"localhost", socket.gethostname().lower(), *map(str.lower, access.names)}
        for origin in access.origins:
            self.allow(origin)
        if not is_loopback(listening):
            self._names.add(full_name())

    def allow(self, origin: str) -> None:
        """Adds an address at which the page may be opened. Raises ValueError as `check_origins`."""
        check_origins([origin])
        parts = _parts(origin)
        place = _place(parts)
        if parts is not None and place is not None:
            self._origins.add(place)
            self._names.add(place[0])
            self._frames.append(f"{parts.scheme}://{parts.netloc}")

    def refusal(self, headers: Any) -> str | None:
        """Returns why a request is refused; None if it is not.

        Args:
            headers: the request's, with `get_all`.
        """
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or len(origins) > 1:
            return "a request names one host, and at most one origin"
        host = _parts(f"//{hosts[0]}")
        is_bare = host is not None and host.netloc == hosts[0]  # no path after it
        if host is None or not is_bare or not self._is_own(host.hostname or ""):
            return (
                f"this page is not served under the name {hosts[0]!r}: open it by its number, or "
                f"allow the name by Viewer(origins=[{'http://' + hosts[0]!r}])"
            )
        if not origins:
            return None
        origin = _parts(origins[0])
        place = _place(origin)
        if place is None or (place not in self._origins and place != _place(host, origin)):
            return (
                f"a page of {origins[0]!r} may not connect here: if it is a proxy of this one, "
                f"allow it by Viewer(origins=[{origins[0]!r}])"
            )
        return None

    def _is_own(self, name: str) -> bool:
        """Whether a host's name is this machine's. Numbers are: only names can be made to resolve
        to somebody else's machine."""
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def role_of(self, request: Any) -> Role | None:
        """Returns what a request's token allows: the address's, else a cookie's. None: nothing."""
        tokens = self._access.tokens
        if tokens is None:
            return "steering"
        return tokens.role_in([*tokens_in(request), *cookies_in(request)])

    def respond(self, connection: Any, request: Any, answer: Callable[[], Any]) -> Any | None:
        """Returns the response to a request; None has the websocket opened.

        Args:
            connection: that the request has come by.
            request: with `headers` and `path`.
            answer: gives viser's response, or None.
        """
        if not self.guarded:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "this page is being opened\n")
        why = self.refusal(request.headers)
        if why is not None:
            return connection.respond(HTTPStatus.FORBIDDEN, f"{why}\n")
        tokens = self._access.tokens
        request.path = with_token_in_query(request.path, tokens)
        role = self.role_of(request)
        if role is None:
            return self._ask(connection, request)
        connection.role = role
        if connection.is_one_too_many():
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, CROWDED)
        if self.relay is not None and request.path.startswith(OWN):
            return self._relayed(self.relay, connection, request)
        if self.api is not None and urlsplit(request.path).path.startswith(PREFIX):
            return self._serve(self.api, connection, request, role)
        response = answer()
        if response is None and role == "looking":
            limit_messages(connection, MOST_OF_ONLOOKERS)
        return self._closed_to_others(response, request)

    async def _relayed(self, relay: Relay, connection: Any, request: Any) -> Any | None:
        """Returns the response to a request for a replay of one page alone."""
        return self._closed_to_others(await relay.respond(connection, request), request)

    def _closed_to_others(self, response: Any | None, request: Any) -> Any | None:
        """Adds the headers that keep a page from other sites, and its cookie."""
        if response is not None:
            tokens = self._access.tokens
            response.headers["Referrer-Policy"] = "no-referrer"  # which would carry the token
            given = [t for t in tokens_in(request) if tokens is not None and tokens.role_of(t)]
            if given:
                secure = self._is_encrypted(request)
                response.headers["Set-Cookie"] = cookie_of(given[0], request, secure=secure)
            else:  # another site could have clicks meant for itself fall on a page in its frame
                allowed = f"frame-ancestors {' '.join(self._frames)}"
                response.headers["Content-Security-Policy"] = allowed
        return response

    def _is_encrypted(self, request: Any) -> bool:
        """Whether a browser's connection is, to this page or to a proxy. What a proxy says can be
        taken on trust: it decides only how far the browser that has asked may send its cookie."""
        said = request.headers.get_all("X-Forwarded-Proto")
        first = said[0].partition(",")[0].strip().lower() if said else ""  # the browser's own
        return self._access.tls is not None or first == "https"

    def _serve(self, api: Api, connection: Any, request: Any, role: Role) -> Any:
        """Returns the response to a program."""
        parts = urlsplit(request.path)
        name, query = parts.path.removeprefix(PREFIX), dict(parse_qsl(parts.query))
        response = connection.respond(
            *api.answer(name, query, role, has_header=HEADER in request.headers)
        )
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        response.headers["Cache-Control"] = "no-store"
        return response

    def _ask(self, connection: Any, request: Any) -> Any:
        """Returns the page that asks for a token, and tells a program in its first line."""
        wrong = bool(tokens_in(request) or cookies_in(request))
        scheme = "https" if self._is_encrypted(request) else "http"
        page = asking(f"{scheme}://{request.headers['Host']}", wrong=wrong)
        response = connection.respond(HTTPStatus.FORBIDDEN, page)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "text/html; charset=utf-8"
        response.headers["Cache-Control"] = "no-store"
        return response


def _parts(address: str) -> SplitResult | None:
    """Returns the parts of an address; None if it has none, as "null" has."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    return parts if _NETLOC.fullmatch(parts.netloc) else None


def _place(parts: SplitResult | None, like: SplitResult | None = None) -> tuple[str, int] | None:
    """Returns (name, port); without a port, the usual one of its scheme, or of `like`'s."""
    if parts is None or not parts.hostname:
        return None
    scheme = parts.scheme or (like.scheme if like is not None else "")
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme, 0)


@functools.cache
def full_name() -> str:
    """Returns this machine's name with its domain, which a name server may have to tell."""
    found = [socket.gethostname()]
    thread = threading.Thread(target=lambda: found.append(socket.getfqdn()), daemon=True)
    thread.start()
    thread.join(NAME_SECONDS)
    return found[-1].lower()
