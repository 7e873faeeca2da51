"""Makes a recording of viser's smaller: poses keep only the bits that can be seen.

Viser's format: the size of what follows, once it is decompressed, then by Zstandard the length of a
MessagePack text, that text, and the arrays which it names by their places, each at a multiple of
eight bytes. Integers are of eight bytes, little-endian.
"""

from typing import Any

import msgspec
import numpy as np
import zstandard

TURN = 2.0**-14
"""Rounding step of quaternion components: it moves the end of a link of one metre by 0.1 mm."""

LEVEL = 19
"""Compression level: the highest that needs no extra memory."""

_UPDATE, _POSITIONS, _TURNS = "SceneNodeUpdateMessage", "batched_positions", "batched_wxyzs"


def smaller(recording: bytes, grain: float) -> bytes:
    """Returns the recording with poses rounded.

    Args:
        recording: as `viser.infra.StateSerializer.serialize` returns it.
        grain: rounding step of positions, in the scene's units: a power of two.
    """
    size = int.from_bytes(recording[:8], "little")
    inner = zstandard.ZstdDecompressor().decompress(recording[8:], max_output_size=size)
    start = 8 + int.from_bytes(inner[:8], "little")
    told = msgspec.msgpack.decode(inner[8:start])
    arrays = []
    for length in told["binaryBufferLengths"]:
        start += -start % 8
        arrays.append(inner[start : start + length])
        start += length
    for _, message in told["messages"]:
        for name, step in ((_POSITIONS, grain), (_TURNS, TURN)):
            if message["type"] == _UPDATE and name in message["updates"]:
                place = message["updates"][name]["__binary_index"]
                arrays[place] = _rounded(arrays[place], step)
    return _packed(told, arrays)


def _rounded(array: bytes, grain: float) -> bytes:
    """Rounds float32 numbers; those far outside of the picture stay as they are."""
    return (np.round(np.frombuffer(array, "<f4") / grain) * grain + 0.0).astype("<f4").tobytes()


def _packed(told: dict[str, Any], arrays: list[bytes]) -> bytes:
    text = msgspec.msgpack.encode(told)
    inner = bytearray(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        inner += bytes(-len(inner) % 8) + array
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    return len(inner).to_bytes(8, "little") + compressor.compress(bytes(inner))
