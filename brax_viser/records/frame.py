"""What one moment of some environments looks like, on the host."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Detail:
    """All that is known of one environment after one batched step."""

    env: int  # which, counted over all devices
    qpos: np.ndarray  # float32 [nq], MuJoCo's order and units
    qvel: np.ndarray  # float32 [nv], likewise; a free joint turns in the body's own frame
    ctrl: np.ndarray | None  # float32 [nu], that led here; None: not known, or there is none
    act: np.ndarray | None  # float32 [na], of actuators that have a state of their own
    mocap_pos: np.ndarray | None  # float32 [nmocap, 3], m
    mocap_quat: np.ndarray | None  # float32 [nmocap, 4], wxyz
    action: np.ndarray | None  # float32 [A], what the policy did
    observation: Mapping[str, np.ndarray]  # by name, float32 [O]; "" where it has no names
    info: Mapping[str, np.ndarray] = field(default_factory=dict)  # of `state.info`, float32

    @classmethod
    def of(cls, env: int, fields: Mapping[str, np.ndarray]) -> "Detail":
        """Of what `adapters.Adapter.detail` has named."""

        def named(prefix: str) -> dict[str, np.ndarray]:
            start = len(prefix) + 1
            return {name[start:]: x for name, x in fields.items() if name.startswith(prefix)}

        kept = ("qpos", "qvel", "ctrl", "act", "mocap_pos", "mocap_quat", "action")
        values = (fields.get(name) for name in kept)
        return cls(env, *values, named("observation"), named("info"))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """What it takes to bring K environments into MuJoCo, and to step them there."""

    qpos: np.ndarray  # float32 [K, nq], as in `Detail`
    qvel: np.ndarray  # float32 [K, nv]
    ctrl: np.ndarray | None  # float32 [K, nu], that led here; None: not known, or there is none
    act: np.ndarray | None  # float32 [K, na]
    mocap_pos: np.ndarray | None  # float32 [K, nmocap, 3], m
    mocap_quat: np.ndarray | None  # float32 [K, nmocap, 4], wxyz

    @classmethod
    def of(cls, fields: Mapping[str, np.ndarray]) -> "Coordinates":
        """Of what the device has sent, and more; what it has not is None."""
        return cls(*(fields.get(name) for name in COORDINATES))  # type: ignore[arg-type]


COORDINATES = tuple(f.name for f in fields(Coordinates))
"""By which names the device sends them."""


@dataclass(frozen=True, eq=False)
class Ghost:
    """Where MuJoCo gets to with the controls that K environments were given, and how far that is
    from where those have got to themselves. What is not known is NaN."""

    there: np.ndarray  # bool [K], who has a twin in MuJoCo
    link_pos: np.ndarray  # float32 [K, L, 3], m
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    seconds: np.ndarray  # float32 [K], s of robot time since both were the same
    root: np.ndarray  # float32 [K], m, between the links that roam, or the first ones
    bodies: np.ndarray  # float32 [K], m, between links, the mean over all of a robot
    joints: np.ndarray  # float32 [K], rad, between hinges and balls, the mean over all of a robot
    passed: np.ndarray  # float32 [K], s after which `bodies` passed the threshold; inf: not yet


@dataclass(frozen=True, eq=False)
class Frame:
    """The state of K chosen environments after one batched step.

    Poses are in each environment's own world frame, as the trainer has them; the grid's
    offsets are added where they are drawn.
    """

    role: str  # "train" | "eval": the rollout that it is from
    env_steps: int  # batched steps of that rollout known so far, this one included
    env_index: np.ndarray  # int32 [K], which environments, counted over all devices
    num_envs: int  # environments in the whole batch, over all devices
    link_pos: np.ndarray  # float32 [K, L, 3], m; link i is body i + 1 of the MuJoCo model
    link_rot: np.ndarray  # float32 [K, L, 4], wxyz
    reward: np.ndarray  # float32 [K], of this step
    episode_return: np.ndarray  # float32 [K], of the episode so far
    # int32 [K], env steps of the episode so far, this one included; below 0 where it is not known
    # when it began, and the return only that since then.
    episode_length: np.ndarray
    since_termination: np.ndarray  # int32 [K], env steps; 0: terminated with this step
    finite: np.ndarray  # bool [K], whether all of the environment's state is
    detail: Detail | None = None  # of one of them, where it was asked for
    coordinates: Coordinates | None = None  # of all of them, where they were asked for
    ghost: Ghost | None = None  # of some of them, where they have a twin
    # Of the last finished episode: float32 [K], its return, NaN where none is known; and int32 [K],
    # its env steps, 0 where none is. None: of nobody.
    finished_return: np.ndarray | None = None
    finished_length: np.ndarray | None = None
    # bool [K], whether it was reset within this step already, and is seen after that.
    was_reset: np.ndarray | None = None
    # Where those that have fallen are shown as they fell: bool [K], whether they are; and float32
    # [K], the return with which, NaN where it is not known.
    fell: np.ndarray | None = None
    fell_return: np.ndarray | None = None


_PARTS = (Coordinates, Ghost)


def assemble(frames: Sequence[Frame], pick: Callable[[list[np.ndarray]], np.ndarray]) -> Frame:
    """One frame of those of different environments at one moment; what is one number for all is the
    first one's.

    Args:
        frames: one at least.
        pick: makes one array of theirs.
    """

    def of(parts: Sequence[Any]) -> Any:
        values = {}
        for f in fields(parts[0]):
            found = [getattr(part, f.name) for part in parts]
            if any(isinstance(x, _PARTS) for x in found):
                # What one has not, all have not.
                values[f.name] = None if any(x is None for x in found) else of(found)
            elif all(isinstance(x, np.ndarray) for x in found):
                values[f.name] = pick(found)
        return replace(parts[0], **values)

    frame: Frame = of(frames)
    return replace(frame, detail=next((f.detail for f in frames if f.detail is not None), None))


def joined(frames: list[Frame], env_index: np.ndarray) -> Frame | None:
    """One moment of the environments of several devices, in the order of `env_index`.

    None if the frames do not have just those environments.
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
