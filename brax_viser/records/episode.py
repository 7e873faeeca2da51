"""Holds complete episodes of single environments, from their reset to their end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from brax_viser.records.environment import Limit

ENDED = ("terminated", "truncated", "nonfinite")
"""How an episode can have ended: by the environment's own rule, at a time limit, or with a NaN or
Inf in its state."""

KEPT_AS = ("best", "worst", "fell", "random")
"""Why an episode was kept among those of its recording: the highest and the lowest return, one that
terminated, one at random."""


@dataclass(frozen=True)
class Summary:
    """What a list shows of an episode."""

    recording: int  # env steps trained, over all environments, when its recording began
    env: int  # index over all devices
    num_steps: int  # env steps trained when the episode began; at least `recording`
    seconds: float  # s of the training's clock at the episode's end
    length: int  # T, its steps
    episode_return: float  # as the device summed it
    ended: str  # one of ENDED
    kept_as: tuple[str, ...]  # of KEPT_AS, at least one

    @property
    def key(self) -> str:
        """A name that no other episode of the training has, and that sorts by training steps."""
        return f"{self.recording:015d}-env{self.env}"


@dataclass(frozen=True, eq=False)
class Episode:
    """One complete episode of T steps. Arrays are float32, bit for bit as the device had them."""

    summary: Summary
    dt: float  # s of robot time per step
    # After t steps at index t: the reset's is at 0, the end's at T.
    qpos: np.ndarray  # [T + 1, nq], MuJoCo's order and units
    qvel: np.ndarray  # [T + 1, nv]
    # The reset's link poses are those that MuJoCo computes from its qpos; all others the device's.
    link_pos: np.ndarray  # [T + 1, L, 3], m; link i is body i + 1 of the MuJoCo model
    link_rot: np.ndarray  # [T + 1, L, 4], wxyz
    # Of step t at index t - 1, by name: "reward" [T]; where they are known also "action" [T, A],
    # "ctrl" [T, nu], "act" [T, na], "mocap_pos" [T, nmocap, 3], "mocap_quat" [T, nmocap, 4], and
    # "metrics/NAME" [T], such as the terms of the reward.
    steps: Mapping[str, np.ndarray]
    # Fields in which domain randomisation made this environment's model differ from the shared
    # one, by their names in `mujoco.MjModel`.
    model: Mapping[str, np.ndarray] = field(default_factory=dict)


def distance(one: Episode, other: Episode) -> np.ndarray:
    """Returns the mean distance between the links of two episodes of the same robot, at the same
    time since each reset: float [T + 1] in m, until the first of them ends."""
    both = min(len(one.link_pos), len(other.link_pos))
    apart = one.link_pos[:both] - other.link_pos[:both]
    return np.linalg.norm(apart, axis=-1).mean(axis=-1)


def nonfinite(episode: Episode) -> str:
    """Says which of an episode's numbers turned NaN or Inf first; empty if all are finite."""
    numbers = {"qpos": (episode.qpos, 0), "qvel": (episode.qvel, 0)}
    numbers |= {name: (array, 1) for name, array in episode.steps.items()}
    first: dict[str, int] = {}  # step, by name
    for name, (array, begins) in numbers.items():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if len(bad):
            first[name] = int(bad[0]) + begins
    names = [name for name, step in first.items() if step == min(first.values())]
    return f"NaN or Inf in {', '.join(names)}" if names else ""


BRAXS_OWN = ("generalized", "spring", "positional")
"""Backends whose physics is not MuJoCo's."""


@dataclass(frozen=True, eq=False)
class RunInfo:
    """What the episodes of one training have in common."""

    env: str  # "Ant", "Go1 Joystick"
    backend: str  # name of the physics
    dt: float  # s of robot time per step
    num_envs: int  # environments in the training batch, over all devices
    mj_model: Any  # the `mujoco.MjModel` that is drawn
    trainer: str | None  # "PPO"; None if it is not known
    started: float  # s since 1970
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the trainer, as far as known
    limits: tuple[Limit, ...] = ()  # beyond which the environment ends episodes, as far as known


class Episodes(Protocol):
    """Kept episodes of one training, in memory or on disk."""

    @property
    def version(self) -> int:
        """Changes whenever `summaries` does."""
        ...

    def summaries(self) -> tuple[Summary, ...]:
        """Returns those that are kept now, ordered by `key`."""
        ...

    def get(self, key: str) -> Episode:
        """Returns an episode.

        Raises:
            KeyError: it is not kept any more.
            ValueError: its file is damaged.
        """
        ...
