"""Tests the playback of recorded episodes: pure logic over a clock."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from brax_viser.model.touching import ending, touching
from brax_viser.page.replay import Replay
from brax_viser.panel import episode_words
from brax_viser.records.episode import Summary, distance, nonfinite
from brax_viser.records.protocol import NEVER
from brax_viser.records.view import View
from brax_viser.sandbox.trial import Trial
from tests.recorded import Kept, episode_of, recording_of

XML = """
<mujoco><option timestep="0.1"/><worldbody><body name="cart" pos="0 0 0.5">
  <joint name="slide" type="slide" axis="1 0 0"/><geom type="box" size="0.2 0.1 0.1"/>
</body></worldbody><actuator><motor joint="slide"/></actuator></mujoco>
"""
MODEL = mujoco.MjModel.from_xml_string(XML)
EARLY, LATE = recording_of(MODEL, 0), recording_of(MODEL, 1000)
DT = 0.1


def at_once(read, use) -> None:
    use(read())


@pytest.fixture
def kept() -> Kept:
    return Kept([*EARLY, *LATE])


@pytest.fixture
def replay(kept) -> Replay:
    replay = Replay(kept, at_once)
    replay.update()
    return replay


def seen(replay: Replay, now: float, *, cells: int = 4, selected: int | None = None) -> View:
    view = replay.view(now, cells, 2048, selected)
    assert view is not None
    return view


def test_nothing_is_shown_until_it_is_played_and_after_going_back_to_live(replay):
    assert replay.view(0.0, 4, 2048, None) is None and not replay.told().active
    replay.toggle()
    assert seen(replay, 0.0).frame.env_index.tolist() == [1, 4, 7, 10]
    assert replay.told().active and replay.told().playing
    replay.close()
    replay.seek(0.5)  # as a page may send late
    assert replay.view(1.0, 4, 2048, None) is None and not replay.playing


def test_few_cells_show_one_episode_of_each_kind_and_more_cells_the_others_that_fell():
    fallen = [episode_of(MODEL, recording=0, env=env, kept_as=("fell",)) for env in (2, 3, 5)]
    replay = Replay(Kept([*fallen, *EARLY]), at_once)
    replay.update()
    replay.toggle()
    assert [s.env for s in replay.told().episodes] == [1, 4, 2, 10, 3, 5, 7]
    assert seen(replay, 0.0).frame.env_index.tolist() == [1, 4, 2, 10]
    assert seen(replay, 0.1, cells=16).frame.env_index.tolist() == [1, 4, 2, 10, 3, 5, 7]


def test_the_newest_recording_is_played_first_and_any_other_by_its_place(replay):
    assert replay.told().steps == (0, 1000) and replay.told().index == 1
    replay.toggle()
    np.testing.assert_array_equal(seen(replay, 0.0).link_pos[0], LATE[0].link_pos[0])
    replay.choose(0)
    np.testing.assert_array_equal(seen(replay, 0.0).link_pos[1], EARLY[1].link_pos[0])
    with pytest.raises(ValueError, match="no recording 3: 2 are kept"):
        replay.choose(2)


def test_episodes_play_in_sync_and_each_stands_still_at_its_end_until_the_longest_is_over(replay):
    replay.toggle()
    seen(replay, 100.0)
    view = seen(replay, 102.5)  # 25 steps: the second has 20 of them
    assert view.frame.episode_length.tolist() == [25, 20, 25, 25]
    assert view.frame.since_termination.tolist() == [NEVER, 0, NEVER, NEVER]
    np.testing.assert_array_equal(view.link_pos[0], LATE[0].link_pos[25])
    np.testing.assert_array_equal(view.link_pos[1], LATE[1].link_pos[20])
    assert seen(replay, 105.5).frame.episode_length.tolist() == [5, 5, 5, 5], "it loops"
    replay.set_loop(False)
    seen(replay, 120.0)
    assert seen(replay, 121.0).frame.episode_length.tolist() == [50, 20, 30, 40]
    assert not replay.playing
    replay.toggle()
    assert seen(replay, 122.0).frame.episode_length.tolist() == [0] * 4, "it begins again"


def test_poses_between_two_steps_are_interpolated(replay):
    replay.toggle()
    replay.seek(0.55)
    one, other = LATE[0].link_pos[5], LATE[0].link_pos[6]
    view = seen(replay, 0.0)
    np.testing.assert_allclose(view.link_pos[0], (one + other) / 2, atol=1e-5)
    assert view.frame.episode_length[0] == 5


def test_returns_and_details_are_those_of_the_step_on_screen(replay):
    replay.toggle()
    replay.seek(1.0)
    frame = seen(replay, 0.0, selected=4).frame
    episode, detail = LATE[1], frame.detail
    assert frame.episode_return[1] == pytest.approx(episode.steps["reward"][:10].sum(), abs=1e-5)
    assert frame.reward[1] == episode.steps["reward"][9]
    assert detail is not None and detail.env == 4
    np.testing.assert_array_equal(detail.qpos, episode.qpos[10])
    np.testing.assert_array_equal(detail.ctrl, episode.steps["ctrl"][9])
    assert detail.metrics == {"reward_alive": 1.0}
    assert frame.coordinates is not None
    np.testing.assert_array_equal(frame.coordinates.qvel[1], episode.qvel[10])
    replay.seek(5.0)
    assert seen(replay, 0.0).frame.episode_return[0] == np.float32(LATE[0].summary.episode_return)


def test_the_selected_robots_episode_is_in_focus_or_else_the_first(replay):
    assert replay.focus(4) is None, "the robots are live"
    replay.toggle()
    replay.seek(3.0)
    assert replay.focus(None) == (LATE[0], pytest.approx(30))
    assert replay.focus(4) == (LATE[1], 20), "it stands still at its end"
    assert replay.focus(1234) == (LATE[0], pytest.approx(30)), "it is not among them"
    replay.show_only(LATE[2].summary.key)
    assert replay.focus(4) == (LATE[2], 0)
    replay.set_only_end(True)
    replay.choose(0)
    assert replay.focus(1) == (EARLY[0], pytest.approx(20)), "the last 3 s"
    replay.close()
    assert replay.focus(None) is None


def test_it_steps_forwards_and_backwards_as_far_as_the_ends(replay):
    replay.step(1)
    assert not replay.playing
    assert seen(replay, 0.0).frame.episode_length[0] == 1
    for n, length in ((1, 2), (-1, 1), (-1, 0), (-1, 0), (1000, 50), (1, 50), (-1, 49)):
        replay.step(n)
        assert seen(replay, 0.0).frame.episode_length[0] == length


@pytest.mark.parametrize("speed", [0.1, 2.0, 16.0])
def test_speed_is_robot_time_per_second(replay, speed):
    replay.set_speed(speed)
    replay.toggle()
    seen(replay, 0.0)
    seen(replay, 0.25)
    assert replay.told().position == pytest.approx(0.25 * speed)


def test_a_speed_outside_its_limits_is_refused(replay):
    with pytest.raises(ValueError, match=r"speed=17: must be 0.1 to 16"):
        replay.set_speed(17)


def test_the_last_seconds_alone_end_together(replay):
    replay.set_only_end(True)
    replay.toggle()
    replay.seek(0.0)
    assert seen(replay, 0.0).frame.episode_length.tolist() == [20, 0, 0, 10]
    replay.seek(3.0)
    assert seen(replay, 0.0).frame.episode_length.tolist() == [50, 20, 30, 40]
    assert replay.told().seconds == pytest.approx(3.0)
    replay.seek(1.0)
    first, place = replay.focus(None)
    assert place * first.dt == pytest.approx(3.0), "of the best, which is the first"


def test_a_fall_is_played_alone_from_three_seconds_before_it(replay):
    told = replay.told().ended
    assert [(s.recording, s.env) for s in told[:2]] == [(1000, 10), (1000, 7)]
    assert [s.ended for s in told] == 6 * ["terminated"] + 2 * ["truncated"], "falls come first"
    assert [s.recording for s in told[6:]] == [1000, 0], "the newest first"
    later = replace(EARLY[3].summary, num_steps=2000, ended="nonfinite")
    mixed = Replay(Kept([*LATE, replace(EARLY[3], summary=later)]), at_once)
    mixed.update()
    assert mixed.told().ended[0] == later, "begun last, if not of the newest recording"
    replay.play_end(EARLY[3].summary.key)
    view = seen(replay, 0.0)
    assert view.frame.env_index.tolist() == [10] and view.frame.episode_length[0] == 10
    assert replay.told().index == 0 and replay.told().playing


def test_as_many_are_shown_as_there_are_cells_and_the_best_comes_first(replay):
    replay.toggle()
    assert seen(replay, 0.0, cells=1).frame.env_index.tolist() == [1]
    replay.show_only(LATE[2].summary.key)
    assert seen(replay, 0.0, cells=1).frame.env_index.tolist() == [7]


def test_the_same_moment_is_the_same_picture(replay):
    replay.toggle()
    replay.seek(1.0)
    assert seen(replay, 0.0) is seen(replay, 9.0)
    assert seen(replay, 9.0, selected=4) is not seen(replay, 9.0)


def test_new_episodes_appear_and_what_is_watched_stays_when_it_is_thinned_out(replay, kept):
    replay.choose(0)
    replay.toggle()
    before = seen(replay, 0.0).frame.env_index.tolist()
    for episode in EARLY:
        kept.drop(episode.summary.key)
    kept.add(replace(LATE[0], summary=replace(LATE[0].summary, recording=2000)))
    replay.update()
    assert replay.told().steps == (1000, 2000)
    assert seen(replay, 0.0).frame.env_index.tolist() == before
    replay.choose(1)
    assert seen(replay, 0.0).frame.env_index.tolist() == [1]


def test_an_episode_that_cannot_be_read_is_left_out_with_a_message(kept):
    class Damaged(Kept):
        def get(self, key):
            if key == LATE[1].summary.key:
                raise ValueError("episode.npz is damaged")
            return super().get(key)

    replay = Replay(Damaged(LATE), at_once)
    replay.update()
    replay.toggle()
    assert seen(replay, 0.0).frame.env_index.tolist() == [1, 7, 10]
    assert replay.told().complaint == "An episode cannot be read: episode.npz is damaged"


def test_nothing_can_be_played_before_there_is_an_episode():
    replay = Replay(Kept(), at_once)
    replay.update()
    for action in (replay.toggle, lambda: replay.step(1), lambda: replay.choose(0)):
        with pytest.raises(ValueError, match=r"No episode has been recorded yet|no recording 1"):
            action()
    assert not replay.playing and not replay.told().active


FALLING = """
<mujoco><option timestep="0.1"/><worldbody>
  <geom name="ground" type="plane" size="1 1 1"/>
  <body name="trunk" pos="0 0 0.3"><freejoint/><geom type="sphere" size="0.1"/></body>
</worldbody></mujoco>
"""


def test_the_bodies_that_touched_are_named():
    model = mujoco.MjModel.from_xml_string(FALLING)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert touching(model, data) == ""
    data.qpos[2] = 0.0995
    mujoco.mj_forward(model, data)
    assert touching(model, data) == "trunk touches ground"


def test_a_robots_final_height_is_given_if_it_can_rise():
    model = mujoco.MjModel.from_xml_string(FALLING)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert ending(model, data) == "trunk at 0.30 m"
    data = mujoco.MjData(MODEL)
    mujoco.mj_forward(MODEL, data)
    assert ending(MODEL, data) == "", "a cart does not rise"


def test_the_numbers_that_turned_nan_first_are_named():
    episode = EARLY[0]
    assert nonfinite(episode) == ""
    qvel, action, reward = (
        x.copy() for x in (episode.qvel, episode.steps["action"], episode.steps["reward"])
    )
    qvel[7], action[6], reward[8] = np.inf, np.nan, np.nan  # in step 7, 7 and 9
    steps = {**episode.steps, "action": action, "reward": reward}
    assert nonfinite(replace(episode, qvel=qvel, steps=steps)) == "NaN or Inf in qvel, action"


def test_the_listed_episodes_are_read_one_by_one_to_say_how_they_ended(kept):
    reads = []
    replay = Replay(
        *(kept, at_once, lambda episode: f"env {episode.summary.env} touches ground"),
        listed=lambda read, use: reads.append((read, use)),
    )
    replay.update()
    for _ in range(3):
        replay.endings.look_into()
    assert len(reads) == 1, "the next one waits for it"
    newest, limit = replay.told().ended[0], replay.told().ended[-1]

    def label(summary: Summary) -> str:
        return episode_words.ended(summary, replay.told().endings, DT)

    assert label(newest).startswith("1.01 k · env 10 · terminated · 4.0 s · return ")
    for place in range(6):
        read, use = reads[place]
        use(read())
        replay.endings.look_into()
    assert len(reads) == 6, "each once, and none that ended at a time limit"
    assert label(newest).startswith("1.01 k · env 10 · env 10 touches ground · 4.0 s")
    assert label(limit).startswith("10 · env 1 · time limit · 5.0 s")
    told = {newest.key: ", ".join(10 * ["torso touches the floor"])}
    assert len(episode_words.ended(newest, told, DT)) < 100
    kept.drop(newest.key)
    replay.update()
    assert newest.key not in replay.told().endings


def test_what_cannot_be_read_is_not_asked_for_again(kept):
    asked = []

    class Gone(Kept):
        def get(self, key):
            asked.append(key)
            raise KeyError(key)

    replay = Replay(Gone(EARLY), at_once)
    replay.update()
    for _ in range(5):
        replay.endings.look_into()
    assert len(asked) == 3
    assert "terminated" in episode_words.ended(replay.told().ended[0], replay.told().endings, DT)


def test_it_plays_backwards_and_stops_at_the_beginning_or_goes_on_from_the_end(replay):
    replay.toggle()
    seen(replay, 0.0)
    seen(replay, 2.0)
    replay.set_speed(2.0)
    replay.play(backwards=True)
    seen(replay, 10.0)
    assert seen(replay, 10.5).frame.episode_length.tolist() == [10] * 4
    assert replay.playing and replay.told().backwards
    assert seen(replay, 11.5).frame.episode_length.tolist() == [40, 20, 30, 40], "it loops"
    replay.set_loop(False)
    assert seen(replay, 20.0).frame.episode_length.tolist() == [0] * 4 and not replay.playing
    replay.play(backwards=True)
    assert seen(replay, 30.0).frame.episode_length[0] == 50, "from the end once more"
    assert seen(replay, 31.0).frame.episode_length[0] == 30 and replay.playing
    replay.toggle()
    assert not replay.playing and seen(replay, 40.0).frame.episode_length[0] == 30
    replay.toggle()
    seen(replay, 41.0)
    assert seen(replay, 41.5).frame.episode_length[0] == 40, "and on again"
    replay.play(backwards=True)
    replay.choose(0)
    seen(replay, 50.0)
    assert seen(replay, 50.5).frame.episode_length[0] == 10, "another one is played from its start"


def test_backwards_from_live_robots_it_begins_at_the_end_once_that_is_read(kept):
    reads = []
    replay = Replay(kept, lambda read, use: reads.append((read, use)))
    replay.update()
    replay.set_loop(False)
    replay.play(backwards=True)
    assert replay.view(0.0, 4, 2048, None) is None and replay.view(5.0, 4, 2048, None) is None
    (read, use) = reads.pop()
    use(read())
    assert seen(replay, 6.0).frame.episode_length[0] == 50
    assert seen(replay, 7.0).frame.episode_length[0] == 40 and replay.playing


def test_only_the_ends_of_falls_are_read(kept):
    replay = Replay(kept, at_once, lambda episode: f"env {episode.summary.env} touches ground")
    replay.update()
    replay.toggle()
    told = replay.told()
    assert [told.endings.get(s.key) for s in told.episodes] == [
        None,
        *(f"env {env} touches ground" for env in (4, 7, 10)),
    ]
    assert "At the end of env 7: env 7 touches ground." in episode_words.table(told, DT)


def test_another_recording_is_drawn_as_ghosts_each_over_the_one_kept_for_the_same_reason(replay):
    replay.compare(0)
    replay.toggle()
    seen(replay, 0.0)
    view = seen(replay, 1.0)
    assert view.ghost is not None and view.frame.ghost is not None
    assert [e.summary.kept_as for e in EARLY] == [e.summary.kept_as for e in LATE]
    for row, episode in enumerate(EARLY):
        np.testing.assert_array_equal(view.ghost[0][row], episode.link_pos[10])
        np.testing.assert_array_equal(view.ghost[1][row], episode.link_rot[10])
    apart = np.linalg.norm(LATE[0].link_pos[10, 0] - EARLY[0].link_pos[10, 0])
    assert view.frame.ghost.root[0] == pytest.approx(apart)
    told = replay.told()
    assert told.compared == 0 and [s.key for s in told.others] == [e.summary.key for e in EARLY]
    assert "Ghosts: step 0" in episode_words.table(told, DT)
    replay.compare(None)
    assert seen(replay, 1.0).ghost is None and replay.told().compared is None
    with pytest.raises(ValueError, match="no recording 5: 2 are kept"):
        replay.compare(4)


def test_a_pair_is_the_selected_robots_episode_and_its_ghost_whichever_way_they_came(replay):
    replay.toggle()
    assert replay.pair(None) is None, "nothing is compared"
    replay.compare(0)
    assert replay.pair(None) == (LATE[0], EARLY[0])
    assert replay.pair(LATE[2].summary.env) == (LATE[2], EARLY[2])
    seen(replay, 0.0)
    ghost = seen(replay, 1.0).frame.ghost
    assert ghost is not None
    assert ghost.bodies[1] == pytest.approx(distance(LATE[1], EARLY[1])[10]), "as it is measured"
    replay.compare(None)
    assert replay.pair(None) is None
    replay.present(Trial(("Newest", "At the start"), (LATE[3], EARLY[3])))
    assert replay.pair(None) == (LATE[3], EARLY[3])
    replay.close()
    assert replay.pair(None) is None


def test_the_ghost_of_a_robot_that_travels_goes_along_with_it(replay):
    replay.compare(0)
    replay.toggle()
    replay.view(0.0, 4, 2048, None, 0)
    view = replay.view(2.0, 4, 2048, None, 0)
    assert view is not None and view.ghost is not None and view.frame.ghost is not None
    np.testing.assert_allclose(view.ghost[0][:, 0, :2], view.link_pos[:, 0, :2], atol=1e-6)
    assert view.frame.ghost.root[0] > 0, "how far they are apart is told all the same"


def test_without_an_episode_kept_for_the_same_reason_the_best_is_the_ghost_and_plays_to_its_end():
    best = replace(EARLY[0].summary, kept_as=("best", "worst", "random"))
    early = replace(EARLY[0], summary=replace(best, recording=0))
    late = [e for e in LATE if e.summary.length < early.summary.length]
    replay = Replay(Kept([early, *late]), at_once)
    replay.update()
    replay.compare(0)
    replay.toggle()
    seen(replay, 0.0)
    view = seen(replay, 0.5)
    assert view.ghost is not None and len(late) > 1
    for row in range(len(late)):
        np.testing.assert_array_equal(view.ghost[0][row], early.link_pos[5])
    assert replay.told().seconds == pytest.approx(early.summary.length * DT)


def test_a_recording_that_is_gone_is_compared_with_no_more(replay, kept):
    replay.compare(0)
    replay.toggle()
    for episode in EARLY:
        kept.drop(episode.summary.key)
    replay.update()
    assert replay.told().compared is None and replay.told().others == ()
    assert seen(replay, 0.0).ghost is not None, "those that were read stay"
