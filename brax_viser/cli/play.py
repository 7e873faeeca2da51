"""`brax-viser play`: lets trained policies drive their robots, in real time."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import tyro
from etils import epath
from rich.console import Console

from brax_viser.cli.comparing import PlayedPolicies
from brax_viser.cli.ctrl_c import CtrlC
from brax_viser.cli.driving import Driving
from brax_viser.cli.loading import Refused, check_shown, load
from brax_viser.cli.policies import (
    Given,
    Policies,
    brax_checkpoints,
    of_checkpoints,
    of_run,
    of_saved,
    trainer_of,
)
from brax_viser.cli.serving import USUAL, Serving
from brax_viser.runs.reader import open_run
from brax_viser.viewer import Viewer

COMMAND = "command"
"""Where Playground's joystick tasks keep their command in `state.info`."""

USUAL_RANGE = (-1.0, 1.0)
"""Of a command's numbers, where the environment's settings do not tell."""

RANGES = ("lin_vel_x", "lin_vel_y", "ang_vel_yaw")
"""Names under which most of Playground's settings have the ranges of two speeds and a rate."""

PRESS = 0.2
"""Share of the largest command by which one press of a key changes it."""

KEYS = (
    (("Faster forwards", "arrowup"), ("Slower, or backwards", "arrowdown")),
    (("More to the left", "Q"), ("More to the right", "E")),
    (("Turn left", "arrowleft"), ("Turn right", "arrowright")),
)
"""Labels and keys, pressed with shift, that change a command of two speeds and a rate."""


def play(
    source: Annotated[str, tyro.conf.Positional],
    env: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    backend: str | None = None,
    trainer: str | None = None,
    grid: tuple[int, ...] = (2, 2),
    seed: int = 0,
    page: Annotated[Serving, tyro.conf.arg(name="")] = USUAL,
) -> int:
    """Let a trained policy drive its robots in the page, in real time.

    Another policy of the training is chosen in a list while it plays, and commands are given by
    sliders where the environment has some. A robot that is forked goes on in MuJoCo.

    Args:
        source: run directory of a training, the policy that `brax-viser train` saved in it, or
            checkpoints of Brax's PPO or SAC.
        env: environment of checkpoints and of a script's run directory; those of `brax-viser train`
            know theirs.
        backend: physics, if not that of the training.
        trainer: ppo, sac, apg, es or ars, if the run directory does not know.
        grid: columns and rows (and layers) of robots.
        seed: of the resets.
        page: where the page is served, and who may open it.
    """
    console, ctrl_c = Console(), CtrlC()
    with ctrl_c:
        try:
            with console.status(f"Loading {source}"):
                bare, settings, policies = _open(source, Given("play", env, backend, trainer))
                policies.params(policies.first)  # do they fit?
                check_shown(bare, grid)
            viewer = page.viewer("every_step")
        except (Refused, RuntimeError, ValueError) as error:
            console.print(f"brax-viser: {error}", style="red", markup=False)
            return 2
        with viewer:
            viewer._shared.progress.plays = True
            playing = Playing(viewer, bare, settings, policies, grid, seed)
            console.print("Ctrl-C ends it.")
            while not ctrl_c.heard:
                playing.step()
    return 0


def _open(source: str, given: Given) -> tuple[Any, Any, Policies]:
    """Returns the environment, the settings of its training, and the policies."""
    path = epath.Path(source).expanduser()
    found = brax_checkpoints(path)
    if found:
        if given.env is None:
            raise ValueError(
                f"{source} does not say of which environment: brax-viser play {source} ENV"
            )
        trainer = trainer_of(found[max(found)]) or "ppo"
        bare, settings = load(given.env, trainer, given.backend, None, None, False)
        return bare, settings, of_checkpoints(found, trainer)
    if path.is_file():
        return of_saved(path, given)
    return of_run(open_run(source), given)


class Playing(Driving):
    """Robots that one of several policies drives, by commands if their task takes some."""

    def __init__(
        self,
        viewer: Viewer,
        bare: Any,
        settings: Any,
        policies: Policies,
        grid: tuple[int, ...],
        seed: int,
    ):
        """Resets the robots.

        Args:
            viewer: shows them.
            bare: the environment.
            settings: of the training, for the length of episodes and the environment's wrappers.
            policies: those to choose from.
            grid: the cells of the robots.
            seed: of their resets.
        """
        super().__init__(viewer, bare, settings, grid, seed)
        self._policies = policies
        self._command = _Command(viewer, bare, self._state.info.get(COMMAND))
        viewer.offer_policies(PlayedPolicies(policies))
        self._choose(policies.first)
        if len(policies.steps) > 1:
            names = {f"step {step:,}": step for step in policies.steps}
            choice = viewer.server.gui.add_dropdown(
                "Policy",
                list(names),
                initial_value=f"step {policies.first:,}",
                hint="Which policy of the training drives the robots",
                order=-1,  # at the top of the panel
            )
            choice.on_update(lambda _: self._choose(names[choice.value]))

    def _choose(self, step: int) -> None:
        try:
            params = self._policies.params(step)
        except (KeyError, ValueError) as error:
            Console().print(f"brax-viser: {error}", style="red", markup=False)
            return
        self.use(self._policies.make_policy, params)
        self._viewer.policy_params_fn(step, self._policies.make_policy, params)

    def _given(self, state: Any) -> Any:
        return self._command.given(state)


class _Command:
    """Sliders for the command that the robots follow, where the environment has one."""

    def __init__(self, viewer: Viewer, bare: Any, command: Any):
        self._given: np.ndarray | None = None
        if command is None or np.ndim(command) != 2:
            return
        assert viewer._page is not None
        session = viewer._page.robots.sandbox.session  # a robot that is forked is steered as well
        ranges = ranges_of(bare, command.shape[-1])
        with viewer.server.gui.add_folder("Command", order=-1):
            follows = viewer.server.gui.add_checkbox(
                "Steer",
                False,
                hint="Gives this command, instead of those that the task draws; a slider or a key "
                "that changes it ticks this",
            )
            sliders = [
                viewer.server.gui.add_slider(name, *given, (given[1] - given[0]) / 100, 0.0)
                for name, given in zip(_names(len(ranges)), ranges, strict=True)
            ]
        if len(sliders) == len(KEYS):
            _add_keys(viewer, follows, sliders)

        def change(_: object) -> None:
            # A number that is typed beyond a slider's limits stays until its box is left.
            values = np.array([np.clip(s.value, s.min, s.max) for s in sliders], np.float32)
            self._given = values if follows.value else None
            session.steered = {COMMAND: values} if follows.value else {}

        def move(_: object) -> None:
            if follows.value:
                change(_)
            else:
                follows.value = True  # which calls `change`

        follows.on_update(change)
        for slider in sliders:
            slider.on_update(move)

    def given(self, state: Any) -> Any:
        """Returns the state with the command that was set, if any."""
        if self._given is None:
            return state
        command = np.broadcast_to(self._given, state.info[COMMAND].shape)
        return state.replace(info={**state.info, COMMAND: command.copy()})


def _add_keys(viewer: Viewer, follows: Any, sliders: Sequence[Any]) -> None:
    """Adds keys that steer: each press changes the command by a share of its limit."""

    def add(label: str, key: Any, press: Callable[[], object]) -> None:
        command = viewer.server.gui.add_command(label, hotkey=key, modifier="shift")

        @command.on_trigger
        def _(_: object) -> None:
            press()
            follows.value = True

    def turned(slider: Any, share: float) -> None:
        value = slider.value + share * max(slider.max, -slider.min)
        slider.value = float(np.clip(round(value, 6), slider.min, slider.max))

    def stop() -> None:
        for slider in sliders:
            slider.value = 0.0

    for slider, ((more, key), (less, other)) in zip(sliders, KEYS, strict=True):
        add(more, key, functools.partial(turned, slider, PRESS))
        add(less, other, functools.partial(turned, slider, -PRESS))
    add("Stand still", "space", stop)


def _names(count: int) -> list[str]:
    """Returns names of a command's numbers: joystick tasks have two speeds and a rate."""
    if count == 3:
        return ["Forward, m/s", "Left, m/s", "Turn, rad/s"]
    return [f"Command {i + 1}" for i in range(count)]


def ranges_of(bare: Any, count: int) -> list[tuple[float, float]]:
    """Returns the lowest and the highest value of each number of a command, which hold 0, from the
    settings of a Playground environment where they tell.

    Args:
        bare: the environment.
        count: numbers of its command.
    """
    settings = dict(getattr(bare, "_config", {}))
    settings |= dict(settings.get("command_config", {}))
    if count == len(RANGES) and settings.keys() >= set(RANGES):
        ends = [settings[name] for name in RANGES]
    elif len(settings.get("a", ())) == count:
        ends = [(-a, a) for a in settings["a"]]
    elif len(settings.get("min", ())) == len(settings.get("max", ())) == count:
        ends = list(zip(settings["min"], settings["max"], strict=True))
    else:
        ends = [USUAL_RANGE] * count
    held = [(min(float(low), 0.0), max(float(high), 0.0)) for low, high in ends]
    return [both if both[1] > both[0] else USUAL_RANGE for both in held]
