"""Draws overlays on the selected robot: forces, axes, masses and the like."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import mujoco
import numpy as np
import trimesh
import viser

from brax_viser.model import marks
from brax_viser.model.marks import Lines
from brax_viser.model.physics import Physics, with_world
from brax_viser.model.rotations import multiply, rotate
from brax_viser.model.surfaces import linear
from brax_viser.records.frame import Frame
from brax_viser.scene.handles import PARKED

TRAIL_SECONDS = 3.0
"""Length of a trail, s of robot time."""

GAP_SECONDS = 0.5
"""s of robot time without a step after which a trail restarts: between two stretches the robot has
moved on unseen."""

TRAIL_RGB = np.array([230, 73, 128], np.uint8)


@dataclass(frozen=True)
class _Kind:
    """How one overlay's lines are made and drawn."""

    lines: Callable[[mujoco.MjModel, mujoco.MjData], Lines]
    width: str  # field of `model.vis.scale`, in mean sizes of geoms
    arrows: bool
    times: float = 1.0  # factor of the width


_KINDS = {
    "contacts": _Kind(marks.contacts, "contactwidth", False, 2.0),
    "contact_forces": _Kind(marks.contact_forces, "forcewidth", True),
    "joint_axes": _Kind(marks.joint_axes, "jointwidth", True),
    "actuators": _Kind(marks.actuators, "actuatorwidth", True, 0.5),
    "violations": _Kind(marks.violations, "constraint", False, 3.0),
    "body_frames": _Kind(marks.body_frames, "framewidth", False),
    "geom_frames": _Kind(marks.geom_frames, "framewidth", False),
    "tendons": _Kind(marks.tendons, "connect", False, 0.5),
    "velocities": _Kind(marks.velocities, "forcewidth", True),
}

OVERLAYS = (*_KINDS, "com", "inertia", "trail")
"""All overlays that can be switched on."""

INSIDE = frozenset(("com", "inertia"))
"""Overlays inside of the robot, which is drawn transparent to show them."""

RECENT_BYTES = 16e6
"""Limit on the frames that are kept for trails: 3 s of a thousand humanoids would take more."""


class Overlays:
    """The viser handles of one robot's overlays. Used on the page's loop only.

    A handle is made when its overlay is first switched on. While an overlay is off, nothing is
    computed or sent for it.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        path: str,
        physics: Physics,
        *,
        dt: float,
        scale: float,
        shown: Collection[str] = OVERLAYS,
    ):
        """Makes nothing visible yet.

        Args:
            server: the server of the scene.
            path: the scene node to put them under.
            physics: of the robot; `draw` brings it into the robot's state.
            dt: s of robot time per step.
            scale: scene units per metre.
            shown: overlays that this robot can have: see `marks.unavailable`.
        """
        self._server, self._path, self._physics = server, path, physics
        self._dt, self._scale, self._can = dt, scale, frozenset(shown)
        self._batches: dict[str, _Batch] = {}
        self._meshes: dict[str, viser.BatchedMeshHandle] = {}
        self._lines: dict[str, tuple[object, Lines]] = {}  # with the detail they were made from
        self._trail = Trail(dt)

    def draw(
        self,
        wanted: Collection[str],
        recent: "Recent",
        frame: Frame,
        row: int,
        pose: tuple[np.ndarray, np.ndarray],
        shift: np.ndarray,
        own: Mapping[str, np.ndarray],
        body: int,
    ) -> None:
        """Shows the overlays that are wanted and hides the others, within `server.atomic()`.

        Args:
            wanted: some of `OVERLAYS`.
            recent: the frames up to the current one.
            frame: the current one.
            row: of the environment in the frame.
            pose: float [L, 3] in m and [L, 4] wxyz, of the links as they are drawn, in the
                environment's own world frame.
            shift: float [3], m, from that frame to the scene's.
            own: the environment's own values of fields of the model.
            body: id of the body whose trail is drawn.
        """
        wanted = self._can & set(wanted)
        pos, rot = with_world(*pose)
        if "trail" in wanted:
            env = int(frame.env_index[row])
            if not self._trail.is_of(env, body):
                for past, past_row in recent.of(env):
                    self._trail.add(past, past_row, body)
            self._trail.add(frame, row, body)
            ends = self._trail.ends(pos[body])
            rgb = np.broadcast_to(TRAIL_RGB, (len(ends), 3))
            self._batch("trail").show(ends + shift, rgb)
        detail = frame.detail
        there = detail is not None and detail.env == frame.env_index[row]
        if not there or not wanted - {"trail"} or not self._physics.place(frame, row, own):
            self._hide(set(OVERLAYS) - (wanted & {"trail"}))
            return
        model, data = self._physics.model, self._physics.data
        if detail is not None and detail.ctrl is None:
            wanted -= {"actuators"}  # their controls are not known
        self._hide(set(OVERLAYS) - wanted)
        for name in wanted & set(_KINDS):
            made_of, lines = self._lines.get(name, (None, None))
            if lines is None or made_of is not detail:
                lines = _KINDS[name].lines(model, data)
                self._lines[name] = detail, lines
            self._batch(name).show(lines.at(data.xpos, data.xquat, pos, rot) + shift, lines.rgb)
        if "com" in wanted:
            self._draw_com(pos, rot, shift)
        if "inertia" in wanted:
            self._draw_inertia(pos, rot, shift)

    def hide(self) -> None:
        """Hides all overlays, within `server.atomic()`."""
        self._hide(OVERLAYS)

    def remove(self) -> None:
        for batch in self._batches.values():
            batch.remove()
        for handle in self._meshes.values():
            handle.remove()

    def _hide(self, names: Collection[str]) -> None:
        for name in names:
            if name in self._batches:
                self._batches[name].hide()
            if name in self._meshes and self._meshes[name].visible:
                self._meshes[name].visible = False
            self._lines.pop(name, None)
            if name == "trail":
                self._trail.clear()

    def _batch(self, name: str) -> "_Batch":
        if name not in self._batches:
            model = self._physics.model
            kind = _KINDS.get(name, _Kind(marks.body_frames, "framewidth", False))
            width = kind.times * getattr(model.vis.scale, kind.width) * model.stat.meansize
            self._batches[name] = _Batch(
                self._server, f"{self._path}/{name}", width, self._scale, arrows=kind.arrows
            )
        return self._batches[name]

    def _draw_com(self, pos: np.ndarray, rot: np.ndarray, shift: np.ndarray) -> None:
        """Draws a ball at the centre of mass of each tree of bodies. It moves with the root."""
        model, data = self._physics.model, self._physics.data
        roots = np.flatnonzero((model.body_parentid == 0) & (model.body_weldid > 0))
        if not len(roots):
            return
        lines = Lines.of(
            data.subtree_com[roots], np.zeros((len(roots), 3)), roots, marks.AXES_RGB[:1]
        )
        centres = lines.at(data.xpos, data.xquat, pos, rot)[:, 0]
        radius = model.vis.scale.com * model.stat.meansize
        ball = trimesh.creation.icosphere(radius=radius, subdivisions=2)
        handle = self._mesh("com", ball, np.ones((len(roots), 3)), model.vis.rgba.com)
        handle.batched_positions = (centres + shift).astype(np.float32)

    def _draw_inertia(self, pos: np.ndarray, rot: np.ndarray, shift: np.ndarray) -> None:
        """Draws a box with the mass and inertia of each body, at its centre of mass."""
        model = self._physics.model
        bodies = np.arange(1, model.nbody)
        sides = 2 * marks.inertia_boxes(model)[bodies]
        handle = self._mesh(
            "inertia", trimesh.creation.box((1, 1, 1)), sides, model.vis.rgba.inertia
        )
        handle.batched_scales = sides.astype(np.float32)
        centres = pos[bodies] + rotate(rot[bodies], model.body_ipos[bodies])
        handle.batched_positions = (centres + shift).astype(np.float32)
        handle.batched_wxyzs = multiply(rot[bodies], model.body_iquat[bodies]).astype(np.float32)

    def _mesh(
        self, name: str, mesh: trimesh.Trimesh, scales: np.ndarray, rgba: np.ndarray
    ) -> viser.BatchedMeshHandle:
        """The handle of an overlay, made visible, with one instance per scale."""
        if name not in self._meshes:
            count = len(scales)
            self._meshes[name] = self._server.scene.add_batched_meshes_simple(
                f"{self._path}/{name}",
                mesh.vertices,
                mesh.faces,
                batched_wxyzs=np.tile(np.array([1.0, 0.0, 0.0, 0.0], np.float32), (count, 1)),
                batched_positions=np.tile(PARKED, (count, 1)),
                batched_scales=scales.astype(np.float32),
                batched_colors=linear(255 * np.asarray(rgba[:3])),
                opacity=float(rgba[3]) if rgba[3] < 1 else None,
                lod="off",
                cast_shadow=False,
                receive_shadow=False,
                scale=self._scale,
            )
        handle = self._meshes[name]
        if not handle.visible:
            handle.visible = True
        return handle


class Recent:
    """Keeps the frames of the last seconds, so that a trail that is switched on has a past, even
    while the training is held and no frames come."""

    def __init__(self, dt: float):
        """`dt` is in s of robot time per step."""
        self._steps = TRAIL_SECONDS / dt
        self._frames: deque[Frame] = deque()

    def add(self, frame: Frame) -> None:
        """Adds the frame on screen, which may be the last one again."""
        frames = self._frames
        if frames and frames[-1].env_steps >= frame.env_steps:
            # Held, the same step may come with other environments. An earlier step means that
            # another training has begun.
            if frames[-1].env_steps > frame.env_steps:
                frames.clear()
            else:
                frames.pop()
        frames.append(replace(frame, detail=None, coordinates=None, ghost=None))
        most = RECENT_BYTES / max(frame.link_pos.nbytes + frame.link_rot.nbytes, 1)
        while len(frames) > max(most, 1) or frame.env_steps - frames[0].env_steps > self._steps:
            frames.popleft()

    def of(self, env: int) -> Iterator[tuple[Frame, int]]:
        """Yields the frames that contain an environment, oldest first, and its row in each."""
        for frame in self._frames:
            rows = np.flatnonzero(frame.env_index == env)
            if len(rows):
                yield frame, int(rows[0])


class Trail:
    """The path of a body in the last seconds of one episode."""

    def __init__(self, dt: float):
        self._dt = dt
        self._whose: tuple[int, int] | None = None  # env and body
        self._step, self._length = 0, 0  # env steps, of the rollout and of the episode
        self._points: deque[tuple[int, np.ndarray]] = deque()

    def is_of(self, env: int, body: int) -> bool:
        """Whether this is the trail of that body."""
        return self._whose == (env, body)

    def add(self, frame: Frame, row: int, body: int) -> None:
        """Continues with a frame's pose, or restarts if the frame does not follow the last one."""
        env, step = int(frame.env_index[row]), frame.env_steps
        length = int(frame.episode_length[row])
        passed = step - self._step
        goes_on = (
            self._whose == (env, body)
            and 0 <= passed <= max(GAP_SECONDS / self._dt, 1)
            and length - self._length == passed
        )
        if goes_on and passed == 0:
            return
        if not goes_on:
            self._points.clear()
        self._whose, self._step, self._length = (env, body), step, length
        if body > 0 and np.isfinite(frame.link_pos[row, body - 1]).all():
            self._points.append((step, frame.link_pos[row, body - 1].astype(float)))
        while self._points and step - self._points[0][0] > TRAIL_SECONDS / self._dt:
            self._points.popleft()

    def ends(self, now: np.ndarray) -> np.ndarray:
        """float [N, 2, 3], m: lines from point to point; the last one ends at `now`, float [3]."""
        points = np.array([point for _, point in self._points] + [now])
        if len(points) < 2:
            return np.zeros((0, 2, 3))
        return np.stack([points[:-1], points[1:]], axis=1)

    def clear(self) -> None:
        self._points.clear()
        self._whose = None


class _Batch:
    """Any number of lines or arrows in one handle."""

    def __init__(
        self, server: viser.ViserServer, name: str, width: float, scale: float, *, arrows: bool
    ):
        """`width` is in m, `scale` in scene units per metre."""
        self._server, self._name, self._arrows = server, name, arrows
        self._width, self._scale = width, scale
        self._room = 0
        self._handle: viser.ArrowsHandle | viser.LineSegmentsHandle | None = None

    def show(self, ends: np.ndarray, rgb: np.ndarray) -> None:
        """Shows lines, float [N, 2, 3] in m, in colours, uint8 [N, 3]."""
        if not len(ends):
            self.hide()
            return
        if len(ends) > self._room or self._handle is None:
            self._room = 1 << int(len(ends) - 1).bit_length()
            self._make()
        assert self._handle is not None
        points = np.broadcast_to(PARKED, (self._room, 2, 3)).copy()
        points[: len(ends)] = ends
        colours = np.zeros((self._room, 3), np.uint8)
        colours[: len(rgb)] = rgb
        self._handle.points = points
        self._handle.colors = colours if self._arrows else np.repeat(colours[:, None], 2, axis=1)
        if not self._handle.visible:
            self._handle.visible = True

    def hide(self) -> None:
        if self._handle is not None and self._handle.visible:
            self._handle.visible = False

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _make(self) -> None:
        self.remove()
        points = np.broadcast_to(PARKED, (self._room, 2, 3)).copy()
        if self._arrows:
            self._handle = self._server.scene.add_arrows(
                self._name,
                points,
                np.zeros((self._room, 3), np.uint8),
                shaft_radius=self._width,
                head_radius=2 * self._width,
                head_length=3 * self._width,
                scale=self._scale,
            )
        else:
            self._handle = self._server.scene.add_line_segments(
                self._name,
                points,
                np.zeros((self._room, 2, 3), np.uint8),
                # The thickness is in scene units, whatever the node's scale.
                thickness=self._width * self._scale,
                scale=self._scale,
            )
