"""`Viewer`: the page, the thread that fills it, and the switch."""

import atexit
import contextlib
import io
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import viser

from brax_viser.feed import Feed, Switchboard, log
from brax_viser.gui.panel import Command, Panel, PanelView
from brax_viser.mailbox import Parcel
from brax_viser.progress import ProgressView
from brax_viser.scene.grid import Grid
from brax_viser.scene.scene import Scene
from brax_viser.stream import MODES, Control, Selection
from brax_viser.trainer import TrainerCall

if TYPE_CHECKING:  # it imports Brax, which takes a second that the page need not wait for
    from brax_viser.adapters import BraxAdapter

FRAME_SECONDS = 1 / 60
"""viser sends at most this often; drawing more would be thrown away."""

PANEL_SECONDS = 0.25
IDLE_SECONDS = 1.0
"""How often the panel is brought up to date while robots move, and while none is shown: seconds
tick, and what a person changes is shown at once in either case."""

SWITCH_SECONDS = 5e-4
"""How long a callback waits at most for another Python thread, the publisher and viser's among
them. Python's own 5 ms would be more than most environment steps take. Process-wide while a
viewer is open; see `sys.setswitchinterval`."""


class _Interpreter:
    """Python's switch interval, shortened for as long as any viewer is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._viewers = 0
        self._before = 0.0  # s

    def shorten(self) -> None:
        with self._lock:
            if self._viewers == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_SECONDS))
            self._viewers += 1

    def restore(self) -> None:
        with self._lock:
            self._viewers -= 1
            if self._viewers == 0:
                sys.setswitchinterval(self._before)


_interpreter = _Interpreter()


@dataclass(frozen=True)
class StreamStats:
    """One rollout that the viewer knows of."""

    env_steps: int  # batched steps known of
    num_envs: int  # environments in its batch, over all devices
    steps_per_second: float  # batched


@dataclass(frozen=True)
class Stats:
    """What the viewer has seen and what it costs."""

    env_steps: int  # batched training steps known of
    frames: int  # emitted: pushed from device to host
    bytes_moved: int  # device to host, by those
    overhead: float  # share of the training's wall-clock, 0 to 1, over the last ten seconds
    held: bool  # whether the training is being held
    drawn_envs: tuple[int, ...]  # indices, in the order of the grid's cells
    streams: Mapping[str, StreamStats]  # by role, "train" and "eval"


class Viewer:
    """Serves one page that shows what `VisualizedEnv`s emit.

    The server starts with the object and stops with `close`. Three kinds of threads meet here:
    XLA's, which call `Feed.ask` and `Feed.push`; viser's, which run the page's callbacks and
    only enqueue; and the publisher, which does everything else.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        mode: str = "latest",
        fps: float = 30.0,
        max_overhead: float = 0.02,
        streaming: bool = True,
    ):
        """Starts the server.

        Args:
            host: address to listen on. There is no password: whoever reaches it can watch, and
                can switch the streaming.
            port: if it is taken, the next free one is used; 0 takes any. See `url`.
            mode: "latest" (the newest state, `fps` times a second) or "every_step" (all of them;
                the training waits for the viewer when it must).
            fps: frames per second of "latest", above 0 and at most 60.
            max_overhead: share of the training's wall-clock that "latest" may cost, above 0 and
                at most 1; frames are spaced further apart to keep it.
            streaming: whether the switch is on at first.

        Raises:
            ValueError: a value is out of its limits.
        """
        _check_mode(mode)
        if not 0 < fps <= 60:
            raise ValueError(f"fps={fps}: must be above 0 and at most 60, what a page can show")
        if not 0 < max_overhead <= 1:
            raise ValueError(
                f"max_overhead={max_overhead}: must be above 0 and at most 1 (0.02 is 2 %)"
            )
        if not 0 <= port <= 65535:
            raise ValueError(f"port={port}: must be 0 to 65535 (0 takes any free one)")
        self._board = Switchboard(
            Control(streaming=streaming, mode=mode, fps=fps, max_overhead=max_overhead)
        )
        self._commands: deque[Command] = deque()  # appended by any thread, drained by one
        self._feed: Feed | None = None  # the one that the scene shows
        self._feeds: list[Feed] = []
        self._scene_lock = threading.RLock()
        # viser prints a banner of its own, with an address that need not be the one to open.
        with contextlib.redirect_stdout(io.StringIO()):
            self._server = viser.ViserServer(
                host=host, port=port, label="brax_viser", verbose=False
            )
        self._host = host
        if port not in (0, self._server.get_port()):
            log.warning("port %d is taken, using %d", port, self._server.get_port())
        self._scene = Scene(self._server)
        self._panel = Panel(self._server, self._enqueue)
        self._server.on_client_connect(self._count_pages)
        self._server.on_client_disconnect(self._count_pages)
        _interpreter.shorten()
        self._publisher = threading.Thread(target=self._publish, name="brax_viser", daemon=True)
        self._publisher.start()
        # XLA waits for pending callbacks at exit: nobody may be left waiting for the publisher.
        atexit.register(self.close)
        print(f"brax_viser: {self.url}", flush=True)

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::", "") else self._host
        return f"http://{host}:{self._server.get_port()}"

    @property
    def streaming(self) -> bool:
        """The page's switch: while it is off, no state leaves the device."""
        return self._board.control.streaming

    @streaming.setter
    def streaming(self, on: bool) -> None:
        self._board.set(streaming=bool(on))
        if on:
            self._board.fault = None
        self._board.mailbox.wake()

    @property
    def mode(self) -> str:
        """ "latest" or "every_step"."""
        return self._board.control.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        _check_mode(mode)
        self._board.set(mode=mode)
        self._board.mailbox.wake()

    def select(self, what: "str | Sequence[int] | np.ndarray") -> None:
        """Chooses the environments to draw: "first" or a list of indices, at most one per cell.

        Indices count over all devices. Takes effect with the next frame; nothing is recompiled.

        Raises:
            ValueError: neither of the two, an index below 0, or one given twice.
        """
        selection = Selection.of(what)
        with self._board.lock:
            self._board.selection = selection

    def progress_fn(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Hand it to the trainer as `progress_fn`: steps become exact, evaluations are shown."""
        self._board.progress.reported(num_steps, metrics, self._board.clock())
        self._board.mailbox.wake()

    def training_ended(self, error: str | None = None) -> None:
        """Tells the page that the training is over, or why it failed. The page stays usable."""
        self._board.progress.ended(self._board.clock(), error)
        self._board.mailbox.wake()

    def progress(self) -> ProgressView:
        """How far the training is, as the page shows it."""
        return self._board.progress.view(self._board.clock())

    def stats(self) -> Stats:
        """A consistent reading of all counters."""
        board = self._board
        with board.lock:
            streams: dict[str, StreamStats] = {}
            for feed in self._feeds:
                for (role, shard), pacer in feed.pacers.items():
                    if shard == 0:
                        known = feed.num_envs.get(role, 0)
                        streams[role] = StreamStats(pacer.env_steps, known, pacer.rate)
            train = streams.get("train")
            return Stats(
                env_steps=train.env_steps if train else 0,
                frames=board.frames,
                bytes_moved=board.bytes_moved,
                overhead=board.meter.share(board.clock()),
                held=False,
                drawn_envs=tuple(int(i) for i in self._scene.drawn_envs),
                streams=streams,
            )

    def close(self) -> None:
        """Stops the server. A training that is running goes on without it. Idempotent."""
        with self._board.lock:
            if self._board.control.closed:
                return
        self._board.set(closed=True)
        self._board.mailbox.close()
        atexit.unregister(self.close)
        _interpreter.restore()
        if threading.current_thread() is not self._publisher:
            self._publisher.join(timeout=5.0)
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, adapter: "BraxAdapter", grid: Grid, role: str | None) -> Feed:
        """Called by `VisualizedEnv`: shows the model at once, and returns whom to ask."""
        feed = Feed(self._board, adapter, grid, role, self._new_training)
        self._feeds.append(feed)
        if self._feed is None or role != "eval":
            self._show(feed, None)
        return feed

    def _show(self, feed: Feed, num_envs: int | None) -> None:
        with self._scene_lock:
            self._feed = feed
            self._scene.show(feed.adapter.mj_model, feed.grid, feed.adapter.init_links(), num_envs)

    def _new_training(self, feed: Feed, call: TrainerCall) -> None:
        """A trainer has begun to trace `feed`'s environment, on the trainer's thread."""
        if feed.role != "eval":
            self._show(feed, call.num_envs)

    def _enqueue(self, command: Command) -> None:
        self._commands.append(command)
        self._board.mailbox.wake()

    async def _count_pages(self, _: viser.ClientHandle) -> None:
        # Async, so that it runs on the server's loop: its thread pool may be gone at exit.
        self._board.set(watched=bool(self._server.get_clients()))
        self._board.mailbox.wake()

    # The publisher's thread from here on.

    def _publish(self) -> None:
        board, next_panel, woken = self._board, 0.0, True
        while not board.control.closed:
            start = board.clock()
            active = board.control.streaming and board.control.watched
            parcels = board.mailbox.take()
            try:
                self._obey()
                if parcels:
                    self._draw(parcels)
                if woken or start >= next_panel:
                    self._panel.show(self._panel_view())
                    next_panel = start + (PANEL_SECONDS if active else IDLE_SECONDS)
            # The thread must live on: a page that is stuck hides the very fault.
            except Exception as error:
                board.failed("the page", error)
            wake_up = start + (FRAME_SECONDS if active else IDLE_SECONDS)
            woken = board.mailbox.rest(wake_up - board.clock())

    def _obey(self) -> None:
        """Carries out what the page has asked for."""
        while self._commands:
            name, value = self._commands.popleft()
            match name:
                case "streaming":
                    self.streaming = bool(value)
                case "mode":
                    self.mode = str(value)
                case _:
                    raise AssertionError(f"unknown command {name!r}")

    def _draw(self, parcels: list[Parcel]) -> None:
        # An environment for evaluation alone never takes the scene from one that is trained.
        newest = {
            (p.feed, p.shard): p
            for p in parcels
            if p.role == (p.feed.role or "train") and (p.feed is self._feed or p.role == "train")
        }
        if not newest:
            return
        with self._scene_lock:
            feeds: set[Feed] = {feed for feed, _ in newest}
            shown = self._feed
            if shown is None or shown not in feeds:
                # Another environment of this viewer is being trained now: show that one.
                shown = feeds.pop()
                self._show(shown, shown.num_envs.get("train"))
            frames = [p.open() for (feed, _), p in newest.items() if feed is shown]
            drawn = self._board.selection.drawn(frames[0].num_envs, shown.capacity)
            if len(drawn):
                self._scene.draw(frames, drawn)

    def _panel_view(self) -> PanelView:
        board, feed = self._board, self._feed
        now = board.clock()
        with board.lock:
            control, meter = board.control, board.meter
            return PanelView(
                env=f"{feed.adapter.name} · {feed.adapter.backend}" if feed else "",
                progress=board.progress.view(now),
                streaming=control.streaming,
                mode=control.mode,
                overhead=meter.share(now),
                max_overhead=control.max_overhead,
                bytes_per_second=meter.bytes_per_second(now),
                frames_per_second=meter.frames_per_second(now),
                drawn=len(self._scene.drawn_envs),
                num_envs=feed.num_envs.get(feed.role or "train") if feed else None,
                fault=board.fault,
            )


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(map(repr, MODES))}")
