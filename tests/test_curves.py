"""The plot of curves chooses true lines from what is reported, and shows them in the page."""

import functools
from dataclasses import replace

import mujoco
import numpy as np
import pytest

from brax_viser import Viewer
from brax_viser.cli import remote
from brax_viser.host.metrics import SEEN_LENGTH, SEEN_REWARD, STEPS_PER_SECOND, Metrics
from brax_viser.host.progress import Progress
from brax_viser.host.rewards import SEEN, rewards_of
from brax_viser.host.terms import TermLog
from brax_viser.page.seen import Sampler
from brax_viser.panel.curve_lines import (
    LENGTH,
    MOST_LINES,
    REWARD,
    SPEED,
    STEPWISE,
    TERMS,
    choices,
    episode_of,
    lines_of,
    marked,
    plot_of,
    terms_of,
)
from brax_viser.panel.curves import NOT_LOGARITHMIC, _limits
from brax_viser.records.episode import Episode
from brax_viser.records.frame import Detail, Frame
from brax_viser.replay import ReplayViewer
from tests.conftest import Page, eventually
from tests.recorded import Kept, recording_of, run_of
from tests.support import Probe
from tests.toy import XML


def reported(*points: tuple[int, dict[str, float]]) -> Metrics:
    metrics = Metrics()
    for steps, values in points:
        metrics.add(steps, values, now=float(steps))
    return metrics


def labels(metrics: Metrics, what: str) -> list[str]:
    return [line.label for line in lines_of(metrics, what)]


def test_training_and_evaluation_share_a_plot_with_the_evaluations_spread():
    metrics = reported(
        (0, {"eval/episode_reward": 1, "eval/episode_reward_std": 0.5}),
        (10, {"episode/sum_reward": 3}),
        (20, {"eval/episode_reward": 5, "eval/episode_reward_std": 1}),
        (30, {"episode/sum_reward": 7}),
    )
    plot = plot_of(lines_of(metrics, REWARD))
    assert plot is not None
    assert plot.labels == ["training", "evaluation"]
    assert plot.newest == [7, 5]
    np.testing.assert_array_equal(plot.x, [0, 10, 20, 30])
    np.testing.assert_array_equal(plot.lines, [[np.nan, 3, 5, 7], [1, 3, 5, np.nan]])
    assert plot.band is not None
    np.testing.assert_array_equal(plot.band, [[0.5, 2.25, 4, 5], [1.5, 3.75, 6, 5]])


def test_robots_on_screen_stand_in_until_the_trainer_reports_its_own():
    metrics = reported((1, {SEEN_REWARD: 2, SEEN_LENGTH: 9, STEPS_PER_SECOND: 100}))
    assert labels(metrics, REWARD) == ["training, robots on screen"]
    assert choices(metrics)[:3] == (REWARD, LENGTH, SPEED)
    metrics.add(2, {"episode/sum_reward": 3}, 2.0)
    assert labels(metrics, REWARD) == ["training"]


@pytest.mark.parametrize(
    ("names", "terms"),
    [
        (["episode/reward_ctrl", "episode/reward_forward"], ["forward", "ctrl"]),  # Brax's ant
        (
            ["eval/episode_reward/orientation", "eval/episode_reward/alive"],
            ["alive", "orientation"],
        ),
        (["episode/x_position", "episode/sum_reward", "episode/length"], []),
        (["recorded/episode_reward_ctrl"], ["ctrl, recorded episodes"]),
        (["recorded/episode_reward_ctrl", "eval/episode_reward_ctrl"], ["ctrl"]),
        (["recorded/episode_height"], []),
    ],
)
def test_reward_terms_are_found_by_brax_and_playground_names_largest_first(names, terms):
    values = {name: i + 1 for i, name in enumerate(names)}
    deviations = {f"{name}_std": 9 for name in names if name.startswith("eval")}
    metrics = reported((1, {**values, **deviations, "eval/episode_reward": 7, "episode/length": 5}))
    assert labels(metrics, TERMS) == terms


def test_terms_that_are_the_same_over_the_whole_training_share_a_line():
    same = {"episode/reward_forward": 3, "episode/forward_reward": 3}  # Brax's ant keeps both
    metrics = reported((1, {**same, "episode/reward_ctrl": 3}), (2, {**same, "episode/x": 3}))
    assert labels(metrics, TERMS) == ["forward_reward = forward", "ctrl"]
    metrics.add(3, {**same, "episode/forward_reward": 4}, 3.0)
    assert labels(metrics, TERMS) == ["forward_reward", "ctrl", "forward"]


def test_many_terms_are_limited_to_the_lines_of_the_plot():
    metrics = reported((1, {f"episode/reward/{i}": i for i in range(30)}))
    assert labels(metrics, TERMS) == [str(i) for i in range(29, 29 - MOST_LINES, -1)]


def test_any_metric_is_chosen_by_its_name_against_steps_or_time():
    metrics = Metrics()
    metrics.add(100, {"my/number": 1.0}, now=50.0)
    metrics.add(300, {"my/number": 2.0}, now=60.0)
    lines = lines_of(metrics, "my/number")
    steps, seconds = plot_of(lines), plot_of(lines, by_time=True)
    assert steps is not None
    assert seconds is not None
    assert (steps.x.tolist(), seconds.x.tolist()) == ([100, 300], [0, 10])
    assert lines_of(metrics, "no/such") == []
    assert plot_of([]) is None


def test_a_curve_of_gaps_alone_and_a_count_that_steps_back_are_drawn():
    metrics = reported((5, {"a": np.nan}), (9, {"b": 1}), (7, {"b": 3}))
    gaps, back = plot_of(lines_of(metrics, "a")), plot_of(lines_of(metrics, "b"))
    assert gaps is not None
    assert np.isnan(gaps.lines[0]).all()
    assert back is not None
    assert (back.x.tolist(), back.lines[0].tolist()) == ([7, 9], [3, 1])


@pytest.mark.parametrize("values", [[3.0], [0.0], [-5.0, 7.0], [1e-9, 1e9], [1234.5, 1234.6]])
@pytest.mark.parametrize("log", [False, True])
def test_limits_enclose_all_values(values, log):
    low, high, is_log = _limits(np.array(values), log=log)
    assert low < high
    assert low <= min(values) <= max(values) <= high
    assert is_log == (log and min(values) > 0)


def test_the_plot_appears_with_the_first_number_and_shows_what_was_reported(
    viewer: Viewer, page: Page
):
    curves = Probe(viewer).panel.curves
    eventually(lambda: curves._updates > 0, "the panel is updated")
    assert not curves._plot.visible
    viewer.log(500, {"loss": 0.25})
    eventually(lambda: curves._plot.visible, "the plot is there")
    eventually(lambda: curves._what.value == "loss", "there is nothing else yet")
    viewer.log(1000, {"eval/episode_reward": 5.0})
    eventually(lambda: curves._what.value == REWARD, "the reward comes first")
    viewer.log(2000, {"eval/episode_reward": 7.0, "note": "no number"})
    eventually(lambda: len(curves._plot.data[0]) == 2, "the plot has both points")
    assert curves._plot.data[0].tolist() == [1, 2]  # thousand env steps
    assert curves._what.options == (REWARD, "eval/episode_reward", "loss")
    assert "evaluation" in curves._legend.content
    assert "<b>7</b>" in curves._legend.content
    Probe(viewer).use(curves._what, "loss")
    eventually(lambda: curves._plot.data[0].tolist() == [500], "the other metric is drawn")
    told = remote.ask(viewer.url, "replay/curve", what=REWARD)
    assert told["curves"]["of"]["what"] == REWARD
    eventually(lambda: curves._what.value == REWARD, "the time bar's choice is the tab's")
    Probe(viewer).use(curves._what, "loss")
    drawn = lambda: remote.ask(viewer.url, "timeline")["curves"]["of"]["what"]  # noqa: E731
    eventually(lambda: drawn() == "loss", "and the other way round")
    Probe(viewer).use(curves._log, True)
    eventually(lambda: curves._plot.scales["y"]["distr"] == 3, "all values are above 0")
    assert NOT_LOGARITHMIC not in curves._legend.content
    viewer.log(2500, {"loss": -0.1})
    eventually(lambda: NOT_LOGARITHMIC in curves._legend.content, "it says why it is linear again")
    assert viewer.stats().frames == 0


def test_a_hook_calls_the_viewers_functions_and_then_ones_own(viewer: Viewer):
    called = []
    hooks = viewer.hook(
        progress_fn=lambda *given: called.append(given),
        policy_params_fn=lambda *given: called.append(given),
    )
    hooks["progress_fn"](10, {"eval/episode_reward": 1.0})
    hooks["policy_params_fn"](10, lambda params, deterministic=True: None, {})
    assert [given[0] for given in called] == [10, 10]
    curve = Probe(viewer).shared.progress.metrics.curve("eval/episode_reward")
    assert curve is not None
    assert curve.steps.tolist() == [10]
    assert viewer.hook() == {
        "progress_fn": viewer.progress_fn,
        "policy_params_fn": viewer.policy_params_fn,
    }
    with pytest.raises(ZeroDivisionError):  # the trainer sees it, as it does without a viewer
        viewer.hook(progress_fn=lambda *given: 1 / 0)["progress_fn"](1, {})


def test_episodes_of_robots_on_screen_are_sampled_unless_they_were_chosen_for_them():
    metrics = Metrics()
    sampler = Sampler(metrics)
    progress = replace(Progress().view(0.0), phase="training", num_steps=500)
    returns, lengths = np.array([2.0, np.nan]), np.array([30, 0])

    def frame(step: int) -> Frame:
        episodes = {"finished_return": returns, "finished_length": lengths}
        return replace(frame_at(step, 5, 0.0), **episodes)

    sampler.sample(progress, frame(1), "first", now=0.0)
    sampler.sample(progress, frame(2), "first", now=0.1)  # too soon
    sampler.sample(progress, frame(3), "best", now=10.0)
    rewards, speed = metrics.curve(SEEN_REWARD), metrics.curve(STEPS_PER_SECOND)
    assert rewards is not None and speed is not None
    assert (rewards.steps.tolist(), rewards.values.tolist()) == ([500], [2])
    assert len(speed.values) == 2
    told = rewards_of(metrics)
    assert told is not None and (told.kind, told.newest, told.episode_length) == (SEEN, 2, 30)


def frame_at(step: int, env: int, reward: float, **metrics: float) -> Frame:
    """Returns a frame of environments 3 and 5, with the details of one of them."""
    numbers = {name: np.array(x) for name, x in metrics.items()}
    zeros = np.zeros((2, 1, 3), np.float32)
    return Frame(
        role="train",
        env_steps=step,
        env_index=np.array([3, 5]),
        num_envs=8,
        link_pos=zeros,
        link_rot=zeros,
        reward=np.where(np.array([3, 5]) == env, reward, -99.0),
        episode_return=zeros[:, 0, 0],
        episode_length=np.ones(2, np.int32),
        since_termination=np.ones(2, np.int32),
        finite=np.ones(2, bool),
        detail=Detail(env, *[np.zeros(1)] * 2, *[None] * 5, {}, {}, numbers),
    )


def test_the_selected_robots_terms_are_kept_in_order_with_gaps_between_stretches():
    log = TermLog()
    assert not log.is_of(None)
    for step, reward in ((1, 1.0), (2, 2.0), (2, 2.0), (900, 5.0)):
        log.add(frame_at(step, 5, reward, reward_alive=1.0, x=7.0), dt=0.1)
    terms = log.terms()
    assert terms is not None and terms.env == 5
    np.testing.assert_allclose(terms.seconds, [-0.3, -0.2, -0.1, 0], atol=1e-9)
    np.testing.assert_array_equal(terms.values["reward"], [1, 2, np.nan, 5])
    plot = terms_of(terms)
    assert plot.labels == ["whole reward", "alive"]
    assert plot.newest == [5, 1]
    log.add(frame_at(901, 3, 4.0, x=7.0), dt=0.1)  # another robot has been selected
    terms = log.terms()
    assert terms is not None and terms.env == 3
    assert terms_of(terms).labels == ["whole reward", "x"]


MODEL = mujoco.MjModel.from_xml_string(XML)
EARLY, LATE = recording_of(MODEL, 0), recording_of(MODEL, 1_200_000)


def test_a_recorded_episode_is_drawn_from_its_first_step_to_its_end_with_the_moment_marked():
    metrics = {"reward_run": [1, 2, -7, np.inf], "x": [9, 9, 9, 9]}
    steps = {f"metrics/{name}": np.array(x, np.float32) for name, x in metrics.items()}
    steps["reward"] = np.array([5, 6, 7, 8], np.float32)
    episode = replace(EARLY[0], summary=replace(EARLY[0].summary, length=4), dt=0.1, steps=steps)
    plot = episode_of(episode, 2.5)
    np.testing.assert_allclose(plot.x, [0.1, 0.2, 0.3, 0.4])
    assert plot.labels == ["whole reward", "run"]
    np.testing.assert_array_equal(plot.lines, [[5, 6, 7, 8], [1, 2, -7, np.nan]])
    assert plot.newest == [6, 2], "the second step is over"
    assert np.isnan(episode_of(episode, 0.0).newest).all()
    assert episode_of(episode, 4).newest[0] == 8
    drawn = marked(plot, -10, 10)
    np.testing.assert_allclose(drawn.x, [0.1, 0.2, 0.25, 0.25, 0.3, 0.4])
    np.testing.assert_allclose(drawn.lines[0], [5, 6, 6.5, 6.5, 7, 8])
    assert drawn.band is not None
    np.testing.assert_array_equal(drawn.band[0], [np.nan, np.nan, -10, 10, np.nan, np.nan])
    for place, at in ((0, 0), (4, 3)):  # at either end
        drawn = marked(episode_of(episode, place), 0, 1)
        assert drawn.x[at] == drawn.x[at + 1] == pytest.approx(place * 0.1)
        assert (np.diff(drawn.x) >= 0).all() and len(drawn.x) == 6


def test_a_replayed_episodes_reward_is_shown_in_a_page_of_episodes_alone():
    kept = Kept([*EARLY, *LATE])
    with ReplayViewer(run_of(MODEL, 0.02, "Cart"), kept, port=0) as viewer:
        page, probe = Page(viewer), Probe(viewer)
        curves = probe.panel.curves

        def shows(episode: Episode) -> bool:
            """Whether each step's reward is drawn, and the mark with it."""
            x, band, _, reward, alive = curves._plot.data[:5]
            at = np.flatnonzero(np.isfinite(band))
            known = len(at) == 2 and len(x) == episode.summary.length + 2
            rewards = np.delete(reward, at) if known else np.zeros(0)
            return known and np.array_equal(rewards, episode.steps["reward"]) and alive[-1] == 1

        try:
            eventually(lambda: STEPWISE in curves._what.options, "its reward can be chosen")
            probe.use(curves._what, STEPWISE)
            eventually(lambda: shows(LATE[0]), "the first episode's reward is drawn")
            viewer.selected_env = 4
            eventually(lambda: shows(LATE[1]), "the selected robot's")
            assert "env 4" in curves._plot.axes[0]["label"]
            probe.enqueue(functools.partial(probe.replay.seek, 0.2))
            eventually(lambda: "At 0.20 of 0.40 s" in curves._legend.content, "the moment is told")
            marks = lambda: curves._plot.data[0][np.isfinite(curves._plot.data[1])]  # noqa: E731
            eventually(lambda: marks() == pytest.approx([0.2, 0.2]), "and drawn, after the legend")
            assert "<b>1</b>" in curves._legend.content
            probe.enqueue(functools.partial(probe.replay.choose, 0))
            eventually(lambda: shows(EARLY[1]), "that of another recording")
            probe.enqueue(functools.partial(probe.replay.show_only, EARLY[2].summary.key))
            eventually(lambda: shows(EARLY[2]), "the only one")
        finally:
            page.close()
