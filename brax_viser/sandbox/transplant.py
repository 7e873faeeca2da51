"""Runs an environment's own code on another physics, so that its policy can drive a MuJoCo robot.

A policy needs the environment's observations, which the environment's code computes from its own
physics. Here that code is traced without the physics: `step` runs unchanged, but the function that
it calls to advance the physics returns a given state, for instance from a plain MuJoCo simulation,
and records the controls that it is given.
"""

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from brax_viser.compat import give_playground_model, opaque_trace_state, playground_stepper
from brax_viser.device.adapters import BraxAdapter, PlaygroundAdapter
from brax_viser.device.states import named_leaves, replaced
from brax_viser.device.wrappers import shadowed
from brax_viser.records.environment import Environment

FORCES = (
    "xfrc_applied",
    "qfrc_applied",
    "qacc",
    "actuator_force",
    "qfrc_actuator",
    "qfrc_constraint",
    "sensordata",
)
"""Forces, and fields computed from them, that an environment may observe. They come from MuJoCo:
accelerometers feel a push or a changed gravity, which MJX couldn't compute from coordinates."""


class CannotTransplant(ValueError):
    """The environment's code can't be run on another physics; the text says why."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Moment:
    """A state of MuJoCo, with all fields that an environment's code may read.

    After `mj_step`, as after `mjx.step`, coordinates are those at the end of the step, while poses,
    sensors and forces are those at its start. Policies trained on MJX or Warp have learnt from such
    states, so they are given the same.
    """

    qpos: np.ndarray  # float [nq]
    qvel: np.ndarray  # float [nv]
    act: np.ndarray  # float [na]
    ctrl: np.ndarray  # float [nu]
    mocap_pos: np.ndarray  # float [nmocap, 3], m
    mocap_quat: np.ndarray  # float [nmocap, 4], wxyz
    time: np.ndarray  # float [], s
    posed_qpos: np.ndarray  # float [nq], coordinates that the poses and forces belong to
    posed_qvel: np.ndarray  # float [nv], likewise
    forces: Mapping[str, np.ndarray]  # `FORCES`, in MuJoCo's shapes

    @classmethod
    def of(
        cls,
        data: mujoco.MjData,
        posed_qpos: np.ndarray | None = None,
        posed_qvel: np.ndarray | None = None,
    ) -> "Moment":
        """Copies the needed fields of `data`.

        Args:
            data: after `mj_forward`, or after `mj_step`.
            posed_qpos: [nq], the coordinates before the last `mj_step`; None after
                `mj_forward`.
            posed_qvel: [nv], likewise.
        """
        names = ("qpos", "qvel", "act", "ctrl", "mocap_pos", "mocap_quat")
        return cls(
            **{name: np.array(getattr(data, name)) for name in names},
            time=np.array(data.time),
            posed_qpos=np.array(data.qpos if posed_qpos is None else posed_qpos),
            posed_qvel=np.array(data.qvel if posed_qvel is None else posed_qvel),
            forces={name: np.array(getattr(data, name)) for name in FORCES},
        )


class Policy:
    """A policy passed by a trainer, on the CPU.

    Stock trainers call `policy_params_fn(num_steps, make_policy, params)`. New parameters need no
    compilation if `make_policy` is the same function and they have the same shapes.
    """

    def __init__(self, make_policy: Callable[..., Any], params: Any):
        self.make = make_policy
        self.params = jax.device_put(params, _cpu())


class Transplant:
    """The code of one environment without its physics, compiled for the CPU.

    Works on a copy of the environment, so that a training traced at the same time in another thread
    is not disturbed. One thread calls all methods.

    Other effects of the environment on its physics than controls are left out: in Playground, some
    environments push their robots between steps, or move mocap bodies.
    """

    def __init__(self, adapter: Environment):
        """Copies the environment; traces nothing yet.

        Raises:
            CannotTransplant: there is nothing to control, no CPU to compute on, or MJX cannot read
                the model.
        """
        if not adapter.mj_model.nu:
            raise CannotTransplant(f"{adapter.name} has no actuators, so no policy can drive it")
        self.device = _cpu()
        with jax.default_device(self.device):
            if isinstance(adapter, BraxAdapter):
                self._physics: _Brax | _Playground = _Brax(adapter)
            elif isinstance(adapter, PlaygroundAdapter):
                self._physics = _Playground(adapter)
            else:
                raise CannotTransplant(f"{adapter.name} is neither Brax's nor Playground's")
        self._name = adapter.name
        self.env = self._physics.base  # the copy
        self.action_size = int(self.env.action_size)
        # Leaves of `state.info`, by name, that replace the environment's own before each step.
        self.steered: Callable[[], Mapping[str, np.ndarray]] = dict
        self.traces = 0  # of all functions: tests check by it that nothing is compiled twice
        # Jitted separately, so that it is traced once and not for each function below.
        self._at = jax.jit(self._physics.at)
        self._reset_jit = self._compiled(self._reset)
        self._after_jit = self._compiled(lambda *args: self._stepped(*args)[0])
        self._control_jit = self._compiled(self._control)
        self._act_jit = self._compiled(self._act, static_argnums=0)

    def start(
        self,
        moment: Moment,
        key: jax.Array,
        *,
        observation: Mapping[str, np.ndarray] | None = None,
        info: Mapping[str, np.ndarray] | None = None,
    ) -> Any:
        """Makes a state of the environment at some moment, for the other methods.

        Args:
            moment: of its physics.
            key: for `reset`, which fills in everything that isn't known.
            observation: by name, float [O]; "" if it has no names. Parts that are missing or have
                another shape are computed from the moment as in a step.
            info: leaves of `state.info` by their names, "a/b" for a nested one. They replace those
                of `reset` where the shape is the same, except for random keys.

        Returns:
            The environment's state without its physics, which moments hold instead.
        """
        with jax.default_device(self.device):
            state = self._reset_jit(jax.device_put(key, self.device))
            if info:
                state = replaced(state, info=_with_leaves(state.info, info, keep_keys=True))
            named, own = dict(observation or {}), state.obs
            if any(not _fits(named.get(name), x) for name, x in named_leaves(own).items()):
                still = np.zeros(self.action_size, np.float32)
                own = self._after_jit(state, still, moment, moment).obs
            return replaced(state, obs=_with_leaves(own, named))

    def control(self, state: Any, action: np.ndarray | jax.Array, moment: Moment) -> np.ndarray:
        """Returns ctrl, float [nu], which the environment sends to the physics on an action [A].

        Raises:
            CannotTransplant: `step` can't be transplanted, e.g. as it doesn't step the physics
                exactly once; so do `start`, `act` and `after`.
        """
        with jax.default_device(self.device):
            return np.asarray(self._control_jit(state, action, moment))

    def act(
        self, policy: Policy, state: Any, moment: Moment, key: jax.Array
    ) -> tuple[jax.Array, np.ndarray]:
        """Returns (action [A], ctrl [nu]) of the policy, deterministic where it can be, on the
        state's observation."""
        with jax.default_device(self.device):
            key = jax.device_put(key, self.device)
            action, ctrl = self._act_jit(policy.make, policy.params, state, moment, key)
            return action, np.asarray(ctrl)

    def after(
        self, state: Any, action: np.ndarray | jax.Array, before: Moment, moment: Moment
    ) -> Any:
        """Returns the state after a step in which the physics went from one moment to another.

        Args:
            state: before the step.
            action: float [A], of the policy.
            before: the physics before the step.
            moment: the physics after it.
        """
        with jax.default_device(self.device):
            state = replaced(state, info=_with_leaves(state.info, self.steered()))
            return self._after_jit(state, action, before, moment)

    def _compiled(self, function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        # With explicit shardings, jit doesn't compile again for host arrays, its own results and
        # arrays put on the device.
        here = jax.sharding.SingleDeviceSharding(self.device)
        return jax.jit(function, in_shardings=here, out_shardings=here, **settings)

    def _reset(self, key: jax.Array) -> Any:
        self.traces += 1
        return self._without_physics(self._physics.base.reset(key))

    def _act(self, make: Any, params: Any, state: Any, moment: Moment, key: Any) -> Any:
        self.traces += 1
        policy = make(params, deterministic=True) if _takes_chances(make) else make(params)
        action, _ = policy(state.obs, key)
        return action, self._control(state, action, moment)

    def _control(self, state: Any, action: Any, moment: Moment) -> jax.Array:
        # XLA removes all that the step computes after the physics, as it isn't used.
        return self._stepped(state, action, moment, moment)[1]

    def _stepped(
        self, state: Any, action: Any, before: Moment, moment: Moment
    ) -> tuple[Any, jax.Array]:
        """Traces a step. Returns (the state after it, ctrl)."""
        self.traces += 1
        physics, sent = self._physics, []
        outside = opaque_trace_state()
        then = self._at(moment)

        def step(ctrl: Any) -> Any:
            sent.append((ctrl, opaque_trace_state() == outside))
            return then

        # Copy: some environments write into the dicts of the given state, which is the caller's.
        state = jax.tree.map(lambda x: x, state)
        with physics.replaced(step):
            state = replaced(state, **{physics.field: self._at(before)})
            state = physics.base.step(state, jnp.asarray(action))
        if len(sent) != 1:
            raise CannotTransplant(
                f"{self._name}.step calls {physics.stepper} {len(sent)} times: only an environment "
                "that steps its physics once per step can be put around another one"
            )
        ctrl, same = sent[0]
        if not same:
            raise CannotTransplant(
                f"{self._name}.step calls {physics.stepper} within a loop, a branch or another "
                "transformation of JAX's, where what it sends to its physics cannot be seen"
            )
        ctrl = jnp.asarray(ctrl)
        if ctrl.shape != (physics.nu,):
            raise CannotTransplant(
                f"{self._name}.step sends {ctrl.shape} numbers to its physics, but the model has "
                f"{physics.nu} actuators"
            )
        return self._without_physics(state), ctrl

    def _without_physics(self, state: Any) -> Any:
        state = replaced(state, **{self._physics.field: None})
        # A Python number among the leaves would become an array in the next step: another type,
        # for which everything would be compiled twice.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)


class _Brax:
    """Replaces the physics of a Brax environment."""

    field = "pipeline_state"
    stepper = "self.pipeline_step"

    def __init__(self, adapter: BraxAdapter):
        if not hasattr(adapter.original, "pipeline_init"):
            raise CannotTransplant(f"{adapter.name} is not a brax.envs.base.PipelineEnv")
        self.base, self.nu = copy.copy(adapter.original), adapter.mj_model.nu
        self._native = adapter.native

    def at(self, moment: Moment) -> Any:
        if not self._native:
            return self.base.pipeline_init(jnp.asarray(moment.qpos), jnp.asarray(moment.qvel))
        posed = jnp.asarray(moment.posed_qpos), jnp.asarray(moment.posed_qvel)
        state = self.base.pipeline_init(*posed)
        return state.replace(q=moment.qpos, qd=moment.qvel, **_coordinates(moment))

    @contextlib.contextmanager
    def replaced(self, step: Callable[[Any], Any]) -> Iterator[None]:
        with shadowed(self.base, "pipeline_step", lambda pipeline_state, action: step(action)):
            yield


class _Playground:
    """Replaces the physics of a MuJoCo Playground environment.

    Always uses MJX's JAX implementation: Warp needs a GPU, and the numbers are the same.
    """

    field = "data"
    stepper = "mjx_env.step"

    def __init__(self, adapter: PlaygroundAdapter):
        from mujoco import mjx

        self.base, self.nu = copy.copy(adapter.original), adapter.mj_model.nu
        if adapter.backend != "jax":
            try:
                model = mjx.put_model(adapter.mj_model, impl="jax")
            except NotImplementedError as error:
                raise CannotTransplant(f"{adapter.name} runs only on Warp: {error}") from None
            if not give_playground_model(self.base, model):
                raise CannotTransplant(f"{adapter.name} keeps its model elsewhere than others do")
        self._mj_model, self._mjx = adapter.mj_model, mjx
        self._module = playground_stepper()

    def at(self, moment: Moment) -> Any:
        model = self.base.mjx_model
        data = self._mjx.make_data(self._mj_model, impl="jax")
        data = data.replace(qpos=moment.posed_qpos, qvel=moment.posed_qvel, ctrl=moment.ctrl)
        data = data.replace(mocap_pos=moment.mocap_pos, mocap_quat=moment.mocap_quat)
        return self._mjx.forward(model, data).replace(**_coordinates(moment))

    @contextlib.contextmanager
    def replaced(self, step: Callable[[Any], Any]) -> Iterator[None]:
        """Patches the module function that Playground's environments call, for this thread."""
        ours = threading.get_ident()
        with _PATCHING:
            real = self._module.step

            def instead(model: Any, data: Any, action: Any, n_substeps: int = 1) -> Any:
                if threading.get_ident() != ours:
                    return real(model, data, action, n_substeps)
                return step(action)

            self._module.step = instead
            try:
                yield
            finally:
                self._module.step = real


_PATCHING = threading.RLock()
"""Held while Playground's function is patched: of two interleaved patches, the last to be undone
could restore the other one."""


def _coordinates(moment: Moment) -> dict[str, Any]:
    """Returns the fields of MJX's data that don't follow from the posed coordinates."""
    return {
        "qpos": moment.qpos,
        "qvel": moment.qvel,
        "act": moment.act,
        "ctrl": moment.ctrl,
        "mocap_pos": moment.mocap_pos,
        "mocap_quat": moment.mocap_quat,
        "time": moment.time,
        **moment.forces,
    }


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise CannotTransplant(
            f"JAX has no CPU backend ({error}): let JAX_PLATFORMS name it too, as in 'cuda,cpu'"
        ) from None


def _takes_chances(make_policy: Callable[..., Any]) -> bool:
    """Whether the policy can be made deterministic; evolution strategies' policies always are."""
    return "deterministic" in inspect.signature(make_policy).parameters


def _fits(value: Any, like: Any) -> bool:
    return value is not None and np.shape(value) == np.shape(like)


def _with_leaves(tree: Any, named: Mapping[str, Any], *, keep_keys: bool = False) -> Any:
    """Returns the tree with the named leaves replaced, where the shapes are the same."""

    def leaf(path: Any, own: Any) -> Any:
        value = named.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if not _fits(value, own) or (keep_keys and _is_key(own)):
            return own
        return jnp.asarray(value).astype(own.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _is_key(x: jax.Array) -> bool:
    """Whether `x` is a random key, typed or old style: any uint32 counts as a key here."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == jnp.uint32
