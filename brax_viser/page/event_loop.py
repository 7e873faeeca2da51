"""Runs functions of any thread on viser's event loop, the only thread that writes its handles."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import viser

from brax_viser.host.state import SharedState

T = TypeVar("T")


class EventLoop:
    """Brings work of other threads to viser's loop. All methods may be called on any thread.

    Writing viser's handles on any other thread is a race: its buffer then sets an `asyncio.Event`,
    which is not thread-safe and now and then raises.
    """

    def __init__(self, server: viser.ViserServer, shared: SharedState):
        """Starts nothing.

        Args:
            server: the server that the loop belongs to.
            shared: the shared state: once the viewer is closed, the loop may be gone.
        """
        self._loop, self._shared = server.get_event_loop(), shared
        # `python -X dev` would print a warning for each of our tasks that takes 0.1 s.
        self._loop.set_debug(False)

    def is_current(self) -> bool:
        """Whether this is called on the loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def made(self, make: Callable[[], T]) -> T:
        """Calls a function on the loop, waits for it, and returns its result."""
        return asyncio.run_coroutine_threadsafe(_call(make), self._loop).result()

    def now(self, what: Callable[[], object]) -> None:
        """Calls a function on the loop and waits for it. On another thread than the loop's, does
        nothing if the viewer is closed."""
        if self.is_current():
            what()
            return
        if self._shared.control.closed:
            return
        done = asyncio.run_coroutine_threadsafe(_call(what), self._loop)
        while not (done.done() or self._shared.control.closed):
            concurrent.futures.wait([done], timeout=0.1)
        if done.done():
            done.result()

    def soon(self, what: Callable[[], object]) -> None:
        """Schedules a function on the loop without waiting for it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what)

    def start(self, task: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        """Starts a task on the loop."""
        return asyncio.run_coroutine_threadsafe(task, self._loop)


async def _call(what: Callable[[], T]) -> T:
    return what()
