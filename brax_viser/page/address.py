"""Where a page is served: resolves a host's name, and finds a port that is free."""

import contextlib
import os
import socket
import threading
import time
from numbers import Integral
from typing import Any

DEFAULT_PORT = 8000

RESOLVE_SECONDS = 0.8
"""How long resolving a name may take, which without a name server goes on for many seconds. A
machine's own names, which are the only ones to listen on, take a millisecond."""

RELEASE_SECONDS = 5.0
"""How long a port may take to become free, that a server which was stopped had."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""All addresses, and the one of these by which this machine reaches itself."""

_HOW = (
    "use '127.0.0.1' (this machine alone), '0.0.0.0' or '::' (all of its addresses), or one of the "
    "addresses that it has"
)


def listening_address(host: str) -> str:
    """An address of this machine, in numbers, to listen on.

    Args:
        host: a name, or an address in numbers, in brackets or not; "" is all IPv4 addresses. Of a
            name with several addresses the first of IPv4's is taken, or else of IPv6's.

    Raises:
        ValueError: it cannot be resolved, not within a second, or is another machine's.
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
    """Comes by where a page would: some systems listen on a broadcast address, where nobody can.

    Raises:
        OSError: nobody can.
    """
    address, port, *more = probe.getsockname()
    with socket.socket(family, socket.SOCK_STREAM) as page:
        page.settimeout(0.2)
        page.connect((_EVERYWHERE.get(address, address), port, *more))


def _resolve(host: str) -> list[tuple[int, str]]:
    """(family, address in numbers) of a name, each once."""
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
        # UnicodeError, which is a ValueError: a name that no name server takes.
        except (OSError, ValueError) as error:
            errors.append(error)

    # It cannot be told to stop, so it is not waited for any longer.
    thread = threading.Thread(target=resolve, name="brax_viser resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    if thread.is_alive():
        raise ValueError(f"host={host!r}: not resolved within {RESOLVE_SECONDS:g} s: {_HOW}")
    if errors:
        raise ValueError(f"host={host!r}: cannot be resolved ({errors[0]}): {_HOW}")
    return list(dict.fromkeys(found))


def _bound(address: str, port: int, family: int | None = None) -> socket.socket:
    """A socket that listens, as a server's would.

    Raises:
        OSError: it may not, or another one does.
    """
    if family is None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    probe = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undo:
        undo.callback(probe.close)
        if os.name == "posix":  # where asyncio's servers do as well
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(place)
        probe.listen()
        undo.pop_all()
    return probe


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        with _bound(address, port):
            return True
    except OSError:
        return False


def free_port(address: str, port: int) -> int:
    """`port`, or the next one after it that is free.

    Raises:
        ValueError: all of them are taken.
    """
    for candidate in range(port, 65536):
        if is_free(address, candidate):
            return candidate
    raise ValueError(f"port={port}: taken, as all up to 65535 are: use 0 for any free one")


def wait_until_free(address: str, port: int) -> bool:
    """Waits for a server that was stopped to let go of its port. Returns whether it has."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while not (free := is_free(address, port)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return free


def url_of(address: str, port: int) -> str:
    """What to open in a browser on this machine."""
    address = _EVERYWHERE.get(address, address)
    if ":" in address:
        address = f"[{address.replace('%', '%25')}]"  # a zone's sign, as URLs have it
    return f"http://{address}:{port}"


def check_port(port: Any) -> None:
    """Refuses what is no port.

    Raises:
        ValueError: it is not a whole number from 0 to 65535, nor None.
    """
    is_whole = isinstance(port, Integral) and not isinstance(port, bool)
    if port is not None and not (is_whole and 0 <= int(port) <= 65535):
        raise ValueError(
            f"port={port!r}: must be a whole number from 0 to 65535 (0 takes any free one)"
        )
