"""`Viewer`: the page, the switch, and all else that a person or a script can steer."""

import atexit
import contextlib
import functools
import importlib.util
import os
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
import rich
import viser

from brax_viser.host.callbacks import Feed, log
from brax_viser.host.control import MODES, SHOWS, Control
from brax_viser.host.findings import Finding
from brax_viser.host.progress import ProgressView
from brax_viser.host.selection import Selection
from brax_viser.host.source import Source, Sources
from brax_viser.host.state import Switchboard
from brax_viser.page import address
from brax_viser.page.commands import Clerk
from brax_viser.page.loop import Publisher
from brax_viser.process import InterruptWatch, interpreter
from brax_viser.processes import rendezvous
from brax_viser.records.grid import Grid
from brax_viser.records.protocol import MEASURES
from brax_viser.records.trainer_call import TrainerCall
from brax_viser.sandbox.session import Trained
from brax_viser.twins.drift import Drift
from brax_viser.twins.worker import TwinSettings

if TYPE_CHECKING:  # it imports Brax, which takes a second that the page need not wait for
    from brax_viser.device.adapters import Adapter
    from brax_viser.processes.leader import Others
    from brax_viser.processes.worker import Relay
    from brax_viser.sandbox.runner import SandboxThread


RELOAD_SECONDS = 5.0
"""How long a held training waits for a page to come back after the last one has gone: reloading
one is no reason to let it go on."""


class _Named:
    """The viewers of this process that are open and have a name: one of each."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while one takes the place of another
        self._viewers: dict[object, Viewer] = {}

    def get(self, key: object) -> "Viewer | None":
        return self._viewers.get(key)

    def add(self, key: object, viewer: "Viewer") -> None:
        with self.lock:
            self._viewers[key] = viewer

    def remove(self, key: object, viewer: "Viewer") -> None:
        with self.lock:
            if self._viewers.get(key) is viewer:
                del self._viewers[key]


_named = _Named()


def implicit_viewer(env_name: str) -> "Viewer":
    """The viewer of an environment that was given none: that of the last one of that name, as long
    as it is open, or else a new one."""
    with _named.lock:
        name = f"environment {env_name}"
        viewer = _named.get(("name", name)) or Viewer(name=name)
        viewer._shows_newest = True
        return viewer


def _interactive() -> bool:
    """Whether a person types code that goes into this process, and may send it again."""
    shell = sys.modules.get("IPython")  # nobody has typed into one that was not imported
    if shell is not None and shell.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


P = ParamSpec("P")


def _by_first_alone(
    method: Callable[Concatenate["Viewer", P], None],
) -> Callable[Concatenate["Viewer", P], None]:
    """For what steers the viewer: where several processes run the training, and the script with
    it, the first one's page and code steer all of them, and the others' code does nothing."""

    @functools.wraps(method)
    def steer(self: "Viewer", *args: P.args, **kwargs: P.kwargs) -> None:
        if self._place.process == 0:
            method(self, *args, **kwargs)

    return steer


MOST_TWINS = 256
"""A person sees no more at once, and MuJoCo has them to step."""


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
    overhead: float  # share of the training's wall-clock, 0 to 1, over the last seconds
    held: bool  # whether the training is being held
    drawn_envs: tuple[int, ...]  # indices, in the order of the grid's cells
    streams: Mapping[str, StreamStats]  # by role, "train" and "eval"


class Viewer:
    """Serves one page that shows what `VisualizedEnv`s emit.

    The server starts with the object and stops with `close`. Three kinds of threads meet here:
    XLA's, which call `Feed.ask` and `Feed.push`; viser's, whose event loop runs the page's
    callbacks, which only enqueue, and the publisher, which does everything else; and the user's.

    Of a training that several processes run (`jax.distributed`), the first one's viewer serves the
    page, and is steered; in the others, where the same script runs, a viewer sends what its devices
    step to the first one's, does as that one says, and opens no port. Each process makes the same
    viewers and environments in the same order. What the processes tell each other is encrypted and
    needs a secret, which `hosts.meeting` tells more about.
    """

    _made = 0  # viewers, in this process

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
    ):
        """Starts the server.

        Args:
            host: address to listen on, IPv4 or IPv6, or a name of this machine's. There is no
                password: whoever reaches it can watch, and can switch the streaming and hold the
                training.
            port: if it is taken, the next free one is used; 0 takes any. None is 8000. See `url`.
            mode: "realtime" (stretches of consecutive steps, played at the robot's own speed),
                "latest" (the newest state, `fps` times a second) or "every_step" (all of them;
                the training waits for the viewer when it must).
            fps: frames per second that a page is sent, above 0 and at most 60.
            max_overhead: share of the training's wall-clock that "realtime" and "latest" may
                cost, above 0 and at most 1; stretches and frames are spaced to keep it.
            streaming: whether the switch is on at first.
            name: the viewer takes the place of this process's last one of that name, if that is
                still open, which is closed; and its port, so that an open page comes back. Without
                one, the name is the port that was asked for, if it is not 0; and in an interactive
                session (Jupyter, IPython, Python's own), where a cell may be run again, all viewers
                with neither are of one name.

        Raises:
            ValueError: a value is out of its limits, or `host` cannot be listened on.
            ImportError: several processes run the training, and ZeroMQ is not installed.
        """
        _check_choice("mode", mode, MODES)
        if not 0 < fps <= 60:
            raise ValueError(f"fps={fps}: must be above 0 and at most 60, what a page can show")
        _check_share(max_overhead)
        if port is not None and not _is_port(port):
            raise ValueError(
                f"port={port!r}: must be a whole number from 0 to 65535 (0 takes any free one)"
            )
        if name is not None and not isinstance(name, str):
            raise ValueError(f"name={name!r}: must be a string, or None")
        self._place = rendezvous.place()
        if self._place.num_processes > 1:
            _require_zmq()
        self._host = address.listening_address(host) if self._place.process == 0 else ""
        self._asked_port = port
        self._key = ("name", name) if name is not None else _key_of(port)
        self._shows_newest = False  # of the environments, though another was stepped last
        self._board = Switchboard(
            Control(streaming=streaming, mode=mode, fps=fps, max_overhead=max_overhead)
        )
        self._feeds = Sources()
        self._show_is_chosen = False
        self._reload: threading.Timer | None = None
        number = Viewer._made
        Viewer._made += 1
        self._board.num_processes = self._place.num_processes
        self._others: Others | None = None
        self._end: Publisher | Relay  # of the feeds' way
        self._undo = contextlib.ExitStack()  # what `close` does, in reverse
        try:
            with _named.lock:
                self._build(number, self._replaced())
            if self._place.process == 0:
                print(f"brax_viser: {self.url}", flush=True)
        except BaseException:  # Ctrl-C as well: nothing that was begun is to stay
            self.close()
            raise

    def _replaced(self) -> int:
        """Closes the viewer whose place this one takes; the port to ask for."""
        port = address.DEFAULT_PORT if self._asked_port is None else self._asked_port
        last = _named.get(self._key)
        if last is None:
            return port
        of_last = last._server.get_port() if last._place.process == 0 else 0
        log.warning("the viewer at %s gives way to a new one of its name", last.url)
        last.close()
        if self._asked_port in (None, 0, last._asked_port):
            port = of_last
        if port == of_last != 0:
            address.wait_until_free(self._host, port)
        return port

    def _build(self, number: int, port: int) -> None:
        """Starts all that runs, and has `close` end it."""
        undo = self._undo
        if self._place.process > 0:
            self._end = self._relay(number)
        else:
            self._end = self._publisher = self._serve(port)
            undo.callback(_join, self._publisher)
            if self._place.num_processes > 1:
                self._others = self._publisher.others = self._listen(number)
                self._others.start()
                undo.callback(self._others.join, timeout=5.0)
        interpreter.shorten()
        undo.callback(interpreter.restore)
        interrupts = InterruptWatch(self._board.hold.interrupt)
        undo.callback(interrupts.close)
        interrupts.start()
        self._end.start()
        if self._place.process > 0:
            undo.callback(self._end.join, timeout=5.0)
        # XLA waits for pending callbacks at exit: nobody may be left waiting for the publisher.
        atexit.register(self.close)
        undo.callback(atexit.unregister, self.close)
        if self._key is not None:
            _named.add(self._key, self)
            undo.callback(_named.remove, self._key, self)

    def _relay(self, number: int) -> "Relay":
        from brax_viser.processes.worker import Relay

        return Relay(self._board, self._feeds, self._place, number)

    def _listen(self, number: int) -> "Others":
        from brax_viser.processes.leader import Others

        return Others(self._board, self._feeds, self._place, number, self.url)

    def _serve(self, port: int) -> Publisher:
        """Starts the page's server."""
        wanted, port = port, address.free_port(self._host, port) if port else 0
        # viser prints a banner of its own, with an address that need not be the one to open. Rich
        # captures what this thread prints alone: whatever others print now is not lost.
        with rich.get_console().capture():
            self._server = viser.ViserServer(
                host=self._host, port=port, label="brax_viser", verbose=False
            )
        self._undo.callback(self._stop_server)
        if wanted not in (0, self._server.get_port()):
            # It may as well be one of those that only an administrator may have.
            log.warning(
                "port %d is taken or not allowed, using %d", wanted, self._server.get_port()
            )
        publisher = Publisher(self._board, self._server)
        clerk = Clerk(self, self._board, publisher, self._server, self._select)
        publisher.obey = clerk.obey
        self._server.on_client_connect(self._count_pages)
        self._server.on_client_disconnect(self._count_pages)
        publisher.now(lambda: self._server.scene.on_click()(self._clicked))
        return publisher

    @property
    def url(self) -> str:
        """The address to open in a browser. In other processes than the first, of the first one's
        page; empty as long as it has not been heard of."""
        if not isinstance(self._end, Publisher):
            return self._end.url or ""
        return address.url_of(self._host, self._server.get_port())

    @property
    def streaming(self) -> bool:
        """The page's switch: while it is off, no state leaves the device."""
        return self._board.control.streaming

    @streaming.setter
    @_by_first_alone
    def streaming(self, on: bool) -> None:
        self._board.set(streaming=bool(on))
        if on:
            self._board.fault = None
            self._board.hold.refresh()
        elif self._board.hold.until_env is not None:
            self.pause()  # a termination that nobody looks for would never be found
        self._board.mailbox.wake()

    @property
    def mode(self) -> str:
        """ "realtime", "latest" or "every_step"."""
        return self._board.control.mode

    @mode.setter
    @_by_first_alone
    def mode(self, mode: str) -> None:
        _check_choice("mode", mode, MODES)
        if mode != self.mode:
            self._board.set(mode=mode)
            self._publisher.hurry()

    @property
    def max_overhead(self) -> float:
        """Share of the training's wall-clock that "realtime" and "latest" may cost."""
        return self._board.control.max_overhead

    @max_overhead.setter
    @_by_first_alone
    def max_overhead(self, share: float) -> None:
        _check_share(share)
        self._board.set(max_overhead=float(share))
        self._board.mailbox.wake()

    @property
    def speed(self) -> float:
        """Playback in "realtime", robot seconds per second: 0.1 to 4."""
        return self._board.control.speed

    @speed.setter
    @_by_first_alone
    def speed(self, speed: float) -> None:
        _check_range("speed", speed, 0.1, 4.0, "robot seconds per second")
        self._board.set(speed=float(speed))
        self._board.mailbox.wake()

    @property
    def stretch_seconds(self) -> float:
        """How much of the robot's time one stretch of "realtime" shows, s: 0.5 to 30."""
        return self._board.control.stretch_seconds

    @stretch_seconds.setter
    @_by_first_alone
    def stretch_seconds(self, seconds: float) -> None:
        _check_range("stretch_seconds", seconds, 0.5, 30.0, "seconds of the robot's time")
        self._board.set(stretch_seconds=float(seconds))
        self._board.mailbox.wake()

    @property
    def show(self) -> str:
        """Which rollouts are shown: "train", "eval", or "both" side by side."""
        return self._board.control.show

    @show.setter
    @_by_first_alone
    def show(self, show: str) -> None:
        _check_choice("show", show, SHOWS)
        self._show_is_chosen = True
        if show != self.show:
            self._board.set(show=show)
            self._publisher.hurry()

    @_by_first_alone
    def select(self, what: "str | Sequence[int] | np.ndarray", *, sticky: bool = False) -> None:
        """Chooses the environments to draw, at most one per cell. Nothing is recompiled.

        Args:
            what: "first"; ("page", n), counted from 1; a list of indices, which count over all
                devices; "random"; "best" or "worst" (by the return that `rank_by` names);
                "terminated" (most recently), each in the pose in which it fell, after the steps
                that led there where they have come; or "nan" (any NaN or Inf). The last four are
                chosen among all environments, on the device.
            sticky: keep those that a rule has chosen, instead of choosing anew at each stretch.

        Raises:
            ValueError: none of these, an index below 0, or one given twice.
        """
        self._select(Selection.of(what, sticky=sticky))

    @property
    def rank_by(self) -> str:
        """Which return "best" and "worst" are ranked by, and labels and colours tell:
        "last_episode", that of each environment's last finished episode, those that have none
        behind the others, by the third; "so_far", that of the episode so far; or "per_second", that
        over the time of it."""
        return self._board.selection.rank_by

    @rank_by.setter
    @_by_first_alone
    def rank_by(self, measure: str) -> None:
        _check_choice("rank_by", measure, MEASURES)
        self._select(self._board.selection, measure)

    @property
    def selected_env(self) -> int | None:
        """The environment that is followed, stepped to its termination and marked; it is drawn in
        any case. None: no one is."""
        return self._board.selected_env

    @selected_env.setter
    @_by_first_alone
    def selected_env(self, env: int | None) -> None:
        if env is not None and (isinstance(env, bool) or int(env) != env or env < 0):
            raise ValueError(f"selected_env={env!r}: must be an env index, 0 or more, or None")
        with self._board.lock:
            self._board.selected_env = None if env is None else int(env)
        self._publisher.unfollow()
        with self._board.lock:
            changes = [
                rollout.choice.keep(self._board.kept_env, rollout.num_envs, feed.capacity)
                for feed in self._feeds
                for rollout in feed.rollouts.values()
            ]
        if any(changes):
            self._publisher.hurry()
        else:
            self._board.hold.refresh()  # a training that is held tells all of it at this very step
        self._board.mailbox.wake()

    @property
    def twins(self) -> int:
        """How many of the robots that are drawn have a twin in MuJoCo, which is stepped with the
        controls of the training beside it: 0 to 256, 0 at first. The selected robot has one first.
        There are none in mode "latest", which has no consecutive steps."""
        return self._board.control.twins

    @twins.setter
    @_by_first_alone
    def twins(self, count: int) -> None:
        if isinstance(count, bool) or int(count) != count or not 0 <= count <= MOST_TWINS:
            raise ValueError(f"twins={count!r}: must be a number of twins, 0 to {MOST_TWINS}")
        self._publisher.follower.fault = None  # who switches them on again wants another try
        self._board.set(twins=int(count))
        self._board.hold.refresh()  # a training that is held tells what they need at this very step
        self._board.mailbox.wake()

    @property
    def twin_settings(self) -> TwinSettings:
        """How twins are stepped, judged and drawn; a frozen dataclass, to be replaced."""
        return self._publisher.twins if isinstance(self._end, Publisher) else TwinSettings()

    @twin_settings.setter
    @_by_first_alone
    def twin_settings(self, settings: TwinSettings) -> None:
        if settings.every is not None and settings.every < 1:
            raise ValueError(f"every={settings.every}: must be a number of steps, at least 1")
        if not settings.limit > 0:
            raise ValueError(f"limit={settings.limit}: must be a distance above 0, in m")
        self._publisher.twins = settings
        self._board.mailbox.wake()

    @_by_first_alone
    def restart_twins(self) -> None:
        """Starts all twins anew, with the next step, from where their robots are then."""
        self._publisher.follower.start_anew()

    @_by_first_alone
    def policy_params_fn(
        self, num_steps: int, make_policy: Callable[..., Any], params: Any
    ) -> None:
        """Hand it to the trainer as `policy_params_fn`: sandboxes are driven by the policy."""
        import jax  # there is a trainer, so it has been imported

        # On the host: what is on the device may be given away to the next epoch.
        trained = Trained(num_steps, make_policy, jax.device_get(params))
        self._publisher.enqueue(("trained", trained))

    @_by_first_alone
    def fork(self) -> None:
        """Takes the selected environment, as it is on screen, into a MuJoCo sandbox beside the
        others, in place of the one there was. See `sandbox`, which it takes some seconds to make.

        Raises:
            ValueError: no environment is selected, or what is inside of it is not known yet.
        """
        self._publisher.now(self._publisher.fork)

    @property
    def sandbox(self) -> "SandboxThread | None":
        """What runs the sandbox, once there is one: `do` has it push the robot, change gravity and
        the like; see `sandbox.Sandbox`."""
        return self._publisher.aside.forks.thread if isinstance(self._end, Publisher) else None

    @_by_first_alone
    def close_sandbox(self) -> None:
        """Takes the sandbox away, if there is one."""
        self._publisher.now(self._publisher.end_fork)

    def drift(self) -> Drift | None:
        """How far the twins are from their robots, at the step that is on screen; None if none of
        them has one. In other processes than the first: None."""
        return self._publisher.drift() if isinstance(self._end, Publisher) else None

    @_by_first_alone
    def pause(self) -> None:
        """Holds the *training* at its next step, until `resume`. The page stays live."""
        self._publisher.notice = None
        self._board.hold.pause(self._stepped)
        self._board.mailbox.wake()

    @_by_first_alone
    def resume(self) -> None:
        """Lets a held training go on."""
        self._publisher.notice = None
        self._board.hold.resume()
        self._board.mailbox.wake()

    @_by_first_alone
    def step(self, n: int = 1) -> None:
        """Lets a held training go on by `n` env steps; holds a training that runs.

        Returns at once: `stats().held` tells when the training has come to a stop.

        Raises:
            ValueError: `n` is below 1.
        """
        if isinstance(n, bool) or int(n) != n or n < 1:
            raise ValueError(f"step({n!r}): must be a number of env steps, at least 1")
        self._publisher.notice = None
        self._board.hold.step(int(n), self._stepped)
        self._board.mailbox.wake()

    @_by_first_alone
    def run_to_termination(self, env: int | None = None) -> None:
        """Lets the training go on until an environment's episode ends in a termination, and holds
        it there. Running out of time is none. Returns at once, as `step` does.

        Args:
            env: which; selected from now on. None: the one that is selected.

        Raises:
            ValueError: no environment is selected, or it is no index.
        """
        if env is not None:
            self.selected_env = env
        if self.selected_env is None:
            raise ValueError("run_to_termination(): no env is selected: give its index")
        with self._board.lock:
            rollouts = [feed.rollouts.get(self._stepped) for feed in self._feeds]
        num_envs = max([rollout.num_envs for rollout in rollouts if rollout], default=None)
        if num_envs is not None and self.selected_env >= num_envs:
            raise ValueError(f"env {self.selected_env} does not exist: there are {num_envs}")
        self._publisher.notice = None
        if not self.streaming:
            self.streaming = True  # it takes looking at every step of it
        self._board.hold.run_to_termination(self.selected_env, self._stepped)
        self._board.mailbox.wake()

    @property
    def hold_on_nan(self) -> bool:
        """Whether the training is held at the very step at which anything of an environment turns
        NaN or Inf, of the training or an evaluation, with that environment selected: its reward,
        link poses, velocities or observations. Once; `resume` goes on, and setting it again has
        the next one hold as well. An Inf that is in observations by design holds it for itself.

        Then all is looked through at each step, and not some times a second. Once the training is
        running, this begins within 0.1 s."""
        return self._board.control.hold_on_nan

    @hold_on_nan.setter
    @_by_first_alone
    def hold_on_nan(self, on: bool) -> None:
        with self._board.lock:
            self._board.findings.rearm()
        self._board.set(hold_on_nan=bool(on))
        self._board.mailbox.wake()

    @property
    def nonfinite(self) -> tuple[Finding, ...]:
        """What has turned NaN or Inf since the training began, in whatever environment: the first
        of its kind, in the training and in evaluations. `str` makes a sentence of one. A reward is
        found at the very step, all else within 0.1 s, streaming or not; see `hold_on_nan`."""
        with self._board.lock:
            return self._board.findings.told

    @_by_first_alone
    def dismiss_nonfinite(self) -> None:
        """Takes what `nonfinite` tells off the page. What turns NaN or Inf from now on is told."""
        with self._board.lock:
            self._board.findings.forget()
        self._board.mailbox.wake()

    def progress_fn(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Hand it to the trainer as `progress_fn`: steps become exact, evaluations are shown."""
        self._tell_progress()
        self._board.progress.reported(num_steps, metrics, self._board.clock())
        self._board.mailbox.wake()

    def training_ended(self, error: str | None = None) -> None:
        """Tells the page that the training is over, or why it failed. The page stays usable."""
        self._tell_progress()
        self._board.progress.ended(self._board.clock(), error)
        self._board.hold.resume()  # there is nothing left to hold
        self._board.mailbox.wake()

    def _tell_progress(self) -> None:
        with self._board.lock:
            for feed in self._feeds:
                self._board.tell_progress(feed)

    def progress(self) -> ProgressView:
        """How far the training is, as the page shows it."""
        self._tell_progress()
        return self._board.progress.view(self._board.clock())

    def stats(self) -> Stats:
        """A consistent reading of all counters."""
        board, drawn_envs, others = self._board, self._end.drawn_envs(), self._others
        frames, nbytes = others.moved() if others else (0, 0)
        feeds = list(self._feeds)
        with board.lock:
            at = board._read()
            known = [
                (feed, role, (rollout.pacer.env_steps, rollout.num_envs, rollout.pacer.rate))
                for feed in feeds
                for role, rollout in feed.rollouts.items()
            ]
        # Of several that are stepped, the one on the page.
        streams = {
            role: StreamStats(*numbers)
            for feed, role, numbers in known
            if at.shown.get(role, feed) is feed
        }
        train = streams.get("train")
        return Stats(
            env_steps=train.env_steps if train else 0,
            frames=at.frames + frames,
            bytes_moved=at.bytes_moved + nbytes,
            overhead=at.cost.share(board.clock()) + (others.share() if others else 0.0),
            held=board.hold.held,
            drawn_envs=drawn_envs,
            streams=streams,
        )

    def close(self) -> None:
        """Stops the server. A training that is running, or held, goes on without it. Idempotent."""
        with self._board.lock:
            if self._board.control.closed:
                return
            held = self._board.hold.held
            self._board.control = replace(self._board.control, closed=True)
        self._board.hold.close()
        self._board.mailbox.close()
        if held:
            log.warning("the viewer was closed: the training that it held goes on")
        self._undo.close()
        for feed in self._feeds:
            feed.leave()

    def _stop_server(self) -> None:
        # That it has stopped, viser prints on its loop's thread, where nobody else prints, and
        # which ends with that, and Rich's capture with it.
        with contextlib.suppress(RuntimeError):  # it is stopped
            loop = self._server.get_event_loop()
            loop.call_soon_threadsafe(rich.get_console().begin_capture)
        self._server.stop()
        if (reload := self._reload) is not None:  # no page can go any more
            reload.cancel()
            if reload is not threading.current_thread():
                reload.join(timeout=5.0)

    def __copy__(self) -> "Viewer":
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> "Viewer":
        return self  # whatever has a viewer is shown by it, and so are copies

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

    def attach(self, adapter: "Adapter", grid: Grid, role: str | None) -> Feed:
        """Called by `VisualizedEnv`: shows the model at once, and returns whom to ask."""
        feed = Feed(self._board, adapter, grid, role, self._new_training)
        self._feeds.add(feed)
        with self._board.lock:
            self._board.findings.rearm()
        if not self._show_is_chosen:
            # Who shows an environment for evaluation alone wants to see that.
            alone = all(known.role == "eval" for known in self._feeds)
            self._board.set(show="eval" if alone else "train")
        role = role or "train"
        with self._board.lock:
            if self._shows_newest:  # until the one that was shown is stepped again
                self._board.shown.pop(role, None)
            known = self._board.shown.get(role)
        if known is None or not known.rollouts:
            self._end.show_model(feed, role, None)
        return feed

    @property
    def _stepped(self) -> str:
        """The rollout whose steps are counted when the training is stepped."""
        return self._board.looked_into

    def _new_training(self, feed: Source, call: TrainerCall) -> None:
        """A trainer has begun to trace `feed`'s environment, on the trainer's thread."""
        if feed.role != "eval":
            self._end.show_model(feed, "train", call.num_envs)

    def _select(self, selection: Selection, rank_by: str | None = None) -> None:
        with self._board.lock:
            before = self._board.selection
            selection = replace(selection, rank_by=rank_by or before.rank_by)
            self._board.selection = selection
        self._publisher.complaint = None
        if not selection.same_rule(before):
            self._publisher.hurry()
        self._board.mailbox.wake()

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        self._publisher.enqueue(
            ("click", (np.asarray(event.ray_origin), np.asarray(event.ray_direction)))
        )

    async def _count_pages(self, page: viser.ClientHandle) -> None:
        # Async, so that it runs on the server's loop: its thread pool may be gone at exit.
        watched = bool(self._server.get_clients())
        if page.client_id not in self._server.get_clients():
            self._publisher.scene.forget(page.client_id)
        self._board.set(watched=watched)
        self._board.mailbox.wake()
        if self._reload is not None:
            self._reload.cancel()
            self._reload = None
        if not watched and self._board.hold.paused:
            self._reload = threading.Timer(RELOAD_SECONDS, self._let_go)
            self._reload.daemon = True
            self._reload.start()

    def _let_go(self) -> None:
        """Nobody looks any more: a training is not to stand still for nobody."""
        if self._board.hold.paused and not self._board.control.watched:
            self.resume()
            self._publisher.notice = (
                "The last page was closed while the training was held: it went on"
            )
            log.warning("the last page was closed: the training that it held goes on")


def _join(publisher: Publisher) -> None:
    sandbox = publisher.aside.forks.thread
    publisher.join(timeout=5.0)
    if sandbox is not None:
        sandbox.close(timeout=5.0)


def _key_of(port: int | None) -> object:
    """What viewers without a name are told apart by; None: each is one of its own."""
    if port is None:
        return "default" if _interactive() else None
    return port or None


_viewers: "weakref.WeakValueDictionary[str, Viewer]" = weakref.WeakValueDictionary()


def _viewer_here(process: int, name: str) -> Viewer | None:
    """The viewer that was pickled, where it lives; None in any other process, a fork included."""
    return _viewers.get(name) if process == os.getpid() else None


def _require_zmq() -> None:
    if importlib.util.find_spec("zmq") is None:
        raise ImportError(
            "a training of several processes needs ZeroMQ to show all of them in one page: "
            "pip install 'brax-viser[hosts]' in each"
        )


def _is_port(port: Any) -> bool:
    is_whole = isinstance(port, (int, np.integer)) and not isinstance(port, bool)
    return is_whole and 0 <= int(port) <= 65535


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"max_overhead={share}: must be above 0 and at most 1 (0.02 is 2 %)")


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be {low} to {high} {unit}")
