"""Manages the user's sandbox: forks a robot into it, drives and pushes it, and shows it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brax_viser.model.shapes import roaming_body
from brax_viser.records.environment import Environment
from brax_viser.records.frame import Detail, Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import ASIDE, View
from brax_viser.sandbox.newest import Newest
from brax_viser.sandbox.trained import Trained

if TYPE_CHECKING:  # these modules import JAX, which would delay the page
    from brax_viser.sandbox.runner import SandboxThread
    from brax_viser.sandbox.simulation import Sandbox

log = logging.getLogger("brax_viser")

IMPULSE_SPEED = 0.5
"""m/s by which a push changes the speed of the whole robot, by default."""

DIRECTIONS = {"Left": (-1, 0), "Right": (1, 0), "Away": (0, 1), "Towards": (0, -1)}
"""Directions of pushes as seen by the user: (to the right, away)."""


@dataclass(frozen=True)
class ForkView:
    """The sandbox as the panel shows it."""

    env: int | None = None  # the forked environment of the training; None: there is no sandbox
    num_steps: int = 0  # over all environments, at the fork
    preparing: bool = False
    begins: bool = False  # whether it began with an episode, not with a moment of the training
    fault: str | None = None  # why the sandbox failed
    driver: str = "still"
    drivers: tuple[str, ...] = ()  # available drivers
    no_policy: str | None = None  # why the policy can't be used
    policy_steps: int | None = None  # `num_steps` that the trainer passed with the policy
    speed: float = 1.0
    gravity: float = 1.0
    friction: float = 1.0
    mass: float = 1.0  # factor, of `body` or the mean over all bodies
    impulse: float = 1.0  # N s
    body: int | None = None  # the body last pointed at
    dragged: bool = False  # whether there is a handle to drag the robot by
    time: float = 0.0  # s since the fork
    reward: float | None = None
    done: bool = False
    trouble: str | None = None


@dataclass(frozen=True, eq=False)
class _Fork:
    """A fork that was requested and becomes a sandbox."""

    adapter: Environment
    details: Sequence[Detail]
    own: Mapping[str, np.ndarray]
    num_steps: int


class SandboxSession:
    """Holds zero or one sandbox. Used on viser's own thread, except where said otherwise.

    Making a sandbox takes seconds, in which the environment's code is compiled. That and all of the
    sandbox's work run on their own threads. The fork, its thread and the panel's view of it change
    together under the lock, so threads of an earlier fork change nothing.
    """

    def __init__(self, wake: Callable[[], None]):
        """Starts without a sandbox.

        Args:
            wake: called on any thread when there is something new to show.
        """
        self.trained: Trained | None = None
        # Leaves of the environment's `state.info`, by name, that it finds before each step.
        self.steered: Mapping[str, np.ndarray] = {}
        self.version = 0  # changes with each fork: another robot is drawn
        self._wake = wake
        self._forks = Newest(self._prepare_newest, "brax_viser fork")
        self._lock = threading.Lock()  # guards the next three
        self._view = ForkView()
        self._fork: _Fork | None = None
        self._thread: SandboxThread | None = None  # of that fork, once it runs
        self._steps = 0
        self._seen: Any = None  # the pose last shown

    @property
    def forked(self) -> tuple[Environment, Mapping[str, np.ndarray], Detail] | None:
        """(environment, fields in which its model differs, detail forked from), or None."""
        fork = self._fork
        return None if fork is None else (fork.adapter, fork.own, fork.details[-1])

    @property
    def thread(self) -> "SandboxThread | None":
        """The sandbox's thread; None before it runs."""
        return self._thread

    def fork(
        self,
        adapter: Environment,
        details: Sequence[Detail],
        own: Mapping[str, np.ndarray],
        num_steps: int,
        *,
        begins: bool = False,
    ) -> None:
        """Makes a sandbox of an environment, replacing the last one.

        Args:
            adapter: of the environment.
            details: consecutive details of one episode, up to the moment to continue from.
            own: the fields in which the environment's model differs from the shared one.
            num_steps: over all environments, at that moment.
            begins: whether the moment is the start of an episode, not one of the training.
        """
        self.close()
        self.version += 1
        fork = _Fork(adapter, tuple(details), own, num_steps)
        mass = float(adapter.mj_model.body_mass[1:].sum())
        view = ForkView(
            env=details[-1].env,
            num_steps=num_steps,
            preparing=True,
            begins=begins,
            impulse=float(f"{IMPULSE_SPEED * mass:.2g}"),
        )
        with self._lock:
            self._fork, self._view = fork, view
        self._forks.wish(fork)

    def close(self) -> None:
        """Ends the sandbox, if any; its robot is no longer drawn."""
        with self._lock:
            thread, self._thread, self._fork = self._thread, None, None
            self._view = ForkView()
        self._seen, self._steps = None, 0
        if thread is not None:
            thread.end()

    def hand_out(self, trained: Trained) -> None:
        """Takes a newer policy, which drives the sandbox from then on."""
        self.trained = trained
        self._drive(self._fork)

    def _drive(self, fork: _Fork | None) -> None:
        """Gives the newest policy to the sandbox."""

        def give(sandbox: "Sandbox") -> None:
            if self.trained is not None:
                _give(sandbox, self.trained)
                self._read(fork, sandbox)

        self._do(give)

    def reset(self) -> None:
        """Goes back to the moment of the fork."""
        self._do(lambda sandbox: sandbox.reset())

    def set(self, **changes: Any) -> None:
        """Changes some of `ForkView`'s driver, speed, gravity, friction, mass and impulse."""
        self._tell(self._fork, **changes)
        for name, value in changes.items():
            match name:
                case "driver":
                    self._do(lambda sandbox, value=value: setattr(sandbox, "driver", value))
                case "gravity":
                    self._do(lambda sandbox, value=value: sandbox.set_gravity(value))
                case "friction":
                    self._do(lambda sandbox, value=value: sandbox.set_friction(value))
                case "mass":
                    body = self._view.body
                    self._do(lambda sandbox, value=value, body=body: sandbox.set_mass(value, body))
                case "speed":
                    if self._thread is not None:
                        self._thread.set_speed(value)

    def point_at(self, body: int | None) -> None:
        """Makes pushes and masses apply to this body; None: to the whole robot."""
        fork = self._fork
        self._tell(fork, body=body)
        self._do(lambda sandbox: self._read_mass(fork, sandbox))

    def push(self, direction: np.ndarray) -> None:
        """Pushes the body last pointed at, or else the one that roams.

        Args:
            direction: float [3], of unit length, in the world frame.
        """
        body, impulse = self.body, self._view.impulse * direction
        self._do(lambda sandbox: sandbox.push(body, impulse))

    @property
    def body(self) -> int:
        """The body that is pushed and dragged."""
        fork = self._fork
        roams = roaming_body(fork.adapter.mj_model) if fork is not None else None
        return self._view.body or roams or 1

    def drag(self, point: np.ndarray, target: np.ndarray, body: int) -> None:
        """Pulls a body towards a target; see `simulation.Sandbox.drag`."""
        self._do(lambda sandbox: sandbox.drag(body, point, target))

    def release(self) -> None:
        """Ends the drag."""
        self._do(lambda sandbox: sandbox.release())

    def panel(self) -> ForkView:
        """Returns the sandbox's state for the panel."""
        with self._lock:
            view, thread = self._view, self._thread
        if thread is not None and thread.fault is not None:
            view = replace(view, fault=f"{type(thread.fault).__name__}: {thread.fault}")
        elif thread is not None and not view.preparing:
            pose = thread.pose
            view = replace(
                view, time=pose.time, reward=pose.reward, done=thread.ended, trouble=pose.trouble
            )
        return view

    def view(self, now: float) -> View | None:
        """Returns what to draw; None if there is nothing, or nothing new since the last call."""
        with self._lock:
            fork, thread = self._fork, self._thread
        if fork is None or thread is None:
            return None
        pose = thread.pose
        if pose is self._seen:
            return None
        self._seen = pose
        self._steps += 1
        one = np.ones(1, np.float32)
        link_pos, link_rot = pose.link_pos[None], pose.link_rot[None]
        frame = Frame(
            role=ASIDE,
            env_steps=self._steps,
            env_index=np.array([fork.details[-1].env], np.int32),
            num_envs=1,
            link_pos=link_pos,
            link_rot=link_rot,
            reward=(pose.reward or 0.0) * one,
            episode_return=0.0 * one,
            episode_length=np.full(1, self._steps, np.int32),
            since_termination=np.full(1, 0 if pose.done else NEVER, np.int32),
            finite=np.full(1, pose.trouble is None),
            detail=pose.detail,
        )
        return View(frame, link_pos, link_rot, np.zeros(1, bool), pose.time, now)

    def look_again(self) -> None:
        """Has the next `view` return the pose again, as its drawing is gone."""
        self._seen = None

    def _do(self, command: "Callable[[Sandbox], Any]") -> None:
        thread = self._thread
        if thread is not None:
            thread.do(command).add_done_callback(self._done)

    def _done(self, future: "Future[Any]") -> None:
        """Called on the sandbox's thread, or on the thread that cancels the future."""
        if not future.cancelled() and (error := future.exception()) is not None:
            log.warning("sandbox: %s", error)
        self._wake()

    def _prepare_newest(self, fork: _Fork) -> None:
        """Makes the sandbox, unless it was closed while another was made."""
        if self._fork is fork:
            self._prepare(fork, self.trained)

    def _prepare(self, fork: _Fork, trained: Trained | None) -> None:
        """Makes the sandbox. Runs on a separate thread."""
        from brax_viser.model.physics import varied
        from brax_viser.sandbox.runner import SandboxThread
        from brax_viser.sandbox.simulation import Sandbox
        from brax_viser.sandbox.transplant import CannotTransplant, Transplant

        why, transplant = None, None
        try:
            try:
                transplant = Transplant(fork.adapter)
                transplant.steered = lambda: self.steered
            except CannotTransplant as error:
                why = str(error)
            model = varied(fork.adapter.mujoco_model(), fork.own)
            repeat = fork.adapter.repeat
            substeps = max(fork.adapter.substeps // repeat, 1)
            sandbox = Sandbox(model, substeps, repeat=repeat, transplant=transplant)
            sandbox.no_policy = why
            if trained is not None:
                _give(sandbox, trained)
            sandbox.fork(fork.details, info=fork.details[-1].info)
            thread = SandboxThread(sandbox)
        # Catch everything: the page shows the error, and all else goes on.
        except Exception as error:
            log.error("no sandbox", exc_info=error)
            self._prepared(fork, None, fault=f"{type(error).__name__}: {error}")
            return
        self._read(fork, sandbox)
        self._prepared(fork, thread)
        if self.trained is not trained:  # `hand_out` was called in between
            self._drive(fork)

    def _prepared(
        self, fork: _Fork, thread: "SandboxThread | None", fault: str | None = None
    ) -> None:
        """Starts the thread, unless the fork was replaced or closed in between."""
        with self._lock:
            if self._fork is not fork:
                return
            if thread is not None:
                thread.start()
            self._thread = thread
            self._view = replace(self._view, preparing=False, fault=fault)
        self._wake()

    def _read(self, fork: _Fork | None, sandbox: "Sandbox") -> None:
        """Tells the panel the drivers. Called on the sandbox's thread, or before it starts."""
        self._tell(
            fork,
            driver=sandbox.driver,
            drivers=sandbox.drivers,
            no_policy=sandbox.no_policy,
            policy_steps=self.trained.num_steps if self.trained else None,
        )

    def _read_mass(self, fork: _Fork | None, sandbox: "Sandbox") -> None:
        body = self._view.body
        own = sandbox.masses[1:] if body is None else sandbox.masses[body : body + 1]
        self._tell(fork, mass=float(own.mean()))

    def _tell(self, fork: _Fork | None, **changes: Any) -> None:
        """Changes the panel's view of a fork if it is still the current one. On any thread."""
        with self._lock:
            if self._fork is fork:
                self._view = replace(self._view, **changes)


def _give(sandbox: "Sandbox", trained: Trained) -> None:
    from brax_viser.sandbox.transplant import Policy

    sandbox.policy = Policy(trained.make_policy, trained.params)
