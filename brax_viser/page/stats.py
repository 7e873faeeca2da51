"""Takes a consistent reading of a viewer's counters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brax_viser.host.source import Sources
from brax_viser.host.state import SharedState

if TYPE_CHECKING:  # imports ZeroMQ, which is needed only if several processes train
    from brax_viser.processes.leader import Leader


@dataclass(frozen=True)
class StreamStats:
    """Counters of one rollout."""

    env_steps: int  # batched steps known so far
    num_envs: int  # environments in its batch, over all devices
    steps_per_second: float  # batched


@dataclass(frozen=True)
class Stats:
    """Counters of a viewer: steps, frames, and what watching costs."""

    env_steps: int  # batched training steps known so far
    frames: int  # pushed from device to host
    bytes_moved: int  # device to host, by those frames
    overhead: float  # share of the training's wall-clock, 0 to 1, over the last seconds
    held: bool  # whether the training is being held
    drawn_envs: tuple[int, ...]  # indices, in the order of the grid's cells
    streams: Mapping[str, StreamStats]  # by role, "train" and "eval"


def stats_of(
    shared: SharedState, sources: Sources, leader: "Leader | None", drawn_envs: tuple[int, ...]
) -> Stats:
    """Returns a consistent reading of all counters.

    Args:
        shared: the shared state.
        sources: the environments of the viewer.
        leader: connects the training's other processes; None leaves them out.
        drawn_envs: indices, in the order of the grid's cells.
    """
    frames, nbytes = leader.moved() if leader else (0, 0)
    known_feeds = list(sources)
    with shared.lock:
        at = shared._read()
        known = [
            (source, role, (rollout.steps.env_steps, rollout.num_envs, rollout.pacer.rate))
            for source in known_feeds
            for role, rollout in source.rollouts.items()
        ]
    # If several environments are stepped, counts the one on the page.
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
