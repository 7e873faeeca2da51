"""MuJoCo simulations that are driven by what the policy does in the training, beside it."""

import os
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import mujoco
import numpy as np
from mujoco.rollout import Rollout

from brax_viser.frame import Coordinates, Frame, Ghost
from brax_viser.scene.physics import varied
from brax_viser.scene.quaternions import angle_between
from brax_viser.scene.shapes import roaming_body

DRIFT_LIMIT = 0.1
"""m, mean distance between the links of the two, up to which they count as agreeing."""

MOST_THREADS = 4
"""A twin takes tens of microseconds a step: more threads would only wait for each other."""

NICENESS = 10
"""Of the threads that step, added to the training's own: where that takes all processors, they get
a tenth of one. With the most there is, 19, they would not keep up there."""

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
_ALIKE: Mapping[str, np.ndarray] = {}


@dataclass(eq=False)
class _Twin:
    """One environment's, from where it started to where it starts anew."""

    model: mujoco.MjModel
    own: Mapping[str, np.ndarray]  # in what the model differs from the one that is shared
    passed: float = np.inf  # s after which the threshold was passed

    def passes(self, seconds: float, distance: float, limit: float) -> float:
        """Takes note of where it is; returns `passed`, inf until then."""
        # What has no distance has no limit that it would keep.
        if not distance <= limit:
            self.passed = min(self.passed, seconds)
        return self.passed


@dataclass(frozen=True, eq=False)
class _Moment:
    """A twin, after a step that was seen of its environment."""

    twin: _Twin
    steps: int  # since both were the same
    state: np.ndarray  # float64 [S], of `_STATE`
    warmstart: np.ndarray  # float64 [nv], where MuJoCo's solver begins
    link_pos: np.ndarray  # float32 [L, 3], m
    link_rot: np.ndarray  # float32 [L, 4], wxyz
    env_steps: int  # batched, of the rollout
    episode_length: int
    astray: bool = False  # its numbers are no longer finite


@dataclass(eq=False)
class _Run:
    """Steps of a twin that follow each other, all to be taken at once."""

    slot: int  # of its environment in the course
    before: _Moment
    env_steps: int  # after the last of the steps; batched, of the rollout
    episode_length: int  # likewise
    steps: list[int] = field(default_factory=list)  # to which frame each of them leads
    seen: list[tuple[int, int]] = field(default_factory=list)  # (frame, after how many steps)

    @classmethod
    def after(cls, slot: int, moment: _Moment) -> "_Run":
        return cls(slot, moment, moment.env_steps, moment.episode_length)


@dataclass(frozen=True, eq=False)
class _Course:
    """F frames that follow each other, of T environments that have a twin."""

    frames: Sequence[Frame]
    rows: np.ndarray  # int [T], of the environments in the frames
    envs: list[int]  # T of them
    env_steps: list[int]  # F of them; batched, of the rollout
    episode_length: list[list[int]]  # [F][T]
    finite: list[list[bool]]  # [F][T], whether there is a place to start from
    link_pos: np.ndarray  # float32 [F, T, L, 3], m
    qpos: np.ndarray  # float32 [F, T, nq]
    # Float64 [F, T, C]: what a step is taken with, in the order of `mujoco.mjtState`.
    control: np.ndarray
    mocap: tuple[np.ndarray, np.ndarray] | None  # float32 [F, T, nmocap, 3], [F, T, nmocap, 4]

    @classmethod
    def of(cls, frames: Sequence[Frame], rows: Sequence[int]) -> "_Course":
        chosen, shape = np.array(rows, int), (len(frames), len(rows))
        each = [_coordinates(frame) for frame in frames]

        def of_all(name: str) -> np.ndarray | None:
            values = [getattr(coordinates, name) for coordinates in each]
            if any(x is None for x in values):
                return None
            return np.stack([x[chosen] for x in values])

        qpos, pos, quat = of_all("qpos"), of_all("mocap_pos"), of_all("mocap_quat")
        assert qpos is not None
        ctrl, motion = of_all("ctrl"), (of_all("qvel"), of_all("act"))
        known = np.concatenate([qpos, *(x for x in (ctrl, *motion) if x is not None)], axis=2)
        given = [x.reshape(*shape, -1) for x in (ctrl, pos, quat) if x is not None]
        return cls(
            frames,
            chosen,
            frames[0].env_index[chosen].tolist(),
            [frame.env_steps for frame in frames],
            [frame.episode_length[chosen].tolist() for frame in frames],
            np.array(np.isfinite(known).all(axis=2)).tolist(),
            np.stack([frame.link_pos[chosen] for frame in frames]),
            qpos,
            np.concatenate([np.zeros((*shape, 0)), *given], axis=2),
            (pos, quat) if pos is not None and quat is not None else None,
        )


@dataclass(frozen=True, eq=False)
class _Taken:
    """Runs whose steps are taken. Of each its moments follow each other in the P moments of all:
    where it was before its steps, and then after each of them."""

    runs: Sequence[_Run]
    begins: Sequence[int]  # of each run, its first moment
    states: np.ndarray  # float64 [P, S], of `_STATE`
    warmstarts: np.ndarray  # float64 [P, nv]
    link_pos: np.ndarray  # float32 [P, L, 3], m
    link_rot: np.ndarray  # float32 [P, L, 4], wxyz
    # Of the runs that went astray, by their place among them, after how many steps: with the next.
    sound: Mapping[int, int]

    def last(self, at: int, course: _Course) -> _Moment:
        """Of one of the runs, the last that was seen."""
        run = self.runs[at]
        steps = run.seen[-1][1]
        if not steps:
            return run.before
        index, moment = run.steps[steps - 1], self.begins[at] + steps
        return _Moment(
            run.before.twin,
            run.before.steps + steps,
            self.states[moment],
            self.warmstarts[moment],
            self.link_pos[moment],
            self.link_rot[moment],
            course.env_steps[index],
            course.episode_length[index][run.slot],
            astray=steps > self.sound.get(at, steps),
        )


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
        self._model, self._substeps, self._lags = model, substeps, lags
        self._step_seconds = substeps * model.opt.timestep
        self._moments: dict[int, _Moment] = {}  # by environment, the last
        self._anew = False
        self._spec = mujoco.mjtState.mjSTATE_CTRL
        if model.nmocap:
            self._spec |= mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
        if threads is None:
            threads = min(max((os.cpu_count() or 1) // 2, 1), MOST_THREADS)
        self._data = [mujoco.MjData(model) for _ in range(max(threads, 1))]
        self._pool = _modest_pool(threads)
        self._placed = mujoco.MjData(model)
        # Is never stepped: but for what it is given, it is as the model begins. To make one for
        # each start would take longer than many steps.
        self._starting = mujoco.MjData(model)
        self._root = (roaming_body(model) or 1) - 1
        self._hinges = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE.value]
        balls = model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_BALL.value]
        self._balls = balls[:, None] + np.arange(4)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()

    def start_anew(self) -> None:
        """With the next frame all twins start from where their environments are then."""
        self._anew = True

    def touching(self, envs: Sequence[int]) -> np.ndarray:
        """bool, for each of these environments: whether MuJoCo finds any contact of its twin."""
        found = []
        for env in envs:
            moment, data = self._moments.get(env), self._placed
            if moment is not None and not moment.astray:
                data.qpos[:] = moment.state[1 : 1 + self._model.nq]
                mujoco.mj_fwdPosition(moment.twin.model, data)
                found.append(bool((data.contact.dist < 0).any()))
            else:
                found.append(False)
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
        course = _Course.of(frames, rows)
        runs: list[_Run] = []
        for slot, env in enumerate(course.envs):
            known, mine = self._moments.get(env), own.get(env, _ALIKE)
            if known is not None and (self._anew or known.twin.own is not mine):
                known = None
            runs += self._runs(course, slot, range(len(frames)), known, mine)
        self._anew = False
        taken: list[_Taken] = []
        while runs:
            taken.append(self._take(runs, course))
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
        course: _Course,
        slot: int,
        indices: Iterable[int],
        known: _Moment | None,
        own: Mapping[str, np.ndarray],
    ) -> list[_Run]:
        """How one twin gets to some of the frames, in their order; `known` is where it was."""
        run = _Run.after(slot, known) if known is not None else None
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
                run = _Run.after(slot, self._start(course, index, slot, own))
                runs.append(run)
            run.seen.append((index, len(run.steps)))
        return runs

    def _start(
        self, course: _Course, index: int, slot: int, own: Mapping[str, np.ndarray]
    ) -> _Moment:
        """A twin that is where its environment is."""
        frame, row = course.frames[index], course.rows[slot]
        coordinates = _coordinates(frame)
        known = self._moments.get(course.envs[slot])
        model = known.twin.model if known is not None and known.twin.own is own else None
        if model is None:
            model = varied(self._model, own) if own else self._model
        data = self._starting
        for name in ("qpos", "qvel", "act"):
            value = getattr(coordinates, name)
            if value is not None:
                getattr(data, name)[:] = value[row]
        state = np.zeros(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, state, _STATE)
        return _Moment(
            _Twin(model, own),
            0,
            state,
            np.zeros(model.nv),
            frame.link_pos[row],
            frame.link_rot[row],
            frame.env_steps,
            course.episode_length[index][slot],
        )

    def _lost(self, taken: _Taken, course: _Course) -> list[_Run]:
        """How twins that went astray get to the frames after that: anew."""
        again: list[_Run] = []
        for at, sound in taken.sound.items():
            run = taken.runs[at]
            lost = [index for index, steps in run.seen if steps > sound + 1]
            run.seen = [(index, steps) for index, steps in run.seen if steps <= sound + 1]
            again += self._runs(course, run.slot, lost, None, run.before.twin.own)
        return again

    def _take(self, runs: Sequence[_Run], course: _Course) -> _Taken:
        """Takes all steps of runs."""
        before = [run.before for run in runs]
        moments = np.array([1 + len(run.steps) for run in runs])
        begins = moments.cumsum() - moments
        # What is not stepped is already there: where each run was before its steps.
        states, warmstarts, link_pos, link_rot = (
            np.array([getattr(moment, name) for moment in before]).repeat(moments, axis=0)
            for name in ("state", "warmstart", "link_pos", "link_rot")
        )
        sound: dict[int, int] = {}
        taken = _Taken(runs, begins.tolist(), states, warmstarts, link_pos, link_rot, sound)
        steps = np.arange(len(states)) - begins.repeat(moments)  # before each of the moments
        after = np.flatnonzero(steps)
        if not len(after):
            return taken
        earlier = np.empty_like(states)  # by one substep
        by_length: dict[int, list[int]] = {}
        for at, run in enumerate(runs):
            if run.steps:
                by_length.setdefault(len(run.steps), []).append(at)
        for length, alike in by_length.items():
            into = begins[alike][:, None] + np.arange(1, length + 1)
            traces = self._rollout([runs[at] for at in alike], states[begins[alike]], course)
            states[into] = traces[:, :, -1]
            if self._substeps > 1:
                earlier[into] = traces[:, :, -2]
        if self._substeps == 1:
            earlier[1:] = states[:-1]
        # What the solver has found is not handed out. It is where it begins next, no more.
        velocity = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        pushed = (states[after] - earlier[after])[:, velocity]
        warmstarts[after] = pushed / self._model.opt.timestep
        self._place(taken, course, earlier if self._lags else states)
        # MuJoCo begins anew by itself, at time 0, where its numbers have gone astray.
        due = states[begins, 0].repeat(moments) + self._step_seconds * (steps - 0.01)
        fine = (steps == 0) | (np.isfinite(states).all(axis=1) & (states[:, 0] >= due))
        if not fine.all():
            for at, begin in enumerate(taken.begins):
                own = slice(begin, begin + moments[at])
                if not fine[own].all():
                    sound[at] = int(np.argmin(fine[own])) - 1
                    for values in (states, link_pos, link_rot):
                        values[own][sound[at] + 1 :] = np.nan
        return taken

    def _rollout(self, runs: Sequence[_Run], start: np.ndarray, course: _Course) -> np.ndarray:
        """float64 [R, n, substeps, S]: steps of R runs that have n each, from their states, [R, S];
        all at once and without the interpreter's lock."""
        count, length = len(runs), len(runs[0].steps)
        slots = np.array([[run.slot] for run in runs])
        control = course.control[np.array([run.steps for run in runs]), slots]
        states = np.empty((count, length * self._substeps, start.shape[1]))
        self._pool.rollout(
            [run.before.twin.model for run in runs],
            self._data,
            start,
            control.repeat(self._substeps, axis=1),
            control_spec=int(self._spec),
            skip_checks=True,  # of shapes, in Python: they take longer than a twin's step
            nstep=states.shape[1],
            initial_warmstart=np.array([run.before.warmstart for run in runs]),
            state=states,
            # One part for each thread: they would be woken for each of more parts.
            chunk_size=-(-count // len(self._data)),
        )
        return states.reshape(count, length, self._substeps, -1)

    def _place(self, taken: _Taken, course: _Course, states: np.ndarray) -> None:
        """Fills in the links after each step, as they are in `states`, [P, S]."""
        data, places = self._placed, states[:, 1 : 1 + self._model.nq]
        qpos, xpos, xquat = data.qpos, data.xpos[1:], data.xquat[1:]
        for run, begin in zip(taken.runs, taken.begins, strict=True):
            model = run.before.twin.model
            for moment, index in enumerate(run.steps, begin + 1):
                qpos[:] = places[moment]
                if course.mocap is not None:  # bodies that no physics moves
                    pos, quat = course.mocap
                    data.mocap_pos[:], data.mocap_quat[:] = (
                        pos[index, run.slot],
                        quat[index, run.slot],
                    )
                mujoco.mj_kinematics(model, data)
                taken.link_pos[moment], taken.link_rot[moment] = xpos, xquat

    def _ghosts(self, course: _Course, taken: Sequence[_Taken]) -> list[Ghost]:
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

    def _compare(self, ghosts: Ghost, course: _Course, taken: _Taken) -> None:
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
        seconds, bodies = self._step_seconds * steps, away.mean(axis=1)
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


def _coordinates(frame: Frame) -> Coordinates:
    assert frame.coordinates is not None
    return frame.coordinates


def _modest_pool(threads: int) -> Rollout:
    """Threads that get of the processor what others leave, where that can be said of threads."""
    made: list[Rollout] = []

    def make() -> None:
        if sys.platform == "linux":
            # Threads inherit it from the one that makes them, and this one ends here: the thread
            # that holds the interpreter's lock must not be kept waiting with it.
            os.nice(NICENESS)  # on Linux it is the thread's alone
        made.append(Rollout(nthread=threads))

    maker = threading.Thread(target=make, name="brax_viser twins' threads")
    maker.start()
    maker.join()
    return made[0]
