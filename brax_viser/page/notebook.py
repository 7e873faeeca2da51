"""Shows the page within a notebook."""

import importlib


def show(url: str, height: int) -> None:
    """Shows an address in the output of the cell that runs; `height` in pixels.

    Raises:
        ImportError: IPython is not installed.
    """
    display = importlib.import_module("IPython.display")  # not a dependency: notebooks bring it
    display.display(display.IFrame(url, "100%", height))
