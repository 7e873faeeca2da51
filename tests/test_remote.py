"""Another terminal, or a program, asks what a training is doing, and holds it."""

import json
import logging
import os
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import mujoco
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.cli import remote
from brax_viser.page import announced
from brax_viser.page.access import tls_of
from tests.conftest import eventually
from tests.recorded import Kept, recording_of
from tests.support import Probe
from tests.toy import XML, Toy


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def viewer(cache):
    with Viewer(port=0) as viewer:
        yield viewer


def get(url: str, **headers: str) -> tuple[int, str]:
    """Returns status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def urls() -> list[str]:
    """The addresses that are noted."""
    return [note.url for note in announced.announced()]


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def at(viewer: Viewer, path: str, token: str | None = None) -> str:
    place, _, query = viewer.url.partition("?")
    return f"{place}{path}?{query}" if token is None else f"{place}{path}?token={token}"


def test_a_training_reports_its_state_and_obeys_commands(viewer):
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 8))
    step = jax.jit(jax.vmap(env.step))
    for _ in range(3):
        state = jax.block_until_ready(step(state, jnp.zeros((8, 1))))
    told = remote.ask(viewer.url, "status")
    assert (told["env"], told["phase"]) == ("Toy", "training")
    assert 8 <= told["num_steps"] <= 24, "the last steps granted are not known"
    assert told["url"] in viewer.url and "token" not in told["url"], "it may be logged"
    assert remote.ask(viewer.url, "switch", on=0)["streaming"] is False and not viewer.streaming
    assert remote.ask(viewer.url, "switch", on=1)["streaming"] is True and viewer.streaming
    remote.ask(viewer.url, "hold")
    done = []
    thread = threading.Thread(
        target=lambda: done.append(jax.block_until_ready(step(state, jnp.zeros((8, 1)))))
    )
    thread.start()
    eventually(lambda: remote.ask(viewer.url, "status")["held"], "it is held")
    assert not done
    assert remote.ask(viewer.url, "resume")["held"] is False
    thread.join(60)
    assert done
    with pytest.raises(ValueError, match="must be 0 or 1"):
        remote.ask(viewer.url, "switch", on=7)
    with pytest.raises(ValueError, match="no 'restart': there are status, snapshot, hold"):
        remote.ask(viewer.url, "restart")


def test_a_page_of_another_site_cannot_command(viewer):
    status, text = get(at(viewer, "api/hold"))
    assert status == 403 and "X-Brax-Viser" in text
    token = viewer.url.partition("token=")[2]
    cookie = f"brax_viser_{viewer.url.split(':')[2].split('/')[0]}={token}"
    place = viewer.url.partition("?")[0]
    assert get(f"{place}api/hold", Cookie=cookie)[0] == 403
    evil = {"Origin": "http://evil.example", "X-Brax-Viser": "1"}
    assert get(at(viewer, "api/hold"), **evil)[0] == 403
    assert get(at(viewer, "api/status", token="wrong"))[0] == 403
    assert get(f"{place}api/status")[0] == 403
    assert not viewer.stats().held and not Probe(viewer).shared.hold.paused


def test_an_onlooker_reads_and_changes_nothing(viewer):
    assert remote.ask(viewer.onlooker_url, "status")["streaming"]
    with pytest.raises(ValueError, match="look on"):
        remote.ask(viewer.onlooker_url, "switch", on=0)
    assert viewer.streaming


BAR_COMMANDS = (
    *("go?step=1", "toggle", "seek?seconds=0.1", "step?n=1", "speed?speed=2", "loop?on=0"),
    *("turn?by=1", "live"),
)


def test_the_time_bar_is_answered_and_obeyed_only_with_the_token(viewer):
    probe, model = Probe(viewer), mujoco.MjModel.from_xml_string(XML)
    probe.keep(Kept([*recording_of(model, 0), *recording_of(model, 1000)]))
    told = remote.ask(viewer.url, "timeline")
    assert told["steers"] and [step for step, _ in told["marks"]["of"]] == [0, 1000]
    port = viewer.url.split(":")[2].split("/")[0]
    place, _, query = viewer.url.partition("?")
    token = query.removeprefix("token=")
    cookie = {"Cookie": f"brax_viser_{port}={token}"}
    for path in ("api/timeline", f"{token}/api/timeline", f"{token}/api/timeline?marks=7"):
        status, text = get(f"{place}{path}", **({} if token in path else cookie))
        assert status == 200 and json.loads(text)["now"] == 0, path
    has = told["marks"]["version"]
    assert "marks" not in json.loads(get(f"{place}api/timeline?marks={has}", **cookie)[1])
    assert get(f"{place}api/timeline")[0] == 403
    for command in BAR_COMMANDS:
        assert get(f"{place}api/replay/{command}")[0] == 403, "no token"
        assert get(f"{place}api/replay/{command}", **cookie)[0] == 403, "no header"
    assert not probe.replay.active
    told = remote.ask(viewer.url, "replay/go", step=400)
    assert (told["replay"]["active"], told["replay"]["step"]) == (True, 0) and probe.replay.active
    with pytest.raises(ValueError, match=r"speed=99\.0: must be"):
        remote.ask(viewer.url, "replay/speed", speed=99)
    with pytest.raises(ValueError, match="no 'replay/again'"):
        remote.ask(viewer.url, "replay/again")
    assert not remote.ask(viewer.url, "replay/live")["replay"]["active"]


def test_an_onlooker_sees_the_time_bar_and_changes_nothing_by_it(viewer):
    probe, model = Probe(viewer), mujoco.MjModel.from_xml_string(XML)
    probe.keep(Kept(recording_of(model, 0)))
    remote.ask(viewer.url, "replay/toggle")
    eventually(lambda: probe.replay.told().seconds, "the episodes are read")
    probe.now(lambda: probe.replay.seek(0.2))
    before = probe.replay.told()
    told = remote.ask(viewer.onlooker_url, "timeline")
    assert told["steers"] is False and len(told["marks"]["of"]) == 1 and told["replay"]["active"]
    for command in BAR_COMMANDS:
        name, _, query = command.partition("?")
        key, _, value = query.partition("=")
        with pytest.raises(ValueError, match="look on"):
            remote.ask(viewer.onlooker_url, f"replay/{name}", **({key: value} if key else {}))
    assert probe.replay.told() == before


def test_the_newest_page_of_this_user_is_found_and_no_one_else_can_read_where(viewer, tmp_path):
    (note,) = (tmp_path / "brax_viser" / "viewers").iterdir()
    assert note.stat().st_mode & 0o777 == 0o600 and note.parent.stat().st_mode & 0o777 == 0o700
    with Viewer(port=0) as newer:
        assert urls() == [newer.url, viewer.url]
    assert urls() == [viewer.url]
    gone = note.with_name("1-1.json")
    gone.write_text(json.dumps(json.loads(note.read_text()) | {"pid": ended(), "since": 9e9}))
    (note.parent / "broken.json").write_text("{")
    assert urls() == [viewer.url] and not gone.exists()


@pytest.mark.parametrize("other", ["machine", "container"])
def test_a_page_on_another_machine_is_mentioned_and_its_note_stays(
    viewer, monkeypatch, capsys, other
):
    """They share the home, as in a cluster. Numbers of its processes say nothing here."""
    name = {"machine": (socket, "gethostname"), "container": (announced, "_container")}[other]
    with monkeypatch.context() as there:
        there.setattr(*name, lambda: "node/7")
        forget = announced.announce("http://127.0.0.1:8000/?token=a-token-there", 8000)
    [note] = [note for note in announced.announced() if not note.is_here]
    place = next(
        path for path in announced.folder().iterdir() if "a-token-there" in path.read_text()
    )
    place.write_text(json.dumps(asdict(note) | {"pid": ended(), "since": 1e9}))
    assert place.stat().st_mode & 0o777 == 0o600
    assert remote.status() == 0, "the page of this machine is asked"
    viewer.close()
    assert remote.status() == 2
    said = " ".join(capsys.readouterr().err.split())
    where = "on node/7" if other == "machine" else "on this machine, but outside of this container"
    assert f"A page of yours was opened {where}" in said and "2001-09-09" in said
    assert "a-token-there" not in said and place.exists()
    with monkeypatch.context() as there:  # where it is known that the process has ended
        there.setattr(*name, lambda: "node/7")
        assert urls() == [] and not place.exists()
    forget()


def test_machines_with_equal_process_numbers_keep_separate_notes(monkeypatch):
    for machine in ("node7", "node8"):
        monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
        announced.announce(f"http://127.0.0.1:8000/?token=at-{machine}", 8000)
    assert sorted(note.machine for note in announced.announced()) == ["node7", "node8"]


class Proxy(socketserver.BaseRequestHandler):
    """Keeps what it is asked for, and refuses it."""

    asked: ClassVar[list[bytes]] = []

    def handle(self) -> None:
        self.asked.append(self.request.recv(10_000))
        self.request.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def asked(monkeypatch) -> Iterator[list[bytes]]:
    """What a proxy is asked for that the environment names."""
    Proxy.asked.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        yield Proxy.asked
        server.shutdown()
        thread.join()


def test_a_proxy_is_never_told_the_token(viewer, certificate, asked):
    assert remote.ask(viewer.url, "status")["phase"] == "waiting"
    with Viewer(port=0, tls=certificate) as encrypted:
        assert remote.ask(encrypted.url, "status")["phase"] == "waiting"
    with pytest.raises(ValueError, match="nothing that is brax_viser's answers"):
        remote.ask("http://page.invalid/?token=a-token-there", "status")
    assert not asked
    with pytest.raises(
        ValueError, match="502"
    ):  # beyond a proxy, which passes on what it cannot read
        remote.ask("https://page.invalid/?token=a-token-there", "status")
    assert len(asked) == 1 and asked[0].startswith(b"CONNECT page.invalid:443 ")
    assert b"a-token-there" not in asked[0]


def issued(folder: Path, name: str) -> tuple[str, str]:
    """Returns the files of a certificate, with that of the authority that has issued it behind, and
    of its key. The authority is made first."""
    authority = [str(folder / file) for file in ("authority.pem", "authority.key")]
    chain, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    new = "openssl req -x509 -newkey rsa:2048 -nodes -days 2"
    by = f"-CA {authority[0]} -CAkey {authority[1]} -addext basicConstraints=critical,CA:FALSE"
    lines = [f"{new} -subj /CN={name} {by} -out {chain} -keyout {key}"]
    if not Path(authority[0]).exists():
        lines.insert(0, f"{new} -subj /CN=authority -out {authority[0]} -keyout {authority[1]}")
    for line in lines:
        subprocess.run(line.split(), check=True, capture_output=True)
    with open(chain, "a") as file:
        file.write(Path(authority[0]).read_text())
    return chain, key


def test_exactly_the_certificate_of_an_encrypted_page_is_trusted(tmp_path):
    """It need not be for a name of this machine, nor of an authority that is known; but another one
    of the same authority is not trusted."""
    with Viewer(port=0, tls=issued(tmp_path, "hub.example.org")) as viewer:
        assert remote.status() == 0
        assert remote.ask(viewer.url, "status")["url"].startswith("https://127.0.0.1:")
        [place] = announced.folder().iterdir()
        other = tls_of(issued(tmp_path, "other.example.org"))
        assert other is not None and other.certificate
        noted = json.loads(place.read_text())
        place.write_text(json.dumps(noted | {"certificate": other.certificate}))
        with pytest.raises(ValueError, match="certificate verify failed"):
            remote.ask(viewer.url, "status")


def test_the_command_answers_programs_in_json_and_people_in_words(viewer, tmp_path, capsys):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "brax_viser", "status"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["phase"] == "waiting"
    told = json.loads(done.stdout) | {"env": "Ant", "num_timesteps": 3_000_000, "reward": 12.0}
    words = remote.in_words(told | {"num_steps": 1_500_000, "elapsed_seconds": 75.0, "held": True})
    assert words.startswith("Ant: held · 1.5 M of 3 M steps · for 1:15 · reward 12.0\nhttp://")
    limited = told | {"hold_seconds": 90.0}
    assert "steps · for 0:00 · a hold may last 1:30 ·" in remote.in_words(
        limited | {"elapsed_seconds": 0.0}
    )
    held = remote.in_words(limited | {"held": True, "hold_seconds_left": 30.0})
    assert held.startswith("Ant: held, goes on by itself in 0:30 ·")
    viewer.close()
    assert remote.status() == 2
    assert remote.status(f"http://127.0.0.1:{9}") == 2
    assert remote.switch("perhaps") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no page of yours is open" in said and "nothing that is brax_viser's answers" in said
    assert "must be on or off" in said


def test_without_the_token_the_command_says_what_is_missing(viewer):
    with pytest.raises(ValueError, match="asks for the token"):
        remote.ask(viewer.url.partition("?")[0], "status")


def test_a_home_that_cannot_be_written_costs_nothing_but_the_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with Viewer(port=0) as viewer:
        assert remote.ask(viewer.url, "status")["phase"] == "waiting"
        assert announced.announced() == []


def noted(tmp_path: Path) -> Path:
    """Notes an address and returns the file."""
    announced.announce("http://127.0.0.1:8000/?token=a-token-here", 8000)
    return next((tmp_path / "brax_viser" / "viewers").iterdir())


@pytest.mark.parametrize("left", ["a file for all", "a link", "a second name"])
def test_a_token_is_noted_in_a_file_of_this_user_alone_whatever_was_there(tmp_path, left):
    place, other = noted(tmp_path), tmp_path / "another file"
    other.touch()
    place.unlink()
    if left == "a file for all":
        place.touch()
        place.chmod(0o666)
    elif left == "a link":
        place.symlink_to(other)
    else:
        place.hardlink_to(other)
    assert noted(tmp_path) == place
    assert place.stat().st_mode & 0o777 == 0o600 and not place.is_symlink()
    assert "a-token-here" in place.read_text() and other.read_text() == ""


def test_no_token_is_noted_in_a_folder_of_another_user(tmp_path, monkeypatch, caplog):
    place = noted(tmp_path)
    assert urls() == ["http://127.0.0.1:8000/?token=a-token-here"]
    another = place.parent.stat().st_uid + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    assert urls() == [], "nor is one believed there"
    place.unlink()
    with caplog.at_level(logging.INFO, "brax_viser"):
        announced.announce("http://127.0.0.1:8000/?token=a-token-here", 8000)
    assert not place.exists() and f"{place.parent} belongs to another user" in caplog.text
