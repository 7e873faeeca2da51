"""Notes where the pages of this user's trainings are, for commands from another terminal."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("brax_viser")


def folder() -> Path:
    """Where the addresses are noted, each in a file that only this user can read.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "brax_viser" / "viewers"


def announce(url: str, port: int) -> Callable[[], None]:
    """Notes the address of a page. Returns a function that removes the note.

    Args:
        url: with its token.
        port: of the page.
    """
    try:
        place = folder() / f"{os.getpid()}-{port}.json"
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"url": url, "pid": os.getpid(), "since": time.time()})
        with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
    except (OSError, RuntimeError) as error:  # a home that cannot be written
        log.info("other terminals have to be told the page's address: %s", error)
        return lambda: None

    def remove() -> None:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)

    return remove


def announced() -> list[str]:
    """Returns the addresses of pages whose processes are alive, the newest first. Notes of others
    are removed."""
    found = []
    try:
        places = list(folder().glob("*.json"))
    except (OSError, RuntimeError):
        return []
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(place.read_text())
            if _lives(int(told["pid"])):
                found.append((float(told["since"]), str(told["url"])))
            else:
                place.unlink(missing_ok=True)
    return [url for _, url in sorted(found, reverse=True)]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return False
    return True
