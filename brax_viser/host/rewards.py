"""Keeps the rewards of a training as a curve of few points, and the newest length of episodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MOST_POINTS = 120
"""Most points of a curve, however long the training is."""

KINDS = {
    "training": ("episode/sum_reward", "episode/length"),
    "evaluation": ("eval/episode_reward", "eval/avg_episode_length"),
}
"""Kind of report -> the metrics of Brax's trainers with the mean return and the mean length, in env
steps, of recent training episodes or of an evaluation."""

SEEN = "seen"
"""The kind of what the trainer does not report: the last episodes of the robots that are drawn."""


@dataclass(frozen=True)
class RewardView:
    """The rewards of a training at one moment."""

    kind: str  # one of `KINDS`, or `SEEN`
    newest: float
    num_steps: int  # env steps over all envs, at the newest
    curve: tuple[tuple[int, float], ...]  # (env steps over all envs, reward), in order
    episode_length: float | None  # env steps of one environment, mean; None: not known


@dataclass
class Curve:
    """At most `MOST_POINTS` points that are spread evenly over the whole training."""

    points: list[tuple[int, float]] = field(default_factory=list)
    _apart: float = 0.0  # env steps between two points, at least

    def add(self, num_steps: int, value: float) -> None:
        """Adds a point. One that is close to the last takes its place."""
        points = self.points
        if points and num_steps <= points[-1][0]:  # a newer value, or a count that was corrected
            points[:] = [point for point in points if point[0] < num_steps]
        if len(points) > 1 and num_steps - points[-2][0] < self._apart:
            points.pop()
        points.append((num_steps, value))
        if len(points) > MOST_POINTS:
            first, last = points[0], points[-1]
            points[:] = [first, *points[2:-1:2], last]
            self._apart = 2 * (last[0] - first[0]) / MOST_POINTS


class Rewards:
    """The curves of a training, by kind. The caller keeps others from calling meanwhile."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}
        self._lengths: dict[str, float] = {}

    def reported(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Takes the metrics that a trainer hands to `progress_fn`."""
        for kind, (reward, length) in KINDS.items():
            if reward in metrics:
                self.add(
                    kind,
                    num_steps,
                    float(metrics[reward]),  # type: ignore[arg-type]
                    float(metrics[length]) if length in metrics else None,  # type: ignore[arg-type]
                )

    def add(self, kind: str, num_steps: int, reward: float, length: float | None) -> None:
        """Adds a mean return, and the mean length of the episodes in env steps, if known."""
        self._curves.setdefault(kind, Curve()).add(num_steps, reward)
        if length is not None:
            self._lengths[kind] = length

    def view(self) -> RewardView | None:
        """Returns the curve of the training's episodes, or else of the evaluations, or else of the
        robots that are drawn; None before there is any."""
        for kind in (*KINDS, SEEN):
            if kind in self._curves:
                points = self._curves[kind].points
                length = self._lengths.get(kind, self._lengths.get(SEEN))
                return RewardView(kind, points[-1][1], points[-1][0], tuple(points), length)
        return None
