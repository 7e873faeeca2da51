"""Who may connect to the page's server, and what pages may send: against the real server."""

import http.client
import importlib
import logging
import math
import socket
import ssl
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import viser
import websockets
import websockets.sync.client
from packaging.requirements import Requirement
from viser import _messages as messages
from websockets.datastructures import Headers

from benchmarks.client import SUBPROTOCOL, hello, is_last_of_replay, messages_of, websocket_of
from brax_viser import Viewer, VisualizedEnv
from brax_viser.compat import VISER_LOOPS
from brax_viser.page import address
from brax_viser.page import server as server_module
from brax_viser.page.access import Access, Tls, tokens_of
from brax_viser.page.gate import Gate, check_origins
from brax_viser.page.guard import LARGEST, fits
from tests.conftest import Page, eventually
from tests.support import Probe, port_of
from tests.toy import Toy


@pytest.fixture(scope="module")
def served() -> Iterator[Viewer]:
    with Viewer(port=0, origins=["https://hub.example.org"]) as viewer:
        yield viewer


def status(viewer: Viewer, **headers: str) -> int:
    """Returns the status of a request for the page with these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(viewer), timeout=20)
    connection.putrequest("GET", f"/?{urlsplit(viewer.url).query}", skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{port_of(viewer)}"} | headers).items():
        connection.putheader(name, value.format(port=port_of(viewer)))
    connection.endheaders()
    return connection.getresponse().status


def connects(viewer: Viewer, **headers: str) -> bool:
    """Whether a websocket with these headers is opened, and sent the scene."""
    given = {name: value.format(port=port_of(viewer)) for name, value in headers.items()}
    host = given.pop("Host", None)
    try:
        # Only a name that resolves can be connected to; the socket is opened to our own.
        with websockets.sync.client.connect(
            f"ws://{host or f'127.0.0.1:{port_of(viewer)}'}/?{urlsplit(viewer.url).query}",
            sock=socket.create_connection(("127.0.0.1", port_of(viewer))),
            subprotocols=[SUBPROTOCOL],
            additional_headers=given,
            max_size=None,
            compression=None,
        ) as page:
            page.send(hello())
            while not is_last_of_replay(page.recv(timeout=20)):  # type: ignore[arg-type]
                pass
            return True
    except websockets.InvalidStatus as error:
        assert error.response.status_code == 403
        return False


OWN = [
    *("127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "lab.localhost", "10.1.2.3:80"),
    *("LocalHost:{port}", "[::FFFF:127.0.0.1]:{port}", "[fe80::1%eth0]:{port}"),
]
FOREIGN = [
    *("evil.example", "evil.example:{port}", "localhost.evil.example", "a@127.0.0.1", ""),
    *("EVIL.example", "evil.example.", "127.0.0.1.evil.example", "[::1].evil.example:{port}"),
    *("[::1]evil.example", "[evil.example]", "127.0.0.1,evil.example", "127.0.0.1:{port}:80"),
    *("127.0.0.1:x", "::1", "[", "[]", ":{port}", "127.0.0.1 evil.example"),
    *("127.0.0.1%evil.example", "127.0.0.1%25eth0", "[::1%]"),
]


@pytest.mark.parametrize("host", [*OWN, "hub.example.org", socket.gethostname()])
def test_the_page_is_served_under_the_machines_own_names_and_numbers(served, host):
    assert status(served, Host=host) == 200
    assert connects(served, Host=host.removesuffix(":80"))


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused_as_a_site_may_have_them_resolved_to_this_machine(served, host):
    assert status(served, Host=host) == 403


ORIGINS = [
    ("http://127.0.0.1:{port}", True),
    ("https://hub.example.org", True),
    ("https://hub.example.org:443", True),
    ("http://evil.example", False),
    ("http://127.0.0.1:9", False),  # another server of this machine
    ("http://localhost:{port}", False),  # the host is 127.0.0.1
    ("https://hub.example.org.evil.example", False),
    ("HTTP://127.0.0.1:{port}", True),
    ("http://[::1].evil.example:{port}", False),
    ("http://127.0.0.1.:{port}", False),
    ("http://127.0.0.1:{port}@evil.example", False),
    ("http://127.0.0.1:{port}.evil.example", False),
    ("file://", False),
    ("", False),
    ("null", False),
]


@pytest.mark.parametrize(("origin", "opens"), ORIGINS)
def test_only_the_pages_own_origin_may_connect(served, origin, opens):
    assert connects(served, Origin=origin) is opens


def test_other_names_and_origins_are_refused_where_no_token_is_asked_for_as_well():
    with Viewer(port=0, token=False) as viewer:
        assert status(viewer) == 200 and connects(viewer, Origin="http://127.0.0.1:{port}")
        assert {status(viewer, Host=host) for host in FOREIGN} == {403}
        foreign = [origin for origin, opens in ORIGINS if not opens]
        assert not any(connects(viewer, Origin=origin) for origin in foreign)
        assert not connects(viewer, Host="evil.example")


def test_two_hosts_are_refused():
    gate, headers = Gate("127.0.0.1", Access()), Headers()
    headers["Host"] = "127.0.0.1"
    assert gate.refusal(headers) is None
    headers["Host"] = "evil.example"
    assert gate.refusal(headers) is not None


@pytest.mark.parametrize("origins", ["https://a.b", ["a.b"], ["ftp://a.b"], ["http://"], [""]])
def test_origins_are_addresses(origins):
    with pytest.raises(ValueError, match="origins="):
        check_origins(origins)


@pytest.fixture
def made(monkeypatch) -> list[viser.ViserServer]:
    """Viser's servers that were started."""
    servers, real = [], viser.ViserServer

    def start(**given: Any) -> viser.ViserServer:
        servers.append(real(**given))
        return servers[-1]

    monkeypatch.setattr(viser, "ViserServer", start)
    return servers


@pytest.mark.parametrize(
    ("host", "token", "tls"),
    [
        ("127.0.0.1", None, None),
        ("127.0.0.1", "a-token-of-mine", None),
        ("127.0.0.1", False, Tls(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "")),
        ("0.0.0.0", False, None),
    ],
)
def test_an_untested_viser_is_refused_and_a_tested_one_named(monkeypatch, made, host, token, tls):
    monkeypatch.setattr(viser, "__version__", "9.0.0")
    tokens = None if token is False else tokens_of(token, host, host)
    with pytest.raises(RuntimeError, match=r"viser 9\.0\.0 .*pip install 'viser==1\.1\.\*'"):
        server_module.PageServer(host, 0, Access(tokens=tokens, tls=tls))
    assert not made


def test_an_untested_viser_serves_this_machine_where_no_token_is_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(viser, "__version__", "9.0.0")
    with pytest.raises(RuntimeError, match="has not been tested"):
        Viewer(port=0)
    with caplog.at_level(logging.WARNING, "brax_viser"), Viewer(port=0, token=False) as viewer:
        assert status(viewer) == 200 and "token" not in viewer.url
    assert "answers whoever reaches the port" in caplog.text


def test_a_viser_that_cannot_be_asked_or_checked_is_stopped(monkeypatch, made):
    started = viser.ViserServer

    def without_our_gate(**given: Any) -> viser.ViserServer:
        module: Any = importlib.import_module("viser.infra._infra")
        module.websockets = websockets
        return started(**given)

    for name, value in {"ViserServer": without_our_gate, "viser_gate": lambda _: None}.items():
        with monkeypatch.context() as patch:
            patch.setattr(viser if name == "ViserServer" else server_module, name, value)
            with pytest.raises(RuntimeError, match=r"does not call websockets|not been tested"):
                Viewer(port=0)
        port = made.pop().get_port()
        eventually(lambda port=port: address.is_free("127.0.0.1", port), "it is stopped")


@pytest.mark.parametrize("token", ["a-token-of-mine", False])
def test_what_connects_before_messages_are_checked_is_turned_away(monkeypatch, token):
    """The server listens within its constructor: a page of before a restart comes back then."""
    started, turned_away = viser.ViserServer, []
    query = f"?token={token}" if token else ""

    def impatient(**given: Any) -> viser.ViserServer:
        server = started(**given)
        place = f"127.0.0.1:{server.get_port()}/{query}"
        with pytest.raises(websockets.InvalidStatus) as refused:
            websockets.sync.client.connect(f"ws://{place}", subprotocols=[SUBPROTOCOL])
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"http://{place}", timeout=20)
        turned_away.extend([refused.value.response.status_code, missing.value.code])
        return server

    monkeypatch.setattr(viser, "ViserServer", impatient)
    with Viewer(port=0, token=token) as viewer:
        assert turned_away == [503, 503]
        assert status(viewer) == 200 and connects(viewer)


def test_only_tested_visers_are_installed():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    needed = map(Requirement, project["project"]["dependencies"])
    bounds = next(one.specifier for one in needed if one.name == "viser")
    releases = [f"{major}.{minor}." for major in range(4) for minor in range(30)]
    assert {one for one in releases if bounds.contains(f"{one}7")} == {*VISER_LOOPS}


class Hostile:
    """A page that sends what it likes."""

    def __init__(self, viewer: Viewer, url: str | None = None):
        self.socket = websockets.sync.client.connect(
            websocket_of(url or viewer.url),
            subprotocols=[SUBPROTOCOL],
            max_size=None,
            compression=None,
        )
        known = set(Probe(viewer).server.get_clients())
        self.socket.send(hello())
        eventually(lambda: set(Probe(viewer).server.get_clients()) - known, "it is connected")

    def send(self, message: Any) -> None:
        raw = message if isinstance(message, bytes) else encoded(message)
        self.socket.send(raw)

    def received(
        self, until: Callable[[dict[str, Any]], bool] | None = None, seconds: float = 20.0
    ) -> list[dict[str, Any]]:
        """Returns messages until one of a kind; without a kind, those of some seconds."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                window = self.socket.recv(timeout=0.2)
            except TimeoutError:
                continue
            assert isinstance(window, bytes)
            found += messages_of(window)
            if until is not None and any(map(until, found)):
                return found
        assert until is None, "it is received"
        return found

    def is_disconnected(self) -> bool:
        """Waits for what the server does with the messages that were sent."""
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                self.socket.recv(timeout=0.5)
        except TimeoutError:
            return False
        except websockets.ConnectionClosed:
            return True
        return False


def encoded(message: Any) -> bytes:
    return msgspec.msgpack.encode(message.as_serializable_dict())


def update(widget: Any, **updates: Any) -> Any:
    return messages.GuiUpdateMessage(widget._impl.uuid, updates)


def camera(**changed: Any) -> bytes:
    content = msgspec.msgpack.decode(hello())
    return msgspec.msgpack.encode({**content, **changed})


def panel(viewer: Viewer) -> Any:
    return Probe(viewer).panel


WRONG = {
    "properties": lambda p: update(p.watch._speed, props={"min": 5}),
    "removal": lambda p: update(p.watch._streaming, removed=True),
    "a dictionary": lambda p: update(p.watch._streaming, value={"a": 1}),
    "text for a number": lambda p: update(p.pace._budget, value="2"),
    "a number for a box": lambda p: update(p.watch._streaming, value=1),
    "two values": lambda p: update(p.watch._streaming, value=True, removed=True),
    "a camera of NaN": lambda p: camera(position=[math.nan, 0.0, 0.0]),
    "a camera of two numbers": lambda p: camera(position=[0.0, 0.0]),
    "a click of two numbers": lambda p: messages.ScenePointerMessage(
        "click", (0.0, 0.0), (1.0, 0.0), ((0.5, 0.5),), None
    ),
    "a handle of two numbers": lambda p: messages.TransformControlsUpdateMessage(
        "/sandbox", (1.0, 0.0, 0.0, 0.0), (0.0, 0.0)
    ),
    "a handle at infinity": lambda p: messages.TransformControlsUpdateMessage(
        "/sandbox", (1.0, 0.0, 0.0, 0.0), (0.0, math.inf, 0.0)
    ),
    "an upload of no size": lambda p: msgspec.msgpack.encode(
        {**msgspec.msgpack.decode(encoded(upload(p))), "size_bytes": 1e300}
    ),
    "a public address": lambda p: messages.ShareUrlRequest(),
    "a message to pages": lambda p: messages.ReplayDoneMessage(),
    "no message": lambda p: b"\x93\x01\x02\x03",
    "an unknown message": lambda p: msgspec.msgpack.encode({"type": "Nonsense"}),
    "a huge upload": lambda p: messages.FileTransferStartUpload("a", "b", "c", "d", 1, 10**17),
}


def upload(panel: Any) -> Any:
    """An upload into a box."""
    box = panel.watch._streaming._impl.uuid
    return messages.FileTransferStartUpload(box, "an upload", "a.txt", "text/plain", 1, 100)


@pytest.mark.parametrize("kind", WRONG)
def test_a_page_that_sends_garbage_is_disconnected_and_others_go_on(served, caplog, kind):
    honest = Page(served)
    pages, hostile = set(Probe(served).server.get_clients()), Hostile(served)
    before = Probe(served).shared.control
    with caplog.at_level(logging.WARNING, "brax_viser"):
        hostile.send(WRONG[kind](panel(served)))
        assert hostile.is_disconnected()
        eventually(lambda: caplog.records, "a line says so")
    assert len(caplog.records) == 1 and "Traceback" not in caplog.text
    assert Probe(served).shared.control == before and Probe(served).shared.fault is None
    eventually(lambda: set(Probe(served).server.get_clients()) == pages, "only it is gone")
    honest.close()
    eventually(lambda: not Probe(served).server.get_clients(), "all are gone")


def test_a_number_that_is_too_large_is_not_taken_and_no_page_is_lost(served):
    page, budget = Hostile(served), panel(served).pace._budget
    before = budget.value
    for value in (10**18, 1e22, -1e300):
        page.send(update(budget, value=value))
    assert not page.is_disconnected() and budget.value == before
    page.send(update(panel(served).watch._streaming, value=False))
    eventually(lambda: not served.streaming, "an honest change is taken")
    page.send(update(panel(served).watch._streaming, value=True))
    eventually(lambda: served.streaming, "and back")
    page.socket.close()


NUMBERS = [2**53, -(2**53), 10**18, 2**63, 2**64 - 1, 1e22, -1e300, 1e-300, 0.5, -1, 0]
TEXTS = ["9" * 22, f"0-{'9' * 22}", "nan", "inf", "-1", "0-99999999", "1e400", "\x00", "%s", ""]


def test_no_number_and_no_text_in_any_widget_ends_the_page():
    with Viewer(port=0) as viewer:
        VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        probe, page, tried = Probe(viewer), Hostile(viewer), 0
        widgets = list(probe.server.gui._gui_input_handle_from_uuid.values())
        for widget in widgets:
            value = widget._impl.value
            if isinstance(value, bool):
                continue
            several = len(value) if isinstance(value, tuple) else 0
            for wrong in TEXTS if isinstance(value, str) else NUMBERS:
                page.send(update(widget, value=[wrong] * several if several else wrong))
                tried += 1
        assert tried > 100
        assert not page.is_disconnected()
        eventually(lambda: not probe.page.inbox, "all is carried out")
        assert probe.shared.fault is None
        new = Hostile(viewer)
        new.received(until=lambda message: message["type"] == "ReplayDoneMessage")
        new.send(update(panel(viewer).watch._streaming, value=False))
        eventually(lambda: not viewer.streaming, "the page is served")
        for one in (page, new):
            one.socket.close()


def test_uploads_and_forms_that_no_widget_has_asked_for_are_not_kept(served):
    page, gui = Hostile(served), Probe(served).server.gui
    for n in range(50):
        page.send(upload(panel(served)))
        page.send(messages.FileTransferPart("a box", "an upload", n, bytes(1000)))
        page.send(messages.GuiFormDirtyMessage(f"a form {n}"))
    assert not page.is_disconnected() and not gui._current_file_upload_states
    new = Hostile(served)
    told = new.received(until=lambda message: message["type"] == "ReplayDoneMessage")
    assert not [m for m in told if m["type"].startswith(("GuiForm", "FileTransfer"))]
    page.socket.close()
    new.socket.close()
    eventually(lambda: not Probe(served).server.get_clients(), "all are gone")


@pytest.fixture
def button(served) -> Iterator[viser.GuiUploadButtonHandle]:
    """A button for uploads, as a user's script may add."""
    handle = Probe(served).server.gui.add_upload_button("a script's")
    yield handle
    handle.remove()


def begun(button: Any, name: str, parts: int, size: int) -> Any:
    uuid = button._impl.uuid
    return messages.FileTransferStartUpload(uuid, name, "a.txt", "text/plain", parts, size)


def part(button: Any, name: str, number: int, size: int) -> Any:
    return messages.FileTransferPart(button._impl.uuid, name, number, bytes(size))


TOO_MUCH: dict[str, Callable[[Any], list[Any]]] = {
    "bytes in one part": lambda b: [begun(b, "x", 1, 100), part(b, "x", 0, 1_000_000)],
    "bytes in several": lambda b: [begun(b, "x", 99, 100), *(part(b, "x", n, 60) for n in (0, 1))],
    "parts": lambda b: [begun(b, "x", 10_001, 100)],
    "files": lambda b: [begun(b, f"{n}", 1, 100) for n in range(5)],
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_an_upload_of_more_than_it_has_declared_costs_its_page_the_connection(served, button, what):
    page, gui = Hostile(served), Probe(served).server.gui
    for message in TOO_MUCH[what](button):
        page.send(message)
    assert page.is_disconnected()
    eventually(lambda: not gui._current_file_upload_states, "nothing of it is kept")
    assert button.value.content == b""


def test_uploads_are_taken_one_after_the_other_and_forgotten_with_their_page(served, button):
    page, other, gui = Hostile(served), Hostile(served), Probe(served).server.gui
    for n in range(6):
        page.send(begun(button, f"{n}", 2, 100))
        for number in (0, 1):
            page.send(part(button, f"{n}", number, 50))
        eventually(lambda: len(button.value.content) == 100, "it is there")
        button._impl.value = viser.UploadedFile("", b"")
    page.send(begun(button, "unfinished", 2, 100))
    page.send(part(button, "unfinished", 0, 50))
    eventually(lambda: gui._current_file_upload_states, "it is on its way")
    other.send(part(button, "unfinished", 1, 50))
    assert not other.is_disconnected() and gui._current_file_upload_states, "it is not the other's"
    page.socket.close()
    eventually(lambda: not gui._current_file_upload_states, "it is forgotten")
    other.socket.close()
    eventually(lambda: not Probe(served).server.get_clients(), "all are gone")
    # Of a page that has told no camera viser would not forget it.
    socket = websockets.sync.client.connect(websocket_of(served.url), subprotocols=[SUBPROTOCOL])
    socket.send(encoded(begun(button, "unknown", 2, 100)))
    socket.send(hello())
    eventually(lambda: Probe(served).server.get_clients(), "it is known")
    assert not gui._current_file_upload_states
    socket.close()


def test_a_connection_that_says_nothing_prints_nothing(served, capfd, caplog):
    with socket.create_connection(("127.0.0.1", port_of(served))) as bare:
        bare.sendall(b"\x16\x03\x01hello")
    time.sleep(0.5)
    assert "Traceback" not in capfd.readouterr().err and "Traceback" not in caplog.text
    assert status(served) == 200


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (1, float, True),
        (True, float, False),
        (math.inf, float, False),
        (2 * LARGEST, float, False),
        (10**400, int, False),
        ([1.0, 2.0], tuple[float, float], True),
        ([1.0], tuple[float, float], False),
        ([[1, 2]] * 3, tuple[tuple[float, float], ...], True),
        ([[1, 2]] * 2000, tuple[tuple[float, float], ...], False),
        (None, str | None, True),
        ("x" * 30_000, str, False),
        ({}, Any, False),
    ],
)
def test_values_fit_their_types(value, hint, does):
    assert fits(value, hint) is does
