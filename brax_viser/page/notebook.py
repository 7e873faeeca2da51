"""Shows the page within a notebook."""

import importlib
import sys
from typing import Any

from brax_viser.page.server import PageServer

COLAB = "google.colab"
"""A package that only Colab's own notebooks have."""

NO_WEBSOCKETS = (
    "If the page stays without a connection: Colab's proxy has carried no websockets so far "
    "(googlecolab/colabtools#2529). Then use a tunnel's address, Viewer(origins=[ADDRESS]) and "
    "show_in_notebook(url=...), or look at pictures by `brax-viser snapshot out.png`."
)


def show(server: PageServer, url: str | None, height: int) -> None:
    """Shows the page in the output of the cell that runs.

    Args:
        server: the page's.
        url: its address for the notebook's browser; None: on this machine or, in Colab, through
            Colab's proxy.
        height: pixels.

    Raises:
        ImportError: IPython is not installed.
    """
    if url is None and COLAB in sys.modules:
        _show_in_colab(server, height)
        return
    display = importlib.import_module("IPython.display")  # not a dependency: notebooks bring it
    display.display(display.IFrame(url or server.framed_url, "100%", height))


def _show_in_colab(server: PageServer, height: int) -> None:
    """Has Colab's proxy show the page, and lets the page be opened under the proxy's address."""
    output: Any = importlib.import_module(f"{COLAB}.output")
    proxy = str(output.eval_js(f"google.colab.kernel.proxyPort({server.port})"))
    server.allow(proxy)
    path = server.framed_url.removeprefix(server.place)
    output.serve_kernel_port_as_iframe(server.port, path=path, height=str(height))
    print(NO_WEBSOCKETS)
