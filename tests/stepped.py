"""Episodes for tests, made by stepping a MuJoCo model."""

from collections.abc import Mapping
from pathlib import Path

import brax
import mujoco
import numpy as np

from brax_viser.records.episode import Episode, RunInfo, Summary

BRAX_MODELS = Path(brax.__file__).parent / "envs" / "assets"


def run_info(model: mujoco.MjModel, env: str = "Ant", *, dt: float = 0.05) -> RunInfo:
    return RunInfo(env, "mjx", dt, 64, model, "PPO", started=1.7e9)


def stepped(
    model: mujoco.MjModel,
    *,
    seconds: float = 10.0,
    dt: float = 0.05,
    seed: int = 0,
    env: int = 3,
    num_steps: int = 1_234_000,
    ended: str = "truncated",
    own: Mapping[str, np.ndarray] | None = None,
    strength: float = 1.0,
) -> Episode:
    """Steps a model with smooth random controls; two made-up terms are its reward."""
    rng, data = np.random.default_rng(seed), mujoco.MjData(model)
    steps = round(seconds / dt)
    phase, rate = rng.uniform(0, 6, model.nu), rng.uniform(3, 9, model.nu)
    kept: dict[str, list[np.ndarray]] = {n: [] for n in ("qpos", "qvel", "xpos", "xquat", "ctrl")}
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    low, high = model.actuator_ctrlrange.T
    rest = data.ctrl.copy()
    mujoco.mj_forward(model, data)
    for step in range(steps + 1):
        for name, found in kept.items():
            found.append(np.array(getattr(data, name), np.float32))
        data.ctrl[:] = np.clip(
            rest + strength * (high - low) / 2 * np.sin(phase + rate * step * dt), low, high
        )
        mujoco.mj_step(model, data, nstep=max(round(dt / model.opt.timestep), 1))
        mujoco.mj_forward(model, data)
    qvel, ctrl = np.array(kept["qvel"]), np.array(kept["ctrl"])
    forward = qvel[1:, 0]
    cost = -0.1 * np.square(ctrl[1:]).sum(axis=1)
    total = (forward + cost).astype(np.float32)
    about = Summary(num_steps, env, num_steps, 60.0, steps, float(total.sum()), ended, ("random",))
    return Episode(
        about,
        dt,
        np.array(kept["qpos"]),
        qvel,
        np.array(kept["xpos"])[:, 1:],
        np.array(kept["xquat"])[:, 1:],
        {
            "reward": total,
            "ctrl": ctrl[1:],
            "action": ctrl[1:],
            "metrics/reward_forward": forward,
            "metrics/reward_ctrl": cost.astype(np.float32),
            "metrics/x_position": np.array(kept["xpos"])[1:, 1, 0],
        },
        own or {},
    )


def brax_model(name: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(BRAX_MODELS / f"{name}.xml"))
