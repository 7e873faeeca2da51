"""Describes the environment of a recorded training, known by its model and episodes."""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from brax_viser.records.environment import Limit
from brax_viser.records.episode import BRAXS_OWN, Episodes, RunInfo


@dataclass(frozen=True, eq=False)
class Recorded:
    """A `records.environment.Environment` that cannot be stepped."""

    run: RunInfo
    init_qpos: np.ndarray  # float [nq]

    @classmethod
    def of(cls, run: RunInfo, episodes: Episodes) -> "Recorded":
        """Describes the environment of a training. Its initial pose is that in which the first
        recorded episode begins, or the model's own before there is one."""
        return cls(run, _first_pose(run, episodes))

    @property
    def name(self) -> str:
        return self.run.env

    @property
    def backend(self) -> str:
        return self.run.backend

    @property
    def native(self) -> bool:
        return self.run.backend not in BRAXS_OWN

    @property
    def mj_model(self) -> Any:
        return self.run.mj_model

    @property
    def dt(self) -> float:
        return self.run.dt

    @property
    def limits(self) -> tuple[Limit, ...]:
        return self.run.limits

    repeat = 1

    @property
    def substeps(self) -> int:
        return max(round(self.run.dt / self.run.mj_model.opt.timestep), 1)

    def mujoco_model(self) -> Any:
        """Returns the model that is drawn; the values that it was stepped with are not recorded."""
        return self.run.mj_model

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the link poses at `init_qpos`: float32 [L, 3] in m and [L, 4] wxyz."""
        data = mujoco.MjData(self.run.mj_model)
        data.qpos[:] = self.init_qpos
        mujoco.mj_kinematics(self.run.mj_model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)


def _first_pose(run: RunInfo, episodes: Episodes) -> np.ndarray:
    for summary in episodes.summaries():
        try:
            qpos = episodes.get(summary.key).qpos[0]
        except (KeyError, ValueError):  # thinned out meanwhile, or damaged
            continue
        if np.isfinite(qpos).all():
            return qpos
    return np.array(run.mj_model.qpos0)
