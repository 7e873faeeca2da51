"""What a page has yet to be sent, found without going through all that was ever sent.

viser numbers its messages and forgets those that newer ones have made pointless. A page goes
through the numbers one by one, from the first on, to find what is left. Robots that move are a
dozen numbers a frame, hundreds of millions in some weeks; a page that opens goes through them at
one go, and no other is sent anything meanwhile. Here it goes through what there is.
"""

import logging
from collections import deque
from typing import Any

import viser
from viser.infra._async_message_buffer import AsyncMessageBuffer

log = logging.getLogger("brax_viser")

_LOOP = ("window_generator", "_window_loop")
_STATE = ("message_from_id", "message_counter", "generator_cursors", "buffer_lock")


def keep_openings_short(server: viser.ViserServer) -> bool:
    """Has pages go through what there is. Returns whether that was possible: where viser is built
    in another way than the one this was written for, it keeps its own, and all works as it did."""
    buffer = getattr(getattr(server, "_websock_server", None), "_broadcast_buffer", None)
    if not all(hasattr(AsyncMessageBuffer, name) for name in _LOOP) or not all(
        hasattr(buffer, name) for name in _STATE
    ):
        log.info("viser %s: pages open the slower, the longer the viewer runs", viser.__version__)
        return False

    def window_generator(*args: Any, **kwargs: Any) -> Any:
        return _Backlog(buffer).window_generator(*args, **kwargs)

    buffer.window_generator = window_generator  # type: ignore[union-attr]
    return True


class _Backlog:
    """What one page's loop, which is viser's own, sees in place of the buffer.

    To the loop messages are numbered without gaps, from zero. All else is the buffer's.
    """

    window_generator = AsyncMessageBuffer.window_generator
    _window_loop = AsyncMessageBuffer._window_loop

    def __init__(self, buffer: Any):
        self._buffer = buffer
        self._waiting: deque[int] = deque()  # numbers in the buffer, in order
        self._last = -1  # in the buffer, of what has been handed out or is gone
        self._handed = 0  # how many were handed out
        self.message_from_id = self  # of which the loop calls `get`
        self.generator_cursors = _Cursors(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    @property
    def message_counter(self) -> int:
        """How many messages there are for this page, handed out or not."""
        if not self._waiting:
            self._find()
        return self._handed + len(self._waiting)

    def get(self, _: int, default: Any = None) -> Any:
        """The next message; `default` if a newer one has taken its place meanwhile."""
        self._handed += 1
        self._last = self._waiting.popleft()
        return self._buffer.message_from_id.get(self._last, default)

    def _find(self) -> None:
        buffer = self._buffer
        with buffer.buffer_lock:
            newest, known = buffer.message_counter - 1, buffer.message_from_id
            # Mostly a frame has come, and there are many other messages.
            if newest - self._last < len(known):
                self._waiting.extend(n for n in range(self._last + 1, newest + 1) if n in known)
            else:
                self._waiting.extend(sorted(n for n in known if n > self._last))
            if not self._waiting:
                self._last = newest


class _Cursors:
    """How far a page has come: viser keeps what any page has still to be told."""

    def __init__(self, backlog: _Backlog):
        self._backlog = backlog

    def __setitem__(self, client_id: int, _: int) -> None:
        self._backlog._buffer.generator_cursors[client_id] = self._backlog._last

    def pop(self, client_id: int, default: Any = None) -> Any:
        return self._backlog._buffer.generator_cursors.pop(client_id, default)
