"""Takes pictures of what is on screen, for programs: an open page draws them, or else MuJoCo does,
off screen."""

import base64
import io
import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import viser
from PIL import Image

from brax_viser.export.caption import write_line
from brax_viser.export.still import Still, draw_still, draws_together
from brax_viser.host.progress import count
from brax_viser.host.state import SharedState
from brax_viser.page.page import Page
from brax_viser.panel.choice import written
from brax_viser.scene.block import Block

log = logging.getLogger("brax_viser")

SIZE = (1280, 720)
"""Pixels, width and height, of a picture that no page draws; those of pages are as their windows
are, and at most as large as `LARGEST`."""

LARGEST = 1920

FRAME_SECONDS = 10.0
"""s to wait for a new step, where no page is open and nothing was being sent."""

PAGE_SECONDS = 5.0
"""s to wait for a page's picture: browsers draw nothing in a tab that is hidden."""

MOST_PAGES = 2
"""Pages that are asked, one after the other."""

KEPT = 4
"""Pictures that are kept until they are fetched."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is on screen at one moment."""

    still: Still
    facts: dict[str, Any]


class Snapshots:
    """Takes one picture at a time, on a thread of its own."""

    def __init__(
        self,
        shared: SharedState,
        page: Page,
        pages: Callable[[], list[viser.ClientHandle]],
        looking: Callable[[], AbstractContextManager[None]],
    ):
        """Takes none yet.

        Args:
            shared: the shared state.
            page: the page, with the robots on screen.
            pages: returns the open pages that are asked for pictures, the newest first; called on
                any thread.
            looking: within its context steps are sent as if a page were open.
        """
        self._shared, self._page, self._pages, self._looking = shared, page, pages, looking
        self._numbers, self._number = itertools.count(1), 0
        self._thread: threading.Thread | None = None
        # By number: the answer, once it is there. The oldest are dropped.
        self._answers: dict[int, tuple[HTTPStatus, dict[str, Any]] | None] = {}

    def answer(self, number: int | None, status: Callable[[], dict[str, Any]]) -> Any:
        """Returns the status and the content of a response: a picture, or the number to ask for
        while it is being taken. Called on viser's loop.

        Args:
            number: of a picture that was asked for; None asks for one.
            status: returns what the training is doing, to be told with the picture.
        """
        if number is None:
            number = self._begin(status)
        if number not in self._answers:
            return HTTPStatus.NOT_FOUND, {"error": f"there is no picture {number} any more"}
        return self._answers[number] or (HTTPStatus.ACCEPTED, {"id": number})

    def close(self) -> None:
        """Waits for the thread, if a picture is being taken. Called on any thread."""
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def _begin(self, status: Callable[[], dict[str, Any]]) -> int:
        """Begins to take a picture, unless one is being taken. Returns its number."""
        if self._thread is None or not self._thread.is_alive():
            self._number = next(self._numbers)
            self._answers = dict([*self._answers.items(), (self._number, None)][-KEPT:])
            self._thread = threading.Thread(
                target=self._take,
                args=(self._number, status),
                name="brax_viser snapshot",
                daemon=True,
            )
            self._thread.start()
        return self._number

    def _take(self, number: int, status: Callable[[], dict[str, Any]]) -> None:
        """Runs on the thread."""
        try:
            self._answers[number] = HTTPStatus.OK, self._picture(status)
        except (OSError, RuntimeError, ValueError) as error:
            self._answers[number] = HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(error)}
        except Exception as error:  # a fault of ours: the page and the training go on
            log.error("a picture could not be taken", exc_info=error)
            words = f"{type(error).__name__}: {error}"
            self._answers[number] = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": words}

    def _picture(self, status: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        pages = self._pages()[:MOST_PAGES]
        for client in pages:
            seen = self._seen()
            drawn = _drawn_by(client)
            if drawn is not None:
                return _finished(drawn, "page", seen.facts, status())
        with self._looking():
            if not pages:
                self._wait_for_a_step()
            seen = self._seen()
        return _finished(draw_still(seen.still, SIZE), "mujoco", seen.facts, status())

    def _wait_for_a_step(self) -> None:
        """Waits until a step is on screen that came after this call, where one may come."""
        before, deadline = self._frame(), time.monotonic() + FRAME_SECONDS
        self._shared.hold.refresh()  # a held training sends its step again
        while time.monotonic() < deadline and not self._shared.control.closed:
            if not self._may_come() or self._frame() is not before:
                return
            time.sleep(0.02)

    def _may_come(self) -> bool:
        control = self._shared.control
        return control.streaming and not control.replayed and self._shared.progress.under_way

    def _frame(self) -> object:
        """The step on screen; None if there is none."""
        block = self._page.scene.blocks.get(self._page.robots.roles[0])
        return None if block is None else block.frame

    def _seen(self) -> _Seen:
        """Reads what is on screen, on viser's loop.

        Raises:
            RuntimeError: no robot is on screen, or the viewer is being closed.
        """
        found: list[_Seen] = []
        self._page.events.now(lambda: found.extend(self._read()))
        if not found:
            raise RuntimeError("no robot is on screen yet: there is nothing to take a picture of")
        return found[0]

    def _read(self) -> list[_Seen]:
        role = self._page.robots.roles[0]
        block = self._page.scene.blocks.get(role)
        cells = [] if block is None else np.flatnonzero(~block.hidden).tolist()
        if block is None or not cells:
            return []
        frame, selected = block.frame, self._shared.selected_env
        drawn = block.drawn_envs.tolist()
        cells = [cell for cell in cells if cell < len(drawn)]
        envs = [int(drawn[cell]) for cell in cells]
        returns = None if frame is None else [_finite(frame.episode_return[c]) for c in cells]
        facts = {
            "role": role,
            "envs": envs,
            "num_envs": None if frame is None else frame.num_envs,
            "env_steps": None if frame is None else frame.env_steps,
            "returns": returns,
            "selected_env": selected,
        }
        return [_Seen(_still_of(block, cells, selected), facts)]


def _still_of(block: Block, cells: list[int], selected: int | None) -> Still:
    """Copies the robots of some cells; one alone if MuJoCo cannot draw them side by side."""
    model, drawn = block.model.variants.model, block.drawn_envs.tolist()
    grid, count = block.grid, block.count
    origins, bounds = grid.origins(count) + block.offset, grid.bounds(count) + block.offset
    if not draws_together(model):
        cells = [cell for cell in cells if drawn[cell] == selected][:1] or cells[:1]
        # Where it is in its own world.
        origins, bounds = np.zeros((count, 3)), grid.reach
    own = [block.model.variants.of_env.get(drawn[cell], {}) for cell in cells]
    pos, rot = block.pos[cells], block.rot[cells]
    return Still(model, pos, rot, origins[cells], bounds, own)


def _drawn_by(client: viser.ClientHandle) -> np.ndarray | None:
    """Returns a page's picture, uint8 [height, width, 3]; None if it draws none."""
    camera = client.camera
    if not camera.image_height or not camera.image_width:
        return None
    scale = min(1.0, LARGEST / max(camera.image_width, camera.image_height))
    size = round(scale * camera.image_height), round(scale * camera.image_width)
    try:
        drawn = client.get_render(*size, timeout=PAGE_SECONDS)
    except (RuntimeError, TimeoutError) as error:  # it was closed, or is in a hidden tab
        log.info("a page has sent no picture: %s", error)
        return None
    if drawn.shape != (*size, 3):
        log.info("a page has sent a picture of shape %s in place of %s", drawn.shape, (*size, 3))
        return None
    return drawn


def _finished(
    drawn: np.ndarray, by: str, facts: dict[str, Any], status: dict[str, Any]
) -> dict[str, Any]:
    """Returns the training's status with what is seen and the captioned picture, in base64."""
    picture, file = Image.fromarray(drawn[..., :3]), io.BytesIO()
    write_line(picture, *captions(status, facts))
    picture.save(file, "PNG")
    told = {**status, **facts, "drawn_by": by}
    return {**told, "png": base64.b64encode(file.getvalue()).decode()}


def captions(status: dict[str, Any], facts: dict[str, Any]) -> tuple[str, str]:
    """Returns the texts at the left and at the right below a picture.

    Args:
        status: as `page.api.Api.status` has it.
        facts: the environments on screen.
    """
    words = [status["env"]] if status["env"] else []
    words.append("held" if status["held"] else status["phase"])
    words.append(f"step {count(status['num_steps'])}")
    if status["reward"] is not None:
        words.append(f"reward {status['reward']:,.1f}")
    envs = facts["envs"]
    right = f"env {envs[0]}" if len(envs) == 1 else f"envs {written(tuple(envs))}"
    if len(right) > 40:
        right = f"{len(envs)} envs"
    if facts["num_envs"] is not None:
        right += f" of {facts['num_envs']:,}"
    if facts["role"] == "eval":
        right = f"evaluation, {right}"
    return " · ".join(words), right


def _finite(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
