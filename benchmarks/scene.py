"""Measures the cost of drawing more robots: for the page's loop, the wire and the page.

python -m benchmarks.scene --counts 64 1024 --robots ant --no-page

There is no training: prepared poses go the same way as a training's, on viser's loop,
through the player, which interpolates, and the scene, in `server.atomic()`. A client in another
process receives them. Then a browser shows the same; without a GPU it renders in software, so its
figures compare counts, not machines.
"""

import asyncio
import concurrent.futures
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import mujoco
import numpy as np
import tyro
import viser
from brax import envs
from rich.console import Console
from rich.table import Table

from benchmarks.screenshot import FLAGS
from brax_viser.device.adapters import adapter_for
from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.page.clients import keep_openings_short
from brax_viser.page.playback import Player
from brax_viser.records.frame import Frame
from brax_viser.records.protocol import NEVER
from brax_viser.scene.look import Look
from brax_viser.scene.scene import Scene

T = TypeVar("T")

CYCLE = 12
"""Steps after which the poses repeat."""

WARM_UP = 20
"""Frames that are not measured."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    robots: tuple[str, ...] = ("ant", "go1")
    """"ant" is Brax's, of capsules; "go1" is mjlab's Unitree Go1, of meshes."""
    counts: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of robots to draw."""
    frames: int = 200
    """Number of frames that are timed, and sent to the client."""
    fps: float = 30.0
    client: bool = True
    """Send to a client in another process."""
    page: bool = True
    """Also look at it in a browser; needs Chromium and the `test` extra."""
    page_seconds: float = 10.0
    """For how long the browser is watched."""
    page_timeout: float = 120.0
    """Seconds after which a browser that has drawn nothing is given up on."""
    pictures: Path | None = None
    """Folder for a picture of each page."""


@dataclass(frozen=True)
class Robot:
    """A model and its initial pose."""

    name: str
    model: mujoco.MjModel
    qpos: np.ndarray  # float [nq]
    dt: float  # s per step


def ant() -> Robot:
    adapter = adapter_for(envs.get_environment("ant", backend="generalized"))
    return Robot("ant", adapter.mj_model, np.asarray(adapter.init_qpos), adapter.dt)


def go1() -> Robot:
    # mjlab is not imported: the file is enough, and importing needs all of its dependencies.
    package = importlib.util.find_spec("mjlab")
    if package is None or not package.submodule_search_locations:
        raise SystemExit(
            "The robot go1 is mjlab's: pip install --no-deps mjlab, or leave it out by --robots ant"
        )
    folder = Path(package.submodule_search_locations[0])
    xml = folder / "asset_zoo" / "robots" / "unitree_go1" / "xmls" / "go1.xml"
    model = mujoco.MjModel.from_xml_path(str(xml))
    legs = [0.0, 0.9, -1.8] * 4  # standing: straight legs would be in the floor
    return Robot("go1", model, np.array([0, 0, 0.3, 1, 0, 0, 0, *legs]), 0.02)


ROBOTS: dict[str, Callable[[], Robot]] = {"ant": ant, "go1": go1}


def poses(robot: Robot, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns a cycle of poses, each float32 [K, L, 3] in m and float32 [K, L, 4] wxyz.

    Every joint swings, and every root turns and wanders out of its cell and back, with different
    phases for each robot.
    """
    random = np.random.default_rng(0)
    model, data = robot.model, mujoco.MjData(robot.model)
    phase = random.uniform(0, 2 * np.pi, (count, model.nq))
    wide = np.full(model.nq, 0.4)
    wide[:3], wide[3:7] = (3.0, 3.0, 0.1), 0.2
    cycle = []
    for step in range(CYCLE):
        qpos = robot.qpos + wide * np.sin(2 * np.pi * step / CYCLE + phase)
        pos = np.empty((count, model.nbody - 1, 3), np.float32)
        rot = np.empty((count, model.nbody - 1, 4), np.float32)
        for env in range(count):
            data.qpos[:] = qpos[env]
            mujoco.mj_kinematics(model, data)
            pos[env], rot[env] = data.xpos[1:], data.xquat[1:]
        cycle.append((pos, rot))
    return cycle


class Show:
    """Robots on a server, moving at their own speed."""

    def __init__(self, server: viser.ViserServer, robot: Robot, count: int):
        columns = math.ceil(math.sqrt(count))
        grid = grid_of(robot.model, robot.qpos, (columns, math.ceil(count / columns)), None)
        data = mujoco.MjData(robot.model)
        data.qpos[:] = robot.qpos
        mujoco.mj_kinematics(robot.model, data)
        init = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
        self._server, self._loop = server, server.get_event_loop()
        self._robot, self._cycle = robot, poses(robot, count)
        self._player, self._time, self._steps = Player(robot.dt), 0.0, 0
        model = Model.of(robot.model, grid, init, robot.dt)
        self._scene = Scene(server)
        self._scene.show("train", model, grid, count)
        self._frame = _frame(count)
        self._on_loop(self._arrange())
        self.handles = len(self._scene.blocks["train"].robots.handles)

    def run(self, frames: int, fps: float) -> list[float]:
        """Shows some frames, and returns the seconds that each took the page's loop."""
        return self._on_loop(self._run(frames, fps))

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _arrange(self) -> None:
        self._scene.arrange(("train",))

    async def _run(self, frames: int, fps: float) -> list[float]:
        took, due = [], time.perf_counter()
        for _ in range(frames):
            self._receive(ahead=self._time + 1 / fps)
            start = time.perf_counter()
            view = self._player.play(self._time, 1.0, sending=True, following=True)
            assert view is not None
            self._scene.draw({"train": view}, {"train": Look()})
            took.append(time.perf_counter() - start)
            self._time += 1 / fps
            due += 1 / fps
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        return took

    def _receive(self, ahead: float) -> None:
        """Gives the player the steps that it will need."""
        while self._steps * self._robot.dt <= ahead + self._robot.dt:
            pos, rot = self._cycle[self._steps % CYCLE]
            self._steps += 1
            length = np.full(len(pos), self._steps, np.int32)
            self._player.add(
                replace(
                    self._frame,
                    env_steps=self._steps,
                    link_pos=pos,
                    link_rot=rot,
                    episode_length=length,
                ),
                self._time,
            )


def _frame(count: int) -> Frame:
    """Returns a frame of `count` environments, without poses."""
    zeros = np.zeros(count, np.float32)
    return Frame(
        role="train",
        env_steps=0,
        env_index=np.arange(count, dtype=np.int32),
        num_envs=count,
        link_pos=zeros,
        link_rot=zeros,
        reward=zeros,
        episode_return=zeros,
        episode_length=np.zeros(count, np.int32),
        since_termination=np.full(count, NEVER, np.int32),
        finite=np.ones(count, bool),
    )


@dataclass
class Client:
    """A page without a browser, in another process, and the counts of what it has received."""

    frames: int = 0
    bytes: int = 0
    first: int = 0  # bytes received by the end of the existing scene; 0 until then

    def read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            counts = json.loads(line)
            self.frames, self.bytes, self.first = (
                counts[name] for name in ("frames", "bytes", "first")
            )


@contextmanager
def client_of(server: viser.ViserServer) -> Iterator[Client]:
    """Connects a client, and disconnects it on exit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.client", str(server.get_port())],
        stdout=subprocess.PIPE,
        text=True,
    )
    client = Client()
    threading.Thread(target=client.read, args=(process,), daemon=True).start()
    try:
        yield client
    finally:
        process.terminate()
        process.wait()


@dataclass
class Result:
    """One line of the table."""

    robot: str
    count: int
    handles: int
    took: list[float]  # s per frame, of the page's loop
    received: float = math.nan  # frames per second, at the client
    wire: float = math.nan  # bytes per second, to the client
    first: float = math.nan  # bytes that a new client is sent
    page_fps: float = math.nan  # frames per second that the page draws
    page_triangles: float = math.nan  # triangles per frame, including those for shadows
    page_memory: float = math.nan  # bytes of JavaScript, with the arrays that it holds
    page_first: float = math.nan  # s until it has drawn its first frames


def measure(settings: Settings, robot: Robot, count: int) -> Result:
    """Measures one count of one robot."""
    server = viser.ViserServer(port=0, verbose=False)
    keep_openings_short(server)  # as a viewer does; it also asks pages whether they can follow
    try:
        show = Show(server, robot, count)
        result = Result(robot.name, count, show.handles, [])
        if settings.client:
            with client_of(server) as client:
                while not client.first:
                    # The client prints when a window arrives, and windows come with frames.
                    show.run(3, settings.fps)
                result.first = client.first
                show.run(WARM_UP, settings.fps)
                frames, received, start = client.frames, client.bytes, time.perf_counter()
                result.took = show.run(settings.frames, settings.fps)
                seconds = time.perf_counter() - start
                result.received = (client.frames - frames) / seconds
                result.wire = (client.bytes - received) / seconds
        else:
            show.run(WARM_UP, settings.fps)
            result.took = show.run(settings.frames, settings.fps)
        if settings.page:
            look_at(settings, server, show, result)
        return result
    finally:
        server.stop()


def look_at(settings: Settings, server: viser.ViserServer, show: Show, result: Result) -> None:
    """Measures a browser that shows the robots while they move."""
    over = threading.Event()

    def move() -> None:
        while not over.is_set():
            show.run(10, settings.fps)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        try:
            _browse(settings, f"http://127.0.0.1:{server.get_port()}", result)
        finally:
            over.set()
            moving.result()


COUNT_DRAWN = """
window.drawn = {frames: 0, triangles: 0};
let last = null;
const draw = WebGL2RenderingContext.prototype.drawElementsInstanced;
WebGL2RenderingContext.prototype.drawElementsInstanced = function (mode, count, type, at, n) {
  if (n > 0 && document.timeline.currentTime !== last) {
    last = document.timeline.currentTime;
    window.drawn.frames++;
  }
  window.drawn.triangles += (count / 3) * n;
  return draw.call(this, mode, count, type, at, n);
};
"""
"""Counts the page's frames that draw robots. The timeline's clock stands still within a frame."""


def _browse(settings: Settings, address: str, result: Result) -> None:
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(1000 * settings.page_timeout)
        page.add_init_script(COUNT_DRAWN)
        start = time.perf_counter()
        try:
            page.goto(address)
            page.wait_for_function("window.drawn.frames > 2", polling=200)
            result.page_first = time.perf_counter() - start
            # A busy page may take a while to evaluate this.
            before, start = page.evaluate("window.drawn"), time.perf_counter()
            time.sleep(settings.page_seconds)
            after = page.evaluate("window.drawn")
            frames = after["frames"] - before["frames"]
            result.page_fps = frames / (time.perf_counter() - start)
            result.page_triangles = (after["triangles"] - before["triangles"]) / max(frames, 1)
            usage = page.context.new_cdp_session(page).send("Runtime.getHeapUsage")
            result.page_memory = usage["usedSize"] + usage.get("backingStorageSize", 0)
            if settings.pictures is not None:
                settings.pictures.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=settings.pictures / f"{result.robot}_{result.count}.png")
        except Error as error:  # reported as a result: too many robots for this browser
            print(f"{result.count} {result.robot}s in the browser: {error.message}")
        browser.close()


def report(settings: Settings, results: list[Result]) -> None:
    """Prints a table for each robot."""
    for robot in settings.robots:
        table = Table(
            title=f"{robot}: {settings.frames} frames, {settings.fps:g} per second wanted",
            caption="Linear growth is that of the count.",
        )
        for column in (
            "robots",
            "handles",
            "page's loop, ms per frame: median, p95",
            "client: frames/s, MB/s",
            "first view, MB",
            "page: frames/s, million triangles per frame",
            "page: MB of memory, s to its first frames",
        ):
            table.add_column(column, justify="right")
        rows = [result for result in results if result.robot == robot]
        for row in rows:
            table.add_row(*map(_measured, _in_words(row)))
        if len(rows) > 1:
            table.add_section()
            table.add_row(*map(_measured, _growth(rows[0], rows[-1])))
        Console(width=140).print(table)


def _measured(cell: str) -> str:
    """Replaces a figure that was not measured by a dash."""
    return "-" if "nan" in cell else cell


def _in_words(row: Result) -> tuple[str, ...]:
    return (
        f"{row.count:,}",
        str(row.handles),
        f"{1e3 * median(row.took):.2f}, {1e3 * np.percentile(row.took, 95):.2f}",
        f"{row.received:.1f}, {row.wire / 1e6:.1f}",
        f"{row.first / 1e6:.2f}",
        f"{row.page_fps:.1f}, {row.page_triangles / 1e6:.1f}",
        f"{row.page_memory / 1e6:.0f}, {row.page_first:.1f}",
    )


def _growth(few: Result, many: Result) -> tuple[str, ...]:
    """Returns how much everything grows from the fewest robots to the most."""
    p95 = np.percentile(many.took, 95) / np.percentile(few.took, 95)
    return (
        f"x {many.count / few.count:.0f}",
        f"x {many.handles / few.handles:.0f}",
        f"x {median(many.took) / median(few.took):.1f}, x {p95:.1f}",
        f"x {many.received / few.received:.1f}, x {many.wire / few.wire:.1f}",
        f"x {many.first / few.first:.1f}",
        f"x {many.page_fps / few.page_fps:.2f}, x {many.page_triangles / few.page_triangles:.1f}",
        f"x {many.page_memory / few.page_memory:.1f}, x {many.page_first / few.page_first:.1f}",
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    unknown = [name for name in settings.robots if name not in ROBOTS]
    if unknown:
        raise SystemExit(f"--robots {' '.join(unknown)}: must be of {', '.join(ROBOTS)}")
    robots = [ROBOTS[name]() for name in settings.robots]
    report(settings, [measure(settings, r, count) for r in robots for count in settings.counts])


if __name__ == "__main__":
    main()
