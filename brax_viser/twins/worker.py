"""The thread beside the training on which frames get their twins."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import mujoco
import numpy as np

from brax_viser.process import lower_priority
from brax_viser.records.frame import Frame, Ghost
from brax_viser.twins.twins import DRIFT_LIMIT, Twins

log = logging.getLogger("brax_viser")

COST_SECONDS = 20.0
"""Span over which it is told what share of the time twins take."""

K = TypeVar("K")
"""Of which frames follow each other: of one process and one rollout."""

MOST_AT_ONCE = 32
"""Steps. More would hardly be cheaper each, and the first would wait long for the last."""


@dataclass(frozen=True)
class TwinSettings:
    """What a person wants of the twins."""

    every: int | None = None  # steps after which each starts anew; None: only where it must
    limit: float = DRIFT_LIMIT  # m, see `twin.DRIFT_LIMIT`
    as_made: bool = False  # stepped as the model's file says, not as the training has changed it
    beside: bool = False  # drawn beside the robots, not on them


@dataclass(frozen=True)
class Simulated:
    """What is stepped."""

    model: mujoco.MjModel
    substeps: int  # per environment step
    lags: bool  # see `twin.Twins`


@dataclass(frozen=True, eq=False)
class _Job(Generic[K]):
    key: K  # that the frame is of; frames of one are steps of the same environments
    frame: Frame
    rows: Sequence[int]  # who has a twin
    simulated: Simulated
    own: Mapping[int, Mapping[str, np.ndarray]]
    settings: TwinSettings
    anew: int  # how often it was asked for a new start
    ready: float  # s, until when it may wait for others to be taken with it
    until: float  # s, when it goes on without

    def goes_with(self, other: "_Job[K]") -> bool:
        """Whether both can be taken at once, as steps of the same twins."""
        mine, its = self.frame.env_index, other.frame.env_index
        return (
            self.key is other.key
            and self.simulated == other.simulated
            and self.own is other.own
            and (self.settings, self.anew) == (other.settings, other.anew)
            and self.rows == other.rows
            and (mine is its or np.array_equal(mine, its))
        )


@dataclass(frozen=True)
class TwinCost:
    """What the twins take, over the last seconds."""

    share: float = 0.0  # of wall-clock, 0 to 1
    step_seconds: float = 0.0  # s per step, of all twins together
    skipped: float = 0.0  # share of the steps that had to go on without, 0 to 1


class TwinWorker(Generic[K]):
    """Gives frames their ghosts, in the order in which they come.

    `start` and `close` are called by the viewer, all else by the page's loop. The
    thread waits for MuJoCo without holding the interpreter's lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Does nothing yet.

        Args:
            clock: s.
        """
        self.fault: str | None = None
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[_Job[K]] = deque()
        self._done: deque[tuple[K, Frame]] = deque()
        self._pending: dict[K, int] = {}
        self._anew = 0
        self._closed = False
        self._idle = False  # whether the thread waits for anything at all
        # (s when, s it took, steps that were taken, steps that had to go on without)
        self._log: deque[tuple[float, float, int, int]] = deque()
        self._twins: dict[K, tuple[Simulated, int, Twins]] = {}  # used by the thread alone
        self._gone: set[K] = set()  # whose twins are to end
        self._thread = threading.Thread(target=self._run, name="brax_viser twins", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def send(
        self,
        key: K,
        frame: Frame,
        rows: Sequence[int],
        simulated: Simulated,
        own: Mapping[int, Mapping[str, np.ndarray]],
        settings: TwinSettings,
        patience: float,
        leisure: float = 0.0,
    ) -> None:
        """Hands a frame over; it comes back from `take`, with a ghost if there was time.

        A thread that has nothing to do is not woken before `go`: it would take the first of
        several without the others, which cost less together.

        Args:
            key: whose frame it is.
            frame: with coordinates, if there are any rows.
            rows: which of its environments have a twin; none: it is but handed through, behind
                those that came before it.
            simulated: what is stepped.
            own: by environment, in what its model differs.
            settings: of the twins.
            patience: s for which it may wait for its turn; then it goes on without a ghost.
            leisure: s for which it may wait for others, which cost less together.
        """
        with self._changed:
            now = self._clock()
            ready, until = now + leisure, now + patience
            self._waiting.append(
                _Job(key, frame, rows, simulated, own, settings, self._anew, ready, until)
            )
            self._pending[key] = self._pending.get(key, 0) + 1

    def go(self) -> None:
        """Sets the thread going on what was handed over."""
        with self._changed:
            if self._waiting and (self._idle or len(self._waiting) >= MOST_AT_ONCE):
                self._changed.notify_all()

    def take(self) -> list[tuple[K, Frame]]:
        """What is ready: (key, frame), in order."""
        with self._changed:
            done = list(self._done)
            self._done.clear()
            for key, _ in done:
                self._pending[key] -= 1
                if not self._pending[key]:
                    del self._pending[key]
            return done

    def pending(self, key: K) -> bool:
        """Whether frames of it have not been taken back yet."""
        return key in self._pending

    @property
    def busy(self) -> bool:
        """Whether any frame has not been taken back yet."""
        return bool(self._pending)

    def start_anew(self) -> None:
        """With the next frame all twins start from where their environments are then."""
        with self._changed:
            self._anew += 1

    def forget(self, key: K) -> None:
        """Ends a key's twins, which have threads and memory of their own, once all that was handed
        over is taken. They start anew with what is handed over later."""
        with self._changed:
            self._gone.add(key)
            self._changed.notify_all()

    def cost(self) -> TwinCost:
        """What it takes."""
        now = self._clock()
        with self._changed:
            while self._log and self._log[0][0] < now - COST_SECONDS:
                self._log.popleft()
            entries = list(self._log)
        took = sum(seconds for _, seconds, _, _ in entries)
        steps, skipped = (sum(entry[column] for entry in entries) for column in (2, 3))
        span = min(max(now - entries[0][0], 0.1), COST_SECONDS) if entries else 1.0
        return TwinCost(
            share=took / span,
            step_seconds=took / steps if steps else 0.0,
            skipped=skipped / (steps + skipped) if entries else 0.0,
        )

    def _run(self) -> None:
        lower_priority()
        while (jobs := self._next()) is not None:
            if jobs:
                self._take_on(jobs)
            with self._changed:
                over = self._over()
                self._gone -= over
            for key in over & self._twins.keys():
                self._twins.pop(key)[2].close()
        for _, _, twins in self._twins.values():
            twins.close()

    def _over(self) -> set[K]:
        """Lanes whose twins are to end now; locked."""
        return self._gone - {job.key for job in self._waiting} if self._gone else self._gone

    def _take_on(self, jobs: Sequence[_Job[K]]) -> None:
        frames = [job.frame for job in jobs]
        if jobs[0].rows and self.fault is None:
            start = self._clock()
            late = start > jobs[0].until
            if not late:
                frames = self._followed(jobs)
            took = 0.0 if late else self._clock() - start
            with self._changed:
                self._log.append((start, took, len(jobs) * (not late), len(jobs) * late))
        with self._changed:
            # The publisher is not rung for: see `mailbox.Mailbox.put`.
            self._done.extend((jobs[0].key, frame) for frame in frames)

    def _next(self) -> list[_Job[K]] | None:
        """Waits for something to do: those that are taken at once, in order; none, where there are
        but twins to end; None: it is closed."""
        waiting = self._waiting
        with self._changed:
            while not self._closed:
                if self._over():
                    return []
                wait = None
                if waiting:
                    wait = waiting[0].ready - self._clock() if waiting[0].rows else 0.0
                    if wait <= 0 or len(waiting) >= MOST_AT_ONCE:
                        break
                self._idle = wait is None
                self._changed.wait(wait)
                self._idle = False
            if self._closed:
                return None
            jobs = [waiting.popleft()]
            now = self._clock()
            while waiting and len(jobs) < MOST_AT_ONCE:
                # Who is late goes on without, and does not wait for those who are not.
                if not waiting[0].goes_with(jobs[0]) or jobs[0].until < now <= waiting[0].until:
                    break
                jobs.append(waiting.popleft())
            return jobs

    def _followed(self, jobs: Sequence[_Job[K]]) -> list[Frame]:
        frames = [job.frame for job in jobs]
        try:
            ghosts = self._ghosts(jobs[0], frames)
            return [replace(x, ghost=ghost) for x, ghost in zip(frames, ghosts, strict=True)]
        # The robots go on without twins, whatever it is; the page says so.
        except Exception as error:
            log.error("twins stopped, all else goes on", exc_info=error)
            self.fault = f"{type(error).__name__}: {error}"
            return frames

    def _ghosts(self, job: _Job[K], frames: Sequence[Frame]) -> list[Ghost]:
        simulated, anew, twins = self._twins.get(job.key, (None, 0, None))
        if twins is None or simulated != job.simulated:
            if twins is not None:
                twins.close()
            made = job.simulated
            twins = Twins(made.model, made.substeps, lags=made.lags)
            anew = job.anew
        if anew != job.anew:
            twins.start_anew()
        self._twins[job.key] = job.simulated, job.anew, twins
        twins.every, twins.limit = job.settings.every, job.settings.limit
        return twins.follow(frames, job.rows, job.own)
