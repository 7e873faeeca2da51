"""In a real browser, a page comes back by itself, with its user's camera and choices; and it works
at a path of its own behind a proxy."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.page import address
from tests.conftest import eventually
from tests.support import Probe, port_of
from tests.test_panel_browser import WINDOW, choose, is_disconnected
from tests.toy import Toy

TOKEN = "kept-over-a-restart"


@pytest.fixture
def page(chromium) -> Iterator[Any]:
    context = chromium.new_context(viewport=WINDOW)
    page = context.new_page()
    page.set_default_timeout(120_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors


def until(page: Any, condition: Callable[[], object], what: str) -> None:
    """Waits for a condition while the page's events are handled."""
    eventually(lambda: page.wait_for_timeout(50) or condition(), what, timeout=180)


def is_open(page: Any, viewer: Viewer) -> None:
    """Waits until a page is there, with robots."""
    page.get_by_text("Waiting for a trainer").wait_for()
    until(page, lambda: camera_of(viewer) is not None, "the page has told its camera")


def camera_of(viewer: Viewer) -> np.ndarray | None:
    """Returns position and look-at, float [6], of the only open page; None if there is none."""
    for client in Probe(viewer).server.get_clients().values():
        return np.concatenate([client.camera.position, client.camera.look_at])
    return None


def tabs(page: Any) -> list[str]:
    return page.locator("[role=tab][aria-selected=true]").all_inner_texts()


def use(page: Any, viewer: Viewer) -> np.ndarray:
    """Moves the camera and sets controls; returns where the camera then is."""
    choose(page, "Motion", "Latest")
    page.get_by_role("tab", name="Look").click()
    page.get_by_label("Labels", exact=True).check()
    until(page, lambda: Probe(viewer).state.look.labels, "labels")
    before = camera_of(viewer)
    assert before is not None
    page.mouse.move(250, 300)
    page.mouse.down()
    page.mouse.move(330, 340, steps=8)
    page.mouse.up()
    until(page, lambda: distance(viewer, before) > 0.5, "the camera is turned")
    place = before

    def stands() -> bool:
        nonlocal place
        last, now = place, camera_of(viewer)
        assert now is not None
        place = now
        page.wait_for_timeout(500)
        return bool(np.allclose(now, last, atol=1e-4))

    until(page, stands, "it stands still")
    return place


def distance(viewer: Viewer, place: np.ndarray) -> float:
    """How far the page's camera is from a place, scene units."""
    now = camera_of(viewer)
    return np.inf if now is None else float(np.abs(now - place).max())


def stays_at(page: Any, viewer: Viewer, place: np.ndarray) -> None:
    """Checks that the page shows what it has shown before."""
    until(page, lambda: distance(viewer, place) < 0.01, "the camera is where it was")
    until(page, lambda: "Look" in tabs(page), "the tab is chosen")
    page.wait_for_timeout(1000)  # nothing that comes late moves it away again
    assert distance(viewer, place) < 0.01 and "Look" in tabs(page)
    assert page.get_by_label("Labels", exact=True).is_checked()
    assert "initialCamera" not in page.url


@pytest.mark.parametrize("focused", [True, False], ids=["focused", "in the background"])
def test_after_a_restart_of_the_training_camera_tab_and_controls_are_as_before(page, focused):
    """A page with the focus connects again by itself; others are loaded again by our script."""
    with Viewer(port=0, token=TOKEN) as viewer:
        port = port_of(viewer)
        VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        page.goto(viewer.url)
        is_open(page, viewer)
        place = use(page, viewer)
        page.evaluate(f"document.hasFocus = () => {str(focused).lower()}; window.isOld = true")
    until(page, lambda: is_disconnected(page), "it has no server")
    assert address.wait_until_free("127.0.0.1", port)
    with Viewer(port=port, token=TOKEN) as viewer:
        assert port_of(viewer) == port
        until(page, lambda: camera_of(viewer) is not None, "it is back")
        VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)  # robots come after the page
        page.get_by_text("Waiting for a trainer").wait_for()
        assert bool(page.evaluate("window.isOld")) is focused
        stays_at(page, viewer, place)
        until(page, lambda: Probe(viewer).state.look.labels, "the new training knows")
        until(page, lambda: viewer.mode == "latest", "all of it")
        assert viewer.streaming and viewer.speed == 1.0, "what was not chosen is as it begins"
        page.get_by_role("button", name="See all robots").click()
        until(page, lambda: distance(viewer, place) > 0.5, "the camera is free again")


class Wire:
    """A line between a page and its server, which can be cut as a network is: without a word."""

    def __init__(self, port: int):
        self._port, self._listens = port, socket.create_server(("127.0.0.1", 0))
        self.port, self._cut, self._ends = self._listens.getsockname()[1], False, []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listens.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := one.recv(1 << 16):
                other.sendall(part)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listens.shutdown(socket.SHUT_RDWR)
        self._listens.close()


def test_after_a_dropped_network_all_is_as_before_and_what_others_set_meanwhile_holds(page):
    with Viewer(port=0, token=TOKEN) as viewer, contextlib.closing(Wire(port_of(viewer))) as wire:
        VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        page.goto(viewer.url.replace(f":{port_of(viewer)}", f":{wire.port}"))
        is_open(page, viewer)
        place = use(page, viewer)
        wire.cut()
        page.context.set_offline(True)
        until(page, lambda: is_disconnected(page), "it says so")
        until(page, lambda: camera_of(viewer) is None, "the server has noticed")
        viewer.mode = "every_step"
        wire.mend()
        page.context.set_offline(False)
        until(page, lambda: camera_of(viewer) is not None, "it is back")
        stays_at(page, viewer, place)
        page.get_by_role("tab", name="Watch").click()
        assert page.get_by_label("Motion", exact=True).input_value() == "Every step"
        assert viewer.mode == "every_step"


def test_behind_a_proxy_at_a_path_of_its_own_the_page_shows_robots_and_steers(page, proxy):
    """As JupyterHub's and code-server's proxies do: below a path, with the token in it or in a
    cookie."""
    port = address.free_port("127.0.0.1", 8670)
    place = proxy(port)
    with Viewer(port=port, origins=[place]) as viewer:
        token = urlsplit(viewer.url).query.removeprefix("token=")
        steers(page, viewer, f"{place}/robots/{token}/", f"{place}/robots/?token={token}")


def test_in_code_server_the_page_shows_robots_and_steers(page, code_server):
    with Viewer(port=0) as viewer:
        token = urlsplit(viewer.url).query.removeprefix("token=")
        place = f"{code_server}/proxy/{port_of(viewer)}/"
        other = f"{code_server}/absproxy/{port_of(viewer)}/{token}/"
        steers(page, viewer, f"{place}{token}/", f"{place}?token={token}", other)


def steers(page: Any, viewer: Viewer, *addresses: str) -> None:
    """Opens the page at each address, and clicks on a control."""
    VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    for place in addresses:
        page.goto(place)
        is_open(page, viewer)
        on = not viewer.streaming
        page.get_by_label("Streaming").click()
        until(page, lambda on=on: viewer.streaming is on, "it steers")
        bar = page.locator("#brax-viser-bar[data-shows]")
        bar.wait_for()
        assert re.fullmatch(r"(?s).*\S.*", bar.inner_text())
        assert "lost" not in (bar.get_attribute("class") or "")
        page.goto("about:blank")
        until(page, lambda: camera_of(viewer) is None, "it is closed")
