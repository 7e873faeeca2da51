"""Commands that only a person in the page gives: by mouse, camera and controls."""

from dataclasses import replace
from typing import Any

import numpy as np
import viser

from brax_viser.host.selection import Selection
from brax_viser.host.state import SharedState
from brax_viser.model.cameras import cameras_of
from brax_viser.page.channels import Channels
from brax_viser.page.exporting import Exporting
from brax_viser.page.robots import Robots
from brax_viser.page.state import PageState
from brax_viser.page.steering import Steering
from brax_viser.panel.choice import check_indices, parse_indices
from brax_viser.records.view import ASIDE

USUAL_TWINS = 16
"""Twins after the page's checkbox is ticked."""


class Commands:
    """Actions of the panel's controls and the mouse that a script does not have. All methods are
    called on viser's loop. `client_id` is the page that the command comes from."""

    def __init__(
        self,
        shared: SharedState,
        state: PageState,
        server: viser.ViserServer,
        robots: Robots,
        channels: Channels,
        steering: Steering,
        exporting: Exporting | None,
    ):
        """Changes nothing yet.

        Args:
            shared: the shared state.
            state: the page's state.
            server: viser's server, with the pages' cameras.
            robots: the robots that are drawn.
            channels: the rollouts that are shown.
            steering: the commands that a script has as well.
            exporting: writes files of episodes; None on a page that may write none.
        """
        self._steering, self._shared, self._state, self._server = steering, shared, state, server
        self._robots, self._channels, self._exporting = robots, channels, exporting
        self._scene, self._sandbox = robots.scene, robots.sandbox

    def export(self, kind: str, client_id: int) -> None:
        """Writes the episodes on screen into a file, which the page downloads; `kind` is one of
        `exporting.KINDS`."""
        if self._exporting is not None:
            self._exporting.begin(kind, client_id)

    def toggle_streaming(self) -> None:
        self._steering.set_streaming(not self._shared.control.streaming)

    def toggle_hold(self) -> None:
        """Holds the training, also on its way to the next fall, or lets it go on."""
        hold = self._shared.hold
        if hold.paused and hold.until_env is None:
            self._steering.resume()
        else:
            self._check_going_on()
            self._steering.pause()

    def step(self, n: int = 1) -> None:
        """Lets a held training go on by `n` env steps; holds a running training."""
        self._check_going_on()
        self._steering.step(n)

    def _check_going_on(self) -> None:
        """Raises ValueError if the training is over."""
        if self._shared.progress.view(self._shared.clock()).over:
            raise ValueError("The training is over: there is nothing to hold or to step")

    def run_to_next_fall(self) -> None:
        """Lets the training go on to the selected robot's next fall."""
        self._check_going_on()
        if self._shared.selected_env is None:
            raise ValueError(
                "Next fall: click on a robot first; the training then runs until that one falls"
            )
        self._steering.run_to_termination()

    def show_stepped(self, label: str) -> None:
        """Shows another one of the environments that the trainer steps, given its label."""
        self._shared.choose_source(self._shared.looked_into, label)
        self._channels.restart()

    def select_nonfinite(self) -> None:
        """Selects the first environment in which a value has turned NaN or Inf."""
        told = self._shared.reading().findings
        if told:
            if self._shared.looked_into != told[0].role:
                self._steering.set_show(told[0].role)
            self._steering.set_selected_env(told[0].env)

    def draw_nonfinite(self) -> None:
        """Draws the environments whose state has a NaN or an Inf."""
        self.pick_rule("nan")

    def pick_rule(self, rule: str) -> None:
        """Chooses the rule that picks the drawn environments, one of `selection.RULES`."""
        sticky = self._shared.selection.sticky
        # The list of indices starts with the environments that are drawn.
        drawn = self._channels.drawn_envs() if rule == "indices" else ()
        agents = len(self._shared.control.agents.names) or 1
        self._steering.choose(Selection(rule, indices=drawn, sticky=sticky, num_agents=agents))

    def draw_most(self, count: int) -> None:
        """Draws at most so many environments, 1 or more, by the rule that is chosen."""
        self._steering.choose(self._shared.selection, most=count)

    def pick_agent(self, name: str) -> None:
        """Draws the environments of one agent, given its name."""
        self._steering.select(("agent", name), sticky=self._shared.selection.sticky)

    def turn_page(self, by: int) -> None:
        """Draws the page `by` pages further, wrapping around, if the rule is "page"."""
        selection, source = self._shared.selection, self._shared.shown.get(self._shared.looked_into)
        num_envs = self._num_envs()
        if selection.rule != "page" or source is None or num_envs is None:
            return
        pages = selection.num_pages(num_envs, source.capacity)
        page = min(selection.page, pages) + by
        self._steering.choose(replace(selection, page=(page - 1) % pages + 1))

    def type_indices(self, text: str) -> None:
        """Draws the environments whose indices were typed. An error is shown beside the field."""
        try:
            selection = parse_indices(text)
            check_indices(selection.indices, self._num_envs())
            self._steering.choose(selection)
            self._state.complaint = None
        except ValueError as error:
            self._state.complaint = str(error)

    def _num_envs(self) -> int | None:
        """Number of environments of the rollout shown; None before its first step."""
        role = self._shared.looked_into
        source = self._shared.shown.get(role)
        rollout = source.rollouts.get(role) if source is not None else None
        return rollout.num_envs if rollout is not None else None

    def keep_these(self, on: bool) -> None:
        """Lets the rule choose only once (on) or again at each stretch (off)."""
        self._steering.choose(replace(self._shared.selection, sticky=on))

    def click(self, origin: np.ndarray, direction: np.ndarray) -> None:
        """Selects the robot and the body that were clicked on; none if the click missed.

        Args:
            origin: float [3], where the ray begins, in viser's frame.
            direction: float [3], of the ray, in viser's frame.
        """
        picked, body = self._scene.pick(origin, direction), None
        if picked is None:
            self._steering.set_selected_env(None)
        elif picked[0] == ASIDE:
            self._sandbox.session.point_at(self._scene.body_at(picked, origin, direction))
            return
        elif picked[0] == next(iter(self._scene.blocks)):
            self._steering.set_selected_env(picked[1])
            body = self._scene.body_at(picked, origin, direction)
        self.look(body=body)

    def look(self, **changes: Any) -> None:
        """Changes some fields of `Look`."""
        self._state.look = replace(self._state.look, **changes)

    def draw_curve(self, what: str) -> None:
        """Draws a plot, one of `curve_lines.choices`, in the tab and in the time bar."""
        self._state.curve = what

    def overlay(self, name: str, on: bool) -> None:
        """Shows or hides one of `overlays.OVERLAYS`."""
        self.look(overlays=_with(self._state.look.overlays, name, on))

    def show_group(self, group: int, on: bool) -> None:
        """Shows or hides the parts of the model that are in a group."""
        parts = self._state.parts
        self._robots.show_parts(replace(parts, groups=_with(parts.groups, group, on)))

    def show_sites(self, on: bool) -> None:
        self._robots.show_parts(replace(self._state.parts, sites=on))

    def surround(self, surroundings: str) -> None:
        """Chooses one of `scene.SURROUNDINGS`."""
        self._scene.surroundings = surroundings

    def follow(self, on: bool, client_id: int) -> None:
        """Keeps the selected robot in the middle of the picture, or stops doing so."""
        before, env = self._scene.followed, self._shared.selected_env
        role = next(iter(self._scene.blocks), None)
        self._scene.follow((role, env) if on and env is not None and role is not None else None)
        camera = self._camera(client_id)
        if self._scene.followed is not None and camera is not None:
            self._scene.look_at_followed(camera)
        elif before is not None and self._scene.followed is None and camera is not None:
            self._scene.look_at_all(camera)

    def toggle_follow(self, client_id: int) -> None:
        self.follow(self._scene.followed is None, client_id)

    def see_all(self, client_id: int) -> None:
        """Moves a page's camera back to its initial view."""
        self.follow(False, client_id)
        if (camera := self._camera(client_id)) is not None:
            self._scene.look_through(camera, None)
            self._scene.look_at_all(camera)

    def view_from(self, view: str, client_id: int) -> None:
        """Moves a page's camera to one of `framing.VIEWS`."""
        self.see_all(client_id)
        if (camera := self._camera(client_id)) is not None:
            self._scene.look_at_all(camera, view)

    def look_through(self, name: str, client_id: int) -> None:
        """Makes a page look through a camera of the model; any other name: the page's own."""
        camera, source = self._camera(client_id), self._channels.shown_source()
        if camera is None or source is None:
            return
        eyes = {eye.name: eye for eye in cameras_of(source.adapter.mj_model)}
        self._scene.follow(None)
        self._scene.look_through(camera, eyes.get(name))

    def switch_twins(self, on: bool) -> None:
        self._steering.set_twins(USUAL_TWINS if on else 0)

    def fork(self, client_id: int) -> None:
        """Forks the selected robot into a sandbox, and moves the page's camera there."""
        self._steering.fork()
        if (camera := self._camera(client_id)) is not None:
            self._sandbox.look_at(camera)

    def reset_sandbox(self) -> None:
        """Puts the sandbox back to the moment of the fork."""
        self._sandbox.session.reset()

    def set_sandbox(self, **changes: Any) -> None:
        """Changes the sandbox's driver, speed, gravity, friction, mass or impulse."""
        self._sandbox.session.set(**changes)

    def push_sandbox(self, where: str, client_id: int) -> None:
        """Pushes the sandbox's robot; `where` is relative to the page's camera."""
        self._sandbox.push(where, self._camera(client_id))

    def drag_sandbox(self, on: bool) -> None:
        """Adds a handle to drag the sandbox's robot by, or removes it."""
        self._sandbox.show_handle(on=on)

    def _camera(self, client_id: int) -> viser.CameraHandle | None:
        client = self._server.get_clients().get(client_id)
        return None if client is None else client.camera


def _with(some: frozenset[Any], one: Any, there: bool) -> frozenset[Any]:
    return some | {one} if there else some - {one}
