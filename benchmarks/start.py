"""Measures the start as a person at the page sees it: when page, robots and motion are there.

python -m benchmarks.start ant
python -m benchmarks.start CartpoleBalance --runs 3
python -m benchmarks.start runs/ant --command replay

Times are seconds since the start of `brax-viser`. A page without a browser connects as soon
as the address is printed, so the browser's own time to the first picture comes on top.
"""

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
import websockets
from rich.console import Console
from rich.table import Table

from benchmarks.client import SUBPROTOCOL, answers_to, hello, messages_of
from benchmarks.screenshot import training

ROBOTS = "/scene/train/robots/"

MILESTONES = ("page", "robots", "motion")

MOVING = 3
"""Number of pictures after which robots move: new ones are put into place by fewer."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    what: Annotated[str, tyro.conf.Positional] = "ant"
    """An environment; of `replay` and `play`, a run directory."""
    command: Literal["train", "replay", "play"] = "train"
    runs: int = 1
    timeout: float = 600.0
    """Seconds after which a run is given up."""


def robots_in(messages: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Returns whether messages of viser's bring new robots, and whether they move robots."""
    kinds = {
        message["type"] + ("!" if "batched_positions" in message.get("updates", ()) else "")
        for message in messages
        if str(message.get("name", "")).startswith(ROBOTS)
    }
    moves = "SceneNodeUpdateMessage!" in kinds
    return any(kind.startswith("Batched") for kind in kinds), moves


async def watch(address: str, started: float) -> dict[str, float]:
    """Returns the time, in s since the start, of each milestone."""
    found: dict[str, float] = {}
    pictures = 0
    async with websockets.connect(
        address.replace("http", "ws", 1), subprotocols=[SUBPROTOCOL], max_size=None
    ) as socket:
        await socket.send(hello())
        async for window in socket:
            assert isinstance(window, bytes)
            for answer in answers_to(window):
                await socket.send(answer)
            new, moves = robots_in(messages_of(window))
            pictures = 0 if new else pictures + moves
            seen = {"page": True, "robots": new, "motion": pictures >= MOVING}
            for milestone in filter(seen.__getitem__, MILESTONES):
                found.setdefault(milestone, time.monotonic() - started)
            if len(found) == len(MILESTONES):
                return found
    raise RuntimeError(f"the server closed after {found}")


def run(settings: Settings) -> dict[str, float]:
    started = time.monotonic()
    with training([settings.command, settings.what, "--port", "0"]) as address:
        return asyncio.run(asyncio.wait_for(watch(address, started), settings.timeout))


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    runs = [run(settings) for _ in range(settings.runs)]
    table = Table("s since the start", "median", "min", "max")
    for milestone in MILESTONES:
        times = [times[milestone] for times in runs]
        values = statistics.median(times), min(times), max(times)
        table.add_row(milestone, *(f"{value:.1f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
