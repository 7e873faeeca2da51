"""What one moment of some environments looks like, on the host."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True, eq=False)
class Detail:
    """All that is known of one environment after one batched step."""

    env: int  # which, counted over all devices
    qpos: np.ndarray  # float32 [nq], MuJoCo's order and units
    qvel: np.ndarray  # float32 [nv], likewise; a free joint turns in the body's own frame
    ctrl: np.ndarray | None  # float32 [nu], that led here; None: the backend keeps none
    act: np.ndarray | None  # float32 [na], of actuators that have a state of their own
    mocap_pos: np.ndarray | None  # float32 [nmocap, 3], m
    mocap_quat: np.ndarray | None  # float32 [nmocap, 4], wxyz
    action: np.ndarray | None  # float32 [A], what the policy did
    observation: Mapping[str, np.ndarray]  # by name, float32 [O]; "" where it has no names

    @classmethod
    def of(cls, env: int, fields: Mapping[str, np.ndarray]) -> "Detail":
        """Of what `adapters.Adapter.detail` has named."""
        prefix = "observation"
        observation = {
            name[len(prefix) + 1 :]: x for name, x in fields.items() if name.startswith(prefix)
        }
        kept = ("qpos", "qvel", "ctrl", "act", "mocap_pos", "mocap_quat", "action")
        return cls(env, *(fields.get(name) for name in kept), observation)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Frame:
    """The state of K chosen environments after one batched step.

    Poses are in each environment's own world frame, as the trainer has them; the grid's
    offsets are added where they are drawn.
    """

    role: str  # "train" | "eval": the rollout that it is from
    env_steps: int  # batched steps of that rollout known so far, this one included
    env_index: np.ndarray  # int32 [K], which environments, counted over all devices
    num_envs: int  # environments in the whole batch, over all devices
    link_pos: np.ndarray  # float32 [K, L, 3], m; link i is body i + 1 of the MuJoCo model
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    reward: np.ndarray  # float32 [K], of this step
    episode_return: np.ndarray  # float32 [K], of the episode so far
    episode_length: np.ndarray  # int32 [K], env steps of the episode so far, this one included
    since_termination: np.ndarray  # int32 [K], env steps; 0: terminated with this step
    finite: np.ndarray  # bool [K], whether all of the environment's state is
    detail: Detail | None = None  # of one of them, where it was asked for


def joined(frames: list[Frame], env_index: np.ndarray) -> Frame | None:
    """One moment of the environments of several devices, in the order of `env_index`.

    None if the frames do not have just those environments.
    """
    have = np.concatenate([frame.env_index for frame in frames])
    if len(frames) == 1 and np.array_equal(have, env_index):
        return frames[0]
    order = np.argsort(have)
    place = np.searchsorted(have, env_index, sorter=order)
    if len(have) != len(env_index) or (place == len(have)).any():
        return None
    rows = order[place]
    if not np.array_equal(have[rows], env_index):
        return None
    first = frames[0]
    values = {f.name: getattr(first, f.name) for f in fields(Frame)}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            values[name] = np.concatenate([getattr(frame, name) for frame in frames])[rows]
    values["detail"] = next((f.detail for f in frames if f.detail is not None), None)
    return Frame(**values)
