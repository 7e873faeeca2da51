"""Runs the examples as they are, but for the stock trainer."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.training.agents.ppo import train as ppo

from brax_viser import VisualizedEnv
from brax_viser.replay import ReplayViewer
from envs.cartpole import CartPole
from examples import own_environment, own_ppo, record_and_replay
from examples.own_ppo import make_train
from tests.conftest import Page, eventually
from tests.recorded import recording_of, run_of
from tests.support import Probe, adapter_of, source_of


class Stop(Exception):
    """Ends an example once it has handed everything to the trainer."""


@pytest.mark.parametrize(
    ("name", "cells", "num_envs"),
    [
        ("humanoid_single", 1, 256),
        ("cartpole_grid", 8, 8),
        ("ant_ppo", 64, 2048),
        ("own_controls", 36, 1024),
        ("sim_to_sim", 16, 256),
        ("playground_cartpole", 64, 256),
        ("record_and_replay", 16, 256),
    ],
)
def test_example_hands_a_visualized_env_to_the_stock_trainer(
    monkeypatch, tmp_path, name, cells, num_envs
):
    example = importlib.import_module(f"examples.{name}")
    handed = {}

    def note(environment, **settings):
        handed.update(settings, environment=environment)
        raise Stop

    monkeypatch.setattr(ppo, "train", note)
    monkeypatch.chdir(tmp_path)  # for a run directory
    with pytest.raises(Stop):
        example.main()
    env = handed["environment"]
    assert isinstance(env, VisualizedEnv)
    assert len(env.viewer.stats().drawn_envs) == cells
    assert handed["num_envs"] == num_envs
    # Brax asserts this first.
    assert handed["batch_size"] * handed["num_minibatches"] % num_envs == 0
    env.viewer.close()


def test_what_was_recorded_plays_when_the_training_is_over(monkeypatch, tmp_path, capsys):
    viewers: list[ReplayViewer] = []
    moments: list[float] = []

    def train(environment: VisualizedEnv, **_) -> None:
        """Has a recording kept, as a training does."""
        model = environment.unwrapped.sys.mj_model
        keeper = Probe(environment.viewer).page.recording._keeper
        keeper.begin(run_of(model, environment.dt))
        keeper.add(recording_of(model, 1_200_000))
        keeper.set_curves({"eval/episode_reward": np.array([[0.0], [1.0], [7.5]])})

    def replay_viewer(*args) -> ReplayViewer:
        viewers.append(ReplayViewer(*args, port=0))
        return viewers[0]

    def pressed(_: str) -> str:
        probe, page = Probe(viewers[0]), Page(viewers[0])

        def plays() -> bool:
            told = probe.replay.told()
            moments.append(told.position)
            return told.playing and len(told.episodes) == 4 and len(set(moments)) > 2

        eventually(plays, "the four episodes play")
        block = probe.block_of("train")
        assert block is not None and block.frame.env_index.tolist() == [1, 4, 7, 10]
        curves = probe.shared.progress.metrics
        assert list(curves.names()) == ["eval/episode_reward"]
        page.close()
        return ""

    monkeypatch.setattr(ppo, "train", train)
    monkeypatch.setattr(record_and_replay, "ReplayViewer", replay_viewer)
    monkeypatch.setattr("builtins.input", pressed)
    monkeypatch.chdir(tmp_path)
    record_and_replay.main()
    assert moments, "it was looked at"
    said = capsys.readouterr().out
    assert "step 1,200,010: best, return" in said and said.count("return") == 4


def test_cartpole_grid_has_the_spacing_of_its_example(monkeypatch):
    from examples import cartpole_grid

    monkeypatch.setattr(ppo, "train", lambda environment, **_: envs.append(environment))
    monkeypatch.setattr("builtins.input", lambda _: "")
    envs: list[VisualizedEnv] = []
    cartpole_grid.main()
    grid = source_of(envs[0]).grid
    assert (grid.shape, grid.spacing) == ((4, 2, 1), (4.0, 4.0, 2.0))
    envs[0].viewer.close()


def test_the_own_loop_shows_as_many_robots_of_each_seed(monkeypatch, capsys):
    made = []

    def small(env, **settings):
        made.append(env)
        return make_train(env, **{**settings, "num_updates": 1, "num_steps": 2})

    monkeypatch.setattr(own_ppo, "make_train", small)
    monkeypatch.setattr("builtins.input", lambda _: "")
    own_ppo.main()
    (env,) = made
    assert env.viewer.agents == ("seed 0", "seed 1", "seed 2", "seed 3")
    assert env.viewer.stats().streams["train"].num_envs == own_ppo.SEEDS * own_ppo.NUM_ENVS
    assert capsys.readouterr().out.count("of its steps fell at first") == own_ppo.SEEDS
    env.viewer.close()


def test_the_hand_written_environment_is_shown_and_steps_as_bare(viewer, page):
    def rewards(env):
        run = jax.jit(own_environment.swing, static_argnums=(0, 2, 3))
        return jax.device_get(run(env, jax.random.PRNGKey(0), 5, 6)[1])

    viewer.mode = "every_step"
    env = VisualizedEnv(own_environment.Acrobot(), grid=(2, 2), viewer=viewer)
    watched, stats = rewards(env), viewer.stats()
    assert stats.frames == stats.env_steps == 6
    assert stats.streams["train"].num_envs == 5
    np.testing.assert_array_equal(watched, rewards(own_environment.Acrobot()))
    adapter = adapter_of(env)
    assert (adapter.name, adapter.backend) == ("Acrobot", "mjx")
    assert (adapter.dt, adapter.substeps) == (0.02, 2)


def test_the_hand_written_environment_runs_as_an_example(monkeypatch):
    made = []
    monkeypatch.setattr(own_environment, "NUM_STEPS", 2)
    monkeypatch.setattr("builtins.input", lambda _: "")
    swing = own_environment.swing
    monkeypatch.setattr(
        own_environment, "swing", lambda env, *args: made.append(env) or swing(env, *args)
    )
    own_environment.main()
    env = made[0]
    assert isinstance(env, VisualizedEnv)
    env.viewer.close()


def test_cartpole_falls_when_it_is_not_balanced():
    env = CartPole()
    state = jax.jit(env.reset)(jax.random.PRNGKey(0))
    step = jax.jit(env.step)
    steps = 0
    while not state.done and steps < 500:
        state = step(state, jnp.zeros(1))
        steps += 1
    assert 10 < steps < 400
    assert state.reward == 1.0
