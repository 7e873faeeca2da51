"""The sandbox in the scene: its block beside the others, and the handle to drag its robot by."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import viser

from brax_viser.forks import DIRECTIONS, Forks
from brax_viser.frame import Detail, Frame
from brax_viser.playback import View
from brax_viser.scene.block import Look, Model
from brax_viser.scene.grid import Grid
from brax_viser.scene.grip import Grip
from brax_viser.scene.scene import ASIDE, ROOT, Scene
from brax_viser.scene.shapes import Parts
from brax_viser.scene.variants import Variants

if TYPE_CHECKING:
    from brax_viser.adapters import Adapter

MOST_DETAILS = 512
"""Steps of the selected environment that are kept, to be replayed."""


class Past:
    """What is known of the selected environment's last steps."""

    def __init__(self) -> None:
        # (batched step, length of its episode, all that is known).
        self._steps: deque[tuple[int, int, Detail]] = deque(maxlen=MOST_DETAILS)

    def add(self, frame: Frame) -> None:
        """A frame has come."""
        if frame.detail is None:
            return
        row = int(np.flatnonzero(frame.env_index == frame.detail.env)[0])
        self._steps.append((frame.env_steps, int(frame.episode_length[row]), frame.detail))

    def until(self, frame: Frame) -> list[Detail]:
        """The consecutive steps of one episode that led to a frame's detail, that one the last."""
        assert frame.detail is not None
        found: list[Detail] = []
        wanted: tuple[int, int] | None = None
        for env_steps, length, detail in reversed(self._steps):
            if env_steps > frame.env_steps or detail.env != frame.detail.env:
                continue
            if wanted is not None and (env_steps, length) != wanted:
                break
            found.append(detail)
            wanted = env_steps - 1, length - 1
        return found[::-1] or [frame.detail]


class Aside:
    """Used on viser's own thread alone."""

    def __init__(self, server: viser.ViserServer, scene: Scene, wake: Callable[[], None]):
        """Shows nothing yet.

        Args:
            server: whose scene it is.
            scene: which the sandbox gets a block of.
            wake: called on any thread when there is something new to show.
        """
        self.forks = Forks(wake)
        self._server, self._scene = server, scene
        self._drawn = 0  # the version of the fork that the scene has
        self._grip: Grip | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the scene's blocks, that is there for a sandbox."""
        return () if self.forks.forked is None else (ASIDE,)

    def fork(
        self, adapter: "Adapter", past: Past, own: Mapping[str, np.ndarray], frame: Frame
    ) -> None:
        """Makes a sandbox of the environment that a frame has the detail of."""
        self._let_go()
        steps = frame.env_steps * frame.num_envs
        self.forks.fork(adapter, past.until(frame), own, steps)

    def end(self) -> None:
        """Takes the sandbox away."""
        self._let_go()
        self.forks.close()

    def arrange(self, roles: Iterable[str], parts: Parts) -> None:
        """Lays out the scene: blocks of rollouts, and that of the sandbox if there is one."""
        forked = self.forks.forked
        if forked is not None and self._drawn != self.forks.version:
            self._drawn = self.forks.version
            adapter, own, detail = forked
            variants = Variants(adapter.mj_model)
            variants.update({detail.env: own})
            grid = Grid.of(adapter.mj_model, adapter.init_qpos, (1, 1), None)
            links = adapter.init_links()
            model = Model.of(
                adapter.mj_model, grid, links, adapter.dt, variants, parts, backend="MuJoCo"
            )
            self._scene.show(ASIDE, model, grid, 1)
        self._scene.arrange((*roles, *self.roles))

    def remodel(self) -> None:
        """Other parts of the model are drawn from now on."""
        self._drawn = 0

    def view(self, now: float) -> View | None:
        """What there is to draw anew."""
        return self.forks.view(now) if self.roles else None

    def look(self, usual: Look) -> Look:
        """How: as a person wants to see the others, but for what is of a rollout."""
        fork = self.forks.panel()
        return Look(
            labels=usual.labels,
            selected_env=fork.env,
            in_cells=usual.in_cells,
            overlays=usual.overlays,
            body=fork.body,
        )

    def title(self) -> str:
        return f"MuJoCo sandbox of env {self.forks.panel().env}"

    def look_at(self, camera: viser.CameraHandle) -> None:
        """Brings a page's camera to the sandbox."""
        self._scene.look_at_block(camera, ASIDE)

    def push(self, where: str, camera: viser.CameraHandle | None) -> None:
        """Pushes its robot.

        Args:
            where: one of `forks.DIRECTIONS`, as seen by the camera, or else up.
            camera: of the page.
        """
        direction = np.array([0.0, 0.0, 1.0])
        if where in DIRECTIONS and camera is not None:
            away = np.asarray(camera.look_at) - np.asarray(camera.position)
            away[2] = 0.0
            away /= max(float(np.linalg.norm(away)), 1e-9)
            right, forward = DIRECTIONS[where]
            direction = right * np.array([away[1], -away[0], 0.0]) + forward * away
        self.forks.push(direction)

    def show_handle(self, *, on: bool) -> None:
        """Gives its robot a handle to drag it by, or takes that away."""
        if not on:
            self._let_go()
            return
        block = self._scene.blocks.get(ASIDE)
        if block is None or self._grip is not None:
            return
        size = block.scale * float(np.ptp(block.grid.reach, axis=0).max())
        self._grip = Grip(self._server, f"{ROOT}/grip", size, self._dragged, self.forks.release)
        self.forks.set(dragged=True)

    def drawn(self) -> None:
        """The scene has been drawn: the handle goes where the robot is."""
        block, env = self._scene.blocks.get(ASIDE), self.forks.panel().env
        if self._grip is None or block is None or env is None:
            return
        place = block.place_of(env, self.forks.body - 1)
        if place is not None:
            self._grip.follow(block.scale * place)

    def _dragged(self, position: np.ndarray) -> None:
        block, env = self._scene.blocks.get(ASIDE), self.forks.panel().env
        origin = block.origin_of(env) if block is not None and env is not None else None
        if block is not None and origin is not None:
            self.forks.drag(np.zeros(3), position / block.scale - origin, self.forks.body)

    def _let_go(self) -> None:
        if self._grip is not None:
            self._grip.remove()
            self._grip = None
            self.forks.release()
            self.forks.set(dragged=False)
