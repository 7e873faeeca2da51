"""Replays of single pages: processes of their own, relayed at the page's port. Real ones."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
import websockets.sync.client
import websockets.sync.server
from viser import _messages as messages

from benchmarks.client import (
    SUBPROTOCOL,
    answers_to,
    hello,
    is_last_of_replay,
    messages_of,
    poses_of,
    websocket_of,
)
from brax_viser import Viewer
from brax_viser.cli import remote
from brax_viser.page import announced, own
from brax_viser.page.own import OwnReplay
from brax_viser.page.relay import MOST_SENT
from brax_viser.runs.folder import RunFolder
from tests.conftest import Page, eventually
from tests.recorded import recording_of, run_of
from tests.support import Probe, port_of
from tests.test_guard import encoded
from tests.test_requests import COMMAND, asked, header, status, tokens
from tests.toy import Toy

MODEL = Toy().model
STEPS = (0, 400_000, 1_200_000)
RUN = run_of(MODEL, 0.02, "Cart")
START = 120.0  # s, on a machine that has more to do


@contextlib.contextmanager
def training(path: Path) -> Iterator[Viewer]:
    """A viewer of a training that has kept episodes; nothing is stepped."""
    with Viewer(port=0, run_dir=path) as viewer:
        keeper = Probe(viewer).page._keeper
        keeper.begin(RUN)
        for step in STEPS:
            keeper.add(recording_of(MODEL, step, (500, 20, 30, 40)))
        eventually(lambda: len(keeper.summaries()) == 12 and (path / "model.mjb").exists(), "kept")
        yield viewer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("own") / "run"


@pytest.fixture(scope="module")
def viewer(run_dir) -> Iterator[Viewer]:
    with pytest.MonkeyPatch.context() as patch, training(run_dir) as viewer:
        patch.setattr(own, "IDLE_SECONDS", 600.0)  # these pages come and go, on a busy machine
        yield viewer


def own_url(viewer: Viewer, name: str, *, looking: bool = False) -> str:
    place, _, query = (viewer.onlooker_url if looking else viewer.url).partition("?")
    return f"{place}own/{name}/?{query}"


def replay_of(viewer: Viewer, name: str) -> OwnReplay:
    return Probe(viewer).own[name]


def loaded(url: str) -> tuple[int, str]:
    """Returns the status and the text of a page, which may have to begin first."""
    try:
        with urllib.request.urlopen(url, timeout=START) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def begin(viewer: Viewer, name: str, **how: bool) -> str:
    """Opens a replay's page, and returns its address once it plays."""
    url = own_url(viewer, name, **how)
    found, text = loaded(url)
    assert found == 200, text[:500]
    eventually(lambda: remote.ask(url, "timeline")["replay"]["seconds"], "it has read", START)
    return url


class OwnPage:
    """A websocket client that answers like a page."""

    def __init__(self, url: str):
        self.frames, self.seen = 0, threading.Event()
        self.labels: set[str] = set()  # of its controls
        self.socket = websockets.sync.client.connect(
            websocket_of(url),
            subprotocols=[SUBPROTOCOL],
            max_size=None,
            compression=None,
            open_timeout=START,
        )
        self.socket.send(hello())
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            for window in self.socket:
                assert isinstance(window, bytes)
                self.frames += poses_of(window) > 0
                props = [message.get("props") for message in messages_of(window)]
                self.labels |= {each["label"] for each in props if each and "label" in each}
                if is_last_of_replay(window):
                    self.seen.set()
                for answer in answers_to(window):
                    self.socket.send(answer)

    def close(self) -> None:
        self.socket.close()
        self._thread.join(timeout=10)


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_two_pages_scrub_independently_and_the_live_page_does_not_change(viewer):
    one, other = begin(viewer, "mine0001"), begin(viewer, "yours001", looking=True)
    live = Page(viewer)
    pages = [OwnPage(one), OwnPage(other)]
    for page in pages:
        assert page.seen.wait(START), "the whole scene has come"
        assert "Compare with" in page.labels, "it has the panel of episodes"
        assert not {"Save as", "Compare policies"} & page.labels, "but writes and compiles nothing"
    told = remote.ask(one, "replay/go", step=0), remote.ask(other, "replay/go", step=400_000)
    assert [each["replay"]["step"] for each in told] == [0, 400_000]
    assert all(each["steers"] and not each["live"] for each in told), "an onlooker too"
    remote.ask(one, "replay/toggle")
    remote.ask(one, "replay/seek", seconds=5.0)
    remote.ask(other, "replay/seek", seconds=7.5)
    frames = [page.frames for page in pages]
    remote.ask(one, "replay/toggle")
    eventually(lambda: pages[0].frames > frames[0] + 5, "its robots move", START)
    now = remote.ask(one, "timeline"), remote.ask(other, "timeline")
    assert [each["replay"]["step"] for each in now] == [0, 400_000]
    assert now[1]["replay"]["position"] == 7.5 and not now[1]["replay"]["playing"]
    assert not Probe(viewer).replay.active and Probe(viewer).replay.told().steps == STEPS
    assert not remote.ask(viewer.url, "timeline")["replay"]["active"]
    for page in (*pages, live):
        page.close()


def test_a_replay_follows_what_the_training_records(viewer):
    url = begin(viewer, "mine0001")
    assert [step for step, _ in remote.ask(url, "timeline")["marks"]["of"]] == [*STEPS]
    Probe(viewer).page._keeper.add(recording_of(MODEL, 1_600_000, (50,)))
    eventually(
        lambda: remote.ask(url, "timeline")["marks"]["of"][-1][0] == 1_600_000, "it is there", START
    )


def test_the_replay_process_has_low_priority_imports_no_jax_and_is_not_announced(viewer):
    begin(viewer, "mine0001")
    process = replay_of(viewer, "mine0001")
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "mujoco" in mapped and "jaxlib" not in mapped
    assert os.getpriority(os.PRIO_PROCESS, process.pid) >= 10
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
    assert os.getpgid(process.pid) != os.getpgid(0), "Ctrl-C in the terminal does not reach it"
    assert os.getsid(process.pid) == os.getsid(0), "it shares the cores of the same session"
    port = process.port.result()
    assert not [note for note in announced.announced() if f":{port}/" in note.url]


def test_a_replay_is_private_and_relays_no_token_or_cookie(viewer):
    url, token = begin(viewer, "mine0001"), tokens(viewer)[0]
    inner = replay_of(viewer, "mine0001").token
    cookie = f"Cookie: brax_viser_{port_of(viewer)}={token}"
    given = asked(viewer, f"/own/mine0001/?token={token}")
    by_cookie = asked(viewer, "/own/mine0001/", cookie)
    for path in ("/own/mine0001", "/own/mine0001/index.html", f"/{token}/own/mine0001/"):
        same = asked(viewer, path, cookie)
        assert status(same) == 200 and same.endswith(given.partition(b"\r\n\r\n")[2]), path
    for answer, live in ((given, asked(viewer, f"/?token={token}")), (by_cookie, None)):
        live = live or asked(viewer, "/", cookie)
        names = "Content-Security-Policy", "Set-Cookie", "Referrer-Policy", "Content-Type"
        assert status(answer) == 200
        for name in names:
            assert header(answer, name) == header(live, name), name
        assert b"brax-viser-bar" in answer and inner.encode() not in answer
    zipped = asked(viewer, "/own/mine0001/", cookie, "Accept-Encoding: gzip, br")
    assert header(zipped, "Content-Encoding") == "gzip" and len(zipped) < len(given)
    timeline = asked(viewer, "/own/mine0001/api/timeline", cookie)
    assert header(timeline, "Cache-Control") == "no-store"
    assert header(timeline, "Content-Type") == "application/json"
    assert inner.encode() not in timeline and token.encode() not in timeline
    # What the process is told has neither the token nor the cookie of the page that all share.
    with requests_to(viewer, "mine0001") as seen:
        asked(viewer, f"/own/mine0001/api/timeline?token={token}&curves=1", cookie, "X-Other: 1")
        assert len(seen) == 1
        assert token not in seen[0] and "Cookie" not in seen[0] and "X-Other" not in seen[0]
        assert seen[0].startswith(f"GET /{inner}/api/timeline?curves=1 HTTP/1.1\r\n")
    assert url


@contextlib.contextmanager
def requests_to(viewer: Viewer, name: str) -> Iterator[list[str]]:
    """Stands in for a replay's process for a while, and yields the requests that it gets."""
    seen: list[str] = []
    with stand_in(viewer, name) as listening:

        def answer() -> None:
            link, _ = listening.accept()
            with link:
                seen.append(link.recv(1 << 16).decode())
                link.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: a=b\r\n"
                    b"Content-Length: 2\r\n\r\nOK"
                )

        thread = threading.Thread(target=answer)
        thread.start()
        yield seen
        thread.join(timeout=20)


@contextlib.contextmanager
def stand_in(viewer: Viewer, name: str) -> Iterator[socket.socket]:
    """Yields a socket that listens in place of a replay's process."""
    process, loop = replay_of(viewer, name), Probe(viewer).events
    before = process.port
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def point() -> None:
            process.port = process._loop.create_future()
            process.port.set_result(listening.getsockname()[1])

        loop.now(point)
        try:
            yield listening
        finally:
            process.port = before


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nless",
        b"HTTP/1.1 200 OK\r\n\r\nwithout a length",
        b"what\r\n\r\n",
        b"HTTP/1.1 x y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=("nothing", "cut off", "no length", "no HTTP", "no status", "a long line"),
)
def test_a_wrong_answer_of_the_replay_process_is_reported(viewer, sent):
    begin(viewer, "mine0001")
    with stand_in(viewer, "mine0001") as listening:

        def answer() -> None:
            link, _ = listening.accept()
            with link:
                link.recv(1 << 16)
                link.sendall(sent)

        thread = threading.Thread(target=answer)
        thread.start()
        found = asked(viewer, f"/own/mine0001/?token={tokens(viewer)[0]}")
        thread.join(timeout=20)
    assert status(found) == 503 and b"does not answer" in found


def test_without_a_token_from_another_site_or_at_an_odd_path_nothing_is_started(viewer):
    steering, looking = tokens(viewer)
    before = dict(Probe(viewer).own)
    for rest in ("", "/", "/index.html", "/api/timeline", "/api/replay/live"):
        for query in ("", "?token=", "?token=wrong"):
            answer = asked(viewer, f"/own/strange1{rest}{query}", COMMAND)
            assert status(answer) == 403, rest
    wrong = "Host: elsewhere.example.org", "Origin: https://elsewhere.example.org"
    for token in (steering, looking):
        for line in (*wrong, "Sec-Fetch-Site: cross-site"):
            assert status(asked(viewer, f"/own/strange1/?token={token}", line)) == 403, line
        for path in ODD:
            assert status(asked(viewer, f"{path}?token={token}", COMMAND)) == 404, path
        for path in ("/own/strange1/api/timeline", "/own/strange1/api/replay/live"):
            assert status(asked(viewer, f"{path}?token={token}", COMMAND)) == 503, path
    for given in ({}, {"Cookie": f"brax_viser_{port_of(viewer)}=wrong"}):
        with pytest.raises(websockets.InvalidStatus, match="403"):
            websockets.sync.client.connect(
                f"ws://127.0.0.1:{port_of(viewer)}/own/strange1/", additional_headers=given
            )
    with pytest.raises(websockets.InvalidStatus, match="403"):
        websockets.sync.client.connect(
            websocket_of(own_url(viewer, "strange1")),
            origin="https://elsewhere.example.org",  # type: ignore[arg-type]
        )
    assert Probe(viewer).own.keys() == before.keys()


ODD = [
    *("/own/", "/own/short", "/own/seventeen17charss/", "/own/UPPERCASE/", "/own/with-dash/"),
    *("/own//strange1/", "/own/strange1//", "/own/strange1/..", "/own/strange1/../api/hold"),
    *("/own/strange1/%2e%2e/api/hold", "/own/strange1/.hidden", "/own/strange1/a/../b"),
    *("/own/strange1/api/", "/own/strange1/api/hold", "/own/strange1/api/snapshot"),
    *(
        "/own/strange1/api/status",
        "/own/strange1/api/timeline/",
        "/own/strange1/api/replay/../hold",
    ),
    *("/own/strange1/own/strange2/", "/own/..%2fstrange1/", "/own/strange\xb9/", "/own/strange1;/"),
    *("/own/strange1\r/", "/own/strange1/a\\b", "/own/strange1\t/", "/own/strange1/\x00"),
]


def test_a_command_needs_the_header_as_on_the_live_page(viewer):
    begin(viewer, "mine0001")
    path = f"/own/mine0001/api/replay/loop?on=1&token={tokens(viewer)[0]}"
    assert status(asked(viewer, path)) == 403
    assert status(asked(viewer, path, COMMAND)) == 200
    assert status(asked(viewer, path.replace("on=1", "on=x"), COMMAND)) == 400


def test_a_page_that_sends_invalid_messages_is_disconnected_by_its_process(viewer):
    page = OwnPage(begin(viewer, "mine0001"))
    assert page.seen.wait(START)
    page.socket.send(encoded(messages.ShareUrlRequest()))
    eventually(lambda: page.socket.close_code == 1008, "it is, with the reason", START)
    other = OwnPage(own_url(viewer, "mine0001"))
    assert other.seen.wait(START), "others are not"
    other.socket.send(b"\0" * (MOST_SENT + 1))
    eventually(lambda: other.socket.close_code == 1009, "too large for the relay", START)


def test_a_process_or_page_beyond_the_limit_is_refused_with_a_reason(viewer, monkeypatch):
    begin(viewer, "mine0001")
    monkeypatch.setattr(own, "MOST_PROCESSES", len(Probe(viewer).own))
    answer = asked(viewer, f"/own/onemore1/?token={tokens(viewer)[0]}")
    assert status(answer) == 503 and b"which is the most" in answer
    assert "onemore1" not in Probe(viewer).own
    mine = replay_of(viewer, "mine0001")
    eventually(lambda: not mine.pages, "the pages of other tests have left")
    monkeypatch.setattr(own, "MOST_PAGES", 1)
    page = OwnPage(own_url(viewer, "mine0001"))
    assert page.seen.wait(START)
    with pytest.raises(websockets.InvalidStatus, match="503"):
        websockets.sync.client.connect(websocket_of(own_url(viewer, "mine0001")))
    page.close()


def test_a_process_ends_after_its_page_has_left_and_comes_back_with_it(viewer, monkeypatch):
    page = OwnPage(begin(viewer, "leaving1"))
    assert page.seen.wait(START)
    process = replay_of(viewer, "leaving1")
    first = process.pid
    with monkeypatch.context() as patch:
        patch.setattr(own, "IDLE_SECONDS", 1.0)
        Probe(viewer).events.now(process.wait)
        time.sleep(3.0)
        assert lives(first), "with a page it stays"
        page.close()
        eventually(lambda: "leaving1" not in Probe(viewer).own and not lives(first), "it is gone")
    assert status(asked(viewer, "/own/leaving1/api/timeline?" + viewer.url.split("?")[1])) == 503
    page = OwnPage(own_url(viewer, "leaving1"))  # as a page whose network was lost
    assert page.seen.wait(START)
    assert replay_of(viewer, "leaving1").pid != first
    page.close()


def test_the_death_of_a_process_is_reported_and_it_restarts_with_its_page(viewer, caplog):
    page = OwnPage(begin(viewer, "leaving2"))
    assert page.seen.wait(START)
    pid = replay_of(viewer, "leaving2").pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: page.socket.close_code == 1001, "the page is told")
    eventually(lambda: "leaving2" not in Probe(viewer).own, "and it is forgotten")
    assert "the replay of a single page has ended: without a word" in caplog.text
    begin(viewer, "leaving2")
    assert replay_of(viewer, "leaving2").pid != pid


def test_a_slow_page_makes_its_process_wait_and_fills_no_memory_here(viewer):
    """A process that sends without end, and a page that reads nothing."""
    begin(viewer, "mine0001")
    sent = [0]

    def pour(link: Any) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                link.send(b"\0" * 1_000_000)
                sent[0] += 1

    with stand_in(viewer, "mine0001") as listening:
        server = websockets.sync.server.serve(pour, sock=listening.dup(), compression=None)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stalled = websockets.sync.client.connect(
            websocket_of(own_url(viewer, "mine0001")), compression=None, max_queue=1, max_size=None
        )
        try:
            eventually(lambda: sent[0] > 1, "it pours")
            before = -1
            while before != sent[0] < 100:  # until no more is taken
                before = sent[0]
                time.sleep(1.0)
            assert sent[0] < 40, "MB, most of them in the buffers of the sockets"
            Page(viewer).close()
        finally:
            stalled.socket.shutdown(socket.SHUT_RDWR)  # without a word, which it would wait for
            server.shutdown()


def test_before_the_first_recording_the_page_says_so_and_nothing_is_started():
    with Viewer(port=0) as viewer:
        told = remote.ask(viewer.url, "timeline")
        assert told["own_refused"] == "No episode is recorded yet"
        answer = asked(viewer, f"/own/mine0001/?token={tokens(viewer)[0]}")
        assert status(answer) == 503 and b"No episode is recorded yet" in answer
        assert not Probe(viewer).own


def test_without_a_run_directory_it_shows_a_copy_of_what_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Viewer(port=0) as viewer:
        keeper = Probe(viewer).page._keeper
        keeper.begin(RUN)
        for step in STEPS:
            keeper.add(recording_of(MODEL, step, (500, 20, 30, 40)))
        assert remote.ask(viewer.url, "timeline")["own_refused"] is None
        told = remote.ask(begin(viewer, "mine0001"), "timeline")
        assert [step for step, _ in told["marks"]["of"]] == [*STEPS]
        assert len(list(tmp_path.iterdir())) == 1
    eventually(lambda: not list(tmp_path.iterdir()), "the copy is removed")


def test_a_run_directory_is_offered_and_a_failure_to_open_it_is_reported(viewer, tmp_path, caplog):
    assert remote.ask(viewer.url, "timeline")["own_refused"] is None
    with training(tmp_path / "run") as other:
        (tmp_path / "run" / "model.mjb").unlink()
        found, text = loaded(own_url(other, "mine0001"))
    assert found == 503
    assert re.search(r"could not begin: brax-viser: .*has no model\.mjb", text), text
    assert "has no model.mjb" in caplog.text


def given_up(url: str) -> None:
    with contextlib.suppress(OSError):
        loaded(url)


def test_all_replay_processes_end_with_the_viewer(tmp_path):
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with training(tmp_path / "run") as viewer:
        page = OwnPage(begin(viewer, "mine0001"))
        assert page.seen.wait(START)
        late = threading.Thread(target=given_up, args=(own_url(viewer, "mine0002"),))
        late.start()  # it begins, and is not there yet
        running = Probe(viewer).own
        eventually(lambda: "mine0002" in running and running["mine0002"].pid, "it has begun")
        pids = [one.pid for one in running.values()]
        assert len(pids) == 2 and all(map(lives, pids))
        began = time.monotonic()
    assert time.monotonic() - began < 20
    eventually(lambda: not any(map(lives, pids)), "they have ended")
    late.join(timeout=20)
    page.close()
    eventually(lambda: set(threading.enumerate()) <= threads, "so have their threads")
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "and their pipes")


FORKS = """
import os, sys, time
from brax_viser.replay import ReplayViewer
from brax_viser.runs.reader import open_run

run = open_run(sys.argv[1])
viewer = ReplayViewer(run.info, run, run_dir=run.path, port=0)
sys.stdin.readline()
forked = os.fork()
if forked:
    print("forked", forked, flush=True)
time.sleep(600)
"""


def test_a_process_ends_when_its_parent_is_killed_even_if_that_has_forked(tmp_path):
    kept = RunFolder(tmp_path / "run", RUN)
    kept.add(recording_of(MODEL, 0, (50,)))
    kept.close()
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    url = parent.stdout.readline().split()[-1]
    place, _, query = url.partition("?")
    page = OwnPage(f"{place}own/mine0001/?{query}")
    assert page.seen.wait(START)
    mine = children(parent.pid)
    assert len(mine) == 1
    parent.stdin.write("\n")
    parent.stdin.flush()
    forked = int(parent.stdout.readline().split()[-1])
    parent.kill()
    parent.wait()
    try:
        assert lives(forked), "which has what the parent had open"
        eventually(lambda: not lives(mine[0]), "it ends by itself", START)
    finally:
        os.kill(forked, signal.SIGKILL)
        parent.stdin.close()
        parent.stdout.close()


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found
