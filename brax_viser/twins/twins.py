"""Simulates twins: MuJoCo copies of environments, driven by the controls of the training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import mujoco
import numpy as np

from brax_viser.model.physics import varied
from brax_viser.model.rotations import angle_between
from brax_viser.model.shapes import roaming_body
from brax_viser.records.frame import Frame, Ghost
from brax_viser.twins.stepping import (
    STATE,
    Batch,
    Segment,
    Stepping,
    StepResult,
    Twin,
    TwinState,
    coordinates_of,
)

DRIFT_LIMIT = 0.1
"""m: up to this mean distance between their links, environment and twin count as agreeing."""

_ALIKE: Mapping[str, np.ndarray] = {}


class Twins:
    """The twins of the environments of one rollout. Used by one thread at a time.

    A twin starts from the environment's own qpos and qvel, and is stepped with the control that
    went to the training's physics in each of the following steps, with the same time step and
    number of substeps. After a missing step or a reset of the environment, it restarts from the
    environment's state.
    """

    def __init__(
        self, model: mujoco.MjModel, substeps: int, *, lags: bool, threads: int | None = None
    ):
        """Starts the threads; twins are made as frames come.

        Args:
            model: the training's, as `adapters.Adapter.mujoco_model` returns it; not changed.
            substeps: physics substeps per environment step; at least 1.
            lags: whether a frame's link poses are those before the last substep, as MJX and MuJoCo
                leave them after a step.
            threads: number of stepping threads besides the caller's; None: half of the processors,
                up to `MOST_THREADS`.
        """
        self.limit = DRIFT_LIMIT  # m
        self.every: int | None = None  # steps after which a twin restarts in any case
        self._model = model
        self._stepping = Stepping(model, substeps, lags=lags, threads=threads)
        self._moments: dict[int, TwinState] = {}  # last state by environment
        self._restarts = False
        # Never stepped: apart from the state that `_start` sets, it is in the model's initial
        # state. Making one per start would take longer than many steps.
        self._starting = mujoco.MjData(model)
        self._root = (roaming_body(model) or 1) - 1
        self._hinges = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE.value]
        balls = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_BALL.value]
        self._balls = balls[:, None] + np.arange(4)

    def close(self) -> None:
        """Ends the threads."""
        self._stepping.close()

    def restart(self) -> None:
        """Has all twins restart from their environments' states in the next frame."""
        self._restarts = True

    def touching(self, envs: Sequence[int]) -> np.ndarray:
        """Returns bool [len(envs)]: whether MuJoCo finds a penetrating contact of each twin."""
        known = [self._moments.get(env) for env in envs]
        found = [x is not None and not x.astray and self._stepping.touches(x) for x in known]
        return np.array(found, bool)

    def follow(
        self,
        frames: Sequence[Frame],
        rows: Sequence[int],
        own: Mapping[int, Mapping[str, np.ndarray]],
    ) -> list[Ghost]:
        """Steps the twins of some environments through one or more frames.

        Several frames at once cost less than one by one: MuJoCo and Python each find their data
        in the processor's caches.

        Args:
            frames: of the next batched steps, of the same environments; at least one. They have
                coordinates, including ctrl if the model has any actuator.
            rows: rows of the environments that have a twin.
            own: by environment, the fields in which its model differs from the shared one.

        Returns:
            The ghosts of each frame.
        """
        batch = Batch.of(frames, rows)
        segments: list[Segment] = []
        for slot, env in enumerate(batch.envs):
            known, mine = self._moments.get(env), own.get(env, _ALIKE)
            if known is not None and (self._restarts or known.twin.own is not mine):
                known = None
            segments += self._segments(batch, slot, range(len(frames)), known, mine)
        self._restarts = False
        results: list[StepResult] = []
        while segments:
            results.append(self._stepping.take(segments, batch))
            segments = self._lost(results[-1], batch)
        self._moments = {
            batch.envs[segment.slot]: those.last(at, batch)
            for those in results
            for at, segment in enumerate(those.segments)
            if segment.seen and segment.seen[-1][0] == len(frames) - 1
        }
        return self._ghosts(batch, results)

    def _segments(
        self,
        batch: Batch,
        slot: int,
        indices: Iterable[int],
        known: TwinState | None,
        own: Mapping[str, np.ndarray],
    ) -> list[Segment]:
        """Plans the segments that lead one twin from `known` to the frames in `indices`."""
        segment = Segment.after(slot, known) if known is not None else None
        segments = [segment] if segment is not None else []
        for index in indices:
            env_steps, episode_length = batch.env_steps[index], batch.episode_length[index][slot]
            if not batch.finite[index][slot]:
                segment = None
                continue
            if segment is not None and env_steps == segment.env_steps:
                pass  # the training is held, and the same step is shown again
            elif (
                segment is not None
                and env_steps == segment.env_steps + 1
                and episode_length == segment.episode_length + 1
                and (self.every is None or segment.before.steps + len(segment.steps) < self.every)
                and not segment.before.astray
            ):
                segment.steps.append(index)
                segment.env_steps, segment.episode_length = env_steps, episode_length
            else:
                segment = Segment.after(slot, self._start(batch, index, slot, own))
                segments.append(segment)
            segment.seen.append((index, len(segment.steps)))
        return segments

    def _start(
        self, batch: Batch, index: int, slot: int, own: Mapping[str, np.ndarray]
    ) -> TwinState:
        """Starts a twin in its environment's state."""
        frame, row = batch.frames[index], batch.rows[slot]
        coordinates = coordinates_of(frame)
        known = self._moments.get(batch.envs[slot])
        model = known.twin.model if known is not None and known.twin.own is own else None
        if model is None:
            model = varied(self._model, own) if own else self._model
        data = self._starting
        for name in ("qpos", "qvel", "act"):
            value = getattr(coordinates, name)
            if value is not None:
                getattr(data, name)[:] = value[row]
        state = np.zeros(mujoco.mj_stateSize(model, STATE))
        mujoco.mj_getState(model, data, state, STATE)
        return TwinState(
            Twin(model, own),
            0,
            state,
            np.zeros(model.nv),
            frame.link_pos[row],
            frame.link_rot[row],
            frame.env_steps,
            batch.episode_length[index][slot],
        )

    def _lost(self, result: StepResult, batch: Batch) -> list[Segment]:
        """Plans segments that restart diverged twins, for the frames after the divergence."""
        again: list[Segment] = []
        for at, sound in result.sound.items():
            segment = result.segments[at]
            lost = [index for index, steps in segment.seen if steps > sound + 1]
            segment.seen = [(index, steps) for index, steps in segment.seen if steps <= sound + 1]
            again += self._segments(batch, segment.slot, lost, None, segment.before.twin.own)
        return again

    def _ghosts(self, batch: Batch, results: Sequence[StepResult]) -> list[Ghost]:
        """Returns the ghosts of each frame."""
        frames = batch.frames
        shape, links = (len(frames), len(frames[0].env_index)), frames[0].link_pos.shape[1]
        ghosts = Ghost(
            np.zeros(shape, bool),
            np.full((*shape, links, 3), np.nan, np.float32),
            np.full((*shape, links, 4), np.nan, np.float32),
            *(np.full(shape, np.nan, np.float32) for _ in range(5)),
        )
        for those in results:
            self._compare(ghosts, batch, those)
        values = [getattr(ghosts, x.name) for x in fields(Ghost)]
        return [Ghost(*(x[i] for x in values)) for i in range(len(frames))]

    def _compare(self, ghosts: Ghost, batch: Batch, result: StepResult) -> None:
        """Fills in [F, K]: where the twins are and how far they are from their environments."""
        seen = [
            (index, segment.slot, begin + steps, segment.before.steps + steps)
            for segment, begin in zip(result.segments, result.begins, strict=True)
            for index, steps in segment.seen
        ]
        if not seen:
            return
        # All at once: one by one, numpy would take as much time as MuJoCo.
        index, slot, moment, steps = np.array(seen).T
        into, there, pos = (index, batch.rows[slot]), (index, slot), result.link_pos[moment]
        away = np.linalg.norm(pos - batch.link_pos[there], axis=2)
        seconds, bodies = self._stepping.step_seconds * steps, away.mean(axis=1)
        ghosts.there[into], ghosts.link_pos[into] = True, pos
        ghosts.link_rot[into] = result.link_rot[moment]
        ghosts.seconds[into], ghosts.bodies[into] = seconds, bodies
        ghosts.root[into] = away[:, self._root]
        ghosts.joints[into] = self._joint_errors(result.states[moment], batch.qpos[there])
        twins = (segment.before.twin for segment in result.segments for _ in segment.seen)
        ghosts.passed[into] = [
            twin.passes(when, distance, self.limit)
            for twin, when, distance in zip(twins, seconds.tolist(), bodies.tolist(), strict=True)
        ]

    def _joint_errors(self, states: np.ndarray, its: np.ndarray) -> np.ndarray:
        """Returns rad [M]: mean angle over hinges and balls between states of twins, [M, S], and
        qpos of environments, [M, nq]. NaN if the model has neither."""
        mine = states[:, 1 : 1 + self._model.nq]
        if not len(self._hinges) + len(self._balls):
            return np.full(len(mine), np.nan)
        # Some backends keep angles within a turn, others count the turns.
        turned = mine[:, self._hinges] - its[:, self._hinges] + np.pi
        found = np.abs(turned % (2 * np.pi) - np.pi)
        if len(self._balls):
            balls = angle_between(mine[:, self._balls], its[:, self._balls])
            found = np.concatenate([found, balls], axis=1)
        return found.mean(axis=1)
