"""What a page has yet to be sent, found without going through all that was ever sent.

viser numbers its messages and forgets those that newer ones have made pointless. A page goes
through the numbers one by one, from the first on, to find what is left. Robots that move are a
dozen numbers a frame, hundreds of millions in some weeks; a page that opens goes through them at
one go, and no other is sent anything meanwhile. Here it goes through what there is.

What a page that is too slow misses is seen on the way: newer messages have taken the place of those
that waited for it. It is sent the newest, and no other page is slower for it.
"""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import viser
from viser.infra._async_message_buffer import AsyncMessageBuffer

log = logging.getLogger("brax_viser")

_LOOP = ("window_generator", "_window_loop")
_STATE = ("message_from_id", "message_counter", "generator_cursors", "buffer_lock")


TAKING_SECONDS = 3.0
"""s over which is counted what a page takes."""

FEW = 30
"""Messages of which it is not said how many a page takes."""


def keep_openings_short(server: viser.ViserServer) -> "Pages | None":
    """Has pages go through what there is, from now on.

    Returns what is known of them; None where viser is built in another way than the one that this
    was written for. It keeps its own then, and all works as it did.
    """
    buffer: Any = getattr(getattr(server, "_websock_server", None), "_broadcast_buffer", None)
    if not all(hasattr(AsyncMessageBuffer, name) for name in _LOOP) or not all(
        hasattr(buffer, name) for name in _STATE
    ):
        log.info("viser %s: pages open the slower, the longer the viewer runs", viser.__version__)
        return None
    pages = Pages()

    def window_generator(client_id: int, *args: Any, **kwargs: Any) -> Any:
        backlog = pages.backlogs[client_id] = _Backlog(buffer, pages)
        return backlog.window_generator(client_id, *args, **kwargs)

    buffer.window_generator = window_generator
    return pages


@dataclass(eq=False)
class Pages:
    """How much of what they are told pages take. Used on viser's own loop alone."""

    backlogs: "dict[int, _Backlog]" = field(default_factory=dict)  # by client id

    def taken(self, now: float) -> dict[int, float]:
        """By client id, the share of the last seconds' messages that a page was sent, 0 to 1; the
        others had been overtaken. Pages of which that cannot be said, as they were told little or
        ask for nothing (a tab that is hidden), are left out.

        Args:
            now: s; it is asked several times a second.
        """
        found: dict[int, float] = {}
        for client, backlog in list(self.backlogs.items()):
            counts = backlog.counts
            counts.append((now, backlog.sent, backlog.missed))
            while counts[0][0] < now - TAKING_SECONDS:
                counts.popleft()
            _, sent, missed = counts[0]
            sent, missed = backlog.sent - sent, backlog.missed - missed
            if sent + missed >= FEW:
                found[client] = sent / (sent + missed)
        return found


class _Backlog:
    """What one page's loop, which is viser's own, sees in place of the buffer.

    To the loop messages are numbered without gaps, from zero. All else is the buffer's.
    """

    window_generator = AsyncMessageBuffer.window_generator
    _window_loop = AsyncMessageBuffer._window_loop

    def __init__(self, buffer: Any, pages: Pages):
        self.sent = self.missed = 0  # messages that there were for this page, or are gone
        self.counts: deque[tuple[float, int, int]] = deque()  # (s, sent, missed) of late
        self._buffer, self._pages = buffer, pages
        self._waiting: deque[int] = deque()  # numbers in the buffer, in order
        self._last = self._seen = -1  # in the buffer: handed out or gone; looked at
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
        message = self._buffer.message_from_id.get(self._last)
        if message is None:
            self.missed += 1
            return default
        self.sent += 1
        return message

    def _find(self) -> None:
        buffer = self._buffer
        with buffer.buffer_lock:
            newest, known = buffer.message_counter - 1, buffer.message_from_id
            # Mostly a frame has come, and there are many other messages.
            if newest - self._last < len(known):
                self._waiting.extend(n for n in range(self._last + 1, newest + 1) if n in known)
            else:
                self._waiting.extend(sorted(n for n in known if n > self._last))
            if self._last >= 0:  # what was before it opened is none of its concern
                self.missed += newest - self._seen - len(self._waiting)
            self._seen = newest
            if not self._waiting:
                self._last = newest


class _Cursors:
    """How far a page has come: viser keeps what any page has still to be told."""

    def __init__(self, backlog: _Backlog):
        self._backlog = backlog

    def __setitem__(self, client_id: int, _: int) -> None:
        self._backlog._buffer.generator_cursors[client_id] = self._backlog._last

    def pop(self, client_id: int, default: Any = None) -> Any:
        self._backlog._pages.backlogs.pop(client_id, None)
        return self._backlog._buffer.generator_cursors.pop(client_id, default)
