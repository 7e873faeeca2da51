"""How MuJoCo takes the steps of twins: many at once, on threads that let others go first."""

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
class TwinState:
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
class Segment:
    """Steps of a twin that follow each other, all to be taken at once."""

    slot: int  # of its environment in the batch
    before: TwinState
    env_steps: int  # after the last of the steps; batched, of the rollout
    episode_length: int  # likewise
    steps: list[int] = field(default_factory=list)  # to which frame each of them leads
    seen: list[tuple[int, int]] = field(default_factory=list)  # (frame, after how many steps)

    @classmethod
    def after(cls, slot: int, moment: TwinState) -> "Segment":
        return cls(slot, moment, moment.env_steps, moment.episode_length)


@dataclass(frozen=True, eq=False)
class Batch:
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
    """Segments whose steps are taken. Their states follow each other in arrays of P moments:
    where it was before its steps, and then after each of them."""

    segments: Sequence[Segment]
    begins: Sequence[int]  # of each segment, its first moment
    states: np.ndarray  # float64 [P, S], of `STATE`
    warmstarts: np.ndarray  # float64 [P, nv]
    link_pos: np.ndarray  # float32 [P, L, 3], m
    link_rot: np.ndarray  # float32 [P, L, 4], wxyz
    # Of those of the segments that went astray, by their place: how many of their steps were sound.
    sound: Mapping[int, int]

    def last(self, at: int, batch: Batch) -> TwinState:
        """Of one of the segments, the last that was seen."""
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

    def touches(self, moment: TwinState) -> bool:
        """Whether MuJoCo finds any contact of a twin."""
        data = self._placed
        data.qpos[:] = moment.state[1 : 1 + self._model.nq]
        mujoco.mj_fwdPosition(moment.twin.model, data)
        return bool((data.contact.dist < 0).any())

    def take(self, segments: Sequence[Segment], batch: Batch) -> StepResult:
        """Takes all steps of segments."""
        before = [segment.before for segment in segments]
        moments = np.array([1 + len(segment.steps) for segment in segments])
        begins = moments.cumsum() - moments
        # What is not stepped is already there: where each segment was before its steps.
        states, warmstarts, link_pos, link_rot = (
            np.array([getattr(moment, name) for moment in before]).repeat(moments, axis=0)
            for name in ("state", "warmstart", "link_pos", "link_rot")
        )
        sound: dict[int, int] = {}
        result = StepResult(
            segments, begins.tolist(), states, warmstarts, link_pos, link_rot, sound
        )
        steps = np.arange(len(states)) - begins.repeat(moments)  # before each of the moments
        after = np.flatnonzero(steps)
        if not len(after):
            return result
        earlier = np.empty_like(states)  # by one substep
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
        # What the solver has found is not handed out. It is where it begins next, no more.
        velocity = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        pushed = (states[after] - earlier[after])[:, velocity]
        warmstarts[after] = pushed / self._model.opt.timestep
        self._place(result, batch, earlier if self._lags else states)
        # MuJoCo begins anew by itself, at time 0, where its numbers have gone astray.
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
        """float64 [R, n, substeps, S]: n steps of each of R segments, from states [R, S]; all at
        once and without the interpreter's lock."""
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
            skip_checks=True,  # of shapes, in Python: 0.08 ms of 0.2 for a call beside a training
            nstep=states.shape[1],
            initial_warmstart=np.array([segment.before.warmstart for segment in segments]),
            state=states,
            # One part for each thread: they would be woken for each of more parts.
            chunk_size=-(-count // len(self._data)),
        )
        return states.reshape(count, length, self._substeps, -1)

    def _place(self, result: StepResult, batch: Batch, states: np.ndarray) -> None:
        """Fills in the links after each step, as they are in `states`, [P, S]."""
        data, places = self._placed, states[:, 1 : 1 + self._model.nq]
        qpos, xpos, xquat = data.qpos, data.xpos[1:], data.xquat[1:]
        for segment, begin in zip(result.segments, result.begins, strict=True):
            model = segment.before.twin.model
            for moment, index in enumerate(segment.steps, begin + 1):
                qpos[:] = places[moment]
                if batch.mocap is not None:  # bodies that no physics moves
                    pos, quat = (values[index, segment.slot] for values in batch.mocap)
                    data.mocap_pos[:], data.mocap_quat[:] = pos, quat
                mujoco.mj_kinematics(model, data)
                result.link_pos[moment], result.link_rot[moment] = xpos, xquat


def coordinates_of(frame: Frame) -> Coordinates:
    assert frame.coordinates is not None
    return frame.coordinates


def _modest_pool(threads: int) -> Rollout:
    """Threads that let the caller's go first as well: nobody waits for them."""
    made: list[Rollout] = []

    def make() -> None:
        lower_priority(MORE)  # in a thread that ends here: those that it starts inherit it
        made.append(Rollout(nthread=threads))

    maker = threading.Thread(target=make, name="brax_viser twins' threads")
    maker.start()
    maker.join()
    return made[0]
