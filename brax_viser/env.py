"""Wraps an environment so that a viewer shows it while a trainer steps it: `VisualizedEnv`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from brax_viser.device.adapters import Adapter, adapter_for
from brax_viser.device.emit import Payload, emit, shard_of_this_device
from brax_viser.device.episode import (
    EpisodeLog,
    advance,
    asked_of,
    counter_fell,
    evidence_of,
    first_log,
)
from brax_viser.device.log_in_info import has_log, with_log, without_log
from brax_viser.device.replaced import over_batch
from brax_viser.device.states import (
    batch_of,
    count_of,
    done_of,
    info_of,
    numbers_of,
    physics_of,
    poses_of,
    recorded_of,
    replaced,
)
from brax_viser.device.tie import tied
from brax_viser.device.trainers import calling_trainer, check_versions
from brax_viser.device.wrappers import (
    StandIn,
    attribute,
    base_of,
    deep_copied,
    empty_of,
    layers,
    of_kind,
    resets_inside,
    truncates_inside,
    with_modules,
    within,
    without_modules,
    wrapper_class,
)

if TYPE_CHECKING:  # device code must not import viser, but the viewer does
    import mujoco
    from brax.envs.base import Wrapper as AnyWrapper

    from brax_viser.host.callbacks import Callbacks
    from brax_viser.viewer import Viewer
else:
    AnyWrapper = object  # Brax's or Playground's, like the environment: see `__new__`

KEPT_BY_RESETS = ("first_", "AutoReset")
"""Prefixes of the keys of `state.info` in which known auto-reset wrappers keep first states."""


def _read(env: Any, **reading: Any) -> Adapter:
    """Returns the adapter of an environment, whose numbers stay numbers while a trainer traces."""
    with jax.ensure_compile_time_eval():
        return adapter_for(env, **reading)


class VisualizedEnv(AnyWrapper):
    """An environment whose states a browser shows while any trainer steps it.

    Pass it to a trainer in place of `env`. The wrapper only adds one small record per environment
    to `state.info` and reads the state: what is learned stays the same, as XLA rounds it. It is a
    `brax.envs.Wrapper` around a Brax environment, and a `mujoco_playground.wrapper.Wrapper` around
    one of MuJoCo Playground.

    It works anywhere among the trainer's own wrappers, but its place decides what the page shows:

    * Inside auto-resets (Brax's AutoResetWrapper, Playground's BraxAutoResetWrapper), where
      trainers put it, the page shows the last pose of an episode before the reset replaces it;
      around them, it shows the pose after the reset instead.
    * Inside an EpisodeWrapper, each repeat of an action is shown; around it, only the last.
    * Inside or outside a vmap, or inside Brax's EvalWrapper, makes no difference.
    * Wrappers for domain randomisation step `env.unwrapped` and so skip all wrappers in between.
      Inside one, this wrapper returns an `unwrapped` with the base's class and attributes whose
      steps still pass through this wrapper; so it is not the same object as the base.

    Shallow and deep copies are shown by the same viewer once they are reset or stepped, and so are
    copies unpickled in the same process. In another process, such as a Ray worker, `viewer` is None
    and the inner environment is stepped without being shown, until `viewer` is set.
    """

    env: Any

    def __new__(cls, env: Any = None, **_: Any) -> "VisualizedEnv":
        # No `env`: a copy is being made, whose class is the right one already.
        return object.__new__(cls if env is None else of_kind(cls, wrapper_class(within(env))))

    def __init__(
        self,
        env: Any,
        *,
        grid: Sequence[int] = (8, 8),
        spacing: Sequence[float] | None = None,
        viewer: "Viewer | None" = None,
        role: str | None = None,
        ctrl_fn: Callable[[jax.Array], jax.Array] | None = None,
        mj_model: "mujoco.MjModel | None" = None,
    ):
        """Wraps `env` and shows it.

        Args:
            env: a `brax.envs.Env` with a MuJoCo model, on any backend, or a
                `mujoco_playground.MjxEnv`; wrapped in other wrappers or not. Objects of any class
                are accepted if they have their `reset` and `step` and keep the physics in the
                state: an `mjx.Data`, or a Brax pipeline state. If `env` gives neither the seconds
                of a step (`dt`) nor the number of physics steps in it (`n_frames` or a similar
                name), one physics step per step is assumed.
            grid: (columns, rows) or (columns, rows, layers) of the cells in which environments are
                drawn, one per cell. The trainer's other environments are not transferred to the
                host.
            spacing: metres between neighbours, (x, y) or (x, y, z); None derives it from the
                robot's reach.
            viewer: a `Viewer` to share; None makes one, at http://127.0.0.1:8000 if it is free, for
                all environments of this name: the page shows the last of them.
            role: "train" or "eval"; None detects it from the caller of `step`.
            ctrl_fn: how the environment converts an action to the physics' controls: float [A] to
                float [nu], in JAX. Used only for MuJoCo twins, and needed only if the controls
                cannot be read, which is rare: see `adapters.BraxAdapter.step`.
            mj_model: the model that `env` was made from; None looks for it among the attributes of
                `env`, under any name. Later changes to the model have no effect here.

        Raises:
            TypeError: `env` is not an environment, or another argument has the wrong type.
            ValueError: a value is outside its limits, `env` has no MuJoCo model or one that does
                not match the model that it steps, or it is wrapped already.
        """
        env = within(env)  # another wrapper's `unwrapped` means the base, for a separate viewer
        adapter = adapter_for(env, ctrl_fn, mj_model)
        if any(isinstance(inner, VisualizedEnv) for inner in layers(env)):
            raise ValueError("env is wrapped in VisualizedEnv already: wrap it once")
        if role not in (None, "train", "eval"):
            raise ValueError(f"role={role!r}: must be 'train', 'eval' or None")
        super().__init__(env)

        from brax_viser.viewer import implicit_viewer  # so that importing this module stays cheap

        self._layout = {"grid": grid, "spacing": spacing}
        self._reading = {"ctrl_fn": ctrl_fn, "mj_model": mj_model}
        self._role = role
        self._resets_inside = resets_inside(env)
        self._truncates_inside = truncates_inside(env)
        self._own_info: frozenset[str] | None = None  # keys of `info` after `env.reset`
        cells = self._cells(adapter)
        self._viewer: Any = implicit_viewer(adapter.name) if viewer is None else viewer
        self._adapter: Adapter | None = adapter
        self._host: Any = self._viewer.attach(adapter, cells, role)

    @property
    def viewer(self) -> "Viewer":
        """The viewer that shows the environment; None after unpickling in another process. Setting
        it affects the programs that are compiled, and the states that are reset, afterwards."""
        return self._viewer

    @viewer.setter
    def viewer(self, viewer: "Viewer | None") -> None:
        self._viewer, self._host = viewer, None
        self._shown_by()

    @property
    def unwrapped(self) -> Any:
        """An object with the base environment's class and attributes, whose `reset` and `step` pass
        through this wrapper. See `wrappers.StandIn`."""
        found = vars(self).get("_stand_in")
        if found is None:
            found = self._stand_in = StandIn(self, base_of(self.env))
        return found

    def reset(self, *args: Any, **named: Any) -> Any:
        """Resets the inner environment and adds the record to `info`. Does not call the host."""
        return self._reset(self.env, *args, **named)

    def step(self, state: Any, action: jax.Array, *args: Any, **named: Any) -> Any:
        """Steps the inner environment and offers the step to the host.

        Raises:
            ValueError: `state` was not made by this wrapper's `reset`.
        """
        return self._step(self.env, state, action, *args, **named)

    def reset_base(self, base: Any, *args: Any, **named: Any) -> Any:
        """Resets the base environment, skipping the wrappers in between; see `unwrapped`."""
        return self._reset(base, *args, **named)

    def step_base(self, base: Any, state: Any, action: Any, *args: Any, **named: Any) -> Any:
        """Steps the base environment, skipping the wrappers in between; see `unwrapped`."""
        return self._step(base, state, action, *args, **named)

    def __copy__(self) -> "VisualizedEnv":
        return _copy_of(self, self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> "VisualizedEnv":
        new = memo[id(self)] = _copy_of(self, {})
        state = self.__getstate__()
        new.__setstate__({"env": deep_copied(state.pop("env"), memo), **copy.deepcopy(state, memo)})
        return new

    def __reduce__(self) -> Any:
        state = self.__getstate__()
        return empty_of, _kind_of(self), {**state, "env": without_modules(self.env)}

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes to copy: all but those that attach this object to the viewer."""
        return {k: v for k, v in vars(self).items() if k not in ("_adapter", "_host", "_stand_in")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _adapter=None, _host=None)
        if "env" in state:
            with_modules(self.env)

    def _cells(self, adapter: Adapter) -> Any:
        from brax_viser.model.grid import grid_of

        return grid_of(adapter.mj_model, adapter.init_qpos, **self._layout)

    def _shown_by(self) -> "Callbacks | None":
        """Returns the host's callbacks. Attaches a copy to the viewer when it is first used."""
        viewer = self._viewer
        if self._host is None and viewer is not None and not viewer._shared.control.closed:
            self._adapter = _read(self.env, **self._reading)
            self._host = viewer.attach(self._adapter, self._cells(self._adapter), self._role)
        return self._host

    def _reset(self, env: Any, *args: Any, **named: Any) -> Any:
        trainer = calling_trainer(read_arguments=True)
        check_versions(trainer)
        if (host := self._shown_by()) is None:
            return env.reset(*args, **named)
        assert self._adapter is not None
        host.traced(trainer)
        state = env.reset(*args, **named)
        info = info_of(state)
        self._adapter.check(state)
        self._own_info = frozenset(info)
        log = first_log(
            done_of(state, batch_of(state)),
            host.stamp,
            self._adapter.motion(state),
            self._adapter.mj_model.nbody - 1,
        )
        return with_log(state, log)

    def _step(self, env: Any, state: Any, action: Any, *args: Any, **named: Any) -> Any:
        trainer = calling_trainer()
        if (host := self._shown_by()) is None:
            return self._step_unseen(env, state, action, *args, **named)
        assert self._adapter is not None
        host.traced(trainer)
        # Remove the key before the step: some envs build a new `info` in `step`, others require the
        # structure that their own `reset` made.
        info, log = without_log(info_of(state))
        log = asked_of(log, host.stamp)
        before = replaced(state, info=info)
        state, ctrl = self._adapter.step(env, before, action, *args, **named)
        payload = self._adapter.payload(state)
        detail = self._adapter.detail(state, action, ctrl, self._own(info_of(state)))
        log = self._advanced(log, before, state, payload)
        shard, num_shards = shard_of_this_device()
        countdown, granted_rows, nonfinite = emit(
            host,
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
            coordinates=recorded_of(detail, before),
            last={"link_pos": log.last_pos, "link_rot": log.last_rot},
            nonfinite=log.nonfinite,
            state_is_kept=trainer is not None and trainer.keeps_state,
        )
        log = log._replace(countdown=countdown, granted_rows=granted_rows, nonfinite=nonfinite)
        return with_log(tied(state, countdown), log)

    def _advanced(self, log: EpisodeLog, before: Any, after: Any, payload: Payload) -> EpisodeLog:
        """Returns the record after the step from `before` to `after`, whose payload is given."""
        adapter, batch = self._adapter, log.countdown.shape
        assert adapter is not None
        told = self._resets_inside or any(key.startswith(KEPT_BY_RESETS) for key in before.info)
        moved = adapter.motion(after)
        evidence = evidence_of(
            log,
            adapter.motion(before),
            moved,
            adapter.moving,
            counter_fell(log, *(numbers_of(x, self._own_info or ()) for x in (before, after))),
            done_of(after, batch) > 0,
            adapter.dt,
            told=told,
        )
        log = log._replace(seen=moved.place)
        log = advance(
            log,
            evidence,
            payload["reward"],
            (done_of(before, batch), done_of(after, batch)),
            self._terminated(after, batch),
            count_of(before.info, "steps", batch),
            (payload["link_pos"], payload["link_rot"]),
            None if told and not self._resets_inside else poses_of(physics_of(before)),
            resets_inside=self._resets_inside,
        )
        # Known auto-resets keep the record; others may replace it by that of a reset.
        return log if told else over_batch(log)

    def _step_unseen(self, env: Any, state: Any, *args: Any, **named: Any) -> Any:
        """Steps without a viewer. If the state has a record, it is kept unchanged."""
        if not has_log(attribute(state, "info")):
            return env.step(state, *args, **named)
        info, log = without_log(state.info)
        state = env.step(replaced(state, info=info), *args, **named)
        return with_log(state, log)

    def _terminated(self, state: Any, batch: tuple[int, ...]) -> jax.Array:
        """Whether the environment itself has ended the episode; a time limit does not count."""
        done = done_of(state, batch) > 0
        truncated = count_of(state.info, "truncation", batch) if self._truncates_inside else None
        return done if truncated is None else done & (truncated == 0)

    def _own(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Drops the entries of `info` that outer wrappers add, such as an episode's metrics: they
        are stale here, and passing them to `emit` would make XLA copy them at every step."""
        own = self._own_info
        return {key: x for key, x in info.items() if own is None or key in own}


def _kind_of(env: VisualizedEnv) -> tuple[type, type]:
    """Returns the arguments of `wrappers.of_kind` that made its class."""
    cls = type(env)
    return vars(cls).get("made_of", (cls, cls))


def _copy_of(env: VisualizedEnv, state: dict[str, Any]) -> VisualizedEnv:
    new = empty_of(*_kind_of(env))
    new.__setstate__(state)
    return new
