"""Viser's event loop, on which alone its handles are written."""

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import viser

from brax_viser.host.state import SharedState

T = TypeVar("T")


class EventLoop:
    """Brings work of other threads to viser's loop. All methods are called on any thread.

    Writing viser's handles from any other thread is a race: its buffer sets an `asyncio.Event` at
    once, which raises now and then while the loop is looking at it.
    """

    def __init__(self, server: viser.ViserServer, shared: SharedState):
        """Starts nothing.

        Args:
            server: whose loop it is.
            shared: tells when the viewer is closed, and the loop may be gone.
        """
        self._loop, self._shared = server.get_event_loop(), shared

    def is_current(self) -> bool:
        """Whether this is called on the loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def made(self, make: Callable[[], T]) -> T:
        """What a function returns that is called on the loop."""
        return asyncio.run_coroutine_threadsafe(_call(make), self._loop).result()

    def now(self, what: Callable[[], object]) -> None:
        """Does something on the loop and waits for it, unless the viewer is closed."""
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
        """Does something on the loop, and does not wait for it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what)

    def start(self, task: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
        """Starts a task on the loop."""
        return asyncio.run_coroutine_threadsafe(task, self._loop)


async def _call(what: Callable[[], T]) -> T:
    return what()
