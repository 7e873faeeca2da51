"""What an environment's state means: where its links are, and which MuJoCo model they belong to."""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax.core import Tracer, get_opaque_trace_state

from brax_viser.emit import Payload
from brax_viser.episode import Coordinates, Motion
from brax_viser.wrapping import action_repeat, is_env, is_playground, shadowed

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

    info_can_be_replaced = False
    """Whether a wrapper around may replace the whole of `state.info` at an episode's end."""

    @property
    def native(self) -> bool:
        """Whether the physics is MuJoCo's own, by MJX or Warp: then there are controls, and forces
        that MuJoCo works out of qpos, qvel and ctrl are those of the training."""
        return True

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
        for _ in state.done.shape:
            told = jax.vmap(told)
        return told(action)

    @property
    def substeps(self) -> int:
        """Steps of the physics in one `step` of the wrapped env."""
        return round(self.dt / self._timestep)

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

    def payload(self, state: Any) -> Payload:
        """The arrays to show, of a state with any number of leading batch axes."""
        raise NotImplementedError

    def motion(self, state: Any) -> Motion:
        """Where the robots are and how they move, of a state as that of `payload`."""
        qpos, qvel, data = self._coordinates(state)
        return self.moving.motion(qpos, qvel, getattr(data, "time", None))

    @functools.cached_property
    def moving(self) -> Coordinates:
        """Which of qpos and qvel that is."""
        return Coordinates(self.mj_model)

    def inspected(self, state: Any) -> list[jax.Array]:
        """What else is looked through for NaN and Inf: velocities, and what the policy is given.

        Pixels are left out. They cannot be either, and it would take long.
        """
        obs = state.obs.items() if isinstance(state.obs, Mapping) else [("state", state.obs)]
        return [self._qvel(state), *(x for name, x in obs if not name.startswith("pixels/"))]

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
        [O], or "observation/NAME" where it has several, those of a single axis and of no more than
        `MAX_OBSERVATION` numbers together; and "info/NAME" of `info`, what else the environment
        keeps for itself, no more than `MAX_INFO` numbers together. Pixels and random keys never
        travel.
        """
        batch = state.done.shape
        qpos, qvel, data = self._coordinates(state)
        fields = {"qpos": qpos, "qvel": qvel}
        for name, count in _KEPT.items():
            if getattr(self.mj_model, count) and hasattr(data, name):
                fields[name] = getattr(data, name)
        if ctrl is not None and ctrl.shape == (*batch, self.mj_model.nu):
            fields["ctrl"] = ctrl
        if isinstance(action, jax.Array | np.ndarray) and action.shape[: len(batch)] == batch:
            fields["action"] = jnp.asarray(action)
        several, left = isinstance(state.obs, Mapping), MAX_OBSERVATION
        for name, x in state.obs.items() if several else [("", state.obs)]:
            if x.ndim == len(batch) + 1 and x.shape[-1] <= left and not name.startswith("pixels/"):
                fields[f"observation/{name}" if several else "observation"] = x
                left -= x.shape[-1]
        return {**fields, **_info(info or {}, batch)}

    def randomised(self) -> Payload:
        """Fields of the model that is stepped right now in which environments differ.

        While a step is traced under domain randomisation, the wrapper that does it has put
        traced arrays, one per environment, in the place of those that the environment was made
        with. Arrays [*batch, ...], of `MODEL_FIELDS`; empty without domain randomisation.
        """
        leaves = _leaves_of(self._model())
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

    def _model(self) -> Any:
        """The physics model, a pytree, as it is right now."""
        raise NotImplementedError

    def _qvel(self, state: Any) -> jax.Array:
        return self._coordinates(state)[1]

    def _coordinates(self, state: Any) -> tuple[jax.Array, jax.Array, Any]:
        """(qpos, qvel, what else the backend keeps, by MuJoCo's names)."""
        raise NotImplementedError


def _info(info: Mapping[str, Any], batch: tuple[int, ...]) -> Payload:
    """What of it travels: not what wrappers inside keep there to reset by, which is a lot."""
    own = {key: x for key, x in info.items() if not key.startswith(("first_", "AutoReset"))}
    found, left = {}, MAX_INFO
    for path, x in jax.tree_util.tree_flatten_with_path(own)[0]:
        if not isinstance(x, jax.Array | np.ndarray) or x.shape[: len(batch)] != batch:
            continue
        # Old random keys are unsigned integers, which have nothing else to say here.
        number = any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.signedinteger))
        size = math.prod(x.shape[len(batch) :])
        if (number or x.dtype == bool) and size <= left:
            found[f"info/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = x
            left -= size
    return found


_KEPT = {"ctrl": "nu", "act": "na", "mocap_pos": "nmocap", "mocap_quat": "nmocap"}
"""What MuJoCo's physics keeps besides qpos and qvel, and which of the model's sizes counts it."""


class BraxAdapter(Adapter):
    """Brax environments on any of the four backends (mjx, generalized, spring, positional).

    All of them keep link poses in `pipeline_state.x`, in the world frame; link i is body i + 1
    of `sys.mj_model`, because Brax fuses bodies without joints before it compiles the model.
    """

    @property
    def native(self) -> bool:
        return self.backend == "mjx"

    def step(self, env: Any, state: Any, action: Any) -> tuple[Any, jax.Array | None]:
        """See `Adapter.step`. Brax's own backends do not keep the control, but every environment
        hands it to `pipeline_step`, which is looked at while the step is being traced. Where that
        is called within a transformation inside of `env` (a vmap, an action that is repeated), or
        not just once, there is nothing that could be read out here."""
        if self.native or self.ctrl_fn is not None:
            return super().step(env, state, action)
        outside, pipeline_step = get_opaque_trace_state(), self.base.pipeline_step
        seen: list[Any] = []

        def look(pipeline_state: Any, ctrl: Any) -> Any:
            inside = get_opaque_trace_state()
            seen.append(ctrl if inside == outside else None)
            return pipeline_step(pipeline_state, ctrl)

        with shadowed(self.base, "pipeline_step", look):
            state = env.step(state, action)
        return state, seen[0] if len(seen) == 1 else None

    def payload(self, state: Any) -> Payload:
        x = state.pipeline_state.x
        return {"link_pos": x.pos, "link_rot": x.rot, "reward": state.reward}

    def _model(self) -> Any:
        return self.base.sys

    def _coordinates(self, state: Any) -> tuple[jax.Array, jax.Array, Any]:
        # On all backends these are MuJoCo's qpos and qvel: `tests/test_detail.py`.
        return state.pipeline_state.q, state.pipeline_state.qd, state.pipeline_state


class PlaygroundAdapter(Adapter):
    """MuJoCo Playground's environments, stepped by MJX or by MuJoCo Warp: link i is body i + 1."""

    info_can_be_replaced = True  # by BraxAutoResetWrapper(full_reset=True)

    def payload(self, state: Any) -> Payload:
        data = state.data
        return {
            "link_pos": data.xpos[..., 1:, :],
            "link_rot": data.xquat[..., 1:, :],
            "reward": state.reward,
        }

    def _model(self) -> Any:
        return self.base.mjx_model

    def _coordinates(self, state: Any) -> tuple[jax.Array, jax.Array, Any]:
        return state.data.qpos, state.data.qvel, state.data


def adapter_for(env: Any, ctrl_fn: Callable[[jax.Array], jax.Array] | None = None) -> Adapter:
    """Reads what is needed of `env`; for `ctrl_fn` see `env.VisualizedEnv`.

    Raises:
        TypeError: `env` is not an environment.
        ValueError: it has no MuJoCo model, or one whose bodies are not its links.
    """
    if not is_env(env):
        raise TypeError(
            f"env={env!r} is a {type(env).__name__}: it must be a brax.envs.Env, such as "
            "brax.envs.get_environment('ant') returns, or a mujoco_playground.MjxEnv, such as "
            "mujoco_playground.registry.load('CartpoleBalance') does"
        )
    base: Any = env.unwrapped
    if is_playground(base):
        return _playground_adapter(env, base, ctrl_fn)
    model = getattr(getattr(base, "sys", None), "mj_model", None)
    if model is None:
        raise ValueError(
            f"{type(base).__name__} has no MuJoCo model (env.sys.mj_model), so there is nothing "
            "to draw: use an env with a Brax System, such as brax.envs.get_environment('ant')"
        )
    num_links = base.sys.num_links()
    if num_links != model.nbody - 1:
        raise ValueError(
            f"{type(base).__name__} has {num_links} links but its MuJoCo model has "
            f"{model.nbody - 1} bodies besides the world: load the model with brax.io.mjcf.load, "
            "which fuses bodies without joints"
        )
    return BraxAdapter(
        name=type(base).__name__,
        backend=env.backend,
        mj_model=model,
        init_qpos=np.asarray(jax.device_get(base.sys.init_q), np.float64),
        dt=float(base.dt) * action_repeat(env),
        repeat=action_repeat(env),
        base=base,
        ctrl_fn=ctrl_fn,
        original=copy.copy(base),
        _changes=_changes_of(base.sys, model),
        _leaves=_leaves_of(base.sys),
    )


def _playground_adapter(
    env: Any, base: Any, ctrl_fn: Callable[[jax.Array], jax.Array] | None
) -> PlaygroundAdapter:
    model = base.mj_model
    # Most of these environments start from the model's first keyframe, where it has any.
    init_qpos = model.key_qpos[0] if model.nkey else model.qpos0
    return PlaygroundAdapter(
        name=_playground_name(type(base)),
        backend=str(base.mjx_model.impl.value),
        mj_model=model,
        init_qpos=np.asarray(init_qpos, np.float64),
        dt=float(base.dt) * action_repeat(env),
        repeat=action_repeat(env),
        base=base,
        ctrl_fn=ctrl_fn,
        original=copy.copy(base),
        _changes=_changes_of(base.mjx_model, model),
        _leaves=_leaves_of(base.mjx_model),
    )


def _playground_name(cls: type) -> str:
    """`...dm_control_suite.cartpole.Balance` as "Cartpole Balance", `...go1.joystick.Joystick` as
    "Go1 Joystick": the class alone does not say which robot it is."""
    *_, package, module = ["", *cls.__module__.split(".")]
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


def _leaves_of(model: Any) -> dict[str, Any]:
    """By name, those of `MODEL_FIELDS` that the model has."""
    leaves = {}
    for name in MODEL_FIELDS:
        value = model
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None:
            leaves[name] = value
    return leaves
