"""Writes recorded episodes into a file by `brax-viser export`, in a separate process."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from brax_viser.records.episode import Episode, RunInfo
from brax_viser.runs.copies import copied

NICENESS = 10
"""Niceness of the process that writes: it must not take the training's time."""

MOST_SECONDS = 900.0
"""s after which a file that is not written yet is given up."""

_DONE = re.compile(r".*: (\d+) %\n")
"""The line in which `brax-viser export` reports its progress where it has no terminal."""


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
        told: Callable[[float], object] = lambda share: None,
    ) -> str | None:
        """Writes a file, and waits until it is there.

        Args:
            info: the training.
            episodes: those of its episodes that the file shows.
            out: the file; its ending says the format.
            options: further options of `brax-viser export`.
            curves: of the training, see `RunFolder.set_curves`; None: none.
            told: called now and then with the share that is written, from 0 to 1.

        Returns:
            Why it could not be written, in words; None if it was.

        Raises:
            OSError, ValueError: the process's input could not be written.
        """
        with copied(info, episodes, curves or {}) as run_dir:
            keys = [episode.summary.key for episode in episodes]
            return self._export([run_dir, str(out), *options, "--episode", *keys], told)

    def kill(self) -> None:
        """Gives up what is being written."""
        if (process := self._process) is not None:
            process.kill()

    def _export(self, words: Sequence[str], told: Callable[[float], object]) -> str | None:
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "brax_viser", "export", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        said: list[str] = []

        def give_up() -> None:
            said.append(f"it took more than {MOST_SECONDS:.0f} s")
            process.kill()

        limit = threading.Timer(MOST_SECONDS, give_up)
        limit.daemon = True
        limit.start()
        with process:
            for line in process.stdout or ():
                if (done := _DONE.fullmatch(line)) is not None:
                    told(int(done[1]) / 100)
                else:
                    said.append(line)
        limit.cancel()
        if process.returncode == 0:
            return None
        return " ".join("".join(said).replace("brax-viser:", "").split())[-300:]
