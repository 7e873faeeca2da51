"""Chooses the environments that are drawn, by a rule, for each rollout. Pure logic."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brax_viser.records.agents import UNNAMED, Agents, part
from brax_viser.records.protocol import (
    BEST,
    BY_MEASURE,
    GIVEN,
    MEASURES,
    NEVER,
    NONFINITE,
    TERMINATED,
    WORST,
)

RANKED = {"best": BEST, "worst": WORST, "terminated": TERMINATED, "nan": NONFINITE}
"""Rules for which the device ranks all environments, with the code of each in the protocol."""

NOTHING_SECONDS = 0.5
"""How long to wait before ranking again if a rule has found no environment."""

OF_AGENTS = ("agents", "agent")
"""Rules for a batch of several agents: some of each, or those of one."""

RULES = ("first", "page", "random", *RANKED, *OF_AGENTS, "indices")


@dataclass(frozen=True)
class Selection:
    """The environments that the user asks for, independent of the number of environments."""

    rule: str = "first"  # one of RULES
    page: int = 1  # for rule "page", counted from 1
    indices: tuple[int, ...] = ()  # for rule "indices"
    agent: int = 0  # for rule "agent"
    num_agents: int = 1  # for both rules of `OF_AGENTS`
    sticky: bool = False  # keep the first choice instead of choosing again at each stretch
    rank_by: str = MEASURES[0]  # one of MEASURES: the return that "best" and "worst" rank by
    # Environments to draw at most, unless they are given by "indices"; None: one in each cell.
    most: int | None = None

    @property
    def code(self) -> int:
        """The protocol's code for a rule by which the device ranks."""
        measured = self.rule in ("best", "worst")
        return RANKED[self.rule] + BY_MEASURE * MEASURES.index(self.rank_by) * measured

    @classmethod
    def of(cls, what: object, *, sticky: bool = False, agents: Agents = UNNAMED) -> "Selection":
        """Checks and converts the argument of a user's `select`.

        Raises:
            ValueError: not a rule, a page below 1, not distinct indices of 0 or more, or none of
                `agents`.
        """
        if isinstance(what, str) and what == "agents":
            agents.index(0)
            return cls("agents", num_agents=len(agents.names), sticky=sticky)
        if isinstance(what, tuple) and len(what) == 2 and what[0] == "agent":
            agent = agents.index(what[1])
            return cls("agent", agent=agent, num_agents=len(agents.names), sticky=sticky)
        if isinstance(what, str) and what in ("first", "random", *RANKED):
            return cls(what, sticky=sticky)
        if isinstance(what, tuple) and len(what) == 2 and what[0] == "page":
            page = what[1]
            if isinstance(page, bool) or not isinstance(page, int | np.integer) or page < 1:
                raise ValueError(f"select({what!r}): pages are counted from 1")
            return cls("page", page=int(page), sticky=sticky)
        if isinstance(what, str) or not isinstance(what, Sequence | np.ndarray):
            names = ", ".join(repr(rule) for rule in ("first", "random", *RANKED))
            raise ValueError(
                f"select({what!r}): must be {names}, 'agents', ('agent', name), "
                "('page', number) or a list of env indices"
            )
        if any(isinstance(i, bool) or int(i) != i for i in what):
            raise ValueError(f"select({what!r}): env indices are whole numbers")
        indices = tuple(int(i) for i in what)
        if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
            raise ValueError(
                f"select({what!r}): must be at least one env index, each 0 or more, none twice"
            )
        return cls("indices", indices=indices, sticky=sticky)

    def same_rule(self, other: "Selection") -> bool:
        """Whether both choose by the same rule, regardless of `sticky`."""
        rank_by = self.rank_by if self.rule in ("best", "worst") else other.rank_by
        return replace(self, sticky=other.sticky, rank_by=rank_by) == other

    def room(self, capacity: int) -> int:
        """Returns how many environments are drawn at most, where there are `capacity` cells."""
        if self.most is None or self.rule == "indices":
            return capacity
        return min(self.most, capacity)

    def num_pages(self, num_envs: int, capacity: int) -> int:
        """Returns the number of pages, where there are `capacity` cells."""
        return -(-num_envs // self.room(capacity))

    def given(self, num_envs: int, capacity: int, random: np.random.Generator) -> np.ndarray:
        """Returns the choice of a rule that needs no ranking, int32 [K <= capacity]. Indices that
        don't exist are left out; a page that doesn't exist becomes the last one."""
        capacity = self.room(capacity)
        match self.rule:
            case "first":
                chosen = np.arange(min(num_envs, capacity))
            case "page":
                page = min(self.page, self.num_pages(num_envs, capacity)) - 1
                chosen = np.arange(page * capacity, min((page + 1) * capacity, num_envs))
            case "random":
                count = min(num_envs, capacity)
                chosen = np.sort(random.choice(num_envs, count, replace=False))
            case "agent":
                chosen = np.array(part(self.agent, self.num_agents, num_envs)[:capacity])
            case "agents":
                each = max(capacity // self.num_agents, 1)
                parts = [part(i, self.num_agents, num_envs) for i in range(self.num_agents)]
                chosen = np.array([env for own in parts for env in own[:each]][:capacity])
            case "indices":
                chosen = np.array([i for i in self.indices if i < num_envs][:capacity])
            case _:
                raise AssertionError(f"{self.rule!r} is ranked on the device")
        return chosen.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The environments that one device ranks first, as pushed."""

    env_index: np.ndarray  # int32 [K], over all devices
    measure: np.ndarray  # float32 [K], the return by which best and worst are ranked
    since_termination: np.ndarray  # int32 [K], env steps
    finite: np.ndarray  # bool [K]
    tier: np.ndarray  # int32 [K], takes precedence over the return: see `rank.measured`

    def order(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns two sort keys [K], ascending: by the first, then by the second. Environments
        that the rule excludes have inf as the second key."""
        none = np.zeros_like(self.tier)
        match rule:
            case "best" | "worst":
                # Non-finite returns are kept, though last: the grid should not lose robots by them.
                return self.tier, -self.measure if rule == "best" else self.measure
            case "terminated":
                age = self.since_termination
                return none, np.where(age < NEVER, age.astype(np.float64), np.inf)
            case _:
                return none, np.where(self.finite, np.inf, 0.0)


@dataclass
class Choice:
    """The environments chosen for one rollout by a selection. Not thread-safe: the caller locks.

    Ranking rules need all devices: `begin`, then a `report` from each of them, then the best of all
    are chosen.
    """

    env_index: np.ndarray | None = None  # int32 [K], in the order of the cells; None: not yet
    made_of: Selection | None = None
    since: float = -np.inf  # s, time of the last `begin`
    round: int = 0  # number of `begin` calls
    extra: int | None = None  # the environment drawn only because `keep` requires it
    _chosen: np.ndarray | None = None  # int32 [K], by the rule alone
    _reports: dict[int, Ranking] = field(default_factory=dict)
    _pending: bool = False
    _random: np.random.Generator = field(default_factory=np.random.default_rng)

    def begin(
        self, selection: Selection, num_envs: int, capacity: int, now: float, keep: int | None
    ) -> None:
        """Chooses again, or starts a ranking round if the rule needs one.

        Args:
            selection: the rule.
            num_envs: environments in the rollout.
            capacity: maximum number of drawn environments.
            now: s.
            keep: an environment that must be drawn regardless of the rule.
        """
        self.made_of, self.since = selection, now
        self.round += 1
        self._reports, self._pending = {}, selection.rule in RANKED
        if not self._pending:
            chosen = selection.given(num_envs, capacity, self._random)
            self._settle(chosen, keep, num_envs, capacity)

    def rule_for(self, shard: int) -> int:
        """Returns the rule by which the device must rank; GIVEN if it need not rank."""
        if not self._pending or shard in self._reports:
            return GIVEN
        assert self.made_of is not None
        return self.made_of.code

    @property
    def found_none(self) -> bool:
        """Whether the newest completed choice is empty."""
        return self.env_index is not None and len(self.env_index) == 0

    @property
    def pending(self) -> bool:
        """Whether some device has not reported yet."""
        return self._pending

    def report(
        self,
        shard: int,
        rule: int,
        ranking: Ranking,
        num_shards: int,
        num_envs: int,
        capacity: int,
        keep: int | None,
    ) -> None:
        """Takes one device's ranking; the last device's completes the choice.

        A ranking by any rule other than the one awaited from this device is ignored.
        """
        if rule != self.rule_for(shard):
            return
        self._reports[shard] = ranking
        if len(self._reports) < num_shards:
            return
        assert self.made_of is not None
        reports = self._reports.values()
        index = np.concatenate([r.env_index for r in reports])
        keys = [r.order(self.made_of.rule) for r in reports]
        tier, key = (np.concatenate(parts) for parts in zip(*keys, strict=True))
        # Ties by index, as on the device.
        order = np.lexsort((index, key, tier))
        room = self.made_of.room(capacity)
        chosen = index[order][np.isfinite(key[order])][:room].astype(np.int32)
        self._settle(chosen, keep, num_envs, capacity)
        self._pending = False

    def is_stale(self, selection: Selection, now: float, *, begins: bool, seconds: float) -> bool:
        """Whether it is time to choose again.

        Args:
            selection: the current selection.
            now: s.
            begins: whether a stretch begins.
            seconds: s, the age at which a choice is replaced where there are no stretches; inf
                where there are.
        """
        if self.made_of is None or not selection.same_rule(self.made_of):
            return True
        if self._pending or selection.rule not in ("random", *RANKED):
            return False
        if selection.sticky and not self.found_none:
            return False
        if self.found_none:
            seconds = min(seconds, NOTHING_SECONDS)
        return begins or now - self.since >= seconds

    def keep(self, env: int | None, num_envs: int, capacity: int) -> bool:
        """Makes `env` the one that must be drawn; the choice by rule stays. Returns whether this
        changes `env_index`."""
        if self._chosen is None or self._pending:
            return False
        before = self.env_index
        self._settle(self._chosen, env, num_envs, capacity)
        return not np.array_equal(before, self.env_index)  # type: ignore[arg-type]

    def _settle(self, chosen: np.ndarray, keep: int | None, num_envs: int, capacity: int) -> None:
        """Sets the choice, with `keep` appended, or in the last place if there is no room."""
        if self.made_of is not None:
            capacity = self.made_of.room(capacity)
        self._chosen, self.extra = chosen, None
        if keep is not None and keep < num_envs and keep not in chosen:
            self.extra = keep
            chosen = np.append(chosen[: capacity - 1], np.int32(keep))
        self.env_index = chosen
