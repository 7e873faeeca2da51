"""What a page has yet to be sent, found without going through all that was ever sent.

viser numbers its messages and forgets those that newer ones have made pointless. A page goes
through the numbers one by one, from the first on, to find what is left. Robots that move are a
dozen numbers a frame, hundreds of millions in some weeks; a page that opens goes through them at
one go, and no other is sent anything meanwhile. Here it goes through what there is.

What a page that is too slow misses is seen on the way: newer messages have taken the place of those
that waited for it. It is sent the newest, and no other page is slower for it.

A page that receives faster than it draws would keep what it has not come to, without an end. It is
asked now and then whether it has come to what it was sent, by a message that pages answer in its
turn: one that reads a key of the page's local storage. One that is late is sent nothing until it
has answered, and the newest then.
"""

import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import viser

from brax_viser.compat import ViserLoop, viser_loop

log = logging.getLogger("brax_viser")

TAKING_SECONDS = 3.0
"""s over which is counted what a page takes."""

FEW = 30
"""Messages of which it is not said how many a page takes."""

ASKING_SECONDS = 0.1
"""How often a page is asked, at most, which answers at once."""

LATE_SECONDS = 0.5
"""How long after it was asked a page is sent nothing more. One that has taken longer is sent
nothing more at once, the next time: not more than a frame is on its way to it."""

GIVEN_UP_SECONDS = 60.0
"""How long an answer is waited for. Who has never given one is no page of viser's, and is waited
for no more; of others it is lost, as where a message before it could not be carried out."""

_ASKED = -1
"""In the place of a number, where the page is asked."""

_KEY = "brax_viser"
"""In a page's local storage. It is not there."""


def keep_openings_short(server: viser.ViserServer) -> "Pages | None":
    """Has pages go through what there is, from now on.

    Returns what is known of them; None where `compat.viser_loop` knows nothing of this viser. It
    keeps its own way then, and all works as it did.
    """
    loop = viser_loop(server)
    if loop is None:
        _say_that_it_is_left_alone(viser.__version__)
        return None
    pages = Pages(loop)
    if loop.answer is not None:

        def heard(client_id: int, answer: Any) -> None:
            if (queue := pages.queues.get(client_id)) is not None:
                queue.heard(answer.request_uuid)

        loop.server.register_handler(loop.answer, heard)

    def window_generator(client_id: int, *args: Any, **kwargs: Any) -> Any:
        queue = pages.queues[client_id] = _PageQueue(pages)
        return queue.window_generator(client_id, *args, **kwargs)

    loop.buffer.window_generator = window_generator
    return pages


@functools.cache
def _say_that_it_is_left_alone(version: str) -> None:
    """Once, however many viewers there are."""
    log.warning(
        "viser %s has not been tested with the way in which pages are sent what they miss: pages "
        "open the slower, the longer the viewer runs, and slow ones fall behind",
        version,
    )


@dataclass(eq=False)
class Pages:
    """How much of what they are told pages take. Used on viser's own loop alone."""

    loop: ViserLoop
    queues: "dict[int, _PageQueue]" = field(default_factory=dict)  # by client id
    clock: Callable[[], float] = time.monotonic

    def taken(self, now: float) -> dict[int, float]:
        """By client id, the share of the last seconds' messages that a page was sent, 0 to 1; the
        others had been overtaken. Pages of which that cannot be said, as they were told little, are
        left out.

        Args:
            now: s; it is asked several times a second.
        """
        found: dict[int, float] = {}
        for client, queue in list(self.queues.items()):
            counts = queue.counts
            missed = queue.missed + queue.overtaken()
            counts.append((now, queue.sent, missed))
            while counts[0][0] < now - TAKING_SECONDS:
                counts.popleft()
            _, sent, before = counts[0]
            sent, missed = queue.sent - sent, missed - before
            if sent + missed >= FEW:
                found[client] = sent / (sent + missed)
        return found


class _PageQueue:
    """What one page's loop, which is viser's own, sees in place of the buffer.

    To the loop messages are numbered without gaps, from zero. All else is the buffer's.
    """

    def __init__(self, pages: Pages):
        self.sent = self.missed = 0  # messages that there were for this page, or are gone
        self.counts: deque[tuple[float, int, int]] = deque()  # (s, sent, missed) of late
        self._pages, self._loop = pages, pages.loop
        self._buffer: Any = pages.loop.buffer
        self._can_be_asked = None not in (pages.loop.question, pages.loop.answer, pages.loop.move)
        # viser's own, called with this one for `self`.
        for name in ("window_generator", "_window_loop"):
            setattr(self, name, MethodType(getattr(pages.loop.buffer_class, name), self))
        self._waiting: deque[int] = deque()  # numbers in the buffer, in order
        self._last = self._seen = -1  # in the buffer: handed out or gone; looked at
        self._handed = 0  # how many were handed out
        self._replay: int | None = None  # how many there were when the page opened
        self._questions = itertools.count()
        self._question: str | None = None  # the one that has not been answered
        self._asked = -1e9  # s, when the last one was sent
        self._took = 0.0  # s, from the last question to its answer
        self._answers = False  # whether it ever has
        self._held_up = False  # whether it was late when it was looked at last
        self.message_from_id = self  # of which the loop calls `get`
        self.generator_cursors = _Cursors(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    @property
    def message_counter(self) -> int:
        """How many messages there are for this page, handed out or not."""
        if self._is_late():
            self._held_up = True
            return self._handed
        self._held_up = False
        if self._waiting and self._is_live:
            self._drop_overtaken()
        if not self._waiting:
            self._find()
        if self._replay is None:  # viser looks before it begins
            self._replay = len(self._waiting)
        return self._handed + len(self._waiting)

    def get(self, _: int, default: Any = None) -> Any:
        """The next message; `default` if a newer one has taken its place meanwhile."""
        self._handed += 1
        number = self._waiting.popleft()
        if number == _ASKED:
            return self._ask()
        self._last = number
        message = self._buffer.message_from_id.get(number)
        if message is None:
            self.missed += 1
            return default
        self.sent += 1
        return message

    def heard(self, question: str) -> None:
        """The page has come to where it was asked; on viser's loop."""
        if question == self._question:
            self._question, self._answers = None, True
            self._took = self._pages.clock() - self._asked
            self._buffer.message_event.set()  # what it is sent next waits for this

    def _ask(self) -> Any:
        self._question = f"{_KEY} {next(self._questions)}"
        self._asked = self._pages.clock()
        return self._loop.question(key=_KEY, request_uuid=self._question)

    def _is_due(self) -> bool:
        """Whether to ask behind what was found: what moves alone is worth it, for a page that is
        asked draws anew."""
        if not self._can_be_asked or self._question is not None or not self._waiting:
            return False
        if not self._is_live:
            return False
        if self._took < LATE_SECONDS and self._pages.clock() - self._asked < ASKING_SECONDS:
            return False
        known = self._buffer.message_from_id
        return any(type(known.get(number)) is self._loop.move for number in self._waiting)

    def _is_late(self) -> bool:
        if self._question is None:
            return False
        waited = self._pages.clock() - self._asked
        if waited > GIVEN_UP_SECONDS:
            if self._answers:  # the answer is lost: it is sent a frame, and asked anew
                self._question, self._took = None, waited
            return False
        return waited >= LATE_SECONDS or self._took >= LATE_SECONDS

    @property
    def _is_live(self) -> bool:
        """Whether it has been handed all that there was when it opened."""
        return self._replay is not None and self._handed >= self._replay

    def overtaken(self) -> int:
        """Messages that are gone, and not counted in `missed` yet because the page is late."""
        if not self._held_up:
            return 0
        with self._buffer.buffer_lock:
            known = self._buffer.message_from_id
            gone = sum(n != _ASKED and n not in known for n in self._waiting)
            new = self._buffer.message_counter - 1 - self._seen
            return gone + new - sum(n > self._seen for n in known)

    def _drop_overtaken(self) -> None:
        """What waits and is not there any more is not counted as there: viser's loop, which has
        long seen that there is something new, would wait for more."""
        with self._buffer.buffer_lock:
            known = self._buffer.message_from_id
            there = [n for n in self._waiting if n == _ASKED or n in known]
        self.missed += len(self._waiting) - len(there)
        self._waiting = deque(there)

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
        if self._is_due():
            self._waiting.append(_ASKED)


class _Cursors:
    """How far a page has come: viser keeps what any page has still to be told."""

    def __init__(self, queue: _PageQueue):
        self._queue = queue

    def __setitem__(self, client_id: int, _: int) -> None:
        self._queue._buffer.generator_cursors[client_id] = self._queue._last

    def pop(self, client_id: int, default: Any = None) -> Any:
        self._queue._pages.queues.pop(client_id, None)
        return self._queue._buffer.generator_cursors.pop(client_id, default)
