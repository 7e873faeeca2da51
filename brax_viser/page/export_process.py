"""Writes recorded episodes into a file by `brax-viser export`, in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from brax_viser.records.episode import Episode, RunInfo
from brax_viser.runs.folder import RunFolder

NICENESS = 10
"""Of the process that writes: it must not take the training's time."""

MOST_SECONDS = 900.0
"""s after which a file that is not written yet is given up."""


class ExportProcess:
    """One process at a time. `write` is called on one thread, `kill` on any."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def write(
        self,
        info: RunInfo,
        episodes: Sequence[Episode],
        out: Path,
        *options: str,
        curves: Mapping[str, np.ndarray] | None = None,
    ) -> str | None:
        """Writes a file, and waits until it is there.

        Args:
            info: the training.
            episodes: of that training: those that the file shows.
            out: the file; its ending says what it is.
            options: further ones of `brax-viser export`.
            curves: of the training, see `RunFolder.set_curves`; None: none.

        Returns:
            Why it could not be written, in words; None if it was.

        Raises:
            OSError, ValueError: what is handed to the process could not be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            kept = RunFolder(Path(folder) / "run", info)
            kept.add(episodes)
            kept.set_curves(curves or {})
            kept.close()
            return self._export(kept.path, out, [e.summary.key for e in episodes], options)

    def kill(self) -> None:
        """Gives up what is being written."""
        if (process := self._process) is not None:
            process.kill()

    def _export(
        self, run: str, out: Path, keys: Sequence[str], options: Sequence[str]
    ) -> str | None:
        command = [sys.executable, "-m", "brax_viser", "export", run, str(out)]
        self._process = process = subprocess.Popen(
            [*command, *options, "--episode", *keys],
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
            return None
        return " ".join(said.replace("brax-viser:", "").split())[-300:]
