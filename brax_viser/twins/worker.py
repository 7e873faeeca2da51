"""Runs the twin worker: a thread beside the training that adds twins to frames."""

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
"""Span over which the twins' share of the time is averaged."""

K = TypeVar("K")
"""Key of a sequence of frames: those of one process and one rollout."""

MOST_AT_ONCE = 32
"""Steps per batch. More would hardly cost less each, and the first would wait long for the last."""


@dataclass(frozen=True)
class TwinSettings:
    """The user's settings for the twins."""

    every: int | None = None  # steps after which each twin restarts; None: only where it must
    limit: float = DRIFT_LIMIT  # m, see `twins.DRIFT_LIMIT`
    as_made: bool = False  # use the model as in its file, not as changed by the training
    beside: bool = False  # drawn beside the robots, not on them


@dataclass(frozen=True)
class Simulated:
    """The model to simulate, and how it is stepped."""

    model: mujoco.MjModel
    substeps: int  # per environment step
    lags: bool  # see `twins.Twins`


@dataclass(frozen=True, eq=False)
class _Job(Generic[K]):
    key: K  # sequence that the frame belongs to
    frame: Frame
    rows: Sequence[int]  # rows of the environments that have a twin
    simulated: Simulated
    own: Mapping[int, Mapping[str, np.ndarray]]
    settings: TwinSettings
    restarts: int  # number of restarts requested before it
    ready: float  # s, until when it may wait for others to be stepped with it
    until: float  # s, deadline after which it is returned without twins

    def goes_with(self, other: "_Job[K]") -> bool:
        """Whether both can be computed at once, as steps of the same twins."""
        mine, its = self.frame.env_index, other.frame.env_index
        return (
            self.key is other.key
            and self.simulated == other.simulated
            and self.own is other.own
            and (self.settings, self.restarts) == (other.settings, other.restarts)
            and self.rows == other.rows
            and (mine is its or np.array_equal(mine, its))
        )


@dataclass(frozen=True)
class TwinCost:
    """The time that the twins take, over the last seconds."""

    share: float = 0.0  # of wall-clock time, 0 to 1
    step_seconds: float = 0.0  # s per step of all twins together
    skipped: float = 0.0  # share of the steps returned without twins, 0 to 1


class TwinWorker(Generic[K]):
    """Adds ghosts to frames, in the order in which the frames come.

    The viewer calls `start` and `close`, the page's loop the rest. The thread waits for MuJoCo
    without holding the interpreter's lock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Prepares the thread, which `start` starts.

        Args:
            clock: s, monotonic.
        """
        self.fault: str | None = None
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[_Job[K]] = deque()
        self._done: deque[tuple[K, Frame]] = deque()
        self._pending: dict[K, int] = {}
        self._restarts = 0
        self._closed = False
        self._idle = False  # whether the thread waits with an empty queue
        # (s at the start, s it took, steps taken, steps skipped)
        self._log: deque[tuple[float, float, int, int]] = deque()
        self._twins: dict[K, tuple[Simulated, int, Twins]] = {}  # used only by the thread
        self._gone: set[K] = set()  # keys whose twins must end
        self._thread = threading.Thread(target=self._run, name="brax_viser twins", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and drops the frames that wait."""
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
        """Queues a frame; `take` returns it, with a ghost if there was time.

        An idle thread is only woken by `go`: otherwise it would step the first of several frames
        without the others, and they cost less together.

        Args:
            key: the sequence that the frame belongs to.
            frame: with coordinates, if there are any rows.
            rows: rows of the environments that have a twin; if empty, the frame is only passed
                through, in order.
            simulated: the model to step.
            own: by environment, the fields in which its model differs.
            settings: of the twins.
            patience: s that it may wait for its turn; after that it is returned without a ghost.
            leisure: s that it may wait for other frames, as they cost less together.
        """
        with self._changed:
            now = self._clock()
            ready, until = now + leisure, now + patience
            self._waiting.append(
                _Job(key, frame, rows, simulated, own, settings, self._restarts, ready, until)
            )
            self._pending[key] = self._pending.get(key, 0) + 1

    def go(self) -> None:
        """Wakes the thread for the queued frames if it is idle or a full batch waits."""
        with self._changed:
            if self._waiting and (self._idle or len(self._waiting) >= MOST_AT_ONCE):
                self._changed.notify_all()

    def take(self) -> list[tuple[K, Frame]]:
        """Returns the finished frames: (key, frame), in order."""
        with self._changed:
            done = list(self._done)
            self._done.clear()
            for key, _ in done:
                self._pending[key] -= 1
                if not self._pending[key]:
                    del self._pending[key]
            return done

    def pending(self, key: K) -> bool:
        """Whether any frame of a key has not been taken back yet."""
        return key in self._pending

    @property
    def busy(self) -> bool:
        """Whether any frame has not been taken back yet."""
        return bool(self._pending)

    def restart(self) -> None:
        """Has all twins restart from their environments' states in the next frame sent."""
        with self._changed:
            self._restarts += 1

    def forget(self, key: K) -> None:
        """Ends a key's twins, which have threads and memory of their own, once its queued frames
        are done. Frames sent later make new twins."""
        with self._changed:
            self._gone.add(key)
            self._changed.notify_all()

    def cost(self) -> TwinCost:
        """Returns the twins' cost over the last `COST_SECONDS`."""
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
        """Returns the keys whose twins must end now. The caller holds the lock."""
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
            # Don't ring for the page's loop: see `mailbox.Mailbox.put`.
            self._done.extend((jobs[0].key, frame) for frame in frames)

    def _next(self) -> list[_Job[K]] | None:
        """Waits for work. Returns the jobs to compute at once, in order; none, if there are only
        twins to end; None, if the worker is closed."""
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
                # Frames past their deadline are returned at once, apart from those still in time.
                if not waiting[0].goes_with(jobs[0]) or jobs[0].until < now <= waiting[0].until:
                    break
                jobs.append(waiting.popleft())
            return jobs

    def _followed(self, jobs: Sequence[_Job[K]]) -> list[Frame]:
        frames = [job.frame for job in jobs]
        try:
            ghosts = self._ghosts(jobs[0], frames)
            return [replace(x, ghost=ghost) for x, ghost in zip(frames, ghosts, strict=True)]
        # Catch everything: the robots go on without twins, and the page says so.
        except Exception as error:
            log.error("twins stopped, all else goes on", exc_info=error)
            self.fault = f"{type(error).__name__}: {error}"
            return frames

    def _ghosts(self, job: _Job[K], frames: Sequence[Frame]) -> list[Ghost]:
        simulated, restarts, twins = self._twins.get(job.key, (None, 0, None))
        if twins is None or simulated != job.simulated:
            if twins is not None:
                twins.close()
            made = job.simulated
            twins = Twins(made.model, made.substeps, lags=made.lags)
            restarts = job.restarts
        if restarts != job.restarts:
            twins.restart()
        self._twins[job.key] = job.simulated, job.restarts, twins
        twins.every, twins.limit = job.settings.every, job.settings.limit
        return twins.follow(frames, job.rows, job.own)
