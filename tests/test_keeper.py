"""What is recorded goes to the run directory, each training to its own; without one, to memory."""

import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer, VisualizedEnv
from brax_viser.records.trainer_call import TrainerCall
from brax_viser.runs.keeper import Keeper
from brax_viser.runs.reader import open_run
from brax_viser.runs.window import MOST_FALLEN
from tests.conftest import eventually
from tests.episodes import episode, run_info
from tests.sample import FallingCartPole
from tests.support import Probe


def test_each_training_of_a_viewer_has_its_own_directory(tmp_path):
    keeper = Keeper(tmp_path / "run")
    keeper.add_policy(0, {"w": np.ones(2, np.float32)})  # handed out before the first step
    keeper.begin(run_info("Ant"))
    keeper.add([episode(0)])
    first = keeper.version
    keeper.begin(run_info("Go1 Joystick"))
    assert keeper.summaries() == () and keeper.version != first
    keeper.add([episode(7)])
    keeper.set_curves({"eval/episode_reward": np.zeros((3, 4))})
    assert keeper.close()
    one, two = open_run(tmp_path / "run"), open_run(tmp_path / "run-2")
    assert (one.info.env, two.info.env) == ("Ant", "Go1 Joystick")
    assert [s.recording for s in one.summaries()] == [0]
    assert [s.recording for s in two.summaries()] == [7]
    assert one.policies() == (0,) and two.policies() == ()
    assert list(two.curves()) == ["eval/episode_reward"]


def test_without_a_directory_the_newest_training_is_kept_in_memory():
    keeper = Keeper()
    keeper.begin(run_info("Ant"))
    keeper.add([episode(3)])
    assert [s.recording for s in keeper.summaries()] == [3]
    assert np.array_equal(keeper.get(keeper.summaries()[0].key).qpos, episode(3).qpos)
    keeper.begin(run_info("Ant"))
    assert keeper.summaries() == () and keeper.path is None and not keeper.close()


def test_a_directory_with_another_training_or_that_cannot_be_written_is_refused(tmp_path):
    keeper = Keeper(tmp_path / "run")
    keeper.begin(run_info("Ant"))
    keeper.close()
    with pytest.raises(ValueError, match=r"run'?: it holds another training: Ant"):
        Keeper(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        Viewer(port=0, run_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="file"):
        Keeper(tmp_path / "file" / "below")


def test_a_directory_that_another_training_has_taken_since_costs_only_the_disk(tmp_path):
    keeper, other = Keeper(tmp_path / "run"), Keeper(tmp_path / "run")
    other.begin(run_info("Humanoid"))
    keeper.begin(run_info("Ant"))
    keeper.add([episode(3)])
    assert keeper.problem is not None and "Humanoid" in keeper.problem
    assert len(keeper.summaries()) == 1, "in memory"
    other.add([episode(5)])
    other.close()
    assert open_run(tmp_path / "run").info.env == "Humanoid"


def test_a_directory_of_a_training_that_never_began_is_removed(tmp_path):
    Keeper(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    Keeper(tmp_path / "mine").close()
    assert (tmp_path / "mine" / "notes").exists()


def stepped(env: Any, steps: int) -> np.ndarray:
    """Returns the observations [T, N, D] of a training of the user's own."""
    env = envs.training.wrap(env, episode_length=20)
    state = jax.jit(env.reset)(jax.random.split(jax.random.PRNGKey(3), 6))
    actions = jax.random.uniform(jax.random.PRNGKey(4), (steps, 6, 1), minval=-1.0)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, a: (env.step(s, a), s.obs), s, actions))
    return np.asarray(run(state)[1])


def test_a_viewer_writes_episodes_curves_and_policies_of_its_training(tmp_path):
    place = Path(tmp_path / "run")
    with Viewer(port=0, run_dir=place) as viewer:
        env = VisualizedEnv(FallingCartPole(), grid=(4, 1), viewer=viewer)
        settings = {"seed": 5, "learning_rate": 3e-4, "normalize_observations": True}
        call = TrainerCall("PPO", False, 10**6, 6, weakref.ref(env), settings=settings)
        assert Probe(viewer).shared.progress.traced(call, 0.0)
        params = {"mean": np.arange(3.0), "net": [np.ones((2, 2), np.float32)]}
        viewer.policy_params_fn(100, lambda *_: None, params)
        viewer.log(100, {"loss": 0.5})
        for _ in range(20):
            seen = stepped(env, 60)
            if Probe(viewer).page.recording._keeper.summaries():
                break
        eventually(lambda: Probe(viewer).page.recording._keeper.summaries(), "something is kept")
        assert np.array_equal(seen, stepped(FallingCartPole(), 60))
        eventually(lambda: Probe(viewer).panel_view().kept_in == str(place), "the page says where")
        Probe(viewer).page.timeline.show_holds([360])  # as if it had been held
        eventually(lambda: Probe(viewer).page.recording._holds, "its mark is kept")
    run = open_run(place)
    assert run.info.env == "FallingCartPole" and run.info.num_envs == 6
    assert run.info.trainer == "PPO"
    assert run.info.settings == {**settings, "num_timesteps": 10**6}
    assert 1 <= len(run.summaries()) <= 3 + MOST_FALLEN
    read = run.get(run.summaries()[0].key)
    assert len(read.qpos) == read.summary.length + 1
    assert run.curves()["loss"][2].tolist() == [0.5]
    assert run.holds() == (360,)
    assert set(run.policy(100)) == {"mean", "net/0"}
    assert np.array_equal(run.policy(100)["net/0"], np.ones((2, 2)))


@pytest.mark.parametrize("best", [17, 18])
def test_a_directory_within_its_bytes_keeps_the_policy_of_the_best_evaluation(tmp_path, best):
    keeper = Keeper(tmp_path / "run", max_run_bytes=200_000)
    keeper.begin(run_info("Ant"))
    for step in range(1, 100, 2):
        keeper.add_policy(step, {"w": np.zeros(1000)}, best if step > best else None)
    keeper.close()
    kept = open_run(tmp_path / "run").policies()
    assert len(kept) < 10 and {1, 17, 99} < set(kept), kept
    assert sum(p.stat().st_size for p in (tmp_path / "run" / "policies").iterdir()) < 40_000


def test_bytes_of_a_directory_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r"max_run_bytes=0: must be .* above 0"):
        Viewer(port=0, max_run_bytes=0)
