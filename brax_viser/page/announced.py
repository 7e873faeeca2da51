"""Notes where the pages of this user's trainings are, for commands from another terminal.

Several machines may share the user's home: of another's processes it is not known here which live.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger("brax_viser")


def folder() -> Path:
    """Where the addresses are noted, each in a file that only this user can read.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "brax_viser" / "viewers"


def _container() -> str:
    """Returns what tells containers of a machine apart, by whose numbers processes go; empty on
    systems that have none."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@dataclass(frozen=True)
class Note:
    """Where a page is."""

    url: str  # with its token
    certificate: str  # by which the page is known, in PEM; empty without encryption
    machine: str
    container: str
    pid: int
    since: float  # s since 1970

    @property
    def is_here(self) -> bool:
        """Whether its process is one of those that are seen from this one."""
        return (self.machine, self.container) == (socket.gethostname(), _container())


def announce(url: str, port: int, certificate: str = "") -> Callable[[], None]:
    """Notes the address of a page. Returns a function that removes the note.

    Args:
        url: with its token.
        port: of the page.
        certificate: by which the page is known, in PEM; empty without encryption.
    """
    try:
        here = socket.gethostname(), _container(), os.getpid()
        note = Note(url, certificate, *here, since=time.time())
        place = folder() / f"{quote(note.machine, safe='')}-{note.pid}-{port}.json"
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(place.parent)
        # One that an ended process of the same number has left may be a link, or open to others.
        place.unlink(missing_ok=True)
        with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(asdict(note)))
    except (OSError, RuntimeError) as error:  # a home that cannot be written
        log.info("other terminals have to be told the page's address: %s", error)
        return lambda: None

    def remove() -> None:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)

    return remove


def announced() -> list[Note]:
    """Returns where pages are whose processes are alive, or not seen from here; the newest first.
    Notes of those that are known to have ended are removed."""
    found = []
    try:
        places = list(folder().glob("*.json"))
        if places:
            _check_owner(folder())
    except (OSError, RuntimeError):
        return []
    for place in places:
        with contextlib.suppress(OSError, ValueError, TypeError):
            note = Note(**json.loads(place.read_text()))
            if not note.is_here or _lives(int(note.pid)):
                found.append((float(note.since), note))
            else:
                place.unlink(missing_ok=True)
    return [note for _, note in sorted(found, key=lambda one: one[0], reverse=True)]


def _check_owner(place: Path) -> None:
    """Raises PermissionError if a folder is another user's, who could read or exchange its files.
    Not known on Windows, where homes are kept apart by the system."""
    if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
        raise PermissionError(f"{place} belongs to another user")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return False
    return True
