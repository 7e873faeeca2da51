"""Holds the state of some environments at one step, on the host."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from brax_viser.records.protocol import IMAGE, IMAGE_OF_BYTES


@dataclass(frozen=True, eq=False)
class Detail:
    """Everything known about one environment after one batched step."""

    env: int  # index over all devices
    qpos: np.ndarray  # float32 [nq], MuJoCo's order and units
    qvel: np.ndarray  # float32 [nv], likewise; a free joint's rotation is in the body's own frame
    ctrl: np.ndarray | None  # float32 [nu], applied in this step; None: not known, or none
    act: np.ndarray | None  # float32 [na], of actuators that have a state of their own
    mocap_pos: np.ndarray | None  # float32 [nmocap, 3], m
    mocap_quat: np.ndarray | None  # float32 [nmocap, 4], wxyz
    action: np.ndarray | None  # float32 [A], the policy's
    observation: Mapping[str, np.ndarray]  # by name, float32 [O]; "" if it is one array
    info: Mapping[str, np.ndarray] = field(default_factory=dict)  # from `state.info`, float32
    # From `state.metrics`, float32 []: the terms of the reward, and whatever else is kept there.
    metrics: Mapping[str, np.ndarray] = field(default_factory=dict)
    # The images in the observation, by name: float32 [H, W, C], 0 to 1.
    images: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, env: int, fields: Mapping[str, np.ndarray]) -> "Detail":
        """Builds the detail of `env` from the fields that `adapters.Adapter.detail` names."""

        def named(prefix: str) -> dict[str, np.ndarray]:
            start = len(prefix) + 1
            return {name[start:]: x for name, x in fields.items() if name.startswith(prefix)}

        kept = ("qpos", "qvel", "ctrl", "act", "mocap_pos", "mocap_quat", "action")
        values = (fields.get(name) for name in kept)
        images = {name: x / 255 for name, x in named(IMAGE_OF_BYTES).items()} | named(IMAGE)
        return cls(env, *values, *map(named, ("observation", "info", "metrics")), images)  # type: ignore[arg-type]

    @classmethod
    def at_rest(cls, env: int, qpos: np.ndarray, num_velocities: int) -> "Detail":
        """Builds the detail of an environment of which only the pose is known.

        Args:
            env: index over all devices.
            qpos: float [nq].
            num_velocities: nv.
        """
        place, rest = np.asarray(qpos, np.float32), np.zeros(num_velocities, np.float32)
        return cls(env, place, rest, None, None, None, None, None, {})


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates from which MuJoCo can step K environments."""

    qpos: np.ndarray  # float32 [K, nq], as in `Detail`
    qvel: np.ndarray  # float32 [K, nv]
    ctrl: np.ndarray | None  # float32 [K, nu], applied in this step; None: not known, or none
    act: np.ndarray | None  # float32 [K, na]
    mocap_pos: np.ndarray | None  # float32 [K, nmocap, 3], m
    mocap_quat: np.ndarray | None  # float32 [K, nmocap, 4], wxyz

    @classmethod
    def of(cls, fields: Mapping[str, np.ndarray]) -> "Coordinates":
        """Picks the coordinates from the fields of a push; those that were not sent are None."""
        return cls(*(fields.get(name) for name in COORDINATES))  # type: ignore[arg-type]


COORDINATES = tuple(f.name for f in fields(Coordinates))
"""Names under which the device sends the coordinates."""


@dataclass(frozen=True, eq=False)
class Ghost:
    """The twins of K environments, stepped by MuJoCo with the same controls, and their distances
    from the environments. Unknown values are NaN."""

    there: np.ndarray  # bool [K], whether the environment has a twin
    link_pos: np.ndarray  # float32 [K, L, 3], m
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    seconds: np.ndarray  # float32 [K], s of robot time since both had the same state
    root: np.ndarray  # float32 [K], m, between the links that roam, or the first links
    bodies: np.ndarray  # float32 [K], m, mean over all links of a robot
    joints: np.ndarray  # float32 [K], rad, mean over all hinge and ball joints of a robot
    passed: np.ndarray  # float32 [K], s after which `bodies` passed the threshold; inf: not yet

    @classmethod
    def over(
        cls,
        frame: "Frame",
        link_pos: np.ndarray,
        link_rot: np.ndarray,
        seconds: np.ndarray,
        apart: np.ndarray,
        root: int,
    ) -> "Ghost":
        """Builds the ghosts of robots that went their own way.

        Args:
            frame: the robots.
            link_pos: where the ghosts are drawn, and likewise `link_rot`.
            link_rot: see above.
            seconds: of robot time since the beginning.
            apart: float [K, L, 3], m, from each ghost's link, where it really was, to the robot's.
            root: index of the link that stands for the robot.
        """
        distance = np.linalg.norm(apart, axis=-1).astype(np.float32)
        unknown = np.full(len(frame.env_index), np.nan, np.float32)
        there = np.ones(len(unknown), bool)
        mean = distance.mean(axis=1)
        return cls(
            *(
                there,
                link_pos,
                link_rot,
                seconds,
                distance[:, root],
                mean,
                unknown,
                unknown + np.inf,
            )
        )


@dataclass(frozen=True, eq=False)
class Frame:
    """The state of K chosen environments after one batched step.

    Poses are in each environment's own world frame, as in the training; the scene adds the grid's
    offsets when it draws them.
    """

    role: str  # "train" | "eval": the rollout that the frame comes from
    env_steps: int  # batched steps of that rollout that the host knows of, this one included
    env_index: np.ndarray  # int32 [K], indices over all devices
    num_envs: int  # environments in the batch, over all devices
    link_pos: np.ndarray  # float32 [K, L, 3], m; link i is body i + 1 of the MuJoCo model
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    reward: np.ndarray  # float32 [K], of this step
    episode_return: np.ndarray  # float32 [K], of the episode so far
    # int32 [K], env steps of the episode so far, this one included. Below 0: its beginning was not
    # seen, and the return covers only the steps that were.
    episode_length: np.ndarray
    since_termination: np.ndarray  # int32 [K], env steps; 0: terminated with this step
    finite: np.ndarray  # bool [K], whether the environment's whole state is finite
    detail: Detail | None = None  # of one of them, if it was requested
    coordinates: Coordinates | None = None  # of all of them, if they were requested
    ghost: Ghost | None = None  # of those that have a twin
    # The last finished episode: float32 [K], its return, NaN where none is known; and int32 [K],
    # its env steps, 0 where none is known. None: not known for any environment.
    finished_return: np.ndarray | None = None
    finished_length: np.ndarray | None = None
    # bool [K], whether it was reset within this step already: its pose is the one after the reset.
    was_reset: np.ndarray | None = None
    # If environments that fell are shown as they fell: bool [K], whether this one is; and float32
    # [K], its return when it fell, NaN where that is not known.
    fell: np.ndarray | None = None
    fell_return: np.ndarray | None = None


_PARTS = (Coordinates, Ghost)


def assemble(frames: Sequence[Frame], pick: Callable[[list[np.ndarray]], np.ndarray]) -> Frame:
    """Merges frames of disjoint environments at the same step; scalar fields come from the first
    frame.

    Args:
        frames: at least one.
        pick: merges the frames' arrays of one field into one.
    """

    def of(parts: Sequence[Any]) -> Any:
        values = {}
        for f in fields(parts[0]):
            found = [getattr(part, f.name) for part in parts]
            if any(isinstance(x, _PARTS) for x in found):
                # Missing in one frame, so it is missing in the result.
                values[f.name] = None if any(x is None for x in found) else of(found)
            elif all(isinstance(x, np.ndarray) for x in found):
                values[f.name] = pick(found)
        return replace(parts[0], **values)

    frame: Frame = of(frames)
    return replace(frame, detail=next((f.detail for f in frames if f.detail is not None), None))


def joined(frames: list[Frame], env_index: np.ndarray) -> Frame | None:
    """Joins the frames of several devices at one step, in the order of `env_index`.

    Returns None if the frames do not have exactly those environments.
    """
    have = np.concatenate([frame.env_index for frame in frames])
    if len(frames) == 1 and np.array_equal(have, env_index):
        return frames[0]
    order = np.argsort(have)
    place = np.searchsorted(have, env_index, sorter=order)
    if len(have) != len(env_index) or (place == len(have)).any():
        return None
    rows = order[place]
    if not np.array_equal(have[rows], env_index):
        return None
    return assemble(frames, lambda arrays: np.concatenate(arrays)[rows])
