"""Returns and lengths on the device, compared with a plain loop in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from flax import struct

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.episode import Coordinates, EpisodeLog, Motion, evidence_of, first_log
from brax_viser.device.log_in_info import INFO_KEY
from brax_viser.records.protocol import NEVER
from envs.cartpole import CartPole
from tests.sample import FallingCartPole
from tests.support import adapter_of
from tests.toy import State, Toy

NUM_ENVS, STEPS = 12, 60


@pytest.fixture(scope="module")
def viewer():
    with Viewer(port=0, streaming=False) as viewer:
        yield viewer


@pytest.fixture(scope="module")
def inner():
    """The bare env's first states and step, batched, and the keys and actions of a rollout."""
    env = FallingCartPole()
    keys = jax.random.split(jax.random.PRNGKey(1), NUM_ENVS)
    actions = jax.random.uniform(jax.random.PRNGKey(2), (STEPS, NUM_ENVS, 1), minval=-1, maxval=1)
    return jax.jit(jax.vmap(env.reset))(keys), jax.jit(jax.vmap(env.step)), keys, actions


def of_finished(log: EpisodeLog) -> np.ndarray:
    """Computes the returns of the last finished episodes, NaN if none is known."""
    return np.where(log.finished_length > 0, log.finished_return, np.nan)


def reference(inner, episode_length: int, action_repeat: int) -> list[dict[str, np.ndarray]]:
    """Computes the expected record after each of the trainer's steps."""
    first, step, _, actions = inner
    state = first
    total, length, steps = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, int), np.zeros(NUM_ENVS, int)
    since = np.full(NUM_ENVS, NEVER)
    over = np.zeros(NUM_ENVS, bool)
    told = []
    for action in actions:
        total[over], length[over], steps[over] = 0.0, 0, 0
        for _ in range(action_repeat):
            state = step(state, action)
            total += np.asarray(state.reward)
            length += 1
            since = np.where(np.asarray(state.done) > 0, 0, np.minimum(since + 1, NEVER))
        steps += action_repeat
        over = (np.asarray(state.done) > 0) | (steps >= episode_length)
        told.append({"return": total.copy(), "length": length.copy(), "since": since.copy()})
        state = where(over, first, state)
    return told


def where(over: np.ndarray, one, other):
    """Takes the state `one` for the envs in `over`, `other` for the rest."""
    return jax.tree.map(
        lambda a, b: jnp.where(over.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other
    )


@pytest.mark.parametrize("order", ["inside", "outside"])
@pytest.mark.parametrize(
    ("episode_length", "action_repeat"), [(1000, 1), (15, 1), (15, 2), (7, 3), (1000, 2)]
)
def test_returns_are_whole_across_resets_and_repeated_actions(
    viewer, inner, order, episode_length, action_repeat
):
    if order == "inside":
        env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
        env = envs.training.wrap(env, episode_length, action_repeat)
    else:
        env = envs.training.wrap(FallingCartPole(), episode_length, action_repeat)
        env = VisualizedEnv(env, grid=(2, 2), viewer=viewer)
    *_, keys, actions = inner
    state, step = jax.jit(env.reset)(keys), jax.jit(env.step)
    expected = reference(inner, episode_length, action_repeat)
    resets = 0
    for action, told in zip(actions, expected, strict=True):
        state = step(state, action)
        log = EpisodeLog(**state.info[INFO_KEY])
        np.testing.assert_allclose(log.episode_return, told["return"], rtol=1e-5)
        resets += int(np.sum(np.asarray(state.done)))
        # Outside the EpisodeWrapper one step is a step of the trainer, with its repeats.
        steps = action_repeat if order == "outside" else 1
        np.testing.assert_array_equal(np.asarray(log.episode_length) * steps, told["length"])
        ended = told["since"] == 0
        np.testing.assert_array_equal(np.asarray(log.since_termination) == 0, ended)
        if order == "inside":
            np.testing.assert_array_equal(log.since_termination, told["since"])
    assert resets > 20  # enough ends of episodes for a meaningful test


def test_a_reset_by_a_users_own_loop_restarts_the_record(viewer):
    """The record is replaced together with the state."""
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    first = state = reset(jax.random.PRNGKey(0))
    total = 0.0
    for action in (0.1, 0.2, 0.3):
        state = step(state, jnp.array([action]))
        total += float(state.reward)
    assert float(state.info[INFO_KEY]["episode_return"]) == pytest.approx(total)
    state = jax.tree.map(lambda a, b: jnp.where(True, a, b), first, state)
    state = step(state, jnp.array([0.1]))
    assert float(state.info[INFO_KEY]["episode_return"]) == pytest.approx(float(state.reward))
    assert int(state.info[INFO_KEY]["episode_length"]) == 1


def rollout(env: Any, inner, step) -> list[EpisodeLog]:
    """Returns the record after each step of a loop over `inner`'s actions."""
    *_, keys, actions = inner
    first = jax.jit(jax.vmap(env.reset))(keys)

    def body(state, action):
        state = step(first, state, action)
        return state, EpisodeLog(**state.info[INFO_KEY])

    logs = jax.device_get(jax.jit(lambda s: jax.lax.scan(body, s, actions)[1])(first))
    return [EpisodeLog(*(x[t] for x in logs)) for t in range(STEPS)]


def test_falls_and_their_returns_are_known_when_the_whole_state_is_replaced(viewer, inner):
    """The loops of gymnax, rejax and purejaxrl replace the state in this way."""
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)

    def step(first, state, action):
        over = state.done > 0  # of the previous step, so that its record is seen here

        def pick(a, b):
            return jnp.where(over.reshape(-1, *[1] * (a.ndim - 1)), a, b)

        return jax.vmap(env.step)(jax.tree.map(pick, first, state), action)

    logs = rollout(env, inner, step)
    expected = reference(inner, 10**6, 1)
    last = np.full(NUM_ENVS, np.nan)
    known = fallen = 0
    for log, told in zip(logs, expected, strict=True):
        np.testing.assert_array_equal(log.since_termination, told["since"])
        np.testing.assert_array_equal(log.episode_length, told["length"])
        over = told["since"] == 0
        last[over] = told["return"][over]
        finished = of_finished(log)
        known += int(np.isfinite(finished).sum())
        fallen += int(np.isfinite(last).sum())
        right = np.isclose(finished, last, rtol=1e-5)
        assert (right | np.isnan(finished)).all()  # it may be unknown, but never wrong
        pose = log.last_rot.any(axis=(1, 2))
        assert (pose == np.isfinite(finished)).all()
    assert known > 0.9 * fallen > 0
    assert (told["since"] < NEVER).sum() == NUM_ENVS  # all have fallen, and all falls are found


LIMIT = 7


class Resetting(FallingCartPole):
    """A cart-pole that resets itself within a step, and says so in different ways or not at all."""

    def __init__(self, how: str):
        super().__init__()
        self._how = how

    def reset(self, rng):
        state = super().reset(rng)
        info = {"rng": rng, "start": state.pipeline_state, "t": jnp.zeros((), jnp.int32)}
        return state.replace(info=info)

    def step(self, state, action):
        info = state.info
        state = super().step(state, action)
        done, t = state.done > 0, info["t"] + 1
        if "limit" in self._how:
            done = t >= LIMIT
        rng, key = jax.random.split(info["rng"])
        again = info["start"] if "same" in self._how else super().reset(key).pipeline_state
        physics = jax.tree.map(lambda a, b: jnp.where(done, a, b), again, state.pipeline_state)
        info = {"rng": rng, "start": info["start"], "t": jnp.where(done, 0, t)}
        if "uncounted" in self._how:
            info["t"] = t
        says = state.done if "says" in self._how else jnp.zeros_like(state.done)
        # So that the test always knows.
        metrics = {"over": done.astype(jnp.float32)}
        return state.replace(pipeline_state=physics, info=info, done=says, metrics=metrics)


@pytest.mark.parametrize(
    "how",
    ["same uncounted", "fresh uncounted", "fresh uncounted says", "same limit", "fresh limit"],
)
def test_returns_restart_when_the_environment_resets_itself(viewer, inner, how):
    env = VisualizedEnv(Resetting(how), grid=(2, 2), viewer=viewer)
    *_, keys, actions = inner
    first = jax.jit(jax.vmap(env.reset))(keys)
    first = first.replace(metrics={"over": jnp.zeros(NUM_ENVS)})

    def body(state, action):
        state = jax.vmap(env.step)(state, action)
        return state, (EpisodeLog(**state.info[INFO_KEY]), state.reward, state.metrics["over"])

    logs, rewards, over = jax.device_get(
        jax.jit(lambda s: jax.lax.scan(body, s, actions)[1])(first)
    )
    total, length = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, int)
    last, missed = np.full(NUM_ENVS, np.nan), np.zeros(NUM_ENVS, bool)
    for t in range(STEPS):
        begins = over[t - 1] > 0 if t else np.zeros(NUM_ENVS, bool)
        total = np.where(begins, 0.0, total) + rewards[t]
        length = np.where(begins, 0, length) + 1
        last = np.where(over[t] > 0, total, last)
        # A random start may by chance be where the motion would have led anyway.
        if how in ("fresh uncounted", "fresh limit"):
            missed |= (over[t] > 0) & (logs.was_reset[t] == 0)
            missed |= logs.episode_length[t] < 0
        known = ~missed
        np.testing.assert_array_equal(logs.episode_length[t][known], length[known])
        np.testing.assert_allclose(logs.episode_return[t][known], total[known], rtol=1e-5)
        finished = of_finished(logs)[t]
        np.testing.assert_allclose(finished[known], last[known], rtol=1e-5)
    assert (over > 0).sum() > 2 * NUM_ENVS
    assert missed.sum() <= 2
    if "says" in how:  # the pose after the reset is not taken for a fallen one
        pos, rot = logs.last_pos[-1], logs.last_rot[-1]
        angle, place = 2 * np.arcsin(np.abs(rot[:, 1, 2])), np.abs(pos[:, 0, 0])
        assert ((angle > 0.3) | (place > 1.4) | ~rot[:, 1].any(axis=1)).all()


def test_a_users_outer_wrapper_that_keeps_done_begins_new_episodes(viewer, inner):
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)

    def step(first, state, action):
        state = jax.vmap(env.step)(state, action)
        over = state.done > 0
        physics = where_jax(over, first.pipeline_state, state.pipeline_state)
        return state.replace(pipeline_state=physics)

    for log, told in zip(rollout(env, inner, step), reference(inner, 10**6, 1), strict=True):
        np.testing.assert_array_equal(log.episode_length, told["length"])
        np.testing.assert_allclose(log.episode_return, told["return"], rtol=1e-5)


def where_jax(over, one, other):
    return jax.tree.map(
        lambda a, b: jnp.where(over.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other
    )


def test_stepping_past_the_end_begins_no_new_episode(viewer, inner):
    """A trainer's action repeats do this, and loops that ignore `done`."""
    env = VisualizedEnv(FallingCartPole(), grid=(2, 2), viewer=viewer)
    logs = rollout(env, inner, lambda first, state, action: jax.vmap(env.step)(state, action))
    ended = np.array([log.since_termination == 0 for log in logs])
    lengths = np.array([log.episode_length for log in logs])
    assert ended.any(axis=0).sum() > NUM_ENVS / 2
    for env_index in range(NUM_ENVS):
        upright = np.flatnonzero(~ended[1:, env_index] & ended[:-1, env_index])  # once more
        until = int(upright[0]) + 1 if len(upright) else STEPS
        assert lengths[:until, env_index].tolist() == list(range(1, until + 1))


def evidence(model, first, before, after, *, dt=0.02, **kwargs):
    """Computes the evidence for one environment from (place, speed, time) before and after."""

    def motion(place, speed, time=None):
        floats = (jnp.array(x, jnp.float32) for x in (place, speed))
        return Motion(*floats, None if time is None else jnp.float32(time))

    before, after = motion(*before), motion(*after)
    log = first_log(jnp.zeros(()), 0, motion(first, first), 1)._replace(seen=before.place)
    fell = jnp.bool_(kwargs.pop("counter_fell", False))
    told = kwargs.pop("told", False)
    ended = jnp.bool_(kwargs.pop("ended", False))
    found = evidence_of(log, before, after, Coordinates(model), fell, ended, dt, told=told)
    return tuple(bool(x) for x in found)


def test_resets_are_inferred_from_the_physics():
    model = CartPole().sys.mj_model
    first = [0.0, 0.0]
    goes_on, reset, doubtful = (False, False, False), (False, True, False), (False, False, True)
    # Fast motion and collisions are not a reset.
    assert evidence(model, first, ([1.0, 2.0], [50.0, 90.0]), ([1.4, 3.2], [-9.0, 20.0])) == goes_on
    # Some backends keep angles within half a turn.
    assert evidence(model, first, ([0.1, 3.1], [0.1, 9.0]), ([0.1, -3.0], [0.1, 9.0])) == goes_on
    # Back near its first place, by more than its velocity explains.
    fallen = ([0.6, 0.41], [1.0, 2.0])
    assert evidence(model, first, fallen, ([0.05, -0.03], [0.1, 0.1])) == reset
    # If the motion itself is plausible, only the physics' time shows the reset.
    slow = ([0.001, 0.0], [0.01, 0.0], 0.5), ([0.001, 0.0], [0.01, 0.0], 0.02)
    assert evidence(model, first, *slow) == reset
    assert evidence(model, first, slow[0], ([0.001, 0.0], [0.01, 0.0], 0.52)) == goes_on
    # A count may also restart when a command changes: only with a jump is it an episode's.
    smooth = ([0.6, 0.41], [1.0, 2.0]), ([0.62, 0.45], [1.0, 2.0])
    assert evidence(model, first, *smooth, counter_fell=True) == goes_on
    jump = ([0.06, 0.01], [1.0, 0.0]), ([0.045, 0.01], [0.2, 0.0])
    assert evidence(model, first, *jump, told=True) == goes_on
    assert evidence(model, first, *jump, counter_fell=True, told=True) == reset
    # Moved to a place where episodes do not begin: it may be a new episode or not.
    assert evidence(model, first, fallen, ([-1.2, 0.3], [0.0, 0.0])) == doubtful
    assert evidence(model, first, fallen, ([-1.2, 0.3], [0.0, 0.0]), told=True) == goes_on
    assert evidence(model, first, fallen, ([-1.2, 0.3], [0.0, 0.0]), ended=True) == reset
    # A few of many coordinates that are moved, such as a target's, do not begin an episode.
    ant = envs.get_environment("ant", backend="spring").sys.mj_model
    many = np.linspace(0.1, 0.9, 11)
    moved = np.where(np.arange(11) < 3, -2.0, many)
    assert evidence(ant, 0 * many, (many, 0.1 * many), (moved, 0.1 * many)) == goes_on


def test_the_time_of_an_outer_step_includes_its_repeats(viewer):
    bare = CartPole()
    outside = VisualizedEnv(envs.training.wrap(CartPole(), 100, 4), viewer=viewer)
    inside = VisualizedEnv(CartPole(), viewer=viewer)
    assert adapter_of(inside).dt == pytest.approx(float(bare.dt))
    assert adapter_of(outside).dt == pytest.approx(4 * float(bare.dt))


@struct.dataclass
class Clocked(State):
    """A state with a field of its own."""

    clock: Any = None


class Ticking(Toy):
    """Resets itself nearby every `LIMIT` steps, and counts them in `info` or a field of its own."""

    def __init__(self, place: str):
        super().__init__(done=lambda position: jnp.zeros(()))
        self._place = place

    def reset(self, rng):
        state, zero = super().reset(rng), jnp.zeros((), jnp.int32)
        info = {"rng": rng, **({"my_ticks": zero} if self._place == "info" else {})}
        state = state.replace(info=info)
        fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
        return Clocked(**fields, clock=zero) if self._place == "field" else state

    def step(self, state, action):
        rng, key = jax.random.split(state.info["rng"])
        ticks = 1 + (state.clock if self._place == "field" else state.info["my_ticks"])
        moved = super().step(State(state.pipeline_state, None, None, None), action)
        over, again = ticks >= LIMIT, super().reset(key).pipeline_state
        physics = jax.tree.map(lambda a, b: jnp.where(over, a, b), again, moved.pipeline_state)
        ticks = jnp.where(over, 0, ticks)
        state = state.replace(pipeline_state=physics, reward=moved.reward)
        if self._place == "field":
            return state.replace(info={"rng": rng}, clock=ticks)
        return state.replace(info={"rng": rng, "my_ticks": ticks})


@pytest.mark.parametrize("place", ["info", "field"])
def test_a_step_counter_is_recognised_by_its_values_whatever_its_name(viewer, place):
    env = VisualizedEnv(Ticking(place), grid=(2, 2), viewer=viewer)
    first = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), NUM_ENVS))
    actions = jnp.full((4 * LIMIT, NUM_ENVS, 1), 0.05)  # slow: it hardly moves between resets

    def body(state, action):
        state = jax.vmap(env.step)(state, action)
        return state, state.info[INFO_KEY]["episode_length"]

    lengths = jax.jit(lambda s: jax.lax.scan(body, s, actions)[1])(first)
    told = np.tile(np.arange(4 * LIMIT) % LIMIT + 1, (NUM_ENVS, 1)).T
    np.testing.assert_array_equal(lengths, told)
