"""Decides which NaN and Inf findings are reported and which of them hold the training."""

import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from brax_viser.records.protocol import FINITE, INF

_WORDS = {
    "reward": "reward",
    "link_pos": "link positions",
    "link_rot": "link rotations",
    "qvel": "velocities",
}

MOST_FIELDS = 4
"""Maximum number of fields that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """Fields of one environment that have turned NaN or Inf."""

    role: str  # "train" | "eval": the rollout of the environment
    env: int  # index over all devices
    fields: tuple[tuple[str, str], ...]  # (name, "NaN" or "Inf"), all non-finite at that step
    env_steps: int  # batched steps of that rollout, including this one
    step: int  # the same over all environments, as the page and the trainer count them
    others: int = 0  # other environments that turned NaN or Inf at the same step
    exact: bool = True  # whether all was finite one step before
    each_reward: bool = True  # whether rewards are checked at each step, whatever else is

    @property
    def is_inf_observed(self) -> bool:
        """Whether the finding is only an Inf in observations, which may be there by design."""
        return all(n.startswith("observation") and kind == "Inf" for n, kind in self.fields)

    def __str__(self) -> str:
        where = f"env {self.env}" + (" of the evaluation" if self.role == "eval" else "")
        each_reward = self.each_reward
        turned = [f for f in self.fields if self.exact or (each_reward and f[0] == "reward")]
        before = [field for field in self.fields if field not in turned]
        said = f"{_said(turned, 'turned')} at step {self.step:,}" if turned else ""
        if before and turned:  # at some step since all fields were last checked
            said += f" ({_said(before, '')}, too)"
        elif before:
            said = f"{_said(before, 'found')} at step {self.step:,}"
        more = f", and {self.others:,} more env{'s'[: self.others - 1]} with it"
        return f"{where}: {said}{more if self.others else ''}"


def _said(fields: Sequence[tuple[str, str]], verb: str) -> str:
    kinds = dict.fromkeys(kind for _, kind in fields)
    return " and ".join(
        " ".join(filter(None, (_listed([name for name, k in fields if k == kind]), verb, kind)))
        for kind in kinds
    )


def _listed(names: Sequence[str]) -> str:
    words = [_WORDS.get(name, name.replace("observation/", "observation ")) for name in names]
    if len(words) > MOST_FIELDS:
        words = [*words[:MOST_FIELDS], f"{len(words) - MOST_FIELDS} more"]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def fields_of(names: Sequence[str], kinds: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Returns the non-finite fields of a device's report: (name, "NaN" or "Inf") of each."""
    named = zip(names, kinds, strict=True)
    return tuple((name, "Inf" if kind == INF else "NaN") for name, kind in named if kind != FINITE)


@dataclass
class Findings:
    """The findings reported for a training. Not thread-safe: the shared state's lock guards it.

    An Inf in an observation may be there by design, in all environments and at all times. It is
    reported once, and does not prevent other findings from being reported.
    """

    rearmed: int = 0  # how often the devices were told to check everything again
    _told: dict[tuple[Hashable, ...], Finding] = field(default_factory=dict)
    _held: set[bool] = field(default_factory=set)

    @property
    def told(self) -> tuple[Finding, ...]:
        """The first finding of each kind and the last one that held the training, in order."""
        return tuple(self._told.values())

    @property
    def by_source(self) -> tuple[tuple[Any, Finding], ...]:
        """The same findings, each with the source that it was added for."""
        return tuple((whose, finding) for (whose, *_), finding in self._told.items())

    def add(self, whose: Hashable, finding: Finding, *, holds: bool = False) -> bool:
        """Adds a finding. Returns whether it must be reported: it is the first of its kind, or it
        holds the training and replaces the last one that did."""
        key = whose, finding.role, finding.is_inf_observed
        is_first = self._told.setdefault(key, finding) is finding
        if holds and not is_first:
            self._told[*key, "holds"] = finding
        return is_first or holds

    def holds(self, finding: Finding) -> bool:
        """Whether this finding holds the training (`hold_on_nan`): the first of its kind does."""
        kind = finding.is_inf_observed
        holds = kind not in self._held
        self._held.add(kind)
        return holds

    def rearm(self) -> None:
        """Lets the next finding hold the training again."""
        self._held.clear()
        self.rearmed += 1

    def forget(self) -> None:
        """Forgets all findings: the next one of each kind is reported again."""
        self._told.clear()
        self.rearm()


def explained(error: BaseException, findings: Sequence[Finding]) -> str:
    """Describes in words why a training failed, with the first finding if there is one."""
    words = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AssertionError) and frames and frames[-1].name == "assert_is_replicated":
        words = (
            "AssertionError: at its end Brax makes sure that all devices have the same parameters "
            "(brax.training.pmap.assert_is_replicated), and a NaN is not even equal to itself: "
            "the parameters contain one"
        )
    return f"{words}. First not finite: {findings[0]}" if findings else words
