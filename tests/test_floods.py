"""Connections that wait, are slow, or send more than a page ever would: against the real server."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets.sync.client
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from benchmarks.client import SUBPROTOCOL, websocket_of
from brax_viser import Viewer
from brax_viser.page import connection
from brax_viser.page.connection import MOST_CONNECTIONS, MOST_LOOKING, MOST_OF_REQUEST
from tests.conftest import Page, eventually
from tests.support import Probe, port_of
from tests.test_faults import greets
from tests.test_requests import asked, header, is_ended, status, tokens


@pytest.fixture(scope="module")
def served() -> Iterator[Viewer]:
    with Viewer(port=0) as viewer:
        yield viewer


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def megabytes() -> float:
    """Returns this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def asking_for_a_websocket(url: str) -> socket.socket:
    """Asks for a websocket of which nothing has been read."""
    bare = socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=20)
    page = ClientProtocol(parse_uri(websocket_of(url)), subprotocols=[SUBPROTOCOL])
    page.send_request(page.connect())
    bare.sendall(b"".join(page.data_to_send()))
    return bare


def opened(url: str) -> tuple[socket.socket, ClientProtocol]:
    """Opens a websocket of which each byte can be chosen."""
    bare = socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=20)
    return bare, greets(bare, url)


def frame(opcode: Opcode, data: bytes, *, fin: bool = True, compressed: bool = False) -> bytes:
    first, *rest = Frame(opcode, data, fin=fin).serialize(mask=True)
    return bytes([first | 0x40 * compressed, *rest])


def connections(viewer: Viewer, count: int) -> list[socket.socket]:
    """Opens connections that have yet to say something."""
    found = [socket.create_connection(("127.0.0.1", port_of(viewer)), 20) for _ in range(count)]
    for one in found:
        one.settimeout(None)
    return found


def floods(bare: socket.socket, data: bytes, most: int) -> bool:
    """Sends the same bytes again and again. Returns whether the connection is ended before `most`
    bytes are sent."""
    for _ in range(most // len(data)):
        try:
            bare.sendall(data)
        except (ConnectionError, TimeoutError):
            return True
    return False


def is_served(viewer: Viewer) -> None:
    """Checks that a new page opens, and is sent what changes."""
    page = Page(viewer)
    windows = page.windows
    viewer.speed = 2.0 if viewer.speed == 1.0 else 1.0
    eventually(lambda: page.windows > windows, "it is served")
    page.close()


def test_hundreds_of_slow_clients_do_not_lock_other_pages_out(served, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 5.0)
    page, before, over = Page(served), descriptors(), threading.Event()
    line = f"GET /?{'x' * 1000} HTTP/1.1\r\n".encode()
    slow = connections(served, 2 * MOST_CONNECTIONS)

    def drips() -> None:
        for n in range(len(line)):
            for one in slow:
                with contextlib.suppress(OSError):
                    one.send(line[n : n + 1])
            if over.wait(0.1):
                return

    thread = threading.Thread(target=drips)
    thread.start()
    try:
        is_served(served)
        eventually(lambda: all(map(is_ended, slow)), "their time is over, whatever they send")
        windows = page.windows
        served.speed = 1.5
        eventually(lambda: page.windows > windows, "the page that was open before is served")
    finally:
        over.set()
        thread.join()
        for one in slow:
            one.close()
    page.close()
    eventually(lambda: descriptors() <= before, "nothing is left")


def test_onlookers_leave_room_for_those_that_steer(served):
    before, onlookers, answers = descriptors(), [], []
    for _ in range(MOST_CONNECTIONS):
        onlookers.append(asking_for_a_websocket(served.onlooker_url))
        answers.append(onlookers[-1].recv(12))
    assert answers.count(b"HTTP/1.1 101") == MOST_LOOKING
    assert set(answers) == {b"HTTP/1.1 101", b"HTTP/1.1 503"}
    assert b"Too many look on" in asked(served, f"/?token={tokens(served)[1]}")
    is_served(served)
    for one in onlookers:
        one.close()
    eventually(lambda: descriptors() <= before, "nothing is left")
    assert status(asked(served, f"/?token={tokens(served)[1]}")) == 200


def test_connections_that_never_negotiate_encryption_are_limited_too(certificate, monkeypatch):
    monkeypatch.setattr(connection, "MOST_ACCEPTED", 40)
    monkeypatch.setattr("brax_viser.page.server.REQUEST_SECONDS", 3.0)
    with Viewer(port=0, tls=certificate) as viewer:
        before, idle = descriptors(), connections(viewer, 100)
        eventually(lambda: sum(map(is_ended, idle)) == 60, "there is no room for the others")
        assert descriptors() == before + 140, "100 of this test, 40 of the server"
        eventually(lambda: all(map(is_ended, idle)), "their time is over")
        for one in idle:
            one.close()
        eventually(lambda: descriptors() <= before, "nothing is left")


def test_a_slow_network_has_the_time_that_the_page_takes(served, monkeypatch):
    """Only requests must come soon: their answers may be large, and the network slow."""
    made = connection.Connection.connection_made

    def on_a_slow_network(self: connection.Connection, transport: Any) -> None:
        # The system would take the whole answer at once, and hide that nothing is read.
        its = transport.get_extra_info("socket")
        its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        made(self, transport)

    monkeypatch.setattr(connection.Connection, "connection_made", on_a_slow_network)
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.5)
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    bare.connect(("127.0.0.1", port_of(served)))
    host = f"Host: 127.0.0.1:{port_of(served)}"
    bare.sendall(f"GET /?token={tokens(served)[0]} HTTP/1.1\r\n{host}\r\n\r\n".encode())
    found = bare.recv(2048)
    start = time.monotonic()
    while part := bare.recv(1 << 16):
        found += part
        if time.monotonic() - start < 4:
            time.sleep(0.05)
    head, _, body = found.partition(b"\r\n\r\n")
    assert len(body) == int(header(head, "Content-Length") or 0) > 500_000
    bare.close()


@pytest.mark.parametrize("asks", [False, True])
def test_closing_waits_for_no_client_that_is_slow_to_ask_or_to_read(asks):
    viewer = Viewer(port=0)
    bare = socket.socket()
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    bare.connect(("127.0.0.1", port_of(viewer)))
    if asks:
        host = f"Host: 127.0.0.1:{port_of(viewer)}"
        bare.sendall(f"GET /?token={tokens(viewer)[0]} HTTP/1.1\r\n{host}\r\n\r\n".encode())
        assert bare.recv(16)
    is_served(viewer)  # so that the connection is known to the server
    start = time.monotonic()
    viewer.close()
    assert time.monotonic() - start < 5
    bare.close()


def test_the_cookies_of_many_other_pages_of_the_machine_do_not_shut_a_page_out(served):
    path = f"/?token={tokens(served)[0]}"
    others = "; ".join(f"session_{n}={'x' * 3000}" for n in range(20))
    assert status(asked(served, path, f"Cookie: {others}")) == 200
    assert status(asked(served, path, *[f"Cookie: {'x' * 3000}"] * 20)) == 200
    steering = f"brax_viser_{port_of(served)}={tokens(served)[0]}"
    assert status(asked(served, "/", f"Cookie: {others}; {steering}")) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [f"Cookie: a={'b' * MOST_OF_REQUEST}"],
        [f"X-{n}: {'b' * 2000}" for n in range(MOST_OF_REQUEST // 2000)],
        [f"X-{n}: b" for n in range(500)],
    ],
    ids=["long", "many long", "many"],
)
def test_a_request_that_is_too_long_is_refused_with_a_reason(served, headers):
    answer = asked(served, f"/?token={tokens(served)[0]}", *headers)
    assert status(answer) == 431 and b"Most of it is usually cookies" in answer


METHODS = ["HEAD", "POST", "PUT", "OPTIONS", "CONNECT", "TRACE", "x" * 9000]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[:8])
def test_other_methods_are_refused_with_a_reason_and_without_a_file(served, method):
    answer = asked(served, f"/?token={tokens(served)[0]}", method=method)
    assert status(answer) == 400 and b"no request for a page" in answer
    assert header(answer, "Set-Cookie") is None and len(answer) < 20_000


def test_a_message_is_not_inflated(served):
    """A megabyte of zeros takes a kilobyte on the way: the limit would be passed on arrival."""
    asks = websockets.sync.client.connect(
        websocket_of(served.onlooker_url), subprotocols=[SUBPROTOCOL], compression="deflate"
    )
    assert not asks.protocol.extensions
    asks.close()
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(300_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 1_000_000
    bare, _ = opened(served.onlooker_url)
    before = megabytes()
    bare.sendall(frame(Opcode.BINARY, bomb[:-4], compressed=True))
    eventually(lambda: ends(bare), "it is disconnected")
    assert megabytes() < before + 50
    bare.close()
    is_served(served)


def ends(bare: socket.socket) -> bool:
    """Reads what there is; returns whether the server has ended the connection."""
    bare.settimeout(0.05)
    try:
        while bare.recv(1 << 20):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


NEVER: dict[str, Callable[[], tuple[bytes, bytes, int]]] = {
    "large pieces": lambda: (b"", frame(Opcode.CONT, bytes(100_000), fin=False), 4_000_000),
    "empty pieces": lambda: (b"", frame(Opcode.CONT, b"", fin=False) * 1000, 6_000_000),
    "a piece of exabytes": lambda: (b"\x80\xff" + struct.pack("!Q", 1 << 62), b"abcd", 8000),
}


@pytest.mark.parametrize("kind", NEVER)
def test_a_message_that_never_ends_costs_its_sender_the_connection(served, kind):
    first, again, most = NEVER[kind]()
    bare, _ = opened(served.onlooker_url)
    before = megabytes()
    bare.sendall(frame(Opcode.BINARY, b"", fin=False) + first)
    assert floods(bare, again, most) or not eventually(lambda: ends(bare), "it is disconnected")
    assert megabytes() < before + 50
    bare.close()
    is_served(served)


def test_pings_whose_answers_are_not_read_cost_their_sender_the_connection(served):
    bare, _ = opened(served.onlooker_url)
    before = megabytes()
    assert floods(bare, frame(Opcode.PING, bytes(125)) * 1000, 200_000_000)
    assert megabytes() < before + 50
    bare.close()
    is_served(served)


FLOOD = textwrap.dedent(
    """
    import socket, sys
    from benchmarks.client import hello
    from tests.test_floods import Opcode, frame, opened

    flood = (frame(Opcode.PING, b"x") * 50 + frame(Opcode.BINARY, hello())) * 20
    pages = [opened(sys.argv[1])[0] for _ in range(3)]
    left = [flood] * len(pages)
    for page in pages:
        page.setblocking(False)
    print("floods", flush=True)
    while True:
        for n, page in enumerate(pages):
            try:
                page.recv(1 << 20)
            except BlockingIOError:
                pass
            try:
                left[n] = left[n][page.send(left[n]) :] or flood
            except BlockingIOError:
                pass
    """
)


def test_a_flood_of_pings_and_cameras_leaves_the_page_to_others(served):
    page = Page(served)
    flood = subprocess.Popen(
        [sys.executable, "-c", FLOOD, served.onlooker_url], stdout=subprocess.PIPE, text=True
    )
    try:
        assert flood.stdout is not None and flood.stdout.readline() == "floods\n"
        for _ in range(3):
            is_served(served)
        windows = page.windows
        served.speed = 1.5 if served.speed != 1.5 else 1.0
        eventually(lambda: page.windows > windows, "the page that was open before is served")
        assert flood.poll() is None, "it floods"
        assert len(Probe(served).server.get_clients()) >= 4, "it is not disconnected"
    finally:
        flood.kill()
        flood.wait()
    page.close()
    eventually(lambda: not Probe(served).server.get_clients(), "all are gone")
