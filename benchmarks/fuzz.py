"""Sends a training's page random messages, and tells what becomes of the training and the page.

python -m benchmarks.fuzz --messages 100000
python -m benchmarks.fuzz --messages 0 --trainings 11  # what the trainings take by themselves

Most messages look as if a page of viser's had sent them, and use the panel's own widgets, holds and
forks included; the others are garbage. An unwatched training has the same seed: parameters
must be identical.
"""

import contextlib
import ctypes
import dataclasses
import functools
import gc
import io
import logging
import os
import random
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jax
import msgspec
import numpy as np
import tyro
import websockets
import websockets.sync.client
from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from rich.console import Console
from rich.table import Table
from viser import _messages as messages

from benchmarks.client import (
    SUBPROTOCOL,
    answers_to,
    hello,
    is_last_of_replay,
    messages_of,
    websocket_of,
)
from brax_viser import Viewer, VisualizedEnv
from brax_viser.page.guard import FOR_SCRIPTS, FROM_PAGES

KINDS = [getattr(messages, name) for name in sorted(FROM_PAGES | FOR_SCRIPTS)]
"""Every message that a page of viser's can send and the page takes."""

NEVER = [messages.ShareUrlRequest, messages.GuiRemoveMessage, messages.ResetGuiMessage]
"""Some of those that it never takes."""

JUNK: tuple[Any, ...] = (
    *(float("nan"), float("inf"), 1e300, -1e300, 2**64 - 1, -(2**63), 0, -1, True, None),
    *("", "x" * 30_000, "nan", "9" * 22, "0-999999999", b"\0" * 100, [], {}, {"a": 1}),
    *([0.0, 0.0], [[0.0] * 3] * 2000, [[[[[]]]]], {"value": {"value": 1}}),
)


PIECE = 100
"""Messages that are sent before a client waits until they have been read."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    messages: int = 100_000
    garbage: float = 0.02
    """Share of messages that no page would send. Each costs its sender the connection."""
    clients: int = 2
    timesteps: int = 40_000
    """Environment steps of each training; trainings follow each other until all is sent."""
    trainings: int = 1
    """Fewest trainings, however few messages there are."""
    seed: int = 0
    seconds: float = float("inf")
    """After which no more messages are sent, however many are left."""


@dataclass(frozen=True)
class Reading:
    """What the process holds."""

    megabytes: float  # resident
    descriptors: int
    threads: int
    names: tuple[str, ...]  # of the threads

    @classmethod
    def now(cls) -> "Reading":
        jax.clear_caches()  # programs of trainings that are over
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            tuple(sorted(thread.name for thread in threading.enumerate())),
        )


@dataclass(frozen=True)
class Report:
    """What has become of the training and the page."""

    sent: int
    disconnections: int
    warnings: int  # lines in the log
    errors: tuple[str, ...]  # of the log, and tracebacks printed
    trainings: int
    identical: int  # trainings whose parameters are those of an unwatched one
    opens: float  # s until a new page has been sent everything, afterwards
    seconds: float
    before: Reading
    after: Reading


class Fuzz:
    """Makes random messages for one page, of what the page has been sent."""

    def __init__(self, rng: random.Random, garbage: float):
        self._rng, self._garbage = rng, garbage
        self.widgets: dict[str, dict[str, Any]] = {}  # properties by uuid
        self.commands: list[str] = []
        self.nodes: list[str] = ["/"]

    def see(self, window: bytes) -> None:
        """Takes in what a window adds."""
        for message in messages_of(window):
            self.take(message)

    def take(self, message: dict[str, Any]) -> None:
        """Takes in the widget, the key or the scene node that a message adds."""
        props = message.get("props")
        if isinstance(props, dict) and "value" in message | props:
            self.widgets[message["uuid"]] = props | {"value": message.get("value")}
        elif message["type"] == "RegisterCommandMessage":
            self.commands.append(message["uuid"])
        elif isinstance(props, dict) and "name" in message:
            self.nodes.append(message["name"])

    def message(self) -> tuple[bytes | str, bool]:
        """Returns the next message, and whether it is garbage."""
        is_garbage = self._rng.random() < self._garbage
        return self._wrong() if is_garbage else encoded(self._valid()), is_garbage

    def _wrong(self) -> bytes | str:
        rng = self._rng
        if rng.random() < 0.2:
            return rng.choice([rng.randbytes(rng.randrange(200)), "text", b"", b"\x93\x01\x02\x03"])
        wrong = self._valid() if rng.random() < 0.8 else self._of(rng.choice(NEVER))
        for _ in range(rng.randrange(1, 3)):
            wrong[rng.choice([*wrong, "more"])] = rng.choice(JUNK)
        if "updates" in wrong and rng.random() < 0.5:
            name = rng.choice(["value", "props", "removed", "update_cb", "__dict__"])
            wrong["updates"] = {name: rng.choice(JUNK)}
        return encoded(wrong)

    def _valid(self) -> dict[str, Any]:
        rng = self._rng
        if self.widgets and rng.random() < 0.5:
            uuid = rng.choice(list(self.widgets))
            value = self._value_for(self.widgets[uuid])
            return {"type": "GuiUpdateMessage", "uuid": uuid, "updates": {"value": value}}
        kind = rng.choice([kind for kind in KINDS if kind is not messages.GuiUpdateMessage])
        return self._of(kind)

    def _of(self, kind: Any) -> dict[str, Any]:
        hints = get_type_hints(kind)
        made = {f.name: self._value(f.name, hints[f.name]) for f in dataclasses.fields(kind)}
        if "uuid" in made and kind is messages.CommandTriggerMessage and self.commands:
            made["uuid"] = self._rng.choice(self.commands)
        return {"type": kind.__name__, **made}

    def _value_for(self, widget: dict[str, Any]) -> Any:
        rng, value = self._rng, widget["value"]
        if options := widget.get("options"):
            return rng.choice([*options])
        if isinstance(value, bool):
            return rng.random() < 0.5
        if isinstance(value, int | float):
            low, high = widget.get("min") or 0.0, widget.get("max") or 10.0
            return rng.uniform(low, high) if rng.random() < 0.9 else rng.uniform(-1e6, 1e6)
        if isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value):
            return [rng.uniform(0, 200) for _ in value]
        return rng.choice(["", "1, 2, 3", "0-5", "nan", "x", "9" * 22, "0-999999999", "/ground"])

    def _value(self, name: str, hint: Any) -> Any:
        rng, origin, args = self._rng, get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._value(name, rng.choice(args))
        if origin is Literal:
            return rng.choice(args)
        if origin is tuple:
            hints = args[:1] * rng.randrange(4) if args[1:] == (Ellipsis,) else args
            return [self._value(name, hint) for hint in hints]
        if hint is float:
            return rng.choice([0.0, 1.0, rng.uniform(-10, 10), rng.uniform(-1e6, 1e6)])
        if hint is int:
            return rng.choice([0, 1, rng.randrange(2000)])
        if hint is str:
            return rng.choice([rng.choice(self.nodes), "x", *list(self.widgets)[:1]])
        return {bool: rng.random() < 0.5, bytes: b"123"}.get(hint)


def encoded(message: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(message)


def connect(url: str) -> websockets.sync.client.ClientConnection:
    """Opens a websocket, as a page does."""
    socket = websockets.sync.client.connect(
        websocket_of(url),
        subprotocols=[SUBPROTOCOL],
        max_size=None,
        compression=None,
        close_timeout=0.2,  # s: a client that is disconnected does not wait to part in good order
    )
    socket.send(hello())
    return socket


def opening_seconds(url: str) -> float:
    """Returns how long a new page takes until it has been sent everything."""
    start = time.perf_counter()
    with connect(url) as socket:
        while not is_last_of_replay(socket.recv(timeout=60, decode=False)):
            pass
    return time.perf_counter() - start


class Sender(threading.Thread):
    """A client that sends random messages, and comes back whenever it is disconnected."""

    def __init__(self, url: str, settings: Settings, number: int):
        super().__init__(daemon=True)
        self._url, self._count = url, -(-settings.messages // settings.clients)
        self._fuzz = Fuzz(random.Random(settings.seed + number), settings.garbage)
        self._until = time.monotonic() + settings.seconds
        self.sent = self.disconnections = 0

    def _goes_on(self) -> bool:
        return self.sent < self._count and time.monotonic() < self._until

    def run(self) -> None:
        while self._goes_on():
            try:
                with contextlib.closing(connect(self._url)) as socket:
                    self._send(socket)
            except (OSError, websockets.WebSocketException):
                self.disconnections += 1

    def _send(self, socket: websockets.sync.client.ClientConnection) -> None:
        while self._goes_on():
            message, is_garbage = self._fuzz.message()
            socket.send(message)
            self.sent += 1
            if is_garbage or self.sent % PIECE == 0:
                self._wait(socket)

    def _wait(self, socket: websockets.sync.client.ClientConnection) -> None:
        """Waits until the server has read what was sent, so that no message is lost with a
        connection that a message before it has ended."""
        pong = socket.ping()
        while not pong.is_set():
            with contextlib.suppress(TimeoutError):
                window = socket.recv(timeout=0.01)
                assert isinstance(window, bytes)
                self._fuzz.see(window)
                for answer in answers_to(window):
                    socket.send(answer)


def looking(url: str, over: threading.Event) -> None:
    """Is an honest page until `over`."""
    with connect(url) as socket:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                for answer in answers_to(socket.recv(timeout=0.1, decode=False)):
                    socket.send(answer)


class Words(logging.Handler):
    """Collects what is logged, by all packages, but not by the clients that send the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "websockets.client":
            return
        self.counts[record.levelname] += 1
        if record.levelno >= logging.ERROR or record.exc_info:
            self.errors.append(record.getMessage())


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], tuple[int, tuple[str, ...]]]]:
    """Yields a function that returns (warnings, errors) so far; tracebacks on stderr are errors."""
    words, printed, err = Words(), io.StringIO(), sys.stderr
    logging.getLogger().addHandler(words)
    try:
        with contextlib.redirect_stderr(printed):
            yield lambda: (
                words.counts["WARNING"],
                (*words.errors, *["Traceback"] * printed.getvalue().count("Traceback")),
            )
    finally:
        logging.getLogger().removeHandler(words)
        lines = printed.getvalue().splitlines()
        print(*[f"  {line}" for line in lines[-20:]], sep="\n", file=err)


def trained(env: Any, settings: Settings, **functions: Any) -> list[np.ndarray]:
    """Returns the parameters that the stock trainer ends with."""
    _, params, _ = ppo.train(
        environment=env,
        num_timesteps=settings.timesteps,
        num_envs=16,
        episode_length=60,
        unroll_length=5,
        batch_size=16,
        num_minibatches=4,
        num_updates_per_batch=2,
        seed=3,
        run_evals=False,
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=(8,),
            value_hidden_layer_sizes=(8,),
        ),
        **functions,
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(params))]


def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(map(np.array_equal, one, other))


def keep_going(viewer: Viewer, over: threading.Event) -> None:
    """Resumes a training that a message has held, now and then."""
    while not over.wait(0.5):
        viewer.resume()


def fuzz(settings: Settings, make_env: Callable[[], Any]) -> Report:
    """Runs trainings until all messages are sent."""
    unwatched, over = trained(make_env(), settings), threading.Event()
    start = time.monotonic()
    with listening() as heard, Viewer(port=0) as viewer:

        def watched() -> bool:
            env = VisualizedEnv(make_env(), grid=(4, 4), viewer=viewer)
            return same(trained(env, settings, policy_params_fn=viewer.policy_params_fn), unwatched)

        helpers = [
            threading.Thread(target=looking, args=(viewer.url, over)),
            threading.Thread(target=keep_going, args=(viewer, over)),
        ]
        for helper in helpers:
            helper.start()
        identical = [watched()]
        before = Reading.now()
        senders = [Sender(viewer.url, settings, number) for number in range(settings.clients)]
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders) or len(identical) < settings.trainings:
            identical.append(watched())
        opens, after = opening_seconds(viewer.url), Reading.now()
        over.set()
        for helper in helpers:
            helper.join()
        warnings, errors = heard()
    return Report(
        sum(sender.sent for sender in senders),
        sum(sender.disconnections for sender in senders),
        warnings,
        errors,
        len(identical),
        sum(identical),
        opens,
        time.monotonic() - start,
        before,
        after,
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    report = fuzz(settings, lambda: envs.get_environment("inverted_pendulum", backend="spring"))
    table = Table("figure", "value", title=f"{report.sent:,} messages, {report.seconds:.0f} s")
    before, after = report.before, report.after
    more = Counter(after.names) - Counter(before.names)
    for name, value in {
        "disconnections": f"{report.disconnections:,}",
        "lines in the log": f"{report.warnings:,}",
        "errors and tracebacks": f"{len(report.errors)} {[*report.errors[:3]]}",
        "trainings": f"{report.trainings}, with identical parameters: {report.identical}",
        "a new page opens in": f"{report.opens:.2f} s",
        "memory": f"{before.megabytes:.0f} MB before, {after.megabytes:.0f} MB after",
        "descriptors": f"{before.descriptors} before, {after.descriptors} after",
        "threads": f"{before.threads} before, {after.threads} after {[*more]}",
    }.items():
        table.add_row(name, value)
    Console().print(table, markup=False)


if __name__ == "__main__":
    main()
