"""Finds the messages that a page has yet to be sent, and holds them back from pages that lag.

viser numbers its messages and drops those that newer ones supersede. For a page that opens, it
tries all numbers from the first one on to find the messages that are left. Moving robots use up a
dozen numbers a frame, hundreds of millions in a few weeks, and no page is sent anything while viser
goes through them. This module goes through the messages that are left instead.

A slow page skips messages that are superseded while they wait for it: it is sent the newest, and
does not slow other pages down. Skipped messages are counted, to report how much a page takes.

A page that receives faster than it draws would queue messages without limit. Such pages are
detected by a question now and then, which a page answers in order with the other messages: a
request to read a key of its local storage. A late page is sent nothing until it has answered, and
then the newest.
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
"""s: span over which the messages that a page takes are counted."""

FEW = 30
"""Messages in that span below which no share is reported."""

ASKING_SECONDS = 0.1
"""Shortest time between two questions to a page that answers at once."""

LATE_SECONDS = 0.5
"""Time without an answer after which a page is sent nothing more. If its last answer took longer,
it is sent nothing from the next question on, so that only one frame is on its way to it."""

GIVEN_UP_SECONDS = 60.0
"""Timeout for an answer. A client that has never answered is not a viser page, and is not asked
again; otherwise the answer counts as lost (a message before it may have failed)."""

_ASKED = -1
"""Stands for a question among the numbers of waiting messages."""

_KEY = "brax_viser"
"""The key that questions read from a page's local storage; it does not exist there."""


def keep_openings_short(server: viser.ViserServer) -> "Pages | None":
    """Makes the server send its messages through a `_PageQueue` per page.

    Returns the queues; None, and leaves viser unchanged, if `compat.viser_loop` does not know this
    version of viser.
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
    """Warns once per process, however many viewers there are."""
    log.warning(
        "viser %s has not been tested with brax_viser's own message queue, so viser's is used: "
        "pages open more slowly the longer the viewer runs, and slow pages fall behind",
        version,
    )


@dataclass(eq=False)
class Pages:
    """The queues of all pages, and the share of messages each takes. Used on viser's loop only."""

    loop: ViserLoop
    queues: "dict[int, _PageQueue]" = field(default_factory=dict)  # by client id
    clock: Callable[[], float] = time.monotonic

    def taken(self, now: float) -> dict[int, float]:
        """Returns, by client id, the share of the last seconds' messages that a page was sent, 0 to
        1; the rest was superseded. Pages with fewer than `FEW` messages are left out.

        Args:
            now: s; must be called several times a second.
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
    """Stands in for the message buffer in viser's send loop of one page.

    The loop sees messages numbered from 0 without gaps. All other attributes are the buffer's.
    """

    def __init__(self, pages: Pages):
        self.sent = self.missed = 0  # messages handed out to this page; messages superseded
        self.counts: deque[tuple[float, int, int]] = deque()  # recent (s, sent, missed)
        self._pages, self._loop = pages, pages.loop
        self._buffer: Any = pages.loop.buffer
        self._can_be_asked = None not in (pages.loop.question, pages.loop.answer, pages.loop.move)
        # viser's own methods, bound to this object.
        for name in ("window_generator", "_window_loop"):
            setattr(self, name, MethodType(getattr(pages.loop.buffer_class, name), self))
        self._waiting: deque[int] = deque()  # numbers in the buffer, in order
        self._last = self._seen = -1  # buffer numbers: last one handed out or gone; last one read
        self._handed = 0  # messages and questions handed out
        self._replay: int | None = None  # messages in the buffer when the page opened
        self._questions = itertools.count()
        self._question: str | None = None  # the open question's id
        self._asked = -1e9  # s, when the last question was sent
        self._took = 0.0  # s, from the last question to its answer
        self._answers = False  # whether the page has ever answered
        self._held_up = False  # whether the page was late at the last check
        self.message_from_id = self  # the loop calls its `get`
        self.generator_cursors = _Cursors(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    @property
    def message_counter(self) -> int:
        """Messages for this page in all, handed out or waiting."""
        if self._is_late():
            self._held_up = True
            return self._handed
        self._held_up = False
        if self._waiting and self._is_live:
            self._drop_overtaken()
        if not self._waiting:
            self._find()
        if self._replay is None:  # viser reads the counter before it begins to send
            self._replay = len(self._waiting)
        return self._handed + len(self._waiting)

    def get(self, _: int, default: Any = None) -> Any:
        """Returns the next message; `default` if a newer one has superseded it."""
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
        """Records the page's answer to a question; on viser's loop."""
        if question == self._question:
            self._question, self._answers = None, True
            self._took = self._pages.clock() - self._asked
            self._buffer.message_event.set()  # wakes the loop, which may have held messages back

    def _ask(self) -> Any:
        self._question = f"{_KEY} {next(self._questions)}"
        self._asked = self._pages.clock()
        return self._loop.question(key=_KEY, request_uuid=self._question)

    def _is_due(self) -> bool:
        """Whether a question should follow the waiting messages: only if scene nodes move in them,
        because a page redraws when it is asked."""
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
            if self._answers:  # the answer is lost: send a frame, and ask again
                self._question, self._took = None, waited
            return False
        return waited >= LATE_SECONDS or self._took >= LATE_SECONDS

    @property
    def _is_live(self) -> bool:
        """Whether the page has been handed all messages that there were when it opened."""
        return self._replay is not None and self._handed >= self._replay

    def overtaken(self) -> int:
        """Returns how many messages are superseded but, as the page is late, not in `missed`."""
        if not self._held_up:
            return 0
        with self._buffer.buffer_lock:
            known = self._buffer.message_from_id
            gone = sum(n != _ASKED and n not in known for n in self._waiting)
            new = self._buffer.message_counter - 1 - self._seen
            return gone + new - sum(n > self._seen for n in known)

    def _drop_overtaken(self) -> None:
        """Removes superseded messages from the queue, so that `message_counter` does not count
        them: viser's loop would wait for more."""
        with self._buffer.buffer_lock:
            known = self._buffer.message_from_id
            there = [n for n in self._waiting if n == _ASKED or n in known]
        self.missed += len(self._waiting) - len(there)
        self._waiting = deque(there)

    def _find(self) -> None:
        buffer = self._buffer
        with buffer.buffer_lock:
            newest, known = buffer.message_counter - 1, buffer.message_from_id
            # Usually one frame is new, and many other messages are in the buffer.
            if newest - self._last < len(known):
                self._waiting.extend(n for n in range(self._last + 1, newest + 1) if n in known)
            else:
                self._waiting.extend(sorted(n for n in known if n > self._last))
            if self._last >= 0:  # messages superseded before the page opened are not missed
                self.missed += newest - self._seen - len(self._waiting)
            self._seen = newest
            if not self._waiting:
                self._last = newest
        if self._is_due():
            self._waiting.append(_ASKED)


class _Cursors:
    """Tells viser which buffer number a page has reached; viser keeps messages until all pages have
    passed them."""

    def __init__(self, queue: _PageQueue):
        self._queue = queue

    def __setitem__(self, client_id: int, _: int) -> None:
        self._queue._buffer.generator_cursors[client_id] = self._queue._last

    def pop(self, client_id: int, default: Any = None) -> Any:
        self._queue._pages.queues.pop(client_id, None)
        return self._queue._buffer.generator_cursors.pop(client_id, default)
