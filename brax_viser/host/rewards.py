"""Finds, among the numbers of a training, the reward that the head of the page shows."""

import math
from dataclasses import dataclass

from brax_viser.host.metrics import SEEN_LENGTH, SEEN_REWARD, Metrics

MOST_POINTS = 128
"""Most points of the head's curve."""

SEEN = "seen"
"""The kind that no trainer reports: from the last episodes of the robots that are drawn."""

KINDS = {
    "training": ("episode/sum_reward", "episode/length"),
    "evaluation": ("eval/episode_reward", "eval/avg_episode_length"),
    SEEN: (SEEN_REWARD, SEEN_LENGTH),
}
"""Kind of report, the best one first -> the metrics, those of Brax's trainers among them, with the
mean return and the mean length, in env steps, of training episodes or of an evaluation."""


@dataclass(frozen=True)
class RewardView:
    """The rewards of a training at one moment."""

    kind: str  # one of `KINDS`
    newest: float
    num_steps: int  # env steps over all envs, at the newest
    curve: tuple[tuple[int, float], ...]  # (env steps over all envs, reward), in order
    episode_length: float | None  # env steps of one environment, mean; None: not known


def rewards_of(metrics: Metrics) -> RewardView | None:
    """Returns the rewards of the training's episodes, or else of the evaluations, or else of the
    robots that are drawn; None before there is any."""
    for kind, (reward, length) in KINDS.items():
        curve = metrics.curve(reward)
        if curve is not None:
            lengths = metrics.curve(length) or metrics.curve(SEEN_LENGTH)
            points = list(zip(curve.steps.astype(int).tolist(), curve.values.tolist(), strict=True))
            every = math.ceil(len(points) / MOST_POINTS)
            return RewardView(
                kind,
                points[-1][1],
                points[-1][0],
                tuple(sorted((*points[:-1:every], points[-1]))),  # a corrected count steps back
                None if lengths is None else float(lengths.values[-1]),
            )
    return None
