"""What an environment's state means: where its links are, and which MuJoCo model they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import mujoco
import numpy as np
from brax.envs.base import Env, State, Wrapper
from brax.envs.wrappers.training import EpisodeWrapper

from brax_viser.emit import Payload


@dataclass(frozen=True)
class BraxAdapter:
    """Brax environments on any of the four backends (mjx, generalized, spring, positional).

    All of them keep link poses in `pipeline_state.x`, in the world frame; link i is body i + 1
    of `sys.mj_model`, because Brax fuses bodies without joints before it compiles the model.
    """

    name: str  # the env's class, "Ant"
    backend: str
    mj_model: mujoco.MjModel
    init_qpos: np.ndarray  # float [nq], where `reset` starts from, before its noise
    dt: float  # s, what one `step` of the wrapped env takes, repeated actions included

    def payload(self, state: State) -> Payload:
        """The arrays to show, of a state with any number of leading batch axes."""
        assert state.pipeline_state is not None
        x: Any = state.pipeline_state.x
        return {
            "link_pos": x.pos,
            "link_rot": x.rot,
            "reward": state.reward,
        }

    def inspected(self, state: State) -> list[jax.Array]:
        """What else is looked through for NaN and Inf: velocities, and what the policy is given.

        Pixels are left out. They cannot be either, and it would take long.
        """
        pipeline: Any = state.pipeline_state
        obs = state.obs.items() if isinstance(state.obs, Mapping) else [("state", state.obs)]
        return [pipeline.qd, *(x for name, x in obs if not name.startswith("pixels/"))]

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """Link poses before anything has run: float32 [L, 3] in m, float32 [L, 4] wxyz."""
        data = mujoco.MjData(self.mj_model)
        data.qpos[:] = self.init_qpos
        mujoco.mj_kinematics(self.mj_model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)


def adapter_for(env: Env) -> BraxAdapter:
    """Reads what is needed of `env`.

    Raises:
        TypeError: `env` is not an environment.
        ValueError: it has no MuJoCo model, or one whose bodies are not its links.
    """
    if not isinstance(env, Env):
        raise TypeError(
            f"env={env!r} is a {type(env).__name__}: it must be a brax.envs.Env, such as "
            "brax.envs.get_environment('ant') returns"
        )
    base: Any = env.unwrapped
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
        dt=float(base.dt) * _action_repeat(env),
    )


def _action_repeat(env: Env) -> int:
    """Physics-wise, how many steps of the innermost env one of this env's is."""
    repeat = 1
    while isinstance(env, Wrapper):
        if isinstance(env, EpisodeWrapper):
            repeat *= env.action_repeat
        env = env.env
    return repeat
