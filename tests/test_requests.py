"""Requests that no page makes, against the real server: each is refused, and harms nothing."""

import contextlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import websockets
from PIL import Image
from viser import _messages as messages

from benchmarks.client import hello, messages_of
from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import remote
from brax_viser.page.connection import MOST_CONNECTIONS
from tests.conftest import Page, eventually
from tests.support import Probe, port_of
from tests.test_guard import Hostile, encoded
from tests.toy import Toy

COMMAND = "X-Brax-Viser: 1"


@pytest.fixture(scope="module")
def served() -> Iterator[Viewer]:
    with Viewer(port=0, origins=["https://hub.example.org"]) as viewer:
        yield viewer


def asked(viewer: Viewer, path: str | bytes, *headers: str | bytes, method: str = "GET") -> bytes:
    """Returns the answer to a request as it is given, byte by byte; empty if there is none."""
    own = f"Host: 127.0.0.1:{port_of(viewer)}"
    lines = [b" ".join([method.encode(), raw(path), b"HTTP/1.1"])]
    if not any(raw(header).lower().startswith(b"host:") for header in headers):
        lines.append(own.encode())
    lines += map(raw, headers)
    found = b""
    with socket.create_connection(("127.0.0.1", port_of(viewer)), timeout=20) as bare:
        bare.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while part := bare.recv(1 << 16):
                found += part
    return found


def raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def header(answer: bytes, name: str) -> str | None:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = [line.partition(": ")[2] for line in lines if line.lower().startswith(name.lower())]
    return found[0] if found else None


def tokens(viewer: Viewer) -> tuple[str, str]:
    return viewer.url.rsplit("=", 1)[1], viewer.onlooker_url.rsplit("=", 1)[1]


def commands(viewer: Viewer) -> list[str]:
    """Every command that programs and the time bar can give."""
    answer = asked(viewer, f"/api/none?token={tokens(viewer)[0]}")
    told = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]
    names = told.partition("there are ")[2].split(", ")
    return [name for name in names if name not in ("status", "snapshot", "timeline")]


def test_each_command_needs_the_steering_token_and_the_header(served):
    steering, looking = tokens(served)
    names = commands(served)
    assert {"hold", "resume", "step", "switch", "replay/go", "replay/speed"} <= set(names)
    before = Probe(served).shared.control
    for name in names:
        for query in ("", "?token=", "?token=wrong", f"?token={looking}"):
            assert status(asked(served, f"/api/{name}{query}", COMMAND)) == 403, (name, query)
        for path in (f"/{looking}/api/{name}", f"//api/{name}", f"/./api/{name}"):
            assert status(asked(served, path, COMMAND)) in (403, 404), path
        assert status(asked(served, f"/api/{name}?token={steering}")) == 403, name
        cookie = f"Cookie: brax_viser_{port_of(served)}={steering}"
        assert status(asked(served, f"/api/{name}", cookie)) == 403, name
        for method in ("POST", "OPTIONS", "HEAD", "PUT"):
            path = f"/api/{name}?token={steering}"
            assert status(asked(served, path, COMMAND, method=method)) in (0, 400, 405, 501), method
    assert Probe(served).shared.control == before and not Probe(served).shared.hold.paused


def test_what_is_only_read_needs_a_token_too(served):
    for name in ("status", "timeline", "snapshot"):
        for query in ("", "?token=wrong"):
            assert status(asked(served, f"/api/{name}{query}", COMMAND)) == 403, name


WRONG_VALUES = [
    *("step?n=0", "step?n=-1", "step?n=x", "step?n=1.5", "step?n=nan", f"step?n={'9' * 5000}"),
    *("switch", "switch?on=2", "switch?on=True", "snapshot?id=-1", f"snapshot?id={'9' * 5000}"),
    *("replay/go?step=nan", "replay/go?step=1e300", "replay/go?episode=../../etc/passwd"),
    *("replay/go", "replay/seek?seconds=inf", "replay/seek", "replay/step?n=1e16"),
    *("replay/speed?speed=0", "replay/speed?speed=-1", "replay/speed?speed=nan"),
    *("replay/turn?by=1e300", "replay/loop?on=x"),
]


@pytest.mark.parametrize("name", WRONG_VALUES, ids=lambda name: name[:30])
def test_a_wrong_value_is_refused_with_a_reason(served, name):
    sign = "&" if "?" in name else "?"
    answer = asked(served, f"/api/{name}{sign}token={tokens(served)[0]}", COMMAND)
    assert status(answer) == 400, answer[:300]
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["error"]


def test_a_huge_step_count_does_not_overflow(served):
    """A step count has no largest value of its own: it must not fail where it is counted."""
    token = tokens(served)[0]
    answer = asked(served, f"/api/step?n={'9' * 300}&token={token}", COMMAND)
    assert status(answer) in (200, 400)
    assert status(asked(served, f"/api/resume?token={token}", COMMAND)) == 200
    assert not Probe(served).shared.hold.paused


WRONG_TOKENS: dict[str, Callable[[str], str]] = {
    "none": lambda token: "",
    "shorter": lambda token: token[:-1],
    "longer": lambda token: token + "0",
    "upper case": str.upper,
    "backwards": lambda token: token[::-1],
    "with a zero byte": lambda token: f"{token}%00",
    "with a blank": lambda token: f"%20{token}",
    "no ASCII": lambda token: "%C3%BC" * len(token),
    "no text": lambda token: "%FF" * len(token),
    "very long": lambda token: token * 2000,
    "encoded twice": lambda token: f"%25{ord(token[0]):x}{token[1:]}",
}


@pytest.mark.parametrize("kind", WRONG_TOKENS)
def test_only_the_whole_token_is_accepted(served, kind):
    for token in tokens(served):
        wrong = WRONG_TOKENS[kind](token)
        assert status(asked(served, f"/?token={wrong}")) == 403
        assert status(asked(served, f"/{wrong}/")) == 403
        assert status(asked(served, f"/proxy/{wrong}/index.html")) == 403
        assert status(asked(served, "/", f"Cookie: brax_viser_{port_of(served)}={wrong}")) == 403


def test_of_several_tokens_the_first_valid_one_of_the_address_counts(served):
    steering, looking = tokens(served)
    cookie = f"Cookie: brax_viser_{port_of(served)}={steering}"

    def resumes(path: str, *headers: str) -> int:
        return status(asked(served, path, COMMAND, *headers))

    assert resumes(f"/api/resume?token=wrong&token={steering}") == 200
    assert resumes(f"/api/resume?token={steering}&token={looking}") == 200
    assert resumes(f"/api/resume?token={looking}&token={steering}") == 403
    assert resumes(f"/api/resume?token={looking}", cookie) == 403
    assert resumes(f"/{looking}/api/resume?token={steering}", cookie) == 403
    assert resumes("/api/resume?token=wrong", cookie) == 200
    assert resumes("/api/resume", f"{cookie}0", cookie) == 200, "one that another page has left"


def test_a_token_in_the_path_is_found_below_a_proxys_own_path(served):
    steering, looking = tokens(served)
    for path in ("/", "/absproxy/8000/", "/user/me/proxy/absolute/8000/"):
        assert status(asked(served, f"{path}{steering}/")) == 200
        assert status(asked(served, f"{path}{steering}/api/resume", COMMAND)) == 200
        assert status(asked(served, f"{path}{looking}/api/resume", COMMAND)) == 403
        assert status(asked(served, f"{path}{looking}/api/status")) == 200
        assert status(asked(served, f"{path}api/status")) == 403


@pytest.mark.parametrize("path", ["/%61pi/hold", "/api%2Fhold", "/API/hold", "/api/%68old"])
def test_a_misspelt_command_is_refused(served, path):
    assert status(asked(served, f"{path}?token={tokens(served)[0]}", COMMAND)) == 404
    assert not Probe(served).shared.hold.paused


@pytest.mark.parametrize("place", ["http://127.0.0.1:{port}", "http://evil.example"])
def test_a_request_for_another_machines_page_is_not_passed_on(served, place):
    """As to a proxy, which the page's server is not."""
    place = place.format(port=port_of(served))
    assert status(asked(served, f"{place}/")) == 403
    assert status(asked(served, f"{place}/?token={tokens(served)[0]}")) == 404
    assert status(asked(served, f"{place}/", "Host: evil.example")) == 403


BYTES = b"\xff\xfe\xc3"
PATHS = [
    *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc/passwd", "/assets/../../x"),
    *("//etc/passwd", "/%00", "/assets", "/index.html%00.js", "/api/../../../etc/passwd"),
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_page(served, path):
    steering, _ = tokens(served)
    for address in (f"{path}?token={steering}", f"/{steering}{path}"):
        answer = asked(served, address)
        assert b"root:" not in answer
        assert status(answer) in (403, 404, 500), answer[:200]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (b"/?token=" + BYTES, ()),
        (b"/" + BYTES + b"/index.html", ()),
        (b"/api/status?token=" + BYTES, ()),
        (b"/", (b"Cookie: brax_viser_{port}=" + BYTES,)),
        (b"/", (b"Host: " + BYTES,)),
        (b"/", (b"Host: 127.0.0.1/" + BYTES,)),
        (b"/", (b"Host: 127.0.0.1:{port}/?token=x",)),
        (b"/", (b"Host: 127.0.0.1:99999",)),
        (b"/", (b"Host: [::1",)),
        (b"/", (b"Origin: " + BYTES,)),
        (b"http://evil.example/", ()),
    ],
)
def test_bytes_that_are_not_text_are_refused_without_a_fault(served, path, headers):
    port = str(port_of(served)).encode()
    assert status(asked(served, path, *(line.replace(b"{port}", port) for line in headers))) == 403


def test_other_sites_cannot_have_the_page_in_a_frame_by_its_cookie(served):
    """They could have a click that is meant for themselves fall on "Hold training"."""
    steering, _ = tokens(served)
    cookie = f"Cookie: brax_viser_{port_of(served)}={steering}"
    by_cookie = header(asked(served, "/", cookie), "Content-Security-Policy")
    assert by_cookie == "frame-ancestors 'self' https://hub.example.org"
    # A notebook's frame has the token in its path: what opens it knows the token.
    assert header(asked(served, f"/{steering}/"), "Content-Security-Policy") is None
    with Viewer(port=0, token=False) as viewer:
        policy = header(asked(viewer, "/"), "Content-Security-Policy") or ""
        assert policy.startswith("frame-ancestors 'self' http://localhost:*")


def is_ended(bare: socket.socket) -> bool:
    """Whether the server has ended a connection."""
    try:
        return not bare.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_connections_beyond_the_limit_take_no_descriptors_and_leave_open_pages_alone(served):
    page, before = Page(served), len(os.listdir("/proc/self/fd"))
    place = "127.0.0.1", port_of(served)
    idle = [socket.create_connection(place, timeout=20) for _ in range(2 * MOST_CONNECTIONS)]
    for one in idle:
        one.settimeout(None)
    eventually(
        lambda: is_ended(idle[0]), "there is no room for the first one, which waited longest"
    )
    # Not because none of them has asked for anything in time: that ends all of the first half.
    eventually(lambda: sum(map(is_ended, idle)) > MOST_CONNECTIONS, "nor for those after it", 8)
    assert not is_ended(idle[-1]) and len(os.listdir("/proc/self/fd")) <= before + len(idle) + 256
    Page(served).close()  # a new one has room
    windows = page.windows
    served.speed = 2.0
    eventually(lambda: page.windows > windows, "the page is served")
    for one in idle:
        one.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "nothing is left")
    Page(served).close()
    page.close()
    eventually(lambda: not Probe(served).server.get_clients(), "all are gone")


@pytest.mark.parametrize("window", [(0, 800), (1, 10**9), (10**9, 1)])
def test_a_window_of_no_shape_has_a_camera_too(served, window):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=served)
    page, views = Hostile(served), Probe(served).scene.views
    page.send(hello(window=window))
    (client,) = Probe(served).server.get_clients().values()
    eventually(lambda: client.camera.image_width == window[0], "its window is known")
    Probe(served).now(lambda: views.show(client.camera))
    (placed,) = views._placed.values()
    assert placed.pose is not None and np.isfinite(placed.pose.position).all()
    assert np.abs(placed.pose.position).max() < 1e4, "scene units"
    page.socket.close()
    eventually(lambda: not Probe(served).server.get_clients(), "it is gone")


def test_a_click_takes_no_thread(served, monkeypatch):
    page, rays, down = Hostile(served), [], ((0.0, 0.0, 5.0), (0.0, 0.0, -1.0))
    monkeypatch.setattr(Probe(served).commands, "click", lambda *ray: rays.append(ray))
    before = {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        page.send(messages.ScenePointerMessage("click", *down, ((0.5, 0.5),), None))
    eventually(lambda: len(rays) == 3, "they have come")
    assert {thread.name for thread in threading.enumerate()} <= before
    page.socket.close()


def test_an_onlookers_messages_are_small(served):
    """What a message holds is made into objects before it can be checked, on the page's loop."""
    large = encoded(messages.GetRenderResponseMessage(bytes(3_000_000), "none"))
    page, onlooker = Hostile(served), Hostile(served, served.onlooker_url)
    for client in (page, onlooker):
        client.send(large)
    assert onlooker.is_disconnected() and not page.is_disconnected()
    page.socket.close()


def picture(height: int, width: int, *more: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, *more), 99, np.uint8)).save(file, "JPEG")
    return file.getvalue()


@contextlib.contextmanager
def drawing(viewer: Viewer, url: str, payload: Any) -> Iterator[list[dict[str, Any]]]:
    """Opens a page that answers with the same whenever it is asked for a picture. Yields what it
    has been asked."""
    page, asks, over = Hostile(viewer, url), [], threading.Event()

    def answers() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                window = page.socket.recv(timeout=0.1)
                assert isinstance(window, bytes)
                for message in messages_of(window):
                    if message["type"] == "GetRenderRequestMessage":
                        asks.append(message)
                        uuid = message["render_uuid"]
                        page.send(encoded(messages.GetRenderResponseMessage(payload, uuid)))

    thread = threading.Thread(target=answers)
    thread.start()
    try:
        yield asks
    finally:
        over.set()
        thread.join()
        page.socket.close()
        eventually(lambda: not Probe(viewer).server.get_clients(), "it is gone")


def test_an_onlooker_is_not_asked_for_a_picture_as_it_could_send_any(served):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=served)
    with drawing(served, served.onlooker_url, picture(80, 120, 3)) as asks:
        assert remote.picture(served.url)["drawn_by"] == "mujoco" and not asks


PICTURES: dict[str, tuple[Any, str]] = {
    "its own": (picture(800, 1200, 3), "page"),
    "of another size": (picture(80, 120, 3), "mujoco"),
    "without colours": (picture(800, 1200), "mujoco"),
    "no picture": (b"nonsense", "mujoco"),
    "a number": (12, "mujoco"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_page_that_sends_no_picture_of_its_own_is_passed_over(served, caplog, capfd, kind):
    VisualizedEnv(Toy(), grid=(2, 2), viewer=served)
    payload, drawn_by = PICTURES[kind]
    with drawing(served, served.url, payload) as asks:
        assert remote.picture(served.url)["drawn_by"] == drawn_by and len(asks) == 1
    assert "Traceback" not in caplog.text + capfd.readouterr().err
