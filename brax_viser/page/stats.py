"""What a viewer has seen and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState

if TYPE_CHECKING:  # needs ZeroMQ, which is there where several processes train
    from brax_viser.processes.leader import Leader


@dataclass(frozen=True)
class StreamStats:
    """One rollout that the viewer knows of."""

    env_steps: int  # batched steps known of
    num_envs: int  # environments in its batch, over all devices
    steps_per_second: float  # batched


@dataclass(frozen=True)
class Stats:
    """What the viewer has seen and what it costs."""

    env_steps: int  # batched training steps known of
    frames: int  # emitted: pushed from device to host
    bytes_moved: int  # device to host, by those
    overhead: float  # share of the training's wall-clock, 0 to 1, over the last seconds
    held: bool  # whether the training is being held
    drawn_envs: tuple[int, ...]  # indices, in the order of the grid's cells
    streams: Mapping[str, StreamStats]  # by role, "train" and "eval"


def stats_of(
    shared: SharedState, sources: Sources, leader: "Leader | None", drawn_envs: tuple[int, ...]
) -> Stats:
    """A consistent reading of all counters.

    Args:
        shared: what is shared with the device's calls.
        sources: the environments of the viewer.
        leader: the other processes of the training; None if they are not asked.
        drawn_envs: indices, in the order of the grid's cells.
    """
    frames, nbytes = leader.moved() if leader else (0, 0)
    known_feeds = list(sources)
    with shared.lock:
        at = shared._read()
        known = [
            (source, role, (rollout.pacer.env_steps, rollout.num_envs, rollout.pacer.rate))
            for source in known_feeds
            for role, rollout in source.rollouts.items()
        ]
    # Of several that are stepped, the one on the page.
    streams = {
        role: StreamStats(*numbers)
        for source, role, numbers in known
        if at.shown.get(role, source) is source
    }
    train = streams.get("train")
    return Stats(
        env_steps=train.env_steps if train else 0,
        frames=at.frames + frames,
        bytes_moved=at.bytes_moved + nbytes,
        overhead=at.cost.share(shared.clock()) + (leader.share() if leader else 0.0),
        held=shared.hold.held,
        drawn_envs=drawn_envs,
        streams=streams,
    )
