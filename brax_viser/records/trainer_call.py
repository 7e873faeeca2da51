"""Describes one call of a stock trainer, as far as it is known."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainerCall:
    """One call of a stock trainer, as far as it is known."""

    algorithm: str  # "PPO"
    evaluating: bool  # whether it steps its evaluation environments
    num_timesteps: int | None = None  # env steps that the call requested
    num_envs: int | None = None  # environments in its training batch
    identity: "weakref.ref[Any] | None" = field(default=None, compare=False)
    num_reports: int | None = None  # last count in `progress_fn`, if not in env steps
    # Its arguments by name, such as "seed": those that are numbers, texts or truth values; and
    # "network_factory", the arguments of Brax's own function, or the name of another one.
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def keeps_state(self) -> bool:
        """Whether the compiled program returns the environments' state, as all evaluations and most
        trainings do. ES and ARS discard it at the end of a rollout."""
        return self.evaluating or self.algorithm in ("PPO", "SAC", "APG", "BC")

    @property
    def counts_ended_episodes(self) -> bool:
        """Whether each env step counts. ES and ARS step until the longest episode ends, and leave
        an environment's steps after its first episode out of their `num_timesteps`."""
        return self.algorithm not in ("ES", "ARS")

    def same_run(self, other: "TrainerCall | None") -> bool:
        """Whether both describe the same call of the trainer."""
        mine = self.identity() if self.identity else None
        theirs = other.identity() if other and other.identity else None
        return mine is not None and mine is theirs
