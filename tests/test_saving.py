"""Recorded episodes become files by code and in the page, which shows how far they are."""

import threading
from typing import Any

import mujoco
import pytest
from PIL import Image

from brax_viser.cli.export import export
from brax_viser.page.export_process import ExportProcess
from brax_viser.replay import ReplayViewer
from brax_viser.runs.folder import RunFolder
from tests.conftest import Page, eventually
from tests.recorded import Kept, recording_of, run_of
from tests.support import Probe
from tests.toy import XML

MODEL = mujoco.MjModel.from_xml_string(XML)
RUN = run_of(MODEL, 0.02, "Cart")
EARLY, LATE = recording_of(MODEL, 0), recording_of(MODEL, 1000)


def test_code_writes_the_episodes_in_memory_as_the_command_writes_those_of_a_run_directory(
    viewer, tmp_path
):
    with pytest.raises(ValueError, match="No episode has been recorded yet"):
        viewer.export(tmp_path / "none.csv")
    keeper = Probe(viewer).page.recording._keeper
    keeper.begin(RUN)
    with pytest.raises(ValueError, match="No episode has been recorded yet"):
        viewer.export(tmp_path / "none.csv")
    folder = RunFolder(tmp_path / "run", RUN)
    for kept in (keeper, folder):
        kept.add(EARLY)
        kept.add(LATE)
    viewer.log(500, {"loss": 3.0})
    folder.set_curves(Probe(viewer).shared.progress.metrics.arrays())
    assert folder.close() and keeper.path is None
    viewer.close()  # what is in memory stays

    for name, chosen in (("a.csv", ("all",)), ("a.html", ("first", "best"))):
        out, shares = tmp_path / f"command-{name}", list[float]()
        assert export(str(tmp_path / "run"), str(out), episode=chosen) == 0
        viewer.export(tmp_path / name, chosen, progress=shares.append)
        assert (tmp_path / name).read_bytes() == out.read_bytes()
        assert shares == sorted(shares) and shares[-1] == 1.0
    assert '"loss"' in (tmp_path / "a.html").read_text(), "with the training's curves"
    viewer.export(tmp_path / "a.gif", LATE[0].summary.key, seconds=(0, 0.2), fps=10, size=(64, 48))
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.size == (64, 48) and picture.n_frames == 3  # type: ignore[attr-defined]
    before = sorted(tmp_path.iterdir())
    for name, chosen, why in (
        ("b.gif", "all", "can show one episode, not 8"),
        ("b.txt", "best", "must end in .html"),
        ("b.csv", "nowhere", "'nowhere': must be best"),
    ):
        with pytest.raises(ValueError, match=why):
            viewer.export(tmp_path / name, chosen)
    assert sorted(tmp_path.iterdir()) == before


def test_a_replays_episodes_are_written_by_code_too(tmp_path):
    with ReplayViewer(RUN, Kept(LATE), port=0) as viewer:
        viewer.export(tmp_path / "late.csv", "worst")
    rows = (tmp_path / "late.csv").read_text().splitlines()
    assert len(rows) == 2 + LATE[1].summary.length and LATE[1].summary.key in rows[1]


def test_an_episode_that_is_dropped_meanwhile_is_reported(viewer, tmp_path):
    keeper = Probe(viewer).page.recording._keeper
    keeper.begin(RUN)
    keeper.add(LATE)
    listed = keeper.summaries()
    keeper._memory.discard(LATE)
    keeper._memory._summaries = listed  # as it was read a moment before
    with pytest.raises(ValueError, match="is not kept any more"):
        viewer.export(tmp_path / "a.csv")


@pytest.mark.parametrize("kind", ["html", "gif"])
def test_the_process_that_writes_says_how_much_is_written(kind, tmp_path):
    shares: list[float] = []
    out, small = tmp_path / f"a.{kind}", ("--size", "64", "48")
    assert ExportProcess().write(RUN, LATE[:1], out, *small, told=shares.append) is None
    assert out.exists() and len(shares) > 5
    assert shares == sorted(shares) and 0 < shares[0] < 0.5 and shares[-1] > 0.9
    shares.clear()
    complaint = ExportProcess().write(RUN, LATE[:1], tmp_path / "a.txt", told=shares.append)
    assert complaint is not None and complaint.startswith(str(tmp_path)) and not shares


def test_a_process_that_takes_too_long_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr("brax_viser.page.export_process.MOST_SECONDS", 0.01)
    assert "more than 0 s" in (ExportProcess().write(RUN, LATE[:1], tmp_path / "a.csv") or "")
    assert not (tmp_path / "a.csv").exists()


def test_a_bar_in_the_page_shows_how_much_of_a_file_is_written(monkeypatch):
    written, let = threading.Semaphore(0), threading.Semaphore(0)

    def write(
        process: Any, run: Any, episodes: Any, out: Any, *_: str, told: Any, **__: Any
    ) -> str:
        for share in (0.25, 0.8):
            told(share)
            written.release()
            assert let.acquire(timeout=300)
        return "of this test"

    monkeypatch.setattr(ExportProcess, "write", write)
    with ReplayViewer(RUN, Kept(LATE), port=0) as viewer:
        page, probe = Page(viewer), Probe(viewer)
        tab = probe.panel.episodes
        try:
            eventually(lambda: probe.replay.shown(), "it plays by itself")
            assert not tab._bar.visible
            probe.now(lambda: probe.commands.export("HTML", 0))
            for percent in (25, 80):
                assert written.acquire(timeout=300)
                eventually(lambda p=percent: tab._bar.visible and tab._bar.value == p, f"{percent}")
                assert "Writing cart-step-1000.html" in tab._written.content
                let.release()
            eventually(lambda: not tab._bar.visible, "it is over")
            eventually(lambda: "of this test" in tab._written.content, "and how it went is said")
        finally:
            page.close()
