"""What a person asks for in the page, carried out."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import viser

from brax_viser.host.selection import Selection
from brax_viser.host.state import Switchboard
from brax_viser.model.cameras import cameras_of
from brax_viser.page.loop import Publisher
from brax_viser.panel.panel import (
    ALL_NONFINITE,
    DISMISS,
    PAGES,
    STEPS,
    Command,
    parse_indices,
)
from brax_viser.panel.sandbox import BACK
from brax_viser.records.view import ASIDE

if TYPE_CHECKING:  # which makes one of these
    from brax_viser.viewer import Viewer

USUAL_TWINS = 16
"""How many there are once they are switched on."""


class Clerk:
    """Carries commands out, on viser's loop."""

    def __init__(
        self,
        viewer: "Viewer",
        board: Switchboard,
        publisher: Publisher,
        server: viser.ViserServer,
        select: Callable[[Selection], None],
    ):
        """Of one viewer.

        Args:
            viewer: is steered.
            board: of it.
            publisher: of it.
            server: of its pages.
            select: chooses which environments are drawn.
        """
        self._viewer, self._board, self._publisher = viewer, board, publisher
        self._server, self._select = server, select

    def obey(self, command: Command) -> None:
        """Carries out what a person has asked for in a page; on viser's loop."""
        try:
            self._carry_out(*command)
        except ValueError as error:  # what cannot be done is said, and is no fault of ours
            self._publisher.notice = str(error)

    def _carry_out(self, name: str, value: Any) -> None:
        selection, look = self._board.selection, self._publisher.look
        parts, forks = self._publisher.parts, self._publisher.aside.forks
        match name:
            case (
                "streaming"
                | "mode"
                | "speed"
                | "max_overhead"
                | "stretch_seconds"
                | "show"
                | "rank_by"
                | "hold_on_nan"
            ):
                setattr(self._viewer, name, value)
            case "stepped":
                self._board.choose_feed(self._board.looked_into, value)
                self._publisher.hurry()
            case "toggle_streaming":
                self._viewer.streaming = not self._viewer.streaming
            case "hold":
                self._viewer.resume() if self._board.hold.paused else self._viewer.pause()
            case "nonfinite":
                self._look_into_nonfinite(value)
            case "go_on":
                self._go_on(value)
            case "rule":
                self._pick_rule(value)
            case "page":
                turn = 1 if value == PAGES[1] else -1
                self._turn_page(turn)
            case "indices":
                try:
                    self._select(parse_indices(value))
                    self._publisher.complaint = None
                except ValueError as error:
                    self._publisher.complaint = str(error)
            case "sticky":
                self._select(replace(selection, sticky=value))
            case "click":
                self._select_by_click(*value)
            case "follow":
                self._follow(*value)
            case "toggle_follow":
                self._follow(self._publisher.scene.followed is None, value)
            case "overlay":
                overlay, on = value
                others = look.overlays - {overlay}
                overlays = others | {overlay} if on else others
                self._publisher.look = replace(look, overlays=overlays)
            case "others" | "labels" | "colour_by" | "in_cells" | "numbers":
                self._publisher.look = replace(look, **{name: value})
            case "group":
                group, on = value
                others = parts.groups - {group}
                groups = others | {group} if on else others
                self._publisher.show_parts(replace(parts, groups=groups))
            case "sites":
                self._publisher.show_parts(replace(parts, sites=value))
            case "camera":
                self._look_through(*value)
            case "twins_on":
                self._viewer.twins = USUAL_TWINS if value else 0
            case "twins":
                self._viewer.twins = int(value)
            case "twins_anew":
                self._viewer.restart_twins()
            case "twins_beside" | "twins_as_made" | "twins_every" | "twins_limit":
                what = name.removeprefix("twins_")
                value = (int(value) or None) if what == "every" else value
                self._publisher.twins = replace(self._publisher.twins, **{what: value})
            case "trained":
                forks.hand_out(value)
            case "fork":
                self._fork(value)
            case "fork_go":
                forks.reset() if value == BACK else self._viewer.close_sandbox()
            case "fork_push":
                where, client_id = value
                client = self._server.get_clients().get(client_id)
                self._publisher.aside.push(where, client.camera if client else None)
            case "fork_drag":
                self._publisher.aside.show_handle(on=value)
            case "fork_driver" | "fork_speed" | "fork_gravity" | "fork_friction" | "fork_mass":
                forks.set(**{name.removeprefix("fork_"): value})
            case "fork_impulse":
                forks.set(impulse=value)
            case "surroundings":
                self._publisher.scene.surroundings = value
            case "see_all":
                self._follow(False, value)
                if (client := self._server.get_clients().get(value)) is not None:
                    self._publisher.scene.look_through(client.camera, None)
                    self._publisher.scene.look_at_all(client.camera)
            case _:
                raise AssertionError(f"unknown command {name!r}")

    def _select_by_click(self, origin: np.ndarray, direction: np.ndarray) -> None:
        publisher = self._publisher
        picked, body = publisher.scene.pick(origin, direction), None
        if picked is None:
            self._viewer.selected_env = None
        elif picked[0] == ASIDE:
            publisher.aside.forks.point_at(publisher.scene.body_at(picked, origin, direction))
            return
        elif picked[0] == next(iter(publisher.scene.blocks)):
            self._viewer.selected_env = picked[1]
            body = publisher.scene.body_at(picked, origin, direction)
        publisher.look = replace(publisher.look, body=body)

    def _fork(self, client_id: int) -> None:
        self._publisher.fork()
        if (client := self._server.get_clients().get(client_id)) is not None:
            self._publisher.aside.look_at(client.camera)

    def _look_into_nonfinite(self, how: str) -> None:
        told = self._viewer.nonfinite
        if how == DISMISS:
            self._viewer.dismiss_nonfinite()
        elif how == ALL_NONFINITE:
            self._pick_rule("nan")
        elif told:
            if self._board.looked_into != told[0].role:
                self._viewer.show = told[0].role
            self._viewer.selected_env = told[0].env

    def _go_on(self, how: str) -> None:
        if how == STEPS[0]:
            self._viewer.step()
        elif how == STEPS[1]:
            self._viewer.step(10)
        elif self._viewer.selected_env is not None:
            self._viewer.run_to_termination()

    def _pick_rule(self, rule: str) -> None:
        sticky = self._board.selection.sticky
        # Who wants to choose by index begins with those that are drawn.
        drawn = self._publisher.drawn_envs() if rule == "indices" else ()
        self._select(Selection(rule, indices=drawn, sticky=sticky))

    def _turn_page(self, by: int) -> None:
        selection, feed = self._board.selection, self._board.shown.get(self._board.looked_into)
        if selection.rule != "page" or feed is None:
            return
        rollout = feed.rollouts.get(self._board.looked_into)
        if rollout is None:
            return
        pages = selection.num_pages(rollout.num_envs, feed.capacity)
        page = min(selection.page, pages) + by
        self._select(replace(selection, page=(page - 1) % pages + 1))

    def _follow(self, on: bool, client_id: int) -> None:
        scene, env = self._publisher.scene, self._viewer.selected_env
        before = scene.followed
        role = next(iter(scene.blocks), None)
        scene.follow((role, env) if on and env is not None and role is not None else None)
        clients = self._server.get_clients()
        if scene.followed is not None and client_id in clients:
            scene.look_at_followed(clients[client_id].camera)
        elif before is not None and scene.followed is None and client_id in clients:
            scene.look_at_all(clients[client_id].camera)

    def _look_through(self, name: str, client_id: int) -> None:
        client = self._server.get_clients().get(client_id)
        feed = self._publisher.shown_feed()
        if client is None or feed is None:
            return
        eyes = {eye.name: eye for eye in cameras_of(feed.adapter.mj_model)}
        self._publisher.scene.follow(None)
        self._publisher.scene.look_through(client.camera, eyes.get(name))
