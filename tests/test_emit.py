"""Emission: one host call per batched step, whatever the transformations around it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from brax_viser.device import host_call
from brax_viser.device.emit import emit, shard_of_this_device
from brax_viser.device.tie import tied
from brax_viser.records.decision import Decision, RowRequest
from brax_viser.records.protocol import (
    ANSWER_HEAD,
    BEST,
    BY_MEASURE,
    FINITE,
    FOREVER,
    FRESH,
    GIVEN,
    GRANTED,
    GRANTED_COORDINATES,
    HEADER_COLUMNS,
    INF,
    NAN,
    NEVER,
    NO_ENV,
    NO_ROW,
    NONFINITE,
    PUSH_COORDINATES,
    TERMINATED,
    UNASKED,
    UNKNOWN,
    WATCHED,
    WORST,
    size_of,
    unpack,
)


@pytest.fixture(
    autouse=True, params=["direct", pytest.param("io_callback", marks=pytest.mark.full)]
)
def mechanism(request, monkeypatch):
    """Runs all tests of this file with both mechanisms of the countdown."""
    monkeypatch.setenv(host_call.VARIABLE, request.param)
    return request.param


by_launch_too = pytest.mark.parametrize(
    "mechanism", (*host_call.MECHANISMS, host_call.LAUNCH), indirect=True
)
"""For tests of what the way of CUDA must do as well. The others are of the countdown alone: of its
grants, of what it ranks and checks on the device, and of its program."""


class RecordingHost:
    """A host that gives the same answer to every `ask`, and records the calls. On the way of CUDA
    it takes the same decision about each step, and records what arrives."""

    waits = True

    def __init__(
        self,
        *,
        push: bool,
        skip: int = 0,
        capacity: int = 4,
        rows=None,
        rule=GIVEN,
        again=0,
        detail=NO_ENV,
        skips=(),
    ):
        self.capacity = capacity
        self.push_wanted, self.skip, self.rows, self.rule = push, skip, rows, rule
        self.detail = detail
        self.skips = itertools.cycle(skips) if skips else None  # of answers to pushes
        self.again = again  # further pushes of the same step to ask for
        self.asked: list[tuple] = []
        self.pushed: list[tuple] = []
        self.details: list[dict[str, np.ndarray]] = []
        self.headers: list[dict[str, np.ndarray]] = []
        self.rules: list[int] = []  # of pushes
        self.lanes: dict[tuple[str, int], object] = {}

    def answer(self, origin, push):
        assert origin.num_rows == min(self.capacity, origin.num_envs)
        rows = np.arange(origin.num_rows) if self.rows is None else self.rows
        return np.array([push, self.skip, self.rule, self.detail, *rows], np.int32)

    def ask(self, origin, query):
        self.asked.append((origin, *np.asarray(query).tolist()))
        return self.answer(origin, self.push_wanted)

    def push(self, origin, layout, header, rows):
        rows, fields = np.array(rows), {}
        if rows.ndim == 1:
            assert rows.shape == (origin.num_rows * size_of(layout) + size_of(origin.detail),)
            rows, detail = np.split(rows, [origin.num_rows * size_of(layout)])
            rows = rows.reshape(origin.num_rows, -1)
            fields = unpack(origin.detail, detail[None])
        self.pushed.append((origin, unpack(layout, rows)))
        self.details.append({name: x[0] for name, x in fields.items()})
        shard, rule, *columns = np.array(header)
        assert rule == self.rule or (rule == UNASKED and self.skips is not None)
        self.rules.append(int(rule))
        columns = np.reshape(columns, (len(HEADER_COLUMNS), -1))
        self.headers.append(dict(zip(HEADER_COLUMNS, columns, strict=True), shard=shard))
        answer = self.answer(origin, len(self.pushed) % (1 + self.again) != 0)
        if self.skips is not None and not answer[0]:
            answer[1] = next(self.skips)
        return answer

    def basis(self, role):
        return ()

    def decide(self, origin, countdown, shard, *, hidden):
        self.asked.append((origin, countdown, shard))
        return self.decision(origin, self.push_wanted)

    def decision(self, origin, push):
        rows = self.answer(origin, push)[ANSWER_HEAD:]
        request = RowRequest(rows, rows, 1, rows, frozenset(rows.tolist()), rows)
        env = None if self.detail == NO_ENV else self.detail
        return Decision(self.skip, int(push), self.rule, request, env)

    def shipment(self, origin, shard, decision, ahead=0):
        return origin

    def stops_within(self, shipment):
        return False

    def is_held(self):
        return False

    def sent(self, shipment):
        return self.decision(shipment, len(self.pushed) % (1 + self.again) != 0)

    def arrived(self, shipment, layout, rows, detail, seconds):
        self.pushed.append((shipment, unpack(layout, rows)))
        fields = {} if detail is None else unpack(shipment.detail, detail[None])
        self.details.append({name: x[0] for name, x in fields.items()})

    def counted(self, shipment, count):
        assert count >= FRESH

    def failed(self, where, error):
        raise error


def step(host, x, countdown, kept=False):
    """Takes a toy step: doubles the state and emits it. No step is ever granted."""
    x, countdown, _ = granted_step(host, x, countdown, jnp.full_like(countdown, NO_ROW), kept)
    return x, countdown


def granted_step(host, x, countdown, rows, kept=False):
    """Takes the same step, and keeps the rows that the host grants."""
    x = 2.0 * x
    shard, num_shards = shard_of_this_device()
    payload = {
        "pos": x,
        "episode_return": x[..., 0],
        "since_termination": jnp.full(x.shape[:-1], NEVER, jnp.int32),
    }
    kept = emit(host, "train", countdown, rows, shard, num_shards, payload, state_is_kept=kept)
    return tied(x, kept[0]), *kept


def first_of(mechanism):
    """Returns the countdown of a first step: no state has one on the way of CUDA."""
    return 0 if mechanism == host_call.LAUNCH else FRESH


def run(function, *args):
    result = jax.block_until_ready(function(*args))
    jax.effects_barrier()
    return result


@pytest.mark.parametrize("num_envs", [1, 8, 256])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kept", [False, True], ids=["io_callback", "pure_callback"])
@by_launch_too
def test_vmapped_step_calls_the_host_once_per_batch(num_envs, jit, kept, mechanism):
    host = RecordingHost(push=True)
    function = jax.vmap(partial(step, host, kept=kept))
    x = jnp.arange(3.0 * num_envs).reshape(num_envs, 3)
    _, countdown = run(
        jax.jit(function) if jit else function, x, jnp.full(num_envs, FRESH, jnp.int32)
    )
    assert len(host.asked) == len(host.pushed) == 1
    origin, left, shard = host.asked[0]
    assert (origin.num_envs, left, shard) == (num_envs, first_of(mechanism), 0)
    assert countdown.shape == (num_envs,)
    drawn = min(4, num_envs)
    np.testing.assert_array_equal(host.pushed[0][1]["pos"], 2 * x[:drawn])


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@by_launch_too
def test_a_single_env_without_vmap_is_a_batch_of_one(jit):
    host = RecordingHost(push=True)
    function = partial(step, host)
    _, countdown = run(jax.jit(function) if jit else function, jnp.ones(3), jnp.int32(FRESH))
    assert [origin.num_envs for origin, *_ in host.asked] == [1]
    assert countdown.shape == ()
    assert host.pushed[0][1]["pos"].shape == (1, 3)


@by_launch_too
def test_nested_vmaps_three_deep_are_one_batch():
    host = RecordingHost(push=True, capacity=24, rows=np.arange(24))
    function = jax.jit(jax.vmap(jax.vmap(jax.vmap(partial(step, host)))))
    x = jnp.arange(72.0).reshape(2, 3, 4, 3)
    _, countdown = run(function, x, jnp.full((2, 3, 4), FRESH, jnp.int32))
    assert [origin.num_envs for origin, *_ in host.asked] == [24]
    assert countdown.shape == (2, 3, 4)
    np.testing.assert_array_equal(host.pushed[0][1]["pos"], 2 * x.reshape(24, 3))


@pytest.mark.parametrize("order", ["scan of vmap", "vmap of scan"])
@pytest.mark.parametrize("kept", [False, True], ids=["io_callback", "pure_callback"])
@by_launch_too
def test_scan_calls_the_host_once_per_batched_step(order, kept):
    host = RecordingHost(push=True)

    def scanned(function):
        def body(carry, _):
            return function(*carry), None

        return lambda x, c: jax.lax.scan(body, (x, c), None, length=10)[0]

    one = partial(step, host, kept=kept)
    function = scanned(jax.vmap(one)) if order == "scan of vmap" else jax.vmap(scanned(one))
    run(jax.jit(function), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    assert len(host.asked) == len(host.pushed) == 10
    seen = sorted(float(fields["pos"][0, 0]) for _, fields in host.pushed)
    assert seen == [2.0**i for i in range(1, 11)]


@by_launch_too
def test_the_answer_decides_when_the_host_is_asked_again(mechanism):
    host = RecordingHost(push=False, skip=3)

    def body(carry, _):
        return jax.vmap(partial(step, host))(*carry), None

    start = (jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    run(jax.jit(lambda c: jax.lax.scan(body, c, None, length=12)[0]), start)
    # Steps 0, 4 and 8 of 12: each answer skips three.
    assert [left for _, left, _ in host.asked] == [first_of(mechanism), 0, 0]
    assert not host.pushed


@by_launch_too
def test_chosen_rows_are_gathered_on_the_device(mechanism):
    host = RecordingHost(push=True, rows=[7, 0, 2, 2])
    x = jnp.arange(24.0).reshape(8, 3)
    run(jax.jit(jax.vmap(partial(step, host))), x, jnp.full(8, FRESH, jnp.int32))
    np.testing.assert_array_equal(host.pushed[0][1]["pos"], 2 * x[jnp.array([7, 0, 2, 2])])
    assert host.pushed[0][1]["finite"].tolist() == [1.0] * 4
    if mechanism == host_call.LAUNCH:
        return
    assert host.headers[0]["row"].tolist() == [7, 0, 2, 2]
    np.testing.assert_array_equal(
        host.headers[0]["return_bits"].view(np.float32), 2 * x[jnp.array([7, 0, 2, 2]), 0]
    )


GRANTING = [GRANTED, GRANTED, 0]  # `skip` of the answers to pushes, repeated


@pytest.mark.parametrize("num_envs", [3, 8])
def test_a_granted_step_is_pushed_without_an_ask(num_envs):
    chosen = [2, 0, 1] if num_envs == 3 else [7, 0, 2, 2]
    host = RecordingHost(push=True, rows=chosen, skips=GRANTING)
    x = jnp.arange(3.0 * num_envs).reshape(num_envs, 3)

    @jax.jit
    def rollout(x, countdown, rows):
        def body(carry, _):
            return jax.vmap(partial(granted_step, host))(*carry), None

        return jax.lax.scan(body, (x, countdown, rows), length=7)[0]

    full = partial(jnp.full, num_envs, dtype=jnp.int32)
    _, countdown, rows = run(rollout, x, full(FRESH), full(NO_ROW))
    # The host is asked at steps 0, 3 and 6; the last answer grants a step that is not taken.
    assert [left for _, left, _ in host.asked] == [FRESH, 0, 0]
    assert host.rules == [GIVEN, UNASKED, UNASKED, GIVEN, UNASKED, UNASKED, GIVEN]
    assert [h["row"].tolist() for h in host.headers] == [chosen] * 7
    for n, (_, fields) in enumerate(host.pushed):
        np.testing.assert_array_equal(fields["pos"], 2 ** (n + 1) * x[jnp.array(chosen)])
    assert countdown.tolist() == [GRANTED] * num_envs
    assert rows.tolist() == chosen + [NO_ROW] * (num_envs - len(chosen))


def test_a_granted_step_under_nested_vmaps_is_one_push_of_the_whole_batch():
    host = RecordingHost(push=True, rows=[23, 0, 7, 7], skips=[GRANTED])
    function = jax.jit(jax.vmap(jax.vmap(jax.vmap(partial(granted_step, host)))))
    x = jnp.arange(72.0).reshape(2, 3, 4, 3)
    full = partial(jnp.full, (2, 3, 4), dtype=jnp.int32)
    kept = run(function, x, full(FRESH), full(NO_ROW))
    run(function, *kept)
    assert len(host.asked) == 1 and host.rules == [GIVEN, UNASKED]
    assert host.headers[1]["row"].tolist() == [23, 0, 7, 7]


@pytest.mark.parametrize("lost", [0, 3, 7])
def test_rows_that_a_reset_has_lost_are_asked_for_again(lost):
    """The first K envs of the batch keep the rows; a reset of the others loses nothing."""
    host = RecordingHost(push=True, rows=[7, 0, 2, 2], skips=[GRANTED])
    function = jax.jit(jax.vmap(partial(granted_step, host)))
    full = partial(jnp.full, 8, dtype=jnp.int32)
    x, countdown, rows = run(function, jnp.ones((8, 3)), full(FRESH), full(NO_ROW))
    reset = jnp.arange(8) == lost
    run(function, x, jnp.where(reset, FRESH, countdown), jnp.where(reset, NO_ROW, rows))
    assert host.rules == [GIVEN, GIVEN if lost < 4 else UNASKED]
    assert len(host.asked) == (2 if lost < 4 else 1)
    assert host.headers[1]["row"].tolist() == [7, 0, 2, 2]


def test_the_answer_to_a_granted_push_may_ask_for_other_rows_of_that_step():
    host = RecordingHost(push=True, rows=[1, 1, 1, 1], skips=[GRANTED])
    function = jax.jit(jax.vmap(partial(granted_step, host)))
    full = partial(jnp.full, 8, dtype=jnp.int32)
    x = jnp.arange(24.0).reshape(8, 3)
    kept = run(function, x, full(FRESH), full(NO_ROW))
    host.rows, host.again = [5, 6, 7, 0], 2  # the third push is the last
    run(function, *kept)
    assert len(host.asked) == 1 and host.rules == [GIVEN, UNASKED, GIVEN]
    np.testing.assert_array_equal(host.pushed[2][1]["pos"], 4 * x[jnp.array([5, 6, 7, 0])])


@pytest.mark.parametrize("with_detail", [False, True])
def test_a_step_is_granted_with_or_without_its_coordinates(with_detail):
    """Where envs have details, those of some env follow the coordinates, asked for or not."""
    grants = [GRANTED_COORDINATES, GRANTED_COORDINATES, GRANTED, 0]
    host = RecordingHost(push=PUSH_COORDINATES, rows=[7, 0, 2, 2], skips=grants)

    def offered(x, countdown, rows):
        x = 2.0 * x
        payload = {"pos": x, "episode_return": x[..., 0], "since_termination": jnp.int32(0)}
        places = {"qvel": x[..., :1], "qpos": 3.0 * x}
        detail = {"frame": x} if with_detail else {}
        own = {"detail": detail, "coordinates": places}
        return x, *emit(host, "train", countdown, rows, jnp.int32(0), 1, payload, **own)

    full = partial(jnp.full, 8, dtype=jnp.int32)
    x = jnp.arange(24.0).reshape(8, 3)
    kept = (x, full(FRESH), full(NO_ROW))
    for _ in range(5):
        kept = run(jax.jit(jax.vmap(offered)), *kept)
    assert len(host.asked) == 2 and host.rules == [GIVEN, UNASKED, UNASKED, UNASKED, GIVEN]
    for n, (origin, fields) in enumerate(host.pushed):
        chosen = 2 ** (n + 1) * x[jnp.array([7, 0, 2, 2])]
        np.testing.assert_array_equal(fields["pos"], chosen)
        assert ("qpos" in fields) == (n != 3)
        if "qpos" in fields:
            np.testing.assert_array_equal(fields["qpos"], 3 * chosen)
            np.testing.assert_array_equal(fields["qvel"], chosen[:, :1])
            assert origin.coordinates == tuple((k, fields[k].shape[1:]) for k in ("qpos", "qvel"))


@pytest.mark.parametrize("wanted", [5, NO_ENV])
@by_launch_too
def test_one_envs_details_are_sent_with_the_rows_if_they_are_asked_for(wanted):
    host = RecordingHost(push=True, rows=[7, 0, 2, 2], detail=wanted)

    def offered(x, countdown):
        payload = {"pos": x, "episode_return": x[..., 0], "since_termination": jnp.int32(0)}
        detail = {"qpos": 3.0 * x, "frame": x.reshape(1, 3) - 1.0}
        rows = jnp.int32(NO_ROW)
        return emit(host, "train", countdown, rows, jnp.int32(0), 1, payload, detail=detail)

    x = jnp.arange(24.0).reshape(8, 3)
    run(jax.jit(jax.vmap(offered)), x, jnp.full(8, FRESH, jnp.int32))
    np.testing.assert_array_equal(host.pushed[0][1]["pos"], x[jnp.array([7, 0, 2, 2])])
    if wanted == NO_ENV:
        assert host.details == [{}]
        return
    assert dict(host.pushed[0][0].detail) == {"qpos": (3,), "frame": (1, 3)}
    np.testing.assert_array_equal(host.details[0]["qpos"], 3 * x[5])
    np.testing.assert_array_equal(host.details[0]["frame"], x[5][None] - 1)


@by_launch_too
def test_the_host_may_ask_for_other_rows_of_the_same_step():
    host = RecordingHost(push=True, again=2)

    def body(carry, _):
        return jax.vmap(partial(step, host))(*carry), None

    start = (jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    run(jax.jit(lambda c: jax.lax.scan(body, c, None, length=4)[0]), start)
    assert len(host.asked) == 4 and len(host.pushed) == 12
    seen = [float(fields["pos"][0, 0]) for _, fields in host.pushed]
    assert seen == [2.0] * 3 + [4.0] * 3 + [8.0] * 3 + [16.0] * 3


RETURNS = [3.0, -1.0, np.nan, 7.0, 7.0, -np.inf, 0.0, 2.0]
SINCE = [5, NEVER, 0, 9, 1, NEVER, NEVER, 2]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BEST, [3, 4, 0, 7, 6, 1, 2, 5]),
        (WORST, [1, 6, 7, 0, 3, 4, 2, 5]),
        (TERMINATED, [2, 4, 7, 0, 3, 1, 5, 6]),
        (NONFINITE, [2, 5, 6, 0, 1, 3, 4, 7]),
    ],
)
@pytest.mark.parametrize("num_rows", [3, 8])
def test_the_device_ranks_all_environments_by_a_rule(rule, expected, num_rows):
    host = RecordingHost(push=True, rule=rule, capacity=num_rows)
    payload = {
        "episode_return": jnp.array(RETURNS),
        "since_termination": jnp.array(SINCE, jnp.int32),
    }
    inspected = [jnp.arange(16.0).reshape(8, 2).at[6, 1].set(jnp.inf), jnp.arange(8)]

    @jax.jit
    @jax.vmap
    def ranked(payload, inspected):
        due, rows, shard = jnp.int32(0), jnp.int32(NO_ROW), jnp.int32(0)
        return emit(host, "train", due, rows, shard, 1, payload, inspected=inspected)

    run(ranked, payload, inspected)
    header = host.headers[0]
    assert header["row"].tolist() == expected[:num_rows]
    assert header["since_termination"].tolist() == [SINCE[i] for i in expected[:num_rows]]
    assert header["finite"].tolist() == [i not in (2, 5, 6) for i in expected[:num_rows]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BEST, [3, 0, 1, 4, 2, 5, 6, 7]),
        (WORST, [0, 3, 2, 4, 1, 5, 6, 7]),
        (BEST + BY_MEASURE, [4, 3, 2, 1, 0, 6, 5, 7]),
        (WORST + BY_MEASURE, [5, 6, 0, 1, 2, 3, 4, 7]),
        (BEST + 2 * BY_MEASURE, [1, 4, 2, 6, 0, 3, 5, 7]),
    ],
)
def test_envs_are_ranked_by_the_last_episodes_return_and_then_by_reward_per_step(rule, expected):
    """Envs 1, 2 and 4 have finished none, 5 and 6 have a NaN, and of 7 nothing is known."""
    host = RecordingHost(push=True, rule=rule, capacity=8)
    payload = {
        "episode_return": jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, -5.0, 0.5, 9.0]),
        "episode_length": jnp.array([10, 1, 8, 100, 6, 9, 2, UNKNOWN]),
        "finished_return": jnp.array([-9.0, *[np.nan] * 2, 90.0, np.nan, np.nan, np.nan, np.nan]),
        "finished_length": jnp.array([9, 0, 0, 9, 0, 4, 3, 0]),
        "since_termination": jnp.array(SINCE, jnp.int32),
    }

    @jax.jit
    @jax.vmap
    def ranked(payload):
        due, rows, shard = jnp.int32(0), jnp.int32(NO_ROW), jnp.int32(0)
        return emit(host, "train", due, rows, shard, 1, payload)

    run(ranked, payload)
    assert host.headers[0]["row"].tolist() == expected
    assert host.headers[0]["finite"].all()  # an unknown return is not reported


FIELDS = ("reward", "link_pos", "qvel", "observation/near")


def watched_rollout(host, turned, *, start=FRESH, num_steps=12):
    """Steps 8 envs. `turned`: field -> (env, step, value), the field's value from that step on."""

    def body(carry, t):
        countdown, rows, nonfinite = carry
        fields = {name: jnp.zeros((8, 2)) for name in FIELDS}
        for name, (env, step, value) in turned.items():
            fields[name] = fields[name].at[env, 1].set(jnp.where(t >= step, value, 0.0))
        payload = {"link_pos": fields["link_pos"], "reward": fields["reward"][:, 1]}
        payload |= {"episode_return": jnp.zeros(8), "since_termination": jnp.zeros(8, jnp.int32)}
        inspected = {"qvel": fields["qvel"], "observation": {"near": fields[FIELDS[3]]}}

        def offered(countdown, rows, nonfinite, payload, inspected):
            own = {"inspected": inspected, "nonfinite": nonfinite}
            return emit(host, "train", countdown, rows, jnp.int32(0), 1, payload, **own)

        return jax.vmap(offered)(countdown, rows, nonfinite, payload, inspected), None

    full = partial(jnp.full, 8, dtype=jnp.int32)
    start = full(start), full(NO_ROW), full(0)
    return run(jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(num_steps))[0]), start)


@pytest.mark.parametrize(("value", "kind"), [(jnp.nan, NAN), (jnp.inf, INF)])
def test_a_reward_that_turns_nan_or_inf_makes_its_step_due_and_is_reported_once(value, kind):
    host = RecordingHost(push=False, skip=100)
    watched_rollout(host, {"reward": (6, 4, value)})
    assert [asked[1:3] for asked in host.asked] == [(FRESH, 0), (97, 0)]
    origin, *_, row, count, watching, k0, k1, k2, k3 = host.asked[1]
    assert origin.watched == FIELDS
    assert (row, count, watching, k0, k1, k2, k3) == (6, 1, 0, kind, FINITE, FINITE, FINITE)


@pytest.mark.parametrize("field", FIELDS)
def test_all_fields_are_checked_at_due_steps_or_while_the_answer_asks_for_it(field):
    turned = {field: (6, 4, jnp.nan)}
    host = RecordingHost(push=False, skip=6)
    watched_rollout(host, turned)
    found = [asked for asked in host.asked if len(asked) > 3]
    assert len(found) == 1 and found[0][1] == (3 if field == "reward" else 0)
    host = RecordingHost(push=False, skip=WATCHED + 100)
    watched_rollout(host, turned)
    assert [asked[1] for asked in host.asked] == [FRESH, 97]
    assert host.asked[1][3:6] == (6, 1, 1) and host.asked[1][6 + FIELDS.index(field)] == NAN


def test_a_graver_finding_is_reported_before_an_inf_in_an_observation():
    host = RecordingHost(push=False, skip=100)
    watched_rollout(host, {"observation/near": (2, 0, jnp.inf), "qvel": (5, 0, jnp.nan)})
    assert host.asked[0][3:] == (5, 2, 0, FINITE, FINITE, NAN, FINITE)
    assert len(host.asked) == 1


def test_nothing_is_reported_once_the_viewer_is_closed():
    host = RecordingHost(push=False)
    countdown, *_ = watched_rollout(host, {"reward": (6, 4, jnp.nan)}, start=FOREVER)
    assert not host.asked and countdown.tolist() == [FOREVER - 12] * 8


def test_a_reset_of_some_envs_does_not_make_the_batch_ask():
    host = RecordingHost(push=False, skip=9)
    countdown = jnp.array([FRESH, 5, 5, 5], jnp.int32)
    _, countdown = run(jax.jit(jax.vmap(partial(step, host))), jnp.ones((4, 3)), countdown)
    assert not host.asked
    assert countdown.tolist() == [4, 4, 4, 4]


@by_launch_too
def test_the_call_survives_although_the_state_is_not_used():
    host = RecordingHost(push=True)

    def reward_only(x, countdown):
        x, _ = jax.vmap(partial(step, host))(x, countdown)
        return x[0, 0]  # the countdown is not used

    run(jax.jit(reward_only), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    assert len(host.asked) == len(host.pushed) == 1


@by_launch_too
def test_derivatives_are_unchanged():
    host = RecordingHost(push=True)
    countdown = jnp.full(8, FRESH, jnp.int32)

    def loss(x):
        y, _ = jax.vmap(partial(step, host))(x, countdown)
        return jnp.sum(y**2)

    x = jnp.arange(24.0).reshape(8, 3)
    np.testing.assert_allclose(run(jax.jit(jax.grad(loss)), x), 8 * x)
    np.testing.assert_allclose(run(jax.jit(jax.jacfwd(loss)), x), 8 * x)
    assert len(host.pushed) == 2


@by_launch_too
def test_an_unbatched_payload_under_vmap_is_broadcast_over_the_batch():
    host = RecordingHost(push=True)

    def constant(x, countdown):
        zero = jnp.zeros((), jnp.int32)
        payload = {"pos": x, "episode_return": jnp.zeros(()), "since_termination": zero}
        return emit(host, "eval", countdown, jnp.int32(NO_ROW), jnp.int32(0), 1, payload)

    run(jax.jit(jax.vmap(constant)), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    assert host.pushed[0][1]["episode_return"].tolist() == [0.0] * 4


def operations(jaxpr, *, sent):
    """Yields the names of a program's primitives, with or without those of the loop that sends."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name != "while" or sent:
            for inner in jax.tree.leaves(equation.params, is_leaf=is_program):
                if is_program(inner):
                    yield from operations(getattr(inner, "jaxpr", inner), sent=sent)


def is_program(x):
    return isinstance(x, ClosedJaxpr | Jaxpr)


def test_rows_are_not_checked_for_finiteness_when_the_host_is_only_asked():
    host, countdown = RecordingHost(push=True), jnp.full(8, FRESH, jnp.int32)
    program = jax.make_jaxpr(jax.jit(jax.vmap(partial(step, host))))(jnp.ones((8, 3)), countdown)
    assert "is_finite" in operations(program.jaxpr, sent=True)
    assert "is_finite" not in operations(program.jaxpr, sent=False)


@by_launch_too
def test_shape_evaluation_does_not_call_the_host():
    host = RecordingHost(push=True)
    jax.eval_shape(jax.vmap(partial(step, host)), jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32))
    assert not host.asked


@by_launch_too
def test_pmap_passes_on_the_index_of_the_shard():
    host = RecordingHost(push=True)
    devices = jax.local_device_count()
    function = jax.pmap(jax.vmap(partial(step, host)), axis_name="any")
    run(function, jnp.ones((devices, 4, 3)), jnp.full((devices, 4), FRESH, jnp.int32))
    assert sorted(shard for *_, shard in host.asked) == list(range(devices))
    assert {origin.num_shards for origin, *_ in host.asked} == {devices}


@by_launch_too
def test_a_batch_sharded_by_the_compiler_is_one_batch():
    host = RecordingHost(push=True)
    mesh = jax.make_mesh(
        (jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    x, countdown = jax.device_put((jnp.ones((8, 3)), jnp.full(8, FRESH, jnp.int32)), sharding)
    run(jax.jit(jax.vmap(partial(step, host)), in_shardings=sharding), x, countdown)
    assert [origin.num_envs for origin, *_ in host.asked] == [8]
