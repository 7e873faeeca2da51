"""Checks that the page goes on while a robot is read, which takes seconds for large meshes."""

import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.host.mailbox import CAPACITY
from brax_viser.model.robot import Model
from brax_viser.page.reader import Reader, Reading
from tests.conftest import eventually
from tests.support import Probe, source_of
from tests.toy import Toy

NUM_ENVS = 4


class Gate:
    """Blocks each reading of a robot while it is shut."""

    def __init__(self) -> None:
        self.read = 0  # robots read, or being read
        self._open = threading.Event()
        self.open()

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self.read = 0
        self._open.clear()

    def come_by(self) -> None:
        self.read += 1
        assert self._open.wait(120)


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    gate, of = Gate(), Model.of

    def slow(*args: Any, **kwargs: Any) -> Model:
        gate.come_by()
        return of(*args, **kwargs)

    monkeypatch.setattr(Model, "of", slow)
    yield gate
    gate.open()


class Rollout:
    """Carts that are stepped one step at a time."""

    def __init__(self, viewer: Viewer):
        env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
        self._step = jax.jit(jax.vmap(env.step))
        self._state = jax.jit(jax.vmap(env.reset))(
            jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
        )
        self.source = source_of(env)
        self.steps = 0

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._state = jax.block_until_ready(self._step(self._state, jnp.zeros((NUM_ENVS, 1))))
        self.steps += count


def goes_on(viewer: Viewer) -> bool:
    """Whether viser's loop, which serves the page, still responds."""
    heard = threading.Event()
    Probe(viewer).events.soon(heard.set)
    return heard.wait(20)


def block(viewer: Viewer) -> Any:
    return Probe(viewer).scene.blocks.get("train")


def is_drawn(viewer: Viewer, rollout: Rollout) -> bool:
    """Whether the rollout's newest step is on screen."""
    there = Probe(viewer).block_of("train")
    if there is None or there.frame is None:
        return False
    mine = Probe(viewer).channels["train"].source is rollout.source
    return mine and there.frame.env_steps == rollout.steps


def test_page_and_training_go_on_while_other_parts_of_a_robot_are_read(viewer, page, gate):
    viewer.mode = "every_step"
    rollout = Rollout(viewer)
    rollout.step(3)
    eventually(lambda: is_drawn(viewer, rollout), "it is drawn")
    before = block(viewer)
    gate.shut()
    Probe(viewer).enqueue(lambda: Probe(viewer).commands.show_group(3, True))
    eventually(lambda: gate.read, "it is being read")
    assert goes_on(viewer)
    rollout.step(CAPACITY + 50)  # more than the mailbox holds
    eventually(lambda: is_drawn(viewer, rollout), "as it was, meanwhile")
    assert block(viewer) is before
    Probe(viewer).enqueue(lambda: Probe(viewer).commands.show_group(3, False))
    Probe(viewer).enqueue(lambda: Probe(viewer).commands.show_sites(True))
    gate.open()
    eventually(lambda: block(viewer) is not before, "it is drawn with the parts that are wanted")
    eventually(lambda: is_drawn(viewer, rollout), "where it is")
    eventually(lambda: not Probe(viewer).channels["train"].reading, "all is read")
    assert gate.read == 2, "what was wanted no more was not read"
    assert Probe(viewer).shared.fault is None


def test_page_and_training_go_on_while_the_robot_of_another_environment_is_read(viewer, page, gate):
    viewer.mode = "every_step"
    first = Rollout(viewer)
    first.step(3)
    eventually(lambda: is_drawn(viewer, first), "it is drawn")
    gate.shut()
    second = Rollout(viewer)
    second.step()
    eventually(lambda: gate.read, "it is being read")
    assert goes_on(viewer)
    second.step(CAPACITY + 50)
    assert goes_on(viewer) and not is_drawn(viewer, second)
    assert Probe(viewer).block_of("train") is None, "those that are there are others"
    gate.open()
    eventually(lambda: is_drawn(viewer, second), "the newest step is shown")
    assert gate.read == 1
    # Nor is anything read again for another number of robots.
    gate.shut()
    counts: list[int] = []

    def show_two() -> None:  # at once: with its next picture the page has as many as there are
        Probe(viewer).show_model(second.source, "train", 2)
        counts.append(block(viewer).count)

    Probe(viewer).now(show_two)
    assert counts == [2] and not gate.read


def test_the_page_goes_on_while_the_first_robot_is_read_and_then_has_it(viewer, gate):
    gate.shut()
    made: list[VisualizedEnv] = []
    thread = threading.Thread(
        target=lambda: made.append(VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer))
    )
    thread.start()
    eventually(lambda: gate.read, "it is being read")
    assert goes_on(viewer) and block(viewer) is None
    gate.open()
    thread.join(60)
    assert made and block(viewer).count == 4


def test_only_the_newest_reading_of_a_role_is_done_and_an_error_ends_nothing():
    used: list[object] = []
    errors: list[str] = []
    reader = Reader(lambda what: what(), lambda error: errors.append(str(error)))

    def fails() -> None:
        raise ValueError("too large")

    for role, what in (("train", 1), ("eval", 2), ("train", 3), ("train", 4)):
        reader.read(Reading(role, lambda what=what: what, used.append))
    reader.read(Reading("sandbox", fails, used.append))
    reader.start()
    eventually(lambda: errors, "it has come to the last")
    reader.read(Reading("eval", lambda: 5, used.append))
    eventually(lambda: len(used) == 3, "it goes on")
    assert used == [2, 4, 5] and errors == ["too large"]
    reader.close()
    eventually(lambda: not reader._thread.is_alive(), "it ends")
