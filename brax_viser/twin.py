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

    row: int  # of its environment in the frames
    before: _Moment
    env_steps: int  # after the last of the steps; batched, of the rollout
    episode_length: int  # likewise
    steps: list[int] = field(default_factory=list)  # to which frame each of them leads
    seen: list[tuple[int, int]] = field(default_factory=list)  # (frame, after how many steps)

    @classmethod
    def after(cls, row: int, moment: _Moment) -> "_Run":
        return cls(row, moment, moment.env_steps, moment.episode_length)


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
        envs = frames[0].env_index.tolist()
        finite = [_finite(_coordinates(frame)) for frame in frames]
        moments: list[dict[int, _Moment]] = [{} for _ in frames]  # by row
        runs: list[_Run] = []
        for row in rows:
            known, mine = self._moments.get(envs[row]), own.get(envs[row], _ALIKE)
            if known is not None and (self._anew or known.twin.own is not mine):
                known = None
            runs += self._runs(frames, finite, row, range(len(frames)), known, mine)
        self._anew = False
        while runs:
            again: list[_Run] = []
            for run, taken in self._taken(runs, frames):
                lost: list[int] = []
                for index, steps in run.seen:
                    if steps < len(taken):
                        moments[index][run.row] = taken[steps]
                    else:
                        lost.append(index)
                if lost:  # it went astray on the way there
                    mine = run.before.twin.own
                    again += self._runs(frames, finite, run.row, lost, None, mine)
            runs = again
        self._moments = {envs[row]: moment for row, moment in moments[-1].items()}
        return self._ghosts(frames, moments)

    def _runs(
        self,
        frames: Sequence[Frame],
        finite: Sequence[np.ndarray],
        row: int,
        indices: Iterable[int],
        known: _Moment | None,
        own: Mapping[str, np.ndarray],
    ) -> list[_Run]:
        """How one twin gets to some of the frames, in their order; `known` is where it was."""
        run = _Run.after(row, known) if known is not None else None
        runs = [run] if run is not None else []
        for index in indices:
            frame = frames[index]
            if not finite[index][row]:
                run = None
                continue
            if run is not None and frame.env_steps == run.env_steps:
                pass  # the training is held, and is looked at again
            elif run is not None and self._goes_on(run, frame):
                run.steps.append(index)
                run.env_steps, run.episode_length = frame.env_steps, frame.episode_length[row]
            else:
                run = _Run.after(row, self._start(frame, row, own))
                runs.append(run)
            run.seen.append((index, len(run.steps)))
        return runs

    def _goes_on(self, run: _Run, frame: Frame) -> bool:
        return (
            frame.env_steps == run.env_steps + 1
            and frame.episode_length[run.row] == run.episode_length + 1
            and (self.every is None or run.before.steps + len(run.steps) < self.every)
            and not run.before.astray
        )

    def _start(self, frame: Frame, row: int, own: Mapping[str, np.ndarray]) -> _Moment:
        """A twin that is where its environment is."""
        coordinates = _coordinates(frame)
        known = self._moments.get(int(frame.env_index[row]))
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
            int(frame.episode_length[row]),
        )

    def _taken(
        self, runs: Sequence[_Run], frames: Sequence[Frame]
    ) -> list[tuple[_Run, list[_Moment]]]:
        """Takes the steps of runs: where each was before, and after each of its steps, up to the
        one with which it went astray."""
        by_length: dict[int, list[_Run]] = {}
        for run in runs:
            by_length.setdefault(len(run.steps), []).append(run)
        found: list[tuple[_Run, list[_Moment]]] = []
        for length, alike in by_length.items():
            if length:
                found += zip(alike, self._step(alike, frames), strict=True)
            else:
                found += [(run, [run.before]) for run in alike]
        return found

    def _step(self, runs: Sequence[_Run], frames: Sequence[Frame]) -> list[list[_Moment]]:
        """See `_taken`; of as many steps each, at once and without the interpreter's lock."""
        count, length, substeps = len(runs), len(runs[0].steps), self._substeps
        given = [_coordinates(frames[index]) for run in runs for index in run.steps]
        rows = [run.row for run in runs for _ in run.steps]
        controls = np.array([self._control(x, row) for x, row in zip(given, rows, strict=True)])
        start = np.array([run.before.state for run in runs])
        states, _ = self._pool.rollout(
            [run.before.twin.model for run in runs],
            self._data,
            start,
            np.repeat(controls.reshape(count, length, -1), substeps, axis=1),
            control_spec=int(self._spec),
            initial_warmstart=np.array([run.before.warmstart for run in runs]),
            # One part for each thread: they would be woken for each of more parts.
            chunk_size=-(-count // len(self._data)),
        )
        traces = np.asarray(states).reshape(count, length, substeps, -1)
        last = traces[:, :, -1]
        before = traces[:, :, -2] if substeps > 1 else np.hstack([start[:, None], last[:, :-1]])
        # MuJoCo begins anew by itself, at time 0, where its numbers have gone astray.
        due = start[:, :1] + self._step_seconds * (np.arange(length) + 0.99)
        finite = np.isfinite(last).all(axis=2) & (last[:, :, 0] >= due)
        # What the solver has found is not handed out. It is where it begins next, no more.
        velocity = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        warmstart = (last - before)[:, :, velocity] / self._model.opt.timestep
        seen = before if self._lags else last
        found: list[list[_Moment]] = []
        for at, run in enumerate(runs):
            taken = [run.before]
            for step, index in enumerate(run.steps):
                state, astray = last[at, step], not finite[at, step]
                pos, rot = self._links(run, seen[at, step], _coordinates(frames[index]))
                if astray:
                    state, pos, rot = (np.full_like(x, np.nan) for x in (state, pos, rot))
                moment = _Moment(
                    run.before.twin,
                    run.before.steps + step + 1,
                    state,
                    warmstart[at, step],
                    pos,
                    rot,
                    frames[index].env_steps,
                    int(frames[index].episode_length[run.row]),
                    astray,
                )
                taken.append(moment)
                if astray:
                    break
            found.append(taken)
        return found

    def _control(self, coordinates: Coordinates, row: int) -> np.ndarray:
        """float64 [C]: what a step is taken with, as `_spec` has it."""
        given = [coordinates.ctrl, coordinates.mocap_pos, coordinates.mocap_quat]
        return np.concatenate([np.zeros(0), *(x[row].ravel() for x in given if x is not None)])

    def _links(
        self, run: _Run, state: np.ndarray, coordinates: Coordinates
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 [L, 3] in m, and float32 [L, 4] wxyz: the links of a twin in a state."""
        data = self._placed
        data.qpos[:] = state[1 : 1 + self._model.nq]
        if coordinates.mocap_pos is not None and coordinates.mocap_quat is not None:
            data.mocap_pos[:] = coordinates.mocap_pos[run.row]
            data.mocap_quat[:] = coordinates.mocap_quat[run.row]
        mujoco.mj_kinematics(run.before.twin.model, data)
        return data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)

    def _ghosts(
        self, frames: Sequence[Frame], moments: Sequence[Mapping[int, _Moment]]
    ) -> list[Ghost]:
        # All at once: by one each, as much time would go into numpy as into MuJoCo.
        count, link_pos = len(frames[0].env_index), np.concatenate([x.link_pos for x in frames])
        link_rot = np.concatenate([x.link_rot for x in frames])
        ghosts = Ghost(
            np.zeros(len(link_pos), bool),
            np.full_like(link_pos, np.nan),
            np.full_like(link_rot, np.nan),
            *(np.full(len(link_pos), np.nan, np.float32) for _ in range(5)),
        )
        rows = [index * count + row for index, those in enumerate(moments) for row in those]
        seen = [moment for those in moments for moment in those.values()]
        if seen:
            pos = np.stack([moment.link_pos for moment in seen])
            away = np.linalg.norm(pos - link_pos[rows], axis=2)
            qpos = np.concatenate([_coordinates(frame).qpos for frame in frames])[rows]
            ghosts.there[rows] = True
            ghosts.link_pos[rows] = pos
            ghosts.link_rot[rows] = np.stack([moment.link_rot for moment in seen])
            ghosts.seconds[rows] = self._step_seconds * np.array([m.steps for m in seen])
            ghosts.root[rows], ghosts.bodies[rows] = away[:, self._root], away.mean(axis=1)
            ghosts.joints[rows] = self._joint_errors(seen, qpos)
            for row, moment in zip(rows, seen, strict=True):
                # What has no distance has no limit that it would keep.
                if not ghosts.bodies[row] <= self.limit:
                    moment.twin.passed = min(moment.twin.passed, ghosts.seconds[row])
                ghosts.passed[row] = moment.twin.passed
        values = [getattr(ghosts, x.name) for x in fields(Ghost)]
        return [Ghost(*(x[i : i + count] for x in values)) for i in range(0, len(link_pos), count)]

    def _joint_errors(self, moments: Sequence[_Moment], qpos: np.ndarray) -> np.ndarray:
        """rad, [M]: the mean over hinges and balls. NaN where the model has neither."""
        if not len(self._hinges) + len(self._balls):
            return np.full(len(moments), np.nan)
        mine = np.stack([moment.state[1 : 1 + self._model.nq] for moment in moments])
        turned = mine[:, self._hinges] - qpos[:, self._hinges]
        # Some backends keep angles within a turn, others count the turns.
        hinges = np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
        balls = angle_between(mine[:, self._balls], qpos[:, self._balls])
        return np.concatenate([hinges, balls], axis=1).mean(axis=1)


def _coordinates(frame: Frame) -> Coordinates:
    assert frame.coordinates is not None
    return frame.coordinates


def _finite(coordinates: Coordinates) -> np.ndarray:
    """bool [K], of each environment: whether there is a place to start from."""
    found = np.ones(len(coordinates.qpos), bool)
    for name in ("qpos", "qvel", "ctrl", "act"):
        values = getattr(coordinates, name)
        if values is not None:
            found &= np.isfinite(values).all(axis=1)
    return found


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
