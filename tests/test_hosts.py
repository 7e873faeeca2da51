"""Several processes of one training share one page; tested with a custom loop over loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from brax_viser.host.callbacks import Callbacks
from brax_viser.host.control import Control
from brax_viser.host.hold import Hold
from brax_viser.host.selection import Selection
from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState
from brax_viser.processes import messages, rendezvous
from brax_viser.processes.leader import Leader
from brax_viser.processes.sockets import MOST_BYTES, SocketClient, SocketServer, _keys
from brax_viser.processes.worker import Worker
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import FRESH, GIVEN, HEADER_COLUMNS, NEVER, PUSH, Origin
from brax_viser.records.view import View, beside
from tests.conftest import eventually

COMMON = """
    import os, sys, time, threading, traceback
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax
    process, port = int(sys.argv[1]), sys.argv[2]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    import jax.numpy as jnp, numpy as np
    from brax import envs
    from jax.sharding import NamedSharding, PartitionSpec
    from brax_viser import Viewer, VisualizedEnv
    from brax_viser.panel import words
    from tests.conftest import Page, eventually
    from tests.sample import FallingCartPole
    from tests.support import Probe

    bare = FallingCartPole("spring")
    viewer = Viewer(port=0, mode="every_step")
    env = VisualizedEnv(bare, grid=(3, 2), viewer=viewer)
    viewer.select([13, 2, 9, 0, 6])
    # Both processes run this script, but only the leader's choices count.
    viewer.pause()

    def stepper(env, lead):
        many = envs.training.VmapWrapper(env)
        def step(state):
            i = state.info["env"]
            action = jnp.sin(0.3 * i)[:, None]
            state = many.step(state, action)
            return state, lead(state.reward)
        def reset(keys, i):
            state = many.reset(keys)
            state.info["env"] = i
            return state
        return reset, step

    mesh = jax.make_mesh((4,), ("host_device",))
    split, whole = PartitionSpec("host_device"), PartitionSpec()
    # The sum makes devices wait for each other at each step, as trainers do.
    reset, step = stepper(env, lambda reward: jax.lax.psum(reward.sum(), "host_device"))
    sharded = lambda f, *out: jax.jit(jax.shard_map(
        f, mesh=mesh, in_specs=split, out_specs=out[0] if len(out) == 1 else out, check_vma=False
    ))
    reset, step = sharded(reset, split), sharded(step, split, whole)
    keys, index = jax.random.split(jax.random.key(1), 16), np.arange(16)
    spread = lambda x: jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, split), lambda part: x[part]
    )

    def loop(state, count):
        for _ in range(count):
            state, total = step(state)
            total.block_until_ready()
        return state
"""

FIRST = """
    import brax_viser.page.channels
    brax_viser.page.channels.TWIN_PATIENCE = float("inf")
    page = Page(viewer)
    says = lambda: words.notices(Probe(viewer).panel_view(time.monotonic()))
    shown = lambda: Probe(viewer).channels["train"].view
    leader = Probe(viewer).leader
    reference = {}
    reset_all, step_all = stepper(bare, lambda reward: reward)
    truth, returns = jax.jit(reset_all)(keys, index), np.zeros(16)
    step_all = jax.jit(step_all)
    for n in range(1, 31):
        truth, reward = step_all(truth)
        returns = returns + np.asarray(reward)
        reference[n] = np.asarray(truth.pipeline_state.x.pos), returns

    def look():
        # Held at 1, stepped to 4, other envs while it is held, and on to 30.
        held_at = lambda n: (
            viewer.stats().held
            and {s for s, _ in Probe(viewer).shared.hold.parts().values()} == {n}
            and len(Probe(viewer).shared.hold.parts()) == 4
        )
        eventually(lambda: held_at(1), "all four devices are held at their first step", 180)
        viewer.step(3)
        eventually(lambda: held_at(4), "all four go on by three steps, and are held again")
        whole = lambda n: shown() is not None and not shown().hidden.any() and (
            shown().frame.env_steps == n
        )
        def true_at(n, order):
            # The other process's part of the step may come later.
            def true():
                frame = shown().frame if whole(n) else None
                return (
                    frame is not None
                    and frame.env_index.tolist() == order
                    and np.allclose(frame.link_pos, reference[n][0][order], atol=1e-5)
                    and np.allclose(frame.episode_return, reference[n][1][order], atol=1e-4)
                )

            eventually(true, f"all that are drawn are there, as they are at step {n}")
        true_at(4, [13, 2, 9, 0, 6])
        viewer.select("worst")
        worst = np.argsort(reference[4][1], kind="stable")[:6].tolist()
        assert len({i // 8 for i in worst}) == 2, "choose other actions: only one process has them"
        eventually(lambda: viewer.stats().drawn_envs == tuple(worst), "the worst of all are drawn")
        true_at(4, worst)
        viewer.selected_env = 15
        viewer.step()
        eventually(lambda: held_at(5), "one more step")
        eventually(lambda: 15 in viewer.stats().drawn_envs, "the other process's env is drawn")
        # A report that comes between the two readings changes the second.
        added_up = lambda: (
            viewer.stats().overhead >= sum(o.report.share for o in leader.living()) > 0
        )
        eventually(added_up, "what it costs both is added up")
        print("stop the other", flush=True)
        eventually(lambda: leader.lost() == (1,), "the other process is lost", 40)
        eventually(lambda: "Process 1 not heard of" in says(), "the page says so")
        mine = lambda: shown().frame.env_index[~shown().hidden]
        eventually(lambda: len(mine()) and (mine() < 8).all(), "only those here are drawn")
        viewer.select("best")  # must not wait for the lost process
        eventually(lambda: set(viewer.stats().drawn_envs) <= {*range(8), 15}, "best of those here")
        print("wake the other", flush=True)
        eventually(lambda: leader.lost() == (), "it is heard of again", 40)
        eventually(lambda: held_at(5), "and still held")
        viewer.selected_env = None
        viewer.select([9, 0])
        viewer.twins = 2
        for n in range(6, 16):
            viewer.step()
            eventually(lambda: held_at(n), "on by one step")
            true_at(n, [9, 0])
        eventually(
            lambda: (d := viewer.drift()) is not None
            and d.env_index.tolist() == [9, 0]
            and d.seconds.min() > 5 * bare.dt,
            "robots of both processes have their twins",
        )
        viewer.step(10)
        eventually(lambda: held_at(25), "on by ten steps")
        true_at(25, [9, 0])
        viewer.resume()

    def look_or_end():
        try:
            look()
        except BaseException:
            traceback.print_exc()
            print(Probe(viewer).shared.hold.parts(), viewer.stats(), leader._known, flush=True)
            os._exit(1)

    looker = threading.Thread(target=look_or_end)
    looker.start()
    state = loop(reset(spread(keys), spread(index)), 30)
    looker.join()
    assert Probe(viewer).shared.fault is None, Probe(viewer).shared.fault
    viewer.pause()
    threading.Timer(2.0, viewer.close).start()  # releases both
    loop(state, 5)
    page.close()
    print("seen", flush=True)
"""

SECOND = """
    assert not Probe(viewer).opens_a_port
    eventually(lambda: viewer.url.startswith("http://127.0.0.1:"), "it knows where the page is")
    state = loop(reset(spread(keys), spread(index)), 30)
    assert Probe(viewer).shared.fault is None, Probe(viewer).shared.fault
    assert viewer.stats().frames > 0 and 0 < viewer.stats().overhead <= 1
    loop(state, 5)
    print("sent", flush=True)
"""


class Process:
    """One of two processes, and its output."""

    def __init__(self, code: str, process: int, port: int):
        code = textwrap.dedent(COMMON) + textwrap.dedent(code)
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code, str(process), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip())

    def says(self, what: str) -> bool:
        if self.popen.poll() is not None:
            self._reader.join(20)
            said = "\n".join(self.lines[-60:])
            assert what in self.lines, f"it has ended with {self.popen.returncode}:\n{said}"
        return what in self.lines


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def together(first: str, second: str) -> Iterator[tuple[Process, Process]]:
    """Runs two processes during a test, and prints their last output."""
    port = free_port()
    processes = Process(first, 0, port), Process(second, 1, port)
    try:
        yield processes
    finally:
        for process in processes:
            process.popen.kill()
            process.popen.wait()
            print("\n".join(["-- one of the two:", *process.lines[-40:]]))  # shown if it fails


def test_two_processes_share_one_page_and_are_held_together():
    with together(FIRST, SECOND) as (first, second):
        eventually(lambda: first.says("stop the other"), "held, stepped and ranked together", 400)
        second.popen.send_signal(signal.SIGSTOP)
        eventually(lambda: first.says("wake the other"), "its loss is seen", 120)
        second.popen.send_signal(signal.SIGCONT)
        eventually(lambda: first.says("seen"), "they go on together", 120)
        eventually(lambda: second.says("sent"), "the second as well", 120)


SURVIVES = """
    page = Page(viewer)
    says = lambda: words.notices(Probe(viewer).panel_view(time.monotonic()))
    viewer.resume()

    def look():
        eventually(lambda: len(Probe(viewer).leader.living()) == 1, "the other is heard of", 120)
        eventually(lambda: viewer.stats().env_steps > 5, "steps are taken", 120)
        print("kill the other", flush=True)
        eventually(lambda: Probe(viewer).leader.lost() == (1,), "its death is noticed", 40)
        eventually(lambda: "Process 1 not heard of" in says(), "the page says so")
        viewer.select([0, 3])
        assert Probe(viewer).shared.fault is None
        viewer.close()
        print("survived", flush=True)
        os._exit(0)  # collectives wait long for the dead process

    looker = threading.Thread(target=look)
    looker.start()
    try:
        loop(reset(spread(keys), spread(index)), 10_000_000)
    except jax.errors.JaxRuntimeError:  # the collective fails, which is for the script to handle
        looker.join()
"""

DIES = "loop(reset(spread(keys), spread(index)), 10_000_000)"


def test_the_page_survives_the_death_of_a_worker():
    with together(SURVIVES, DIES) as (first, second):
        eventually(lambda: first.says("kill the other"), "both run", 400)
        second.popen.kill()
        eventually(lambda: first.says("survived"), "the first one's page lives on", 120)


def heard_by(server: SocketServer, seconds: float = 1.0) -> list[tuple[int, bytes]]:
    deadline, messages = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        messages += server.receive(0.05)
    return messages


def test_only_clients_that_know_the_secret_are_heard():
    import zmq

    server = SocketServer(b"right", "127.0.0.1")
    address = f"127.0.0.1:{server.port}"
    wrong, right = SocketClient(b"wrong", address, 1), SocketClient(b"right", address, 2)
    context = zmq.Context()
    open_one = context.socket(zmq.DEALER)
    open_one.identity = b"3"
    open_one.connect(f"tcp://{address}")
    # A client that knows the leader's public key, which is not a secret.
    stranger = context.socket(zmq.DEALER)
    stranger.identity = b"4"
    stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
    stranger.curve_serverkey, _ = _keys(b"right", "server")
    stranger.connect(f"tcp://{address}")
    try:
        for _ in range(3):
            wrong.send(b"let me in")
            open_one.send(b"let me in", zmq.NOBLOCK)
            stranger.send(b"let me in", zmq.NOBLOCK)
        right.send(b"hello")
        heard: list[tuple[int, bytes]] = []
        eventually(lambda: heard.extend(server.receive(0.05)) or heard, "the right one is heard")
        assert heard + heard_by(server) == [(2, b"hello")]
        assert server.send(2, b"welcome")
        assert not server.send(1, b"who is there?"), "a client that was not let in can be reached"
        answers: list[bytes] = []
        eventually(lambda: answers.extend(right.receive(0.05)) or answers, "it is answered")
        assert answers == [b"welcome"]
        assert wrong.receive(0.2) == []
    finally:
        open_one.close(linger=0)
        stranger.close(linger=0)
        context.term()
        for end in (wrong, right, server):
            end.close()


def passed_on(source: socket.socket, sink: socket.socket, seen: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            seen.append(data)
            sink.sendall(data)


@pytest.mark.parametrize("piece", [1, 1 << 16])
def test_what_a_worker_has_sent_changes_nothing_when_another_sends_it_again(piece):
    server = SocketServer(b"right", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as between:
        worker = SocketClient(b"right", f"127.0.0.1:{between.getsockname()[1]}", 1)
        link, _ = between.accept()
    there = socket.create_connection(("127.0.0.1", server.port))
    sent: list[bytes] = []
    for way in ((link, there, sent), (there, link, [])):
        threading.Thread(target=passed_on, args=way, daemon=True).start()
    try:
        worker.send(b"hello")
        heard: list[tuple[int, bytes]] = []
        eventually(lambda: heard.extend(server.receive(0.05)) or heard, "it is heard")
        assert heard == [(1, b"hello")]
        with socket.create_connection(("127.0.0.1", server.port)) as again:
            again.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            again.settimeout(0.2)
            for data in list(sent):  # one after the other, as what is said too early is refused
                with contextlib.suppress(ConnectionError, TimeoutError):
                    for start in range(0, len(data), piece):
                        again.sendall(data[start : start + piece])
                    again.recv(1 << 16)
            assert heard_by(server) == []
            assert server.send(1, b"for the worker")
            answers: list[bytes] = []
            eventually(lambda: answers.extend(worker.receive(0.05)) or answers, "it has come")
            assert answers == [b"for the worker"]
    finally:
        for end in (worker, server, link, there):
            end.close()


def test_messages_of_several_parts_and_of_no_process_are_dropped():
    """They come from a client that knows the secret, and may be of another version."""
    server = SocketServer(b"right", "127.0.0.1")
    address = f"127.0.0.1:{server.port}"
    client, odd = SocketClient(b"right", address, 1), SocketClient(b"right", address, 2)
    try:
        eventually(lambda: odd.send(b"first"), "it is sent")
        odd._socket.send_multipart([b"in", b"parts"])
        odd.send(b"last")
        assert sorted(heard_by(server)) == [(2, b"first"), (2, b"last")]
        client.send(b"and goes on")
        assert heard_by(server) == [(1, b"and goes on")]
    finally:
        for end in (client, odd, server):
            end.close()


def test_a_message_that_is_too_large_is_neither_sent_nor_received():
    server = SocketServer(b"right", "127.0.0.1")
    client = SocketClient(b"right", f"127.0.0.1:{server.port}", 1)
    try:
        with pytest.raises(ValueError, match="draw fewer environments"):
            client.send(bytes(MOST_BYTES + 1))
        client._socket.maxmsgsize = -1
        client._socket.send(bytes(MOST_BYTES + 1))
        assert heard_by(server, seconds=2.0) == []
        # The connection was ended, and is made again.
        eventually(lambda: client.send(b"small") and heard_by(server), "a small one is heard")
    finally:
        client.close()
        server.close()


def test_a_leader_hears_none_but_the_trainings_own_processes(monkeypatch):
    with paired(monkeypatch, ["cart"], ["cart"]) as (_, _, leader):
        eventually(lambda: 1 in leader._known, "the worker is known")
        place = f"127.0.0.1:{leader._server.port}"
        stranger = SocketClient(b"secret", place, 10**30)
        try:
            report = messages.encode(messages.Report({}, 0.0, 0, 0, None, None))
            eventually(lambda: stranger.send(report), "it is sent")
            time.sleep(0.5)
            assert list(leader._known) == [1] and leader._shared.fault is None
        finally:
            stranger.close()


def test_keys_take_long_to_guess_and_a_short_secret_is_refused(monkeypatch):
    start = time.perf_counter()
    _keys(f"not seen before {start}".encode(), "guest")
    assert time.perf_counter() - start > 0.01  # the hash alone takes a microsecond
    monkeypatch.setenv(rendezvous.SECRET, "short")
    with pytest.raises(ValueError, match=r"BRAX_VISER_SECRET has 5 characters: .*at least 16"):
        rendezvous.check_secret()
    monkeypatch.setenv(rendezvous.SECRET, "0123456789abcdef")
    rendezvous.check_secret()


def test_malformed_messages_are_refused():
    wishes = messages.Wishes(Control(), Hold().orders, 0, {})
    data = messages.encode(wishes)
    assert messages.decode_wishes(data) == wishes
    with pytest.raises(messages.DecodeError):
        messages.decode_from_worker(data)
    with pytest.raises(messages.DecodeError):
        messages.decode_wishes(b"\x00nonsense")
    with pytest.raises(ValueError, match="object"):
        messages.Array("object", (1,), b"12345678").open()
    with pytest.raises(ValueError):
        messages.Array("float32", (3,), b"1234").open()


def model_of(body: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><body name='{body}'><freejoint/><geom size='.1'/></body></worldbody>"
        "</mujoco>"
    )


class Host:
    """The host side of one of two processes, called as its one device calls it."""

    def __init__(self, process: int, bodies: list[str]):
        self.shared = SharedState(Control(watched=process == 0, mode="every_step"))
        self.shared.num_processes = 2
        self.sources, self.process = Sources(), process
        grid: Any = SimpleNamespace(capacity=4)
        self.made: list[Callbacks] = []
        for body in bodies:
            model = model_of(body)
            adapter: Any = SimpleNamespace(dt=0.05, name=body, backend="mjx", mj_model=model)
            self.made.append(Callbacks(self.shared, adapter, grid, None, lambda source, call: None))
            self.sources.add(self.made[-1])
        self.shared.selection = Selection.of([0, 1, 2, 3])

    def step(self, of: int, fresh: bool = False) -> None:
        """Takes a step of an environment: asks, and pushes if the answer says so."""
        origin, layout = Origin("train", 2, 2, 2), (("link_pos", (1, 3)),)
        answer = self.made[of].ask(origin, np.array([FRESH if fresh else 0, self.process]))
        if answer[0] != PUSH:
            return
        header = np.zeros((len(HEADER_COLUMNS), 2), np.int32)
        header[0] = answer[4:]
        header = np.concatenate([[self.process, GIVEN], header.ravel()]).astype(np.int32)
        self.made[of].push(origin, layout, header, np.zeros((2, 3), np.float32))


@contextlib.contextmanager
def paired(monkeypatch, first: list[str], second: list[str]) -> Iterator[tuple[Host, Host, Leader]]:
    """Connects the host sides of two processes, each with the environments of one viewer."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(rendezvous, "secret_of_first", lambda viewer: b"secret")
    monkeypatch.setattr(rendezvous, "coordinator_host", lambda: "127.0.0.1")
    monkeypatch.setattr(rendezvous, "announce", lambda _, address, url: said.update(to=address))
    monkeypatch.setattr(
        rendezvous, "find_first", lambda _, seconds: (said["to"], b"secret", "http://here")
    )
    one, two = Host(0, first), Host(1, second)
    leader = Leader(one.shared, one.sources, rendezvous.ProcessInfo(0, 2), 0, "http://here")
    worker = Worker(two.shared, two.sources, rendezvous.ProcessInfo(1, 2), 0)
    leader.start()
    worker.start()
    try:
        yield one, two, leader
    finally:
        for host in (one, two):
            host.shared.set(closed=True)
            host.shared.mailbox.close()
        leader.join(5)
        worker.join(5)


def test_a_signal_that_another_process_hears_lets_all_of_them_go_on(monkeypatch):
    with paired(monkeypatch, ["ant"], ["ant"]) as (one, two, leader):
        said: list[str] = []

        def let_go(why: str) -> None:
            said.append(why)
            one.shared.hold.resume()

        one.shared.let_go = let_go
        one.step(0, fresh=True)
        two.step(0, fresh=True)
        eventually(leader.living, "the leader hears the worker")
        one.shared.hold.pause()
        eventually(lambda: two.shared.hold.paused, "both are held")
        two.shared.signalled(signal.SIGTERM)
        assert two.shared.hold.paused, "the hold is the leader's"
        eventually(lambda: not two.shared.hold.paused, "both go on")
        assert len(said) == 1 and "SIGTERM has come" in said[0] and "(process 1)" in said[0]


def came_from_the_second(one: Host) -> list[Any]:
    return [p for p in one.shared.mailbox.take() if getattr(p, "process", 0) == 1]


def test_environments_are_paired_in_the_order_in_which_they_are_made(monkeypatch):
    with paired(monkeypatch, ["ant", "walker"], ["ant", "walker"]) as (one, two, leader):
        one.step(1, fresh=True)
        two.step(1, fresh=True)

        def came() -> bool:
            one.step(1)
            two.step(1)
            return bool(came_from_the_second(one))

        eventually(came, "the second process's robots come")
        assert leader.refused() == () and len(leader.living()) == 1


@pytest.mark.parametrize("first", [["walker"], ["walker", "ant"], []])
def test_a_process_whose_environment_differs_from_the_leaders_is_refused(
    monkeypatch, caplog, first
):
    """One process has made a viewer, or an environment, that the other has not."""
    with paired(monkeypatch, first, ["ant"]) as (one, two, leader):
        if first:
            one.step(0, fresh=True)
        two.step(0, fresh=True)

        def told() -> bool:
            if first:
                one.step(0)
            two.step(0)
            assert not came_from_the_second(one), "the robots of another environment"
            return bool(leader.refused()) and "nothing of this process is shown" in caplog.text

        eventually(told, "it is told why")
        (why,) = leader.refused()
        assert why.startswith("Process 1 steps ant · mjx") and "Make the same viewers" in why
        assert not leader.living() and leader.lost() == ()
        eventually(lambda: caplog.text.count("Process 1 steps ant") == 2, "said in both, once")
        if first:
            assert ("walker" in why) and one.shared.hold.parts() == {}
        assert one.shared.fault is None and two.shared.fault is None


class Growing(dict):
    """A dict that another thread adds to during iteration, as XLA's do, unless it is locked."""

    def __init__(self, shared: SharedState, source: Callbacks):
        super().__init__(train=source)
        self._shared, self._source = shared, source

    def _add(self) -> None:
        with self._shared.lock:
            self.setdefault("eval", self._source)

    def items(self) -> Any:
        for item in super().items():
            thread = threading.Thread(target=self._add, daemon=True)
            thread.start()
            thread.join(timeout=0.2)
            yield item


@pytest.fixture
def stepped() -> tuple[SharedState, Callbacks]:
    """The shared state, and callbacks that one device has asked once."""
    shared = SharedState(Control(watched=True, mode="every_step"))
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    adapter: Any = SimpleNamespace(dt=0.05, name="Nothing", backend="mjx", mj_model=model)
    grid: Any = SimpleNamespace(capacity=4)
    source = Callbacks(shared, adapter, grid, None, lambda source, call: None)
    source.ask(Origin("train", 8, 2, 4), np.array([FRESH, 0], np.int32))
    return shared, source


def test_a_rollout_that_begins_while_rollouts_are_counted_raises_no_error(stepped, monkeypatch):
    (shared, source), sources = stepped, Sources()
    sources.add(source)
    monkeypatch.setattr(rendezvous, "secret_of_first", lambda viewer: b"secret")
    monkeypatch.setattr(rendezvous, "coordinator_host", lambda: "127.0.0.1")
    monkeypatch.setattr(rendezvous, "announce", lambda *_: None)
    leader = Leader(shared, sources, rendezvous.ProcessInfo(0, 2), 0, "http://127.0.0.1:1")
    shared.shown = Growing(shared, source)
    assert leader._count_drawn() == 1
    leader._server.close()
    shared.shown = Growing(shared, source)
    worker = Worker(shared, sources, rendezvous.ProcessInfo(1, 2), 0)
    assert list(worker._rollouts()) == ["train"]
    assert worker.drawn_envs() == (0, 1, 2, 3)
    assert worker._report().parts["train"].num_envs == 16


def view_of(env_index, at: float) -> View:
    count = len(env_index)
    frame = Frame(
        role="train",
        env_steps=7,
        env_index=np.array(env_index, np.int32),
        num_envs=16,
        link_pos=np.full((count, 2, 3), at, np.float32),
        link_rot=np.full((count, 2, 4), at, np.float32),
        reward=np.array(env_index, np.float32),
        episode_return=np.array(env_index, np.float32),
        episode_length=np.full(count, 3, np.int32),
        since_termination=np.full(count, 5, np.int32),
        finite=np.ones(count, bool),
    )
    return View(frame, frame.link_pos, frame.link_rot, np.zeros(count, bool), 0.0, 0.0)


def test_joined_views_keep_the_order_of_the_cells():
    joint = beside([view_of([2, 5], 1.0), view_of([9, 12], 2.0)], np.array([12, 2, 9, 5]))
    assert joint.frame.env_index.tolist() == [12, 2, 9, 5]
    assert joint.link_pos[:, 0, 0].tolist() == [2.0, 1.0, 2.0, 1.0]
    assert joint.frame.reward.tolist() == [12.0, 2.0, 9.0, 5.0]
    assert not joint.hidden.any()


def test_a_missing_env_leaves_a_cell_that_another_may_take():
    joint = beside([view_of([2, 5], 1.0)], np.array([12, 2, 9]))
    assert joint.frame.env_index.tolist() == [5, 2, 9], "5 is still on screen"
    assert joint.hidden.tolist() == [False, False, True]
    assert joint.frame.since_termination[2] == NEVER and joint.frame.finite[2]
    twice = beside([view_of([0, 1], 1.0), view_of([1, 0], 2.0)], np.array([0, 1]))
    assert twice.link_pos[:, 0, 0].tolist() == [1.0, 1.0], "the first process's own counts"


def test_the_error_for_a_missing_zeromq_names_the_extra(monkeypatch):
    from brax_viser import viewer
    from brax_viser.processes import rendezvous

    monkeypatch.setattr(rendezvous, "place", lambda: rendezvous.ProcessInfo(1, 2))
    monkeypatch.setattr(rendezvous.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"brax-viser\[hosts\]"):
        viewer.Viewer(port=0)
