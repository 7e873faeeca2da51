"""Steps twins in MuJoCo, many at once, on low-priority threads."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np
from mujoco.rollout import Rollout

from brax_viser.process import MORE, lower_priority
from brax_viser.records.frame import Coordinates, Frame

MOST_THREADS = 4
"""A step of a twin takes tens of microseconds: more threads would only wait for each other."""

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
"""All inputs of a step except its control."""


@dataclass(eq=False)
class Twin:
    """The twin of one environment, from one start to the next restart."""

    model: mujoco.MjModel
    own: Mapping[str, np.ndarray]  # the fields in which the model differs from the shared one
    passed: float = np.inf  # s after which the threshold was passed

    def passes(self, seconds: float, distance: float, limit: float) -> float:
        """Records the distance after `seconds`; returns `passed`, inf while within the limit."""
        # A NaN distance counts as over the limit.
        if not distance <= limit:
            self.passed = min(self.passed, seconds)
        return self.passed


@dataclass(frozen=True, eq=False)
class TwinState:
    """A twin's state after a step that its environment was seen to take."""

    twin: Twin
    steps: int  # since both had the same state
    state: np.ndarray  # float64 [S], of `STATE`
    warmstart: np.ndarray  # float64 [nv], `qacc_warmstart` for MuJoCo's solver
    link_pos: np.ndarray  # float32 [L, 3], m
    link_rot: np.ndarray  # float32 [L, 4], wxyz
    env_steps: int  # batched steps of the rollout
    episode_length: int
    astray: bool = False  # its simulation has diverged


@dataclass(eq=False)
class Segment:
    """Consecutive steps of a twin, all taken at once."""

    slot: int  # of its environment in the batch
    before: TwinState
    env_steps: int  # batched steps of the rollout after the last of `steps`
    episode_length: int  # likewise
    steps: list[int] = field(default_factory=list)  # index of the frame that each step leads to
    seen: list[tuple[int, int]] = field(default_factory=list)  # (frame, steps taken until then)

    @classmethod
    def after(cls, slot: int, moment: TwinState) -> "Segment":
        return cls(slot, moment, moment.env_steps, moment.episode_length)


@dataclass(frozen=True, eq=False)
class Batch:
    """F consecutive frames of T environments that have a twin."""

    frames: Sequence[Frame]
    rows: np.ndarray  # int [T], of the environments in the frames
    envs: list[int]  # [T]
    env_steps: list[int]  # [F], batched steps of the rollout
    episode_length: list[list[int]]  # [F][T]
    finite: list[list[bool]]  # [F][T], whether the coordinates are finite
    link_pos: np.ndarray  # float32 [F, T, L, 3], m
    qpos: np.ndarray  # float32 [F, T, nq]
    # Float64 [F, T, C]: ctrl and mocap poses of each step, in the order of `mujoco.mjtState`.
    control: np.ndarray
    mocap: tuple[np.ndarray, np.ndarray] | None  # float32 [F, T, nmocap, 3], [F, T, nmocap, 4]

    @classmethod
    def of(cls, frames: Sequence[Frame], rows: Sequence[int]) -> "Batch":
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
class StepResult:
    """Segments after their steps. The segments' states are concatenated in arrays of P states:
    for each segment the state before its steps, then the one after each step."""

    segments: Sequence[Segment]
    begins: Sequence[int]  # index of each segment's first state
    states: np.ndarray  # float64 [P, S], of `STATE`
    warmstarts: np.ndarray  # float64 [P, nv]
    link_pos: np.ndarray  # float32 [P, L, 3], m
    link_rot: np.ndarray  # float32 [P, L, 4], wxyz
    # For segments that diverged, by index in `segments`: number of steps before that.
    sound: Mapping[int, int]

    def last(self, at: int, batch: Batch) -> TwinState:
        """Returns the state of segment number `at` in the last frame in which it was seen."""
        segment = self.segments[at]
        steps = segment.seen[-1][1]
        if not steps:
            return segment.before
        index, moment = segment.steps[steps - 1], self.begins[at] + steps
        return TwinState(
            segment.before.twin,
            segment.before.steps + steps,
            self.states[moment],
            self.warmstarts[moment],
            self.link_pos[moment],
            self.link_rot[moment],
            batch.env_steps[index],
            batch.episode_length[index][segment.slot],
            astray=steps > self.sound.get(at, steps),
        )


class Stepping:
    """The threads that step twins, and their `MjData`. Used by one thread at a time."""

    def __init__(self, model: mujoco.MjModel, substeps: int, *, lags: bool, threads: int | None):
        """Starts the threads; see `twins.Twins`."""
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

    def touches(self, moment: TwinState) -> bool:
        """Whether MuJoCo finds a penetrating contact of a twin."""
        data = self._placed
        data.qpos[:] = moment.state[1 : 1 + self._model.nq]
        mujoco.mj_fwdPosition(moment.twin.model, data)
        return bool((data.contact.dist < 0).any())

    def take(self, segments: Sequence[Segment], batch: Batch) -> StepResult:
        """Takes all steps of the segments."""
        before = [segment.before for segment in segments]
        moments = np.array([1 + len(segment.steps) for segment in segments])
        begins = moments.cumsum() - moments
        # Fills all rows with the state before each segment's steps; those of steps are replaced.
        states, warmstarts, link_pos, link_rot = (
            np.array([getattr(moment, name) for moment in before]).repeat(moments, axis=0)
            for name in ("state", "warmstart", "link_pos", "link_rot")
        )
        sound: dict[int, int] = {}
        result = StepResult(
            segments, begins.tolist(), states, warmstarts, link_pos, link_rot, sound
        )
        steps = np.arange(len(states)) - begins.repeat(moments)  # taken before each state
        after = np.flatnonzero(steps)
        if not len(after):
            return result
        earlier = np.empty_like(states)  # one substep before `states`
        by_length: dict[int, list[int]] = {}
        for at, segment in enumerate(segments):
            if segment.steps:
                by_length.setdefault(len(segment.steps), []).append(at)
        for length, alike in by_length.items():
            into = begins[alike][:, None] + np.arange(1, length + 1)
            traces = self._rollout([segments[at] for at in alike], states[begins[alike]], batch)
            states[into] = traces[:, :, -1]
            if self._substeps > 1:
                earlier[into] = traces[:, :, -2]
        if self._substeps == 1:
            earlier[1:] = states[:-1]
        # The rollout doesn't return the warm start: compute the last substep's acceleration.
        velocity = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        pushed = (states[after] - earlier[after])[:, velocity]
        warmstarts[after] = pushed / self._model.opt.timestep
        self._place(result, batch, earlier if self._lags else states)
        # MuJoCo resets a diverging simulation by itself, with the time back at 0.
        due = states[begins, 0].repeat(moments) + self.step_seconds * (steps - 0.01)
        fine = (steps == 0) | (np.isfinite(states).all(axis=1) & (states[:, 0] >= due))
        if not fine.all():
            for at, begin in enumerate(result.begins):
                own = slice(begin, begin + moments[at])
                if not fine[own].all():
                    sound[at] = int(np.argmin(fine[own])) - 1
                    for values in (states, link_pos, link_rot):
                        values[own][sound[at] + 1 :] = np.nan
        return result

    def _rollout(self, segments: Sequence[Segment], start: np.ndarray, batch: Batch) -> np.ndarray:
        """Takes n steps of each of R segments from states [R, S], all at once and without the
        interpreter's lock. Returns the states, float64 [R, n, substeps, S]."""
        count, length = len(segments), len(segments[0].steps)
        slots = np.array([[segment.slot] for segment in segments])
        control = batch.control[np.array([segment.steps for segment in segments]), slots]
        states = np.empty((count, length * self._substeps, start.shape[1]))
        self._pool.rollout(
            [segment.before.twin.model for segment in segments],
            self._data,
            start,
            control.repeat(self._substeps, axis=1),
            control_spec=int(self._spec),
            skip_checks=True,  # saves 0.08 of 0.2 ms per call beside a training
            nstep=states.shape[1],
            initial_warmstart=np.array([segment.before.warmstart for segment in segments]),
            state=states,
            # One chunk per thread: with more, threads would be woken for each of them.
            chunk_size=-(-count // len(self._data)),
        )
        return states.reshape(count, length, self._substeps, -1)

    def _place(self, result: StepResult, batch: Batch, states: np.ndarray) -> None:
        """Fills in the link poses after each step, as given by `states`, [P, S]."""
        data, places = self._placed, states[:, 1 : 1 + self._model.nq]
        qpos, xpos, xquat = data.qpos, data.xpos[1:], data.xquat[1:]
        for segment, begin in zip(result.segments, result.begins, strict=True):
            model = segment.before.twin.model
            for moment, index in enumerate(segment.steps, begin + 1):
                qpos[:] = places[moment]
                if batch.mocap is not None:  # poses of bodies that the physics doesn't move
                    pos, quat = (values[index, segment.slot] for values in batch.mocap)
                    data.mocap_pos[:], data.mocap_quat[:] = pos, quat
                mujoco.mj_kinematics(model, data)
                result.link_pos[moment], result.link_rot[moment] = xpos, xquat


def coordinates_of(frame: Frame) -> Coordinates:
    assert frame.coordinates is not None
    return frame.coordinates


def _modest_pool(threads: int) -> Rollout:
    """Starts a pool of threads of lower priority than the caller's; no thread waits for them."""
    made: list[Rollout] = []

    def make() -> None:
        lower_priority(MORE)  # of this short-lived thread; the threads that it starts inherit it
        made.append(Rollout(nthread=threads))

    maker = threading.Thread(target=make, name="brax_viser twins' threads")
    maker.start()
    maker.join()
    return made[0]
