"""Describes a wrapped environment to the host: the part of `device.adapters.Adapter` that needs no
JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Limit:
    """A range; the environment's own rule ends an episode that leaves it."""

    what: str  # what is measured: "torso height"
    # "height": of a point of a link. "tilt": of a link's axis from the vertical. "qpos": one
    # coordinate. "state": all coordinates from one on, and all velocities.
    of: str
    index: int  # of the link, or the coordinate
    low: float | None  # None: there is no limit
    high: float | None
    unit: str = ""  # "m", "rad", "°"
    # In the link's frame: the point whose height is meant, or the axis that should be upright.
    point: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Limit":
        """Returns a limit from what JSON kept of it, without fields that only newer releases know.

        Raises:
            TypeError: one is missing.
        """
        known = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        return cls(**{**known, "point": tuple(known.get("point", cls.point))})


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

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The ranges by which its own rule ends episodes, as far as they are known."""
        ...

    def mujoco_model(self) -> Any:
        """Returns a new `mujoco.MjModel` with the values that the environment steps with."""
        ...

    def init_links(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the link poses at `init_qpos`: float32 [L, 3] in m and [L, 4] wxyz."""
        ...
