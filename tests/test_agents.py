"""Tests several agents in one batch, such as the seeds of a vmapped training: the page tells them
apart, and draws those that are chosen by name."""

import jax
import pytest

from brax_viser import VisualizedEnv
from examples.own_ppo import make_train
from tests.conftest import eventually
from tests.support import Probe
from tests.toy import Toy

SEEDS, NUM_ENVS = 3, 8
NAMES = ["small steps", "usual", "large steps"]


@pytest.fixture
def trained(viewer, page):
    """Trains the toy with three seeds in one program, each time that it is called."""
    viewer.mode = "every_step"
    env = VisualizedEnv(Toy(), grid=(3, 2), viewer=viewer)
    viewer.agents = NAMES
    train = jax.jit(jax.vmap(make_train(env, num_envs=NUM_ENVS, num_updates=2, num_steps=3)))
    keys = jax.random.split(jax.random.PRNGKey(0), SEEDS)
    return lambda: jax.block_until_ready(train(keys))


def test_robots_of_each_seed_are_told_apart_and_chosen_by_name(viewer, trained):
    probe = Probe(viewer)
    probe.enqueue(lambda: probe.commands.look(labels=True))
    viewer.select("agents")
    eventually(lambda: trained() and viewer.stats().drawn_envs == (0, 1, 8, 9, 16, 17), "drawn")

    def labels():
        return [label.text for label in probe.block_of("train")._labels.handles]

    wanted = [f"{name} · env {env}" for name in NAMES for env in (0, 1)]
    eventually(
        lambda: [x[: len(y)] for x, y in zip(labels(), wanted, strict=False)] == wanted, "names"
    )
    viewer.select(("agent", "large steps"))
    viewer.selected_env = 20
    eventually(lambda: trained() and viewer.stats().drawn_envs == (16, 17, 18, 19, 20, 21), "drawn")
    eventually(lambda: "large steps · env 4" in labels()[4], "the other agent's names")


def test_the_panel_offers_agents_once_they_are_named_and_no_longer_when_they_are_gone(
    viewer, page, trained
):
    probe = Probe(viewer)
    choice = probe.panel.choice
    trained()
    eventually(lambda: "One agent" in choice._rule.options, "the rule is offered")
    probe.use(choice._rule, "Some of each agent")
    eventually(lambda: viewer.stats().drawn_envs in [(), (0, 1, 2, 3, 4, 5)], "chosen again")
    eventually(lambda: trained() and viewer.stats().drawn_envs == (0, 1, 8, 9, 16, 17), "drawn")
    probe.use(choice._rule, "One agent")
    eventually(lambda: choice._agent.visible and choice._agent.value == NAMES[0], "the first one")
    probe.use(choice._agent, NAMES[1])
    eventually(lambda: trained() and viewer.stats().drawn_envs == (8, 9, 10, 11, 12, 13), "drawn")
    viewer.agents = []
    eventually(lambda: "One agent" not in choice._rule.options, "the rule is gone")
    eventually(lambda: trained() and viewer.stats().drawn_envs == (0, 1, 2, 3, 4, 5), "drawn")
