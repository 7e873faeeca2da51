"""The training's progress in one line of the terminal."""

import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from brax_viser.host.progress import ProgressView, count, duration, waited

PHASES = {
    "waiting": "starting",
    "compiling": "compiling",
    "training": "training",
    "evaluating": "evaluating",
    "quiet": "updating",
    "done": "finished",
    "failed": "failed",
}
"""What the terminal calls the training's phases."""

_STYLES = {"held": "yellow", "failed": "red", "finished": "green"}
_LEAST_BAR = 10  # columns


LOG_SECONDS = 120.0
"""s between two lines in a log."""


class TrainingBar:
    """A context that keeps a line at the lower end of the terminal. Other output, warnings and
    tracebacks included, appears above it. Outside of a terminal, as in a log, a line is added now
    and then, and one at the end."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock, self._line = console, clock, _Line()
        self._live = Live(self._line, console=console, refresh_per_second=4)
        self._logged: tuple[float, str] = -math.inf, ""  # s, and the line

    def __enter__(self) -> "TrainingBar":
        if self._console.is_interactive:
            self._live.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        if self._console.is_interactive:
            self._live.__exit__(*args)
        else:
            self._log()

    def update(self, view: ProgressView, *, held: bool) -> None:
        """Shows the training's progress; `held`: whether it stands still."""
        self._line.view, self._line.held = view, held
        if self._console.is_interactive:
            self._live.refresh()
        elif view.phase != "waiting" and self._clock() >= self._logged[0] + LOG_SECONDS:
            self._log()

    def _log(self) -> None:
        view = self._line.view
        if view is None:
            return
        line = f"{self._line.state}: {in_words(view, 1000)}"
        if line != self._logged[1]:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._logged = self._clock(), line


class _Line:
    """Renders the progress in one line of any width: the least important parts are left out
    first."""

    view: ProgressView | None = None
    held = False

    @property
    def state(self) -> str:
        """What the training does, in a word."""
        phase = self.view.phase if self.view is not None else "waiting"
        return "held" if self.held and phase not in ("done", "failed") else PHASES[phase]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.view is None:
            return
        view, state = self.view, self.state
        fraction = 1.0 if view.phase == "done" else view.fraction
        words = in_words(view, options.max_width - len(state) - _LEAST_BAR - 2)
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.expand = True
        bar = ProgressBar(total=1.0, completed=fraction or 0.0)
        line.add_row(Text(state, style=_STYLES.get(state, "")), bar, Text(words))
        yield line


def in_words(view: ProgressView, width: int) -> str:
    """Describes the progress in at most `width` characters, if the first part fits at all."""
    known = view.num_timesteps and view.num_steps <= view.num_timesteps  # whole updates are taken
    goal = f" of {count(view.num_timesteps or 0)}" if known else ""
    parts = [f"{count(view.num_steps)}{goal} steps"]
    if view.phase == "compiling":
        parts.insert(0, waited(view))
    if view.remaining is not None and view.phase != "done":
        parts.append(f"{duration(view.remaining)} left")
    elif view.elapsed:
        parts.append(duration(view.elapsed))
    if view.reward:
        parts.append(view.reward.partition(" at ")[0])
    if view.steps_per_second and view.phase != "done":
        parts.append(f"{count(view.steps_per_second)} steps/s")
    while len(parts) > 1 and len(" · ".join(parts)) > width:
        parts.pop()
    return " · ".join(parts)
