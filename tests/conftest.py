"""Fixtures that the tests share: a viewer, a page without a browser, and a real browser."""

import gc
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import viser
import websockets
import websockets.sync.client

from benchmarks.client import SUBPROTOCOL, answers_to, hello, poses_of, websocket_of
from benchmarks.screenshot import FLAGS
from brax_viser import Viewer, compat
from brax_viser.page import address
from brax_viser.runs import keeper
from tests import lanes
from tests.support import Probe

# Random examples at home; in CI derandomised, so that a failure can be reproduced. No deadline: an
# example's duration depends more on the machine's load than on the code.
hypothesis.settings.register_profile("home", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "home")

if os.environ.get("TRY_UNTESTED_VISER"):  # what would work if a newer one were taken for tested
    compat.VISER_LOOPS += (f"{'.'.join(viser.__version__.split('.')[:2])}.",)
    compat.VISER_RECORDINGS = compat.VISER_LOOPS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-until",
        type=float,
        default=math.inf,
        metavar="TIME",
        help="skip tests marked `full` from this time on, in s since 1970 (`date +%%s`)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > item.config.getoption("full_until") and item.get_closest_marker("full"):
        pytest.skip("no time left for it")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skips other lanes' files under `-m unit`: importing them takes longer than many tests."""
    lane, wanted = lanes.LANES.get(collection_path.stem), config.option.markexpr
    return True if wanted == "unit" and lane and lane.name != wanted else None


def pytest_pycollect_makemodule(module_path: Path) -> None:
    lanes.lane_of(module_path)  # raised here, so that every worker names a file without a lane


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lanes.assign(items)
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        lanes.longest_first(items)


class Page:
    """A websocket client that answers like a browser's page, and counts the frames that it gets."""

    def __init__(self, viewer: Viewer):
        self.frames = 0
        self.windows = 0
        probe = Probe(viewer)
        before = set(probe.server.get_clients())
        self._socket = websockets.sync.client.connect(
            websocket_of(viewer.url), subprotocols=[SUBPROTOCOL], max_size=None, compression=None
        )
        self._socket.send(hello())
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

        def seen() -> bool:  # this page, not an earlier one that may still be connected
            return probe.shared.control.watched and set(probe.server.get_clients()) - before

        eventually(seen, "the viewer sees the page")

    def _receive(self) -> None:
        try:
            for window in self._socket:
                assert isinstance(window, bytes)
                self.windows += 1
                self.frames += poses_of(window) > 0
                for answer in answers_to(window):
                    self._socket.send(answer)
        except websockets.ConnectionClosed:
            return

    def close(self) -> None:
        self._socket.close()
        self._thread.join(timeout=5)


def eventually(condition: Callable[[], object], what: str, timeout: float = 60.0) -> None:
    """Waits until another thread makes a condition true; fails the test after `timeout`, s."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {timeout} s still not true: {what}")
        time.sleep(0.005)


def lacking(what: str) -> NoReturn:
    """Skips a test at home, and fails it in CI, for want of a tool that `.ci/run` installs."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiles with fewer optimisations in the files that `tests.lanes` marks as quick, and in the
    processes that they start."""
    if not lanes.lane_of(request.path).quick:
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "true")
        yield
    jax.config.update(name, before)


@pytest.fixture(scope="module", autouse=True)
def viewers_are_closed() -> Iterator[None]:
    """A viewer that a file leaves open would fail tests of other files."""
    before = sys.getswitchinterval()
    yield
    assert sys.getswitchinterval() == before, "a viewer was left open"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_recorded_unasked() -> Iterator[None]:
    """Tests that count steps and bytes must not depend on whether they take longer than the ten
    seconds after which a training is recorded. `Probe.record_from_now` records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "MEMORY_AFTER", math.inf)
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drops a file's compiled programs when it ends. Linux allows a process 65,530 mappings; each
    program, however small, keeps three, and XLA crashes when none is left. Files of the lane unit
    compile none."""
    yield
    if "jax" in sys.modules and lanes.lane_of(request.path).name != "unit":
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    with Viewer(port=0) as viewer:
        yield viewer


@pytest.fixture
def page(viewer: Viewer) -> Iterator[Page]:
    page = Page(viewer)
    yield page
    page.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -out {files[0]} -keyout {files[1]}".split(),
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture
def proxy(tmp_path) -> Iterator[Callable[[int], str]]:
    """Yields a function that starts nginx, with what the documents say, before a page's port and
    returns its address."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        lacking("no nginx found: install nginx-light")
    words = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    location = words.split("<!-- nginx -->\n```\n")[1].split("```")[0]
    running: list[subprocess.Popen[bytes]] = []

    def start(page: int) -> str:
        port = address.free_port("127.0.0.1", 8700)
        folders = "".join(
            f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr;"
            f"events {{}} http {{ access_log off; uwsgi_temp_path {tmp_path}; {folders}"
            f"server {{ listen 127.0.0.1:{port}; {location.replace('8000', str(page))} }} }}"
        )
        running.append(subprocess.Popen([nginx, "-p", tmp_path, "-c", tmp_path / "nginx.conf"]))
        eventually(lambda: not address.is_free("127.0.0.1", port), "nginx listens")
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture
def code_server(tmp_path) -> Iterator[str]:
    """Starts VS Code for the web, whose proxy forwards ports below /proxy/ and /absproxy/; yields
    its address."""
    command = shutil.which("code-server")
    if command is None:
        pytest.skip("no code-server found: npm install -g code-server")
    port = address.free_port("127.0.0.1", 8940)
    options = "--auth=none --disable-telemetry --disable-update-check --disable-workspace-trust"
    folders = f"--user-data-dir={tmp_path}/data --config={tmp_path}/config.yaml"
    server = subprocess.Popen(
        [command, f"--bind-addr=127.0.0.1:{port}", *options.split(), *folders.split()],
        env={**os.environ, "HOME": str(tmp_path)},
    )
    eventually(lambda: not address.is_free("127.0.0.1", port), "it listens")
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def chromium():
    """A browser with software WebGL."""
    executable = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        lacking("no Chromium found: install it, or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()
