"""Encodes and decodes the messages between the processes of one training.

Decoding checks types and sizes; received data is never executed.
"""

from typing import Any

import msgspec
import numpy as np

from brax_viser.host.control import Control
from brax_viser.host.findings import Finding
from brax_viser.host.hold import HoldCommand
from brax_viser.host.selection import Ranking
from brax_viser.records.packet import ModelPacket, Packet
from brax_viser.records.protocol import Layout


class Array(msgspec.Struct, frozen=True):
    """A numpy array of int32, float32 or bool."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Any) -> "Array":
        array = np.ascontiguousarray(array)
        return cls(array.dtype.name, array.shape, array.tobytes())

    def open(self) -> np.ndarray:
        """Returns a read-only numpy array.

        Raises:
            ValueError: the type is another one, or the shape doesn't fit the number of bytes.
        """
        if self.dtype not in ("int32", "float32", "bool"):
            raise ValueError(f"an array of {self.dtype!r}")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


class Task(msgspec.Struct, frozen=True):
    """The leader's request for one rollout."""

    drawn: Array | None  # int32 [K], over all processes
    round: int  # of choosing
    rule: int  # by which to rank in that round, or `protocol.GIVEN`
    due: float  # s from now, when the next stretch is wanted
    resets: int  # of the rollout, as counted by the leader
    reset_step: int  # the leader's step count at the last reset: each process has its own count


class Wishes(msgspec.Struct, frozen=True, tag=True):
    """From the leader: all that the workers must do. The newest message replaces the others."""

    control: Control
    orders: HoldCommand
    restarts: int  # number of `Leader.restart` calls
    tasks: dict[str, Task]  # by role
    selected_env: int | None = None  # whose details are wanted
    refused: str | None = None  # why the leader ignores this worker's messages


class Part(msgspec.Struct, frozen=True):
    """One process's part of a rollout."""

    source: int  # number of the environment among those of the viewer
    kind: str  # of the environment: see `source.Source.kind`
    num_envs: int  # over all processes
    sending: bool
    following: bool
    shards: dict[int, tuple[int, bool]]  # steps by the leader's count, and whether held there


class Report(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its state. Also its sign of life."""

    parts: dict[str, Part]  # by role
    share: float  # of its wall-clock time, spent on watching
    frames: int
    bytes_moved: int
    terminated: tuple[str, int] | None  # role and step of the awaited termination
    fault: str | None
    leaves: bool = False
    # (number of the source, finding), of all NaN and Inf findings in that process.
    found: tuple[tuple[int, Finding], ...] = ()
    # (how often it has asked to let the held training go on, why it did last)
    let_go: tuple[int, str] = (0, "")


class Step(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a `packet.Packet`."""

    source: int  # number of the environment among those of the viewer
    kind: str  # of the environment
    role: str
    shard: int
    env_steps: int
    env_index: Array
    drawn: Array
    num_envs: int
    layout: Layout
    rows: Array
    sending: bool  # whether a stretch is under way or planned
    detail_env: int | None = None
    detail_layout: Layout = ()
    ranked: bool = False
    shown: bool = True


class Models(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a `packet.ModelPacket`."""

    source: int
    kind: str
    role: str
    env_index: Array
    num_envs: int
    layout: Layout
    rows: Array


class Ranked(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the environments that one of its devices ranks first."""

    role: str
    round: int
    rule: int
    shard: int
    env_index: Array
    measure: Array
    since_termination: Array
    finite: Array
    tier: Array

    def ranking(self) -> Ranking:
        return Ranking(
            self.env_index.open(),
            self.measure.open(),
            self.since_termination.open(),
            self.finite.open(),
            self.tier.open(),
        )


FromWorker = Report | Step | Models | Ranked

_encoder = msgspec.msgpack.Encoder()
_wishes = msgspec.msgpack.Decoder(Wishes)
_from_worker = msgspec.msgpack.Decoder(FromWorker)

DecodeError = msgspec.DecodeError

changed = msgspec.structs.replace


def encode(message: Wishes | FromWorker) -> bytes:
    return _encoder.encode(message)


def decode_wishes(data: bytes) -> Wishes:
    """Raises `DecodeError` if `data` is not such a message."""
    return _wishes.decode(data)


def decode_from_worker(data: bytes) -> FromWorker:
    """Raises `DecodeError` if `data` is not such a message."""
    return _from_worker.decode(data)


def step_of(packet: Packet, *, sending: bool) -> Step:
    """Makes a message of a packet. Converts to numpy, so don't call it within a callback."""
    rows, detail = packet.split()
    if detail is not None:
        rows = np.concatenate([rows.ravel(), detail])
    return Step(
        source=packet.source.number,
        kind=packet.source.kind,
        role=packet.role,
        shard=packet.shard,
        env_steps=packet.env_steps,
        env_index=Array.of(packet.env_index),
        drawn=Array.of(packet.drawn),
        num_envs=packet.num_envs,
        layout=packet.layout,
        rows=Array.of(rows),
        sending=sending,
        detail_env=packet.detail_env,
        detail_layout=packet.detail_layout,
        ranked=packet.ranked,
        shown=packet.shown,
    )


def models_of(packet: ModelPacket) -> Models:
    """Makes a message of a packet of models; see `step_of`."""
    return Models(
        source=packet.source.number,
        kind=packet.source.kind,
        role=packet.role,
        env_index=Array.of(packet.env_index),
        num_envs=packet.num_envs,
        layout=packet.layout,
        rows=Array.of(np.asarray(packet.rows)[: len(packet.env_index)]),
    )


def packet_of(message: Step, source: Any, process: int) -> Packet:
    """Raises ValueError for arrays that can't be decoded."""
    return Packet(
        source=source,
        role=message.role,
        shard=message.shard,
        env_steps=message.env_steps,
        env_index=message.env_index.open(),
        drawn=message.drawn.open(),
        num_envs=message.num_envs,
        layout=message.layout,
        rows=message.rows.open(),
        process=process,
        detail_env=message.detail_env,
        detail_layout=message.detail_layout,
        ranked=message.ranked,
        shown=message.shown,
    )


def model_packet_of(message: Models, source: Any) -> ModelPacket:
    """Raises ValueError for arrays that can't be decoded."""
    return ModelPacket(
        source=source,
        role=message.role,
        env_index=message.env_index.open(),
        num_envs=message.num_envs,
        layout=message.layout,
        rows=message.rows.open(),
    )
