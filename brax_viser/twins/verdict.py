"""Judges whether robots and their twins agree, over the last seconds on screen. Pure logic."""

import math
from dataclasses import dataclass

import numpy as np

from brax_viser.records.frame import Ghost


@dataclass(frozen=True)
class Verdict:
    """What the twins say of the training's physics."""

    twins: int  # environments that have had a twin lately
    parted: int  # those of them that were further than the limit from it
    env: int  # the one that parted soonest after its twin had started, or else the furthest one
    seconds: float  # s of robot time until `env` had parted; of the longest comparison, if none has
    distance: float  # m, mean over the links, of the furthest; inf: MuJoCo lost a twin


@dataclass(eq=False)
class _Run:
    """A robot and its twin, from a start of the twin to its next."""

    seconds: float  # s of robot time since the start
    worst: float = 0.0  # m
    worst_at: float = 0.0  # s
    passed: float = math.inf  # s, see `Ghost.passed`
    seen: int = 0  # number of the frame that it was seen in last

    def parted_at(self, limit: float) -> float:
        """Returns the time, s, at which both were further apart than `limit`, m; inf: never."""
        if not self.worst > limit:
            return math.inf
        return self.passed if math.isfinite(self.passed) else self.worst_at


class Judge:
    """Remembers, of each environment, the present run of its twin and the one before: a twin that
    has just started is close to its robot whatever the physics."""

    def __init__(self, most_frames: int):
        """Remembers nothing yet.

        Args:
            most_frames: number of frames after which an environment that has no twin any more is
                forgotten.
        """
        self._most_frames, self._frames = most_frames, 0
        self._runs: dict[int, list[_Run]] = {}  # by environment: one or two, the newest last

    def add(self, env_index: np.ndarray, ghost: Ghost) -> None:
        """Adds a frame.

        Args:
            env_index: int32 [K].
            ghost: of these environments.
        """
        self._frames += 1
        there = ghost.there
        columns = (env_index, ghost.seconds, ghost.bodies, ghost.passed)
        rows = zip(*(column[there].tolist() for column in columns), strict=True)
        for env, seconds, distance, passed in rows:
            runs = self._runs.setdefault(env, [])
            if not runs or seconds < runs[-1].seconds:
                runs.append(_Run(seconds))
                del runs[:-2]
            run = runs[-1]
            run.seconds, run.seen = seconds, self._frames
            run.passed = min(run.passed, passed)
            # Of a twin that MuJoCo has lost, the distance is NaN.
            distance = math.inf if math.isnan(distance) else distance
            if distance > run.worst:
                run.worst, run.worst_at = distance, seconds

    def verdict(self, limit: float) -> Verdict | None:
        """Returns the verdict; None if no twin has made a step.

        Args:
            limit: m, mean distance of the links from which on robot and twin count as parted.
        """
        oldest = self._frames - self._most_frames
        self._runs = {env: runs for env, runs in self._runs.items() if runs[-1].seen > oldest}
        both = [(env, run) for env, runs in self._runs.items() for run in runs]
        longest = max((run.seconds for _, run in both), default=0.0)
        if longest <= 0.0:
            return None
        furthest = max(both, key=lambda one: one[1].worst)
        soonest = min(both, key=lambda one: one[1].parted_at(limit))
        parted = {env for env, run in both if math.isfinite(run.parted_at(limit))}
        env, run = soonest if parted else furthest
        seconds = run.parted_at(limit) if parted else longest
        return Verdict(len(self._runs), len(parted), env, seconds, furthest[1].worst)
