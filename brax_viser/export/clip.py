"""Picks the steps of an episode that an export shows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from brax_viser.records.episode import Episode, RunInfo

Progress = Callable[[float], object]
"""Called from time to time with the share that is done, from 0 to 1."""

ENDED_IN_WORDS = {
    "terminated": "terminated",
    "truncated": "reached the time limit",
    "nonfinite": "ended with a NaN or an Inf",
}
"""Text for how an episode ended, by `records.episode.ENDED`."""


@dataclass(frozen=True, eq=False)
class Clip:
    """The F steps of an episode that are drawn: evenly spaced, except the last."""

    episode: Episode
    rows: np.ndarray  # int [F], indices into the episode's poses
    fps: float  # steps drawn per second of robot time; also the rate at which they play in time

    @property
    def times(self) -> np.ndarray:
        """float [F], s of robot time since the reset."""
        return self.rows * self.episode.dt

    @property
    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Link poses, float32 [F, L, 3] in m and [F, L, 4] wxyz. A pose that is not finite is
        replaced by the one before it, as on the page; the first by the identity."""
        finite = finite_rows(self.episode.link_pos) & finite_rows(self.episode.link_rot)
        rows = last_good(finite)[self.rows]
        pos, rot = self.episode.link_pos[rows], self.episode.link_rot[rows]
        if not finite[rows].all():
            pos[~finite[rows]], rot[~finite[rows]] = 0.0, (1.0, 0.0, 0.0, 0.0)
        return pos, rot

    @property
    def title(self) -> str:
        """When the episode was trained, its return, and how it ended."""
        about = self.episode.summary
        seconds = about.length * self.episode.dt
        ended = ENDED_IN_WORDS[about.ended]
        return (
            f"step {about.num_steps:,} · return {about.episode_return:,.1f} · "
            f"{ended} after {seconds:.1f} s"
        )


def clip_of(episode: Episode, fps: float, seconds: tuple[float, float] | None = None) -> Clip:
    """Picks every k-th step, and the last.

    Args:
        episode: at least one step long.
        fps: at most so many steps are picked per second of robot time; k is the smallest number for
            that.
        seconds: first and last time to show, s since the reset; None: the whole episode.

    Raises:
        ValueError: `fps` is not above 0, or the episode has nothing between these times.
    """
    if not fps > 0:
        raise ValueError(f"fps={fps!r}: must be above 0")
    steps, dt = len(episode.qpos) - 1, episode.dt
    start, stop = seconds or (0.0, steps * dt)
    first, last = max(round(start / dt), 0), min(round(stop / dt), steps)
    if not first < last:
        raise ValueError(
            f"seconds=({start:g}, {stop:g}): the episode has no two steps there, it ends after "
            f"{steps * dt:.2f} s"
        )
    every = max(math.ceil(1 / (fps * dt) - 1e-6), 1)
    # The last step shows why an episode ended.
    rows = np.append(np.arange(first, last, every), last)
    return Clip(episode, rows, 1 / (every * dt))


def check(info: RunInfo, episodes: Sequence[Episode]) -> None:
    """Checks that the episodes are of the training's model.

    Raises:
        ValueError: there is no episode, or one has another number of coordinates or links.
    """
    if not episodes:
        raise ValueError("episodes=(): give at least one")
    expected = (info.mj_model.nq, info.mj_model.nbody - 1)
    for episode in episodes:
        found = (episode.qpos.shape[1], episode.link_pos.shape[1])
        if found != expected:
            raise ValueError(
                f"episode {episode.summary.key} has {found[0]} coordinates and {found[1]} links, "
                f"the model of {info.env} has {expected[0]} and {expected[1]}: it is of another one"
            )


def finite_rows(array: np.ndarray) -> np.ndarray:
    """bool [T]: whether all numbers of each row are finite."""
    return np.asarray(np.isfinite(array).all(axis=tuple(range(1, array.ndim))))


def last_good(good: np.ndarray) -> np.ndarray:
    """int [T]: for each row the index of the last good one up to it; 0 if there is none."""
    return np.maximum.accumulate(np.where(good, np.arange(len(good)), 0))
