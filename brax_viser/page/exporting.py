"""Writes the recorded episodes on screen into a file for a page to download."""

import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import viser

from brax_viser.page.export_process import ExportProcess
from brax_viser.page.replay import Replay
from brax_viser.page.state import PageState
from brax_viser.records.episode import Episode, RunInfo

KINDS = {
    **{"HTML": ".html", "MP4": ".mp4", "GIF": ".gif", "PNG": ".png", "CSV": ".csv"},
    "RRD": ".rrd",
}
"""What can be written, with the ending of the file's name."""

OF_SEVERAL = (".html", ".csv", ".rrd")
"""Files that have all episodes on screen; the others have the first."""


class Exporting:
    """Writes one file at a time, by `brax-viser export` in a separate process. Used on viser's
    loop, except where noted."""

    def __init__(
        self,
        server: viser.ViserServer,
        state: PageState,
        replay: Replay,
        info: Callable[[], RunInfo | None],
        curves: Callable[[], Mapping[str, np.ndarray]],
        wake: Callable[[], object],
    ):
        """Writes nothing yet.

        Args:
            server: viser's server, with the pages.
            state: the page's state, which says what is being written.
            replay: the episodes on screen.
            info: returns their training.
            curves: returns that training's curves, see `RunFolder.set_curves`; called on any
                thread.
            wake: has the panel updated; called on any thread.
        """
        self._server, self._state, self._replay = server, state, replay
        self._info, self._curves, self._wake = info, curves, wake
        self._thread: threading.Thread | None = None
        self._process = ExportProcess()

    def begin(self, kind: str, client_id: int) -> None:
        """Begins to write a file, which the page then downloads.

        Args:
            kind: one of `KINDS`.
            client_id: of the page.

        Raises:
            ValueError: no episode is on screen, or a file is being written.
        """
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("Another file is being written: wait until it is there")
        episodes, info = self._replay.shown(), self._info()
        if not episodes or info is None:
            raise ValueError("Play a recording first: what is on screen is written")
        name = f"{_plain(info.env)}-step-{episodes[0].summary.recording}{KINDS[kind]}"
        self._state.exporting = f"Writing {name}. The training goes on."
        self._state.exported = 0.0
        first = self._replay.focus(None)
        moment = f"{first[1] * first[0].dt if first is not None else 0:.4f}"
        options = ("--seconds", moment, moment) if kind == "PNG" else ()
        work = info, episodes, name, options, client_id
        self._thread = threading.Thread(target=self._write, args=work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives up what is being written. Called on any thread."""
        self._process.kill()

    def _write(
        self,
        info: RunInfo,
        episodes: Sequence[Episode],
        name: str,
        options: Sequence[str],
        client_id: int,
    ) -> None:
        """Runs on the thread."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / name
                chosen = episodes if out.suffix in OF_SEVERAL else episodes[:1]
                both = {"curves": self._curves(), "told": self._told}
                complaint = self._process.write(info, chosen, out, *options, **both)
                told = "is written, and sent to the page that asked for it."
                if complaint is not None:
                    told = f"could not be written: {complaint}"
                self._state.exporting = f"{name} {told}"
                client = self._server.get_clients().get(client_id)
                if out.exists() and client is not None:
                    client.send_file_download(name, out.read_bytes(), save_immediately=True)
        except (OSError, ValueError) as error:  # no room for the process's input
            self._state.exporting = f"{name} could not be written: {error}"
        self._state.exported = None
        self._wake()

    def _told(self, share: float) -> None:
        """Shows how much is written. Runs on the thread."""
        self._state.exported = share
        self._wake()


def _plain(name: str) -> str:
    """Returns a name as part of a file's name."""
    return re.sub(r"\W+", "-", name).strip("-").lower() or "robot"
