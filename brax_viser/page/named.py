"""Registers viewers by name or port, so that a new one replaces the one of the same key."""

import sys
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Named(Generic[T]):
    """The open viewers of this process that have a key, one per key."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while one viewer replaces another
        self._viewers: dict[object, T] = {}

    def get(self, key: object) -> T | None:
        return self._viewers.get(key)

    def add(self, key: object, viewer: T) -> None:
        with self.lock:
            self._viewers[key] = viewer

    def remove(self, key: object, viewer: T) -> None:
        with self.lock:
            if self._viewers.get(key) is viewer:
                del self._viewers[key]


def key_of(name: str | None, port: int | None) -> object:
    """Returns the key of a viewer; None: it replaces no other.

    Args:
        name: the name given, if any.
        port: the port requested, if any.

    Raises:
        ValueError: `name` is not a string.
    """
    if name is not None:
        if not isinstance(name, str):
            raise ValueError(f"name={name!r}: must be a string, or None")
        return ("name", name)
    if port is None:
        return "default" if _interactive() else None
    return port or None


def _interactive() -> bool:
    """Whether this process runs code that a person types, and may run again (REPL, notebook)."""
    shell = sys.modules.get("IPython")  # an IPython session has imported it
    if shell is not None and shell.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
