"""Compares the page with MuJoCo's own renderer: the same robot, from the same camera.

python -m benchmarks.likeness report.html            # every model that is installed
python -m benchmarks.likeness report.html --models ant g1 my_robot.xml

Each row of the report has the page's picture (from a real browser), MuJoCo's, and the difference of
their silhouettes; the command prints how far silhouettes (intersection over union), colours, and
the edges within the silhouettes agree. Robots come from packages that ship them: Brax and, if they
are installed, mjlab, gymnasium-robotics and dm-control. Needs Chromium, EGL and the `test` extra.
"""

import asyncio
import base64
import importlib.util
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
import tyro
import viser
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmarks.screenshot import FLAGS
from brax_viser.model.framing import framing_camera
from brax_viser.model.grid import bounds_of, grid_of
from brax_viser.model.robot import Model
from brax_viser.model.shapes import floor_of, visible_geoms
from brax_viser.scene.block import Block
from brax_viser.scene.stage import scene_scale, set_stage

SIZE = 480
"""Side of the pictures, in pixels."""

DIRECTION = -145.0, 24.0
"""From the robot to the camera, degrees from +x and above the horizon: a view with many edges."""

BACKGROUNDS = (255, 0, 255), (0, 255, 0)
"""Each robot is drawn on both: the less a pixel changes, the more of it the robot covers, whatever
the robot's colour."""

LEAST_COVERAGE, LEAST_OPACITY = 0.4, 0.07
"""Shares of a pixel that count as robot: coverage at its rim, and opacity of translucent parts.
Pixels have four samples, and half of them must suffice however colours are rounded."""

LEAST_IOU, MOST_COLOUR, LEAST_STRUCTURE = 0.9, 0.25, 0.2
"""Limits for the same robot in the same pose: the least agreement of silhouettes, the largest
difference of colours, the least agreement of structure. Dark robots on which the two lights show
different edges have the least structure in common."""

LOOKS = 3
"""How often a picture outside these limits is taken again: a late page may not show the whole robot
yet."""

BRAX = (
    "ant",
    "half_cheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_pendulum",
    "inverted_double_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)

PACKAGED = {
    "g1": ("mjlab", "asset_zoo/robots/unitree_g1/xmls/g1.xml"),
    "go1": ("mjlab", "asset_zoo/robots/unitree_go1/xmls/go1.xml"),
    "yam": ("mjlab", "asset_zoo/robots/i2rt_yam/xmls/yam.xml"),
    "kitchen": (
        "gymnasium_robotics",
        "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml",
    ),
    "shadow_hand": ("gymnasium_robotics", "envs/assets/hand/manipulate_block.xml"),
    "adroit_hand": ("gymnasium_robotics", "envs/assets/adroit_hand/adroit_hammer.xml"),
    "fetch": ("gymnasium_robotics", "envs/assets/fetch/pick_and_place.xml"),
    "dog": ("dm_control", "suite/dog.xml"),
    "quadruped": ("dm_control", "suite/quadruped.xml"),
    "fish": ("dm_control", "suite/fish.xml"),
    "manipulator": ("dm_control", "suite/manipulator.xml"),
    "rodent": ("dm_control", "locomotion/walkers/assets/rodent.xml"),
    "fruitfly": ("dm_control", "locomotion/walkers/assets/fruitfly_v2/fruitfly.xml"),
    "jaco": ("dm_control", "third_party/kinova/jaco_arm.xml"),
}
"""Name -> (package, file within it). The packages are not imported: only their files are needed."""


def available() -> dict[str, Callable[[], mujoco.MjModel]]:
    """Returns loaders of the models that are installed, by name."""
    found: dict[str, Callable[[], mujoco.MjModel]] = {}
    for name in BRAX:
        path = _folder("brax") / "envs" / "assets" / f"{name}.xml"
        if path.exists():
            found[name] = lambda path=path: mujoco.MjModel.from_xml_path(str(path))
    for name, (package, file) in PACKAGED.items():
        if importlib.util.find_spec(package) is not None:
            path = _folder(package) / file
            found[name] = lambda path=path: mujoco.MjModel.from_xml_path(str(path))
    return found


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True, eq=False)
class Likeness:
    """One model, drawn by both renderers."""

    name: str
    ours: np.ndarray  # uint8 [SIZE, SIZE, 3], the page
    theirs: np.ndarray  # uint8 [SIZE, SIZE, 3], MuJoCo
    our_mask: np.ndarray  # bool [SIZE, SIZE], where the robot is
    their_mask: np.ndarray  # bool [SIZE, SIZE]

    @property
    def iou(self) -> float:
        """Intersection over union of the silhouettes."""
        union = (self.our_mask | self.their_mask).sum()
        return float((self.our_mask & self.their_mask).sum() / max(union, 1))

    @property
    def is_alike(self) -> bool:
        """Whether both pictures agree within the limits."""
        return (
            self.iou >= LEAST_IOU
            and self.colour_difference <= MOST_COLOUR
            and self.structure >= LEAST_STRUCTURE
        )

    @property
    def colour_difference(self) -> float:
        """Mean distance of the colours where both have the robot, 0 to 1, at equal mean brightness:
        lights may differ, colours must not."""
        both = self.our_mask & self.their_mask
        ours, theirs = self.ours[both] / 255.0, self.theirs[both] / 255.0
        if not both.any():
            return 1.0
        ours = ours * (theirs.mean() / max(ours.mean(), 1e-6))
        return float(np.abs(np.clip(ours, 0, 1) - theirs).mean())

    @property
    def structure(self) -> float:
        """Correlation of the edges within both silhouettes, by their places and strengths, -1 to 1,
        whatever the brightness and contrast. A shadow in only one of the pictures, such as stripes
        on the robot itself, lowers it. 1 if neither has edges there."""
        # Stays a few pixels away from the rim, which is an edge in both.
        both = ndimage.binary_erosion(self.our_mask & self.their_mask, iterations=4)
        both = np.asarray(both, bool)
        ours, theirs = _edges(self.ours)[both], _edges(self.theirs)[both]
        if len(ours) < 2 or max(ours.std(), theirs.std()) < 1e-6:
            return 1.0
        spread = max(float(ours.std() * theirs.std()), 1e-9)
        return float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread)

    @property
    def brightness(self) -> tuple[float, float]:
        """Mean of the colours where both have the robot, 0 to 1: the page's and MuJoCo's."""
        both = self.our_mask & self.their_mask
        if not both.any():
            return 0.0, 0.0
        return float(self.ours[both].mean() / 255), float(self.theirs[both].mean() / 255)


def _edges(picture: np.ndarray) -> np.ndarray:
    """Returns how steep the relative brightness is at each pixel, float [SIZE, SIZE]."""
    light = np.log(picture @ np.array([0.2126, 0.7152, 0.0722]) / 255 + 0.02)
    steep = np.hypot(ndimage.sobel(light, 0), ndimage.sobel(light, 1))
    return ndimage.gaussian_filter(steep, 1.0)


class Easel:
    """A page that shows one robot on a plain background, and nothing else."""

    def __init__(self, page: Page):
        self._server = viser.ViserServer(port=0, verbose=False)
        self._page = page
        page.set_default_timeout(120_000)
        page.set_viewport_size({"width": SIZE, "height": SIZE})
        # Otherwise a page that is slow to draw switches to fewer pixels, whose edges are wider.
        page.goto(f"http://127.0.0.1:{self._server.get_port()}/?fixedDpr=1")
        page.locator("canvas[data-engine]").wait_for()
        while not self._server.get_clients():
            time.sleep(0.05)
        self._client = next(iter(self._server.get_clients().values()))
        self._block: Block | None = None
        self._background, self._plain = BACKGROUNDS[0], True
        self.settled = True
        """Whether the last picture was still, on the background that was laid. The browser fades a
        new page in: on a busy machine it can stay behind a white haze for minutes."""
        # Hides everything but the canvas and the elements that contain it.
        page.evaluate(
            """() => {
                let e = document.querySelector('canvas[data-engine]');
                for (; e.parentElement; e = e.parentElement)
                    for (const other of e.parentElement.children)
                        if (other !== e && !['SCRIPT', 'STYLE', 'HEAD'].includes(other.tagName))
                            other.style.display = 'none';
            }"""
        )

    def draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, *, plain: bool = True
    ) -> tuple[np.ndarray, "Camera"]:
        """Returns a picture, uint8 [SIZE, SIZE, 3], and the camera from which it was taken.

        Args:
            model: the robot to draw.
            data: its pose.
            plain: whether to draw on a plain background, without the page's floor and fog.
        """
        grid = grid_of(model, data.qpos, (1, 1), None)
        links = data.xpos[1:].astype(np.float32), data.xquat[1:].astype(np.float32)
        scene = Model.of(model, grid, links, 0.02)
        bounds = _bounds(model, data)
        scale = scene_scale(bounds)

        self._plain = plain

        def show() -> None:
            if self._block is not None:
                self._block.remove()
            self._block = Block(self._server, "/robot", scene, grid, 1, np.zeros(3), scale)
            set_stage(self._server, "/floor", bounds, scale, grid, scene.floor)
            if plain:
                self._block.cells.hide()
                if self._block.shadows.handle is not None:
                    self._block.shadows.handle.visible = False
                self._server.scene.remove_by_name("/floor")
                self._lay(BACKGROUNDS[0])
                self._server.scene.configure_fog(1.0, 2.0, enabled=False)

        self._on_loop(show)
        camera = Camera.of(bounds)
        for _ in range(2):  # a page that has just opened sets its own camera
            self._look_from(camera, scale)
            time.sleep(0.5)
        return self._settled(), camera

    def on_the_other(self) -> np.ndarray:
        """Returns the same picture on the second background, uint8 [SIZE, SIZE, 3]."""
        self._on_loop(lambda: self._lay(BACKGROUNDS[1]))
        picture = self._settled()
        self._on_loop(lambda: self._lay(BACKGROUNDS[0]))
        return picture

    def _lay(self, colour: tuple[int, int, int]) -> None:
        self._background = colour
        background = np.full((2, 2, 3), colour, np.uint8)
        self._server.scene.set_background_image(background, format="png")

    def again(self, camera: "Camera") -> np.ndarray:
        """Returns the picture, taken again after a pause for a late page, uint8 [SIZE, SIZE, 3]."""
        assert self._block is not None
        self._look_from(camera, self._block.scale)
        time.sleep(3.0)
        return self._settled()

    def _on_loop(self, what: Callable[[], None]) -> None:
        """Runs `what` on viser's event loop, where the viewer writes its handles, too."""

        async def call() -> None:
            what()

        asyncio.run_coroutine_threadsafe(call(), self._server.get_event_loop()).result()

    def _look_from(self, camera: "Camera", scale: float) -> None:
        def look() -> None:
            client = self._client.camera
            client.near, client.far = scale * camera.distance / 100, 10 * scale * camera.distance
            client.fov = camera.fov
            client.position, client.look_at = scale * camera.position, scale * camera.look_at

        self._on_loop(look)

    def _settled(self, timeout: float = 40.0) -> np.ndarray:
        """Returns the picture once it is still, with the right background, or after `timeout` s."""
        deadline, before, same = time.monotonic() + timeout, None, 0
        while time.monotonic() < deadline:
            picture = np.array(Image.open(io.BytesIO(self._page.screenshot())).convert("RGB"))
            same = same + 1 if before is not None and np.array_equal(picture, before) else 0
            away = np.abs(picture.astype(int) - self._background).max(axis=-1) < 8
            self.settled = same >= 2 and (not self._plain or (away.any() and not away.all()))
            if self.settled:
                return picture
            before = picture
            time.sleep(0.3)
        assert before is not None
        return before

    def close(self) -> None:
        self._server.stop()


@dataclass(frozen=True, eq=False)
class Camera:
    """The camera of both renderers."""

    position: np.ndarray
    look_at: np.ndarray
    fov: float  # rad, vertical

    @classmethod
    def of(cls, bounds: np.ndarray) -> "Camera":
        pose = framing_camera(bounds, DIRECTION, aspect=1.0)
        return cls(pose.position, pose.look_at, pose.fov)

    @property
    def distance(self) -> float:
        return float(np.linalg.norm(self.position - self.look_at))


def _bounds(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Returns the box around the drawn robot, without planes, float [2, 3] in m."""
    geoms = [g for g in visible_geoms(model) if model.geom_type[g] != mujoco.mjtGeom.mjGEOM_PLANE]
    if model.nskin:  # it surrounds the whole robot
        geoms = np.flatnonzero(model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)
    return bounds_of(model, data, np.array(geoms, int))


def mujoco_picture(
    model: mujoco.MjModel, data: mujoco.MjData, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Returns MuJoCo's picture, uint8 [SIZE, SIZE, 3], and its silhouette, bool [SIZE, SIZE]."""
    model.vis.global_.fovy = np.degrees(camera.fov)
    model.vis.map.znear, model.vis.map.zfar = 0.001, 1000.0
    model.vis.global_.offwidth = model.vis.global_.offheight = SIZE
    floor = floor_of(model)
    if floor is not None:
        model.geom_rgba[floor, 3] = 0
        model.geom_matid[floor] = -1
    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FREE
    offset = camera.look_at - camera.position
    view.lookat[:] = camera.look_at
    view.distance = camera.distance
    view.azimuth = np.degrees(np.arctan2(offset[1], offset[0]))
    view.elevation = np.degrees(np.arcsin(offset[2] / camera.distance))
    option = mujoco.MjvOption()
    option.sitegroup[:] = 0
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.update_scene(data, view, option)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = False
        picture = renderer.render().copy()
        renderer.enable_segmentation_rendering()
        mask = renderer.render()[..., 1] >= 0
    return picture, mask


def posed(model: mujoco.MjModel) -> mujoco.MjData:
    """Returns data in the model's first keyframe, or in its initial pose."""
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    return data


def compare(easel: Easel, name: str, model: mujoco.MjModel) -> Likeness:
    """Returns both pictures of a model; the page's is taken again while they differ too much."""
    data = posed(model)
    ours, camera = easel.draw(model, data)
    theirs, their_mask = mujoco_picture(model, data, camera)

    def beside(ours: np.ndarray) -> tuple[Likeness, bool]:
        settled = easel.settled
        other = easel.on_the_other()
        mask = silhouette(ours, other)
        return Likeness(name, ours, theirs, mask, their_mask), settled and easel.settled

    likeness, settled = beside(ours)
    for _ in range(LOOKS):
        if not (likeness.is_alike and settled):
            likeness, settled = beside(easel.again(camera))
    if not settled:
        raise TimeoutError(f"{name}: the page is still not showing its picture: try again")
    return likeness


def silhouette(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns where the page has drawn, bool [SIZE, SIZE], from pictures on both backgrounds.

    Almost transparent parts count, but not the smoothed rim of opaque ones, because a pixel of
    MuJoCo's mask is either robot or not.
    """
    changed = np.abs(one.astype(float) - other).mean(axis=-1) / 255
    covered = 1 - changed
    full = covered >= LEAST_COVERAGE
    rim = np.asarray(ndimage.binary_dilation(full, np.ones((3, 3))), bool)
    return full | ((covered >= LEAST_OPACITY) & ~rim)


def browser_path() -> str | None:
    """Returns the path of Chromium; None if it is not installed."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextmanager
def easel() -> Iterator[Easel]:
    """Yields an easel in a browser of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        easel = Easel(browser.new_page())
        yield easel
        easel.close()
        browser.close()


def picture_name(model: str) -> str:
    """Returns a PNG's name for a model; of a file the whole path: many are called `scene.xml`."""
    return model.removesuffix(".xml").strip("./").replace("/", "_") + ".png"


def _row(likeness: Likeness) -> str:
    difference = np.full((SIZE, SIZE, 3), 255, np.uint8)
    difference[likeness.our_mask & likeness.their_mask] = (200, 205, 210)
    difference[likeness.our_mask & ~likeness.their_mask] = (224, 49, 49)
    difference[~likeness.our_mask & likeness.their_mask] = (28, 126, 214)
    pictures = "".join(
        f'<img width=320 src="data:image/png;base64,{_png(p)}">'
        for p in (likeness.ours, likeness.theirs, difference)
    )
    return (
        f"<h3>{likeness.name}: silhouettes {likeness.iou:.3f}, colours differ by "
        f"{likeness.colour_difference:.3f}, structure {likeness.structure:.3f}</h3>{pictures}"
    )


def _png(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def main(
    report: Annotated[Path, tyro.conf.Positional],
    models: tuple[str, ...] = (),
    pictures: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    sheet: Path | None = None,
) -> None:
    """Compare robots on the page with MuJoCo's pictures of them.

    Args:
        report: the HTML file to write.
        models: names or XML files; all installed models if none is given.
        pictures: a folder for the pairs, as PNG files named after the model or its path.
        json_file: where to save the figures.
        sheet: a PNG file for all robots as the page shows them, four in a row.
    """
    known: dict[str, Any] = available()
    for file in models:
        if file.endswith(".xml"):
            known[file] = lambda file=file: mujoco.MjModel.from_xml_path(file)
    if unknown := [name for name in models if name not in known]:
        sys.exit(f"{', '.join(unknown)}: must be among {', '.join(known)}")
    console, rows, figures_of, portraits = Console(), [], {}, []
    table = Table(
        "model", "silhouettes: IoU", "colours differ by", "structure", "brightness, MuJoCo's", "s"
    )
    with easel() as one:
        for name in models or known:
            start = time.monotonic()
            likeness = compare(one, name, known[name]())
            rows.append(_row(likeness))
            seconds = f"{time.monotonic() - start:.1f}"
            figures = (
                f"{likeness.iou:.3f}",
                f"{likeness.colour_difference:.3f}",
                f"{likeness.structure:.3f}",
                "{:.3f}, {:.3f}".format(*likeness.brightness),
            )
            table.add_row(name, *figures, seconds)
            console.print(name, *figures, seconds)
            figures_of[name] = {
                "iou": likeness.iou,
                "colour_difference": likeness.colour_difference,
                "structure": likeness.structure,
                "brightness": likeness.brightness[0],
                "pixels": int(likeness.their_mask.sum()),
            }
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                pair = np.concatenate([likeness.ours, likeness.theirs], axis=1)
                Image.fromarray(pair).save(pictures / picture_name(name))
            if sheet is not None:
                model = known[name]()
                portraits.append(one.draw(model, posed(model), plain=False)[0])
    legend = "The page, MuJoCo, and both: red is only in the page, blue only in MuJoCo's."
    report.write_text(f"<meta charset=utf-8><p>{legend}</p>{''.join(rows)}")
    console.print(table)
    if sheet is not None:
        columns = min(len(portraits), 4)
        blank = np.full_like(portraits[0], 255)
        portraits += [blank] * (-len(portraits) % columns)
        lines = [portraits[i : i + columns] for i in range(0, len(portraits), columns)]
        picture = np.concatenate([np.concatenate(line, axis=1) for line in lines])
        Image.fromarray(picture).save(sheet)
    if json_file is not None:
        json_file.write_text(json.dumps(figures_of, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
