"""Lets a policy drive an environment's robots in real time, in the environment's own physics."""

import functools
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from brax_viser.cli.policies import with_deterministic
from brax_viser.viewer import Viewer

UNSEEN_SECONDS = 0.1
"""s between two checks whether robots that play on are seen again."""


class Driving:
    """Robots that a policy drives."""

    def __init__(
        self,
        viewer: Viewer,
        bare: Any,
        settings: Any,
        grid: tuple[int, ...],
        seed: int,
        *,
        spacing: tuple[float, ...] | None = None,
        most: int | None = None,
    ):
        """Resets the robots.

        Args:
            viewer: shows them.
            bare: the environment.
            settings: of the training, for the length of episodes and the environment's wrappers.
            grid: the cells of the robots.
            seed: of their resets.
            spacing: metres between the cells; None: derived from the robot's reach.
            most: maximum number of robots; None: one in each cell.
        """
        import jax
        from brax.envs import training

        from brax_viser.env import VisualizedEnv

        wrapped = VisualizedEnv(bare, grid=grid, spacing=spacing, viewer=viewer)
        wrap = settings.get("wrap_env_fn") or training.wrap
        self._env = wrap(
            wrapped,
            episode_length=settings.get("episode_length", 1000),
            action_repeat=settings.get("action_repeat", 1),
        )
        self._viewer = viewer
        adapter = wrapped._adapter
        assert adapter is not None
        self._dt = adapter.dt * settings.get("action_repeat", 1)
        cells = int(np.prod(grid))
        keys = jax.random.split(jax.random.PRNGKey(seed), min(most or cells, cells))
        self._state = jax.jit(self._env.reset)(keys)
        self._key = jax.random.PRNGKey(seed + 1)
        self._due = time.monotonic()
        self._make_policy: Callable[..., Any] | None = None
        self._params: Any = None

    def use(self, make_policy: Callable[..., Any], params: Any) -> None:
        """Has a policy drive the robots from now on; the `make_policy` of the first one stays in
        use."""
        self._make_policy = self._make_policy or with_deterministic(make_policy)
        self._params = params

    def step(self) -> None:
        """Takes a step, and waits until the next one is due at the page's speed."""
        import jax

        self._key, key = jax.random.split(self._key)
        state = self._given(self._state)
        self._state = jax.block_until_ready(self._stepped(self._params, state, key))
        now = time.monotonic()
        self._due = max(self._due + self._dt / self._viewer.speed, now - self._dt)
        time.sleep(max(self._due - now, 0.0))

    def _given(self, state: Any) -> Any:
        """Returns the state from which the next step is taken."""
        return state

    @functools.cached_property
    def _stepped(self) -> Any:
        import jax

        assert self._make_policy is not None
        make_policy = self._make_policy

        def stepped(params: Any, state: Any, key: Any) -> Any:
            policy = make_policy(params, deterministic=True)
            return self._env.step(state, policy(state.obs, key)[0])

        return jax.jit(stepped)


def play_on(
    viewer: Viewer, robots: Callable[[], Driving], make_policy: Callable[..., Any], params: Any
) -> None:
    """Has robots go on after a training while the viewer is open; while they are not seen, they
    wait. If that fails, the page goes on with one robot in MuJoCo.

    Args:
        viewer: of the training, which has ended.
        robots: makes the robots, which takes a while.
        make_policy: as the trainer hands it out.
        params: of the policy.
    """
    shared = viewer._shared
    try:
        driving = robots()
        driving.use(make_policy, params)
        driving.step()
        while not shared.control.closed:
            if shared.control.wants("train"):
                driving.step()
            else:
                time.sleep(UNSEEN_SECONDS)
    # Whatever the environment or the compiler raises: the page stays open, and is still useful.
    except Exception as error:
        shared.progress.plays_on = False
        traceback.print_exc()
        words = f"The robots can't go on in their own physics: {error}"
        Console().print(words, style="red", markup=False)
