"""Who may open the page: tokens, cookies and encryption, against the real server."""

import copy
import http.client
import io
import logging
import os
import random
import shutil
import ssl
import subprocess
import sys
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import IPython.display
import pytest
import websockets
import websockets.sync.client
from websockets.typing import Origin

from benchmarks.client import SUBPROTOCOL, hello, websocket_of
from benchmarks.fuzz import Fuzz
from brax_viser import Viewer, VisualizedEnv
from brax_viser.page import access, address, notebook
from brax_viser.page.access import Tokens
from brax_viser.page.greeting import tunnel
from tests.conftest import Page, eventually, lacking
from tests.support import Probe, port_of
from tests.test_guard import Hostile, update
from tests.toy import Toy

MINE = "a-token-of-mine"


@pytest.fixture(scope="module")
def served() -> Iterator[Viewer]:
    with Viewer(port=0) as viewer:
        yield viewer


def place_of(viewer: Viewer) -> str:
    return viewer.url.partition("?")[0]


def got(
    url: str, cookie: str | None = None, host: str | None = None
) -> tuple[int, str, str | None]:
    """Returns the status, the text and the cookie of the answer to a request."""
    given = {"Cookie": cookie, "Host": host}
    headers = {name: value for name, value in given.items() if value}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers["Set-Cookie"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Set-Cookie"]


def opens(url: str, cookie: str | None = None, origin: str | None = None) -> bool:
    """Whether a websocket is opened, as by a browser that has a cookie."""
    try:
        with websockets.sync.client.connect(
            websocket_of(url),
            subprotocols=[SUBPROTOCOL],
            additional_headers={"Cookie": cookie} if cookie else {},
            origin=origin and Origin(origin),  # type: ignore[reportArgumentType]
        ):
            return True
    except websockets.InvalidStatus as error:
        assert error.response.status_code == 403
        return False


def test_without_a_token_neither_a_file_nor_a_websocket_is_served(served):
    place = place_of(served)
    for url in (place, f"{place}index.html", f"{place}?token=", f"{place}?token={MINE}"):
        status, text, cookie = got(url)
        assert status == 403 and "This training asks for a token" in text and cookie is None
        assert not opens(url)
    assert not opens(place, cookie=f"brax_viser_{port_of(served)}={MINE}")
    assert "has none" in got(place)[1] and "is not of this training" in got(f"{place}?token=x")[1]


def test_the_cookie_of_the_first_visit_lets_later_ones_and_the_websocket_in(served):
    status, text, cookie = got(served.url)
    assert status == 200 and "viser" in text.lower() and cookie is not None
    value, *limits = cookie.split("; ")
    assert value.startswith(f"brax_viser_{port_of(served)}=")
    assert limits == ["HttpOnly", "SameSite=Strict"]
    assert got(place_of(served), value)[0] == 200
    assert opens(place_of(served), f"other=1; {value}")
    assert not opens(place_of(served), value[:-1])


def test_two_pages_on_one_host_keep_their_cookies_apart(served):
    """The port in a cookie's name is the one that the browser sees: ssh may have forwarded it."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(served), timeout=20)
    connection.request("GET", f"/?{urlsplit(served.url).query}", headers={"Host": "localhost:9001"})
    answer = connection.getresponse()
    assert (answer.headers["Set-Cookie"] or "").startswith("brax_viser_9001=")


def test_a_token_is_made_for_each_viewer_and_can_be_chosen(monkeypatch):
    assert Tokens.made() != Tokens.made()
    with Viewer(port=0, token=MINE) as viewer:
        assert viewer.url.endswith(f"/?token={MINE}") and opens(viewer.url)
        onlookers = viewer.onlooker_url.rsplit("=", 1)[1]
    monkeypatch.setenv("BRAX_VISER_TOKEN", MINE)
    with Viewer(port=0) as viewer:
        assert viewer.url.endswith(MINE)
        assert viewer.onlooker_url.endswith(onlookers), "the same after a restart"
    with Viewer(port=0, token="chosen-otherwise") as viewer:
        assert viewer.url.endswith("chosen-otherwise")


@pytest.mark.parametrize("token", ["", "short", "has spaces in it", "semicolon;;;", "ümlauttt", 5])
def test_a_token_that_an_address_does_not_keep_is_refused(token):
    with pytest.raises(ValueError, match=r"token=.*at least 8 letters"):
        Viewer(port=0, token=token)


def test_a_token_is_given_up_only_on_this_machine_alone(served):
    with pytest.raises(ValueError, match=r"token=False: only where no other machine.*127\.0\.0\.1"):
        Viewer(host="0.0.0.0", port=0, token=False)
    with Viewer(port=0, token=False) as viewer:
        assert "?" not in viewer.url and viewer.onlooker_url == ""
        assert got(viewer.url)[0] == 200 and opens(viewer.url)


def test_a_viewer_that_replaces_another_keeps_its_token():
    port = address.free_port("127.0.0.1", 8600)
    first = Viewer(port=port)
    with Viewer(port=port) as second:
        assert second.url == first.url
        with Viewer(port=port, token=MINE) as third:
            assert third.url.endswith(MINE)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared: list[tuple[bytes, bytes]] = []
    tokens = Tokens.of(MINE)
    real = access.hmac.compare_digest

    def comparing(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(access.hmac, "compare_digest", comparing)
    assert tokens.role_of(MINE) == "steering" and tokens.role_of(tokens.looking) == "looking"
    assert tokens.role_of("ü") is None
    assert len(compared) == 6, "with both, whatever the first comparison has found"


def test_onlookers_see_everything_and_change_nothing(served):
    probe, panel = Probe(served), Probe(served).panel
    onlooker = Hostile(served, served.onlooker_url)
    eventually(lambda: probe.shared.control.watched, "it is seen")
    before = probe.shared.control
    onlooker.send(update(panel.watch._streaming, value=False))
    onlooker.send(update(panel.pace._budget, value=50.0))
    onlooker.send(update(panel.training._hold, value=True))
    shown = onlooker.received(until=lambda m: m["type"] == "NotificationShowMessage")
    assert any("You are looking on" in str(message) for message in shown)
    # Its own page, where the box was unchecked, is shown what holds.
    onlooker.send(update(panel.watch._streaming, value=False))
    onlooker.received(
        until=lambda m: (
            m["type"] == "GuiUpdateMessage"
            and m["uuid"] == panel.watch._streaming._impl.uuid
            and m["updates"] == {"value": True}
        )
    )
    onlooker.send(hello())  # its camera is its own
    assert not onlooker.is_disconnected()
    assert probe.shared.control == before and not probe.shared.hold.paused
    onlooker.socket.close()
    eventually(lambda: not probe.server.get_clients(), "it is gone")


def test_whatever_an_onlookers_page_sends_nothing_changes(monkeypatch):
    with Viewer(port=0) as viewer:
        VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        probe, done = Probe(viewer), []
        form = probe.server.gui.add_form("a script's")
        form.on_submit(lambda _: done.append("submitted"))
        enqueue = probe.inbox.enqueue
        monkeypatch.setattr(probe.inbox, "enqueue", lambda what: (done.append(what), enqueue(what)))
        onlooker, fuzz = Hostile(viewer, viewer.onlooker_url), Fuzz(random.Random(0), 0)
        for message in onlooker.received(until=lambda m: m["type"] == "ReplayDoneMessage"):
            fuzz.take(message)
        # Texts of messages are made of these.
        fuzz.nodes += [*fuzz.widgets, *[form._impl.uuid] * 20]
        eventually(lambda: probe.panel.choice._most.value == 4, "the panel shows what it will")

        def state() -> Any:
            shared, hold = probe.shared, probe.shared.hold
            widgets = probe.server.gui._gui_input_handle_from_uuid
            values = {uuid: copy.deepcopy(one._impl.value) for uuid, one in widgets.items()}
            held = hold.paused, hold.orders
            chosen = shared.control, shared.selection, shared.selected_env, *held
            return chosen, replace(probe.state), values

        probe.now(lambda: None)  # so that it does so no more
        before = state()
        for _ in range(2000):
            onlooker.socket.send(fuzz.message()[0])
        pong = onlooker.socket.ping()
        eventually(lambda: (onlooker.received(seconds=0.1), pong.is_set())[1], "all is read")
        assert state() == before and not done
        onlooker.socket.close()


def test_an_onlooker_that_sends_garbage_is_disconnected(served, caplog):
    onlooker = Hostile(served, served.onlooker_url)
    onlooker.send(update(Probe(served).panel.watch._speed, props={"min": 5}))
    assert onlooker.is_disconnected()
    assert "a page was disconnected" in caplog.text


def test_onlookers_are_told_so_in_their_panel_and_others_are_not(served):
    def words(url: str) -> str:
        page = Hostile(served, url)
        found = page.received(until=lambda m: m["type"] == "ReplayDoneMessage")
        page.send(update(Probe(served).panel.watch._speed, value=1.0))
        found += page.received(seconds=1.0)
        page.socket.close()
        return str([m for m in found if m["type"] == "GuiMarkdownMessage"])

    assert "You are looking on" in words(served.onlooker_url)
    assert "You are looking on" not in words(served.url)


def test_a_training_is_not_held_for_an_onlooker(monkeypatch):
    monkeypatch.setattr("brax_viser.page.server.RELOAD_SECONDS", 0.2)
    with Viewer(port=0) as viewer:
        steering = Page(viewer)
        onlooker = Hostile(viewer, viewer.onlooker_url)
        viewer.pause()
        eventually(lambda: Probe(viewer).shared.hold.paused, "it is held")
        steering.close()
        eventually(lambda: not Probe(viewer).shared.hold.paused, "no page is left to resume it")
        onlooker.socket.close()


def test_a_certificate_encrypts_the_page_and_its_websocket(certificate):
    trusting = ssl.create_default_context(cafile=certificate[0])
    with Viewer(port=0, tls=certificate) as viewer:
        assert viewer.url.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(viewer.url, timeout=20, context=trusting) as answer:
            assert answer.status == 200 and "; Secure" in answer.headers["Set-Cookie"]
        with websockets.sync.client.connect(
            websocket_of(viewer.url), subprotocols=[SUBPROTOCOL], ssl=trusting
        ) as page:
            page.send(hello())
            assert page.recv(timeout=20)
        with pytest.raises(OSError):
            urllib.request.urlopen(viewer.url.replace("https", "http"), timeout=20)


@pytest.mark.parametrize(
    ("proto", "secure"), [("https", True), ("HTTPS, http", True), ("http", False), (None, False)]
)
def test_behind_a_proxy_that_encrypts_the_cookie_is_kept_for_encrypted_connections(
    served, proto, secure
):
    request = urllib.request.Request(served.url)
    if proto is not None:
        request.add_header("X-Forwarded-Proto", proto)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert ("; Secure" in answer.headers["Set-Cookie"]) is secure


def test_files_that_are_no_certificate_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tls=.*: must be the files of a certificate"):
        Viewer(port=0, tls=(str(tmp_path / "none.pem"), "none.pem"))


def test_a_page_for_other_machines_prints_their_addresses_and_a_warning(capsys, caplog):
    with caplog.at_level(logging.WARNING, "brax_viser"), Viewer(host="0.0.0.0", port=0) as viewer:
        lines = capsys.readouterr().out.splitlines()
        token = viewer.onlooker_url.rsplit("=", 1)[1]
    assert lines[0] == f"brax_viser: {viewer.url}" and len(lines) == 3
    assert lines[1].startswith("brax_viser: from other machines http://")
    assert lines[2].startswith("brax_viser: for onlookers http://") and token in lines[2]
    assert "served on 0.0.0.0 without encryption" in caplog.text


def test_behind_a_proxy_the_page_is_served_at_a_path_of_its_own(proxy):
    port = address.free_port("127.0.0.1", 8650)
    place = proxy(port)
    with Viewer(port=port, origins=[place]) as viewer:
        query = urlsplit(viewer.url).query
        status, _, cookie = got(f"{place}/robots/?{query}")
        assert status == 200 and cookie is not None and "Secure" not in cookie
        value = cookie.split(";")[0]
        # As viser's page does: at its own address, without its last slash.
        assert opens(f"{place}/robots", value, origin=place)
        assert not opens(f"{place}/robots", origin=place)
        assert not opens(f"{place}/robots", value, origin="http://evil.example")
        assert got(f"{place}/robots/")[0] == 403
        # As the time bar does.
        assert got(f"{place}/robots/api/timeline", value)[0] == 200
        assert got(f"{place}/robots/api/timeline")[0] == 403


@pytest.fixture
def notebooks(tmp_path) -> Iterator[str]:
    """Starts Jupyter's server with its proxy, below a path as a hub does; yields its address."""
    command = shutil.which("jupyter-standaloneproxy")  # of the package of the proxy
    if command is None:
        lacking("no proxy of Jupyter's found: pip install jupyter-server-proxy")
    port = address.free_port("127.0.0.1", 8900)
    options = "--allow-root --no-browser --ServerApp.base_url=/user/me/ --IdentityProvider.token="
    server = subprocess.Popen(
        [Path(command).with_name("jupyter-server"), f"--port={port}", *options.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
    )
    eventually(lambda: not address.is_free("127.0.0.1", port), "it listens")
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.mark.parametrize("tool", ["proxy", "notebooks"])
def test_without_a_tool_that_ci_installs_tests_fail_there(tool, request, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="install") as raised:
        request.getfixturevalue(tool)
    assert raised.type is pytest.fail.Exception


def test_behind_jupyters_proxy_the_page_its_socket_and_its_time_bar_are_served(notebooks):
    with Viewer(port=0, origins=[notebooks]) as viewer:
        token = viewer.url.rsplit("=", 1)[1]
        place = f"{notebooks}/user/me/proxy/{port_of(viewer)}"
        assert got(f"{place}/{token}/")[0] == 200
        assert opens(f"{place}/{token}", origin=notebooks)
        assert not opens(f"{place}/{token}", origin="http://evil.example")
        assert got(f"{place}/{token}/api/timeline")[0] == 200
        assert got(f"{place}/")[0] == got(f"{place}/api/timeline")[0] == 403


def test_code_server_forwards_the_page_its_socket_and_its_time_bar(code_server):
    """Its two proxies: one takes its own path away, and the other leaves it."""
    with Viewer(port=0, origins=["https://code.example.org"]) as viewer:
        token = viewer.url.rsplit("=", 1)[1]
        for proxy in ("proxy", "absproxy"):
            place = f"{code_server}/{proxy}/{port_of(viewer)}"
            status, text, cookie = got(f"{place}/{token}/")
            assert status == 200 and "viser" in text.lower() and cookie is not None
            assert opens(f"{place}/{token}", origin=code_server)
            assert got(f"{place}/{token}/api/timeline")[0] == 200
            assert got(f"{place}/")[0] == got(f"{place}/api/timeline")[0] == 403
            assert not opens(place, origin=code_server), "it needs the token as well"
            assert not opens(f"{place}/{token}", origin="http://evil.example")
            for name, answer in {"code.example.org": 200, "evil.example": 403}.items():
                assert got(f"{place}/{token}/", host=name)[0] == answer
        place = f"{code_server}/proxy/{port_of(viewer)}"
        value = (got(f"{place}/?token={token}")[2] or "").split(";")[0]
        assert opens(place, value, origin=code_server)


SSH = [
    ("10.0.0.7 50001 127.0.0.1 22", "ssh -L 8000:127.0.0.1:8000 ada@127.0.0.1"),
    ("10.0.0.7 50001 127.0.0.1 2222", "ssh -L 8000:127.0.0.1:8000 -p 2222 ada@127.0.0.1"),
    # The address is private, the client is not: the name is what it may know.
    ("8.8.8.8 50001 127.0.0.1 22", "ssh -L 8000:127.0.0.1:8000 ada@node7"),
    # A job on another machine than the one that was logged into.
    ("10.0.0.7 50001 192.0.2.1 22", "ssh -J ada@192.0.2.1 -L 8000:127.0.0.1:8000 ada@node7"),
    ("", None),
    ("nonsense", None),
]


@pytest.mark.parametrize(("connection", "line"), SSH)
def test_over_ssh_the_line_that_forwards_the_port_is_found(connection, line):
    environ = {"SSH_CONNECTION": connection, "USER": "ada"}
    assert tunnel(environ, "127.0.0.1", 8000, lambda: "node7") == line


def test_over_ssh_the_line_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("SSH_CONNECTION", "127.0.0.1 50001 127.0.0.1 22")
    with Viewer(port=0) as viewer:
        words = f"type on your own machine: ssh -L {port_of(viewer)}:127.0.0.1:{port_of(viewer)} "
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("how", ["closed", "full", "none"])
def test_a_viewer_starts_although_nothing_can_be_printed(how, monkeypatch):
    class Full(io.StringIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    out = {"closed": io.StringIO(), "full": Full(), "none": None}[how]
    if how == "closed":
        out.close()
    monkeypatch.setattr(sys, "stdout", out)
    with Viewer(port=0) as viewer:
        assert opens(viewer.url)


def test_the_command_line_takes_a_token_and_a_certificate(certificate, capsys):
    from brax_viser.cli.serving import Serving

    with Serving(port=0, token=MINE, tls_cert=certificate[0], tls_key=certificate[1]).viewer(
        "latest"
    ) as viewer:
        assert viewer.url.startswith("https://") and viewer.url.endswith(MINE)
    with Serving(port=0, onlookers=True).viewer("latest") as viewer:
        assert f"for onlookers {viewer.onlooker_url}" in capsys.readouterr().out
    with Serving(port=0, token="none").viewer("latest") as viewer:
        assert "token" not in viewer.url
    with pytest.raises(ValueError, match="no certificate: give --tls-cert"):
        Serving(tls_key="key.pem").viewer("latest")


def test_in_colab_its_proxy_shows_the_page_whose_address_is_then_taken(monkeypatch, capsys):
    """Only Colab has its package: a stand-in with the two functions that are used."""
    proxy = "https://8000-m-s-1a2b3c.us-west4-0.prod.colab.dev"
    called: list[tuple[Any, ...]] = []
    output: Any = types.ModuleType("google.colab.output")
    output.eval_js = lambda code: called.append((code,)) or f"{proxy}/"
    output.serve_kernel_port_as_iframe = lambda port, path, height: called.append(
        (port, path, height)
    )
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    with Viewer(port=0) as viewer:
        port, token = port_of(viewer), viewer.url.rsplit("=", 1)[1]
        assert not opens(viewer.url, origin=proxy)
        viewer.show_in_notebook(height=640)
        assert called == [
            (f"google.colab.kernel.proxyPort({port})",),
            (port, f"/{token}/", "640"),
        ]
        assert "Colab's proxy has carried no websockets" in capsys.readouterr().out
        assert opens(viewer.url, origin=proxy)
        assert not opens(viewer.url, origin="https://other.us-west4-0.prod.colab.dev")
        assert not opens(place_of(viewer), origin=proxy), "it needs the token as well"
        host = {"Host": proxy.removeprefix("https://")}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", f"/{token}/", headers=host)
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize("hub", ["https://hub.example.org/user/me/", ""])
def test_on_a_jupyterhub_its_proxy_shows_the_page(monkeypatch, capsys, hub):
    shown: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setenv(notebook.PREFIX, "/user/me/")
    monkeypatch.setenv(notebook.ADDRESSES[0], hub)
    with Viewer(port=0, token="secret-of-a-test") as viewer:
        port = port_of(viewer)
        viewer.show_in_notebook(height=500)
        assert shown[0].src == f"/user/me/proxy/{port}/secret-of-a-test/"
        assert opens(viewer.url, origin="https://hub.example.org") == bool(hub)
        said = capsys.readouterr().out
        assert (notebook.NO_ORIGIN in said) == (not hub)
        viewer.show_in_notebook(url="https://elsewhere.example.org/")
        assert shown[1].src == "https://elsewhere.example.org/", "what the user says counts"


def test_on_a_jupyterhub_without_a_proxy_it_says_what_is_missing(monkeypatch, capsys):
    shown: list[Any] = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setenv(notebook.PREFIX, "/user/me/")
    with Viewer(port=0) as viewer:
        monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
        viewer.show_in_notebook()
        assert shown[0].src.startswith(f"http://127.0.0.1:{port_of(viewer)}/")
        assert notebook.NO_PROXY in capsys.readouterr().out
