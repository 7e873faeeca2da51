"""Decides when episodes are recorded: pure logic, with the clock injected."""

import math

from brax_viser.runs.window import Window

MOST_ENVS = 16
"""Environments that are recorded at a time, of which some episodes are kept: `window.choose`."""

MOST_STEPS = 2_500
"""Steps of the first recording: two episodes of the usual 1,000, as it may begin within one."""

MOST_BYTES = 64 * 2**20
"""Memory for the steps of one recording: longer episodes are recorded of fewer environments."""


class Recorder:
    """Begins recordings at regular times, and ends each once it has its episodes."""

    def __init__(self, after: float):
        """Begins nothing yet.

        Args:
            after: s of training before the first recording.
        """
        self._after = after
        self._seen: int | None = None  # evaluations before the last recording; None: there is none
        self._next: float | None = None
        self._began, self._spent = -math.inf, 0.0
        self._most_steps = MOST_STEPS
        self.window: Window | None = None

    def update(
        self,
        now: float,
        every: float | None,
        evaluations: int,
        spent: float,
        share: float,
        *,
        training: bool,
    ) -> Window | None:
        """Begins a recording if one is due, or ends the one that is finished.

        Args:
            now: s, a clock that stands still while the training is held.
            every: s between the beginnings of two recordings, at least; None: after each evaluation
                there is one. The first does not wait for an evaluation.
            evaluations: number of evaluations so far.
            spent: s, total cost of recording so far.
            share: share of the training's time that it may take.
            training: whether a training is under way.

        Returns:
            The recording that has just been finished.
        """
        if not training:
            self._next = self.window = self._seen = None
            self._began = -math.inf
            return None
        if self._next is None:
            self._next = now + self._after
        if self.window is None:
            evaluated = every is not None or evaluations != self._seen
            if now >= max(self._next, self._began + (every or 0.0)) and evaluated:
                self._began, self._spent, self._seen = now, spent, evaluations
                self.window = Window(self._most_steps, MOST_ENVS, MOST_BYTES)
            return None
        if not self.window.finished:
            return None
        finished, self.window = self.window, None
        self._next = now + (spent - self._spent) / share
        return finished

    def found_none(self) -> None:
        """Makes the next recording twice as long: the last had no whole episode."""
        self._most_steps *= 2
