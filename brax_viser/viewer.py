"""`Viewer`: serves the page, and is the script's way to steer it."""

import atexit
import contextlib
import os
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from brax_viser.host.callbacks import Callbacks, log
from brax_viser.host.control import MODES, Control
from brax_viser.host.progress import ProgressView
from brax_viser.host.source import Source, Sources
from brax_viser.host.state import SharedState
from brax_viser.page import address, notebook
from brax_viser.page.access import Access, access_of
from brax_viser.page.controls import Controls
from brax_viser.page.gate import check_origins
from brax_viser.page.named import Named, key_of
from brax_viser.page.page import Page
from brax_viser.page.server import PageServer
from brax_viser.page.stats import Stats, StreamStats, stats_of
from brax_viser.panel.limits import check_choice, check_fps, check_share
from brax_viser.process import SignalWatch, interpreter
from brax_viser.processes import rendezvous
from brax_viser.records.grid import Grid
from brax_viser.records.trainer_call import TrainerCall
from brax_viser.runs.folder import DISK_BYTES
from brax_viser.runs.keeper import Keeper

if TYPE_CHECKING:  # it imports Brax, which takes a second that the page need not wait for
    from brax_viser.device.adapters import Adapter
    from brax_viser.processes.leader import Leader
    from brax_viser.processes.worker import Worker

__all__ = ["Stats", "StreamStats", "Viewer", "implicit_viewer"]

_named: "Named[Viewer]" = Named()


def implicit_viewer(env_name: str) -> "Viewer":
    """Returns the viewer of an environment that was given none: the open viewer of the last
    environment of that name, or else a new one."""
    with _named.lock:
        name = f"environment {env_name}"
        viewer = _named.get(("name", name)) or Viewer(name=name)
        viewer._shows_newest = True
        return viewer


def _check(mode: str, fps: float, max_overhead: float, port: int | None) -> None:
    check_choice("mode", mode, MODES)
    check_fps(fps)
    check_share(max_overhead)
    address.check_port(port)


class Viewer(Controls):
    """Serves one page that shows what `VisualizedEnv`s emit.

    The server starts with the object and stops with `close`. Three kinds of threads meet here:
    XLA's, which call `Callbacks.ask` and `Callbacks.push`; viser's, whose event loop runs the
    widgets' callbacks, which only enqueue, and the page's loop, which does everything else; and
    the user's.

    If several processes run the training (`jax.distributed`), the first one's viewer serves the
    page and steers all of them. In the other processes, which run the same script, the viewer opens
    no port: it sends the steps of its devices to the first process and follows its controls.
    Each process must make the same viewers and environments in the same order. The connection is
    encrypted and needs a secret: see `processes.rendezvous`.
    """

    _made = 0  # viewers, in this process
    _shows_newest = False  # whether the newest environment is shown, whichever was stepped last
    _server: PageServer | None = None  # these three only in the first process
    _page: Page | None = None
    _leader: "Leader | None" = None
    _end: "Page | Worker"  # where the devices' packets go

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        mode: str = "realtime",
        fps: float = 30.0,
        max_overhead: float = 0.02,
        streaming: bool = True,
        name: str | None = None,
        token: str | Literal[False] | None = None,
        tls: tuple[str | Path, str | Path] | None = None,
        origins: Sequence[str] = (),
        run_dir: str | Path | None = None,
        max_run_bytes: int = DISK_BYTES,
    ):
        """Starts the server.

        Args:
            host: address to listen on, IPv4 or IPv6, or a name of this machine.
            port: if it is taken, the next free one is used; 0 takes any free one; None is 8000.
            mode: "realtime" (stretches of consecutive steps, played at the robot's own speed),
                "latest" (the newest state, `fps` times a second) or "every_step" (all of them;
                the training waits for the viewer when it must).
            fps: frames per second that a page is sent, above 0 and at most 60.
            max_overhead: share of the training's wall-clock that "realtime" and "latest" may
                cost, above 0 and at most 1; stretches and frames are spaced to keep it.
            streaming: whether the switch is on at first.
            name: if this process has an open viewer of the same name, that one is closed and the
                new one takes its port, so that an open page comes back. Without a name, the port
                that was asked for is the name, if it is not 0. In an interactive session, where a
                cell may be run again, all viewers without a name and a port share one name.
            token: without it nothing is served. None takes the environment's BRAX_VISER_TOKEN, or
                makes one; False asks for none, only where `host` is this machine alone.
            tls: files of a certificate and its key, in PEM, which encrypt connections.
            origins: further addresses of the page, such as a proxy's "https://hub.example.org".
            run_dir: directory without a training, in which recorded episodes, curves and policies
                are kept; see `runs.keeper.Keeper`. None keeps the newest episodes in memory.
            max_run_bytes: bytes that its files may take; above that, recordings are thinned evenly.

        Raises:
            ValueError: a value is outside its limits, or `host` or `run_dir` can't be used.
            RuntimeError: viser is untested: it answers everybody, and `token` is not False.
            ImportError: several processes run the training, and ZeroMQ is not installed.
        """
        _check(mode, fps, max_overhead, port)
        self._key, self._process = key_of(name, port), os.getpid()
        self._place = rendezvous.checked_place()
        self._host, self._access, self._asked_port = "", Access(), port
        if self._place.process == 0:
            self._host = address.listening_address(host)
            self._access = access_of(host, self._host, token, tls, check_origins(origins))
        self._keeper = Keeper(run_dir if self._place.process == 0 else None, max_run_bytes)
        self._shared = SharedState(
            Control(streaming=streaming, mode=mode, fps=fps, max_overhead=max_overhead)
        )
        self._signals = SignalWatch(self._shared.signalled)
        self._sources, self._undo = Sources(), contextlib.ExitStack()  # the latter is for `close`
        self._start()

    def _start(self) -> None:
        try:
            with _named.lock:
                self._build(self._replaced())
        except BaseException:  # Ctrl-C as well: nothing that was started may stay
            self.close()
            raise

    def _replaced(self) -> int:
        """Closes the viewer that this one replaces, if any. Returns the port to ask for."""
        port = address.DEFAULT_PORT if self._asked_port is None else self._asked_port
        last = _named.get(self._key)
        if last is None:
            return port
        of_last = last._server.port if last._server is not None else 0
        place = last._server.place if last._server is not None else last.url
        log.warning("the viewer at %s gives way to a new one of its name", place)
        self._access = self._access.following(last._access)
        last.close()
        if self._asked_port in (None, 0, last._asked_port):
            port = of_last
        if port == of_last != 0:
            address.wait_until_free(self._host, port)
        return port

    def _build(self, port: int) -> None:
        """Starts everything, and registers how `close` ends it."""
        undo, number = self._undo, Viewer._made
        Viewer._made += 1
        self._shared.num_processes = self._place.num_processes
        if self._place.process > 0:
            self._end = self._worker(number)
        else:
            self._end = self._page = self._serve(number, port)
        interpreter.shorten()
        undo.callback(interpreter.restore)
        undo.callback(self._signals.close)
        self._signals.start()
        self._end.start()
        if self._place.process > 0:
            undo.callback(self._end.join, timeout=5.0)
        # XLA waits for pending callbacks at exit: none may be left waiting for the page.
        atexit.register(self.close)
        undo.callback(atexit.unregister, self.close)
        if self._key is not None:
            _named.add(self._key, self)
            undo.callback(_named.remove, self._key, self)
        if self._server is not None:
            self._greet(self._server)

    def _worker(self, number: int) -> "Worker":
        from brax_viser.processes.worker import Worker

        return Worker(self._shared, self._sources, self._place, number)

    def _listen(self, number: int, url: str) -> "Leader | None":
        """Listens to the other processes of the training, if there are any."""
        if self._place.num_processes == 1:
            return None
        from brax_viser.processes.leader import Leader

        leader = Leader(self._shared, self._sources, self._place, number, url)
        leader.start()
        self._undo.callback(leader.join, timeout=5.0)
        return leader

    def _serve(self, number: int, port: int) -> Page:
        """Starts the page's server."""
        self._server = server = PageServer(self._host, port, self._access)
        self._undo.callback(server.stop)
        # Without its token: everybody who reaches the coordinator can read what is announced.
        self._leader = self._listen(number, server.place)
        parts = self._shared, self._sources, server.viser, self._keeper, self._leader
        page = Page(*parts, self._episodes or self._keeper, self._recorded, self._relayed)
        self._undo.callback(page.join, timeout=5.0)
        server.serve(self._shared, page, self._run_dir)
        return page

    @property
    def url(self) -> str:
        """The address to open in a browser, with its token. In other processes than the first it
        is that of the first one's page, without the token, and empty until that is known."""
        if self._server is not None:
            return self._server.url
        return "" if isinstance(self._end, Page) else self._end.url or ""

    @property
    def onlooker_url(self) -> str:
        """The address for onlookers, whose pages see everything and change nothing. Empty if all
        pages may steer (`token=False`), and in other processes than the first."""
        return self._server.onlooker_url if self._server is not None else ""

    def show_in_notebook(self, height: int = 700, url: str | None = None) -> None:
        """Shows the live page in the output of a notebook's cell.

        Args:
            height: of the page, in pixels.
            url: the page's address for the notebook's browser, if that is not on this machine, such
                as a proxy's; with its token in the path: "https://hub.example.org/proxy/8000/TOKEN/".

        Raises:
            ImportError: IPython is not installed, so that this is no notebook.
            RuntimeError: in other processes than the first, which serve no page.
        """
        if self._server is None:
            raise RuntimeError("this process serves no page: the first one of the training does")
        notebook.show(self._server, url, height)

    def progress_fn(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Hand it to the trainer as `progress_fn`: steps become exact, evaluations are shown."""
        self._tell_progress()
        self._shared.progress.reported(num_steps, metrics, self._shared.clock())
        self._track(num_steps, metrics)
        self._shared.mailbox.wake()

    def hook(
        self,
        progress_fn: Callable[[int, Any], object] | None = None,
        policy_params_fn: Callable[[int, Any, Any], object] | None = None,
    ) -> dict[str, Callable[..., None]]:
        """Returns both functions for the trainer, each of which calls yours after the viewer's:
        `ppo.train(..., **viewer.hook(progress_fn=mine))`. Your exceptions reach the trainer."""
        return {
            "progress_fn": _both(self.progress_fn, progress_fn),
            "policy_params_fn": _both(self.policy_params_fn, policy_params_fn),
        }

    def training_ended(self, error: str | None = None) -> None:
        """Tells the page that the training is over, or why it failed. The page stays usable."""
        self._tell_progress()
        self._shared.progress.ended(self._shared.clock(), error)
        self._shared.hold.resume()  # there is nothing left to hold
        self._shared.mailbox.wake()

    def policy_saved(self, path: str) -> None:
        """Tells the page where the trained policy has been saved."""
        self._shared.progress.saved(path)
        self._shared.mailbox.wake()

    def _tell_progress(self) -> None:
        with self._shared.lock:
            for source in self._sources:
                self._shared.tell_progress(source)

    def progress(self) -> ProgressView:
        """Returns how far the training is, as the page shows it."""
        self._tell_progress()
        return self._shared.progress.view(self._shared.clock())

    def stats(self) -> Stats:
        """Returns a consistent reading of all counters."""
        return stats_of(self._shared, self._sources, self._leader, self._end.drawn_envs())

    def close(self) -> None:
        """Stops the server. The training goes on, even if it was held. Idempotent. Does nothing in
        a process that was forked from this one, such as a data loader's."""
        if os.getpid() != self._process:
            return
        with self._shared.lock:
            if self._shared.control.closed:
                return
            held = self._shared.hold.held
            self._shared.control = replace(self._shared.control, closed=True)
        self._shared.hold.close()
        self._shared.mailbox.close()
        if held:
            log.warning("the viewer was closed: the training that it held goes on")
        self._undo.close()
        for source in self._sources:
            source.leave()

    def __copy__(self) -> "Viewer":
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> "Viewer":
        return self  # copies of an environment are shown by the same viewer

    def __reduce__(self) -> Any:
        name = vars(self).setdefault("_pickled_as", uuid.uuid4().hex)
        _viewers[name] = self
        return _viewer_here, (os.getpid(), name)

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, adapter: "Adapter", grid: Grid, role: str | None) -> Callbacks:
        """Called by `VisualizedEnv`: shows the model at once. Returns the host's callbacks."""
        self._signals.start()  # an event loop may have taken the signals since
        source = Callbacks(self._shared, adapter, grid, role, self._new_training)
        self._sources.add(source)
        with self._shared.lock:
            self._shared.findings.rearm()
        if self._page is None or not self._page.steering.show_is_chosen:
            # A viewer that has only evaluation environments shows these.
            alone = all(known.role == "eval" for known in self._sources)
            self._shared.set(show="eval" if alone else "train")
        role = role or "train"
        with self._shared.lock:
            if self._shows_newest:  # until the shown one is stepped again
                self._shared.shown.pop(role, None)
            known = self._shared.shown.get(role)
        if known is None or not known.rollouts:
            self._end.show_model(source, role, None)
        return source

    def _new_training(self, source: Source, call: TrainerCall) -> None:
        """Called on the trainer's thread when it begins to trace `source`'s environment."""
        self._signals.start()
        if source.role != "eval":
            self._end.show_model(source, "train", call.num_envs)


def _both(first: Callable[..., None], then: Callable[..., object] | None) -> Callable[..., None]:
    if then is None:
        return first

    def both(*args: Any) -> None:
        first(*args)
        then(*args)

    return both


_viewers: "weakref.WeakValueDictionary[str, Viewer]" = weakref.WeakValueDictionary()


def _viewer_here(process: int, name: str) -> Viewer | None:
    """Returns the viewer that was pickled; None in any other process, a fork included."""
    return _viewers.get(name) if process == os.getpid() else None
