"""Decides which robots stand in the scene, and has their models read and laid out."""

import functools
from collections.abc import Callable
from typing import Any

import viser

from brax_viser.host.source import Source
from brax_viser.host.state import SharedState
from brax_viser.model.ending import last_pose, why_ended
from brax_viser.model.physics import Physics
from brax_viser.model.robot import Model
from brax_viser.model.shapes import Parts
from brax_viser.model.touching import ending, touching
from brax_viser.model.variants import Variants
from brax_viser.page.channel import Channel, ProcessPlayback
from brax_viser.page.episode_frames import frame_at
from brax_viser.page.event_loop import EventLoop
from brax_viser.page.reader import Reader, Reading
from brax_viser.page.sandbox_view import SandboxView
from brax_viser.page.state import PageState, roles_shown
from brax_viser.records.episode import Episode, nonfinite
from brax_viser.scene.block import Block
from brax_viser.scene.scene import Scene
from brax_viser.twins.worker import TwinWorker


class Robots:
    """The robots of each rollout, and that of the sandbox. Used on viser's loop, except where
    noted."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        server: viser.ViserServer,
        scene: Scene,
        events: EventLoop,
        twin_worker: TwinWorker[ProcessPlayback],
    ):
        """Shows no robots yet.

        Args:
            shared: the shared state.
            state: the page's state, with the parts of a model that are drawn.
            server: viser's server.
            scene: the scene in which the robots are drawn.
            events: viser's loop.
            twin_worker: ends the twins of an environment that is not shown any more.
        """
        self.channels: dict[str, Channel] = {}  # by role
        self.scene = scene
        self._shared, self._state, self._events = shared, state, events
        self._twin_worker = twin_worker
        self._reader = Reader(self._use, lambda error: shared.failed("the page", error))
        self.sandbox = SandboxView(server, scene, shared.mailbox.wake, self._reader.read)

    def start(self) -> None:
        """Starts the model reader's thread."""
        self._reader.start()

    def close(self) -> None:
        """Ends that thread and the sandbox."""
        self._reader.close()
        self.sandbox.session.close()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the rollouts that are shown."""
        return roles_shown(self._shared.control)

    @property
    def first(self) -> Channel | None:
        """The channel of the first rollout shown; None before it exists."""
        return self.channels.get(self.roles[0])

    def show_model(self, source: Source, role: str, num_envs: int | None) -> None:
        """Shows a rollout's robots before its first step. Called on any thread: waits until they
        are there, except on viser's loop."""
        if self._events.is_current():
            self.want(source, role, num_envs)
            return
        missing: list[Reading] = []
        self._events.now(lambda: missing.extend(self._missing(source, role, num_envs)))
        for reading in missing:
            self._events.now(functools.partial(reading.use, reading.read()))

    def want(self, source: Source, role: str, num_envs: int | None) -> None:
        """Shows a rollout's robots as soon as they are read."""
        for reading in self._missing(source, role, num_envs):
            self._reader.read(reading)

    def show_parts(self, parts: Parts) -> None:
        """Changes which parts of the models are drawn."""
        self._state.parts = parts
        self.sandbox.remodel()
        for role, channel in tuple(self.channels.items()):
            self.want(channel.source, role, channel.num_envs)

    def read_episodes(
        self, read: Callable[[], Any], use: Callable[[Any], object], what: str = "episodes"
    ) -> None:
        """Calls `read` on the reader's thread, then `use` with its result on viser's loop. A newer
        call for the same `what` replaces one that waits."""
        self._reader.read(Reading(what, read, use))

    def ending_of(self, episode: Episode) -> str:
        """Says how an episode ended, as far as it is known: what turned NaN or Inf, or why it was
        terminated, or how high the robot was, and what touched what. Called on any thread."""
        if episode.summary.ended == "nonfinite":
            return nonfinite(episode)
        channel = self.first
        if channel is None:
            return ""
        adapter, env = channel.source.adapter, episode.summary.env
        physics = Physics(adapter.mj_model, native=adapter.native)
        frame = frame_at([episode], [episode.summary.length], 1, env)
        why = why_ended(adapter.limits, last_pose(frame, 0))
        if not physics.place(frame, 0, episode.model):
            return why
        how = touching if why else ending  # the height adds nothing to the reason
        return "; ".join(filter(None, (why, how(physics.model, physics.data))))

    def arrange(self) -> None:
        """Lays out the robots of the rollouts that are shown, and that of the sandbox."""
        self.sandbox.arrange(self.roles, self._state.parts)

    def block_of(self, role: str) -> Block | None:
        """A rollout's block; None while its robots are being read, or others are still there."""
        block, channel = self.scene.blocks.get(role), self.channels.get(role)
        if block is None or channel is None or block.model.variants is not channel.variants:
            return None
        return block

    def _missing(self, source: Source, role: str, num_envs: int | None) -> list[Reading]:
        """Shows a rollout's robots if they are read. Returns the readings that are needed and not
        under way."""
        channel = self.channels.get(role)
        if channel is None or channel.source is not source:
            if channel is not None:
                channel.end_twins(self._twin_worker)
            channel = self.channels[role] = Channel(source, Variants(source.adapter.mj_model))
        channel.num_envs = num_envs
        self._show(role, channel)
        what = self._state.parts, channel.variants.apart
        if what == channel.reading:
            return []
        channel.reading = () if what == channel.read else what
        if not channel.reading:
            return []
        return [
            Reading(
                role,
                functools.partial(_model_of, source, channel.variants, self._state.parts),
                functools.partial(self._has_read, role, channel, what),
            )
        ]

    def _has_read(
        self, role: str, channel: Channel, what: tuple[object, ...], model: Model
    ) -> None:
        """Shows a rollout's robots that were read, unless others have been requested since."""
        if channel.reading == what:
            channel.model, channel.read, channel.reading = model, what, ()
            self._show(role, channel)

    def _show(self, role: str, channel: Channel) -> None:
        if channel.model is not None and self.channels.get(role) is channel:
            self.scene.show(role, channel.model, channel.source.grid, channel.num_envs)
            self.arrange()

    def _use(self, what: Callable[[], object]) -> None:
        """Schedules the use of a model that was read. Called on the reader's thread."""
        self._events.soon(functools.partial(self._use_now, what))

    def _use_now(self, what: Callable[[], object]) -> None:
        if self._shared.control.closed:
            return
        try:
            what()
            self.arrange()
        except Exception as error:
            self._shared.failed("the page", error)
        self._shared.mailbox.ring()


def _model_of(source: Source, variants: Variants, parts: Parts) -> Model:
    """Reads the robots of an environment. Called on any thread."""
    adapter = source.adapter
    return Model.of(
        adapter.mj_model,
        source.grid,
        adapter.init_links(),
        adapter.dt,
        variants,
        parts,
        native=adapter.native,
        backend=adapter.backend,
    )
