"""Runs a sandbox by the clock, on a separate thread, which also carries out commands."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from brax_viser.sandbox.simulation import Pose, Sandbox

Command = Callable[[Sandbox], Any]

LATE = 0.25
"""Largest lag behind the clock, s, that is made up for. A longer lag is dropped: the robot must not
rush after the seconds that compiling takes."""


class SandboxThread:
    """Steps a sandbox at the robot's speed, or a multiple of it.

    `start` is called once; any thread may call the rest.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes over the sandbox: from `start` on, only this thread may call its methods.

        Args:
            sandbox: the sandbox to run.
            speed: robot seconds per second; 0 pauses it.
            clock: s, monotonic.
        """
        self.speed = speed
        self.fault: BaseException | None = None  # the error that ended the thread, if any
        # Whether the episode would have ended since the start: an environment says so at each step
        # for itself, and a robot that has fallen may get up again.
        self.ended = sandbox.pose.done
        self._sandbox, self._clock = sandbox, clock
        self._pose = sandbox.pose
        self._commands: queue.SimpleQueue[tuple[Command, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="brax_viser sandbox", daemon=True)

    @property
    def pose(self) -> Pose:
        """The newest pose."""
        return self._pose

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Ends the thread after its current step or command, and waits for that.

        Args:
            timeout: s, the longest wait; None: no limit.
        """
        self.end()
        # A command run on this very thread may be closing the viewer.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def end(self) -> None:
        """Ends the thread like `close`, without waiting."""
        self._commands.put(None)

    def do(self, command: Command) -> Future:
        """Has the thread call `command(sandbox)` before the next step.

        Returns:
            A future of its result, or of the ValueError that it raises: an invalid request doesn't
            end the thread. Never done if the thread has ended: see `fault`.
        """
        future: Future = Future()
        self._commands.put((command, future))
        return future

    def set_speed(self, speed: float) -> Future:
        """Sets the speed in robot seconds per second; 0 pauses the robot.

        Returns:
            A future that is done once the thread uses the speed.

        Raises:
            ValueError: `speed` is negative or NaN.
        """
        if not speed >= 0:
            raise ValueError(f"speed={speed}: must be 0 or more")
        self.speed = speed
        return self.do(lambda sandbox: None)  # wakes the thread if its next step is far off

    def _run(self) -> None:
        try:
            self._loop()
        # Any kind of error: readers of `pose` must learn why no more poses come.
        except Exception as fault:
            self.fault = fault
            raise

    def _loop(self) -> None:
        sandbox, last = self._sandbox, self._clock()
        while True:
            speed = self.speed
            moving = speed > 0 and sandbox.trouble is None
            due = last + sandbox.dt / speed if moving else float("inf")
            if (now := self._clock()) < due:
                try:
                    told = self._commands.get(timeout=due - now if moving else None)
                except queue.Empty:
                    continue
                if told is None:
                    return
                self._obey(*told)
                if not moving:
                    last = self._clock()
                continue
            self._show(sandbox.step())
            last = max(due, self._clock() - LATE)
            while not self._commands.empty():
                if (told := self._commands.get()) is None:
                    return
                self._obey(*told)

    def _obey(self, command: Command, future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        result, refused = None, None
        try:
            result = command(self._sandbox)
        except ValueError as error:
            refused = error
        self._show(self._sandbox.pose)  # before the future is done and a callback reads it
        if refused is not None:
            future.set_exception(refused)
        else:
            future.set_result(result)

    def _show(self, pose: Pose) -> None:
        continues = pose.time >= self._pose.time  # else the robot has been put back
        self.ended, self._pose = pose.done or (self.ended and continues), pose
