"""Words the lines that a viewer prints when it starts: where its page is opened, and how."""

import contextlib
import getpass
import ipaddress
from collections.abc import Callable, Iterator, Mapping

from brax_viser.page import address


def greeting(url: str, elsewhere: str, onlookers: str, tunnel: str | None) -> Iterator[str]:
    """Yields the lines.

    Args:
        url: the page's address on this machine.
        elsewhere: its address for other machines; empty if they do not reach it.
        onlookers: the address for onlookers; empty if there is none, or it need not be printed.
        tunnel: the line to type elsewhere, if this is a session over ssh.
    """
    yield url
    if elsewhere:
        yield f"from other machines {elsewhere}"
    if onlookers:
        yield f"for onlookers {onlookers}"
    if tunnel is not None:
        yield f"over ssh, first type on your own machine: {tunnel}"


def tunnel(
    environ: Mapping[str, str], listening: str, port: int, machine: Callable[[], str]
) -> str | None:
    """Returns the line that forwards the page's port to the user's own machine; None if this is not
    a session over ssh.

    Args:
        environ: environment variables; "SSH_CONNECTION" has the address and port of the client,
            then those of the server, as the server sees them.
        listening: numeric address that the page is served on.
        port: of the page.
        machine: gives this machine's name, which may take a moment.
    """
    parts = environ.get("SSH_CONNECTION", "").split()
    if len(parts) != 4:
        return None
    client, _, server, ssh_port = parts
    user = environ.get("USER", "")
    with contextlib.suppress(ImportError, KeyError, OSError):  # the user may have no name
        user = user or getpass.getuser()
    at = f"{user}@" if user else ""
    target = address.reached_at(listening)
    target = f"[{target}]" if ":" in target else target
    words = ["ssh", f"-L {port}:{target}:{port}"]
    if ssh_port != "22":
        words.append(f"-p {ssh_port}")
    if not address.is_free(server, 0):  # the session continues on another machine, as in a cluster
        return " ".join(["ssh", "-J", f"{at}{server}", words[1], f"{at}{machine()}"])
    return " ".join([*words, f"{at}{server if _is_reached(server, client) else machine()}"])


def _is_reached(server: str, client: str) -> bool:
    """Whether a client can reach a server by the server's own address: from the internet not by a
    private one, which beyond a router belongs to another machine."""
    try:
        ours, theirs = map(ipaddress.ip_address, (server, client))
    except ValueError:
        return False
    return not ours.is_private or theirs.is_private
