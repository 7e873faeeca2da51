"""What is kept of a training stays bounded, and evenly spread over it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brax_viser.runs.memory import RecentEpisodes, size_of
from brax_viser.runs.thinning import best_recording, surplus
from tests.episodes import episode

SIZE = size_of(episode(0))


@given(
    st.dictionaries(st.integers(0, 10**9), st.integers(0, 1000), max_size=40),
    st.integers(-10, 20_000),
    st.data(),
)
def test_what_stays_fits_and_has_the_first_the_newest_and_the_kept(sizes, max_bytes, data):
    steps = sorted(sizes)
    kept = set(data.draw(st.lists(st.sampled_from(steps), max_size=3)) if steps else [])
    gone = surplus(steps, [sizes[step] for step in steps], max_bytes, kept)
    assert len(set(gone)) == len(gone)
    assert set(gone) <= set(steps)
    never = {*kept, *steps[:1], *steps[-1:]}
    assert not never & set(gone)
    left = set(steps) - set(gone)
    assert sum(sizes[step] for step in left) <= max_bytes or left == never
    if gone:  # no more than is needed
        assert sum(sizes[step] for step in {*left, gone[-1]}) > max_bytes


@given(st.integers(5, 30), st.integers(1, 300), st.integers(0, 300))
def test_of_a_long_training_an_even_selection_stays(most, count, best):
    steps = []
    for step in range(count):
        steps.append(step)
        for gone in surplus(steps, [1] * len(steps), most, {best}):
            steps.remove(gone)
    assert len(steps) == min(most, count)
    assert count <= most or np.diff(steps).max() <= 3 * (count - 1) / (most - 1)


def test_the_best_recording_has_the_highest_finite_return():
    returns = {10: 3.0, 20: float("nan"), 30: 7.0, 40: float("inf"), 50: 7.0}
    summaries = [episode(step, episode_return=x).summary for step, x in returns.items()]
    assert best_recording(summaries) == best_recording(summaries[::-1]) == 30
    assert best_recording(summaries[1:2]) is None
    assert best_recording([]) is None


def test_memory_drops_whole_recordings_but_never_the_first_the_best_or_the_newest():
    kept = RecentEpisodes(max_bytes=12 * SIZE)
    for i in range(100):
        dropped = kept.add([episode(i, env, episode_return=-abs(i - 37)) for env in range(2)])
        assert {s.recording for s in dropped}.isdisjoint({0, 37, i})
        assert sum(size_of(kept.get(s.key)) for s in kept.summaries()) <= 12 * SIZE
    recordings = [s.recording for s in kept.summaries()]
    assert recordings == sorted(2 * sorted(set(recordings)))
    assert {0, 37, 99} < set(recordings)


def test_memory_keeps_three_recordings_even_if_they_do_not_fit():
    kept = RecentEpisodes(max_bytes=1)
    for i, x in enumerate([1.0, 5.0, 2.0, 3.0]):
        kept.add([episode(i, episode_return=x)])
    assert [s.recording for s in kept.summaries()] == [0, 1, 3]


def test_memory_hands_out_what_it_got_and_its_version_tells_of_changes():
    kept = RecentEpisodes()
    versions = [kept.version]
    first, second = episode(10), episode(20)
    kept.add([second])
    versions.append(kept.version)
    kept.add([first])
    versions.append(kept.version)
    assert len(set(versions)) == 3
    assert kept.summaries() == (first.summary, second.summary)
    assert kept.get(first.summary.key) is first
    assert kept.oldest() == (first,)
    kept.discard([first])
    assert kept.version not in versions
    assert kept.summaries() == (second.summary,)
    with pytest.raises(KeyError):
        kept.get(first.summary.key)
    before = kept.version
    kept.add([])
    assert kept.version == before


def test_memory_without_room_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        RecentEpisodes(0)
