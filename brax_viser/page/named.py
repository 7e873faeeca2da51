"""Viewers that take the place of each other."""

import sys
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Named(Generic[T]):
    """The viewers of this process that are open and have a name: one of each."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while one takes the place of another
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
    """What viewers are told apart by; None: each is one of its own.

    Args:
        name: which was given, if any.
        port: which was asked for, if any.

    Raises:
        ValueError: `name` is no string.
    """
    if name is not None:
        if not isinstance(name, str):
            raise ValueError(f"name={name!r}: must be a string, or None")
        return ("name", name)
    if port is None:
        return "default" if _interactive() else None
    return port or None


def _interactive() -> bool:
    """Whether a person types code that goes into this process, and may send it again."""
    shell = sys.modules.get("IPython")  # nobody has typed into one that was not imported
    if shell is not None and shell.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
