"""MuJoCo simulations that are driven by what the policy does in the training, beside it."""

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
    Course,
    Moment,
    Run,
    Stepping,
    Taken,
    Twin,
    coordinates_of,
)

DRIFT_LIMIT = 0.1
"""m, mean distance between the links of the two, up to which they count as agreeing."""

_ALIKE: Mapping[str, np.ndarray] = {}


class Twins:
    """Simulations of the environments of one rollout. Used by one thread at a time.

    A twin starts from the environment's own qpos and qvel, and is stepped with the control that
    went to the training's physics in each of the following steps, by the same time step and as
    often. Where a step is missing, or the environment was reset, it starts anew from where the
    environment is.
    """

    def __init__(
        self, model: mujoco.MjModel, substeps: int, *, lags: bool, threads: int | None = None
    ):
        """Makes none yet.

        Args:
            model: of the training, as `adapters.Adapter.mujoco_model` gives it; is not changed.
            substeps: of the physics, per environment step; at least 1.
            lags: whether the links of a frame are where they were before the last substep, as MJX
                and MuJoCo itself leave them behind.
            threads: that step, besides the caller's; None: half of the processors.
        """
        self.limit = DRIFT_LIMIT  # m
        self.every: int | None = None  # steps after which to start anew, all the same
        self._model = model
        self._stepping = Stepping(model, substeps, lags=lags, threads=threads)
        self._moments: dict[int, Moment] = {}  # by environment, the last
        self._anew = False
        # Is never stepped: but for what it is given, it is as the model begins. To make one for
        # each start would take longer than many steps.
        self._starting = mujoco.MjData(model)
        self._root = (roaming_body(model) or 1) - 1
        self._hinges = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE.value]
        balls = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_BALL.value]
        self._balls = balls[:, None] + np.arange(4)

    def close(self) -> None:
        """Ends the threads."""
        self._stepping.close()

    def start_anew(self) -> None:
        """With the next frame all twins start from where their environments are then."""
        self._anew = True

    def touching(self, envs: Sequence[int]) -> np.ndarray:
        """bool, for each of these environments: whether MuJoCo finds any contact of its twin."""
        known = [self._moments.get(env) for env in envs]
        found = [x is not None and not x.astray and self._stepping.touches(x) for x in known]
        return np.array(found, bool)

    def follow(
        self,
        frames: Sequence[Frame],
        rows: Sequence[int],
        own: Mapping[int, Mapping[str, np.ndarray]],
    ) -> list[Ghost]:
        """Steps the twins of some environments to a frame, and on to those after it.

        Several frames at once cost less than one by one: MuJoCo and Python each find in the
        processor's caches what they need again.

        Args:
            frames: of the next batched steps, of the same environments; one at least. They have
                coordinates, and their ctrl if the model has any actuator.
            rows: which of the environments have a twin.
            own: by environment, in what its model differs from the one that is shared.
        """
        course = Course.of(frames, rows)
        runs: list[Run] = []
        for slot, env in enumerate(course.envs):
            known, mine = self._moments.get(env), own.get(env, _ALIKE)
            if known is not None and (self._anew or known.twin.own is not mine):
                known = None
            runs += self._runs(course, slot, range(len(frames)), known, mine)
        self._anew = False
        taken: list[Taken] = []
        while runs:
            taken.append(self._stepping.take(runs, course))
            runs = self._lost(taken[-1], course)
        self._moments = {
            course.envs[run.slot]: those.last(at, course)
            for those in taken
            for at, run in enumerate(those.runs)
            if run.seen and run.seen[-1][0] == len(frames) - 1
        }
        return self._ghosts(course, taken)

    def _runs(
        self,
        course: Course,
        slot: int,
        indices: Iterable[int],
        known: Moment | None,
        own: Mapping[str, np.ndarray],
    ) -> list[Run]:
        """How one twin gets to some of the frames, in their order; `known` is where it was."""
        run = Run.after(slot, known) if known is not None else None
        runs = [run] if run is not None else []
        for index in indices:
            env_steps, episode_length = course.env_steps[index], course.episode_length[index][slot]
            if not course.finite[index][slot]:
                run = None
                continue
            if run is not None and env_steps == run.env_steps:
                pass  # the training is held, and is looked at again
            elif (
                run is not None
                and env_steps == run.env_steps + 1
                and episode_length == run.episode_length + 1
                and (self.every is None or run.before.steps + len(run.steps) < self.every)
                and not run.before.astray
            ):
                run.steps.append(index)
                run.env_steps, run.episode_length = env_steps, episode_length
            else:
                run = Run.after(slot, self._start(course, index, slot, own))
                runs.append(run)
            run.seen.append((index, len(run.steps)))
        return runs

    def _start(
        self, course: Course, index: int, slot: int, own: Mapping[str, np.ndarray]
    ) -> Moment:
        """A twin that is where its environment is."""
        frame, row = course.frames[index], course.rows[slot]
        coordinates = coordinates_of(frame)
        known = self._moments.get(course.envs[slot])
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
        return Moment(
            Twin(model, own),
            0,
            state,
            np.zeros(model.nv),
            frame.link_pos[row],
            frame.link_rot[row],
            frame.env_steps,
            course.episode_length[index][slot],
        )

    def _lost(self, taken: Taken, course: Course) -> list[Run]:
        """How twins that went astray get to the frames after that: anew."""
        again: list[Run] = []
        for at, sound in taken.sound.items():
            run = taken.runs[at]
            lost = [index for index, steps in run.seen if steps > sound + 1]
            run.seen = [(index, steps) for index, steps in run.seen if steps <= sound + 1]
            again += self._runs(course, run.slot, lost, None, run.before.twin.own)
        return again

    def _ghosts(self, course: Course, taken: Sequence[Taken]) -> list[Ghost]:
        """Of each frame."""
        frames = course.frames
        shape, links = (len(frames), len(frames[0].env_index)), frames[0].link_pos.shape[1]
        ghosts = Ghost(
            np.zeros(shape, bool),
            np.full((*shape, links, 3), np.nan, np.float32),
            np.full((*shape, links, 4), np.nan, np.float32),
            *(np.full(shape, np.nan, np.float32) for _ in range(5)),
        )
        for those in taken:
            self._compare(ghosts, course, those)
        values = [getattr(ghosts, x.name) for x in fields(Ghost)]
        return [Ghost(*(x[i] for x in values)) for i in range(len(frames))]

    def _compare(self, ghosts: Ghost, course: Course, taken: Taken) -> None:
        """Fills in where twins are and how far that is from their environments, by [F, K]."""
        seen = [
            (index, run.slot, begin + steps, run.before.steps + steps)
            for run, begin in zip(taken.runs, taken.begins, strict=True)
            for index, steps in run.seen
        ]
        if not seen:
            return
        # All at once: by one each, as much time would go into numpy as into MuJoCo.
        index, slot, moment, steps = np.array(seen).T
        into, there, pos = (index, course.rows[slot]), (index, slot), taken.link_pos[moment]
        away = np.linalg.norm(pos - course.link_pos[there], axis=2)
        seconds, bodies = self._stepping.step_seconds * steps, away.mean(axis=1)
        ghosts.there[into], ghosts.link_pos[into] = True, pos
        ghosts.link_rot[into] = taken.link_rot[moment]
        ghosts.seconds[into], ghosts.bodies[into] = seconds, bodies
        ghosts.root[into] = away[:, self._root]
        ghosts.joints[into] = self._joint_errors(taken.states[moment], course.qpos[there])
        twins = (run.before.twin for run in taken.runs for _ in run.seen)
        ghosts.passed[into] = [
            twin.passes(when, distance, self.limit)
            for twin, when, distance in zip(twins, seconds.tolist(), bodies.tolist(), strict=True)
        ]

    def _joint_errors(self, states: np.ndarray, its: np.ndarray) -> np.ndarray:
        """rad, [M]: the mean over hinges and balls, between states of twins, [M, S], and qpos of
        environments, [M, nq]. NaN where the model has neither."""
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
