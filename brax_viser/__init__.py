"""Watch Brax environments learn, live, in a browser."""

import contextlib
import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brax_viser.env import VisualizedEnv
    from brax_viser.page.shown import ShownFrame
    from brax_viser.records.frame import Frame
    from brax_viser.viewer import Stats, Viewer

__all__ = ["Frame", "ShownFrame", "Stats", "Viewer", "VisualizedEnv"]
__version__ = "0.1.0"

_HOMES = {
    "Frame": "records.frame",
    "ShownFrame": "page.shown",
    "Stats": "viewer",
    "Viewer": "viewer",
    "VisualizedEnv": "env",
}


_log = logging.getLogger(__name__)


def _handle(record: logging.LogRecord) -> None:
    """Logs, and never raises: where the log and stderr are closed, Python's own report of that
    would raise, and in a call from the device end the training."""
    with contextlib.suppress(OSError, ValueError):
        logging.Logger.handle(_log, record)


_log.handle = _handle


def __getattr__(name: str) -> object:
    # On first use, so that the command line can serve its page before Brax has been imported.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
