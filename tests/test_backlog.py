"""A page opened after weeks is served as fast as one opened at once; slow pages skip frames."""

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from typing import Any

import numpy as np
import pytest
import trimesh
import viser
import websockets
import websockets.sync.client
from hypothesis import given, settings
from hypothesis import strategies as st
from viser import _messages as messages
from viser.infra import Message
from viser.infra._async_message_buffer import AsyncMessageBuffer

from benchmarks.client import SUBPROTOCOL, answers_to, hello, websocket_of
from brax_viser import Viewer, compat
from brax_viser.page import clients
from brax_viser.panel import words
from tests.conftest import Page, eventually
from tests.support import Probe


@dataclasses.dataclass
class Told(Message):
    """A message that replaces an older one with the same key."""

    key: str
    number: int

    def redundancy_key(self) -> str:
        return self.key


async def drained(generator: Any, until: int) -> list[int]:
    """Returns the numbers of the messages that a page is sent, until one is `until`."""
    found: list[int] = []
    while until not in found:
        found += [message.number for message in await anext(generator)]
    return found


PUSHES = st.lists(st.integers(0, 5), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(before=PUSHES, after=st.lists(PUSHES, max_size=4), gap=st.sampled_from((0, 3, 10**9)))
def test_a_page_is_sent_the_messages_that_viser_would_send(before, after, gap):
    async def run() -> None:
        loop = asyncio.get_running_loop()
        buffer: Any = AsyncMessageBuffer(loop, persistent_messages=True)
        buffer.window_duration_sec, count = 0.0, 0

        def push(keys: list[int]) -> None:
            nonlocal count
            for key in keys:
                count += 1
                buffer.push(Told(str(key), count))
            count += 1
            buffer.push(Told("last", count))

        push(before)
        if gap < 10**6:  # else viser's own generator would take minutes
            buffer.message_counter += gap
        theirs: Any = buffer.window_generator(1, Told("all", -1))
        pages: Any = clients._PageQueue(pages_of(buffer))
        ours = pages.window_generator(2, Told("all", -1))
        sent = await drained(theirs, -1)
        assert sent[-1] == -1 and sent[:-1] == sorted(
            m.number for m in buffer.message_from_id.values()
        )
        assert await drained(ours, -1) == sent
        assert buffer.generator_cursors[2] >= max(buffer.message_from_id)
        if gap >= 10**6:
            buffer.message_counter += gap
            theirs = None
        for keys in after:
            push(keys)
            sent = await drained(ours, count)
            if theirs is not None:
                assert sent == await drained(theirs, count)
            assert buffer.generator_cursors[2] == max(buffer.message_from_id)
            assert len(set(sent)) == len(sent)
        await ours.aclose()
        assert 2 not in buffer.generator_cursors

    asyncio.run(run())


def test_no_message_is_sent_in_the_middle_of_an_atomic_block():
    async def run() -> None:
        buffer = AsyncMessageBuffer(asyncio.get_running_loop(), persistent_messages=True)
        buffer.push(Told("a", 1))
        page: Any = clients._PageQueue(pages_of(buffer))
        ours = page.window_generator(1)
        assert await drained(ours, 1) == [1]
        buffer.atomic_start()
        buffer.push(Told("a", 2))
        task = asyncio.ensure_future(anext(ours))
        await asyncio.sleep(0.1)
        assert not task.done()
        buffer.push(Told("b", 3))
        buffer.push(Told("a", 4))
        buffer.atomic_end()
        found = [message.number for message in await task]
        found += await drained(ours, 4) if 4 not in found else []
        assert found == [3, 4], "superseded messages are not sent"
        await ours.aclose()

    asyncio.run(run())


def pages_of(
    buffer: Any, move: type = messages.SceneNodeUpdateMessage, **clock: Any
) -> clients.Pages:
    """Returns the pages that are sent a buffer's messages, without a server."""
    asked = messages.LocalStorageGetItemRequestMessage, messages.LocalStorageGetItemResponseMessage
    return clients.Pages(compat.ViserLoop(None, buffer, AsyncMessageBuffer, *asked, move), **clock)


class Drawing:
    """A page that is sent moves, timed by the test's own clock."""

    def __init__(self, buffer: AsyncMessageBuffer):
        self.now, self.count = 0.0, 0
        self.buffer, pages = buffer, pages_of(buffer, Told, clock=lambda: self.now)
        buffer.window_duration_sec = 0.0
        self.queue = pages.queues[1] = clients._PageQueue(pages)
        self.questions: list[str] = []
        self.count += 1
        buffer.push(Told("robots", self.count))
        self._windows: Any = self.queue.window_generator(1)
        self._next: asyncio.Task[Any] | None = None

    async def moved(self) -> list[int]:
        """Moves the robots; returns the messages that the page is sent within 0.1 s."""
        self.count += 1
        self.buffer.push(Told("robots", self.count))
        return await self.sent()

    async def sent(self) -> list[int]:
        self._next = self._next or asyncio.ensure_future(anext(self._windows))
        await asyncio.wait([self._next], timeout=0.1)
        if not self._next.done():
            return []
        window, self._next = self._next.result(), None
        self.questions += [m.request_uuid for m in window if not isinstance(m, Told)]
        return [message.number for message in window if isinstance(message, Told)]

    def answers(self) -> None:
        self.queue.heard(self.questions[-1])


@pytest.fixture
def drawing():
    """Returns a function that runs a test of a page on its own event loop."""

    def run(test: Any) -> None:
        async def on_loop() -> None:
            page = Drawing(AsyncMessageBuffer(asyncio.get_running_loop(), True))
            assert await page.sent() == [1] and not page.questions  # the state as the page opens
            assert await page.moved() == [2] and len(page.questions) == 1
            await test(page)

        asyncio.run(on_loop())

    return run


def test_a_late_page_is_sent_only_the_newest_message_once_it_answers(drawing):
    async def test(page: Drawing) -> None:
        page.now += 0.9 * clients.LATE_SECONDS
        assert await page.moved() == [3]  # it may still answer in time
        page.now += 0.2 * clients.LATE_SECONDS
        assert await page.moved() == [] and await page.moved() == []
        page.queue.heard("another's question")
        assert await page.sent() == []
        page.answers()
        assert await page.sent() == [5], "messages overtaken before are not sent"
        assert page.queue.missed == 1
        # After a late answer only one frame is in flight, until the page answers in time.
        for asked in (2, 3, 4):
            assert len(page.questions) == asked
            assert await page.moved() == [] and await page.moved() == []
            page.now += clients.LATE_SECONDS
            page.answers()
            assert await page.sent() == [page.count]
        page.answers()
        assert await page.moved() == [page.count]
        assert await page.moved() == [page.count]

    drawing(test)


def test_a_page_that_answers_in_time_is_not_delayed_and_is_seldom_asked(drawing):
    async def test(page: Drawing) -> None:
        for step in range(3, 63):
            page.now += 1 / 30
            if step % 2 and page.queue._question is not None:
                page.answers()  # 33 to 67 ms later
            assert await page.moved() == [step]
        assert 60 / 30 / clients.ASKING_SECONDS / 2 <= len(page.questions) <= 21
        assert page.queue.missed == 0

    drawing(test)


def test_the_frames_that_a_late_page_misses_are_counted(drawing):
    async def test(page: Drawing) -> None:
        pages = page.queue._pages
        page.now += 2 * clients.LATE_SECONDS
        assert not pages.taken(page.now)
        for _ in range(50):
            page.now += 1 / 30
            assert await page.moved() == []
            taken = pages.taken(page.now)
        assert taken == {1: 0.0}
        page.answers()
        assert await page.sent() == [page.count]
        assert page.queue.missed == 49 and page.queue.overtaken() == 0

    drawing(test)


def test_a_page_whose_answer_is_lost_is_asked_again(drawing):
    async def test(page: Drawing) -> None:
        page.answers()
        page.now += 1
        assert await page.moved() == [3] and len(page.questions) == 2
        page.now += clients.GIVEN_UP_SECONDS - 1
        assert await page.moved() == []
        page.now += 2
        assert await page.moved() == [5] and len(page.questions) == 3
        page.answers()
        assert await page.moved() == [6]

    drawing(test)


def test_a_message_superseded_while_a_page_sleeps_does_not_hold_back_the_newest():
    """Two pages share viser's single event: one of them must not clear it for the other."""

    async def run() -> None:
        buffer: Any = AsyncMessageBuffer(asyncio.get_running_loop(), True)
        buffer.push(Told("key", 1))
        pages = pages_of(buffer)
        got: dict[int, list[int]] = {1: [], 2: []}

        async def receive(client: int) -> None:
            page: Any = clients._PageQueue(pages)
            async for window in page.window_generator(client):
                got[client] += [message.number for message in window]

        tasks = [asyncio.ensure_future(receive(client)) for client in got]
        for number in range(2, 12):
            await asyncio.sleep(0.05)
            buffer.push(Told("key", number))
            await asyncio.sleep(0.004)  # while they wait for a window to fill
            buffer.push(Told("key", -number))
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        assert [numbers[-1] for numbers in got.values()] == [-11, -11]

    asyncio.run(run())


def test_a_page_that_never_answered_is_given_up_and_not_asked_again(drawing):
    async def test(page: Drawing) -> None:
        page.now += clients.GIVEN_UP_SECONDS - 1
        assert await page.moved() == []
        page.now += 2
        assert await page.moved() == [4]
        page.now += 1000
        assert await page.moved() == [5] and len(page.questions) == 1

    drawing(test)


def test_a_page_that_opens_after_weeks_is_served_at_once(viewer):
    buffer: Any = Probe(viewer).server._websock_server._broadcast_buffer
    first = Page(viewer)
    eventually(lambda: first.windows > 0, "the first page is sent what there is")
    with buffer.buffer_lock:
        # A dozen messages per frame, 30 frames a second, for eight weeks.
        buffer.message_counter += 12 * 30 * 56 * 24 * 3600
    Probe(viewer).now(lambda: Probe(viewer).server.scene.add_frame("/later"))
    second, before = Page(viewer), first.windows
    begun = time.monotonic()
    eventually(lambda: second.windows > 0, "the second as well")
    Probe(viewer).now(lambda: Probe(viewer).server.scene.add_frame("/last"))
    eventually(lambda: first.windows > before, "the first is not kept waiting")
    eventually(lambda: buffer.generator_cursors[max(buffer.generator_cursors)] > 10**8, "all")
    # Going through all the numbers would take minutes.
    assert time.monotonic() - begun < 20
    first.close()
    second.close()


def test_the_panel_reports_a_slow_page_which_slows_down_no_other(viewer):
    probe, stop = Probe(viewer), threading.Event()
    many = np.zeros((20_000, 3), np.float32)
    box = trimesh.creation.box()

    def add():
        return Probe(viewer).server.scene.add_batched_meshes_simple(
            "/many", box.vertices, box.faces, np.tile([1.0, 0, 0, 0], (len(many), 1)), many
        )

    handles: list[Any] = []
    probe.now(lambda: handles.append(add()))
    fast = Page(viewer)
    slow = websockets.sync.client.connect(
        websocket_of(viewer.url),
        subprotocols=[SUBPROTOCOL],
        max_size=None,
        compression=None,
        max_queue=1,
    )
    slow.send(hello())
    taken: dict[int, float] = {}

    def step(at: float) -> None:
        handles[0].batched_positions = many + at
        taken.update(probe.clients.taken(time.monotonic()))

    def move() -> None:
        at = 0.0
        while not stop.wait(1 / 30):
            at += 0.01
            probe.now(functools.partial(step, at))

    def read_slowly() -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while not stop.wait(0.3):
                for answer in answers_to(slow.recv()):  # type: ignore[arg-type]
                    slow.send(answer)

    threads = [threading.Thread(target=target) for target in (move, read_slowly)]
    for thread in threads:
        thread.start()
    try:
        eventually(
            lambda: len(taken) == 2 and min(taken.values()) < 0.5 and max(taken.values()) > 0.8,
            "one is slow, and the other is not",
            60,
        )
        told: list[str] = []

        def tell() -> None:
            told.append(words.cost(probe.panel_view(time.monotonic())))

        slow_words = "A page is slow and skips frames: it shows"
        eventually(lambda: probe.now(tell) or slow_words in told[-1], "the panel says so")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        slow.close()
        fast.close()
    eventually(lambda: not probe.clients.queues, "both are forgotten")


def test_a_viser_without_the_private_name_keeps_its_own_generator(viewer, monkeypatch, caplog):
    monkeypatch.delattr(AsyncMessageBuffer, "_window_loop")
    clients._say_that_it_is_left_alone.cache_clear()
    server = viser.ViserServer(port=0, verbose=False)
    try:
        with caplog.at_level("INFO", logger="brax_viser"):
            assert clients.keep_openings_short(server) is None
        assert "the longer the viewer runs" in caplog.text
        assert "window_generator" not in vars(server._websock_server._broadcast_buffer)
    finally:
        server.stop()


def test_an_untested_viser_is_left_alone_even_if_its_private_names_match(monkeypatch, caplog):
    """It may have kept the names but changed the arguments of its loop."""
    monkeypatch.setattr(compat, "VISER_LOOPS", ("0.9.",))
    clients._say_that_it_is_left_alone.cache_clear()
    with Viewer(port=0, token=False) as one, Viewer(port=0, token=False) as other:
        for viewer in (one, other):
            buffer: Any = Probe(viewer).server._websock_server._broadcast_buffer
            assert "window_generator" not in vars(buffer)
            page = Page(viewer)
            eventually(lambda page=page: page.windows > 0, "the page is served")
            page.close()
            assert Probe(viewer).panel_view(0.0).slowest_page is None
            assert Probe(viewer).shared.fault is None
    said = f"viser {viser.__version__} has not been tested with brax_viser's own message queue"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("name", compat._STATE)
def test_the_installed_viser_has_the_private_names_that_are_used(viewer, name):
    assert hasattr(Probe(viewer).server._websock_server._broadcast_buffer, name)
    assert "window_generator" in vars(Probe(viewer).server._websock_server._broadcast_buffer)
