"""How MuJoCo takes the steps of twins: many at once, on threads that let others go first."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
from mujoco.rollout import Rollout

from brax_viser.process import MORE, give_way
from brax_viser.records.frame import Coordinates, Frame

MOST_THREADS = 4
"""A twin takes tens of microseconds a step: more threads would only wait for each other."""

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
"""All that a step begins with, but for its control."""


@dataclass(eq=False)
class Twin:
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
class Moment:
    """A twin, after a step that was seen of its environment."""

    twin: Twin
    steps: int  # since both were the same
    state: np.ndarray  # float64 [S], of `STATE`
    warmstart: np.ndarray  # float64 [nv], where MuJoCo's solver begins
    link_pos: np.ndarray  # float32 [L, 3], m
    link_rot: np.ndarray  # float32 [L, 4], wxyz
    env_steps: int  # batched, of the rollout
    episode_length: int
    astray: bool = False  # its numbers are no longer finite


@dataclass(eq=False)
class Run:
    """Steps of a twin that follow each other, all to be taken at once."""

    slot: int  # of its environment in the course
    before: Moment
    env_steps: int  # after the last of the steps; batched, of the rollout
    episode_length: int  # likewise
    steps: list[int] = field(default_factory=list)  # to which frame each of them leads
    seen: list[tuple[int, int]] = field(default_factory=list)  # (frame, after how many steps)

    @classmethod
    def after(cls, slot: int, moment: Moment) -> "Run":
        return cls(slot, moment, moment.env_steps, moment.episode_length)


@dataclass(frozen=True, eq=False)
class Course:
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
    def of(cls, frames: Sequence[Frame], rows: Sequence[int]) -> "Course":
        chosen, shape = np.array(rows, int), (len(frames), len(rows))
        each = [coordinates_of(frame) for frame in frames]

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
class Taken:
    """Runs whose steps are taken. Of each its moments follow each other in the P moments of all:
    where it was before its steps, and then after each of them."""

    runs: Sequence[Run]
    begins: Sequence[int]  # of each run, its first moment
    states: np.ndarray  # float64 [P, S], of `STATE`
    warmstarts: np.ndarray  # float64 [P, nv]
    link_pos: np.ndarray  # float32 [P, L, 3], m
    link_rot: np.ndarray  # float32 [P, L, 4], wxyz
    # Of those of the runs that went astray, by their place: how many of their steps were sound.
    sound: Mapping[int, int]

    def last(self, at: int, course: Course) -> Moment:
        """Of one of the runs, the last that was seen."""
        run = self.runs[at]
        steps = run.seen[-1][1]
        if not steps:
            return run.before
        index, moment = run.steps[steps - 1], self.begins[at] + steps
        return Moment(
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


class Stepping:
    """Threads that step, and what they step with. Used by one thread at a time."""

    def __init__(self, model: mujoco.MjModel, substeps: int, *, lags: bool, threads: int | None):
        """Starts the threads; see `twin.Twins`."""
        self._model, self._substeps, self._lags = model, substeps, lags
        self._spec = mujoco.mjtState.mjSTATE_CTRL
        if model.nmocap:
            self._spec |= mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
        if threads is None:
            threads = min(max((os.cpu_count() or 1) // 2, 1), MOST_THREADS)
        self._data = [mujoco.MjData(model) for _ in range(max(threads, 1))]
        self._pool = _modest_pool(threads)
        self._placed = mujoco.MjData(model)
        self.step_seconds = substeps * model.opt.timestep  # of one environment step

    def close(self) -> None:
        """Ends the threads."""
        self._pool.close()

    def touches(self, moment: Moment) -> bool:
        """Whether MuJoCo finds any contact of a twin."""
        data = self._placed
        data.qpos[:] = moment.state[1 : 1 + self._model.nq]
        mujoco.mj_fwdPosition(moment.twin.model, data)
        return bool((data.contact.dist < 0).any())

    def take(self, runs: Sequence[Run], course: Course) -> Taken:
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
        taken = Taken(runs, begins.tolist(), states, warmstarts, link_pos, link_rot, sound)
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
        due = states[begins, 0].repeat(moments) + self.step_seconds * (steps - 0.01)
        fine = (steps == 0) | (np.isfinite(states).all(axis=1) & (states[:, 0] >= due))
        if not fine.all():
            for at, begin in enumerate(taken.begins):
                own = slice(begin, begin + moments[at])
                if not fine[own].all():
                    sound[at] = int(np.argmin(fine[own])) - 1
                    for values in (states, link_pos, link_rot):
                        values[own][sound[at] + 1 :] = np.nan
        return taken

    def _rollout(self, runs: Sequence[Run], start: np.ndarray, course: Course) -> np.ndarray:
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
            skip_checks=True,  # of shapes, in Python: 0.08 ms of 0.2 for a call beside a training
            nstep=states.shape[1],
            initial_warmstart=np.array([run.before.warmstart for run in runs]),
            state=states,
            # One part for each thread: they would be woken for each of more parts.
            chunk_size=-(-count // len(self._data)),
        )
        return states.reshape(count, length, self._substeps, -1)

    def _place(self, taken: Taken, course: Course, states: np.ndarray) -> None:
        """Fills in the links after each step, as they are in `states`, [P, S]."""
        data, places = self._placed, states[:, 1 : 1 + self._model.nq]
        qpos, xpos, xquat = data.qpos, data.xpos[1:], data.xquat[1:]
        for run, begin in zip(taken.runs, taken.begins, strict=True):
            model = run.before.twin.model
            for moment, index in enumerate(run.steps, begin + 1):
                qpos[:] = places[moment]
                if course.mocap is not None:  # bodies that no physics moves
                    pos, quat = (values[index, run.slot] for values in course.mocap)
                    data.mocap_pos[:], data.mocap_quat[:] = pos, quat
                mujoco.mj_kinematics(model, data)
                taken.link_pos[moment], taken.link_rot[moment] = xpos, xquat


def coordinates_of(frame: Frame) -> Coordinates:
    assert frame.coordinates is not None
    return frame.coordinates


def _modest_pool(threads: int) -> Rollout:
    """Threads that let the caller's go first as well: nobody waits for them."""
    made: list[Rollout] = []

    def make() -> None:
        give_way(MORE)  # in a thread that ends here: those that it starts inherit it
        made.append(Rollout(nthread=threads))

    maker = threading.Thread(target=make, name="brax_viser twins' threads")
    maker.start()
    maker.join()
    return made[0]
