"""Holds a policy that a trainer has handed out, and gives its shape to the numbers of others."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trained:
    """A policy passed by the trainer."""

    num_steps: int
    make_policy: Callable[..., Any]
    params: Any = field(repr=False)  # on the host

    @classmethod
    def of(cls, num_steps: int, make_policy: Callable[..., Any], params: Any) -> "Trained":
        """Copies the parameters to the host: the trainer may donate their device buffers to its
        next epoch."""
        import jax  # already imported by the trainer

        return cls(num_steps, make_policy, jax.device_get(params))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns copies of the parameters, by their paths in the pytree."""
        import jax

        leaves = jax.tree_util.tree_flatten_with_path(self.params)[0]
        name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
        return {name(path): np.array(x) for path, x in leaves}


def filled(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns the template with its leaves replaced by arrays, by their paths.

    Raises:
        ValueError: an array is missing, or has another shape.
    """
    import jax

    def leaf(path: Any, usual: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = arrays.get(name)
        if found is None or found.shape != np.shape(usual):
            have = "missing" if found is None else f"of shape {found.shape}"
            raise ValueError(
                f"the policy's {name} is {have}, not of shape {np.shape(usual)}: it was trained "
                "with other networks, in another environment, or by another version of Brax"
            )
        return found

    return jax.tree_util.tree_map_with_path(leaf, template)
