"""Lets the processes of one training find each other and share a secret."""

import importlib.util
import os
import secrets
import sys
from typing import NamedTuple

from brax_viser.compat import distributed_state

SECRET = "BRAX_VISER_SECRET"
"""Environment variable: the secret, the same in all processes. Without it the leader makes one and
leaves it in the key-value store of `jax.distributed`, which anyone who reaches the coordinator's
port can read."""

ADDRESS = "BRAX_VISER_ADDRESS"
"""Environment variable: "host:port" at which the leader listens for the workers. Without it, any
free port on the coordinator's address, left in the key-value store as well."""


SHORTEST = 16
"""Fewest characters of a secret that is given."""


class ProcessInfo(NamedTuple):
    """The number of this process, and the number of processes."""

    process: int = 0
    num_processes: int = 1


def place() -> ProcessInfo:
    """Returns this process's place; without `jax.distributed.initialize`, process 0 of 1."""
    if "jax" not in sys.modules:  # a page of recorded episodes does without it
        return ProcessInfo()
    import jax

    if not jax.distributed.is_initialized():
        return ProcessInfo()
    state = distributed_state()
    return ProcessInfo(state.process_id, state.num_processes)


def checked_place() -> ProcessInfo:
    """Returns this process's place. If there are others, raises ImportError without ZeroMQ, and
    ValueError if the secret that is given is too short."""
    found = place()
    if found.num_processes > 1 and importlib.util.find_spec("zmq") is None:
        raise ImportError(
            "a training of several processes needs ZeroMQ to show all of them in one page: "
            "pip install 'brax-viser[hosts]' in each"
        )
    if found.num_processes > 1:
        check_secret()
    return found


def check_secret() -> None:
    """Raises ValueError if a secret is given that is too short: with a recorded handshake, secrets
    can be tried without being noticed."""
    given = os.environ.get(SECRET)
    if given and len(given) < SHORTEST:
        raise ValueError(
            f"{SECRET} has {len(given)} characters: it needs at least {SHORTEST}, "
            "such as those of `openssl rand -hex 16`"
        )


def coordinator_host() -> str:
    """Returns the host name or address at which the leader can be reached."""
    return distributed_state().coordinator_address.rpartition(":")[0]


def secret_of_first(viewer: int) -> bytes:
    """Returns the secret on the leader's side; makes and publishes one if none is given.

    Args:
        viewer: number of the viewer in its process.
    """
    given = os.environ.get(SECRET)
    if given:
        return f"{given} {viewer}".encode()
    made = secrets.token_hex(32)
    distributed_state().client.key_value_set(f"brax_viser/{viewer}/secret", made)
    return made.encode()


def announce(viewer: int, address: str, url: str) -> None:
    """Publishes the leader's address and its page's URL for the workers."""
    client = distributed_state().client
    client.key_value_set(f"brax_viser/{viewer}/url", url)
    client.key_value_set(f"brax_viser/{viewer}/address", address)


def find_first(viewer: int, seconds: float) -> tuple[str, bytes, str] | None:
    """Returns (address, secret, URL of the page) of the leader's viewer.

    None if it isn't announced within `seconds`.
    """
    import jax

    client, milliseconds = distributed_state().client, int(seconds * 1000)
    try:
        address = client.blocking_key_value_get(f"brax_viser/{viewer}/address", milliseconds)
        url = client.blocking_key_value_get(f"brax_viser/{viewer}/url", milliseconds)
        given = os.environ.get(SECRET)
        secret = (
            f"{given} {viewer}"
            if given
            else client.blocking_key_value_get(f"brax_viser/{viewer}/secret", milliseconds)
        )
    except jax.errors.JaxRuntimeError:  # not there yet, or the coordinator has gone
        return None
    return os.environ.get(ADDRESS) or address, secret.encode(), url
