"""Keeps robots moving by the trained policy after a training: in a sandbox, or those that a command
steps."""

import viser

from brax_viser.host.selection import Selection
from brax_viser.host.state import SharedState
from brax_viser.page.robots import Robots
from brax_viser.page.steering import Steering


class Finale:
    """The end of a training on the page. Used on viser's loop only."""

    def __init__(
        self,
        shared: SharedState,
        server: viser.ViserServer,
        robots: Robots,
        steering: Steering,
    ):
        """Changes nothing yet.

        Args:
            shared: the shared state, which knows whether the training has ended.
            server: viser's server, with the pages' cameras.
            robots: the robots that are drawn, and the sandbox.
            steering: makes the sandbox.
        """
        self._shared, self._server = shared, server
        self._robots, self._steering = robots, steering
        self._begun = False  # for the training that has ended
        self._version = 0  # of the fork that this has begun
        self._all = False  # whether all robots that play on are drawn

    def update(self) -> None:
        """Begins once a training has ended, a page is open and a policy is known; ends with the
        next training. A sandbox that a person has made is left as it is."""
        session, progress = self._robots.sandbox.session, self._shared.progress
        own = self._begun and session.version == self._version and session.forked is not None
        if progress.view(self._shared.clock()).phase != "done":
            if own:
                self._steering.close_sandbox()
            self._begun = self._all = False
        elif own and session.panel().done:
            session.reset()  # another episode
        elif progress.plays_on:
            self._show_all()
        elif not self._begun and session.trained is not None and self._is_shown():
            self._begun = True
            if session.forked is None:
                self._steering.play_on()
                self._version = session.version
                for client in self._server.get_clients().values():
                    self._robots.sandbox.look_at(client.camera)

    def _show_all(self) -> None:
        """Draws the robots that play on, once they do: there may be fewer of them than in the
        training, so that robots chosen there may not exist any more."""
        rollout = self._shared.rollouts_shown().get("train")
        if self._all or rollout is None or not self._shared.progress.stepped_on:
            return
        self._all = True
        self._steering.set_show("train")
        self._steering.choose(Selection())
        selected = self._shared.selected_env
        if selected is not None and selected >= rollout[1].num_envs:
            self._steering.set_selected_env(None)

    def _is_shown(self) -> bool:
        return self._shared.control.watched and self._robots.first is not None
