"""How the processes of one training find each other, and the secret that they share."""

import os
import secrets
from typing import NamedTuple

import jax

from brax_viser.compat import distributed_state

SECRET = "BRAX_VISER_SECRET"
"""Environment variable: the secret, the same in all processes. Without it the first process makes
one and leaves it in the key-value store of `jax.distributed`, which whoever reaches the
coordinator's port can read."""

ADDRESS = "BRAX_VISER_ADDRESS"
"""Environment variable: "host:port" at which the first process listens for the others. Without it,
any port on the coordinator's address; it is left in the key-value store as well."""


class ProcessInfo(NamedTuple):
    """Which process of how many this is."""

    process: int = 0
    num_processes: int = 1


def place() -> ProcessInfo:
    """Without `jax.distributed.initialize`, the first of one."""
    if not jax.distributed.is_initialized():
        return ProcessInfo()
    state = distributed_state()
    return ProcessInfo(state.process_id, state.num_processes)


def coordinator_host() -> str:
    """Where the first process can be reached."""
    return distributed_state().coordinator_address.rpartition(":")[0]


def secret_of_first(viewer: int) -> bytes:
    """The first process's secret, which it makes where there is none.

    Args:
        viewer: which of the process's viewers it is for.
    """
    given = os.environ.get(SECRET)
    if given:
        return f"{given} {viewer}".encode()
    made = secrets.token_hex(32)
    distributed_state().client.key_value_set(f"brax_viser/{viewer}/secret", made)
    return made.encode()


def announce(viewer: int, address: str, url: str) -> None:
    """Tells the others where the first process listens, and where its page is."""
    client = distributed_state().client
    client.key_value_set(f"brax_viser/{viewer}/url", url)
    client.key_value_set(f"brax_viser/{viewer}/address", address)


def find_first(viewer: int, seconds: float) -> tuple[str, bytes, str] | None:
    """(address, secret, url of the page) of the first process's viewer.

    None if it has not come within `seconds`.
    """
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
