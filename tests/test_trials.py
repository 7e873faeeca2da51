"""Two policies are run from the same start in MuJoCo, and are compared in the page."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax import envs

from brax_viser import Viewer
from brax_viser.cli.comparing import RunPolicies
from brax_viser.cli.policies import Arguments, Given
from brax_viser.device.adapters import adapter_for
from brax_viser.host.control import Control
from brax_viser.host.metrics import EVALUATION, STEPS_PER_SECOND, Metrics
from brax_viser.host.state import SharedState
from brax_viser.page.inbox import Inbox
from brax_viser.page.state import PageState
from brax_viser.page.trials import AGO, BEST, FIRST, NEWEST, Trials, choices_of
from brax_viser.panel import trial_words, words
from brax_viser.panel.trial_words import RUN
from brax_viser.records.episode import Episode, distance
from brax_viser.replay import ReplayViewer
from brax_viser.runs.folder import RunFolder
from brax_viser.runs.memory import RecentPolicies
from brax_viser.runs.reader import open_run
from brax_viser.sandbox.trained import Trained
from brax_viser.sandbox.trial import Stage, Start
from tests.conftest import Page, eventually
from tests.recorded import episode_of
from tests.sample import SwiftCartPole
from tests.support import Probe
from tests.test_aside import PENDULUM, leaning
from tests.test_detail import CHOSEN, NUM_ENVS, Rollout
from tests.test_play import policy_of


def of_push(num_steps: int, push: float) -> Trained:
    return Trained(num_steps, leaning, {"push": np.float32(push)})


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(adapter_for(envs.get_environment(PENDULUM, backend="spring")))


def test_both_begin_alike_and_each_is_driven_by_its_own_policy(stage):
    policies = of_push(300, 0.5), of_push(0, -0.2)
    first, second = stage.try_out(policies, Start(3, {}), seed=1)
    np.testing.assert_array_equal(first.qpos[0], second.qpos[0])
    np.testing.assert_array_equal(first.qvel[0], second.qvel[0])
    for episode, push in ((first, 0.5), (second, -0.2)):
        np.testing.assert_allclose(
            episode.steps["action"], np.full((episode.summary.length, 1), push)
        )
        np.testing.assert_allclose(episode.qpos, stepped(stage, episode), atol=1e-4)
    assert (first.summary.num_steps, second.summary.num_steps) == (300, 0)
    assert first.summary.env == 3 and first.summary.key != second.summary.key
    (other, _) = stage.try_out(policies, Start(3, {}), seed=2)
    assert not np.array_equal(other.qpos[0], first.qpos[0]), "each seed has a reset of its own"


def stepped(stage: Stage, episode: Episode) -> np.ndarray:
    """Returns where plain MuJoCo gets to by the controls of an episode."""
    model = stage.environment.mujoco_model()
    data, found = mujoco.MjData(model), [episode.qpos[0]]
    data.qpos[:], data.qvel[:] = episode.qpos[0], episode.qvel[0]
    for ctrl in episode.steps["ctrl"]:
        data.ctrl[:] = ctrl
        for _ in range(stage.environment.substeps):
            mujoco.mj_step(model, data)
        found.append(data.qpos.copy())
    return np.stack(found)


def test_it_ends_where_the_environment_ends_it_or_when_the_time_is_over(stage):
    (fallen,) = stage.try_out([of_push(0, 1.0)], Start(0, {}), seed=0)
    assert fallen.summary.ended == "terminated" and abs(fallen.qpos[-1, 1]) > 0.2
    assert np.abs(fallen.qpos[:-1, 1]).max() <= 0.2
    assert fallen.summary.episode_return == fallen.summary.length == len(fallen.steps["reward"])
    (short,) = stage.try_out([of_push(0, 1.0)], Start(0, {}), seed=0, seconds=3 * fallen.dt)
    assert short.summary.ended == "truncated" and short.summary.length == 3
    np.testing.assert_array_equal(short.link_pos, fallen.link_pos[:4])


def test_a_trial_that_is_no_longer_wanted_is_given_up(stage):
    asked = []
    given_up = lambda: bool(asked.append(1)) or len(asked) > 3  # noqa: E731
    assert stage.try_out([of_push(0, 0.0)], Start(0, {}), seed=0, given_up=given_up) == []
    assert len(asked) < 10


def test_their_distance_is_the_mean_over_all_links_until_the_first_of_them_ends():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><joint type="slide" axis="1 0 0"/><geom size="0.1"/></body>'
        '<body pos="0 1 0"><geom size="0.1"/></body></worldbody></mujoco>'
    )
    short, long = episode_of(model, length=3), episode_of(model, length=5)
    moved = replace(long, link_pos=long.link_pos + np.array([[[3, 4, 0], [0, 0, 0]]], np.float32))
    np.testing.assert_allclose(distance(short, moved), np.full(4, 2.5))


def test_of_many_trials_only_the_newest_runs_while_another_does():
    open_, seeds, inbox = threading.Event(), [], Inbox(PageState(), lambda: None)
    adapter = SimpleNamespace(name="Nothing")

    def try_out(policies: Any, start: Start, seed: int, given_up: Any) -> list[Episode]:
        seeds.append(seed)
        assert open_.wait(60)
        return []

    source, variants = SimpleNamespace(adapter=adapter), SimpleNamespace(of_env={})
    robots: Any = SimpleNamespace(
        first=SimpleNamespace(source=source, variants=variants),
        roles=("train",),
        block_of=lambda role: None,
    )
    store: Any = SimpleNamespace(
        steps=lambda: (0, 500), get=lambda step: of_push(step, 0.0), environment=lambda: None
    )
    replay: Any = None  # nothing is played
    trials = Trials(SharedState(Control()), robots, replay, inbox, store)
    stage: Any = SimpleNamespace(environment=adapter, try_out=try_out)
    trials._stage = stage
    at_work = lambda: [t.name for t in threading.enumerate()].count("brax_viser trial")  # noqa: E731
    trials.begin(NEWEST, FIRST, False)
    eventually(lambda: seeds, "the first one runs")
    for _ in range(50):
        trials.begin(NEWEST, FIRST, False)
    assert at_work() == 1 and "they take their place" in trial_words.told(view_of(trials))
    open_.set()
    eventually(lambda: not at_work(), "all are done")
    assert seeds == [1, 51]
    inbox.carry_out()
    assert not trials.told().running


def view_of(trials: Trials) -> Any:
    """Returns as much of the panel's view as the words about the trials read."""
    return SimpleNamespace(trials=trials.told())


def test_policies_are_named_by_moments_of_the_training():
    metrics = Metrics()
    assert choices_of((), metrics) == {}
    assert choices_of((0, 500), metrics) == {NEWEST: 500, FIRST: 0, "Step 500": 500, "Step 0": 0}
    for step, reward in ((0, 1.0), (400, 9.0), (900, 3.0)):
        metrics.add(step, {EVALUATION: reward}, step)
    assert choices_of((0, 250, 500), metrics)[BEST] == 250, "the one that acted at that step"
    for seconds in range(0, 1300, 100):
        metrics.add(seconds * 10, {STEPS_PER_SECOND: 10.0}, seconds)
    named = choices_of((0, 5000, 7000, 12000), metrics)
    assert named[AGO] == 5000 and list(named)[:4] == [NEWEST, BEST, AGO, FIRST]


def test_policies_in_memory_are_bounded_and_thinned_evenly_but_for_first_newest_and_best():
    kept, size = RecentPolicies(max_bytes=5 * 400), np.zeros(100, np.float32)
    for step in range(0, 1001, 50):
        kept.add(step, {"w": size + step}, best=310)
    steps = kept.steps()
    assert len(steps) == 5 and {0, 300, 1000} <= set(steps), "310 is nearest to 300"
    assert max(np.diff(steps)) <= 400
    assert kept.get(300)["w"][0] == 300
    with pytest.raises(KeyError):
        kept.get(50)
    kept.add(0, {"w": size})
    assert kept.steps() == (0,), "another training has begun"


@pytest.fixture(scope="module")
def pendulums() -> Iterator[Rollout]:
    """A rollout in a viewer of its own, compiled once for all tests."""
    with Viewer(port=0) as viewer:
        rollout = Rollout(viewer, SwiftCartPole("spring"))
        advance(rollout)
        yield rollout


@pytest.fixture
def rollout(pendulums) -> Iterator[Rollout]:
    viewer, probe = pendulums.viewer, Probe(pendulums.viewer)
    page = Page(viewer)
    try:
        pendulums.reset()
        step_until_live(pendulums)
        yield pendulums
    finally:
        page.close()
        probe.now(probe.replay.close)
        viewer.selected_env = None
    eventually(lambda: not probe.server.get_clients(), "the page of this test is gone", 120)


def advance(rollout: Rollout) -> None:
    """Takes a step without waiting for the page."""
    push = jnp.zeros((NUM_ENVS, 1))
    rollout.state = jax.block_until_ready(rollout._step(rollout.state, push))


def step_until_live(rollout: Rollout) -> None:
    """Steps until the live robots are drawn, and at the newest step."""
    probe = Probe(rollout.viewer)

    def is_live() -> bool:
        advance(rollout)
        frame = probe.scene.blocks["train"].frame
        return frame is not None and len(frame.env_index) == min(NUM_ENVS, 4)

    eventually(is_live, "the live robots are drawn", timeout=120)
    rollout.step()


def use(probe: Probe, name: str, value: Any) -> None:
    probe.use(getattr(probe.panel.trials, f"_{name}"), value)


def test_a_person_compares_two_policies_in_the_page_of_a_training(rollout):
    viewer, probe = rollout.viewer, Probe(rollout.viewer)
    folder = probe.panel.trials
    assert not folder._run.visible and "policy_params_fn" in folder._note.content
    for step, push in ((0, -0.2), (700, 0.3), (1400, 0.5)):
        viewer.policy_params_fn(step, leaning, {"push": np.float32(push)})
    eventually(lambda: folder._run.visible, "the policies can be chosen")
    assert folder._solid.value == NEWEST and folder._ghost.value == FIRST
    assert folder._ghost.options == (NEWEST, FIRST, "Step 1,400", "Step 700", "Step 0")
    use(probe, "ghost", "Step 700")
    use(probe, "run", RUN)
    eventually(lambda: probe.replay.told().trial, "both have run", timeout=120)
    trial = probe.replay.told().trial
    assert [e.steps["action"][0, 0] for e in trial.episodes] == pytest.approx([0.5, 0.3])
    block = lambda: probe.block_of("train")  # noqa: E731
    eventually(lambda: (f := block().frame) is not None and f.ghost, "both are drawn")
    probe.now(lambda: probe.replay.seek(3 * trial.episodes[0].dt))
    eventually(lambda: block().frame.episode_length.tolist() == [3], "it is there")
    frame = block().frame
    solid, _ = trial.episodes
    np.testing.assert_array_equal(frame.link_pos[0], solid.link_pos[3])
    np.testing.assert_allclose(frame.ghost.bodies[0], distance(*trial.episodes)[3], rtol=1e-5)
    assert words.state(probe.panel_view())[0].startswith("Two policies: ")
    curves = probe.panel.pair
    eventually(lambda: curves._reward.visible, "their curves are there")
    for line, episode in zip(curves._reward.data[1:], trial.episodes, strict=True):
        rewards = episode.steps["reward"]
        np.testing.assert_array_equal(line[: len(rewards)], rewards)
        assert np.isnan(line[len(rewards) :]).all()
    shown = curves._distance.data[1]
    np.testing.assert_allclose(shown[np.isfinite(shown)], distance(*trial.episodes)[1:])
    assert "step 700" in folder._table.content and "newest" in folder._table.content
    assert not probe.panel.episodes._table.visible, "no recording is on screen"
    probe.now(probe.replay.close)
    step_until_live(rollout)
    eventually(lambda: not curves._reward.visible, "the curves are gone with the trial")


def test_they_may_begin_as_the_selected_robot_is(rollout):
    viewer, probe = rollout.viewer, Probe(rollout.viewer)
    viewer.policy_params_fn(2100, leaning, {"push": np.float32(0.4)})
    with pytest.raises(ValueError, match="select it first"):
        viewer.compare_policies(NEWEST, FIRST, from_selected=True)
    viewer.selected_env = CHOSEN
    detail = rollout.step().detail
    viewer.compare_policies(2100, "Newest", from_selected=True)
    eventually(lambda: probe.replay.told().trial, "both have run", timeout=120)
    for episode in probe.replay.told().trial.episodes:
        np.testing.assert_allclose(episode.qpos[0], detail.qpos, atol=1e-6)
        np.testing.assert_allclose(episode.qvel[0], detail.qvel, atol=1e-6)
        assert episode.summary.env == CHOSEN
    with pytest.raises(ValueError, match="no policy 'Step 5'"):
        viewer.compare_policies(5, NEWEST)


def test_a_newer_wish_replaces_one_that_is_under_way(rollout):
    viewer, probe = rollout.viewer, Probe(rollout.viewer)
    viewer.policy_params_fn(3000, leaning, {"push": np.float32(0.0)})
    for _ in range(3):
        viewer.compare_policies(NEWEST, NEWEST)
    viewer.compare_policies(FIRST, NEWEST)
    eventually(lambda: probe.replay.told().trial, "one of them has run", timeout=120)
    assert probe.replay.told().trial.policies == (FIRST, NEWEST)
    assert not probe.panel_view().trials.running


def broken(params: Any, deterministic: bool = False) -> Any:
    def policy(obs: Any, key: Any) -> Any:
        return jnp.full(1, params["push"]) + params["missing"], {}

    return policy


def test_an_error_is_reported_and_the_page_goes_on(rollout):
    viewer, probe = rollout.viewer, Probe(rollout.viewer)
    viewer.policy_params_fn(4000, broken, {"push": np.float32(0.0)})
    viewer.compare_policies(NEWEST, NEWEST)
    eventually(lambda: probe.panel_view().trials.fault, "it is said", timeout=120)
    assert "missing" in probe.panel_view().trials.fault
    eventually(lambda: "missing" in probe.panel.trials._note.content, "in the folder")
    viewer.policy_params_fn(4001, leaning, {"push": np.float32(0.0)})
    viewer.compare_policies(NEWEST, NEWEST)
    eventually(lambda: probe.replay.told().trial, "others can be compared", timeout=120)
    assert probe.panel_view().trials.fault is None


def run_of(path: Any, env: str) -> None:
    """Writes a run directory of a pendulum's training, whose policies are of another `env`."""
    from tests.stepped import run_info

    folder = RunFolder(path, run_info(envs.get_environment(PENDULUM).sys.mj_model))
    for step in (100, 200):
        make_policy, params = policy_of("ppo", step)
        folder.add_policy(step, Trained(step, make_policy, params).arrays())
    assert folder.close()
    Arguments(env, None, "ppo").write(path)


def test_a_replayed_trainings_policies_are_compared_once_its_environment_is_built(tmp_path):
    run_of(tmp_path / "run", PENDULUM)
    run = open_run(tmp_path / "run")
    with ReplayViewer(run.info, run, RunPolicies(run, Given("replay")), port=0) as viewer:
        probe = Probe(viewer)
        viewer.compare_policies(200, 100)
        eventually(lambda: probe.replay.told().trial, "both have run", timeout=120)
        steps = [e.summary.num_steps for e in probe.replay.told().trial.episodes]
        assert steps == [200, 100] and words.state(probe.panel_view())[0].startswith("Two pol")
        assert probe.replay.shown() == probe.replay.told().trial.episodes


def test_what_a_run_directory_lacks_for_a_trial_is_reported(tmp_path):
    run_of(tmp_path / "run", "reacher")
    run = open_run(tmp_path / "run")
    with ReplayViewer(run.info, run, RunPolicies(run, Given("replay")), port=0) as viewer:
        probe, fault = Probe(viewer), lambda: probe.panel_view().trials.fault or ""
        viewer.compare_policies(200, 100)
        eventually(lambda: "it has been changed since" in fault(), "another robot", timeout=120)
        (tmp_path / "run" / "train.json").unlink()
        viewer.offer_policies(RunPolicies(run, Given("replay")))
        viewer.compare_policies(200, 100)
        eventually(lambda: "/run ENV" in fault(), "a training of a script", timeout=120)
        viewer.offer_policies(RunPolicies(run, Given("replay", PENDULUM, "spring")))
        viewer.compare_policies(200, 100)
        eventually(lambda: probe.replay.told().trial, "which is told", timeout=120)
