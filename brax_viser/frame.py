"""What one moment of some environments looks like, on the host."""

from dataclasses import dataclass

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
    done: np.ndarray  # bool [K], whether the episode ended with this step
