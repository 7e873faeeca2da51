"""Has two policies run from the same start when a person asks for it, and shows what they did."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from brax_viser.host.metrics import EVALUATION, STEPS_PER_SECOND, Metrics
from brax_viser.host.state import SharedState
from brax_viser.page.inbox import Inbox
from brax_viser.page.replay import Replay
from brax_viser.page.robots import Robots
from brax_viser.panel.view import TrialView
from brax_viser.records.environment import Environment
from brax_viser.records.frame import Detail
from brax_viser.runs.keeper import Keeper
from brax_viser.runs.thinning import acting_at
from brax_viser.sandbox.newest import Newest
from brax_viser.sandbox.session import SandboxSession
from brax_viser.sandbox.trained import Trained, filled
from brax_viser.sandbox.trial import PolicyStore, Stage, Start, Trial

NEWEST, BEST, AGO, FIRST = "Newest", "At the best evaluation", "Ten minutes ago", "At the start"
"""Names of policies, besides "Step N"."""

AGO_SECONDS = 600.0
"""s of training that `AGO` means."""


class HandedOut:
    """The policies that a trainer has handed out, as far as they are kept: a `PolicyStore`."""

    def __init__(self, keeper: Keeper, session: SandboxSession):
        self._keeper, self._session = keeper, session

    def steps(self) -> tuple[int, ...]:
        newest = self._session.trained
        kept = () if newest is None else (*self._keeper.policies(), newest.num_steps)
        return tuple(sorted(set(kept)))

    def get(self, num_steps: int) -> Trained:
        newest = self._session.trained
        if newest is None:
            raise KeyError(num_steps)
        if num_steps == newest.num_steps:
            return newest
        arrays = self._keeper.policy(num_steps)
        return Trained(num_steps, newest.make_policy, filled(newest.params, arrays))

    def environment(self) -> Environment | None:
        return None


def choices_of(steps: Sequence[int], metrics: Metrics) -> dict[str, int]:
    """Names policies.

    Args:
        steps: env steps that each was trained for, ascending.
        metrics: the training's curves, for the best evaluation, and for times.

    Returns:
        Steps by name: at first those of particular moments, as far as they are known, then all,
        the newest first.
    """
    if not steps:
        return {}

    def until(at: float) -> int:
        """Returns the steps of the policy that acted at a step of the training."""
        return acting_at(at, steps)

    found, best = {NEWEST: steps[-1]}, metrics.best_step(EVALUATION)
    if best is not None:
        found[BEST] = until(best)
    curve = metrics.curve(STEPS_PER_SECOND) or metrics.curve(EVALUATION)
    if curve is not None and np.ptp(curve.seconds) > AGO_SECONDS:
        found[AGO] = until(np.interp(curve.seconds[-1] - AGO_SECONDS, curve.seconds, curve.steps))
    found[FIRST] = steps[0]
    return found | {f"Step {step:,}": step for step in reversed(steps)}


@dataclass(frozen=True, eq=False)
class _Request:
    """Two policies that were chosen to run from the same start."""

    names: tuple[str, str]
    steps: tuple[int, int]
    environment: Environment  # the one on screen
    start: Start
    seed: int


class Trials:
    """Runs one trial at a time, on a thread of low priority. Used on viser's loop, except where
    noted."""

    def __init__(
        self,
        shared: SharedState,
        robots: Robots,
        replay: Replay,
        inbox: Inbox,
        store: PolicyStore,
    ):
        """Runs nothing yet.

        Args:
            shared: the shared state.
            robots: the robots that are drawn.
            replay: plays the episodes.
            inbox: queues actions for viser's loop.
            store: the policies.
        """
        self.store = store
        self._shared, self._robots = shared, robots
        self._replay, self._inbox = replay, inbox
        self._choices: dict[str, int] = {}
        self._chosen_of: tuple[object, ...] = ()  # what the choices were made of
        self._request: _Request | None = None  # that has not been answered
        self._fault: str | None = None
        self._seed = 0  # of the next one: each begins with another reset
        self._requests = Newest(self._work, "brax_viser trial")
        self._stage: Stage | None = None  # of the thread that runs trials

    def choices(self) -> dict[str, int]:
        """Returns the steps of the policies that can be compared, by name."""
        steps, metrics = self.store.steps(), self._shared.progress.metrics
        if self._chosen_of != (steps, metrics.version):
            self._chosen_of = steps, metrics.version
            self._choices = choices_of(steps, metrics)
        return self._choices

    def told(self) -> TrialView:
        """Describes the trials for the panel."""
        return TrialView(tuple(self.choices()), self._request is not None, self._fault)

    def begin(self, solid: str, ghost: str, from_selected: bool) -> None:
        """Runs two policies from the same start, and plays what they did. A trial that runs is
        given up for it.

        Args:
            solid: name of the policy whose robot is drawn as it is.
            ghost: name of the policy whose robot is drawn as a ghost.
            from_selected: whether they begin as the selected robot is on screen; otherwise with an
                episode.

        Raises:
            ValueError: there is no such policy, or no robot is selected.
        """
        choices, channel = self.choices(), self._robots.first
        for name in (solid, ghost):
            if name not in choices:
                raise ValueError(f"There is no policy {name!r} (any more): choose another one")
        if channel is None:
            raise ValueError("No robot is there yet: compare policies once there is one")
        detail = self._selected() if from_selected else None
        selected, block = self._shared.selected_env, self._robots.block_of(self._robots.roles[0])
        drawn = block.drawn_envs if block is not None else ()
        env = selected if selected is not None else int(next(iter(drawn), 0))
        self._fault, self._seed = None, self._seed + 1
        self._request = request = _Request(
            (solid, ghost),
            (choices[solid], choices[ghost]),
            channel.source.adapter,
            Start(env, channel.variants.of_env.get(env, {}), detail),
            self._seed,
        )
        self._requests.wish(request)  # its thread inherits the low priority of the loop's

    def close(self) -> None:
        """Gives up the trial that runs. Called on any thread."""
        self._request = None

    def _selected(self) -> Detail:
        """Returns the details of the selected robot as it is on screen."""
        env, channel = self._shared.selected_env, self._robots.first
        if env is None:
            raise ValueError("To begin as a robot is, select it first: click on it")
        block = self._robots.block_of(self._robots.roles[0])
        live = channel.view.frame if channel is not None and channel.view is not None else None
        frame = block.frame if block is not None and self._replay.active else live
        if frame is None or frame.detail is None or frame.detail.env != env:
            raise ValueError(
                f"The details of env {env} are not known yet: they come with its next steps"
            )
        return frame.detail

    def _work(self, request: _Request) -> None:
        """Runs on the thread."""
        trial, fault = None, None
        try:
            trial = self._run(request)
        # Whatever goes wrong in the environment's code, the page shows it and goes on.
        except Exception as error:
            known = isinstance(error, ValueError)
            fault = str(error) if known else f"{type(error).__name__}: {error}"
        self._inbox.enqueue(functools.partial(self._ran, request, trial, fault))

    def _run(self, request: _Request) -> Trial | None:
        given_up: Callable[[], bool] = lambda: self._request is not request  # noqa: E731
        if given_up():
            return None
        environment = self.store.environment() or request.environment
        if self._stage is None or self._stage.environment is not environment:
            _check_same(environment, request.environment)
            self._stage = Stage(environment)
        try:
            policies = [self.store.get(steps) for steps in request.steps]
        except KeyError:
            raise ValueError(
                "One of the two policies is not kept any more: choose another"
            ) from None
        settings = policies, request.start, request.seed
        episodes = self._stage.try_out(*settings, given_up=given_up)
        return None if len(episodes) < 2 else Trial(request.names, (episodes[0], episodes[1]))

    def _ran(self, request: _Request, trial: Trial | None, fault: str | None) -> None:
        if self._request is request:
            self._request, self._fault = None, fault
            if trial is not None:
                self._replay.present(trial)


def _check_same(environment: Environment, shown: Environment) -> None:
    """Checks that an environment has the robot that is shown.

    Raises:
        ValueError: it has another one.
    """
    sizes = [(e.mj_model.nq, e.mj_model.nv, e.mj_model.nbody) for e in (environment, shown)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{environment.name} has (nq, nv, nbody)={sizes[0]} now, but {sizes[1]} in the "
            "training: it has been changed since"
        )
