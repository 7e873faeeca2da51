"""MuJoCo simulations that are driven by what the policy does in the training, beside it."""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """One environment's, after the last step that was seen of it."""

    model: mujoco.MjModel
    own: Mapping[str, np.ndarray]  # in what the model differs from the one that is shared
    state: np.ndarray  # float64 [S], of `_STATE`
    warmstart: np.ndarray  # float64 [nv], where MuJoCo's solver begins
    link_pos: np.ndarray  # float32 [L, 3], m
    link_rot: np.ndarray  # float32 [L, 4], wxyz
    env_steps: int  # batched, of the rollout
    episode_length: int
    astray: bool = False  # its numbers are no longer finite
    steps: int = 0  # since both were the same
    passed: float = np.inf  # s after which the threshold was passed


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
        self._twins: dict[int, _Twin] = {}  # by environment
        self._anew = False
        self._spec = mujoco.mjtState.mjSTATE_CTRL
        if model.nmocap:
            self._spec |= mujoco.mjtState.mjSTATE_MOCAP_POS | mujoco.mjtState.mjSTATE_MOCAP_QUAT
        if threads is None:
            threads = min(max((os.cpu_count() or 1) // 2, 1), MOST_THREADS)
        self._data = [mujoco.MjData(model) for _ in range(max(threads, 1))]
        self._pool = _modest_pool(threads)
        self._placed = mujoco.MjData(model)
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
            twin, data = self._twins.get(env), self._placed
            if twin is not None and np.isfinite(twin.state).all():
                data.qpos[:] = twin.state[1 : 1 + self._model.nq]
                mujoco.mj_fwdPosition(twin.model, data)
                found.append(bool((data.contact.dist < 0).any()))
            else:
                found.append(False)
        return np.array(found, bool)

    def follow(
        self, frame: Frame, rows: Sequence[int], own: Mapping[int, Mapping[str, np.ndarray]]
    ) -> Ghost:
        """Steps the twins of some environments to a frame.

        Args:
            frame: of the next batched step; has coordinates, and their ctrl if the model has any
                actuator.
            rows: which of its environments have a twin.
            own: by environment, in what its model differs from the one that is shared.
        """
        coordinates = frame.coordinates
        assert coordinates is not None
        envs = frame.env_index.tolist()
        step: list[tuple[int, _Twin]] = []
        twins: dict[int, _Twin] = {}
        finite = _finite(coordinates)
        for row in rows:
            if not finite[row]:
                continue
            twin = self._twins.get(envs[row])
            mine = own.get(envs[row], _ALIKE)
            if twin is None or self._anew or twin.own is not mine:
                twin = None
            elif twin.env_steps == frame.env_steps:
                pass  # the training is held, and is looked at again
            elif self._goes_on(twin, frame, row):
                step.append((row, twin))
            else:
                twin = None
            twins[row] = twin or self._start(frame, row, mine)
        self._anew = False
        self._twins = {envs[row]: twin for row, twin in twins.items()}
        self._step(step, frame, coordinates)
        return self._ghost(frame, coordinates, twins)

    def _goes_on(self, twin: _Twin, frame: Frame, row: int) -> bool:
        return (
            frame.env_steps == twin.env_steps + 1
            and frame.episode_length[row] == twin.episode_length + 1
            and (self.every is None or twin.steps < self.every)
            and not twin.astray
        )

    def _start(self, frame: Frame, row: int, own: Mapping[str, np.ndarray]) -> _Twin:
        """A twin that is where its environment is."""
        coordinates = frame.coordinates
        assert coordinates is not None
        known = self._twins.get(int(frame.env_index[row]))
        model = known.model if known is not None and known.own is own else None
        if model is None:
            model = varied(self._model, own) if own else self._model
        data = mujoco.MjData(model)
        for name in ("qpos", "qvel", "act"):
            value = getattr(coordinates, name)
            if value is not None:
                getattr(data, name)[:] = value[row]
        state = np.zeros(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, state, _STATE)
        return _Twin(
            model,
            own,
            state,
            np.zeros(model.nv),
            frame.link_pos[row],
            frame.link_rot[row],
            frame.env_steps,
            int(frame.episode_length[row]),
        )

    def _step(
        self, step: Sequence[tuple[int, _Twin]], frame: Frame, coordinates: Coordinates
    ) -> None:
        """All that go on, at once and without the interpreter's lock."""
        if not step:
            return
        rows = [row for row, _ in step]
        given = [coordinates.ctrl, coordinates.mocap_pos, coordinates.mocap_quat]
        parts = [x[rows].reshape(len(rows), -1) for x in given if x is not None]
        controls = np.concatenate([np.zeros((len(rows), 0)), *parts], axis=1)
        start = np.array([twin.state for _, twin in step])
        states, _ = self._pool.rollout(
            [twin.model for _, twin in step],
            self._data,
            start,
            np.repeat(controls[:, None].astype(float), self._substeps, axis=1),
            control_spec=int(self._spec),
            initial_warmstart=np.array([twin.warmstart for _, twin in step]),
        )
        traces = np.asarray(states)  # [T, substeps, S]
        # MuJoCo begins anew by itself, at time 0, where its numbers have gone astray.
        traces[traces[:, -1, 0] < start[:, 0] + 0.99 * self._step_seconds] = np.nan
        last, before = traces[:, -1], traces[:, -2] if self._substeps > 1 else start
        finite = np.all(np.isfinite(last), axis=1)
        # What the solver has found is not handed out. It is where it begins next, no more.
        velocity = slice(1 + self._model.nq, 1 + self._model.nq + self._model.nv)
        warmstart = (last - before)[:, velocity] / self._model.opt.timestep
        seen = before if self._lags else last
        for index, (row, twin) in enumerate(step):
            twin.state, twin.warmstart = last[index], warmstart[index]
            twin.astray = not finite[index]
            self._links(twin, seen[index], coordinates, row)
            twin.env_steps, twin.episode_length = frame.env_steps, int(frame.episode_length[row])
            twin.steps += 1

    def _links(self, twin: _Twin, state: np.ndarray, coordinates: Coordinates, row: int) -> None:
        """Places the links of a twin, in a state."""
        data = self._placed
        data.qpos[:] = state[1 : 1 + self._model.nq]
        if coordinates.mocap_pos is not None and coordinates.mocap_quat is not None:
            data.mocap_pos[:] = coordinates.mocap_pos[row]
            data.mocap_quat[:] = coordinates.mocap_quat[row]
        mujoco.mj_kinematics(twin.model, data)
        twin.link_pos = data.xpos[1:].astype(np.float32)
        twin.link_rot = data.xquat[1:].astype(np.float32)

    def _ghost(self, frame: Frame, coordinates: Coordinates, twins: Mapping[int, _Twin]) -> Ghost:
        count = len(frame.env_index)
        ghost = Ghost(
            np.zeros(count, bool),
            np.full_like(frame.link_pos, np.nan),
            np.full_like(frame.link_rot, np.nan),
            *(np.full(count, np.nan, np.float32) for _ in range(5)),
        )
        if not twins:
            return ghost
        rows, all_of_them = list(twins), list(twins.values())
        # All at once: by one each, as much time would go into numpy as into MuJoCo.
        pos = np.stack([twin.link_pos for twin in all_of_them])
        away = np.linalg.norm(pos - frame.link_pos[rows], axis=2)
        seconds = self._step_seconds * np.array([twin.steps for twin in all_of_them])
        ghost.there[rows] = True
        ghost.link_pos[rows] = pos
        ghost.link_rot[rows] = np.stack([twin.link_rot for twin in all_of_them])
        ghost.seconds[rows] = seconds
        ghost.root[rows], ghost.bodies[rows] = away[:, self._root], away.mean(axis=1)
        ghost.joints[rows] = self._joint_errors(all_of_them, coordinates.qpos[rows])
        # What has no distance has no limit that it would keep.
        for index in np.flatnonzero(~(ghost.bodies[rows] <= self.limit)):
            twin = all_of_them[index]
            twin.passed = min(twin.passed, seconds[index])
        ghost.passed[rows] = [twin.passed for twin in all_of_them]
        return ghost

    def _joint_errors(self, twins: Sequence[_Twin], qpos: np.ndarray) -> np.ndarray:
        """rad, [T]: the mean over hinges and balls. NaN where the model has neither."""
        if not len(self._hinges) + len(self._balls):
            return np.full(len(twins), np.nan)
        mine = np.stack([twin.state[1 : 1 + self._model.nq] for twin in twins])
        turned = mine[:, self._hinges] - qpos[:, self._hinges]
        # Some backends keep angles within a turn, others count the turns.
        hinges = np.abs((turned + np.pi) % (2 * np.pi) - np.pi)
        balls = angle_between(mine[:, self._balls], qpos[:, self._balls])
        return np.concatenate([hinges, balls], axis=1).mean(axis=1)


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
