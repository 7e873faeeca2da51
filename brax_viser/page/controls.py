"""The part of `Viewer` with which a script steers the page."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from brax_viser.host.findings import Finding
from brax_viser.page.keeping import Keeping
from brax_viser.page.shown import ShownFrame
from brax_viser.page.steering import Steering
from brax_viser.twins.drift import Drift
from brax_viser.twins.worker import TwinSettings

if TYPE_CHECKING:  # the first imports JAX, which the page need not wait for
    import numpy as np
    import viser

    from brax_viser.sandbox.runner import SandboxThread

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[[ShownFrame], object])


class Controls(Keeping):
    """The public face of `Steering`. A value outside its limits raises `ValueError`."""

    @property
    def server(self) -> "viser.ViserServer":
        """viser's server of the page, for controls, plots and scene nodes of your own.

        Its scene is not in metres: see `ShownFrame.scale`.

        Raises:
            RuntimeError: in processes other than the first, which serve no page.
        """
        if self._page is None:
            raise RuntimeError(
                "this process serves no page: the first process of the training does"
            )
        return self._page.server

    def on_frame(self, function: F) -> F:
        """Calls a function with each picture that is drawn of a rollout: at most `fps` times a
        second, and less often while nothing moves. Can be used as a decorator.

        The function gets a `ShownFrame`. It is called on viser's event loop, which draws the page:
        it should take less than a millisecond. The scene nodes that it moves do so together with
        the robots. If it raises an exception, it is not called again, and the page says so. While
        recorded episodes or a comparison of policies are shown, it is not called, and in other
        processes than the first it never is.

        Returns:
            The function.
        """
        if self._page is not None:
            self._page.functions.add(function)
        return function

    def remove_on_frame(self, function: Callable[[ShownFrame], object]) -> None:
        """Stops calling a function of `on_frame`."""
        if self._page is not None:
            self._page.functions.remove(function)

    @property
    def streaming(self) -> bool:
        """The page's switch: while it is off, no state leaves the device."""
        return self._shared.control.streaming

    @streaming.setter
    def streaming(self, on: bool) -> None:
        self._steer(Steering.set_streaming, on)

    @property
    def mode(self) -> str:
        """ "realtime", "latest" or "every_step"."""
        return self._shared.control.mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._steer(Steering.set_mode, mode)

    @property
    def max_overhead(self) -> float:
        """Share of the training's wall-clock that "realtime" and "latest" may cost."""
        return self._shared.control.max_overhead

    @max_overhead.setter
    def max_overhead(self, share: float) -> None:
        self._steer(Steering.set_max_overhead, share)

    @property
    def speed(self) -> float:
        """Playback in "realtime", robot seconds per second: 0.1 to 4."""
        return self._shared.control.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._steer(Steering.set_speed, speed)

    @property
    def stretch_seconds(self) -> float:
        """Length of one stretch of "realtime", in s of the robot's time: 0.5 to 30."""
        return self._shared.control.stretch_seconds

    @stretch_seconds.setter
    def stretch_seconds(self, seconds: float) -> None:
        self._steer(Steering.set_stretch_seconds, seconds)

    @property
    def show(self) -> str:
        """The rollouts that are shown: "train", "eval", or "both" side by side."""
        return self._shared.control.show

    @show.setter
    def show(self, show: str) -> None:
        self._steer(Steering.set_show, show)

    def select(self, what: "str | Sequence[object] | np.ndarray", *, sticky: bool = False) -> None:
        """Chooses the environments to draw, at most one per cell. Nothing is recompiled.

        Args:
            what: "first"; ("page", n), counted from 1; a list of indices, which count over all
                devices; "random"; "best" or "worst" (by the return that `rank_by` names);
                "terminated" (most recently), each in the pose in which it fell, after the steps
                that led there if these were streamed; or "nan" (any NaN or Inf). The last four
                are chosen among all environments, on the device. Or "agents", as many of each of
                `agents`, or ("agent", name or number), the environments of one.
            sticky: keep those that a rule has chosen, instead of choosing again at each stretch.

        Raises:
            ValueError: none of these, an index below 0, one given twice, or an unknown agent.
        """
        self._steer(Steering.select, what, sticky=sticky)

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents whose environments form one batch, as where a `vmap` runs a training
        once per seed: equal parts of the batch in this order. Labels then say the agent, and
        `select` takes it. Empty: all environments are one agent's."""
        return self._shared.control.agents.names

    @agents.setter
    def agents(self, names: Sequence[object]) -> None:
        self._steer(Steering.set_agents, names)

    @property
    def rank_by(self) -> str:
        """The return that "best" and "worst" are ranked by, and that labels and colours show:
        "last_episode", of each environment's last finished episode (environments without one rank
        behind the others, by reward per second); "so_far", of the current episode; or "per_second",
        the current episode's return divided by its time."""
        return self._shared.selection.rank_by

    @rank_by.setter
    def rank_by(self, measure: str) -> None:
        self._steer(Steering.set_rank_by, measure)

    @property
    def selected_env(self) -> int | None:
        """The environment that is marked, can be followed and is stepped to its termination. It is
        always drawn. None: no environment is selected."""
        return self._shared.selected_env

    @selected_env.setter
    def selected_env(self, env: int | None) -> None:
        self._steer(Steering.set_selected_env, env)

    @property
    def twins(self) -> int:
        """How many of the drawn robots have a twin, a MuJoCo simulation that is given the same
        controls: 0 to 256, 0 at first. The selected robot gets the first one. Mode "latest" has no
        twins, because it has no consecutive steps."""
        return self._shared.control.twins

    @twins.setter
    def twins(self, count: int) -> None:
        self._steer(Steering.set_twins, count)

    @property
    def twin_settings(self) -> TwinSettings:
        """How twins are stepped, compared and drawn: a frozen dataclass, which you replace."""
        return self._page.steering.twin_settings if self._page else TwinSettings()

    @twin_settings.setter
    def twin_settings(self, settings: TwinSettings) -> None:
        self._steer(Steering.set_twin_settings, settings)

    def restart_twins(self) -> None:
        """Restarts all twins at the next step, each from the state of its robot."""
        self._steer(Steering.restart_twins)

    def fork(self) -> None:
        """Copies the selected environment, as it is on screen, into a MuJoCo sandbox beside the
        others. It replaces the last sandbox, and takes some seconds to make; see `sandbox`.

        Raises:
            ValueError: no environment is selected, or its details are not known yet.
        """
        self._steer(Steering.fork)

    @property
    def sandbox(self) -> "SandboxThread | None":
        """The thread that runs the sandbox, if there is one. Its method `do` pushes the robot,
        changes gravity and so on: see `sandbox.simulation.Sandbox`."""
        return self._page.robots.sandbox.session.thread if self._page else None

    def close_sandbox(self) -> None:
        """Closes the sandbox, if there is one."""
        self._steer(Steering.close_sandbox)

    def drift(self) -> Drift | None:
        """How far the twins are from their robots, at the step on screen; None if no robot has a
        twin, and in other processes than the first."""
        return self._page.channels.drift() if self._page else None

    def pause(self) -> None:
        """Holds the *training* at its next step, until `resume`. The page stays live."""
        self._steer(Steering.pause)

    def resume(self) -> None:
        """Lets a held training go on."""
        self._steer(Steering.resume)

    def step(self, n: int = 1) -> None:
        """Lets a held training go on by `n` env steps; holds a training that runs.

        Returns at once: `stats().held` says whether the training has stopped.

        Raises:
            ValueError: `n` is below 1.
        """
        self._steer(Steering.step, n)

    def run_to_termination(self, env: int | None = None) -> None:
        """Lets the training go on until an environment's episode ends in a termination, and holds
        it there. Running out of time is not a termination. Returns at once, as `step` does.

        Args:
            env: index of the environment, which becomes selected. None: the selected one.

        Raises:
            ValueError: no environment is selected, or `env` is not an index.
        """
        self._steer(Steering.run_to_termination, env)

    @property
    def hold_on_nan(self) -> bool:
        """Whether the training is held at the step at which an environment's reward, link poses,
        velocities or observations turn NaN or Inf, in training or evaluation, with that
        environment selected. It holds once; set it again after `resume` to hold at the next one.
        An Inf that an observation has by design holds the training as well.

        Everything is then checked at each step instead of some times a second. In a running
        training this begins within 0.1 s."""
        return self._shared.control.hold_on_nan

    @hold_on_nan.setter
    def hold_on_nan(self, on: bool) -> None:
        self._steer(Steering.set_hold_on_nan, on)

    @property
    def nonfinite(self) -> tuple[Finding, ...]:
        """The first NaN or Inf of each kind since the training began, in any environment, in
        training and in evaluation. `str` makes a sentence of one. A reward is found at the very
        step, everything else within 0.1 s, streaming or not; see `hold_on_nan`."""
        with self._shared.lock:
            return self._shared.findings.told

    def dismiss_nonfinite(self) -> None:
        """Takes the findings of `nonfinite` off the page. New ones will be reported."""
        self._steer(Steering.dismiss_nonfinite)
