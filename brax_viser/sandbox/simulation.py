"""Simulates one robot of a running training in MuJoCo, apart from the training."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import mujoco
import numpy as np

from brax_viser.device.states import done_of, named_leaves, reward_of
from brax_viser.records.frame import COORDINATES, Detail
from brax_viser.sandbox.limits import DRIVERS, FRICTION, GRAVITY, MASS
from brax_viser.sandbox.transplant import CannotTransplant, Moment, Policy, Transplant

WARM_UP = 10
"""Number of times that contact forces are solved before a robot continues. A training's solver may
have as little as one iteration, which suffices because it starts from the last substep's forces;
these are unknown here, and without any, a robot that touches the floor may be thrown about."""

DRAG_FREQUENCY = 12.0
"""rad/s, of a robot that hangs on the dragging spring. At rest it hangs 7 cm below the target."""

DRAG_LIMIT = 5 * 9.81
"""N/kg, largest dragging force per mass of the robot: enough to lift it and toss it about."""

RUNAWAY = 1e5
"""m/s or rad/s: a sound simulation never reaches this speed. MuJoCo itself gives up at 1e10, with a
message on the terminal and in a file."""


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
        self,
        details: Sequence[Detail],
        *,
        info: Mapping[str, np.ndarray] | None = None,
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
            shapes = (detail.qpos.shape, detail.qvel.shape)
            if shapes != ((self.model.nq,), (self.model.nv,)):
                raise ValueError(
                    f"qpos and qvel have shapes {shapes}, but the model has {self.model.nq} "
                    f"and {self.model.nv}: the details must be of the same model"
                )
            if not (np.isfinite(detail.qpos).all() and np.isfinite(detail.qvel).all()):
                raise ValueError("the state is not finite: the robot can't continue from it")
        self._details, self._info = tuple(details), info
        self._back_to(len(details) - 1)
        self._controls = self._recorded()
        self.driver = "policy" if "policy" in self.drivers else "still"

    def reset(self) -> None:
        """Goes back to the fork, or to the start of the replay; keeps the factors."""
        self._back_to(self._first() if self._details else None)

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
                self._pull(*self._dragged)
            posed = self.data.qpos.copy(), self.data.qvel.copy()
            mujoco.mj_step(self.model, self.data)
            if (trouble := self._diverged()) is not None:
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

    def _pull(self, body: int, point: np.ndarray, target: np.ndarray) -> None:
        """Applies the dragging force m w^2 x - 2 m w v, with the robot's mass m: critical damping
        for the robot as a whole.

        A spring that lifts the whole robot would fling a light foot about. So the force is taken at
        the end of the substep, as by an implicit integrator, with the body's effective mass at this
        point.
        """
        model, data = self.model, self.data
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        at = data.xpos[body] + data.xmat[body].reshape(3, 3) @ point
        jacobian = np.zeros((3, model.nv))
        mujoco.mj_jac(model, data, jacobian, None, at, body)
        per_force = np.zeros_like(jacobian)
        mujoco.mj_solveM(model, data, per_force, jacobian)
        mobility = jacobian @ per_force.T  # 1/kg
        velocity, h = jacobian @ data.qvel, model.opt.timestep
        mass = float(model.body_subtreemass[model.body_rootid[body]])
        stiffness, damping = mass * DRAG_FREQUENCY**2, 2 * mass * DRAG_FREQUENCY
        wanted = stiffness * (target - at - h * velocity) - damping * velocity
        force = np.linalg.solve(np.eye(3) + h * (damping + h * stiffness) * mobility, wanted)
        force *= min(1.0, mass * DRAG_LIMIT / max(float(np.linalg.norm(force)), 1e-9))
        mujoco.mj_applyFT(model, data, force, np.zeros(3), at, body, data.qfrc_applied)

    def _diverged(self) -> str | None:
        data = self.data
        fastest = np.abs(data.qvel).max(initial=0.0)
        # MuJoCo's own warnings of accelerations come too late to be the only check. `fastest` is
        # compared by `<`, so a NaN counts as diverged.
        fine = fastest < RUNAWAY and np.isfinite(data.qpos).all() and np.isfinite(data.qacc).all()
        if fine and not any(data.warning[kind].number for kind in _BAD):
            return None
        speed = f"something moves at {fastest:.0e} m/s or rad/s" if fastest < math.inf else "NaN"
        return (
            f"the simulation has diverged, {self.time:.2f} s after the fork ({speed}): "
            "go back to the fork, and push or change less"
        )

    def _seen(self) -> Pose:
        data, drag, state = self.data, None, self._state
        if self._dragged is not None:
            body, point, target = self._dragged
            at = data.xpos[body] + data.xmat[body].reshape(3, 3) @ point
            drag = np.array([at, target], np.float32)
        pos, rot = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
        reward, done = None, False
        if state is not None and self._steps > 0:
            reward, done = float(reward_of(state, ())), bool(done_of(state, ()) > 0)
        return Pose(self.time, pos, rot, reward, done, None, drag, self._detail())

    def _detail(self) -> Detail:
        env = self._details[-1].env if self._details else 0
        known = {name: getattr(self.data, name).astype(np.float32) for name in COORDINATES}
        for name, x in named_leaves(None if self._state is None else self._state.obs).items():
            if np.ndim(x) == 1:
                known[f"observation/{name}"] = np.asarray(x)
        return Detail.of(env, {**known, "action": np.asarray(self.action)})

    def _first(self) -> int:
        return 0 if self._driver == "replay" else len(self._details) - 1

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

    def _did(self, detail: Detail) -> None:
        if detail.action is not None and detail.action.shape == self.action.shape:
            self.action = detail.action

    def _recorded(self) -> list[np.ndarray] | None:
        """Returns the controls that led from each detail to the next; None if not known."""
        controls = []
        for detail in self._details[1:]:
            if detail.ctrl is not None:
                controls.append(detail.ctrl)
            elif self._transplant is not None and detail.action is not None:
                args = (self._state, detail.action, self._moment)
                controls.append(self._transplant.control(*args))
            else:
                return None
        return controls

    def _checked(self, body: int) -> int:
        if not 1 <= body < self.model.nbody:
            raise ValueError(f"body={body}: must be from 1 to {self.model.nbody - 1}")
        return body


_BAD = (
    int(mujoco.mjtWarning.mjWARN_BADQPOS),
    int(mujoco.mjtWarning.mjWARN_BADQVEL),
    int(mujoco.mjtWarning.mjWARN_BADQACC),
)


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
