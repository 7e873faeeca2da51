"""Simulates one robot of a running training in MuJoCo, apart from the training."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import mujoco
import numpy as np

from brax_viser.device.states import done_of, named_leaves, reward_of
from brax_viser.records.frame import COORDINATES, Detail
from brax_viser.sandbox.forces import pull, runaway
from brax_viser.sandbox.limits import DRIVERS, FRICTION, GRAVITY, MASS
from brax_viser.sandbox.transplant import CannotTransplant, Moment, Policy, Transplant

WARM_UP = 10
"""Number of times that contact forces are solved before a robot continues. A training's solver may
have as little as one iteration, which suffices because it starts from the last substep's forces;
these are unknown here, and without any, a robot that touches the floor may be thrown about."""


@dataclass(frozen=True, eq=False)
class Pose:
    """The visible state of a sandbox after a step."""

    time: float  # s since the fork; negative in a replay before it gets there
    link_pos: np.ndarray  # float32 [L, 3], m; link i is body i + 1
    link_rot: np.ndarray  # float32 [L, 4], wxyz
    reward: float | None  # of the step; None: not known
    done: bool  # whether the environment says that the episode has ended with this step
    trouble: str | None  # why it can't continue without `reset` or another fork
    drag: np.ndarray | None  # float32 [2, 3], m: the point that is dragged, and its target
    detail: Detail


class Sandbox:
    """A MuJoCo simulation of one robot that continues from a moment of the training.

    It shares nothing with the training, which doesn't notice it. One thread calls all methods.
    There is no clock inside: `step` takes one env step whenever it is called.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        substeps: int,
        *,
        repeat: int = 1,
        transplant: Transplant | None = None,
        seed: int = 0,
    ):
        """Copies the model.

        Args:
            model: as `adapters.Adapter.mujoco_model` returns it.
            substeps: steps of the model per env step.
            repeat: env steps per action, and per `Detail` of a fork: the training's action repeat.
            transplant: of the same environment; needed for policies and rewards.
            seed: of the random keys for policies and environments.
        """
        self._original = model
        self.model = copy.copy(model)
        # If it diverged, MuJoCo would silently start over from its first pose.
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
        self.data = mujoco.MjData(self.model)
        self.substeps, self.dt = substeps, substeps * float(model.opt.timestep)  # dt in s
        self.policy: Policy | None = None
        self.no_policy: str | None = None  # why the environment's code can't be used, if so
        self.gravity, self.friction = 1.0, 1.0
        self.masses = np.ones(model.nbody)  # factors
        self.pose: Pose
        self.action = np.zeros(transplant.action_size if transplant else 0, np.float32)
        self._transplant, self._repeat = transplant, repeat
        self._key = jax.random.PRNGKey(seed)
        self._driver = "still"
        self._details: Sequence[Detail] = ()
        self._controls: list[np.ndarray] | None = None
        self._info: Mapping[str, np.ndarray] | None = None
        self._state: Any = None  # of the environment, where there is a transplant
        self._moment: Moment
        self._steps = 0  # env steps since `_back_to`
        self._began = 0  # index of the detail it went back to
        self._impulses = np.zeros((model.nbody, 3))
        self._dragged: tuple[int, np.ndarray, np.ndarray] | None = None
        self._back_to(None)

    # The start, and the driver.

    def fork(
        self, details: Sequence[Detail], *, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Goes to a moment of an environment of the training.

        If the environment's code turns out to be unusable, `no_policy` says why, and everything
        that doesn't need it works without.

        Args:
            details: consecutive steps of one episode of one environment. The last is the moment to
                go to; those before it are for a replay.
            info: leaves of the environment's `state.info` at that moment, by name; see
                `Transplant.start`.

        Raises:
            ValueError: there is no detail, or one is of another model or not finite.
        """
        if not details:
            raise ValueError("details=[]: there must be at least the moment to go on from")
        for detail in details:
            _check(detail, self.model)
        self._details, self._info = tuple(details), info
        self._back_to(len(details) - 1)
        self._controls = _controls_of(self._details[1:], self._control)
        self.driver = "policy" if "policy" in self.drivers else "still"

    def reset(self) -> None:
        """Goes back to the fork, or to the start of the replay; keeps the factors."""
        last = len(self._details) - 1 if self._details else None
        self._back_to(0 if self._details and self._driver == "replay" else last)

    @property
    def drivers(self) -> tuple[str, ...]:
        """The members of `DRIVERS` that can be chosen now."""
        able = {"policy": self.policy is not None and self._transplant is not None}
        able["replay"] = bool(self._controls)
        return tuple(name for name in DRIVERS if able.get(name, True))

    @property
    def driver(self) -> str:
        """One of `DRIVERS`. "replay" starts at the first of the details and loops, so that the
        effect of a change of gravity or mass can be seen at once."""
        return self._driver

    @driver.setter
    def driver(self, driver: str) -> None:
        if driver not in DRIVERS:
            raise ValueError(f"driver={driver!r}: must be one of {', '.join(DRIVERS)}")
        if driver not in self.drivers:
            needs = {
                "policy": self.no_policy
                or "it needs a policy, and the environment's code to get its observations",
                "replay": "it needs the controls of at least two steps of the training",
            }
            raise ValueError(f"driver={driver!r} cannot be chosen: {needs[driver]}")
        self._driver = driver
        # Zero controls are not "limp": they would send a servo to the middle of its range.
        off = int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        flags = self.model.opt.disableflags & ~off
        flags |= off if driver == "limp" else self._original.opt.disableflags & off
        self.model.opt.disableflags = flags
        if driver == "replay":
            self._back_to(0)

    # The physics: factors of the model's values.

    def set_gravity(self, factor: float) -> None:
        """Sets gravity, as a multiple of the model's."""
        self.gravity = _within("gravity", factor, GRAVITY)
        self.model.opt.gravity[:] = self._original.opt.gravity * factor

    def set_friction(self, factor: float) -> None:
        """Sets all contacts' friction (sliding, spinning, rolling), as a multiple."""
        self.friction = _within("friction", factor, FRICTION)
        self.model.geom_friction[:] = self._original.geom_friction * factor
        self.model.pair_friction[:] = self._original.pair_friction * factor

    def set_mass(self, factor: float, body: int | None = None) -> None:
        """Sets mass and inertia, as a multiple, of one body or of all.

        Raises:
            ValueError: the factor is out of range, or there is no such body.
        """
        _within("mass", factor, MASS)
        self.masses[slice(1, None) if body is None else self._checked(body)] = factor
        self.model.body_mass[:] = self._original.body_mass * self.masses
        self.model.body_inertia[:] = self._original.body_inertia * self.masses[:, None]
        # Derive the constants in another MjData, as this resets its qpos to qpos0.
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))

    # Pushing and dragging.

    def push(self, body: int, impulse: np.ndarray) -> None:
        """Pushes a body at its centre of mass, over the next env step.

        Args:
            body: its index, 1 or more.
            impulse: [3], N s, in the world frame: the change of the robot's momentum. Several
                pushes before the next step add up.

        Raises:
            ValueError: there is no such body, or the impulse is not finite.
        """
        self._impulses[self._checked(body)] += _vector("impulse", impulse)

    def drag(self, body: int, point: np.ndarray, target: np.ndarray) -> None:
        """Pulls a body towards a target, as by a damped spring, until `release`.

        Args:
            body: its index, 1 or more.
            point: [3], m, in the body's frame: where the spring is attached.
            target: [3], m, in the world frame.

        Raises:
            ValueError: there is no such body, or a vector is not finite.
        """
        self._dragged = (self._checked(body), _vector("point", point), _vector("target", target))

    def release(self) -> None:
        """Ends the drag."""
        self._dragged = None

    # Stepping.

    @property
    def time(self) -> float:
        """s since the fork; negative in a replay before it gets there."""
        behind = max(len(self._details) - 1 - self._began, 0) * self._repeat
        return (self._steps - behind) * self.dt

    @property
    def trouble(self) -> str | None:
        """Why the simulation can't continue, if so."""
        return self.pose.trouble

    def step(self) -> Pose:
        """Takes one env step, unless there is trouble, and returns `pose`."""
        if self.trouble is not None:
            return self.pose
        if self._steps % self._repeat == 0:
            self._decide()
        self.data.xfrc_applied[:, :3] = self._impulses / self.dt
        self._impulses[:] = 0
        posed = self.data.qpos.copy(), self.data.qvel.copy()
        for _ in range(self.substeps):
            self.data.qfrc_applied[:] = 0
            if self._dragged is not None:
                pull(self.model, self.data, *self._dragged)
            posed = self.data.qpos.copy(), self.data.qvel.copy()
            mujoco.mj_step(self.model, self.data)
            if (speed := runaway(self.data)) is not None:
                trouble = (
                    f"the simulation has diverged, {self.time:.2f} s after the fork ({speed}): "
                    "go back to the fork, and push or change less"
                )
                self.pose = replace(self.pose, trouble=trouble)
                return self.pose
        self._steps += 1
        if self._transplant is not None:
            before, self._moment = self._moment, Moment.of(self.data, *posed)
            self._state = self._transplant.after(self._state, self.action, before, self._moment)
        # Update the poses: MuJoCo leaves those from the start of the last substep.
        mujoco.mj_kinematics(self.model, self.data)
        self.pose = self._seen()
        return self.pose

    def _decide(self) -> None:
        """Sets the next step's controls, and the action that they belong to."""
        if self._driver == "policy":
            assert self._transplant is not None and self.policy is not None
            self._key, key = jax.random.split(self._key)
            args = (self.policy, self._state, self._moment, key)
            self.action, self.data.ctrl[:] = self._transplant.act(*args)
        elif self._driver == "replay":
            assert self._controls is not None
            done = self._steps // self._repeat
            if self._began != 0 or done >= len(self._controls):
                self._back_to(0)
                done = 0
            self.data.ctrl[:] = self._controls[done]
            self._did(self._details[done + 1])
        elif self._driver == "limp":
            self.data.ctrl[:] = 0
            self.action = np.zeros_like(self.action)

    def _seen(self) -> Pose:
        data, drag, state = self.data, None, self._state
        if self._dragged is not None:
            body, point, target = self._dragged
            at = data.xpos[body] + data.xmat[body].reshape(3, 3) @ point
            drag = np.array([at, target], np.float32)
        pos, rot = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
        reward, done = None, False
        env = self._details[-1].env if self._details else 0
        detail = _detail_of(data, env, None if state is None else state.obs, self.action)
        if state is not None and self._steps > 0:
            reward, done = float(reward_of(state, ())), bool(done_of(state, ()) > 0)
        return Pose(self.time, pos, rot, reward, done, None, drag, detail)

    def _back_to(self, index: int | None) -> None:
        """Puts the robot into the state of one of the details; None: the model's initial state."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        self._steps, self._impulses[:] = 0, 0
        detail = None
        if index is not None:
            self._began, detail = index, self._details[index]
            for name in ("qpos", "qvel", "ctrl", "act", "mocap_pos", "mocap_quat"):
                if (value := getattr(detail, name)) is not None:
                    getattr(data, name)[:] = value
        for _ in range(WARM_UP):
            mujoco.mj_forward(model, data)
            data.qacc_warmstart[:] = data.qacc
        self._moment = Moment.of(data)
        if self._transplant is not None and detail is not None:
            try:
                self._begin(self._transplant, detail)
            except CannotTransplant as error:
                self._transplant, self._state, self.no_policy = None, None, str(error)
        self.pose = self._seen()

    def _begin(self, transplant: Transplant, detail: Detail) -> None:
        self._key, key = jax.random.split(self._key)
        self._state = transplant.start(
            self._moment, key, observation=detail.observation, info=self._info
        )
        self._did(detail)
        # Always call it, so that unusable code is noticed now.
        ctrl = transplant.control(self._state, self.action, self._moment)
        if detail.ctrl is None and detail.action is not None:
            self.data.ctrl[:] = ctrl

    def _control(self, action: np.ndarray) -> np.ndarray | None:
        """Returns the controls that an action means, as far as the environment's code is known."""
        if self._transplant is None:
            return None
        return self._transplant.control(self._state, action, self._moment)

    def _did(self, detail: Detail) -> None:
        if detail.action is not None and detail.action.shape == self.action.shape:
            self.action = detail.action

    def _checked(self, body: int) -> int:
        if not 1 <= body < self.model.nbody:
            raise ValueError(f"body={body}: must be from 1 to {self.model.nbody - 1}")
        return body


def _detail_of(data: mujoco.MjData, env: int, obs: Any, action: Any) -> Detail:
    known = {name: getattr(data, name).astype(np.float32) for name in COORDINATES}
    for name, x in named_leaves(obs).items():
        if np.ndim(x) == 1:
            known[f"observation/{name}"] = np.asarray(x)
    return Detail.of(env, {**known, "action": np.asarray(action)})


def _controls_of(
    details: Sequence[Detail], control: Callable[[np.ndarray], np.ndarray | None]
) -> list[np.ndarray] | None:
    """Returns the controls that led to each detail; None if one is not known.

    Args:
        details: consecutive steps.
        control: of an action.
    """
    found = []
    for detail in details:
        ctrl = detail.ctrl
        if ctrl is None and detail.action is not None:
            ctrl = control(detail.action)
        if ctrl is None:
            return None
        found.append(ctrl)
    return found


def _check(detail: Detail, model: mujoco.MjModel) -> None:
    """Raises ValueError if a robot of this model can't be put into a state."""
    shapes = (detail.qpos.shape, detail.qvel.shape)
    if shapes != ((model.nq,), (model.nv,)):
        raise ValueError(
            f"qpos and qvel have shapes {shapes}, but the model has {model.nq} and {model.nv}: "
            "the details must be of the same model"
        )
    if not (np.isfinite(detail.qpos).all() and np.isfinite(detail.qvel).all()):
        raise ValueError("the state is not finite: the robot can't continue from it")


def _within(name: str, factor: float, limits: tuple[float, float]) -> float:
    low, high = limits
    if not low <= factor <= high:
        raise ValueError(f"{name}={factor}: must be from {low} to {high}")
    return factor


def _vector(name: str, value: np.ndarray) -> np.ndarray:
    vector = np.array(value, np.float64)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise ValueError(f"{name}={value}: must be three finite numbers")
    return vector
