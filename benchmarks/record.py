"""Records the README's animation: the page, in a real browser, during a real training.

python -m benchmarks.record docs/page.webp

A browser that renders in software draws only a few frames a second, in which robots would jerk. So
the training is not filmed but recorded: a client that draws nothing receives the messages that the
viewer sends to a page, and what it answers to the page's time bar, with their times. Afterwards all
of it is played to a real browser, slowly enough for a picture of each moment.

Needs Chromium and the `test` extra.
"""

import io
import json
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tyro
import viser
import websockets.sync.client
import websockets.sync.server
import zstandard
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from viser import _messages as messages
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from benchmarks.client import SUBPROTOCOL, answers_to, content_of, hello, messages_of
from benchmarks.screenshot import FLAGS, close_notice, training
from brax_viser.cli.remote import ask
from brax_viser.page.browser import add_to

MOST_BYTES = 3_000_000
"""Limit on the animation's size: a larger one is slow to load at the top of a README."""


@dataclass(frozen=True)
class Settings:
    """Options of the animation."""

    path: Annotated[Path, tyro.conf.Positional]
    env: str = "ant"
    grid: tuple[int, int] = (4, 4)
    moments: tuple[float, ...] = (4.0, 60.0, 180.0)
    """Seconds of live training at which the parts of the animation begin."""
    seconds: float = 2.8
    """Length of each part."""
    fps: float = 12.5
    zoom: int = 2
    """Notches of the mouse wheel, towards the robots."""
    width: int = 1040
    height: int = 600
    quality: int = 60
    """Quality of the WebP, 0 to 100."""


@dataclass(frozen=True)
class Sent:
    """What a page was sent: a window of messages, or an answer to its time bar."""

    seconds: float  # since the page said "Live"; negative before that
    data: bytes


@dataclass(frozen=True)
class Recording:
    """What a page was sent, in its order."""

    windows: list[Sent]
    bars: list[Sent]


class Bars(threading.Thread):
    """Asks what the time bar shows, twice a second, until it is stopped."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self.received: list[tuple[float, bytes]] = []
        self._address = address
        self._ends = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ends.wait(0.5):
            told = json.dumps(ask(self._address, "timeline"))
            self.received.append((time.monotonic(), told.encode()))

    def stop(self) -> None:
        self._ends.set()
        self.join()


def record(address: str, until: float) -> Recording:
    """Receives what is sent to a page, from before the training begins.

    Args:
        address: the page's address.
        until: seconds of live training after which the recording ends.
    """
    received: list[tuple[float, bytes]] = []
    live: float | None = None
    bars = Bars(address)
    with websockets.sync.client.connect(
        address.replace("http", "ws", 1),
        subprotocols=[SUBPROTOCOL],
        max_size=None,
        compression=None,
    ) as socket:
        socket.send(hello())
        for data in socket:
            assert isinstance(data, bytes)
            now = time.monotonic()
            received.append((now, data))
            for answer in answers_to(data):
                socket.send(answer)
            if live is None and _says_live(data):
                live = now
            if live is not None and now > live + until:
                break
    bars.stop()
    assert live is not None, "the training has ended before the page said 'Live'"
    assert bars.received, "the time bar was told nothing"
    return Recording(
        *([Sent(at - live, data) for at, data in sent] for sent in (received, bars.received))
    )


def _says_live(window: bytes) -> bool:
    return any(
        "</span> Live</span></div>" in str(message.get("updates", ""))
        for message in messages_of(window)
        if message["type"] == "GuiUpdateMessage"
    )


class Player:
    """Serves the page, and plays a recording to it on demand."""

    def __init__(self, recording: Recording):
        self._left = list(reversed(recording.windows))
        self._bars, self._bar = list(reversed(recording.bars)), recording.bars[0].data
        self._clock = 0.0  # s, the viewer's time of the last message that was sent
        self._sockets: queue.Queue[Any] = queue.Queue()
        self._answers: queue.Queue[str] = queue.Queue()
        self._socket: Any = None
        self._server = websockets.sync.server.serve(
            self._receive,
            "127.0.0.1",
            0,
            process_request=self._served,
            subprotocols=[SUBPROTOCOL],
            compression=None,
        )
        self.address = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _receive(self, socket: Any) -> None:
        self._sockets.put(socket)
        for data in socket:
            message = msgspec.msgpack.decode(data)
            if message["type"] == "LocalStorageGetItemResponseMessage":
                self._answers.put(message["request_uuid"])

    def show(self, seconds: float) -> None:
        """Plays the recording up to that moment, and returns once the page has processed it."""
        if self._socket is None:
            self._socket = self._sockets.get(timeout=60)
        while self._bars and self._bars[-1].seconds <= seconds:
            self._bar = self._bars.pop().data
        while self._left and self._left[-1].seconds <= seconds:
            data = self._left.pop().data
            self._clock = content_of(data)["timestampSec"]
            self._socket.send(data)
        question = uuid.uuid4().hex
        self._socket.send(self._question(question))
        while self._answers.get(timeout=300) != question:
            pass

    def _question(self, name: str) -> bytes:
        message = messages.LocalStorageGetItemRequestMessage(key=name, request_uuid=name)
        inner = msgspec.msgpack.encode(
            {
                "messages": [message.as_serializable_dict()],
                "timestampSec": self._clock,
                "binaryBufferLengths": (),
            }
        )
        compressed = zstandard.compress(inner)
        sizes = (len(size).to_bytes(8, "little") for size in (inner, compressed))
        return b"".join([*sizes, compressed, bytes(-len(compressed) % 8)])

    def _served(self, _: Any, request: Request) -> Response | None:
        if request.headers.get("Upgrade") == "websocket":
            return None
        path = request.path.partition("?")[0]
        if path == "/api/timeline":
            return _response("application/json", self._bar)
        if path not in ("/", "/index.html"):
            return Response(HTTPStatus.NOT_FOUND, "Not Found", Headers())
        page = Path(viser.__file__).parent / "client" / "build" / "index.html"
        return add_to(_response("text/html; charset=utf-8", page.read_bytes()))

    def close(self) -> None:
        self._server.shutdown()


def _response(kind: str, body: bytes) -> Response:
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body))})
    return Response(HTTPStatus.OK, "OK", headers, body)


def film(settings: Settings, page: Page, player: Player) -> Iterator[Image.Image]:
    """Yields `fps` pictures of the page for each second of each part."""
    page.goto(player.address)
    for moment in settings.moments:
        first = moment is settings.moments[0]
        player.show(moment)
        with page.expect_response("**/api/timeline*"):  # the bar asks each second or so
            pass
        if first:
            _come_closer(settings, page)
        for number in range(round(settings.seconds * settings.fps)):
            player.show(moment + number / settings.fps)
            # Waits until the page has drawn what it has received.
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame("
                "() => requestAnimationFrame(() => done())))"
            )
            yield Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def _come_closer(settings: Settings, page: Page) -> None:
    time.sleep(3.0)  # the camera flies to the robots
    close_notice(page)
    page.mouse.move(0.35 * settings.width, 0.5 * settings.height)
    for _ in range(settings.zoom):
        page.mouse.wheel(0, -100)
        time.sleep(0.5)
    time.sleep(3.0)


def save(settings: Settings, pictures: list[Image.Image]) -> None:
    """Writes the pictures as an animation.

    Raises:
        ValueError: the file is larger than `MOST_BYTES`.
    """
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(
        settings.path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / settings.fps),
        loop=0,
        quality=settings.quality,
        method=4,
    )
    size = settings.path.stat().st_size
    print(f"{settings.path}: {len(pictures)} pictures, {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        raise ValueError(
            f"{size:,} bytes: must be at most {MOST_BYTES:,}; lower --quality or --fps"
        )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    columns, rows = settings.grid
    with training(f"train {settings.env} --port 0 --grid {columns} {rows}".split()) as address:
        recording = record(address, max(settings.moments) + settings.seconds)
    player = Player(recording)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        viewport = {"width": settings.width, "height": settings.height}
        page = browser.new_page(viewport=viewport)  # pyright: ignore
        pictures = list(film(settings, page, player))
        browser.close()
    player.close()
    save(settings, pictures)


if __name__ == "__main__":
    main()
