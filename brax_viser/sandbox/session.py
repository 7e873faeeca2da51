"""What a person does with a sandbox: fork a robot into it, drive it, push it, and see it."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brax_viser.model.shapes import roaming_body
from brax_viser.records.environment import Environment
from brax_viser.records.frame import Detail, Frame
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import ASIDE, View

if TYPE_CHECKING:  # they import JAX, which the page need not wait for
    from brax_viser.sandbox.runner import SandboxThread
    from brax_viser.sandbox.simulation import Sandbox

log = logging.getLogger("brax_viser")

IMPULSE_SPEED = 0.5
"""m/s by which a push changes the speed of the whole robot, unless a person wants another."""

DIRECTIONS = {"Left": (-1, 0), "Right": (1, 0), "Away": (0, 1), "Towards": (0, -1)}
"""Of pushes, as seen by who pushes: (to the right, away)."""


@dataclass(frozen=True)
class Trained:
    """The newest policy that the trainer has handed out."""

    num_steps: int
    make_policy: Callable[..., Any]
    params: Any = field(repr=False)  # on the host

    @classmethod
    def of(cls, num_steps: int, make_policy: Callable[..., Any], params: Any) -> "Trained":
        """With parameters that may be on the device: there they may be given away to the next
        epoch, and are copied to the host."""
        import jax  # there is a trainer, so it has been imported

        return cls(num_steps, make_policy, jax.device_get(params))


@dataclass(frozen=True)
class ForkView:
    """What the panel shows of it."""

    env: int | None = None  # of the training, that was forked; None: there is no sandbox
    env_steps: int = 0  # over all environments, at which it was
    preparing: bool = False
    fault: str | None = None  # why there is none
    driver: str = "still"
    drivers: tuple[str, ...] = ()  # that can be chosen
    no_policy: str | None = None  # why the policy cannot
    policy_steps: int | None = None  # of the training, when the policy was handed out
    speed: float = 1.0
    gravity: float = 1.0
    friction: float = 1.0
    mass: float = 1.0  # of `body`, or of all
    impulse: float = 1.0  # N s
    body: int | None = None  # that was pointed at
    dragged: bool = False  # whether there is a handle to drag the robot by
    time: float = 0.0  # s since the fork
    reward: float | None = None
    done: bool = False
    trouble: str | None = None


@dataclass(frozen=True, eq=False)
class _Fork:
    """One that has been asked for, and becomes a sandbox."""

    adapter: Environment
    details: Sequence[Detail]
    own: Mapping[str, np.ndarray]
    env_steps: int


class SandboxSession:
    """The one sandbox that there is at most. Used on viser's own thread, but where said otherwise.

    To make one takes seconds, in which the environment's code is compiled; that, and all that the
    sandbox does, is done on threads of its own. Which fork there is, its thread and what the panel
    is told of it change together, under the lock: threads of a fork that is over change nothing.
    """

    def __init__(self, wake: Callable[[], None]):
        """Makes none yet.

        Args:
            wake: called on any thread when there is something new to show.
        """
        self.trained: Trained | None = None
        self.version = 0  # changes with each fork: what is drawn is another robot
        self._wake = wake
        self._lock = threading.Lock()  # of the three below
        self._view = ForkView()
        self._fork: _Fork | None = None
        self._thread: SandboxThread | None = None  # of that fork, once it runs
        self._steps = 0
        self._seen: Any = None  # the pose that was shown last

    @property
    def forked(self) -> tuple[Environment, Mapping[str, np.ndarray], Detail] | None:
        """(whose, in what its model differs, from where), as long as there is a sandbox."""
        fork = self._fork
        return None if fork is None else (fork.adapter, fork.own, fork.details[-1])

    @property
    def thread(self) -> "SandboxThread | None":
        """Once it runs."""
        return self._thread

    def fork(
        self,
        adapter: Environment,
        details: Sequence[Detail],
        own: Mapping[str, np.ndarray],
        env_steps: int,
    ) -> None:
        """Makes a sandbox of an environment, in place of the one there was.

        Args:
            adapter: of the environment.
            details: consecutive ones of one episode, the last of the moment to go on from.
            own: in what the environment's model differs from the one that all share.
            env_steps: over all environments, at that moment.
        """
        self.close()
        self.version += 1
        fork = _Fork(adapter, tuple(details), own, env_steps)
        mass = float(adapter.mj_model.body_mass[1:].sum())
        view = ForkView(
            env=details[-1].env,
            env_steps=env_steps,
            preparing=True,
            impulse=float(f"{IMPULSE_SPEED * mass:.2g}"),
        )
        with self._lock:
            self._fork, self._view = fork, view
        threading.Thread(
            target=self._prepare, args=(fork, self.trained), name="brax_viser fork", daemon=True
        ).start()

    def close(self) -> None:
        """Ends it; the robot is taken away."""
        with self._lock:
            thread, self._thread, self._fork = self._thread, None, None
            self._view = ForkView()
        self._seen, self._steps = None, 0
        if thread is not None:
            thread.end()

    def hand_out(self, trained: Trained) -> None:
        """There is a newer policy: a sandbox is driven by it from now on."""
        self.trained = trained
        self._drive(self._fork)

    def _drive(self, fork: _Fork | None) -> None:
        """Has the sandbox driven by the newest policy."""

        def give(sandbox: "Sandbox") -> None:
            if self.trained is not None:
                _give(sandbox, self.trained)
                self._read(fork, sandbox)

        self._do(give)

    def reset(self) -> None:
        """Back to the moment of the fork."""
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
        """Pushes and masses are of this body from now on; None: of the whole robot."""
        fork = self._fork
        self._tell(fork, body=body)
        self._do(lambda sandbox: self._read_mass(fork, sandbox))

    def push(self, direction: np.ndarray) -> None:
        """Pushes the body that was pointed at, or else the one that roams.

        Args:
            direction: float [3], of unit length, in the world frame.
        """
        body, impulse = self.body, self._view.impulse * direction
        self._do(lambda sandbox: sandbox.push(body, impulse))

    @property
    def body(self) -> int:
        """The one that is pushed and dragged."""
        fork = self._fork
        roams = roaming_body(fork.adapter.mj_model) if fork is not None else None
        return self._view.body or roams or 1

    def drag(self, point: np.ndarray, target: np.ndarray, body: int) -> None:
        """Draws a body to a target; see `sandbox.Sandbox.drag`."""
        self._do(lambda sandbox: sandbox.drag(body, point, target))

    def release(self) -> None:
        """Lets go of it."""
        self._do(lambda sandbox: sandbox.release())

    def panel(self) -> ForkView:
        """What there is to tell."""
        with self._lock:
            view, thread = self._view, self._thread
        if thread is not None and thread.fault is not None:
            view = replace(view, fault=f"{type(thread.fault).__name__}: {thread.fault}")
        elif thread is not None and not view.preparing:
            pose = thread.pose
            view = replace(
                view, time=pose.time, reward=pose.reward, done=pose.done, trouble=pose.trouble
            )
        return view

    def view(self, now: float) -> View | None:
        """What there is to draw; None if that is nothing, or what it was."""
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
        """What was shown is not there any more: the next `view` is one."""
        self._seen = None

    def _do(self, command: "Callable[[Sandbox], Any]") -> None:
        thread = self._thread
        if thread is not None:
            thread.do(command).add_done_callback(self._done)

    def _done(self, future: "Future[Any]") -> None:
        """On the sandbox's thread, or wherever it is cancelled."""
        if not future.cancelled() and (error := future.exception()) is not None:
            log.warning("sandbox: %s", error)
        self._wake()

    def _prepare(self, fork: _Fork, trained: Trained | None) -> None:
        """On a thread of its own."""
        from brax_viser.model.physics import varied
        from brax_viser.sandbox.runner import SandboxThread
        from brax_viser.sandbox.simulation import Sandbox
        from brax_viser.sandbox.transplant import CannotTransplant, Transplant

        why, transplant = None, None
        try:
            try:
                transplant = Transplant(fork.adapter)
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
        # Whatever it is: the page says so, and all else goes on.
        except Exception as error:
            log.error("no sandbox", exc_info=error)
            self._prepared(fork, None, fault=f"{type(error).__name__}: {error}")
            return
        self._read(fork, sandbox)
        self._prepared(fork, thread)
        if self.trained is not trained:  # another one was handed out meanwhile
            self._drive(fork)

    def _prepared(
        self, fork: _Fork, thread: "SandboxThread | None", fault: str | None = None
    ) -> None:
        """The thread begins, unless another fork has been asked for meanwhile, or none."""
        with self._lock:
            if self._fork is not fork:
                return
            if thread is not None:
                thread.start()
            self._thread = thread
            self._view = replace(self._view, preparing=False, fault=fault)
        self._wake()

    def _read(self, fork: _Fork | None, sandbox: "Sandbox") -> None:
        """On the sandbox's thread, or before it has begun: what can be done with it."""
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
        """On any thread: the panel is to show this of a fork, if it is still the one there is."""
        with self._lock:
            if self._fork is fork:
                self._view = replace(self._view, **changes)


def _give(sandbox: "Sandbox", trained: Trained) -> None:
    from brax_viser.sandbox.transplant import Policy

    sandbox.policy = Policy(trained.make_policy, trained.params)
