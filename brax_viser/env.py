"""`VisualizedEnv`: the wrapper that lets a viewer see what a trainer steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from brax_viser.adapters import adapter_for
from brax_viser.emit import Payload, emit, shard_of_this_device
from brax_viser.episode import (
    EpisodeLog,
    advance,
    asked_of,
    counter_fell,
    evidence_of,
    first_log,
    no_evidence,
    over_batch,
)
from brax_viser.frame import COORDINATES
from brax_viser.trainer import calling_trainer, check_versions
from brax_viser.wrapping import (
    layers,
    of_kind,
    resets_inside,
    stand_in,
    truncates_inside,
    wrapper_class,
)

if TYPE_CHECKING:  # device code must not import viser, and the viewer does
    from brax.envs.base import Wrapper as AnyWrapper

    from brax_viser.viewer import Viewer
else:
    AnyWrapper = object  # Brax's or Playground's, as the environment is: see `__new__`

INFO_KEY = "brax_viser"
"""The one key that the wrapper keeps in `state.info`: an `episode.EpisodeLog`."""

KEPT_BY_RESETS = ("first_", "AutoReset")
"""What keys of `state.info` begin with in which known auto-reset wrappers keep first states."""

PRESERVED_KEY = "AutoResetWrapper_preserve_info"
"""The key of `state.info` that Playground's BraxAutoResetWrapper leaves alone when it replaces all
the rest: there our own is, in a dictionary, where that is possible."""


class VisualizedEnv(AnyWrapper):
    """An environment whose states a browser can watch while any trainer steps it.

    Hand it to a trainer in place of `env`. What is learned stays bit-identical: the wrapper adds
    one small record per environment to `state.info` and reads the state, no more. Of a Brax
    environment it makes a `brax.envs.Wrapper`, of one of MuJoCo Playground's a
    `mujoco_playground.wrapper.Wrapper`.

    It works in any place among the trainer's own wrappers. What is seen depends on it:

    * Inside of auto-resets (Brax's AutoResetWrapper, Playground's BraxAutoResetWrapper), where
      trainers put it, the last pose of an episode is seen before the reset replaces it; around
      them, the pose after the reset is seen instead.
    * Inside of an EpisodeWrapper each repeat of an action is seen; around it, the last one is.
    * Inside or outside of a vmap, and inside of Brax's EvalWrapper, makes no difference.
    * Wrappers for domain randomisation step `env.unwrapped`, past all that is in between. Inside
      of one, this wrapper hands out an `unwrapped` of the base's class, with the base's attributes,
      that comes by here; so `unwrapped` is not the very object that was wrapped.
    """

    def __new__(cls, env: Any = None, **_: Any) -> "VisualizedEnv":
        # Without an `env` it is being copied, and of its kind already.
        return object.__new__(cls if env is None else of_kind(cls, wrapper_class(env)))

    def __init__(
        self,
        env: Any,
        *,
        grid: Sequence[int] = (8, 8),
        spacing: Sequence[float] | None = None,
        viewer: "Viewer | None" = None,
        role: str | None = None,
        ctrl_fn: Callable[[jax.Array], jax.Array] | None = None,
    ):
        """Wraps `env` and shows it.

        Args:
            env: a `brax.envs.Env` with a MuJoCo model, on any backend, or a
                `mujoco_playground.MjxEnv`; wrapped in other wrappers or not.
            grid: (columns, rows) or (columns, rows, layers): how many environments are drawn at
                most, and where. The trainer's other environments are not transferred.
            spacing: metres between neighbours, (x, y) or (x, y, z); None derives it from how far
                the robot reaches.
            viewer: a `Viewer` to share; None makes one, at http://127.0.0.1:8000 if it is free, for
                all environments of this name: the page shows the last of them.
            role: "train" or "eval"; None tells them apart by who calls `step`.
            ctrl_fn: what the environment makes of an action before it goes to the physics: float
                [A] to float [nu], in JAX. Only for MuJoCo twins, and only where that cannot be
                seen, as of most environments it can: see `adapters.BraxAdapter.step`.

        Raises:
            TypeError: `env` is not an environment, or a number is of the wrong type.
            ValueError: a value is out of its limits, `env` has no MuJoCo model, or it is wrapped
                already.
        """
        adapter = adapter_for(env, ctrl_fn)
        if any(isinstance(inner, VisualizedEnv) for inner in layers(env)):
            raise ValueError("env is wrapped in VisualizedEnv already: wrap it once")
        if role not in (None, "train", "eval"):
            raise ValueError(f"role={role!r}: must be 'train', 'eval' or None")
        super().__init__(env)

        from brax_viser.scene.grid import Grid  # here, so that importing this module stays light
        from brax_viser.viewer import implicit_viewer

        cells = Grid.of(adapter.mj_model, adapter.init_qpos, grid, spacing)
        self.viewer = implicit_viewer(adapter.name) if viewer is None else viewer
        self._adapter = adapter
        self._role = role
        self._base: Any = env.unwrapped
        self._stand_in = stand_in(self, self._base)
        self._resets_inside = resets_inside(env)
        self._truncates_inside = truncates_inside(env)
        self._own_info: frozenset[str] | None = None  # keys of `info` that its `reset` makes
        self._host = self.viewer.attach(adapter, cells, role)

    @property
    def unwrapped(self) -> Any:
        """The base environment, of its own class and with its own attributes, whose `reset` and
        `step` are seen by the viewer. See `wrapping.stand_in`."""
        return self._stand_in

    def reset(self, rng: jax.Array) -> Any:
        """The inner `reset`, with the wrapper's key in `info`. No call to the host."""
        return self._reset(self.env, rng)

    def step(self, state: Any, action: jax.Array) -> Any:
        """The inner `step`, offered to the host.

        Raises:
            ValueError: `state` was not made by this wrapper's `reset`.
        """
        return self._step(self.env, state, action)

    def reset_base(self, rng: jax.Array) -> Any:
        """`reset` of the base environment, past the wrappers in between; see `unwrapped`."""
        return self._reset(self._base, rng)

    def step_base(self, state: Any, action: jax.Array) -> Any:
        """`step` of the base environment, past the wrappers in between; see `unwrapped`."""
        return self._step(self._base, state, action)

    def _reset(self, env: Any, rng: jax.Array) -> Any:
        trainer = calling_trainer(read_arguments=True)
        check_versions(trainer)
        self._host.traced(trainer)
        state = env.reset(rng)
        self._own_info = frozenset(state.info)
        num_links = self._adapter.mj_model.nbody - 1
        stamp, motion = self._host.stamp, self._adapter.motion(state)
        log = first_log(state.done, stamp, motion, num_links)
        return replace(state, info=self._with_log(state.info, log))

    def _step(self, env: Any, state: Any, action: jax.Array) -> Any:
        trainer = calling_trainer()
        self._host.traced(trainer)
        # The key is taken out, not just passed on: some envs build `info` anew in `step`, others
        # require its structure to stay as their own `reset` made it.
        info, log = self._without_log(state.info)
        log = asked_of(log, self._host.stamp)
        before = replace(state, info=info)
        state, ctrl = self._adapter.step(env, before, action)
        detail = self._adapter.detail(state, action, ctrl, self._own(state.info))
        payload = self._adapter.payload(state)
        log = self._advanced(log, before, state, payload)
        shard, num_shards = shard_of_this_device()
        countdown, granted_rows = emit(
            self._host,
            self._role or ("eval" if trainer and trainer.evaluating else "train"),
            log.countdown,
            log.granted_rows,
            shard,
            num_shards,
            {
                **payload,
                "episode_return": log.episode_return,
                "episode_length": log.episode_length,
                "since_termination": log.since_termination,
                "finished_return": log.finished_return,
                "finished_length": log.finished_length,
                "was_reset": log.was_reset,
            },
            inspected=self._adapter.inspected(state),
            model=self._adapter.randomised(),
            detail=detail,
            coordinates={name: detail[name] for name in COORDINATES if name in detail},
            last={"link_pos": log.last_pose[..., :3], "link_rot": log.last_pose[..., 3:]},
            state_is_kept=trainer is not None and trainer.keeps_state,
        )
        log = log._replace(countdown=countdown, granted_rows=granted_rows)
        return replace(state, info=self._with_log(state.info, log))

    def _advanced(self, log: EpisodeLog, before: Any, after: Any, payload: Payload) -> EpisodeLog:
        """The record after a step from one state to another, of which the payload is."""
        adapter = self._adapter
        # Where a wrapper that is known resets them, as in all of Brax's and Playground's trainers,
        # `done` and the trainer's count tell it all, and looking for more would cost each step.
        told = self._resets_inside or any(key.startswith(KEPT_BY_RESETS) for key in before.info)
        if told:
            evidence = no_evidence(log)
        else:
            moved = adapter.motion(after)
            steps_fell = counter_fell(self._made(before.info), after.info, after.done)
            evidence = evidence_of(
                log, adapter.motion(before), moved, adapter.moving, steps_fell, adapter.dt
            )
            log = log._replace(seen=moved.place)
        log = advance(
            log,
            evidence,
            after.reward,
            (before.done, after.done),
            self._terminated(after),
            before.info.get("steps"),
            (_pose_of(adapter.payload(before)), _pose_of(payload)),
            resets_inside=self._resets_inside,
        )
        return log if told else over_batch(log)

    def _made(self, info: dict[str, Any]) -> dict[str, Any]:
        """What of `info` the environment's own `reset` has made."""
        return {key: x for key, x in info.items() if key in (self._own_info or ())}

    def _terminated(self, state: Any) -> jax.Array:
        """Whether the environment itself has ended the episode; running out of time is no end."""
        done = state.done > 0
        if self._truncates_inside:
            done &= state.info["truncation"] == 0
        return done

    def _own(self, info: dict[str, Any]) -> dict[str, Any]:
        """`info` without what wrappers around this one keep there, as an episode's metrics: at this
        point that is of the step before still, and XLA would have to keep a copy of each piece of
        it, in every step, until the branch in which the host is called."""
        own = self._own_info
        return {key: x for key, x in info.items() if own is None or key in own}

    def _with_log(self, info: dict[str, Any], log: EpisodeLog) -> dict[str, Any]:
        preserved = info.get(PRESERVED_KEY, {})
        if self._adapter.info_can_be_replaced and isinstance(preserved, dict):
            return {**info, PRESERVED_KEY: {**preserved, INFO_KEY: log}}
        return {**info, INFO_KEY: log}

    def _without_log(self, info: dict[str, Any]) -> tuple[dict[str, Any], EpisodeLog]:
        info = dict(info)
        if INFO_KEY in info:
            return info, info.pop(INFO_KEY)
        preserved = info.get(PRESERVED_KEY)
        if not isinstance(preserved, dict) or INFO_KEY not in preserved:
            raise ValueError(
                f"state.info has no {INFO_KEY!r}: the state must come from this VisualizedEnv's "
                "reset or step, not from the env inside"
            )
        preserved = dict(preserved)
        log = preserved.pop(INFO_KEY)
        if preserved:
            info[PRESERVED_KEY] = preserved
        else:  # the environment has none of its own
            del info[PRESERVED_KEY]
        return info, log


def _pose_of(payload: Payload) -> jax.Array:
    """float32 [*batch, L, 7], of the arrays to show."""
    pose = jnp.concatenate([payload["link_pos"], payload["link_rot"]], axis=-1)
    return jax.lax.stop_gradient(pose).astype(jnp.float32)
