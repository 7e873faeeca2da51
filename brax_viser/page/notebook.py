"""Shows the page within a notebook."""

import importlib
import importlib.util
import os
import sys
from typing import Any
from urllib.parse import urlsplit

from brax_viser.page.server import PageServer

COLAB = "google.colab"
"""A package that only Colab's own notebooks have."""

NO_WEBSOCKETS = (
    "If the page stays without a connection: Colab's proxy has carried no websockets so far "
    "(googlecolab/colabtools#2529). Then use a tunnel's address, Viewer(origins=[ADDRESS]) and "
    "show_in_notebook(url=...), or look at pictures by `brax-viser snapshot out.png`."
)

PREFIX = "JUPYTERHUB_SERVICE_PREFIX"
"""Environment variable of a hub's notebooks: the path of the notebook's server."""

ADDRESSES = "JUPYTERHUB_PUBLIC_URL", "JUPYTERHUB_HOST"
"""Environment variables in which a hub may tell the address that a browser knows it by."""

NO_PROXY = (
    "The page is shown only if your browser reaches this machine's ports. Through the hub: "
    "pip install jupyter-server-proxy, and start the notebook's server again."
)

NO_ORIGIN = (
    "If the page stays without a connection: make it by Viewer(origins=['https://HUB']), with the "
    "beginning of this notebook's address in your browser."
)


def show(server: PageServer, url: str | None, height: int) -> None:
    """Shows the page in the output of the cell that runs.

    Args:
        server: the page's.
        url: its address for the notebook's browser; None: on this machine or, in Colab and on a
            JupyterHub, through their proxies.
        height: pixels.

    Raises:
        ImportError: IPython is not installed.
    """
    if url is None and COLAB in sys.modules:
        _show_in_colab(server, height)
        return
    display = importlib.import_module("IPython.display")  # not a dependency: notebooks bring it
    place = url or _place_on_hub(server) or server.framed_url
    display.display(display.IFrame(place, "100%", height))


def _place_on_hub(server: PageServer) -> str | None:
    """Returns the page's path behind the proxy of a hub's notebook server, and lets the page be
    opened there; None elsewhere. Prints what is missing."""
    prefix = os.environ.get(PREFIX)
    if not prefix:
        return None
    if importlib.util.find_spec("jupyter_server_proxy") is None:
        print(NO_PROXY)
        return None
    told = urlsplit(next(filter(None, map(os.environ.get, ADDRESSES)), ""))
    if told.scheme in ("http", "https") and told.hostname:
        server.allow(f"{told.scheme}://{told.netloc}")
    elif not server.has_origins:
        print(NO_ORIGIN)
    return f"{prefix.rstrip('/')}/proxy/{server.port}{server.framed_url.removeprefix(server.place)}"


def _show_in_colab(server: PageServer, height: int) -> None:
    """Has Colab's proxy show the page, and lets the page be opened under the proxy's address."""
    output: Any = importlib.import_module(f"{COLAB}.output")
    proxy = str(output.eval_js(f"google.colab.kernel.proxyPort({server.port})"))
    server.allow(proxy)
    path = server.framed_url.removeprefix(server.place)
    output.serve_kernel_port_as_iframe(server.port, path=path, height=str(height))
    print(NO_WEBSOCKETS)
