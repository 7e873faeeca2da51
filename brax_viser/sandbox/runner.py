"""A sandbox that runs by the clock, in a thread of its own, and does what it is told meanwhile."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from brax_viser.sandbox.simulation import Pose, Sandbox

Command = Callable[[Sandbox], Any]

LATE = 0.25
"""s that it may lag behind the clock and make up for. What is more is let go: after the seconds
that compiling takes, a robot is not to rush."""


class SandboxThread:
    """Steps a sandbox at the robot's speed, or a multiple of it.

    `start` is called once; all else by any thread.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes the sandbox over: from `start` on, nobody else may call it.

        Args:
            sandbox: to run.
            speed: seconds of the robot's per second; 0 holds it still.
            clock: s, that only goes forward.
        """
        self.speed = speed
        self.fault: BaseException | None = None  # why the thread has ended, if not by `close`
        self._sandbox, self._clock = sandbox, clock
        self._pose = sandbox.pose
        self._commands: queue.SimpleQueue[tuple[Command, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="brax_viser sandbox", daemon=True)

    @property
    def pose(self) -> Pose:
        """The newest."""
        return self._pose

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Ends it, after the step or the command that it is at, and waits for that.

        Args:
            timeout: s to wait at most; None waits for as long as it takes.
        """
        self.end()
        # It may be what closes the viewer, by a command.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def end(self) -> None:
        """The same without waiting."""
        self._commands.put(None)

    def do(self, command: Command) -> Future:
        """Has the thread call `command(sandbox)` before the next step.

        Returns:
            Of what it returns; or of the ValueError that it raises, for what a person may not ask
            is no reason to end. Never done if the thread has ended: see `fault`.
        """
        future: Future = Future()
        self._commands.put((command, future))
        return future

    def set_speed(self, speed: float) -> Future:
        """Seconds of the robot's per second, from now on; 0 holds it still.

        Returns:
            Done once the thread knows.

        Raises:
            ValueError: it is negative.
        """
        if not speed >= 0:
            raise ValueError(f"speed={speed}: must be 0 or more")
        self.speed = speed
        return self.do(lambda sandbox: None)  # it may be waiting for a step that is far off

    def _run(self) -> None:
        try:
            self._loop()
        # Of whatever kind: who asks for poses must learn why there are no more.
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
            self._pose = sandbox.step()
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
        self._pose = self._sandbox.pose  # before anybody hears that it is done, and looks
        if refused is not None:
            future.set_exception(refused)
        else:
            future.set_result(result)
