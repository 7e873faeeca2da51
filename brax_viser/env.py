"""`VisualizedEnv`: the wrapper that lets a viewer see what a trainer steps."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
from brax.envs.base import Env, State, Wrapper
from brax.envs.wrappers.training import AutoResetWrapper, EpisodeWrapper

from brax_viser.adapters import adapter_for
from brax_viser.emit import emit, shard_of_this_device
from brax_viser.episode import advance, episode_begins, first_log
from brax_viser.trainer import calling_trainer

if TYPE_CHECKING:  # device code must not import viser, and the viewer does
    from brax_viser.viewer import Viewer

INFO_KEY = "brax_viser"
"""The one key that the wrapper keeps in `state.info`: an `episode.EpisodeLog`."""


class VisualizedEnv(Wrapper):
    """A Brax environment whose states a browser can watch while any trainer steps it.

    Hand it to a stock trainer in place of `env`. What is learned stays bit-identical: the wrapper
    adds one small record per environment to `state.info` and reads the state, no more.

    Inside Brax's AutoResetWrapper, where trainers put it, the last pose of an episode is seen
    before the reset replaces it; around an AutoResetWrapper, the pose after the reset is.
    """

    def __init__(
        self,
        env: Env,
        *,
        grid: Sequence[int] = (8, 8),
        spacing: Sequence[float] | None = None,
        viewer: "Viewer | None" = None,
        role: str | None = None,
    ):
        """Wraps `env` and shows it.

        Args:
            env: a `brax.envs.Env` with a MuJoCo model, on any backend.
            grid: (columns, rows) or (columns, rows, layers): how many environments are drawn at
                most, and where. The trainer's other environments are not transferred.
            spacing: metres between neighbours, (x, y) or (x, y, z); None derives it from how far
                the robot reaches.
            viewer: a `Viewer` to share; None makes one, at http://127.0.0.1:8000 if it is free.
            role: "train" or "eval"; None tells them apart by who calls `step`.

        Raises:
            TypeError: `env` is not an environment, or a number is of the wrong type.
            ValueError: a value is out of its limits, `env` has no MuJoCo model, or it is wrapped
                already.
        """
        adapter = adapter_for(env)
        if any(isinstance(inner, VisualizedEnv) for inner in _wrappers(env)):
            raise ValueError("env is wrapped in VisualizedEnv already: wrap it once")
        if role not in (None, "train", "eval"):
            raise ValueError(f"role={role!r}: must be 'train', 'eval' or None")
        super().__init__(env)

        from brax_viser.scene.grid import Grid  # here, so that importing this module stays light
        from brax_viser.viewer import Viewer

        cells = Grid.of(adapter.mj_model, adapter.init_qpos, grid, spacing)
        self.viewer = Viewer() if viewer is None else viewer
        self._adapter = adapter
        self._role = role
        self._resets_inside = any(isinstance(e, AutoResetWrapper) for e in _wrappers(env))
        self._truncates_inside = any(isinstance(e, EpisodeWrapper) for e in _wrappers(env))
        self._host = self.viewer.attach(adapter, cells, role)

    def reset(self, rng: jax.Array) -> State:
        """The inner `reset`, with the wrapper's key in `info`. No call to the host."""
        self._host.traced(calling_trainer(read_arguments=True))
        state = self.env.reset(rng)
        return replace(state, info={**state.info, INFO_KEY: first_log(state.done)})

    def step(self, state: State, action: jax.Array) -> State:
        """The inner `step`, offered to the host.

        Raises:
            ValueError: `state` was not made by this wrapper's `reset`.
        """
        if INFO_KEY not in state.info:
            raise ValueError(
                f"state.info has no {INFO_KEY!r}: the state must come from this VisualizedEnv's "
                "reset or step, not from the env inside"
            )
        trainer = calling_trainer()
        self._host.traced(trainer)
        # The key is taken out, not just passed on: some envs build `info` anew in `step`, others
        # require its structure to stay as their own `reset` made it.
        info = dict(state.info)
        log, steps = info.pop(INFO_KEY), info.get("steps")
        begins = episode_begins(log, state.done, steps, resets_inside=self._resets_inside)
        state = self.env.step(replace(state, info=info), action)
        log = advance(log, begins, state.reward, self._terminated(state), steps)
        shard, num_shards = shard_of_this_device()
        countdown = emit(
            self._host,
            self._role or ("eval" if trainer and trainer.evaluating else "train"),
            log.countdown,
            shard,
            num_shards,
            {
                **self._adapter.payload(state),
                "episode_return": log.episode_return,
                "episode_length": log.episode_length,
                "since_termination": log.since_termination,
            },
            inspected=self._adapter.inspected(state),
            state_is_kept=trainer is not None and trainer.keeps_state,
        )
        log = log._replace(countdown=countdown)
        return replace(state, info={**state.info, INFO_KEY: log})

    def _terminated(self, state: State) -> jax.Array:
        """Whether the environment itself has ended the episode; running out of time is no end."""
        done = state.done > 0
        if self._truncates_inside:
            done &= state.info["truncation"] == 0
        return done


def _wrappers(env: Env) -> Iterator[Env]:
    """`env` and all that it is wrapped around, outermost first."""
    yield env
    while isinstance(env, Wrapper):
        env = env.env
        yield env
