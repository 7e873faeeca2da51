"""Tests recorded episodes in the page of a training, and the page that has nothing else."""

import functools
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
import pytest

from brax_viser import VisualizedEnv
from brax_viser.cli import remote
from brax_viser.page import exporting
from brax_viser.panel import episode_words, episodes, words
from brax_viser.panel.curve_lines import STEPWISE
from brax_viser.panel.episodes import ALL
from brax_viser.panel.view import ReplayView
from brax_viser.records.episode import distance
from brax_viser.replay import ReplayViewer
from brax_viser.runs.folder import RunFolder
from tests.conftest import Page, eventually
from tests.recorded import Kept, recording_of, run_of
from tests.support import Probe
from tests.toy import XML, Toy

NUM_ENVS = 16
MODEL = mujoco.MjModel.from_xml_string(XML)
EARLY, LATE = recording_of(MODEL, 0), recording_of(MODEL, 1_200_000)


class Training:
    """A small environment that is stepped by hand, with recorded episodes."""

    def __init__(self, viewer):
        self.probe, self._url = Probe(viewer), viewer.url
        env = VisualizedEnv(Toy(), grid=(4, 4), viewer=viewer)
        self._step = jax.jit(jax.vmap(env.step))
        keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
        self._state = jax.jit(jax.vmap(env.reset))(keys)
        self.kept = Kept([*EARLY, *LATE])
        self.probe.keep(self.kept)

    def step(self) -> None:
        self._state = jax.block_until_ready(self._step(self._state, np.zeros((NUM_ENVS, 1))))

    def step_until(self, condition, what: str) -> None:
        eventually(lambda: self.step() or condition(), what)

    @property
    def drawn(self) -> list[int]:
        """The environments whose steps are on screen."""
        block = self.probe.block_of("train")
        return [] if block is None or block.frame is None else block.frame.env_index.tolist()

    def use(self, name: str, value: object) -> None:
        """Uses a control of the tab."""
        self.probe.use(getattr(self.probe.panel.episodes, f"_{name}"), value)

    def ask(self, name: str, **query: object) -> dict[str, Any]:
        """Asks the server as the time bar does: for one of its commands."""
        return remote.ask(self._url, f"replay/{name}", **query)


@pytest.fixture
def training(viewer, page) -> Training:
    training = Training(viewer)
    training.step_until(lambda: training.drawn == list(range(NUM_ENVS)), "live robots are drawn")
    return training


def test_episodes_take_the_place_of_the_live_robots_and_give_it_back(training, viewer):
    probe, viewer.mode = training.probe, "every_step"
    training.ask("toggle")
    eventually(lambda: training.drawn == [1, 4, 7, 10], "a recording is drawn")
    assert words.state(probe.panel_view())[0].startswith("Replay: step 1.2 M, ")
    assert words.state(probe.panel_view())[1] == "the training goes on, unseen"
    for _ in range(3):  # of these some may have been granted before
        training.step()
    before = viewer.stats()
    for _ in range(10):
        training.step()
    after = viewer.stats()
    assert after.frames == before.frames and after.env_steps >= before.env_steps, "none is sent"
    training.ask("live")
    training.step_until(lambda: training.drawn == list(range(NUM_ENVS)), "they are live again")
    assert words.state(probe.panel_view())[0] == "Live"


def test_what_is_on_screen_is_written_and_sent_to_the_page_that_asked_for_it(training):
    probe, sent = training.probe, {}
    (client,) = probe.server.get_clients().values()
    client.send_file_download = lambda name, content, save_immediately: sent.update(
        {name: content} if save_immediately else {}
    )
    save = functools.partial(probe.commands.export, client_id=client.client_id)
    with pytest.raises(ValueError, match="Play a recording first"):
        save("CSV")
    probe.page.recording._keeper._info = run_of(MODEL, 0.02)
    training.ask("toggle")
    eventually(lambda: training.drawn == [1, 4, 7, 10], "a recording is drawn")
    save("CSV")
    with pytest.raises(ValueError, match="Another file is being written"):
        save("HTML")
    assert "Writing" in (probe.panel_view().exporting or "")
    eventually(lambda: sent, "it is sent", timeout=120)
    ((name, content),) = sent.items()
    assert re.fullmatch(r"[\w-]+-step-1200000\.csv", name)
    lines = content.decode().splitlines()
    assert len(lines) == 1 + sum(e.summary.length + 1 for e in LATE)
    eventually(lambda: "is written" in (probe.panel_view().exporting or ""), "it says so")


def test_a_recording_for_rerun_can_be_saved_where_that_is_installed(training, monkeypatch):
    installed: list[str] = []
    monkeypatch.setattr(
        episodes.importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    assert "RRD" not in episodes.saved_as()
    installed.append("rerun")
    assert set(episodes.saved_as()) == set(exporting.KINDS)
    written: list[tuple[str, int]] = []

    def write(_, info, chosen, out, *options, **both) -> None:
        written.append((out.suffix, len(chosen)))

    monkeypatch.setattr(exporting.ExportProcess, "write", write)
    training.probe.page.recording._keeper._info = run_of(MODEL, 0.02)
    training.ask("toggle")
    eventually(lambda: training.drawn == [1, 4, 7, 10], "a recording is drawn")
    (client,) = training.probe.server.get_clients().values()
    training.probe.commands.export("RRD", client.client_id)
    eventually(lambda: written == [(".rrd", 4)], "all robots on screen are written")


def test_a_file_that_cannot_be_written_is_reported(training, monkeypatch):
    (client,) = training.probe.server.get_clients().values()
    monkeypatch.setitem(exporting.KINDS, "CSV", ".nothing")
    training.probe.page.recording._keeper._info = run_of(MODEL, 0.02)
    training.ask("toggle")
    eventually(lambda: training.drawn == [1, 4, 7, 10], "a recording is drawn")
    training.probe.commands.export("CSV", client.client_id)
    told = lambda: training.probe.panel_view().exporting or ""  # noqa: E731
    eventually(lambda: "could not be written" in told(), "it is said", timeout=120)
    assert ".nothing" in told()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting.tempfile, "mkdtemp", full)
    training.probe.page.exporting._thread.join(60)
    training.probe.commands.export("PNG", client.client_id)
    eventually(lambda: "No space left" in told(), "a full disk is said as well")


def test_the_picture_is_that_of_the_recorded_step(training):
    training.ask("go", step=0)
    eventually(lambda: training.drawn == [1, 4, 7, 10], "the first recording is drawn")
    training.ask("seek", seconds=0.4)
    training.ask("step", n=-1)
    training.ask("step", n=1)
    eventually(lambda: training.probe.replay.told().position == pytest.approx(0.4), "it pauses")
    block = training.probe.block_of("train")
    assert block is not None
    at = round(0.4 / 0.02)
    there = lambda: np.allclose(block.pos[0], EARLY[0].link_pos[at], atol=1e-6)  # noqa: E731
    eventually(there, "it is at that step")
    np.testing.assert_allclose(block.pos[1], EARLY[1].link_pos[20], atol=1e-6)
    training.ask("step", n=1)
    there = lambda: np.allclose(block.pos[0], EARLY[0].link_pos[at + 1], atol=1e-6)  # noqa: E731
    eventually(there, "it goes one step on")


def test_a_click_on_a_replayed_robot_selects_it_and_its_numbers_are_those_of_the_episode(
    training, viewer
):
    training.ask("toggle")
    eventually(lambda: training.drawn == [1, 4, 7, 10], "a recording is drawn")
    training.ask("seek", seconds=0.2)
    viewer.selected_env = 7
    probe = training.probe

    def detail() -> object:
        frame = probe.panel_view().frame
        return frame and frame.detail and frame.detail.env == 7 and frame.detail.qpos.tolist()

    eventually(lambda: detail() == LATE[2].qpos[10].tolist(), "its coordinates are there")
    with pytest.raises(ValueError, match="go back to live first"):
        viewer.fork()
    probe.now(probe.replay.close)
    training.step_until(lambda: training.drawn == list(range(NUM_ENVS)), "they are live again")
    assert viewer.selected_env == 7


def test_ghosts_are_there_again_after_a_look_at_the_live_robots(training):
    probe = training.probe
    ghost = lambda: (f := probe.block_of("train").frame) is not None and f.ghost  # noqa: E731
    probe.now(lambda: probe.replay.compare(0))
    for _ in range(3):  # both recordings are wanted at once
        probe.now(probe.replay.toggle)
        eventually(lambda: training.drawn == [1, 4, 7, 10] and ghost(), "both are drawn")
        probe.now(probe.replay.close)
        training.step_until(lambda: training.drawn == list(range(NUM_ENVS)), "live again")


def test_rewards_are_of_the_replayed_robot_until_the_page_is_live_again(training, viewer):
    curves, viewer.selected_env = training.probe.panel.curves, 7
    training.step_until(lambda: STEPWISE in curves._what.options, "its reward has come")
    training.probe.use(curves._what, STEPWISE)
    told = lambda what: any(a.get("label") == what for a in curves._plot.axes or ())  # noqa: E731
    live, replayed = "seconds of env 7, 0 is on screen", "seconds of env 7's episode"
    for _ in range(2):
        training.step_until(lambda: told(live), "its last seconds are drawn")
        training.ask("toggle")
        eventually(lambda: told(replayed), "its episode is drawn")
        assert curves._plot.data[3][-1] == LATE[2].steps["reward"][-1]
        training.ask("live")


def test_a_fall_that_is_picked_is_played_with_its_contacts(training, viewer):
    probe = training.probe
    eventually(lambda: len(probe.panel.episodes._end.options) == 9, "eight episodes are listed")
    labels = lambda: probe.panel.episodes._end.options  # noqa: E731
    ended = "10 · env 4 · terminated · 0.4 s · "  # what it touched would stand there
    eventually(lambda: any(label.startswith(ended) for label in labels()), "it is said how")
    training.use("end", next(label for label in labels() if label.startswith(ended)))
    eventually(lambda: training.drawn == [4], "that robot alone is drawn")
    assert viewer.selected_env == 4 and "contacts" in probe.state.look.overlays
    assert probe.replay.told().only_end and probe.replay.told().playing


def test_the_lists_follow_the_recordings(training):
    episodes = training.probe.panel.episodes
    told = lambda: (episodes._table.content, episodes._note.content)  # noqa: E731
    shown = lambda step, note: step in told()[0] and note in told()[1]  # noqa: E731
    two, three = "from step 0 to 1.2 M", "3 recordings, from step 0 to 2 M"
    eventually(lambda: shown("Step 1,200,000", two), "the newest of two recordings")
    assert episodes._only.options == (
        *(ALL, "Env 1 · best", "Env 4 · worst", "Env 7 · fell", "Env 10 · random"),
    )
    for episode in recording_of(MODEL, 2_000_000):
        training.kept.add(episode)
    eventually(lambda: shown("Step 2,000,000", three), "another one appears by itself")
    training.ask("go", step=100_000)
    eventually(lambda: shown("Step 0<", three), "the list is that of the one that is chosen")


def test_an_episode_that_is_picked_from_the_list_takes_the_place_of_the_live_robots(training):
    episodes = training.probe.panel.episodes
    eventually(lambda: len(episodes._only.options) == 5, "four episodes are listed")
    training.use("only", "Env 7 · fell")
    eventually(lambda: training.drawn == [7], "that robot alone is drawn")
    training.use("only", ALL)
    eventually(lambda: training.drawn == [1, 4, 7, 10], "and then all of them")


def test_the_list_describes_each_episode():
    told = ReplayView(steps=(1_200_000,), episodes=tuple(e.summary for e in LATE))
    text = re.sub("<[^>]*>", " ", episode_words.table(told, 0.02))
    rows = " ".join(text.split())
    assert "best 1" in rows and "1.0 time limit" in rows
    assert f"worst 4 {LATE[1].summary.episode_return:,.1f} 0.4 terminated" in rows
    nan = replace(LATE[3].summary, ended="nonfinite", kept_as=("fell", "random"))
    rows = episode_words.table(replace(told, episodes=(nan,)), 0.02)
    assert "NaN or Inf" in rows and "fell, random" in rows


def test_the_head_says_when_all_episodes_are_gone(viewer):
    view = replace(Probe(viewer).panel_view(), replay=ReplayView(active=True))
    assert words.state(view)[0] == "Replay: no episode is left"


def test_the_tab_says_that_nothing_is_recorded_yet(viewer):
    view = Probe(viewer).panel_view()
    assert "No episode has been recorded yet" in episode_words.note_on(view.replay)
    assert "Kept in runs/ant" in episode_words.note_on(view.replay, "runs/ant")
    with pytest.raises(ValueError, match="No episode has been recorded yet"):
        Probe(viewer).replay.toggle()


def test_a_page_of_episodes_alone_plays_them_and_has_nothing_of_a_training():
    kept = Kept(EARLY)
    run = replace(run_of(MODEL, 0.02, "Cart"), settings={"seed": 7})
    with ReplayViewer(run, kept, port=0) as viewer:
        page, probe = Page(viewer), Probe(viewer)
        try:
            block = lambda: probe.block_of("train")  # noqa: E731
            eventually(lambda: block() and block().frame is not None, "it plays by itself")
            assert block().frame.env_index.tolist() == [1, 4, 7, 10]
            head = re.sub("<[^>]*>", " ", words.head(probe.panel_view()))
            assert re.match(r"\s*Replay of Cart, PPO, spring\s+\S+\s+Replay: step 0, ", head), head
            assert re.search(r"from 20\d\d-\d\d-\d\d \d\d:\d\d, 2,048 envs, seed 7", head)
            assert not hasattr(probe.panel, "training") and not hasattr(probe.panel, "watch")
            for episode in LATE:
                kept.add(episode)
            viewer.look()
            eventually(lambda: len(probe.replay.told().steps) == 2, "a new recording appears")
            viewer.show_curves({"eval/episode_reward": np.array([[0, 10], [0, 1], [5.0, 7.0]])})
            eventually(lambda: probe.panel.curves._plot.visible, "curves are shown")
            viewer.show_holds((5,))
            eventually(lambda: probe.page.timeline.holds == (5,), "and where it was held")
        finally:
            page.close()


def test_a_recorded_episode_and_its_ghost_have_curves_of_their_rewards_and_of_their_distance():
    with ReplayViewer(run_of(MODEL, 0.02, "Cart"), Kept([*EARLY, *LATE]), port=0) as viewer:
        page, probe = Page(viewer), Probe(viewer)
        shown = probe.panel.pair
        try:
            eventually(lambda: probe.replay.shown(), "it plays by itself")
            assert not shown._reward.visible and not shown._distance.visible
            probe.now(lambda: probe.replay.compare(0))

            def drawn(at: int) -> bool:
                one, other = LATE[at], EARLY[at]
                rewards = [line[np.isfinite(line)] for line in shown._reward.data[1:]]
                apart = shown._distance.data[1]
                expected = *(e.steps["reward"] for e in (one, other)), distance(one, other)[1:]
                return (
                    all(handle.visible for handle in (shown._names, *shown._curves))
                    and all(map(np.array_equal, (*rewards, apart), expected))
                    and np.allclose(shown._reward.data[0], 0.02 * np.arange(1, 1 + len(rewards[0])))
                )

            eventually(lambda: drawn(0), "the best one's curves are there")
            assert "Env 1 · best · step 1,200,000; its ghost: Env 1 · best" in shown._names.content
            assert "Click on another robot" in shown._names.content
            viewer.selected_env = LATE[2].summary.env
            eventually(lambda: drawn(2), "those of the robot that was selected")
            probe.now(lambda: probe.replay.show_only(LATE[1].summary.key))
            eventually(lambda: drawn(1), "those of the only one that is shown")
            assert "Click on another robot" not in shown._names.content
            probe.now(lambda: probe.replay.compare(None))
            eventually(lambda: not shown._reward.visible, "they are gone with the ghost")
        finally:
            page.close()


def test_replay_serves_a_run_directory_without_jax(tmp_path):
    folder = RunFolder(tmp_path / "run", run_of(MODEL, 0.02, "Cart"))
    folder.add(EARLY)
    folder.close()
    code = f"""
import sys, threading, time, urllib.request
from brax_viser.cli import app, replay
from brax_viser.replay import ReplayViewer
from tests.support import Probe

def look(run, viewer, ctrl_c):
    assert urllib.request.urlopen(viewer.url).status == 200
    deadline = time.monotonic() + 60
    while not Probe(viewer).page.replay.playing:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Probe(viewer).shared.fault is None, Probe(viewer).shared.fault
    loaded = {{"jax", "jaxlib", "brax", "flax"}} & set(sys.modules)
    assert not loaded, loaded
    print("replayed")

replay._follow = look
sys.argv = ["brax-viser", "replay", {str(tmp_path / "run")!r}, "--port", "0"]
app.main()
"""
    environment = {**os.environ, "JAX_PLATFORMS": "no such platform"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0 and "replayed" in done.stdout, done.stdout + done.stderr
    assert time.monotonic() - began < 20, "1 to 3 s on an idle machine"


def test_replay_refuses_a_folder_that_is_not_a_run_directory(tmp_path):
    command = Path(sys.executable).with_name("brax-viser")
    done = subprocess.run([command, "replay", tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not a run directory" in " ".join(done.stdout.split()) and "Trace" not in done.stderr
