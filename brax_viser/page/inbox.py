"""What is asked for in the page, in the order in which it is."""

from collections import deque
from collections.abc import Callable

from brax_viser.page.state import PageState


class Inbox:
    """Actions that wait for the page's loop."""

    def __init__(self, state: PageState, wake: Callable[[], None]):
        """Is empty.

        Args:
            state: is told why an action was refused.
            wake: called on any thread when an action has come.
        """
        self._state, self._wake = state, wake
        self._actions: deque[Callable[[], object]] = deque()  # appended by any thread

    def __len__(self) -> int:
        return len(self._actions)

    def enqueue(self, action: Callable[[], object]) -> None:
        """Called on any thread: something is to be done."""
        self._actions.append(action)
        self._wake()

    def carry_out(self) -> None:
        """On viser's loop: does all that was asked for. A `ValueError` says why something cannot be
        done: it becomes the page's notice, and is no fault."""
        while self._actions:
            try:
                self._actions.popleft()()
            except ValueError as error:
                self._state.notice = str(error)
