"""Connects to a viewer as a page without a browser, and counts what arrives."""

import argparse
import asyncio
import json
import time
from typing import Any

import msgspec
import viser
import websockets
import zstandard
from viser import _messages as messages


def content_of(window: bytes) -> dict[str, Any]:
    """Returns a window of viser's without its arrays: "messages" and the server's "timestampSec".

    A window is two lengths of 8 bytes, a zstd-compressed msgpack of messages, and the
    uncompressed arrays.
    """
    compressed = int.from_bytes(window[8:16], "little")
    return msgspec.msgpack.decode(zstandard.decompress(window[16 : 16 + compressed]))


def messages_of(window: bytes) -> list[dict[str, Any]]:
    """Returns the messages of one window of viser's."""
    return content_of(window)["messages"]


def poses_of(window: bytes) -> int:
    """Returns how many position updates of batched handles a window carries."""
    return sum(
        message["type"] == "SceneNodeUpdateMessage" and "batched_positions" in message["updates"]
        for message in messages_of(window)
    )


def answers_to(window: bytes) -> list[bytes]:
    """Returns a page's answers to a window: acknowledgements, where they are requested."""
    return [
        msgspec.msgpack.encode(
            messages.LocalStorageGetItemResponseMessage(
                value=None, error=None, request_uuid=message["request_uuid"]
            ).as_serializable_dict()
        )
        for message in messages_of(window)
        if message["type"] == "LocalStorageGetItemRequestMessage"
    ]


def is_last_of_replay(window: bytes) -> bool:
    """Whether a window ends the replay of the existing scene to a new page."""
    return any(message["type"] == "ReplayDoneMessage" for message in messages_of(window))


def hello(
    position: tuple[float, float, float] = (3.0, 3.0, 3.0),
    look_at: tuple[float, float, float] = (0.0, 0.0, 0.0),
    window: tuple[int, int] = (1200, 800),
) -> bytes:
    """Returns a page's first message: viser counts it as connected once it knows its camera.

    Args:
        position: of the camera, scene units.
        look_at: the point that it turns around, scene units.
        window: width and height, pixels.
    """
    camera = messages.ViewerCameraMessage(
        wxyz=(1.0, 0.0, 0.0, 0.0),
        position=position,
        fov=1.0,
        near=0.1,
        far=100.0,
        image_height=window[1],
        image_width=window[0],
        look_at=look_at,
        up_direction=(0.0, 0.0, 1.0),
    )
    return msgspec.msgpack.encode(camera.as_serializable_dict())


SUBPROTOCOL = websockets.Subprotocol(f"viser-v{viser.__version__}")
"""viser's server rejects clients of another version."""


def websocket_of(url: str) -> str:
    """Returns the address of the websocket of a page, with its token."""
    return url.replace("http", "ws", 1)


async def watch(url: str) -> None:
    """Receives until the server closes; prints a line of JSON every tenth of a second or later.

    "first" is the number of bytes received by the end of the existing scene; 0 until then.
    """
    frames = received = first = 0
    reported = 0.0
    async with websockets.connect(
        websocket_of(url),
        subprotocols=[SUBPROTOCOL],
        max_size=None,
        compression=None,
        ping_interval=None,  # a server that stands still for a minute is still there
    ) as socket:
        await socket.send(hello())
        async for window in socket:
            assert isinstance(window, bytes)
            frames += poses_of(window) > 0
            received += len(window)
            for answer in answers_to(window):
                await socket.send(answer)
            if not first and is_last_of_replay(window):
                first = received
            if time.monotonic() - reported > 0.1:
                reported = time.monotonic()
                counts = {"frames": frames, "bytes": received, "first": first}
                print(json.dumps(counts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", help="its address, as it is printed; or, without a token, a port")
    page = parser.parse_args().page
    try:
        asyncio.run(watch(f"http://127.0.0.1:{page}" if page.isdigit() else page))
    except websockets.ConnectionClosed:
        return


if __name__ == "__main__":
    main()
