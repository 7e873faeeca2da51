"""Options of the command line for who may open the page, and where."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from brax_viser.viewer import Viewer

V = TypeVar("V", bound=Viewer)


@dataclass(frozen=True)
class Serving:
    """Where the page is served, and who may open it."""

    host: str = "127.0.0.1"
    """Address to serve the page on."""
    port: int = 8000
    """Port of the page; the next free one if it is taken."""
    token: str | None = None
    """Lets pages in: as `ps` shows it, better set BRAX_VISER_TOKEN; "none" asks for none."""
    onlookers: bool = False
    """Print the address for onlookers, who see everything and change nothing."""
    tls_cert: str | None = None
    """File of a certificate, with which connections are encrypted."""
    tls_key: str | None = None
    """File of the certificate's key, if that is a different file."""
    origins: tuple[str, ...] = ()
    """Further addresses of the page, such as a proxy's: https://hub.example.org"""

    def viewer(self, mode: str, make: Callable[..., V] = Viewer) -> V:
        """Returns a viewer with these options, in a mode, from a function that takes them as
        `Viewer` does. Raises ValueError and RuntimeError as that does."""
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("--tls-key: has a key, but no certificate: give --tls-cert as well")
        viewer = make(
            host=self.host,
            port=self.port,
            mode=mode,
            token=False if self.token == "none" else self.token,
            tls=None if self.tls_cert is None else (self.tls_cert, self.tls_key or self.tls_cert),
            origins=self.origins,
        )
        if self.onlookers:
            print(f"brax_viser: for onlookers {viewer.onlooker_url}", flush=True)
        return viewer


USUAL = Serving()
