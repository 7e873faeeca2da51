"""Remembers how long starts have taken on this machine, so that the page can announce it at the
next."""

import dataclasses
import json
import logging
import os
from pathlib import Path

from brax_viser.host.progress import ProgressView

log = logging.getLogger("brax_viser")

MOST = 200
"""Number of environments that are remembered; the oldest are forgotten."""


def usual_path() -> Path:
    """Where starts are remembered: in the user's cache directory.

    Raises:
        RuntimeError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "brax_viser" / "starts.json"


class Starts:
    """Seconds from the first tracing to the first step, by environment, backend and batch size.
    Used on the page's loop only."""

    def __init__(self, path: Path | None = None):
        """Reads nothing yet.

        Args:
            path: the file; None: one in the user's cache directory.
        """
        self._path = path
        self._known: dict[str, float] | None = None
        self._noted: tuple[str, float] | None = None

    def told(self, progress: ProgressView, key: str | None) -> ProgressView:
        """Returns the progress with the usual duration, and notes a start that has succeeded.

        Args:
            progress: of the training.
            key: for its environment, backend and batch size; None: not known yet.
        """
        if key is None:
            return progress
        usual = self._read().get(key)
        start = progress.start_seconds
        if progress.plays_on == "now":
            start = None  # the robots on screen are not those of the training
        if start is not None and self._noted != (key, start):
            self._noted = key, start
            self._write({**self._read(), key: round(start, 1)})
        return dataclasses.replace(progress, usual_seconds=usual)

    def _read(self) -> dict[str, float]:
        if self._known is None:
            self._known = {}
            try:
                found = json.loads((self._path or usual_path()).read_text())
                self._known = {str(key): float(seconds) for key, seconds in found.items()}
            except FileNotFoundError:
                pass  # nothing has been started yet
            # Whatever is wrong with the file must not keep a page from opening.
            except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                log.debug("earlier starts are not known: %s", error)
        return self._known

    def _write(self, known: dict[str, float]) -> None:
        self._known = dict(list(known.items())[-MOST:])
        try:
            path = self._path or usual_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written elsewhere and renamed: another process may read it at the same time.
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_text(json.dumps(self._known, indent=1))
            part.replace(path)
        except (OSError, RuntimeError) as error:
            log.debug("this start will not be remembered: %s", error)
