"""The callbacks alone, called as XLA calls them: with memory that XLA reuses afterwards."""

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brax_viser.host.callbacks import Callbacks
from brax_viser.host.control import Control
from brax_viser.host.selection import Selection
from brax_viser.host.state import SharedState
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    FRESH,
    GIVEN,
    HEADER_COLUMNS,
    HEADER_HEAD,
    NEVER,
    PUSH,
    WORST,
    Layout,
    Origin,
)
from brax_viser.records.trainer_call import TrainerCall

ROWS = 3
LAYOUT: Layout = (("link_pos", (1, 3)), ("reward", ()))


@pytest.fixture
def shared() -> SharedState:
    return SharedState(Control(watched=True, mode="every_step"))


@pytest.fixture
def source(shared):
    adapter: Any = SimpleNamespace(dt=0.05)
    grid: Any = SimpleNamespace(capacity=ROWS)
    return Callbacks(shared, adapter, grid, None, lambda source, call: None)


def origin_of(num_envs: int, num_shards: int = 1) -> Origin:
    return Origin("train", num_envs, num_shards, ROWS)


def pushed(
    source: Callbacks, origin: Origin, shard: int, rule: int, rows: list[int], returns: list[float]
) -> tuple[int, ...]:
    """Returns the answer to a push, and overwrites the arguments afterwards."""
    header = np.zeros(HEADER_HEAD + len(HEADER_COLUMNS) * ROWS, np.int32)
    header[:HEADER_HEAD] = shard, rule
    columns = header[HEADER_HEAD:].reshape(len(HEADER_COLUMNS), ROWS)
    numbers = np.array(returns, np.float32).view(np.int32)
    columns[:] = [rows, [NEVER] * ROWS, numbers, [1] * ROWS, [0] * ROWS]
    values = np.full((ROWS, 4), 7.0, np.float32)
    answer = tuple(source.push(origin, LAYOUT, header, values).tolist())
    header[:], values[:] = 0, np.nan
    return answer


def test_ranked_and_pushed_rows_are_kept_when_xla_reuses_their_memory(source, shared):
    shared.selection = Selection("worst")
    origin = origin_of(8, num_shards=2)
    for shard in (0, 1):
        assert source.ask(origin, np.array([FRESH, shard], np.int32))[0] == PUSH
    assert pushed(source, origin, 0, WORST, [5, 2, 7], [-9.0, -3.0, 1.0])[0] == 0
    answer = pushed(source, origin, 1, WORST, [1, 4, 6], [-5.0, -4.0, 2.0])
    assert source.rollouts["train"].choice.env_index.tolist() == [5, 8 + 1, 8 + 4]
    assert (answer[0], answer[2]) == (PUSH, GIVEN)
    assert answer[ANSWER_HEAD : ANSWER_HEAD + 2] == (1, 4)
    pushed(source, origin, 1, GIVEN, [1, 4, 0], [-5.0, -4.0, 0.0])
    (packet,) = shared.mailbox.take()
    assert packet.env_index.tolist() == [9, 12] and (packet.rows == 7.0).all()
    assert shared.fault is None


def test_a_grant_to_a_batch_of_another_size_is_asked_for_again(source, shared):
    """A trainer steps first many environments and then few, with states that it has kept."""
    rows = [0, 1, 2]

    def step(origin: Origin, query: int) -> tuple[int, ...]:
        answer = source.ask(origin, np.array([query, 0], np.int32))
        assert answer[0] == PUSH
        return pushed(source, origin, 0, GIVEN, rows, [0.0] * ROWS)

    many, few = origin_of(64), origin_of(2)
    step(many, FRESH)
    step(many, 0)
    shared.mailbox.take()
    granted = [pushed(source, many, 0, -1, rows, [0.0] * ROWS) for _ in range(3)]
    assert len(set(granted)) == 1 and len(shared.mailbox.take()) == 3
    assert 0 in source.rollouts["train"].grants
    answer = pushed(source, few, 0, -1, rows, [0.0] * ROWS)
    assert not shared.mailbox.take()  # not the three rows that were granted
    assert answer[0] == PUSH and answer[ANSWER_HEAD:] == (0, 1, 0)
    assert source.rollouts["train"].num_envs == 2
    pushed(source, few, 0, GIVEN, [0, 1, 0], [0.0] * ROWS)
    (packet,) = shared.mailbox.take()
    assert packet.env_index.tolist() == [0, 1] and packet.num_envs == 2
    assert shared.fault is None


def begin_another(source: Callbacks) -> list[object]:
    """Traces the environment as a new trainer does, which the returned object keeps alive."""
    made_here = threading.Event()  # any object that supports weak references
    source.traced(TrainerCall("PPO", False, identity=weakref.ref(made_here)))
    return [made_here]


@pytest.mark.parametrize("what", [[0, 1, 9], "worst"])
def test_a_push_of_a_superseded_training_is_dropped_and_streaming_stays_on(source, shared, what):
    first = begin_another(source)
    shared.selection = Selection.of(what)
    origin = origin_of(8, num_shards=2)
    for shard in (0, 1):
        answer = source.ask(origin, np.array([FRESH, shard], np.int32))
        assert answer[0] == PUSH
    second = begin_another(source)
    source.ask(origin, np.array([FRESH, 1], np.int32))
    code = int(answer[2])
    assert pushed(source, origin, 0, code, [0, 1, 0], [0.0] * ROWS)[:2] == (0, 0)
    models = np.zeros((ROWS, 4), np.float32)
    assert source.push_model(origin, np.array(0, np.int32), models).tolist()[:2] == [0, 0]
    assert shared.fault is None and shared.control.streaming
    assert not shared.mailbox.take()
    # The training that has begun is streamed.
    answers = [source.ask(origin, np.array([0, 0], np.int32)) for _ in range(3)]
    assert any(answer[0] == PUSH for answer in answers) and len(first + second) == 2


def test_rows_requested_by_another_training_are_not_used(source, shared):
    origin = origin_of(8)
    shared.selection = Selection.of([5, 2, 7])
    source.ask(origin, np.array([FRESH, 0], np.int32))
    alive = begin_another(source)
    shared.selection = Selection.of([0, 1, 3])
    source.ask(origin, np.array([FRESH, 0], np.int32))
    assert pushed(source, origin, 0, GIVEN, [5, 2, 7], [0.0] * ROWS)[:2] == (0, 0)
    assert not shared.mailbox.take()
    pushed(source, origin, 0, GIVEN, [0, 1, 3], [0.0] * ROWS)
    (packet,) = shared.mailbox.take()
    assert packet.env_index.tolist() == [0, 1, 3] and shared.fault is None and alive
