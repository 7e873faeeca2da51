"""Makes recorded episodes by stepping a MuJoCo model, and keeps them in memory."""

from collections.abc import Iterable

import mujoco
import numpy as np

from brax_viser.records.episode import Episode, RunInfo, Summary


class Kept:
    """A store of episodes."""

    def __init__(self, episodes: Iterable[Episode] = ()):
        self.version = 0
        self._episodes: dict[str, Episode] = {}
        for episode in episodes:
            self.add(episode)

    def add(self, episode: Episode) -> None:
        self._episodes[episode.summary.key] = episode
        self.version += 1

    def drop(self, key: str) -> None:
        del self._episodes[key]
        self.version += 1

    def summaries(self) -> tuple[Summary, ...]:
        return tuple(self._episodes[key].summary for key in sorted(self._episodes))

    def get(self, key: str) -> Episode:
        return self._episodes[key]


def episode_of(
    model: mujoco.MjModel,
    *,
    recording: int = 0,
    env: int = 0,
    length: int = 50,
    ended: str = "terminated",
    kept_as: tuple[str, ...] = ("random",),
    substeps: int = 1,
    seed: int = 0,
    qpos: np.ndarray | None = None,
) -> Episode:
    """Steps a model with random controls from its first pose."""
    data, rng = mujoco.MjData(model), np.random.default_rng(seed)
    data.qpos[:] = model.qpos0 if qpos is None else qpos
    mujoco.mj_forward(model, data)
    ctrl = rng.uniform(-1, 1, (length, model.nu))
    rows = []
    for t in range(length + 1):
        if t:
            data.ctrl[:] = ctrl[t - 1]
            for _ in range(substeps):
                mujoco.mj_step(model, data)
            mujoco.mj_kinematics(model, data)
        rows.append([x.copy() for x in (data.qpos, data.qvel, data.xpos[1:], data.xquat[1:])])
    states = [np.stack(x).astype(np.float32) for x in zip(*rows, strict=True)]
    reward = rng.uniform(0, 1, length).astype(np.float32)
    dt = model.opt.timestep * substeps
    total = float(reward.sum(dtype=np.float32))
    summary = Summary(recording, env, recording + 10, 5.0, length, total, ended, kept_as)
    steps = {"reward": reward, "ctrl": ctrl.astype(np.float32), "action": ctrl.astype(np.float32)}
    steps["metrics/reward_alive"] = np.ones(length, np.float32)
    return Episode(summary, dt, *states, steps)


def recording_of(
    model: mujoco.MjModel, step: int, lengths: Iterable[int] = (50, 20, 30, 40), **kwargs
) -> list[Episode]:
    """Makes an episode of each kind."""
    kinds = zip(("best", "worst", "fell", "random"), lengths, strict=False)
    return [
        episode_of(
            model,
            recording=step,
            env=3 * i + 1,
            length=length,
            ended="truncated" if kind == "best" else "terminated",
            kept_as=(kind,),
            seed=step + i,
            **kwargs,
        )
        for i, (kind, length) in enumerate(kinds)
    ]


def run_of(model: mujoco.MjModel, dt: float, name: str = "Ant") -> RunInfo:
    """Describes their training."""
    return RunInfo(name, "spring", dt, 2048, model, "PPO", 1_795_000_000.0)
