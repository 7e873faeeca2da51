"""Writes the recorded episodes on screen into a file for a page to download."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import viser

from brax_viser.page.replay import Replay
from brax_viser.page.state import PageState
from brax_viser.records.episode import Episode, RunInfo
from brax_viser.runs.folder import RunFolder

KINDS = {"HTML": ".html", "MP4": ".mp4", "PNG": ".png", "CSV": ".csv"}
"""What can be written, with the ending of the file's name."""

OF_SEVERAL = (".html", ".csv")
"""Files that have all episodes on screen; the others have the first."""

NICENESS = 10
"""Of the process that writes: it must not take the training's time."""

MOST_SECONDS = 900.0
"""s after which a file that is not written yet is given up."""


class Exporting:
    """Writes one file at a time, by `brax-viser export` in a process of its own. Used on viser's
    loop, except where noted."""

    def __init__(
        self,
        server: viser.ViserServer,
        state: PageState,
        replay: Replay,
        info: Callable[[], RunInfo | None],
        wake: Callable[[], object],
    ):
        """Writes nothing yet.

        Args:
            server: viser's server, with the pages.
            state: the page's state, which says what is being written.
            replay: the episodes on screen.
            info: returns the training that they are of.
            wake: has the panel updated; called on any thread.
        """
        self._server, self._state, self._replay = server, state, replay
        self._info, self._wake = info, wake
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

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
        work = self._write, (info, episodes, name, client_id)
        self._thread = threading.Thread(target=work[0], args=work[1], daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives up what is being written. Called on any thread."""
        if (process := self._process) is not None:
            process.kill()

    def _write(self, info: RunInfo, episodes: Sequence[Episode], name: str, client_id: int) -> None:
        """Runs on the thread."""
        try:
            self._write_and_send(info, episodes, name, client_id)
        except (OSError, ValueError) as error:  # no room for what is handed to the process
            self._state.exporting = f"{name} could not be written: {error}"
        self._wake()

    def _write_and_send(
        self, info: RunInfo, episodes: Sequence[Episode], name: str, client_id: int
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run, out = Path(folder) / "run", Path(folder) / name
            kept = RunFolder(run, info)
            kept.add(episodes)
            kept.close()
            keys = [episode.summary.key for episode in episodes]
            self._state.exporting = self._export(run, out, keys)
            client = self._server.get_clients().get(client_id)
            if out.exists() and client is not None:
                client.send_file_download(name, out.read_bytes())

    def _export(self, run: Path, out: Path, keys: Sequence[str]) -> str:
        """Writes the file. Returns how that went, in words."""
        chosen = keys if out.suffix in OF_SEVERAL else keys[:1]
        command = [sys.executable, "-m", "brax_viser", "export", str(run), str(out)]
        self._process = process = subprocess.Popen(
            [*command, "--episode", *chosen],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        try:
            said, _ = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"it took more than {MOST_SECONDS:.0f} s"
        if process.returncode == 0:
            return f"{out.name} is written, and sent to the page that asked for it."
        reason = " ".join(said.replace("brax-viser:", "").split())[-300:]
        return f"{out.name} could not be written: {reason}"


def _plain(name: str) -> str:
    """Returns a name as part of a file's name."""
    return re.sub(r"\W+", "-", name).strip("-").lower() or "robot"
