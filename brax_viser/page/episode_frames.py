"""Makes frames and views of recorded episodes. Pure functions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from brax_viser.page.playback import between
from brax_viser.records.episode import Episode
from brax_viser.records.frame import COORDINATES, Coordinates, Detail, Frame, Ghost
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View

ALMOST = 1e-6
"""Fraction of a step below which a difference is rounding."""


Placed = Sequence[tuple[Episode, float]]
"""Episodes, and the place at which each is drawn, in steps; between two, poses are interpolated."""


def view_of(
    robots: Placed,
    num_envs: int,
    selected: int | None,
    came: float,
    position: float,
    ghosts: Placed = (),
    travels: int | None = None,
) -> View:
    """Draws episodes, and others as their ghosts.

    Args:
        robots: K episodes, of different environments.
        num_envs: environments of the training.
        selected: the environment whose details are wanted.
        came: s, when this view was requested.
        position: s of robot time since the beginning.
        ghosts: K episodes, each drawn over the robot of the same place in the list; or none.
        travels: index of the link that can travel without limit. Each ghost is drawn where its
            robot is, or they would soon be too far apart to be compared. None: ghosts stay where
            they were recorded.
    """
    episodes = [episode for episode, _ in robots]
    frame = frame_at(episodes, [int(at + ALMOST) for _, at in robots], num_envs, selected)
    pos, rot = _poses_at(robots)
    seen = np.zeros(len(robots), bool)
    if not ghosts:
        return View(frame, pos, rot, seen, position, came)
    others, turned = _poses_at(ghosts)
    apart = pos - others
    if travels is not None:
        others[..., :2] += apart[:, None, travels, :2]
    seconds = np.array([at * episode.dt for episode, at in ghosts], np.float32)
    ghost = Ghost.over(frame, others, turned, seconds, apart, travels or 0)
    return View(replace(frame, ghost=ghost), pos, rot, seen, position, came, (others, turned))


def _poses_at(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Returns link poses, float32 [K, L, 3] in m and [K, L, 4] wxyz."""
    poses = []
    for episode, at in placed:
        step = int(at + ALMOST)
        part, pose = at - step, (episode.link_pos[step], episode.link_rot[step])
        if part > ALMOST and step < episode.summary.length:
            after = episode.link_pos[step + 1], episode.link_rot[step + 1]
            pose = between(pose, after, part, stays=np.zeros(1, bool))
        poses.append(pose)
    pos, rot = (np.stack(arrays) for arrays in zip(*poses, strict=True))
    return pos, rot


def frame_at(
    episodes: Sequence[Episode], steps: Sequence[int], num_envs: int, selected: int | None
) -> Frame:
    """Makes the frame of several episodes, each after so many of its own steps.

    Args:
        episodes: K of them, of different environments.
        steps: 0 to the episode's length each.
        num_envs: environments of the training.
        selected: the environment whose details are wanted.
    """
    pairs = list(zip(episodes, steps, strict=True))
    pos = np.stack([e.link_pos[t] for e, t in pairs])
    rot = np.stack([e.link_rot[t] for e, t in pairs])
    fell = [t == e.summary.length and e.summary.ended == "terminated" for e, t in pairs]
    finite = [np.isfinite(pos[k]).all() and np.isfinite(rot[k]).all() for k in range(len(pairs))]
    first = episodes[0].summary
    own = {name: [_known(e, name, t) for e, t in pairs] for name in COORDINATES}
    together = {n: np.stack(x) for n, x in own.items() if all(a is not None for a in x)}  # type: ignore[arg-type]
    return Frame(
        role="train",
        env_steps=first.num_steps // max(num_envs, 1) + max(steps),
        env_index=np.array([e.summary.env for e in episodes], np.int32),
        num_envs=num_envs,
        link_pos=pos,
        link_rot=rot,
        reward=np.array([e.steps["reward"][t - 1] if t else 0.0 for e, t in pairs], np.float32),
        episode_return=np.array([_return(e, t) for e, t in pairs], np.float32),
        episode_length=np.array(steps, np.int32),
        since_termination=np.where(fell, 0, NEVER).astype(np.int32),
        finite=np.array(finite, bool),
        detail=next((_detail(e, t) for e, t in pairs if e.summary.env == selected), None),
        coordinates=Coordinates.of(together),
    )


def _return(episode: Episode, step: int) -> float:
    """The return after so many steps; at the end as the device has summed it."""
    if step == episode.summary.length:
        return episode.summary.episode_return
    return float(episode.steps["reward"][:step].sum(dtype=np.float32))


def _known(episode: Episode, name: str, step: int) -> np.ndarray | None:
    """One of `COORDINATES`, or None if it was not recorded. Controls before the first step are
    those of the first."""
    if name in ("qpos", "qvel"):
        return getattr(episode, name)[step]
    return episode.steps[name][max(step - 1, 0)] if name in episode.steps else None


def _detail(episode: Episode, step: int) -> Detail:
    """Returns the recorded details of an episode after so many steps."""
    at = max(step - 1, 0)
    fields = {name: _known(episode, name, step) for name in COORDINATES}
    known = {name: x for name, x in fields.items() if x is not None}
    for name, values in episode.steps.items():
        if name == "action" or name.startswith("metrics/"):
            known[name] = values[at]
    return Detail.of(episode.summary.env, known)
