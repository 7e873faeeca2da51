"""Describes a wrapped environment to the host: the part of `device.adapters.Adapter` that needs no
JAX."""

from typing import Any, Protocol

import numpy as np


class Environment(Protocol):
    """A wrapped environment, as it was read once, when it was wrapped."""

    @property
    def name(self) -> str:
        """The environment's name, such as "Ant" or "Go1 Joystick"."""
        ...

    @property
    def backend(self) -> str:
        """The name of the physics that steps it."""
        ...

    @property
    def native(self) -> bool:
        """Whether the physics is MuJoCo's own, by MJX or Warp."""
        ...

    @property
    def mj_model(self) -> Any:
        """The `mujoco.MjModel` that it was made from."""
        ...

    @property
    def init_qpos(self) -> np.ndarray:
        """float [nq]: the pose that `reset` starts from, before its noise."""
        ...

    @property
    def dt(self) -> float:
        """Duration of one step of the wrapped environment in s, repeated actions included."""
        ...

    @property
    def repeat(self) -> int:
        """Steps of the innermost environment in one step of the wrapped environment."""
        ...

    @property
    def substeps(self) -> int:
        """Steps of the physics in one step of the wrapped environment."""
        ...

    def mujoco_model(self) -> Any:
        """Returns a new `mujoco.MjModel` with the values that the environment steps with."""
        ...

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the link poses at `init_qpos`: float32 [L, 3] in m and [L, 4] wxyz."""
        ...
