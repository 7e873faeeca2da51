"""Checks that stock PPO learns bit-identical parameters, watched or not."""

import contextlib
import functools
import logging
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest
from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo

from brax_viser import Viewer, VisualizedEnv
from brax_viser.device.host_call import VARIABLE
from brax_viser.host.control import MODES, SHOWS
from brax_viser.twins.twins import Twins
from tests.conftest import Page, eventually
from tests.support import Probe, source_of
from tests.toy import Toy

SMALL: dict[str, Any] = dict(
    num_timesteps=8_000,
    num_envs=16,
    episode_length=60,  # so that episodes end by termination and by truncation
    unroll_length=5,
    batch_size=16,
    num_minibatches=4,
    num_updates_per_batch=2,
    seed=3,
    network_factory=functools.partial(
        networks.make_ppo_networks, policy_hidden_layer_sizes=(8,), value_hidden_layer_sizes=(8,)
    ),
)
WITH_EVALUATION = dict(SMALL, num_evals=2, num_eval_envs=4, num_resets_per_eval=1)
REPEATED = dict(SMALL, run_evals=False, use_pmap_on_reset=False, action_repeat=2)


def bare(name: str = "inverted_pendulum", backend: str = "spring") -> envs.Env:
    return envs.get_environment(name, backend=backend)


def train(env: envs.Env, settings: dict[str, Any], **kwargs: Any) -> list[np.ndarray]:
    """Returns the trained parameters, flattened."""
    _, params, _ = ppo.train(environment=env, **settings, **kwargs)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(params))]


def assert_identical(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other) > 4
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="session")
def stock_evaluated() -> list[np.ndarray]:
    return train(bare(), WITH_EVALUATION)


@pytest.fixture(scope="session")
def stock_repeated() -> list[np.ndarray]:
    return train(bare(), REPEATED)


@pytest.fixture(scope="session")
def toy_evaluated() -> list[np.ndarray]:
    """Of an environment that compiles in a tenth of the time. The tests that use it differ from
    those above in what the host does, which no compiled program depends on."""
    return train(Toy(), WITH_EVALUATION)


@pytest.fixture(scope="session")
def toy_repeated() -> list[np.ndarray]:
    return train(Toy(), REPEATED)


class Fidgeting:
    """Changes every control while steps are taken, faster than a person could.

    ``seen`` is a list to which twins add; the training is let go once it has an entry.
    """

    SELECTIONS = ("first", "worst", [3, 1], "random", "terminated", ("page", 2), "best", "nan")
    MOVES = ("pause", "step", "step", "resume", "run_to_termination", "step", "resume")
    STEPPED = range(17, 450)  # fewest and most moves before it is let go: its steps take no time

    def __init__(self, viewer: Viewer, seen: list[int]):
        self.flips, self.forked = 0, False
        self._viewer, self._seen, self._stop = viewer, seen, threading.Event()
        self._thread = threading.Thread(target=self._fidget)

    def _fidget(self) -> None:
        viewer, known, free = self._viewer, (), False
        while not self._stop.wait(0.003):
            stats = viewer.stats()
            before, known = known, tuple(s.env_steps for s in stats.streams.values())
            if before == known and not stats.held:
                continue  # it is compiling, which must not be disturbed
            self.flips += 1
            n = self.flips
            free |= n > self.STEPPED.start and self.forked and bool(self._seen)
            free |= n > self.STEPPED.stop
            viewer.streaming = n % 7 > 0
            viewer.mode = MODES[n % 3]
            # Stepping an evaluation that has not begun lets the training go on to it.
            viewer.show = SHOWS[n // 20 % 3] if free else "train"
            viewer.speed = (0.1, 1.0, 4.0)[n % 3]
            viewer.stretch_seconds = (0.5, 3.0)[n % 2]
            viewer.max_overhead = (0.001, 0.02, 1.0)[n // 2 % 3]
            viewer.select(self.SELECTIONS[n % len(self.SELECTIONS)], sticky=n % 5 == 0)
            # One and the same env until the fork, since its details come with its steps; later one
            # of the four that the evaluation has.
            viewer.selected_env = n % 4 if self.forked else 1
            viewer.twins = (0, 2, 16)[n // 3 % 3]
            if n % 11 == 0:
                viewer.restart_twins()
            if not self.forked:
                with contextlib.suppress(ValueError):  # the selected env is not on screen yet
                    viewer.fork()
                    self.forked = True
            getattr(viewer, self.MOVES[n % len(self.MOVES)] if free else "step")()

    def __enter__(self) -> "Fidgeting":
        self._viewer.pause()  # before there is anything to hold: the thread may be late
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._viewer.resume()


def test_parameters_are_identical_in_two_trainings_of_one_env(viewer, page, stock_evaluated):
    """Trains in mode latest, then in every_step, with one viewer: both are shown and recorded."""
    viewer.mode, recorded = "latest", Probe(viewer).record_from_now()
    env = VisualizedEnv(bare(), grid=(3, 3), viewer=viewer)
    reported = []

    def progress_fn(steps: int, metrics: dict[str, Any]) -> None:
        reported.append(steps)
        viewer.progress_fn(steps, metrics)

    assert_identical(train(env, WITH_EVALUATION, progress_fn=progress_fn), stock_evaluated)
    first = viewer.stats()
    assert first.frames > 0 and first.env_steps >= 200  # the last steps granted are not known
    assert len(first.drawn_envs) == 9
    assert viewer.progress().phase == "done"
    assert viewer.progress().num_steps == reported[-1] >= 8_000
    assert first.streams["eval"].num_envs == 4
    assert first.streams["train"].num_envs == 16

    viewer.mode = "every_step"
    assert_identical(train(env, WITH_EVALUATION), stock_evaluated)
    second = viewer.stats()
    assert second.env_steps == 500  # from 0 again: 8,000 steps of 16 envs, none skipped
    assert second.frames - first.frames == 500
    assert viewer.progress().algorithm == "PPO"
    assert viewer.progress().num_timesteps == 8_000
    eventually(lambda: page.frames > 0, "the page is sent them")
    assert {episode.summary.ended for episode in recorded()} >= {"terminated"}


@pytest.mark.parametrize(
    ("mechanism", "settings"),
    [("direct", "evaluated"), ("io_callback", "repeated"), ("launch", "evaluated")],
)
def test_parameters_are_identical_whatever_is_done_in_the_page(
    viewer, page, mechanism, settings, monkeypatch, request
):
    """Holds and steps, selects by return, slows down, switches off and on: all at once."""
    monkeypatch.setenv(VARIABLE, mechanism)
    env = VisualizedEnv(bare(), grid=(3, 3), viewer=viewer)
    followed, follow = [], Twins.follow
    monkeypatch.setattr(Twins, "follow", lambda *args: followed.append(1) or follow(*args))
    chosen = {"evaluated": WITH_EVALUATION, "repeated": REPEATED}[settings]
    with Fidgeting(viewer, followed) as fidgeting:
        learned = train(env, chosen, policy_params_fn=viewer.policy_params_fn)
    assert_identical(learned, request.getfixturevalue(f"stock_{settings}"))
    assert fidgeting.flips > Fidgeting.STEPPED.start
    assert viewer.stats().frames > 0
    assert followed, "there was never a twin"
    assert fidgeting.forked
    assert Probe(viewer).shared.hold._pauses[0] > 0, "it was never held"
    assert Probe(viewer).shared.fault is None


def test_parameters_are_identical_while_every_step_is_shown(viewer, page, toy_repeated):
    viewer.mode = "every_step"
    env = VisualizedEnv(Toy(), grid=(3, 3), viewer=viewer)
    assert_identical(train(env, REPEATED), toy_repeated)
    stats = viewer.stats()
    assert stats.frames == stats.env_steps and stats.env_steps * 16 >= 8_000
    eventually(lambda: page.frames > 0, "the page is sent them")


def test_parameters_are_identical_in_real_time_with_a_separate_eval_env(
    viewer, page, toy_evaluated
):
    viewer.show, viewer.stretch_seconds = "both", 0.5
    viewer.max_overhead = 1.0  # the training is too short to save up a smaller budget
    env = VisualizedEnv(Toy(), grid=(3, 3), viewer=viewer)
    eval_env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer, role="eval")
    assert_identical(train(env, WITH_EVALUATION, eval_env=eval_env), toy_evaluated)
    stats = viewer.stats()
    assert {role: stream.num_envs for role, stream in stats.streams.items()} == {
        "train": 16,
        "eval": 4,
    }
    assert stats.frames > 10
    blocks = Probe(viewer).scene.blocks
    eventually(lambda: all(b.frame is not None for b in blocks.values()), "both are shown")
    assert blocks["train"].count == 9 and blocks["eval"].count == 4


def test_parameters_are_identical_while_off_and_nothing_is_sent(viewer, page, toy_repeated):
    viewer.streaming = False
    env = VisualizedEnv(Toy(), grid=(4, 4), viewer=viewer)
    assert_identical(train(env, REPEATED), toy_repeated)
    stats = viewer.stats()
    assert (stats.frames, stats.bytes_moved) == (0, 0)
    assert stats.env_steps > 200  # the host was asked, and declined


def test_parameters_are_identical_with_twins_action_repeat_and_no_pmapped_reset(
    viewer, page, stock_repeated, monkeypatch
):
    viewer.mode = "every_step"
    viewer.twins = 16  # one for each env, from the first step to the last
    # The page waits for the twins, however late they are.
    monkeypatch.setattr("brax_viser.page.channels.TWIN_PATIENCE", np.inf)
    followed, follow = [], Twins.follow
    monkeypatch.setattr(Twins, "follow", lambda *args: followed.extend(args[1]) or follow(*args))
    env = VisualizedEnv(bare(), grid=(4, 4), viewer=viewer)
    assert_identical(train(env, REPEATED), stock_repeated)
    stats = viewer.stats()
    eventually(lambda: len(followed) > 10, "twins follow")
    assert all(len(frame.env_index) == 16 for frame in followed)
    # Each repeat of an action is a step of the environment, in Brax's count too.
    assert stats.env_steps * 16 >= 8_000
    assert stats.frames == stats.env_steps


def test_a_viewer_closed_in_the_middle_leaves_the_training_alone(toy_repeated):
    viewer = Viewer(port=0, mode="every_step")
    page = Page(viewer)
    env = VisualizedEnv(Toy(), grid=(4, 4), viewer=viewer)
    push, closer = source_of(env).push, threading.Thread(target=viewer.close)

    def push_and_close(*args):
        if viewer.stats().frames == 20:
            closer.start()
            eventually(
                lambda: Probe(viewer).shared.control.closed, "it is closed in the middle of a step"
            )
        return push(*args)

    source_of(env).push = push_and_close
    assert_identical(train(env, REPEATED), toy_repeated)
    closer.join(timeout=20)
    assert 20 <= viewer.stats().frames < 500
    viewer.close()  # closing again does nothing
    page.close()


def test_a_fault_while_drawing_leaves_the_training_alone(
    viewer, page, toy_repeated, monkeypatch, caplog
):
    env = VisualizedEnv(Toy(), grid=(4, 4), viewer=viewer)

    def broken(*_: object) -> None:
        raise RuntimeError("the scene is broken")

    monkeypatch.setattr(Probe(viewer).scene, "draw", broken)
    with caplog.at_level(logging.ERROR, "brax_viser"):
        assert_identical(train(env, REPEATED), toy_repeated)
    eventually(lambda: Probe(viewer).shared.fault, "the page is told")
    assert "the scene is broken" in Probe(viewer).shared.fault
    assert not viewer.streaming
    told = lambda: [r for r in caplog.records if "training goes on" in r.message]  # noqa: E731
    eventually(told, "the terminal is told")  # after the page
    assert len(told()) == 1


@pytest.mark.parametrize("where", ["ask", "push"])
def test_a_fault_within_a_callback_leaves_the_training_alone(viewer, page, where):
    """The fault is on XLA's thread, where an exception would end the training."""
    env = VisualizedEnv(Toy(), grid=(4, 4), viewer=viewer)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("not today")

    if where == "ask":
        source_of(env)._decision = broken
    else:
        Probe(viewer).shared.mailbox.put = broken  # type: ignore[method-assign, assignment]
    step = jax.jit(jax.vmap(env.step))
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
    for _ in range(3):
        state = jax.block_until_ready(step(state, np.zeros((4, 1), np.float32)))
    assert Probe(viewer).shared.fault is not None and where in Probe(viewer).shared.fault
    assert not viewer.streaming


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("inverted_pendulum", "mjx", marks=pytest.mark.full),
        ("inverted_pendulum", "generalized"),
    ],
)
def test_parameters_are_identical_on_the_other_backends(viewer, page, name, backend):
    settings = dict(SMALL, run_evals=False, num_timesteps=2_000)
    viewer.mode = "every_step"
    watched = train(VisualizedEnv(bare(name, backend), grid=(2, 2), viewer=viewer), settings)
    assert_identical(watched, train(bare(name, backend), settings))
    assert viewer.stats().frames == viewer.stats().env_steps > 100


@pytest.mark.parametrize("mechanism", ["direct", "launch"])
def test_the_switch_takes_effect_within_a_fifth_of_a_second(viewer, page, mechanism, monkeypatch):
    """Switches in the middle of one jitted call, which runs until it is told to stop."""
    monkeypatch.setenv(VARIABLE, mechanism)
    env = envs.training.wrap(VisualizedEnv(bare(), grid=(4, 4), viewer=viewer), episode_length=100)
    stop, action = threading.Event(), np.zeros((64, 1), np.float32)

    def goes_on(carry):
        going = jax.ShapeDtypeStruct((), np.bool_)
        return jax.pure_callback(lambda _: np.bool_(not stop.is_set()), going, carry[0])

    def some_steps(carry):
        def body(state, _):
            return env.step(state, action), None

        return carry[0] + 1, jax.lax.scan(body, carry[1], None, length=100)[0]

    rollout = jax.jit(lambda state: jax.lax.while_loop(goes_on, some_steps, (0, state)))
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(0), 64))
    running = threading.Thread(target=lambda: jax.block_until_ready(rollout(state)), daemon=True)

    def frames_after(known: int, what: str) -> None:
        eventually(lambda: viewer.stats().frames > known, what)

    def another_step() -> None:
        """Waits for another step, after which everything sent for earlier steps has arrived."""
        known = viewer.stats().env_steps
        eventually(lambda: viewer.stats().env_steps > known, "the training goes on")

    noticed, delays = [], []
    running.start()
    try:
        frames_after(5, "frames flow")
        for _ in range(11):  # enough that an occasional stall of the machine does not count
            flipped = time.monotonic()
            viewer.streaming = False
            another_step()
            noticed.append(time.monotonic() - flipped)
            frozen = viewer.stats().frames
            another_step()
            another_step()
            assert viewer.stats().frames == frozen, "states crossed although the switch was off"
            flipped = time.monotonic()
            viewer.streaming = True
            frames_after(frozen, "frames flow again")
            delays.append(time.monotonic() - flipped)
        assert running.is_alive()
    finally:
        stop.set()
        running.join(60)
    assert np.median(noticed) <= 0.2 and np.median(delays) <= 0.2, (noticed, delays)
