"""An environment's own code around another physics, so that a policy can drive what it never saw.

The policy of an environment can only be asked by the environment's observations, which its own
code makes of its own physics. Here that code is traced with the physics taken out: `step` is run
as it is, but what it calls to advance the physics returns a state that has come from elsewhere,
from a plain MuJoCo simulation for instance, and what it sends to the physics is written down.
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
"""What MuJoCo's own physics makes of forces, and an environment may observe: accelerometers feel a
push, and gravity that is not the training's, which MJX could not work out of coordinates."""


class CannotTransplant(ValueError):
    """The environment's code cannot be put around another physics; the text says why."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Moment:
    """A state of MuJoCo's, with what an environment's code may look at.

    After `mj_step`, as after `mjx.step`, coordinates are those that the step has led to, while
    poses, sensors and forces are those that it began with. Policies that are trained on MJX or
    Warp have learnt on that, and so are given it.
    """

    qpos: np.ndarray  # float [nq]
    qvel: np.ndarray  # float [nv]
    act: np.ndarray  # float [na]
    ctrl: np.ndarray  # float [nu]
    mocap_pos: np.ndarray  # float [nmocap, 3], m
    mocap_quat: np.ndarray  # float [nmocap, 4], wxyz
    time: np.ndarray  # float [], s
    posed_qpos: np.ndarray  # float [nq], that poses and forces are those of
    posed_qvel: np.ndarray  # float [nv]
    forces: Mapping[str, np.ndarray]  # `FORCES`, in MuJoCo's shapes

    @classmethod
    def of(
        cls,
        data: mujoco.MjData,
        posed_qpos: np.ndarray | None = None,
        posed_qvel: np.ndarray | None = None,
    ) -> "Moment":
        """Copies all that is needed of `data`.

        Args:
            data: after `mj_forward`, or after `mj_step`.
            posed_qpos: [nq], the coordinates that the last `mj_step` began with; None after
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
    """What a trainer hands out of its policy, on the CPU.

    Stock trainers call `policy_params_fn(num_steps, make_policy, params)`. As long as
    `make_policy` is the same function and the parameters have the same shapes, nothing is compiled
    again for new ones.
    """

    def __init__(self, make_policy: Callable[..., Any], params: Any):
        self.make = make_policy
        self.params = jax.device_put(params, _cpu())


class Transplant:
    """The code of one environment, without its physics; compiled for the CPU, call by call.

    Works on a copy of the environment, so that a training that is being traced meanwhile, in
    another thread, is not disturbed. All methods are called by one thread.

    What the environment itself does to its physics, besides controlling it, is left out: pushes
    that some of Playground's give themselves between steps, and mocap bodies that they move.
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
        self.action_size = int(self._physics.base.action_size)
        self.traces = 0  # of anything at all: to see that nothing is compiled twice
        # Its own, so that it is traced once and not for each of those below.
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
        """A state of the environment at some moment, for the other methods.

        Args:
            moment: where its physics is.
            key: for `reset`, which all that is not known is taken from.
            observation: by name, float [O]; "" where it has no names. What of the observations is
                missing, or has another shape, is worked out of the moment as a step would.
            info: leaves of `state.info` by their names, "a/b" for a nested one. Those of `reset`
                are replaced by them where the shape is the same. Random keys are not.

        Returns:
            The environment's state without its physics, which goes by moments beside it.
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
        """What the environment sends to the physics on an action [A]: ctrl, float [nu].

        Raises:
            CannotTransplant: it does not step the physics just once; so do `act` and `after`.
        """
        with jax.default_device(self.device):
            return np.asarray(self._control_jit(state, action, moment))

    def act(
        self, policy: Policy, state: Any, moment: Moment, key: jax.Array
    ) -> tuple[jax.Array, np.ndarray]:
        """(action [A], ctrl [nu]) of a policy that takes no chances, on the state's observation."""
        with jax.default_device(self.device):
            key = jax.device_put(key, self.device)
            action, ctrl = self._act_jit(policy.make, policy.params, state, moment, key)
            return action, np.asarray(ctrl)

    def after(
        self, state: Any, action: np.ndarray | jax.Array, before: Moment, moment: Moment
    ) -> Any:
        """The state after a step on which the physics has gone from one moment to another.

        Args:
            state: before it.
            action: float [A], what the policy did.
            before: where the physics was.
            moment: where it is now.
        """
        with jax.default_device(self.device):
            return self._after_jit(state, action, before, moment)

    def _compiled(self, function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        # Told where everything is, it makes no difference between host arrays, results of its own
        # and arrays that were put there, each of which it would compile anew for.
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
        # All that comes after the physics is computed for nothing, so XLA leaves it out.
        return self._stepped(state, action, moment, moment)[1]

    def _stepped(
        self, state: Any, action: Any, before: Moment, moment: Moment
    ) -> tuple[Any, jax.Array]:
        """Traces a step: (the state after it, ctrl)."""
        self.traces += 1
        physics, sent = self._physics, []
        outside = opaque_trace_state()
        then = self._at(moment)

        def step(ctrl: Any) -> Any:
            sent.append((ctrl, opaque_trace_state() == outside))
            return then

        # Some write into the dicts of the state that they are given, which is the caller's.
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
        # A Python number among the leaves would be another type than the array it becomes by the
        # next step, and a reason to compile everything twice.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)


class _Brax:
    """The physics of a Brax environment, to be replaced."""

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
    """The physics of one of MuJoCo Playground's environments, to be replaced.

    Always MJX's JAX implementation, for Warp needs a GPU, and the numbers are the same.
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
                raise CannotTransplant(
                    f"{adapter.name} can be run by Warp alone: {error}"
                ) from None
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
        """Its environments call a function of a module: it is another one meanwhile, for us."""
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
"""Held while a function of Playground's is another one: two that put back what they had found
would leave one of theirs behind."""


def _coordinates(moment: Moment) -> dict[str, Any]:
    """Fields of MJX's data that are not those of the posed coordinates."""
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
    """Whether it can be told not to. Evolution strategies' policies have nothing to be told."""
    return "deterministic" in inspect.signature(make_policy).parameters


def _fits(value: Any, like: Any) -> bool:
    return value is not None and np.shape(value) == np.shape(like)


def _with_leaves(tree: Any, named: Mapping[str, Any], *, keep_keys: bool = False) -> Any:
    """The tree with those of its leaves replaced that are named and have the right shape."""

    def leaf(path: Any, own: Any) -> Any:
        value = named.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if not _fits(value, own) or (keep_keys and _is_key(own)):
            return own
        return jnp.asarray(value).astype(own.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _is_key(x: jax.Array) -> bool:
    """Of either kind: old ones are unsigned integers, which have nothing else to say here."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or x.dtype == jnp.uint32
