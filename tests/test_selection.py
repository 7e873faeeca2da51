"""Tests which environments are drawn: rules, pages, and rankings by several devices."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.host.selection import RANKED, Choice, Ranking, Selection
from brax_viser.panel.choice import parse_indices, written
from brax_viser.records.agents import Agents, part
from brax_viser.records.protocol import BEST, BY_MEASURE, GIVEN, NEVER, NONFINITE, TERMINATED, WORST

RANDOM = np.random.default_rng(0)


def given_by(what, num_envs=256, capacity=64):
    return Selection.of(what).given(num_envs, capacity, RANDOM).tolist()


def test_the_first_envs_a_page_of_them_or_given_ones_are_chosen():
    assert given_by("first") == list(range(64))
    assert given_by("first", num_envs=8) == list(range(8))
    assert given_by([5, 2, 900]) == [5, 2]
    assert given_by(np.array([7, 3, 1]), capacity=2) == [7, 3]
    assert given_by(("page", 1)) == list(range(64))
    assert given_by(("page", 3)) == list(range(128, 192))
    assert given_by(("page", 4), num_envs=200) == list(range(192, 200))
    assert given_by(("page", 99), num_envs=200) == list(range(192, 200))  # the last page
    assert Selection.of("first").num_pages(2048, 64) == 32
    assert Selection.of("first").num_pages(65, 64) == 2


def test_the_limit_on_drawn_envs_holds_for_every_rule_except_indices():
    few = {what: replace(Selection.of(what), most=3) for what in ("first", "random", "best")}
    assert few["first"].given(256, 64, RANDOM).tolist() == [0, 1, 2]
    assert len(few["random"].given(256, 64, RANDOM)) == 3
    third = replace(Selection.of(("page", 3)), most=3)
    assert third.given(256, 64, RANDOM).tolist() == [6, 7, 8] and third.num_pages(256, 64) == 86
    assert few["first"].given(256, 2, RANDOM).tolist() == [0, 1], "not more than there are cells"
    listed = replace(Selection.of([5, 2, 9, 7]), most=3)
    assert listed.given(256, 64, RANDOM).tolist() == [5, 2, 9, 7]
    assert not few["first"].same_rule(Selection.of("first")), "another limit is another choice"
    choice = Choice()
    choice.begin(few["best"], 10, 8, now=0.0, keep=None)
    choice.report(0, BEST, ranking([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0]), 1, 10, 8, None)
    assert choice.env_index is not None and choice.env_index.tolist() == [1, 2, 3]
    assert choice.keep(9, 10, 8)
    assert choice.env_index.tolist() == [1, 2, 9], "the selected one takes the last place"


def test_random_envs_are_distinct_and_change_each_time():
    one, other = given_by("random", num_envs=4096), given_by("random", num_envs=4096)
    assert len(set(one)) == 64 and one != other
    assert given_by("random", num_envs=10) == list(range(10))


@pytest.mark.parametrize(
    "what",
    ["last", 3, [], [1, 1], [-1], [1.5], ("page", 0), ("page", 1.5), ("page", True), "indices"],
)
def test_a_bad_selection_is_refused(what):
    with pytest.raises(ValueError, match="select"):
        Selection.of(what)


def test_agents_have_equal_parts_of_the_batch_in_their_order():
    agents = Agents.named([f"seed {seed}" for seed in range(3)])

    def chosen(what, num_envs=24, capacity=6):
        found = Selection.of(what, agents=agents).given(num_envs, capacity, RANDOM)
        return found.tolist()

    assert chosen("agents") == [0, 1, 8, 9, 16, 17]
    assert chosen(("agent", "seed 2")) == chosen(("agent", 2)) == [16, 17, 18, 19, 20, 21]
    assert chosen(("agent", 1), capacity=64) == list(range(8, 16))
    assert chosen("agents", capacity=2) == [0, 8]
    assert agents.name_of(17, 24) == "seed 2 · env 1"
    assert agents.name_of(17, None) == Agents().name_of(17, 24) == "env 17"


@given(st.integers(1, 9), st.integers(1, 100))
def test_each_env_belongs_to_one_agent_even_if_the_batch_does_not_divide_evenly(count, num_envs):
    agents = Agents.named([f"agent {place}" for place in range(count)])
    parts = [part(agent, count, num_envs) for agent in range(count)]
    assert [env for own in parts for env in own] == list(range(num_envs))
    for agent, own in enumerate(parts):
        for place, env in enumerate(own):
            assert agents.name_of(env, num_envs) == f"agent {agent} · env {place}"


@pytest.mark.parametrize(
    "what", [("agent", "seed 3"), ("agent", 3), ("agent", -1), ("agent", True)]
)
def test_an_unknown_agent_is_refused(what):
    with pytest.raises(ValueError, match="must be among seed 0, seed 1, seed 2"):
        Selection.of(what, agents=Agents(("seed 0", "seed 1", "seed 2")))


@pytest.mark.parametrize("what", ["agents", ("agent", "seed 0")])
def test_agents_must_be_named_before_they_are_chosen(what):
    with pytest.raises(ValueError, match=r"viewer\.agents = "):
        Selection.of(what)


@pytest.mark.parametrize("names", ["seed 0", ["a", "b", "a"]])
def test_agents_names_must_be_a_list_without_duplicates(names):
    with pytest.raises(ValueError, match="none twice"):
        Agents.named(names)


def ranking(index, returns=None, since=None, finite=None, tier=None):
    count = len(index)
    return Ranking(
        np.array(index, np.int32),
        np.array(returns if returns is not None else [0.0] * count, np.float32),
        np.array(since if since is not None else [NEVER] * count, np.int32),
        np.array(finite if finite is not None else [True] * count),
        np.array(tier if tier is not None else [0] * count, np.int32),
    )


def test_ranking_rules_wait_for_all_devices_and_take_the_best_of_all():
    choice = Choice()
    choice.begin(Selection.of("best"), 20, 4, now=0.0, keep=None)
    assert choice.env_index is None and choice.pending
    assert choice.rule_for(0) == choice.rule_for(1) == BEST
    choice.report(0, BEST, ranking([3, 1, 2], [5.0, 4.0, 1.0]), 2, 20, 4, None)
    assert choice.rule_for(0) == GIVEN and choice.rule_for(1) == BEST and choice.pending
    choice.report(1, BEST, ranking([12, 11, 15], [4.5, 4.0, 0.0]), 2, 20, 4, None)
    assert not choice.pending
    assert choice.env_index is not None
    assert choice.env_index.tolist() == [3, 12, 1, 11]


def test_envs_without_a_finished_episode_rank_last_for_best_and_for_worst():
    choice = Choice()
    for rule, expected in (("best", [12, 3, 11, 1]), ("worst", [3, 12, 1, 11])):
        choice.begin(Selection.of(rule), 20, 4, now=0.0, keep=None)
        code = choice.rule_for(0)
        choice.report(0, code, ranking([3, 1, 2], [5.0, 7.0, 0.0], tier=[0, 1, 2]), 2, 20, 4, None)
        choice.report(1, code, ranking([12, 11], [9.0, 9.0], tier=[0, 1]), 2, 20, 4, None)
        assert choice.env_index is not None
        assert choice.env_index.tolist() == expected


def test_another_measure_makes_another_rule_where_it_matters():
    best, other = Selection.of("best"), replace(Selection.of("best"), rank_by="so_far")
    assert not best.same_rule(other) and best.code == BEST and other.code == BEST + BY_MEASURE
    first = Selection.of("first")
    assert first.same_rule(replace(first, rank_by="per_second"))


@given(
    returns=st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8),
    rule=st.sampled_from(["best", "worst"]),
)
def test_the_true_best_and_worst_are_chosen_across_devices(returns, rule):
    choice = Choice()
    choice.begin(Selection.of(rule), 8, 3, now=0.0, keep=None)
    sign = -1.0 if rule == "best" else 1.0
    for shard in range(2):
        mine = np.array(returns[4 * shard : 4 * shard + 4], np.float32)
        top = np.argsort(sign * mine, kind="stable")[:3]
        choice.report(shard, RANKED[rule], ranking(4 * shard + top, mine[top]), 2, 8, 3, None)
    expected = np.argsort(sign * np.array(returns, np.float32), kind="stable")[:3]
    assert choice.env_index is not None
    assert choice.env_index.tolist() == expected.tolist()


def test_no_env_is_drawn_if_the_rule_finds_none():
    choice = Choice()
    choice.begin(Selection.of("nan"), 8, 3, now=0.0, keep=None)
    assert choice.rule_for(0) == NONFINITE
    choice.report(0, NONFINITE, ranking([0, 1, 2]), 1, 8, 3, None)
    assert choice.found_none
    choice.begin(Selection.of("nan"), 8, 3, now=1.0, keep=None)
    choice.report(0, NONFINITE, ranking([5, 0, 1], finite=[False, True, True]), 1, 8, 3, None)
    assert choice.env_index is not None and choice.env_index.tolist() == [5]
    choice.begin(Selection.of("terminated"), 8, 3, now=2.0, keep=None)
    choice.report(0, TERMINATED, ranking([6, 2, 1], since=[0, 4, NEVER]), 1, 8, 3, None)
    assert choice.env_index.tolist() == [6, 2]


def test_a_ranking_by_a_superseded_rule_does_not_count():
    choice = Choice()
    choice.begin(Selection.of("best"), 20, 4, now=0.0, keep=None)
    choice.begin(Selection.of("worst"), 20, 4, now=1.0, keep=None)
    choice.report(0, BEST, ranking([3, 1], [5.0, 4.0]), 1, 20, 4, None)
    assert choice.pending and choice.env_index is None
    choice.begin(Selection.of("first"), 20, 4, now=2.0, keep=None)
    choice.report(0, WORST, ranking([3, 1], [5.0, 4.0]), 1, 20, 4, None)
    assert choice.env_index is not None and choice.env_index.tolist() == [0, 1, 2, 3]


def test_the_selected_env_keeps_a_cell():
    choice = Choice()
    choice.begin(Selection.of("first"), 100, 4, now=0.0, keep=50)
    assert choice.env_index is not None and choice.env_index.tolist() == [0, 1, 2, 50]
    choice.begin(Selection.of("first"), 100, 4, now=0.0, keep=2)
    assert choice.env_index.tolist() == [0, 1, 2, 3]
    choice.begin(Selection.of("first"), 100, 4, now=0.0, keep=500)  # there is no env 500
    assert choice.env_index.tolist() == [0, 1, 2, 3]
    choice.begin(Selection.of("worst"), 100, 2, now=0.0, keep=7)
    choice.report(0, WORST, ranking([4, 5], [0.0, 1.0]), 1, 100, 2, 7)
    assert choice.env_index.tolist() == [4, 7]


def test_another_kept_env_replaces_the_previous_one_and_the_rest_stay():
    choice = Choice()
    choice.begin(Selection.of("random"), 100, 4, now=0.0, keep=None)
    assert choice.env_index is not None
    first = choice.env_index.tolist()
    others = [env for env in range(100) if env not in first]
    assert choice.keep(others[0], 100, 4)
    assert choice.env_index.tolist() == [*first[:3], others[0]] and choice.extra == others[0]
    assert not choice.keep(others[0], 100, 4)
    assert choice.keep(first[3], 100, 4)
    assert choice.env_index.tolist() == first and choice.extra is None
    assert not choice.keep(None, 100, 4)


def test_envs_are_chosen_again_at_each_stretch_unless_they_must_be_kept():
    choice, best = Choice(), Selection.of("best")
    stale = lambda selection, **kwargs: choice.is_stale(  # noqa: E731
        selection, **{"now": 100.0, "begins": False, "seconds": np.inf, **kwargs}
    )
    assert stale(best)  # nothing has been chosen yet
    choice.begin(best, 10, 2, now=99.0, keep=None)
    assert not stale(best, begins=True)  # the devices are still ranking
    choice.report(0, BEST, ranking([1, 2], [2.0, 1.0]), 1, 10, 2, None)
    assert stale(best, begins=True) and not stale(best)
    assert stale(best, seconds=0.5) and not stale(best, seconds=3.0)
    assert stale(Selection.of("worst"))
    # With `sticky`, the drawn envs are kept from that moment on.
    kept = Selection.of("best", sticky=True)
    assert not stale(kept) and not stale(kept, begins=True) and not stale(kept, seconds=0.5)
    assert stale(best, begins=True)
    choice.begin(kept, 10, 2, now=99.0, keep=None)
    choice.report(0, BEST, ranking([], []), 1, 10, 2, None)
    assert stale(kept, begins=True)  # no env was found, so there is none to keep
    choice.made_of = Selection.of("first")
    assert not stale(Selection.of("first"), begins=True)


def test_indices_are_parsed_and_written_as_people_type_them():
    assert parse_indices("3, 141 7").indices == (3, 141, 7)
    assert parse_indices(" 10-13,2, 11").indices == (10, 11, 12, 13, 2)
    assert written((0, 1, 2, 7, 9, 10)) == "0-2, 7, 9-10"
    assert written(()) == ""
    for text in ("", "three", "1-", "-4", "5-2", "0-99999999"):
        with pytest.raises(ValueError):
            parse_indices(text)


def test_all_ranges_together_have_a_limit():
    many = " ".join(f"{i}-{i + 9999}" for i in range(0, 100_000, 10_000))
    assert len(parse_indices(many).indices) == 100_000
    with pytest.raises(ValueError, match="at most 100,000 indices in all"):
        parse_indices(f"{many} 100001")
