"""Tracks how far the training is and what it is doing, as far as an observer can tell."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from brax_viser.host.budget import Rate
from brax_viser.host.metrics import Metrics
from brax_viser.host.rewards import SEEN, RewardView, rewards_of
from brax_viser.records.trainer_call import TrainerCall

QUIET_SECONDS = 1.0
"""Without a step for this long, the page says so instead of "live"."""

PATIENCE_SECONDS = 120.0
"""s of compilation from which on it takes longer than usual."""

REWARDS = {
    "training": "training reward",
    "evaluation": "evaluation reward",
    SEEN: "return of the robots shown",
}
"""Kind of reward -> its name."""


@dataclass(frozen=True)
class ProgressView:
    """The state of the training at one moment."""

    algorithm: str | None  # "PPO"; None in a loop of the user's own
    phase: str  # "waiting" | "compiling" | "training" | "evaluating" | "quiet" | "done" | "failed"
    phase_seconds: float  # s since the phase began
    num_steps: int  # env steps over all envs, as Brax counts `num_timesteps`
    num_timesteps: int | None  # the goal, as passed to the trainer
    steps_per_second: float
    elapsed: float  # s since the first step
    rewards: RewardView | None  # None before the first
    error: str | None
    saved: str | None  # where the trained policy is, once it has been saved
    start_seconds: float | None = None  # from the first tracing to the first step, once it is made
    usual_seconds: float | None = None  # the same at the last such start on this machine, if known
    # After the training, whether its policy drives robots in the environment's physics.
    plays_on: str | None = None  # "soon" or "now"; None: it does not
    plays: bool = False  # whether a policy is played, and nothing is trained

    @property
    def over(self) -> bool:
        """Whether there is nothing left to hold or to step."""
        return self.phase in ("done", "failed")

    @property
    def reward(self) -> str | None:
        """The newest reward, in words."""
        if self.rewards is None:
            return None
        told = self.rewards
        return f"{REWARDS[told.kind]} {told.newest:,.1f} at {count(told.num_steps)}"

    @property
    def fraction(self) -> float | None:
        """0 to 1; None where the goal is not known."""
        if not self.num_timesteps:
            return None
        return min(self.num_steps / self.num_timesteps, 1.0)

    @property
    def remaining(self) -> float | None:
        """s; None while it can't be estimated."""
        if not self.fraction or self.elapsed <= 0:
            return None
        return self.elapsed * (1 - self.fraction) / self.fraction


@dataclass
class Progress:
    """The training's progress, from tracing, device calls and `progress_fn`, for page and terminal.

    Thread-safe. Times are seconds of any monotonic clock, passed in.
    """

    metrics: Metrics = field(default_factory=Metrics)
    """What was reported, over the whole training."""
    usual_seconds: float | None = None
    """How long the last such start took on this machine; see `host.starts`. Set by the page."""
    begun: int = 0  # trainings that can be told from the one before
    plays_on: bool = False  # whether the steps after `ended` are of robots that the policy drives
    stepped_on: bool = False  # whether these have made a step
    plays: bool = False  # whether a policy is played, and nothing is trained
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _call: TrainerCall | None = None
    _num_timesteps: int | None = None
    _traced: float | None = None  # when the training was first traced
    _tracing: float = 0.0  # when anything was traced last
    _first_step: float | None = None
    _last_step: dict[str, float] = field(default_factory=dict)
    _counted: int = 0
    _reported: int = 0
    _rate: Rate = field(default_factory=lambda: Rate(seconds=5.0))
    _ended: float | None = None
    _error: str | None = None
    _saved: str | None = None
    _over: bool = False  # since `ended`: what else says so may be wrong

    def traced(self, call: TrainerCall | None, now: float) -> bool:
        """Notes that `reset` or `step` is being traced. Returns whether another training begins."""
        with self._lock:
            self._tracing = now
            if self._traced is None:
                self._traced = now
            if call is None or call.identity is None:
                return False  # trainings can't be told apart
            begun = not call.same_run(self._call)
            if begun:
                self._start_over(call, now)
            return begun

    def _start_over(self, call: TrainerCall, now: float) -> None:
        self.begun += 1
        self._call, self._num_timesteps = call, call.num_timesteps
        self._traced, self._first_step, self._last_step = now, None, {}
        self._counted = self._reported = 0
        self._rate = Rate(seconds=5.0)
        self.metrics.clear()
        self._ended = self._error = self._saved = None
        self._over = self.stepped_on = False

    def stepped(self, role: str, num_steps: int, now: float) -> None:
        """Counts `num_steps` more env steps of a rollout, over all its envs. Those after the
        training, of robots that play on, are none of its steps."""
        with self._lock:
            if self.playing_on:
                self.stepped_on = True
                return
            last = self._last_step.get(role, now)
            self._last_step[role] = now
            if role != "train":
                return
            if self._first_step is None:
                self._first_step = now
            self._counted += num_steps
            if now > last:
                self._rate.add(now - last, num_steps)
            self._ended = None

    def reported(self, num_steps: int, metrics: Mapping[str, object], now: float) -> None:
        """Notes that the trainer has called `progress_fn` with these arguments."""
        num_steps = int(num_steps)
        with self._lock:
            call = self._call
            if call is not None and call.num_reports is not None:
                last, num_steps = num_steps >= call.num_reports, self._counted
            else:
                # Only a report at an epoch's end can be the last; episodes report within epochs.
                last = bool(self._num_timesteps) and num_steps >= self._num_timesteps
                last &= any(key.startswith(("eval/", "training/")) for key in metrics)
                self._reported = max(self._reported, num_steps)
                # Steps granted before a reset are never counted: correct the count here.
                if call is None or call.counts_ended_episodes:
                    self._counted = max(self._counted, num_steps)
                else:
                    self._counted = num_steps
            if last:
                self._ended = now
        # Reading a value may wait for the device, whose calls wait for the lock.
        self.metrics.add(num_steps, metrics, now)

    def ended(self, now: float, error: str | None = None) -> None:
        """Notes that the training is over or has failed with `error`."""
        with self._lock:
            self._ended, self._error, self._over = now, error, True

    def saved(self, path: str) -> None:
        """Notes where the trained policy has been saved."""
        with self._lock:
            self._saved = path

    @property
    def num_steps(self) -> int:
        """Env steps over all envs. The count lags by the steps granted last; the trainer's reports
        are exact, but come only with each evaluation."""
        return max(self._counted, self._reported)

    @property
    def call(self) -> TrainerCall | None:
        """The call of a stock trainer; None in a loop of the user's own."""
        return self._call

    def seconds(self, now: float) -> float:
        """Returns the s since the first step of the training; 0 before that."""
        return now - self._first_step if self._first_step is not None else 0.0

    @property
    def playing_on(self) -> bool:
        """Whether steps, if there are any, are made after the training."""
        return self.plays_on and self._over

    @property
    def under_way(self) -> bool:
        """Whether a training has made its first step, and has not ended."""
        return self._first_step is not None and self._ended is None

    def view(self, now: float) -> ProgressView:
        rewards = rewards_of(self.metrics)  # not under the lock, which calls from the device take
        with self._lock:
            phase, since = self._phase(now)
            end = self._ended if self._ended is not None else now
            return ProgressView(
                algorithm=self._call.algorithm if self._call else None,
                phase=phase,
                phase_seconds=now - since,
                num_steps=self.num_steps,
                num_timesteps=self._num_timesteps,
                steps_per_second=self._rate.value,
                elapsed=end - self._first_step if self._first_step is not None else 0.0,
                rewards=rewards,
                error=self._error,
                saved=self._saved,
                start_seconds=self._start_seconds(),
                plays_on=self._plays_on(phase),
                plays=self.plays,
                usual_seconds=self.usual_seconds,
            )

    def _plays_on(self, phase: str) -> str | None:
        if not self.plays_on or phase != "done":
            return None
        return "now" if self.stepped_on else "soon"

    def _start_seconds(self) -> float | None:
        if self._traced is None or self._first_step is None:
            return None
        return self._first_step - self._traced

    def _phase(self, now: float) -> tuple[str, float]:
        if self._error is not None and self._ended is not None:
            return "failed", self._ended
        if self._ended is not None:
            return "done", self._ended
        train, evaluation = self._last_step.get("train"), self._last_step.get("eval")
        if train is not None and now - train < QUIET_SECONDS:
            return "training", train
        if evaluation is not None and now - evaluation < QUIET_SECONDS:
            return "evaluating", train if train is not None else evaluation
        if train is not None:
            # Brax traces its first training epochs twice. Tracing is followed by compilation.
            return ("compiling" if self._tracing > train else "quiet"), train
        if self._traced is not None:
            return "compiling", self._traced
        return "waiting", now


def waited(progress: ProgressView) -> str:
    """Says how long something has been compiled, and how long that takes here before the first
    step."""
    seconds = f"{progress.phase_seconds:.0f} s"
    if progress.start_seconds is not None:
        return f"for {seconds}"
    if progress.usual_seconds is not None:
        return f"{seconds} of usually {progress.usual_seconds:.0f} s here"
    busy = progress.phase_seconds > PATIENCE_SECONDS
    usually = "a busy machine takes longer" if busy else "a minute or two is normal"
    return f"for {seconds}: {usually}"


def count(number: float) -> str:
    """Formats 1,234,567 as "1.23 M"."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Formats 75 as "1:15", 4000 as "1:06:40"."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
