"""The part of `Viewer` about what is kept of a training: curves, episodes, policies."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Concatenate, Literal, ParamSpec

from brax_viser.host.state import SharedState
from brax_viser.page.page import Page
from brax_viser.page.server import PageServer
from brax_viser.page.steering import Steering
from brax_viser.records.episode import Episodes, RunInfo
from brax_viser.runs.copies import copied, gathered
from brax_viser.runs.keeper import Keeper
from brax_viser.sandbox.trial import PolicyStore

P = ParamSpec("P")


class Keeping:
    """What a script can do with recorded curves, episodes and policies."""

    _shared: SharedState
    _page: Page | None  # None in other processes than the first
    _episodes: Episodes | None = None  # that are shown, if they are not those kept here
    _recorded: RunInfo | None = None  # the training, if nothing but its episodes is shown
    _relayed = False  # whether another viewer relays the page, for one person alone
    _keeper: Keeper

    def _steer(
        self,
        method: Callable[Concatenate[Steering, P], None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Calls a method of the steering. If several processes run the training and the script, the
        first process steers all of them, and the calls of the others do nothing."""
        if self._page is not None:
            method(self._page.steering, *args, **kwargs)

    def _run_dir(self) -> AbstractContextManager[str] | None:
        """Returns a context that yields a run directory with the episodes shown: their own, or a
        copy of what is in memory then; None if nothing has been recorded yet."""
        if self._keeper.path is not None:
            return contextlib.nullcontext(self._keeper.path)
        return self._copied() if self._kept[0].summaries() else None

    @property
    def _kept(self) -> tuple[Episodes, RunInfo | None]:
        """The episodes shown, and their training."""
        return self._episodes or self._keeper, self._recorded or self._keeper.info

    @contextlib.contextmanager
    def _copied(self) -> Iterator[str]:
        kept, info = self._kept
        assert info is not None
        with copied(info, gathered(kept), self._shared.progress.metrics.arrays()) as run_dir:
            yield run_dir

    def _greet(self, server: PageServer) -> None:
        """Prints where the page is."""
        server.greet()

    def log(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        """Adds numbers to the page's curves, from a training loop of your own.

        Args:
            num_steps: env steps so far, over all environments.
            metrics: numbers, or arrays of one number, by name. Anything else is left out. Names
                that Brax's trainers use, such as "eval/episode_reward", are shown as theirs are.
        """
        self._shared.progress.metrics.add(num_steps, metrics, self._shared.clock())
        self._track(num_steps, metrics)

    def track(self, target: Any, *, clips: bool = True) -> None:
        """Sends what is reported to an experiment tracker from now on: all numbers, and after each
        evaluation a clip of up to 10 s of the newest recorded episode, if there is a newer one.

        Nothing waits for it: it is sent on a separate thread, and MuJoCo draws clips off screen in
        a separate process.

        Args:
            target: "wandb", which is the run of W&B that is open (`wandb.run`); a run of W&B; or a
                `SummaryWriter` of tensorboardX or PyTorch.
            clips: whether clips are sent.

        Raises:
            TypeError: `target` is none of these.
            ValueError: no run of W&B is open.
            ImportError: W&B is not installed.
        """
        if self._page is not None:
            self._page.track(target, clips=clips)

    def _track(self, num_steps: int, metrics: Mapping[str, object]) -> None:
        for tracking in self._page.trackings if self._page is not None else ():
            tracking.report(num_steps, metrics)

    @property
    def record_every(self) -> float | Literal["evaluation"]:
        """When episodes are recorded: every so many s of training, 60 at first, or at each
        "evaluation" that the trainer reports (`progress_fn`). Either way only as often as
        recordings stay within their share of the training's time."""
        every = self._shared.control.record_every
        return "evaluation" if every is None else every

    @record_every.setter
    def record_every(self, every: float | Literal["evaluation"]) -> None:
        self._steer(Steering.set_record_every, every)

    def export(
        self,
        path: str | os.PathLike[str],
        episodes: str | Sequence[str] = "best",
        *,
        seconds: tuple[float, float] | None = None,
        fps: float = 30.0,
        size: tuple[int, int] = (1280, 720),
        camera: str = "orbit",
        progress: Callable[[float], object] = lambda share: None,
    ) -> None:
        """Writes recorded episodes into a file that others can look at, as `brax-viser export` does
        of a run directory: with or without `run_dir`, while the training runs or after it. Returns
        once the file is there; the training goes on if this is another thread than its own.

        Args:
            path: its ending says what it is: .html plays in a browser without a server; .mp4, .gif
                and .webp are videos, .png and .jpg pictures; .csv has the numbers; .rrd opens in
                Rerun. A file that is there is replaced once the new one is complete.
            episodes: "best", "worst", "newest", "first", "all", or the key of an episode; several
                of them for .html, .csv and .rrd; or "curves": the training's, into a .csv.
            seconds: first and last second to show, since each reset; of a picture, the first; None:
                whole episodes.
            fps: pictures per second of a video, at most.
            size: pixels of a video or a picture, width and height.
            camera: "orbit", "front", "side" or "top", which follow a robot that travels, or the
                name of a camera of the model; for videos and pictures.
            progress: called with the share that is done, from 0 to 1.

        Raises:
            ValueError: no episode has been recorded yet, as is always so in processes other than
                the first; a name is unknown; or another value cannot be used.
            RuntimeError: MuJoCo cannot draw off screen here, or a package is missing; the message
                says what to install.
            OSError: the file cannot be written.
        """
        from brax_viser.export.chosen import Clips, write_chosen  # it takes a moment

        kept, info = self._kept
        if info is None:
            raise ValueError("No episode has been recorded yet")
        names = (episodes,) if isinstance(episodes, str) else tuple(episodes)
        curves = self._shared.progress.metrics.arrays()
        clips = Clips(seconds, fps, size, camera)
        write_chosen(path, info, kept, curves, names, clips, progress)

    def finish_recording(self) -> bool:
        """Writes what was recorded to the run directory, and ends the recording; `close` does both
        too. Returns whether there is a directory with recorded episodes."""
        return self._page is not None and self._page.recording.close()

    def policy_params_fn(
        self, num_steps: int, make_policy: Callable[..., Any], params: Any
    ) -> None:
        """Hand it to the trainer as `policy_params_fn`: the policy then drives sandboxes."""
        self._steer(Steering.take_policy, num_steps, make_policy, params)

    def compare_policies(
        self, solid: str | int, ghost: str | int, *, from_selected: bool = False
    ) -> None:
        """Runs two policies from the same start in MuJoCo, then plays both in the page, one as a
        ghost over the other. Returns at once.

        Args:
            solid: a policy: "Newest", "At the best evaluation", "Ten minutes ago", "At the start",
                as far as they are known, or the env steps that a kept one was trained for.
            ghost: likewise.
            from_selected: begin as the selected robot is on screen; otherwise with an episode.

        Raises:
            ValueError: there is no such policy, or no robot is selected.
        """
        if (page := self._page) is not None:
            one, other = (p if isinstance(p, str) else f"Step {p:,}" for p in (solid, ghost))
            page.events.now(lambda: page.trials.begin(one, other, from_selected))

    def offer_policies(self, store: PolicyStore) -> None:
        """Has the page compare these policies, instead of those that the trainer hands out."""
        if self._page is not None:
            self._page.trials.store = store
