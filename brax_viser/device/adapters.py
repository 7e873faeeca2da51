"""What an environment's state means: where its links are, and which MuJoCo model they belong to."""

import copy
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.base import System
from jax.core import Tracer

from brax_viser.compat import opaque_trace_state
from brax_viser.device.emit import Payload
from brax_viser.device.episode import Coordinates, Motion
from brax_viser.device.models import Path, at, misfit, mujoco_model, stepped_model
from brax_viser.device.states import (
    batch_of,
    coordinates_of,
    is_key,
    is_mujocos,
    named_leaves,
    own_info,
    physics_of,
    poses_of,
    reward_of,
)
from brax_viser.device.wrappers import (
    action_repeat,
    attribute,
    base_of,
    copied,
    is_env,
    is_playground,
    shadowed,
)

log = logging.getLogger("brax_viser")

MODEL_FIELDS = (
    "geom_size",
    "geom_pos",
    "geom_quat",
    "geom_rgba",
    "mat_rgba",
    "geom_friction",
    "body_mass",
    "link.inertia.mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "qpos0",
    "dof_armature",
    "dof_damping",
    "dof_frictionloss",
    "actuator_gainprm",
    "actuator_biasprm",
)
"""Fields of the physics model that are sent where domain randomisation makes them differ: what
can be drawn, what a label can say, and what a twin's motion depends on. `link.inertia.mass` is of
Brax's own, in place of `body_mass`."""

MAX_OBSERVATION = MAX_INFO = 1024
"""Numbers of an observation, and of `state.info`, that travel with a detail. More could not be
read, and would cost."""


@dataclass(frozen=True)
class Adapter:
    """What is read of an environment, once, and of its states, with every step."""

    name: str  # "Ant", "Go1 Joystick"
    backend: str  # which physics
    mj_model: mujoco.MjModel
    init_qpos: np.ndarray  # float [nq], where `reset` starts from, before its noise
    dt: float  # s, what one `step` of the wrapped env takes, repeated actions included
    repeat: int  # steps of `base` in one `step` of the wrapped env
    base: Any  # the innermost environment
    ctrl_fn: Callable[[jax.Array], jax.Array] | None = None  # a user's, action [A] to ctrl [nu]
    # A copy of `base` as it was made: wrappers for domain randomisation write into that.
    original: Any = None
    _changes: Mapping[str, np.ndarray] = field(default_factory=dict)  # see `mujoco_model`
    _leaves: dict[str, Any] = field(default_factory=dict)  # of its model, as it was made
    _stepped: Path = ()  # where `base` keeps the model that JAX steps; (): nowhere

    @property
    def native(self) -> bool:
        """Whether the physics is MuJoCo's own, by MJX or Warp: then there are controls, and forces
        that MuJoCo works out of qpos, qvel and ctrl are those of the training."""
        return self.backend not in _BRAXS_OWN

    def step(self, env: Any, state: Any, action: Any) -> tuple[Any, jax.Array | None]:
        """Steps `env`, which has `base` inside, and returns its new state and the control [*batch,
        nu] that went to the physics; None if that is not known."""
        state = env.step(state, action)
        return state, self._told(state, action)

    def _told(self, state: Any, action: Any) -> jax.Array | None:
        """What the user's function makes of an action."""
        if self.ctrl_fn is None:
            return None
        told = self.ctrl_fn
        for _ in batch_of(state):
            told = jax.vmap(told)
        return told(action)

    @property
    def substeps(self) -> int:
        """Steps of the physics in one `step` of the wrapped env."""
        return max(round(self.dt / self._timestep), 1)

    @property
    def _timestep(self) -> float:
        """s, of the physics."""
        return float(self._changes.get("opt.timestep", self.mj_model.opt.timestep))

    def mujoco_model(self) -> mujoco.MjModel:
        """MuJoCo's model of what is trained, of the caller's own.

        `mj_model` is what the environment was made of. What its code has changed since in the
        model that it steps is in this one as well: Brax's environments set another time step and
        stronger motors for the spring and positional backends, and MJX is given fewer iterations.
        """
        model = copy.copy(self.mj_model)
        for name, value in self._changes.items():
            if name.startswith("opt."):
                name = name.removeprefix("opt.")
                old = getattr(model.opt, name)
                new = value if isinstance(old, np.ndarray) else type(old)(value.item())
                setattr(model.opt, name, new)
            else:
                getattr(model, name)[:] = value
        return model

    def check(self, state: Any) -> None:
        """Looks at a state of `reset`, while it is traced.

        Raises:
            ValueError: it has no physics, or such as is not the model's.
        """
        physics = physics_of(state)
        have = [x.shape[-1] for x in coordinates_of(physics)] + [poses_of(physics)[0].shape[-2]]
        wanted = [self.mj_model.nq, self.mj_model.nv, self.mj_model.nbody - 1]
        if have != wanted:
            raise ValueError(
                f"the state of {self.name} has (nq, nv, bodies)={tuple(have)}, but its MuJoCo "
                f"model has {tuple(wanted)}: give the model that it was made of, as in "
                "VisualizedEnv(env, mj_model=model)"
            )

    def payload(self, state: Any) -> Payload:
        """The arrays to show, of a state with any number of leading batch axes."""
        pos, rot = poses_of(physics_of(state))
        return {"link_pos": pos, "link_rot": rot, "reward": reward_of(state, batch_of(state))}

    def motion(self, state: Any) -> Motion:
        """Where the robots are and how they move, of a state as that of `payload`."""
        data = physics_of(state)
        return self.moving.motion(*coordinates_of(data), getattr(data, "time", None))

    @functools.cached_property
    def moving(self) -> Coordinates:
        """Which of qpos and qvel that is."""
        return Coordinates(self.mj_model)

    def inspected(self, state: Any) -> dict[str, Any]:
        """What else is looked through for NaN and Inf: velocities, and what the policy is given.

        Pixels are left out. They cannot be either, and it would take long.
        """
        batch, (_, qvel) = batch_of(state), coordinates_of(physics_of(state))
        found = {"qvel": qvel}
        for name, x in _observation(state):
            x = jnp.asarray(x)
            if x.shape[: len(batch)] == batch and not name.startswith("pixels/"):
                found[f"observation/{name}" if name else "observation"] = x
        return found

    def detail(
        self,
        state: Any,
        action: Any,
        ctrl: jax.Array | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Payload:
        """What of a single environment is worth looking into: arrays [*batch, ...].

        "qpos" [nq] and "qvel" [nv], in MuJoCo's order, units and frames on all backends; "ctrl"
        [nu], "act" [na], "mocap_pos" [nmocap, 3] and "mocap_quat" [nmocap, 4] where the backend
        keeps such, or `step` has found it, and the model has any; "action" [A]; and "observation"
        [O], or "observation/PATH" where it is a pytree of several, those of a single axis and of no
        more than `MAX_OBSERVATION` numbers together; and "info/NAME" of `info`, what else the
        environment keeps for itself, no more than `MAX_INFO` numbers together. Pixels and random
        keys never travel.
        """
        batch, data = batch_of(state), physics_of(state)
        qpos, qvel = coordinates_of(data)
        fields = {"qpos": qpos, "qvel": qvel}
        for name, count in _KEPT.items():
            if getattr(self.mj_model, count) and hasattr(data, name):
                fields[name] = getattr(data, name)
        if ctrl is not None and ctrl.shape == (*batch, self.mj_model.nu):
            fields["ctrl"] = ctrl
        if isinstance(action, jax.Array | np.ndarray) and action.shape[: len(batch)] == batch:
            fields["action"] = jnp.asarray(action)
        left = MAX_OBSERVATION
        for name, x in _observation(state):
            shape = np.shape(x)
            one_axis = len(shape) == len(batch) + 1 and shape[: len(batch)] == batch
            if one_axis and not is_key(x) and shape[-1] <= left and not name.startswith("pixels/"):
                fields[f"observation/{name}" if name else "observation"] = jnp.asarray(x)
                left -= shape[-1]
        return {**fields, **_info(info or {}, batch)}

    def randomised(self) -> Payload:
        """Fields of the model that is stepped right now in which environments differ.

        While a step is traced under domain randomisation, the wrapper that does it has put
        traced arrays, one per environment, in the place of those that the environment was made
        with. Arrays [*batch, ...], of `MODEL_FIELDS`; empty without domain randomisation.
        """
        leaves = _leaves_of(at(self.base, self._stepped), self.mj_model)
        return {
            name: leaves[name]
            for name in MODEL_FIELDS
            if name in leaves
            and leaves[name] is not self._leaves.get(name)
            and isinstance(leaves[name], Tracer)
        }

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """Link poses before anything has run: float32 [L, 3] in m, float32 [L, 4] wxyz."""
        data = mujoco.MjData(self.mj_model)
        data.qpos[:] = self.init_qpos
        mujoco.mj_kinematics(self.mj_model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)


_BRAXS_OWN = ("generalized", "spring", "positional")
"""Backends whose physics is not MuJoCo's."""


def _observation(state: Any) -> Iterable[tuple[str, Any]]:
    """Its arrays by their paths; those of a dictionary in its own order."""
    obs = getattr(state, "obs", None)
    found = named_leaves(obs)
    if isinstance(obs, Mapping) and all(name in found for name in obs):
        return [(name, found[name]) for name in obs]
    return found.items()


def _info(info: Mapping[str, Any], batch: tuple[int, ...]) -> Payload:
    """What of it travels: not what wrappers inside keep there to reset by, which is a lot."""
    found, left = {}, MAX_INFO
    for name, x in named_leaves(own_info(info)).items():
        if not isinstance(x, jax.Array | np.ndarray) or x.shape[: len(batch)] != batch:
            continue
        # Old random keys are unsigned integers, which have nothing else to say here.
        number = any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.signedinteger))
        size = math.prod(x.shape[len(batch) :])
        if (number or x.dtype == bool) and size <= left:
            found[f"info/{name}"] = x
            left -= size
    return found


_KEPT = {"ctrl": "nu", "act": "na", "mocap_pos": "nmocap", "mocap_quat": "nmocap"}
"""What MuJoCo's physics keeps besides qpos and qvel, and which of the model's sizes counts it."""


class BraxAdapter(Adapter):
    """Brax environments on any of the four backends (mjx, generalized, spring, positional), and all
    others that are not Playground's.

    Link i is body i + 1 of the MuJoCo model: on Brax's own backends because Brax fuses bodies
    without joints before it compiles the model.
    """

    def step(self, env: Any, state: Any, action: Any) -> tuple[Any, jax.Array | None]:
        """See `Adapter.step`. Brax's own backends do not keep the control, but every environment
        hands it to `pipeline_step`, which is looked at while the step is being traced. Where that
        is called within a transformation inside of `env` (a vmap, an action that is repeated), or
        not just once, there is nothing that could be read out here."""
        parts = [attribute(self.base, name) for name in ("__dict__", "pipeline_step")]
        can_look = all(part is not None for part in parts)
        if self.native or self.ctrl_fn is not None or not can_look:
            return super().step(env, state, action)
        outside, pipeline_step = opaque_trace_state(), self.base.pipeline_step
        seen: list[Any] = []

        def look(pipeline_state: Any, ctrl: Any) -> Any:
            inside = opaque_trace_state()
            seen.append(ctrl if inside == outside else None)
            return pipeline_step(pipeline_state, ctrl)

        with shadowed(self.base, "pipeline_step", look):
            state = env.step(state, action)
        return state, seen[0] if len(seen) == 1 else None


class PlaygroundAdapter(Adapter):
    """MuJoCo Playground's environments, stepped by MJX or by MuJoCo Warp: link i is body i + 1."""


def adapter_for(
    env: Any,
    ctrl_fn: Callable[[jax.Array], jax.Array] | None = None,
    mj_model: mujoco.MjModel | None = None,
) -> Adapter:
    """Reads what is needed of `env`; for the others see `env.VisualizedEnv`.

    Raises:
        TypeError: `env` is not an environment, or `mj_model` no MjModel.
        ValueError: no MuJoCo model is found or given, or one whose bodies are not its links.
    """
    if not is_env(env):
        raise TypeError(
            f"env={env!r} is a {type(env).__name__}: it must be a brax.envs.Env, such as "
            "brax.envs.get_environment('ant') returns, or a mujoco_playground.MjxEnv, such as "
            "mujoco_playground.registry.load('CartpoleBalance') does, or have their `reset` and "
            "`step`"
        )
    if not isinstance(mj_model, mujoco.MjModel | None):
        raise TypeError(f"mj_model={mj_model!r}: must be a mujoco.MjModel, or None to look for one")
    base = base_of(env)
    playgrounds = is_playground(base)
    where, stepped = stepped_model(base, mj_model)
    model = mujoco_model(env, base, stepped) if mj_model is None else mj_model
    if (why := misfit(model, stepped)) is not None:
        raise ValueError(f"mj_model {why}: it must be the model that the environment was made of")
    backend = _backend_of(env, base, stepped)
    if backend in _BRAXS_OWN and isinstance(stepped, System):
        _check_links(base, backend, stepped, model)
    changes = {} if stepped is None else _changes_of(stepped, model)
    timestep = float(np.asarray(changes.get("opt.timestep", model.opt.timestep)))
    return (PlaygroundAdapter if playgrounds else BraxAdapter)(
        name=_playground_name(type(base)) if playgrounds else type(base).__name__,
        backend=backend,
        mj_model=model,
        init_qpos=_init_qpos(stepped, model),
        dt=_dt_of(base, timestep) * action_repeat(env),
        repeat=action_repeat(env),
        base=base,
        ctrl_fn=ctrl_fn,
        original=copied(base),
        _changes=changes,
        _leaves=_leaves_of(stepped, model),
        _stepped=where,
    )


def _check_links(base: Any, backend: str, sys: System, model: mujoco.MjModel) -> None:
    num_links = sys.num_links()
    if num_links != model.nbody - 1:
        raise ValueError(
            f"{type(base).__name__} has {num_links} links but its MuJoCo model has "
            f"{model.nbody - 1} bodies besides the world, some of them without joints, which "
            f"Brax's backend {backend!r} cannot step: use backend='mjx', or load the model's XML "
            "by brax.io.mjcf.loads, which fuses such bodies where the file is a simple one"
        )


def _init_qpos(stepped: Any, model: mujoco.MjModel) -> np.ndarray:
    """float [nq], where a robot most likely starts: where Brax's System says, or the model's first
    keyframe, as in most of Playground's, or its zero."""
    init_q = attribute(stepped, "init_q")
    if init_q is not None and np.shape(init_q) == (model.nq,):
        return np.asarray(jax.device_get(init_q), np.float64)
    return np.asarray(model.key_qpos[0] if model.nkey else model.qpos0, np.float64)


def _backend_of(env: Any, base: Any, stepped: Any) -> str:
    """Which physics: told by the environment, or found in what its `reset` returns."""
    if is_playground(base):
        return str(base.mjx_model.impl.value)
    named = attribute(env, "backend")
    if named in ("mjx", *_BRAXS_OWN):
        return named
    try:
        physics = physics_of(jax.eval_shape(env.reset, jax.random.PRNGKey(0)))
    # What it wants otherwise will be seen when it is reset by its trainer.
    except Exception as error:
        log.info("reset of %s cannot be traced by itself: %s", type(base).__name__, error)
        return "mjx"
    if is_mujocos(physics):
        return "warp" if "warp" in type(attribute(physics, "_impl")).__module__ else "mjx"
    own = [name for name in _BRAXS_OWN if name in type(physics).__module__]
    return own[0] if own else _BRAXS_OWN[0]


_SECONDS = ("dt", "ctrl_dt", "_ctrl_dt", "control_dt", "_control_dt", "control_timestep")
_SUBSTEPS = ("_n_frames", "n_frames", "_n_substeps", "n_substeps", "_substeps", "substeps")
_SUBSTEPS += ("_frame_skip", "frame_skip", "_decimation", "decimation", "physics_steps_per_control")


def _dt_of(base: Any, timestep: float) -> float:
    """s of one step: what the environment says, or how many steps of the physics it says that it
    takes, under one of the usual names; one, where it says nothing."""
    for names, unit in ((_SECONDS, 1.0), (_SUBSTEPS, timestep)):
        for name in names:
            value = attribute(base, name)
            if isinstance(value, int | float | np.number | jax.Array) and np.ndim(value) == 0:
                if np.isfinite(seconds := float(value) * unit) and seconds > 0:
                    return seconds
    return timestep


def _playground_name(cls: type) -> str:
    """`...dm_control_suite.cartpole.Balance` as "Cartpole Balance", `...go1.joystick.Joystick` as
    "Go1 Joystick": of Playground's own, the class alone does not say which robot it is. A class of
    a script or of another package is called what its author has called it."""
    if not cls.__module__.startswith("mujoco_playground."):
        return cls.__name__
    *_, package, module = cls.__module__.split(".")
    robot = package if module.replace("_", "") == cls.__name__.lower() else module
    return f"{robot.replace('_', ' ').capitalize()} {cls.__name__}"


_OPTIONS = (
    "timestep",
    "gravity",
    "wind",
    "density",
    "viscosity",
    "magnetic",
    "impratio",
    "integrator",
    "cone",
    "solver",
    "iterations",
    "ls_iterations",
    "tolerance",
    "ls_tolerance",
    "disableflags",
    "enableflags",
)
_PHYSICAL = ("qpos", "body_", "jnt_", "dof_", "geom_", "pair_", "eq_", "tendon_", "actuator_")
"""How names of fields of the model begin that the motion depends on."""


def _changes_of(stepped: Any, model: mujoco.MjModel) -> dict[str, np.ndarray]:
    """Fields of a JAX model that are not as the MuJoCo model that it was made of has them."""
    pairs = {f"opt.{name}": (stepped.opt, model.opt, name) for name in _OPTIONS}
    names = [f.name for f in fields(stepped) if f.name.startswith(_PHYSICAL)]
    pairs |= {name: (stepped, model, name) for name in names}
    changes = {}
    for key, (new, old, name) in pairs.items():
        value, usual = getattr(new, name, None), getattr(old, name, None)
        # MJX puts models on the first device, which may be another process's: the first one's.
        # That one makes the twins, and can read them.
        if value is None or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            continue
        # Other shapes are JAX's own way of keeping things.
        if usual is None or np.shape(value) != np.shape(usual):
            continue
        value = np.asarray(value, np.float64)  # some are enumerations
        # The same but for float32.
        if not np.allclose(value, usual, rtol=1e-5, atol=1e-7, equal_nan=True):
            changes[key] = value
    # Brax's own backends keep the strength of motors apart.
    motors = getattr(stepped, "actuator", None)
    if motors is not None and len(motors.gear) == model.nu:
        gear = np.asarray(motors.gear)
        if not np.allclose(gear, model.actuator_gear[:, 0]):
            changes["actuator_gear"] = model.actuator_gear.copy()
            changes["actuator_gear"][:, 0] = gear
    return changes


def _leaves_of(stepped: Any, model: mujoco.MjModel) -> dict[str, Any]:
    """By name, those of `MODEL_FIELDS` that the model has which JAX steps, in MuJoCo's shapes."""
    leaves = {}
    for name in MODEL_FIELDS:
        value = stepped
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            continue
        usual = np.shape(getattr(model, name, value))
        # One to look at may have more geoms than the one that is stepped.
        if np.shape(value)[-len(usual) or None :] == usual:
            leaves[name] = value
    return leaves
