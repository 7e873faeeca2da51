"""Collects what the panel shows. The shared state's lock is held for one reading only, because the
device callbacks need it."""

import dataclasses
import math
from collections import deque
from typing import TYPE_CHECKING

from brax_viser.host.source import Source
from brax_viser.host.starts import Starts
from brax_viser.host.state import SharedState
from brax_viser.page.channel import Channel, ProcessPlayback
from brax_viser.page.channels import Channels
from brax_viser.page.clients import Pages
from brax_viser.page.replay import Replay
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.page.trials import Trials
from brax_viser.panel.details import Inside
from brax_viser.panel.view import PanelView, StreamView
from brax_viser.records.episode import RunInfo
from brax_viser.records.frame import Frame
from brax_viser.scene.block import Block
from brax_viser.twins.worker import TwinWorker

if TYPE_CHECKING:  # imports ZeroMQ, which is needed only if several processes train
    from brax_viser.processes.leader import Leader

SENT_SECONDS = 1.0
"""s: span over which the rate sent to each page and the training's wait are averaged."""


class PanelState:
    """Collects what the panel shows. Used on viser's loop only."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        robots: Robots,
        channels: Channels,
        twin_worker: TwinWorker[ProcessPlayback],
        leader: "Leader | None",
        pages: Pages | None,
        replay: Replay,
        trials: Trials,
        recorded: RunInfo | None,
    ):
        """Reads nothing yet.

        Args:
            shared: the shared state.
            state: the page's state.
            robots: the robots that are drawn.
            channels: the rollouts that are shown.
            twin_worker: steps the twins.
            leader: connects the training's other processes; None if this is the only one.
            pages: the share of messages that each page takes; None if that is unknown.
            replay: the recorded episodes.
            trials: compares policies.
            recorded: their training, if nothing is live.
        """
        self._shared, self._state, self._robots, self._channels = shared, state, robots, channels
        self._twin_worker, self._leader, self._pages = twin_worker, leader, pages
        self._replay, self._trials, self._recorded = replay, trials, recorded
        self._starts = Starts()
        # Per recent update: (s, `scene.sent`, s that devices had waited for room).
        self._sent: deque[tuple[float, int, float]] = deque()

    def view(self, now: float) -> PanelView:
        """Returns what the panel shows at a time, s."""
        shared, leader, state, scene = self._shared, self._leader, self._state, self._robots.scene
        role = self._robots.roles[0]
        channel, shown = self._robots.channels.get(role), self._channels.shown_source()
        training, block = shared.clock(), self._robots.block_of(role)
        # One consistent reading; the rest is computed from it while device callbacks go on.
        at = shared.reading()
        selected, frame = at.selected_env, self._frame(channel, block)
        page_bytes_per_second, waits = self._lately(now)
        progress = self._starts.told(shared.progress.view(training), _start_of(channel))
        shared.progress.usual_seconds = progress.usual_seconds  # the terminal says it as well
        view = PanelView(
            env=f"{shown.adapter.name} · {shown.adapter.backend}" if shown else "",
            progress=progress,
            control=at.control,
            overhead=at.cost.share(training) + (leader.share() if leader else 0.0),
            bytes_per_second=at.cost.bytes_per_second(training),
            frames_per_second=at.cost.frames_per_second(training),
            page_bytes_per_second=page_bytes_per_second,
            slowest_page=self._slowest_page(now),
            selection=at.selection,
            selected_env=selected,
            selected_facts=block.facts_of(selected) if block and selected is not None else None,
            followed=scene.followed is not None,
            look=state.look,
            paused=shared.hold.paused,
            held=shared.hold.held,
            until_env=shared.hold.until_env,
            drawn=len(block.drawn_envs) if block else 0,
            capacity=shown.capacity if shown else 0,
            frame=frame,
            why_ended=channel.reasons.of(frame, selected) if channel else "",
            stream=self._stream(role, channel, shown, now, known=set(at.shown)),
            complaint=state.complaint,
            notice=state.notice,
            hold_limit=shared.hold_limit.words(),
            unkept=state.unkept,
            kept_in=state.kept_in,
            exporting=state.exporting,
            exported=state.exported,
            fault=at.fault,
            waits=waits,
            parts=state.parts,
            curve=state.curve,
            surroundings=scene.surroundings,
            looked_through=scene.is_looked_through,
            lost=leader.lost() if leader else (),
            refused=leader.refused() if leader else (),
            fork=self._robots.sandbox.session.panel(),
            stepped=shared.stepped(role),
            nonfinite=at.findings,
            metrics=shared.progress.metrics,
            terms=channel.terms if channel and channel.terms.is_of(selected) else None,
            cells=tuple(dict.fromkeys(n for b in scene.blocks.values() for n in b.notes())),
            replay=self._replay.told(),
            trials=self._trials.told(),
            recorded=self._recorded,
        )
        return self._with_twins(self._with_robot(view, shown, block), channel)

    def _frame(self, channel: Channel | None, block: Block | None) -> Frame | None:
        """Returns the frame whose numbers are on screen."""
        if self._replay.active:
            return block.frame if block else None
        return channel.view.frame if channel and channel.view else None

    def _stream(
        self,
        role: str,
        channel: Channel | None,
        shown: Source | None,
        now: float,
        known: set[str],
    ) -> StreamView:
        rollout = shown.rollouts.get(role) if shown else None
        view = channel.view if channel else None
        return StreamView(
            role=role,
            num_envs=rollout.num_envs if rollout else None,
            following=rollout.pacer.following if rollout else False,
            step=view.frame.env_steps * view.frame.num_envs if view else None,
            age=now - view.came if view else math.inf,
            other_known=any(other != role for other in known),
        )

    def _with_robot(self, view: PanelView, shown: Source | None, block: Block | None) -> PanelView:
        """Returns the view with the fields about the robot filled in."""
        detail = block.frame.detail if block and block.frame else None
        has_detail = detail is not None and detail.env == view.selected_env
        wanted = has_detail and view.look.numbers
        return dataclasses.replace(
            view,
            model=shown.adapter.mj_model if shown else None,
            unavailable=block.model.unavailable if block else {},
            inside=self._inside(block, view.selected_env) if wanted else None,
            dt=shown.adapter.dt if shown else 1.0,
            has_detail=has_detail,
            shown=shown.label if shown else "",
            replayed=self._replay.focus(view.selected_env),
            pair=self._replay.pair(view.selected_env),
        )

    def _with_twins(self, view: PanelView, channel: Channel | None) -> PanelView:
        """Returns the view with the fields about the twins filled in."""
        twins = channel is not None and view.control.twins > 0
        return dataclasses.replace(
            view,
            twins=self._state.twins,
            twin_cost=self._twin_worker.cost(),
            twin_fault=self._twin_worker.fault,
            controls_known=channel.controls_known if channel else True,
            curves=channel.drift.curves(view.selected_env) if channel and twins else None,
            verdict=channel.drift.verdict(self._state.twins.limit) if channel and twins else None,
        )

    def _lately(self, now: float) -> tuple[float, float]:
        """Returns, over the last second or a little more, bytes per second of moving robots sent to
        each page, and the share of time, 0 to 1, that the training has waited for the page."""
        while len(self._sent) > 1 and self._sent[1][0] <= now - SENT_SECONDS:
            self._sent.popleft()
        sent, waited = self._robots.scene.sent, self._shared.mailbox.waited
        self._sent.append((now, sent, waited))
        since, sent_before, waited_before = self._sent[0]
        if now <= since:
            return 0.0, 0.0
        return (sent - sent_before) / (now - since), min(
            (waited - waited_before) / (now - since), 1
        )

    def _slowest_page(self, now: float) -> float | None:
        """Returns the share of its messages that the slowest page takes, 0 to 1, if known."""
        taken = self._pages.taken(now) if self._pages is not None else {}
        return min(taken.values(), default=None)

    def _inside(self, block: Block | None, env: int | None) -> Inside | None:
        physics = block.inside(env) if block and env is not None else None
        if physics is None or block is None or block.frame is None or block.frame.detail is None:
            return None
        return Inside(
            block.frame.detail,
            physics.model,
            physics.data,
            physics.native,
            block.model.backend,
            self._state.look.body,
        )


def _start_of(channel: Channel | None) -> str | None:
    """Returns the name under which the start of a training is remembered; None until its batch
    size is known."""
    if channel is None or channel.num_envs is None:
        return None
    adapter = channel.source.adapter
    return f"{adapter.name} {adapter.backend} {channel.num_envs}"
