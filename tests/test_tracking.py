"""What a training reports, and clips of its episodes, go to W&B and TensorBoard."""

import importlib.util
import io
import json
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brax_viser.page.tracking import CLIP, MOST_WAITING, Tracking, tracker_of
from brax_viser.runs.keeper import Keeper
from tests.conftest import eventually, lacking
from tests.episodes import run_info
from tests.recorded import recording_of
from tests.support import Probe

EVALUATION = {"eval/episode_reward": np.float32(7.5), "name": "ant", "eval/nan": float("nan")}


def keep_episodes(viewer: Any) -> None:
    """Has a viewer keep a recording."""
    info = run_info()
    keeper: Keeper = Probe(viewer).page.recording._keeper
    keeper.begin(info)
    keeper.add(recording_of(info.mj_model, 1_200_000, lengths=(8, 5, 5, 5)))


@pytest.fixture
def writer(tmp_path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(tmp_path / "board"))


def events(folder: Path) -> list[Any]:
    """Reads the values in the event files of a folder, as (step, value)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.glob("events.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_gets_each_report_and_a_clip_after_an_evaluation(viewer, writer):
    keep_episodes(viewer)
    viewer.track(writer)
    viewer.log(100, {"training/loss": 3.0, "of many": np.zeros(3)})
    viewer.progress_fn(200, EVALUATION)

    def of(tag: str) -> list[tuple[int, Any]]:
        writer.flush()
        return [(step, value) for step, value in events(Path(writer.logdir)) if value.tag == tag]

    eventually(lambda: of("eval/episode_reward"), "the numbers are there")
    ((step, value),) = of("eval/episode_reward")
    assert (step, value.simple_value) == (200, 7.5)
    ((step, value),) = of("training/loss")
    assert (step, value.simple_value) == (100, 3.0)
    assert not of("name") and not of("eval/nan") and not of("of many")
    eventually(lambda: of(CLIP), "the clip is there", timeout=120)
    ((step, value),) = of(CLIP)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as clip:
        assert step == 200 and clip.size == (480, 270) and clip.n_frames > 1
    viewer.progress_fn(300, EVALUATION)
    eventually(lambda: len(of("eval/episode_reward")) == 2, "the numbers go on")
    viewer.close()
    assert len(of(CLIP)) == 1, "no episode was recorded in between"


class Stubborn:
    """A tracker that waits, and then fails."""

    clip_kind = ".gif"

    def __init__(self) -> None:
        self.go, self.got = threading.Event(), []

    def numbers(self, num_steps: int, numbers: Any) -> None:
        self.go.wait(60)
        self.got.append(num_steps)
        if num_steps == 5000:
            raise RuntimeError("the run is over")


def test_a_tracker_that_is_slow_or_fails_costs_the_training_nothing():
    tracker, complaints = Stubborn(), []
    tracking = Tracking(Keeper(), tracker, complaints.append, clips=True)  # type: ignore[arg-type]
    for step in range(5001):
        tracking.report(step, {"reward": 1.0})
    tracker.go.set()
    eventually(lambda: complaints, "it is said")
    assert "the run is over" in complaints[0]
    assert len(tracker.got) <= 2 * MOST_WAITING and tracker.got[-1] == 5000
    assert tracker.got == sorted(tracker.got)
    tracking.report(5001, {"reward": 1.0})
    tracking.close()
    assert len(complaints) == 1


def test_what_cannot_be_tracked_is_refused(viewer):
    with pytest.raises(TypeError, match="'wandb', a run of W&B, or a SummaryWriter"):
        viewer.track("tensorboard")
    with pytest.raises(TypeError):
        viewer.track(object())


def logged(folder: Path) -> list[dict[str, Any]]:
    """Reads what a run of W&B has logged, in order."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[import-not-found]

    (path,) = folder.glob("*.wandb")
    data, at, record, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):  # LevelDB's format of logs, after a header
        left = 32768 - at % 32768  # in this block; a part has a head of 7 bytes
        length, kind = struct.unpack_from("<xxxxHB", data, at)
        if left < 7 or kind == 0:
            at += left
            continue
        if at + 7 + length > len(data):
            break
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            items = Record.FromString(record).history.item
            names = (item.key or "/".join(item.nested_key) for item in items)
            values = (json.loads(item.value_json) for item in items)
            rows.append(dict(zip(names, values, strict=True)))
            record = b""
    return rows


def test_the_open_run_of_wandb_gets_numbers_and_clips(viewer, tmp_path, monkeypatch):
    if importlib.util.find_spec("wandb") is None:
        lacking("no W&B found: pip install -e '.[wandb]'")
    import wandb  # type: ignore[import-not-found]

    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(ValueError, match="no run is open"):
        tracker_of("wandb")
    keep_episodes(viewer)
    run = wandb.init(mode="offline", dir=tmp_path, project="ants")
    viewer.track("wandb")
    run.log({"mine": 1})
    viewer.progress_fn(200, EVALUATION)
    viewer.progress_fn(100, EVALUATION)  # as in a second training: W&B's own count goes on
    media = Path(run.dir) / "media" / "videos" / "brax_viser"
    eventually(lambda: media.is_dir() and list(media.iterdir()), "the clip is there", timeout=120)
    viewer.log(300, {"eval/episode_reward": 9.0})
    viewer.close()
    run.finish()
    wandb.teardown()  # ends the process that writes

    def rewards() -> list[tuple[int, float]]:
        rows = logged(Path(run.dir).parent)
        of = "eval/episode_reward"
        return [(row["num_steps"], row[of]) for row in rows if of in row]

    eventually(lambda: len(rewards()) == 3, "all is written")
    assert rewards() == [(200, 7.5), (100, 7.5), (300, 9.0)]
    rows = logged(Path(run.dir).parent)
    assert [row["mine"] for row in rows if "mine" in row] == [1]
    videos = [
        row["num_steps"]
        for row in rows
        if any(name.startswith(CLIP) and "video-file" in str(x) for name, x in row.items())
    ]
    assert len(videos) == 1 and videos[0] in (100, 200), "one clip, as there is one recording"
    (clip,) = media.iterdir()
    assert clip.suffix == ".mp4" and b"ftyp" in clip.read_bytes()[:16]
