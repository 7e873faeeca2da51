"""One call of a stock trainer, as far as it is known."""

import weakref
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainerCall:
    """One call of a stock trainer, as far as it is known."""

    algorithm: str  # "PPO"
    evaluating: bool  # whether it is stepping its evaluation rollout
    num_timesteps: int | None = None  # env steps that it was asked for
    num_envs: int | None = None  # environments in its training batch
    identity: "weakref.ref[Any] | None" = field(default=None, compare=False)
    num_reports: int | None = None  # what `progress_fn` counts up to, where it is not env steps

    @property
    def keeps_state(self) -> bool:
        """Whether the compiled program returns the environments' state, as all evaluations do and
        most trainings. ES and ARS throw it away when a rollout is over."""
        return self.evaluating or self.algorithm in ("PPO", "SAC", "APG", "BC")

    @property
    def counts_ended_episodes(self) -> bool:
        """Whether each env step counts. ES and ARS step on until the longest episode is over, and
        leave out of their `num_timesteps` what an environment does after its first one."""
        return self.algorithm not in ("ES", "ARS")

    def same_run(self, other: "TrainerCall | None") -> bool:
        """Whether both were read off one and the same call of the trainer."""
        mine = self.identity() if self.identity else None
        theirs = other.identity() if other and other.identity else None
        return mine is not None and mine is theirs
