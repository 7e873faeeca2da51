"""Queues the actions asked for in the page until viser's loop carries them out."""

from collections import deque
from collections.abc import Callable

from brax_viser.page.state import PageState


class Inbox:
    """Actions that wait for the page's loop."""

    def __init__(self, state: PageState, wake: Callable[[], None]):
        """Starts empty.

        Args:
            state: gets a notice when an action is refused.
            wake: called on any thread when an action has been added.
        """
        self._state, self._wake = state, wake
        self._refusal: str | None = None  # the notice of the last action, if it was refused
        self._actions: deque[Callable[[], object]] = deque()  # appended by any thread

    def __len__(self) -> int:
        return len(self._actions)

    def enqueue(self, action: Callable[[], object]) -> None:
        """Adds an action, and wakes the loop. Called on any thread."""
        self._actions.append(action)
        self._wake()

    def carry_out(self) -> None:
        """Calls all waiting actions, on viser's loop. A `ValueError` means that an action cannot be
        done: its message becomes the page's notice, until another one can."""
        while self._actions:
            try:
                self._actions.popleft()()
            except ValueError as error:
                self._state.notice = self._refusal = str(error)
            else:
                if self._refusal is not None and self._state.notice == self._refusal:
                    self._state.notice = None
                self._refusal = None
