"""Sends a training's numbers and clips of its episodes to an experiment tracker, such as W&B or
TensorBoard, on a separate thread: neither the training nor the page waits for it."""

import importlib
import importlib.util
import logging
import math
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from brax_viser.host.metrics import number_of
from brax_viser.host.progress import count
from brax_viser.page.export_process import ExportProcess
from brax_viser.process import lower_priority
from brax_viser.records.episode import Summary
from brax_viser.runs.keeper import Keeper

log = logging.getLogger("brax_viser")

MOST_WAITING = 1000
"""Reports that may wait. If there are more, the tracker does not keep up, and the oldest are
dropped."""

CLIP_SECONDS = 10.0
"""s of an episode that a clip shows at most."""

CLIP_OPTIONS = ("--seconds", "0", f"{CLIP_SECONDS:g}", "--size", "480", "270", "--fps", "20")
"""Options of `brax-viser export` for clips."""

CLIP, STEP = "brax_viser/episode", "num_steps"
"""Names of clips, and of the number that W&B's charts are drawn over."""


class Tracker(Protocol):
    """A tracker to which numbers and clips are sent. Called on one thread."""

    clip_kind: str  # ".mp4" or ".gif"

    def numbers(self, num_steps: int, numbers: Mapping[str, float]) -> None: ...
    def clip(self, num_steps: int, path: Path, caption: str) -> None: ...


class WandbTracker:
    """A run of W&B. Its own step counter is left alone, as it must not go back."""

    def __init__(self, run: Any):
        self._run, self._defined = run, set[str]()
        self._video = importlib.import_module("wandb").Video
        has_encoder = importlib.util.find_spec("imageio_ffmpeg") is not None
        self.clip_kind = ".mp4" if has_encoder else ".gif"

    def numbers(self, num_steps: int, numbers: Mapping[str, float]) -> None:
        self._log(num_steps, numbers)

    def clip(self, num_steps: int, path: Path, caption: str) -> None:
        kind = path.suffix.removeprefix(".")
        self._log(num_steps, {CLIP: self._video(str(path), caption=caption, format=kind)})

    def _log(self, num_steps: int, values: Mapping[str, Any]) -> None:
        for name in values.keys() - self._defined:
            self._run.define_metric(name, step_metric=STEP)
            self._defined.add(name)
        self._run.log({STEP: num_steps, **values})


class TensorBoardTracker:
    """A `SummaryWriter` of tensorboardX or of PyTorch. A clip is an animated image, which needs no
    further package."""

    clip_kind = ".gif"

    def __init__(self, writer: Any):
        self._writer = writer
        tensorboardx = type(writer).__module__.startswith("tensorboardX")
        place = "tensorboardX.proto" if tensorboardx else "tensorboard.compat.proto"
        self._summary = importlib.import_module(f"{place}.summary_pb2").Summary

    def numbers(self, num_steps: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, num_steps)

    def clip(self, num_steps: int, path: Path, caption: str) -> None:
        with Image.open(path) as picture:
            width, height = picture.size
        image = self._summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = self._summary.Value(tag=CLIP, image=image)
        self._writer.file_writer.add_summary(self._summary(value=[value]), num_steps)
        self._writer.add_text(CLIP, caption, num_steps)
        self._writer.flush()


def tracker_of(target: Any) -> Tracker:
    """Returns the tracker of a run, of a writer, or of "wandb": the run of W&B that is open.

    Raises:
        ValueError: no run of W&B is open.
        TypeError: it is none of these.
        ImportError: W&B is not installed.
    """
    if isinstance(target, str) and target == "wandb":
        target = importlib.import_module("wandb").run
        if target is None:
            raise ValueError('track("wandb"): no run is open, call wandb.init() first')
    if callable(getattr(target, "add_scalar", None)):
        return TensorBoardTracker(target)
    if callable(getattr(target, "define_metric", None)) and callable(getattr(target, "log", None)):
        return WandbTracker(target)
    raise TypeError(
        f"track({target!r}): must be 'wandb', a run of W&B, or a SummaryWriter of tensorboardX or "
        "PyTorch"
    )


class Tracking:
    """Sends what is reported to one tracker. Methods may be called on any thread."""

    def __init__(
        self,
        keeper: Keeper,
        tracker: Tracker,
        complain: Callable[[str], object],
        *,
        clips: bool,
    ):
        """Starts the thread.

        Args:
            keeper: has the recorded episodes.
            tracker: the tracker.
            complain: called once with what went wrong, in words for users; called on the thread.
            clips: whether a clip of the newest episode is sent after each evaluation.
        """
        self._keeper, self._tracker, self._complain = keeper, tracker, complain
        self._clips, self._process = clips, ExportProcess()
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, dict[str, float]]] = []
        self._clip_wanted: int | None = None  # steps of the newest evaluation, if it has no clip
        self._shown: Summary | None = None  # of the last clip
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="brax_viser tracking", daemon=True)
        self._thread.start()

    def report(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Sends numbers; after an evaluation also a clip of the newest recorded episode.

        Args:
            num_steps: env steps trained, over all environments.
            metrics: values by name; those that are not single finite numbers are left out.
        """
        found = {str(name): number_of(value) for name, value in metrics.items()}
        numbers = {name: x for name, x in found.items() if x is not None and math.isfinite(x)}
        with self._changed:
            self._waiting = [*self._waiting, (int(num_steps), numbers)][-MOST_WAITING:]
            if self._clips and any(name.startswith("eval/") for name in numbers):
                self._clip_wanted = int(num_steps)
            self._changed.notify_all()

    def close(self, timeout: float = 10.0) -> None:
        """Sends the numbers that wait, and gives up a clip that is not ready."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._process.kill()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        """Runs on the thread."""
        lower_priority()
        try:
            while self._send():
                pass
        # Whatever the tracker raises, such as that its run is over: the training goes on.
        except Exception as error:
            self._complain(f"Nothing more is tracked: {type(error).__name__}: {error}")

    def _send(self) -> bool:
        """Sends what waits. Returns whether there can be more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._clip_wanted is not None or self._closing
            )
            waiting, self._waiting = self._waiting, []
            wanted, self._clip_wanted = self._clip_wanted, None
            closing = self._closing
        for num_steps, numbers in waiting:
            self._tracker.numbers(num_steps, numbers)
        if wanted is not None and not closing:
            self._send_clip(wanted)
        return not closing

    def _send_clip(self, num_steps: int) -> None:
        info, summary = self._keeper.info, _newest(self._keeper.summaries())
        if info is None or summary is None or summary == self._shown:
            return
        try:
            episode = self._keeper.get(summary.key)
        except (KeyError, ValueError):  # thinned out since, or damaged: the next one will do
            return
        self._shown = summary
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"episode{self._tracker.clip_kind}"
            complaint = self._process.write(info, [episode], path, *CLIP_OPTIONS)
            if complaint is None:
                told = f"began at step {count(summary.num_steps)}, return "
                self._tracker.clip(num_steps, path, f"{told}{summary.episode_return:,.1f}")
            elif not self._closing:
                self._clips = False  # it would fail the next time as well
                self._complain(f"No clips are tracked: {complaint}")


def _newest(summaries: Sequence[Summary]) -> Summary | None:
    """Returns the best episode of the newest recording; None without one."""
    last = max((summary.recording for summary in summaries), default=None)
    among = [summary for summary in summaries if summary.recording == last]
    return max(among, key=lambda summary: "best" in summary.kept_as, default=None)
