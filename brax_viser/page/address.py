"""Finds the address and port on which the page is served: resolves host names, finds free ports."""

import contextlib
import os
import socket
import threading
import time
from numbers import Integral
from typing import Any

DEFAULT_PORT = 8000

RESOLVE_SECONDS = 0.8
"""Timeout for resolving a name, which takes many seconds if no name server answers. This machine's
own names take a millisecond, and no others can be listened on."""

RELEASE_SECONDS = 5.0
"""Timeout for a stopped server's port to become free."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Wildcard address -> the address by which this machine reaches itself."""

_HOW = (
    "use '127.0.0.1' (this machine alone), '0.0.0.0' or '::' (all of its addresses), or one of the "
    "addresses that it has"
)


def listening_address(host: str) -> str:
    """Returns a numeric address of this machine to listen on.

    Args:
        host: a name, or a numeric address with or without brackets; "" means all IPv4 addresses.
            IPv4 is preferred if a name has several addresses.

    Raises:
        ValueError: `host` cannot be resolved within `RESOLVE_SECONDS`, or this machine cannot
            listen on it.
    """
    if not isinstance(host, str):
        raise ValueError(f"host={host!r}: must be a string: {_HOW}")
    why: OSError | None = None
    for family, address in sorted(_resolve(host)):  # AF_INET is below AF_INET6
        try:
            with _bound(address, 0, family) as probe:
                _reach(probe, family)
                return address
        except OSError as error:
            why = error
    reason = f" ({why.strerror or why})" if why is not None else ""
    raise ValueError(f"host={host!r}: this machine cannot listen on that{reason}: {_HOW}")


def _reach(probe: socket.socket, family: int) -> None:
    """Connects as a page would: some systems accept a broadcast address for listening.

    Raises:
        OSError: the address cannot be reached.
    """
    address, port, *more = probe.getsockname()
    with socket.socket(family, socket.SOCK_STREAM) as page:
        page.settimeout(0.2)
        page.connect((_EVERYWHERE.get(address, address), port, *more))


def _resolve(host: str) -> list[tuple[int, str]]:
    """Returns the distinct (family, numeric address) pairs of a name."""
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    name = name or "0.0.0.0"
    found: list[tuple[int, str]] = []
    errors: list[Exception] = []

    def resolve() -> None:
        try:
            for family, *_, place in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM):
                if family in (socket.AF_INET, socket.AF_INET6):
                    number = socket.getnameinfo(place, socket.NI_NUMERICHOST)[0]
                    found.append((int(family), number))
        # A name that cannot be encoded raises UnicodeError, which is a ValueError.
        except (OSError, ValueError) as error:
            errors.append(error)

    # getaddrinfo cannot be cancelled; a daemon thread can be left behind.
    thread = threading.Thread(target=resolve, name="brax_viser resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    if thread.is_alive():
        raise ValueError(f"host={host!r}: not resolved within {RESOLVE_SECONDS:g} s: {_HOW}")
    if errors:
        raise ValueError(f"host={host!r}: cannot be resolved ({errors[0]}): {_HOW}")
    return list(dict.fromkeys(found))


def _bound(address: str, port: int, family: int | None = None) -> socket.socket:
    """Returns a socket that listens, as a server's would.

    Raises:
        OSError: listening is not permitted, or the port is taken.
    """
    if family is None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    probe = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(probe.close)
        if os.name == "posix":  # asyncio's servers do so there as well
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)
        probe.listen()
        undo.pop_all()
    return probe


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen on this address and port."""
    try:
        with _bound(address, port):
            return True
    except OSError:
        return False


def free_port(address: str, port: int) -> int:
    """Returns `port`, or the next higher one that is free.

    Raises:
        ValueError: all ports from `port` on are taken.
    """
    for candidate in range(port, 65536):
        if is_free(address, candidate):
            return candidate
    raise ValueError(f"port={port}: taken, as all up to 65535 are: use 0 for any free one")


def wait_until_free(address: str, port: int) -> bool:
    """Waits for a stopped server to release its port, and returns whether it did in time."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while not (free := is_free(address, port)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return free


def reached_at(address: str) -> str:
    """Returns the address by which this machine reaches one that it listens on."""
    return _EVERYWHERE.get(address, address)


def is_everywhere(address: str) -> bool:
    """Whether an address stands for all addresses of this machine."""
    return address in _EVERYWHERE


def url_of(host: str, port: int, token: str | None = None, *, tls: bool = False) -> str:
    """Returns the URL to open in a browser.

    Args:
        host: a name or a numeric address; a wildcard gives the URL for this machine.
        port: the page's port.
        token: put into the URL; None for none.
        tls: whether connections are encrypted.
    """
    host = reached_at(host)
    if ":" in host:
        host = f"[{host.replace('%', '%25')}]"  # a zone id's % must be escaped
    place = f"{'https' if tls else 'http'}://{host}:{port}"
    return place if token is None else f"{place}/?token={token}"


def check_port(port: Any) -> None:
    """Validates a port.

    Raises:
        ValueError: `port` is neither None nor a whole number from 0 to 65535.
    """
    is_whole = isinstance(port, Integral) and not isinstance(port, bool)
    if port is not None and not (is_whole and 0 <= int(port) <= 65535):
        raise ValueError(
            f"port={port!r}: must be a whole number from 0 to 65535 (0 takes any free one)"
        )
