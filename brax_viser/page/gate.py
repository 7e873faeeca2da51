"""Decides which requests the page's server answers, by the addresses that they name.

A browser lets any site that is open in it connect to this machine, with its own address in the
header Origin; and a site can have its name resolved to this machine, which its Host then shows.
Both are refused. Programs other than browsers send no Origin.
"""

import functools
import ipaddress
import socket
import threading
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, urlsplit

NAME_SECONDS = 0.8
"""Timeout for finding out this machine's full name."""

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
    """Knows the addresses at which one page may be opened."""

    def __init__(self, listening: str, names: Sequence[str], origins: Sequence[str]):
        """Collects the addresses.

        Args:
            listening: numeric address that is listened on.
            names: names by which the user has called it.
            origins: further addresses, such as a proxy's, from `check_origins`.
        """
        self._origins = {_place(_parts(origin)) for origin in origins}
        self._names = {"localhost", socket.gethostname().lower(), *(n.lower() for n in names)}
        self._names |= {place[0] for place in self._origins if place is not None}
        if not ipaddress.ip_address(listening.partition("%")[0]).is_loopback:
            self._names.add(_full_name())

    def refusal(self, headers: Any) -> str | None:
        """Returns why a request is refused; None if it is not.

        Args:
            headers: the request's, with `get_all`.
        """
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        if len(hosts) != 1 or len(origins) > 1:
            return "a request names one host, and at most one origin"
        host = _parts(f"//{hosts[0]}")
        if host is None or not self._is_own(host.hostname or ""):
            return (
                f"this page is not served under the name {hosts[0]!r}: open it by its number, or "
                f"allow the name by Viewer(origins=['http://{hosts[0]}'])"
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
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True

    def respond(self, connection: Any, request: Any) -> Any | None:
        """Returns a response to a request that is refused; None to any other."""
        why = self.refusal(request.headers)
        return None if why is None else connection.respond(HTTPStatus.FORBIDDEN, f"{why}\n")


def _parts(address: str) -> SplitResult | None:
    """Returns the parts of an address; None if it has none, as "null" has."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.netloc and "@" not in parts.netloc else None


def _place(parts: SplitResult | None, like: SplitResult | None = None) -> tuple[str, int] | None:
    """Returns (name, port); without a port, the usual one of its scheme, or of `like`'s."""
    if parts is None or not parts.hostname:
        return None
    scheme = parts.scheme or (like.scheme if like is not None else "")
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme, 0)


@functools.cache
def _full_name() -> str:
    """Returns this machine's name with its domain, which a name server may have to tell."""
    found = [socket.gethostname()]
    thread = threading.Thread(target=lambda: found.append(socket.getfqdn()), daemon=True)
    thread.start()
    thread.join(NAME_SECONDS)
    return found[-1].lower()
