"""Tests several environments of one viewer, and several viewers of one state."""

import jax
import jax.numpy as jnp
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.panel import words
from tests.conftest import Page, eventually
from tests.support import Probe, source_of
from tests.toy import Toy

NUM_ENVS = 2
KEYS = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)


class Stepped:
    """An environment of a viewer, and its state, which is stepped."""

    def __init__(self, viewer: Viewer):
        env = VisualizedEnv(Toy(), grid=(2, 1), viewer=viewer)
        self._reset, self._step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
        self.label = source_of(env).label
        self.reset()

    def reset(self) -> None:
        self.state = self._reset(KEYS)

    def step(self) -> None:
        self.state = jax.block_until_ready(self._step(self.state, jnp.zeros((NUM_ENVS, 1))))


@pytest.fixture
def clock(viewer):
    """The viewer's clock, which the test sets."""
    now = [1000.0]
    Probe(viewer).shared.hold.clock = lambda: now[0]
    return now


def shown(viewer: Viewer) -> str:
    return Probe(viewer).shared.shown["train"].label


def test_a_state_is_seen_by_a_new_viewer_after_its_old_viewer_is_closed():
    with Viewer(port=0) as old:
        before = Stepped(old)
        for _ in range(3):
            before.step()
    before.step()  # the closed viewer is asked for the last time
    with Viewer(port=0) as new:
        page, after = Page(new), Stepped(new)
        new.mode = "every_step"
        after.state = before.state
        for _ in range(5):
            after.step()
        assert new.stats().frames == new.stats().env_steps == 5
        page.close()


def test_of_environments_stepped_in_turn_one_is_shown_and_the_page_names_the_others(
    viewer, page, clock
):
    viewer.mode = "every_step"
    one, other, third = envs = [Stepped(viewer) for _ in range(3)]

    def turns(count: int) -> None:
        for _ in range(count):
            clock[0] += 0.2
            for env in envs:
                env.step()

    turns(2)
    assert shown(viewer) == third.label  # the one that began last
    one.reset()
    turns(15)
    assert shown(viewer) == third.label  # a reset of another env does not take its place
    view = Probe(viewer).panel_view(0.0)
    assert view.stepped == (one.label, other.label, third.label)
    assert f"Stepped too, and not shown: {one.label}, {other.label}" in words.notices(view)

    Probe(viewer).use(Probe(viewer).panel.choice._stepped, other.label)
    eventually(lambda: shown(viewer) == other.label, "the page shows the one that was chosen")
    one.reset()
    turns(2)
    assert shown(viewer) == other.label

    envs.remove(other)
    turns(15)
    assert shown(viewer) in (one.label, third.label)  # an env that is no longer stepped gives way
    assert other.label not in Probe(viewer).panel_view(0.0).stepped
    assert Probe(viewer).shared.fault is None
