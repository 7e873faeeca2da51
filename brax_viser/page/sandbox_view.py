"""Draws the sandbox: its block beside the rollouts' blocks, and the handle to drag its robot by."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import viser

from brax_viser.model.grid import grid_of
from brax_viser.model.robot import Model
from brax_viser.model.shapes import Parts
from brax_viser.model.variants import Variants
from brax_viser.page.reader import Reading
from brax_viser.records.environment import Environment
from brax_viser.records.frame import Detail
from brax_viser.records.grid import Grid
from brax_viser.records.view import ASIDE, View
from brax_viser.sandbox.session import DIRECTIONS, SandboxSession
from brax_viser.scene.drag_handle import DragHandle
from brax_viser.scene.look import Look
from brax_viser.scene.scene import ROOT, Scene


class SandboxView:
    """The sandbox as it is drawn. Used on viser's loop only."""

    def __init__(
        self,
        server: viser.ViserServer,
        scene: Scene,
        wake: Callable[[], None],
        read: Callable[[Reading], None],
    ):
        """Shows nothing yet.

        Args:
            server: viser's server, for the handle.
            scene: the scene in which the sandbox gets a block.
            wake: called on any thread when there is something new to show.
            read: queues the reading of its robot; the scene is arranged again afterwards.
        """
        self.session = SandboxSession(wake)
        self._server, self._scene, self._read = server, scene, read
        # Versions of the fork: the one whose robot was requested, and the one in the scene.
        self._asked, self._there = 0, 0
        self._looking: list[viser.CameraHandle] = []  # cameras to move there once the block exists
        self._handle: DragHandle | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of the sandbox's block, if it is in the scene."""
        there = self.session.forked is not None and self._there == self.session.version
        return (ASIDE,) if there else ()

    def fork(
        self,
        adapter: Environment,
        details: Sequence[Detail],
        own: Mapping[str, np.ndarray],
        num_steps: int,
        *,
        begins: bool = False,
    ) -> None:
        """Forks an environment into a sandbox; see `SandboxSession.fork`."""
        self._let_go()
        self.session.fork(adapter, details, own, num_steps, begins=begins)

    def end(self) -> None:
        """Closes the sandbox."""
        self._let_go()
        self._looking.clear()
        self.session.close()

    def arrange(self, roles: Iterable[str], parts: Parts) -> None:
        """Lays out the scene: the blocks of the rollouts, and that of the sandbox if it exists."""
        forked = self.session.forked
        if forked is not None and self._asked != self.session.version:
            self._asked = self.session.version
            read = functools.partial(_robot_of, *forked, parts)
            self._read(Reading(ASIDE, read, functools.partial(self._has_read, self._asked)))
        self._scene.arrange((*roles, *self.roles))

    def _has_read(self, version: int, robot: tuple[Model, Grid]) -> None:
        if version != self.session.version:  # another robot has been forked since
            return
        self._there = version
        self._scene.show(ASIDE, *robot, 1)

    def remodel(self) -> None:
        """Has the robot read again, because other parts of the model are drawn."""
        self._asked = 0

    def view(self, now: float) -> View | None:
        """Returns what must be drawn again; None if nothing has changed."""
        block = self._scene.blocks.get(ASIDE) if self.roles else None
        if block is None:
            return None
        while self._looking:
            self._scene.look_at_block(self._looking.pop(), ASIDE)
        if block.frame is None:  # the block was built again
            self.session.look_again()
        return self.session.view(now)

    def look(self, usual: Look) -> Look:
        """Returns the sandbox's look: labels, cells and overlays as for the rollouts."""
        told = self.session.panel()
        return Look(
            labels=usual.labels,
            selected_env=told.env,
            in_cells=usual.in_cells,
            overlays=usual.overlays,
            body=told.body,
            rank_by="so_far",
        )

    def title(self) -> str:
        return f"MuJoCo sandbox of env {self.session.panel().env}"

    def look_at(self, camera: viser.CameraHandle) -> None:
        """Moves a page's camera to the sandbox as soon as its robot is there."""
        self._looking.append(camera)

    def push(self, where: str, camera: viser.CameraHandle | None) -> None:
        """Pushes its robot.

        Args:
            where: one of `session.DIRECTIONS`, as seen from the camera; any other is up.
            camera: the page's camera; None: the push is upwards.
        """
        direction = np.array([0.0, 0.0, 1.0])
        if where in DIRECTIONS and camera is not None:
            away = np.asarray(camera.look_at) - np.asarray(camera.position)
            away[2] = 0.0
            away /= max(float(np.linalg.norm(away)), 1e-9)
            right, forward = DIRECTIONS[where]
            direction = right * np.array([away[1], -away[0], 0.0]) + forward * away
        self.session.push(direction)

    def show_handle(self, *, on: bool) -> None:
        """Adds a handle to drag its robot by, or removes it."""
        if not on:
            self._let_go()
            return
        block = self._scene.blocks.get(ASIDE)
        if block is None or self._handle is not None:
            return
        size = block.scale * float(np.ptp(block.grid.reach, axis=0).max())
        self._handle = DragHandle(
            self._server, f"{ROOT}/drag_handle", size, self._dragged, self.session.release
        )
        self.session.set(dragged=True)

    def drawn(self) -> None:
        """Moves the handle to the robot; called after the scene has been drawn."""
        block, env = self._scene.blocks.get(ASIDE), self.session.panel().env
        if self._handle is None or block is None or env is None:
            return
        place = block.place_of(env, self.session.body - 1)
        if place is not None:
            self._handle.follow(block.scale * place)

    def _dragged(self, position: np.ndarray) -> None:
        block, env = self._scene.blocks.get(ASIDE), self.session.panel().env
        origin = block.origin_of(env) if block is not None and env is not None else None
        if block is not None and origin is not None:
            self.session.drag(np.zeros(3), position / block.scale - origin, self.session.body)

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self.session.release()
            self.session.set(dragged=False)


def _robot_of(
    adapter: Environment, own: Mapping[str, np.ndarray], detail: Detail, parts: Parts
) -> tuple[Model, Grid]:
    """Reads the robot of a sandbox, and makes its grid of one cell. Called on any thread."""
    variants = Variants(adapter.mj_model)
    variants.update({detail.env: own})
    grid = grid_of(adapter.mj_model, adapter.init_qpos, (1, 1), None)
    links = adapter.init_links()
    model = Model.of(adapter.mj_model, grid, links, adapter.dt, variants, parts, backend="MuJoCo")
    return model, grid
