"""Checks and carries out all commands that a person and a script have in common."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from brax_viser.host.control import MODES, SHOWS
from brax_viser.host.metrics import EVALUATION
from brax_viser.host.selection import OF_AGENTS, Selection
from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState
from brax_viser.page.channel import ProcessPlayback
from brax_viser.page.channels import Channels
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.inbox import Inbox
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.panel.limits import (
    MOST_TWINS,
    SPEED,
    STRETCH_SECONDS,
    check_choice,
    check_share,
)
from brax_viser.records.agents import Agents
from brax_viser.records.frame import Detail
from brax_viser.records.protocol import MEASURES
from brax_viser.runs.keeper import Keeper
from brax_viser.sandbox.trained import Trained
from brax_viser.twins.worker import TwinSettings, TwinWorker


class Steering:
    """Commands that `Viewer` and the panel call. All methods may be called on any thread.

    A value outside its limits raises `ValueError`: a script gets it, and the page shows it.
    """

    def __init__(
        self,
        shared: SharedState,
        sources: Sources,
        state: PageState,
        events: EventLoop,
        inbox: Inbox,
        robots: Robots,
        channels: Channels,
        twin_worker: TwinWorker[ProcessPlayback],
        keeper: Keeper,
    ):
        """Changes nothing yet.

        Args:
            shared: the shared state.
            sources: the environments of the viewer.
            state: the page's state.
            events: viser's loop.
            inbox: the actions that wait for that loop.
            robots: the robots that are drawn.
            channels: the rollouts that are shown.
            twin_worker: steps the twins.
            keeper: keeps what is recorded.
        """
        self.show_is_chosen = False  # whether `set_show` was ever called
        self._shared, self._sources, self._state = shared, sources, state
        self._events, self._inbox = events, inbox
        self._robots, self._channels, self._twin_worker = robots, channels, twin_worker
        self._keeper = keeper

    def set_streaming(self, on: bool) -> None:
        self._shared.set(streaming=bool(on))
        if on:
            self._shared.fault = None
            self._shared.hold.refresh()
        elif self._shared.hold.until_env is not None:
            self.pause()  # without streaming, no step is checked for the termination
        self._shared.mailbox.wake()

    def set_mode(self, mode: str) -> None:
        check_choice("mode", mode, MODES)
        if mode != self._shared.control.mode:
            self._shared.set(mode=mode)
            self._channels.restart()

    def set_max_overhead(self, share: float) -> None:
        check_share(share)
        self._shared.set(max_overhead=float(share))
        self._shared.mailbox.wake()

    def set_speed(self, speed: float) -> None:
        SPEED.check("speed", speed)
        self._shared.set(speed=float(speed))
        self._shared.mailbox.wake()

    def set_stretch_seconds(self, seconds: float) -> None:
        STRETCH_SECONDS.check("stretch_seconds", seconds)
        self._shared.set(stretch_seconds=float(seconds))
        self._shared.mailbox.wake()

    def set_record_every(self, every: float | str) -> None:
        if every != "evaluation" and not (isinstance(every, int | float) and every > 0):
            raise ValueError(f"record_every={every!r}: must be s above 0, or 'evaluation'")
        self._shared.set(record_every=None if isinstance(every, str) else float(every))

    def set_show(self, show: str) -> None:
        check_choice("show", show, SHOWS)
        self.show_is_chosen = True
        if show != self._shared.control.show:
            self._shared.set(show=show)
            self._channels.restart()

    def set_rank_by(self, measure: str) -> None:
        check_choice("rank_by", measure, MEASURES)
        self.choose(self._shared.selection, measure)

    def select(self, what: object, *, sticky: bool = False) -> None:
        """Chooses the environments to draw; see `Viewer.select`."""
        agents = self._shared.control.agents
        self.choose(Selection.of(what, sticky=sticky, agents=agents))

    def set_agents(self, names: Sequence[object]) -> None:
        """Names the agents; see `Viewer.agents`. A choice by agents that are gone is given up."""
        agents = Agents.named(names)
        self._shared.set(agents=agents)
        chosen = self._shared.selection
        if chosen.rule in OF_AGENTS and chosen.num_agents != len(agents.names):
            self.choose(Selection(sticky=chosen.sticky))
        self._shared.mailbox.wake()

    def choose(
        self, selection: Selection, rank_by: str | None = None, most: int | None = None
    ) -> None:
        """Chooses the environments to draw.

        Args:
            selection: the rule and its arguments; its `rank_by` and `most` are ignored.
            rank_by: one of `MEASURES`; None keeps the present one.
            most: how many are drawn at most, 1 or more; None keeps the present limit.
        """
        with self._shared.lock:
            before = self._shared.selection
            kept = {"rank_by": rank_by or before.rank_by, "most": most or before.most}
            selection = replace(selection, **kept)
            self._shared.selection = selection
        self._state.complaint = None
        if not selection.same_rule(before):
            self._channels.restart()
        self._shared.mailbox.wake()

    def set_selected_env(self, env: int | None) -> None:
        if env is not None and (isinstance(env, bool) or int(env) != env or env < 0):
            raise ValueError(f"selected_env={env!r}: must be an env index, 0 or more, or None")
        with self._shared.lock:
            self._shared.selected_env = None if env is None else int(env)
        self._events.now(lambda: self._robots.scene.follow(None))  # it followed another robot
        with self._shared.lock:
            changes = [
                rollout.choice.keep(self._shared.kept_env, rollout.num_envs, source.capacity)
                for source in self._sources
                for rollout in source.rollouts.values()
            ]
        if any(changes):
            self._channels.restart()
        else:
            self._shared.hold.refresh()  # a held training sends the details of its present step
        self._shared.mailbox.wake()

    def set_twins(self, count: int) -> None:
        if isinstance(count, bool) or int(count) != count or not 0 <= count <= MOST_TWINS:
            raise ValueError(f"twins={count!r}: must be a number of twins, 0 to {MOST_TWINS}")
        self._twin_worker.fault = None  # setting twins again is another try
        self._shared.set(twins=int(count))
        self._shared.hold.refresh()  # a held training sends the coordinates at once
        self._shared.mailbox.wake()

    @property
    def twin_settings(self) -> TwinSettings:
        return self._state.twins

    def set_twin_settings(self, settings: TwinSettings) -> None:
        if settings.every is not None and settings.every < 1:
            raise ValueError(f"every={settings.every}: must be a number of steps, at least 1")
        if not settings.limit > 0:
            raise ValueError(f"limit={settings.limit}: must be a distance above 0, in m")
        self._state.twins = settings
        self._shared.mailbox.wake()

    def change_twins(self, **changes: Any) -> None:
        """Changes some of the twins' settings."""
        self.set_twin_settings(replace(self._state.twins, **changes))

    def restart_twins(self) -> None:
        """Restarts all twins at the next step from the states of their robots."""
        self._twin_worker.restart()

    def take_policy(self, num_steps: int, make_policy: Callable[..., Any], params: Any) -> None:
        """Hands a newer policy to the sandbox, and keeps it."""
        trained = Trained.of(num_steps, make_policy, params)
        best = self._shared.progress.metrics.best_step(EVALUATION)
        self._keeper.add_policy(num_steps, trained.arrays(), best)
        hand_out = self._robots.sandbox.session.hand_out
        self._inbox.enqueue(functools.partial(hand_out, trained))

    def fork(self) -> None:
        """Forks the selected environment into a sandbox, as it is on screen. Once the training is
        over, an environment whose details have not come begins an episode there.

        Raises:
            ValueError: no environment is selected, or its details are not known yet.
        """
        self._events.now(self._fork)

    def _fork(self) -> None:
        if self._shared.control.replayed:
            raise ValueError("To fork a robot, go back to live first")
        env = self._shared.selected_env
        if env is None:
            raise ValueError("To fork a robot, select it first: click on it")
        self._fork_env(env)

    def play_on(self) -> None:
        """Has a robot go on in a sandbox after the training: the selected one, or else the first
        that is drawn. Called on viser's loop."""
        env, drawn = self._shared.selected_env, self._channels.drawn_envs()
        self._fork_env(next(iter(drawn), 0) if env is None else env)

    def _fork_env(self, env: int) -> None:
        channel, progress = self._robots.first, self._shared.progress.view(self._shared.clock())
        frame = channel.view.frame if channel is not None and channel.view is not None else None
        known = frame is not None and frame.detail is not None and frame.detail.env == env
        goes_on = progress.plays_on == "now"
        still = progress.over and not goes_on  # no details come any more
        if channel is None or not (known or still):
            raise ValueError(
                f"The details of env {env} are not known yet: they come with its next steps"
            )
        adapter, own = channel.source.adapter, channel.variants.of_env.get(env, {})
        if known and frame is not None:
            steps = progress.num_steps if goes_on else frame.env_steps * frame.num_envs
            self._robots.sandbox.fork(adapter, channel.recent.until(frame), own, steps)
        else:
            start = (Detail.at_rest(env, adapter.init_qpos, adapter.mj_model.nv),)
            self._robots.sandbox.fork(adapter, start, own, progress.num_steps, begins=True)
        self._robots.arrange()

    def close_sandbox(self) -> None:
        """Closes the sandbox, if there is one."""
        self._events.now(self._close_sandbox)

    def _close_sandbox(self) -> None:
        self._robots.sandbox.end()
        self._robots.arrange()

    def pause(self) -> None:
        """Holds the training at its next step."""
        self._state.notice = None
        self._shared.hold.pause(self._shared.looked_into)
        self._shared.mailbox.wake()

    def resume(self) -> None:
        """Lets a held training go on."""
        self._state.notice = None
        self._shared.hold.resume()
        self._shared.mailbox.wake()

    def step(self, n: int = 1) -> None:
        """Lets a held training go on by `n` env steps; holds a running training."""
        if isinstance(n, bool) or int(n) != n or n < 1:
            raise ValueError(f"step({n!r}): must be a number of env steps, at least 1")
        self._state.notice = None
        self._shared.hold.step(int(n), self._shared.looked_into)
        self._shared.mailbox.wake()

    def run_to_termination(self, env: int | None = None) -> None:
        """Lets the training go on until an environment's episode ends in a termination.

        Args:
            env: index of the environment, which is then selected. None: the selected one.
        """
        if env is not None:
            self.set_selected_env(env)
        selected, stepped = self._shared.selected_env, self._shared.looked_into
        if selected is None:
            raise ValueError("run_to_termination(): no env is selected: give its index")
        with self._shared.lock:
            rollouts = [source.rollouts.get(stepped) for source in self._sources]
        num_envs = max([rollout.num_envs for rollout in rollouts if rollout], default=None)
        if num_envs is not None and selected >= num_envs:
            raise ValueError(f"env {selected} does not exist: there are {num_envs}")
        self._state.notice = None
        if not self._shared.control.streaming:
            self.set_streaming(True)  # every step must be checked for the termination
        self._shared.hold.run_to_termination(selected, stepped)
        self._shared.mailbox.wake()

    def set_hold_on_nan(self, on: bool) -> None:
        with self._shared.lock:
            self._shared.findings.rearm()
        self._shared.set(hold_on_nan=bool(on))
        self._shared.mailbox.wake()

    def dismiss_nonfinite(self) -> None:
        """Removes the findings of NaN and Inf from the page."""
        with self._shared.lock:
            self._shared.findings.forget()
        self._shared.mailbox.wake()
