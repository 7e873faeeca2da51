"""Writes episodes into files that others can look at: HTML, video, pictures, numbers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brax_viser.export.html import write_html
    from brax_viser.export.rrd import write_rrd
    from brax_viser.export.table import write_csv, write_curves_csv
    from brax_viser.export.video import write_png, write_video

__all__ = ["write_csv", "write_curves_csv", "write_html", "write_png", "write_rrd", "write_video"]

_HOMES = {
    "write_csv": "table",
    "write_curves_csv": "table",
    "write_html": "html",
    "write_png": "video",
    "write_rrd": "rrd",
    "write_video": "video",
}


def __getattr__(name: str) -> object:
    # On first use, so that the process that draws starts without viser.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
