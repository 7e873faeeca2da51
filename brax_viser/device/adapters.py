"""Reads environments: the link poses in their states, and the MuJoCo model that these belong to."""

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.base import System
from jax.core import Tracer

from brax_viser.compat import opaque_trace_state
from brax_viser.device.emit import Payload
from brax_viser.device.env_facts import (
    BRAXS_OWN,
    backend_of,
    dt_of,
    init_qpos_of,
    playground_name,
)
from brax_viser.device.episode import Coordinates, Motion
from brax_viser.device.limits import limits_of
from brax_viser.device.models import (
    Path,
    at,
    changes_of,
    misfit,
    mujoco_model,
    stepped_model,
)
from brax_viser.device.states import (
    batch_of,
    coordinates_of,
    images_of,
    info_to_send,
    is_key,
    metrics_of,
    observation_of,
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
from brax_viser.records.environment import Limit

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
"""Fields of the physics model that are sent if domain randomisation makes them differ: those that
are drawn, those that labels show, and those that a twin's motion depends on. Brax's own backends
have `link.inertia.mass` instead of `body_mass`."""

_Stepped = tuple[Any, jax.Array | None]  # see `Adapter.step`

MAX_OBSERVATION = 1024
"""The most values of an observation that are sent with a detail. More could not be read on the
page, but would cost time."""


@dataclass(frozen=True)
class Adapter:
    """A wrapped environment: properties that are read once, and methods that read its states."""

    name: str  # "Ant", "Go1 Joystick"
    backend: str  # name of the physics
    mj_model: mujoco.MjModel
    init_qpos: np.ndarray  # float [nq], the pose that `reset` starts from, before its noise
    dt: float  # s, duration of one `step` of the wrapped env, repeated actions included
    repeat: int  # steps of `base` in one `step` of the wrapped env
    base: Any  # the innermost environment
    ctrl_fn: Callable[[jax.Array], jax.Array] | None = None  # the user's, action [A] to ctrl [nu]
    # A copy of the unchanged `base`: wrappers for domain randomisation write into `base`.
    original: Any = None
    limits: tuple[Limit, ...] = ()  # beyond which its own rule ends episodes
    _changes: Mapping[str, np.ndarray] = field(default_factory=dict)  # see `mujoco_model`
    _leaves: dict[str, Any] = field(default_factory=dict)  # of the stepped model when this was made
    _stepped: Path = ()  # where `base` keeps the model that JAX steps; (): nowhere

    @property
    def native(self) -> bool:
        """Whether the physics is MuJoCo's own, by MJX or Warp: then states have controls, and the
        forces that MuJoCo computes from qpos, qvel and ctrl are those of the training."""
        return self.backend not in BRAXS_OWN

    def step(self, env: Any, state: Any, action: Any, *args: Any, **named: Any) -> _Stepped:
        """Steps `env`, whose innermost environment is `base`. Returns the new state and the
        controls that the physics received, [*batch, nu]; None if they were not found here."""
        state = env.step(state, action, *args, **named)
        return state, self._told(state, action)

    def _told(self, state: Any, action: Any) -> jax.Array | None:
        """Applies the user's function to the action; returns None if there is no function."""
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
        """The physics' time step in s."""
        return float(self._changes.get("opt.timestep", self.mj_model.opt.timestep))

    def mujoco_model(self) -> mujoco.MjModel:
        """Returns a new MuJoCo model with the values that the environment steps with.

        `mj_model` is the model that the environment was made from. This copy also has the changes
        that its code made to the stepped model: Brax's environments set another time step and
        stronger motors for the spring and positional backends, and fewer iterations for MJX.
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
        """Checks a state returned by `reset` while it is traced.

        Raises:
            ValueError: it has no physics, or its sizes are not the model's.
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
        """Returns the arrays to show, from a state with any number of leading batch axes."""
        pos, rot = poses_of(physics_of(state))
        return {"link_pos": pos, "link_rot": rot, "reward": reward_of(state, batch_of(state))}

    def motion(self, state: Any) -> Motion:
        """Returns the robots' positions and velocities in a state like that of `payload`."""
        data = physics_of(state)
        return self.moving.motion(*coordinates_of(data), getattr(data, "time", None))

    @functools.cached_property
    def moving(self) -> Coordinates:
        """The elements of qpos and qvel that `motion` reads."""
        return Coordinates(self.mj_model)

    def inspected(self, state: Any) -> dict[str, Any]:
        """Returns the other arrays to check for NaN and Inf: velocities and observations, except
        pixels, which cannot be NaN or Inf, and would take long."""
        batch, (_, qvel) = batch_of(state), coordinates_of(physics_of(state))
        found = {"qvel": qvel}
        for name, x in observation_of(state):
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
        """Returns the details that can be shown of a single environment: arrays [*batch, ...].

        "qpos" [nq] and "qvel" [nv], in MuJoCo's order, units and frames on all backends; "ctrl"
        [nu], "act" [na], "mocap_pos" [nmocap, 3] and "mocap_quat" [nmocap, 4] if the model has any
        and the backend's state keeps them, or `step` has found `ctrl`; "action" [A]; "observation"
        [O], or "observation/PATH" for each array of a pytree, if they have one axis each and up to
        `MAX_OBSERVATION` values in all; "metrics/NAME" for the numbers in `state.metrics`, such as
        the terms of the reward; "info/NAME" for arrays that the environment keeps in `info`, up to
        `MAX_INFO` values in all; and images as `images_of` names them. Arrays beyond these limits
        and random keys are never sent.
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
        for name, x in observation_of(state):
            shape = np.shape(x)
            one_axis = len(shape) == len(batch) + 1 and shape[: len(batch)] == batch
            if one_axis and not is_key(x) and shape[-1] <= left and not name.startswith("pixels/"):
                fields[f"observation/{name}" if name else "observation"] = jnp.asarray(x)
                left -= shape[-1]
        numbers = {**metrics_of(state, batch), **info_to_send(info or {}, batch)}
        return {**fields, **numbers, **images_of(state, batch)}

    def randomised(self) -> Payload:
        """Returns those of `MODEL_FIELDS` in which environments differ in the step being traced.

        While a step is traced under domain randomisation, the randomisation's wrapper has replaced
        fields of the stepped model by traced arrays with one value per environment. Returns these
        arrays, [*batch, ...]; empty without domain randomisation.
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
        """Returns the link poses at `init_qpos`: float32 [L, 3] in m, float32 [L, 4] wxyz."""
        data = mujoco.MjData(self.mj_model)
        data.qpos[:] = self.init_qpos
        mujoco.mj_kinematics(self.mj_model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)


_KEPT = {"ctrl": "nu", "act": "na", "mocap_pos": "nmocap", "mocap_quat": "nmocap"}
"""Arrays of MuJoCo's state besides qpos and qvel, with the model's field for their size."""


class BraxAdapter(Adapter):
    """The adapter of Brax environments, on any of the four backends (mjx, generalized, spring,
    positional), and of all others except Playground's.

    Link i is body i + 1 of the MuJoCo model, also on Brax's own backends, because Brax fuses bodies
    without joints before it compiles the model.
    """

    def step(self, env: Any, state: Any, action: Any, *args: Any, **named: Any) -> _Stepped:
        """See `Adapter.step`. Brax's own backends do not keep the controls in the state, but their
        environments pass them to `pipeline_step`, so its argument is read while the step is traced.
        This is not possible if it is called within a transformation inside `env` (a vmap, an action
        repeat), or not exactly once."""
        parts = [attribute(self.base, name) for name in ("__dict__", "pipeline_step")]
        can_look = all(part is not None for part in parts)
        if self.native or self.ctrl_fn is not None or not can_look:
            return super().step(env, state, action, *args, **named)
        outside, pipeline_step = opaque_trace_state(), self.base.pipeline_step
        seen: list[Any] = []

        def look(pipeline_state: Any, ctrl: Any) -> Any:
            inside = opaque_trace_state()
            seen.append(ctrl if inside == outside else None)
            return pipeline_step(pipeline_state, ctrl)

        with shadowed(self.base, "pipeline_step", look):
            state = env.step(state, action, *args, **named)
        return state, seen[0] if len(seen) == 1 else None


class PlaygroundAdapter(Adapter):
    """The adapter of Playground environments, stepped by MJX or Warp: link i is body i + 1."""


def adapter_for(
    env: Any,
    ctrl_fn: Callable[[jax.Array], jax.Array] | None = None,
    mj_model: mujoco.MjModel | None = None,
) -> Adapter:
    """Makes the adapter of `env`; for the other arguments see `env.VisualizedEnv`.

    Raises:
        TypeError: `env` is not an environment, or `mj_model` is not an MjModel.
        ValueError: no MuJoCo model is found or given, or it does not match the stepped model.
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
    backend = backend_of(env, base, stepped)
    if backend in BRAXS_OWN and isinstance(stepped, System):
        _check_links(base, backend, stepped, model)
    changes = {} if stepped is None else changes_of(stepped, model)
    timestep = float(np.asarray(changes.get("opt.timestep", model.opt.timestep)))
    return (PlaygroundAdapter if playgrounds else BraxAdapter)(
        name=playground_name(type(base)) if playgrounds else type(base).__name__,
        backend=backend,
        mj_model=model,
        init_qpos=init_qpos_of(stepped, model),
        dt=dt_of(base, timestep) * action_repeat(env),
        repeat=action_repeat(env),
        base=base,
        ctrl_fn=ctrl_fn,
        original=copied(base),
        limits=limits_of(base, model),
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


def _leaves_of(stepped: Any, model: mujoco.MjModel) -> dict[str, Any]:
    """Returns, by name, those of `MODEL_FIELDS` that the stepped model has in MuJoCo's shapes."""
    leaves = {}
    for name in MODEL_FIELDS:
        value = stepped
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            continue
        usual = np.shape(getattr(model, name, value))
        # The model that is drawn may have more geoms than the one that is stepped.
        if np.shape(value)[-len(usual) or None :] == usual:
            leaves[name] = value
    return leaves
