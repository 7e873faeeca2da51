"""Which environments are drawn: a rule, and what it comes to for a rollout. Pure logic."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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
"""Rules for which the device ranks all environments, with its code for them."""

NOTHING_SECONDS = 0.5
"""How long to wait before ranking again where a rule has found nobody."""

RULES = ("first", "page", "random", *RANKED, "indices")


@dataclass(frozen=True)
class Selection:
    """What a person has asked to see, before it is known how many environments there are."""

    rule: str = "first"  # one of RULES
    page: int = 1  # of rule "page", counted from 1
    indices: tuple[int, ...] = ()  # of rule "indices"
    sticky: bool = False  # keep what was chosen first, instead of choosing anew at each stretch
    rank_by: str = MEASURES[0]  # one of MEASURES: which return rules "best" and "worst" go by

    @property
    def code(self) -> int:
        """Of a rule for which the device ranks: what it is told, one of `protocol`'s."""
        measured = self.rule in ("best", "worst")
        return RANKED[self.rule] + BY_MEASURE * MEASURES.index(self.rank_by) * measured

    @classmethod
    def of(cls, what: object, *, sticky: bool = False) -> "Selection":
        """Checks what a user passed.

        Raises:
            ValueError: not a rule, a page below 1, or not distinct indices of 0 or more.
        """
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
                f"select({what!r}): must be {names}, ('page', number) or a list of env indices"
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
        """Whether both choose alike, be it for once or anew at each stretch."""
        rank_by = self.rank_by if self.rule in ("best", "worst") else other.rank_by
        return replace(self, sticky=other.sticky, rank_by=rank_by) == other

    def num_pages(self, num_envs: int, capacity: int) -> int:
        """How many pages of `capacity` environments there are."""
        return -(-num_envs // capacity)

    def given(self, num_envs: int, capacity: int, random: np.random.Generator) -> np.ndarray:
        """int32 [K <= capacity]: what a rule that needs no ranking comes to; indices that do not
        exist are left out, and a page that does not exist is the last one."""
        match self.rule:
            case "first":
                chosen = np.arange(min(num_envs, capacity))
            case "page":
                page = min(self.page, self.num_pages(num_envs, capacity)) - 1
                chosen = np.arange(page * capacity, min((page + 1) * capacity, num_envs))
            case "random":
                count = min(num_envs, capacity)
                chosen = np.sort(random.choice(num_envs, count, replace=False))
            case "indices":
                chosen = np.array([i for i in self.indices if i < num_envs][:capacity])
            case _:
                raise AssertionError(f"{self.rule!r} is ranked on the device")
        return chosen.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The environments that one device ranks first, as its push says."""

    env_index: np.ndarray  # int32 [K], over all devices
    measure: np.ndarray  # float32 [K], the return that best and worst are ranked by
    since_termination: np.ndarray  # int32 [K], env steps
    finite: np.ndarray  # bool [K]
    tier: np.ndarray  # int32 [K], goes before the return: see `rank.measured`

    def order(self, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Two keys [K]: the lower are ranked first, by the first key and then by the second; whom
        the rule is not about has inf for the second."""
        none = np.zeros_like(self.tier)
        match rule:
            case "best" | "worst":
                # Kept, though last: a grid is not to lose robots because a return is not finite.
                return self.tier, -self.measure if rule == "best" else self.measure
            case "terminated":
                age = self.since_termination
                return none, np.where(age < NEVER, age.astype(np.float64), np.inf)
            case _:
                return none, np.where(self.finite, np.inf, 0.0)


@dataclass
class Choice:
    """What the selection has come to for one rollout. Not thread-safe: the caller locks.

    Rules that rank go round by the devices: `begin`, a `report` from each of them, and then the
    best of all are chosen.
    """

    env_index: np.ndarray | None = None  # int32 [K], in the order of the cells; None: not yet
    made_of: Selection | None = None
    since: float = -np.inf  # s, when it was made
    round: int = 0  # how often it was begun
    extra: int | None = None  # drawn only because it is selected
    _chosen: np.ndarray | None = None  # int32 [K], by the rule alone
    _reports: dict[int, Ranking] = field(default_factory=dict)
    _pending: bool = False
    _random: np.random.Generator = field(default_factory=np.random.default_rng)

    def begin(
        self, selection: Selection, num_envs: int, capacity: int, now: float, keep: int | None
    ) -> None:
        """Chooses anew.

        Args:
            selection: the rule.
            num_envs: environments in the rollout.
            capacity: how many can be drawn.
            now: s.
            keep: an environment to be drawn in any case.
        """
        self.made_of, self.since = selection, now
        self.round += 1
        self._reports, self._pending = {}, selection.rule in RANKED
        if not self._pending:
            chosen = selection.given(num_envs, capacity, self._random)
            self._settle(chosen, keep, num_envs, capacity)

    def rule_for(self, shard: int) -> int:
        """Which rule the device is to rank by now; GIVEN if it need not."""
        if not self._pending or shard in self._reports:
            return GIVEN
        assert self.made_of is not None
        return self.made_of.code

    @property
    def found_nobody(self) -> bool:
        """Whether the newest choice that was made is empty."""
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
        """One device has ranked its environments; with the last of them the choice is made.

        What it was asked for before the choice was begun anew, by another rule, counts no more.
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
        chosen = index[order][np.isfinite(key[order])][:capacity].astype(np.int32)
        self._settle(chosen, keep, num_envs, capacity)
        self._pending = False

    def is_stale(self, selection: Selection, now: float, *, begins: bool, seconds: float) -> bool:
        """Whether it is time to choose anew.

        Args:
            selection: what is asked for now.
            now: s.
            begins: whether a stretch begins.
            seconds: s, after which to choose anew where there are no stretches; inf where there
                are.
        """
        if self.made_of is None or not selection.same_rule(self.made_of):
            return True
        if self._pending or selection.rule not in ("random", *RANKED):
            return False
        if selection.sticky and not self.found_nobody:
            return False
        if self.found_nobody:
            seconds = min(seconds, NOTHING_SECONDS)
        return begins or now - self.since >= seconds

    def keep(self, env: int | None, num_envs: int, capacity: int) -> bool:
        """Another environment is to be drawn in any case; the rest stay. Returns whether this
        changes anything."""
        if self._chosen is None or self._pending:
            return False
        before = self.env_index
        self._settle(self._chosen, env, num_envs, capacity)
        return not np.array_equal(before, self.env_index)  # type: ignore[arg-type]

    def _settle(self, chosen: np.ndarray, keep: int | None, num_envs: int, capacity: int) -> None:
        """`keep` is drawn in any case: appended, or in the last place where there is no room."""
        self._chosen, self.extra = chosen, None
        if keep is not None and keep < num_envs and keep not in chosen:
            self.extra = keep
            chosen = np.append(chosen[: capacity - 1], np.int32(keep))
        self.env_index = chosen
