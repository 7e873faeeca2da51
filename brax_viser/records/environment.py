"""What the host knows of an environment that is wrapped: the part of `device.adapters.Adapter` that
needs no JAX."""

from typing import Any, Protocol

import numpy as np


class Environment(Protocol):
    """Read once, when the environment is wrapped."""

    @property
    def name(self) -> str:
        """Such as "Ant" or "Go1 Joystick"."""
        ...

    @property
    def backend(self) -> str:
        """Which physics steps it."""
        ...

    @property
    def native(self) -> bool:
        """Whether that is MuJoCo's own, by MJX or Warp."""
        ...

    @property
    def mj_model(self) -> Any:
        """The `mujoco.MjModel` that it was made of."""
        ...

    @property
    def init_qpos(self) -> np.ndarray:
        """float [nq], where `reset` starts from, before its noise."""
        ...

    @property
    def dt(self) -> float:
        """s that one step of the wrapped environment takes, repeated actions included."""
        ...

    @property
    def repeat(self) -> int:
        """Steps of the innermost environment in one of the wrapped one."""
        ...

    @property
    def substeps(self) -> int:
        """Steps of the physics in one of the wrapped environment."""
        ...

    def mujoco_model(self) -> Any:
        """An `mujoco.MjModel` of the caller's own, as the environment steps it."""
        ...

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [L, 3] in m and [L, 4] wxyz: link poses at `init_qpos`."""
        ...
