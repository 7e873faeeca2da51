"""What one moment of some environments looks like, on the host."""

from dataclasses import dataclass, fields

import numpy as np


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
    return Frame(**values)
