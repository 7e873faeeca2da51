"""`brax-viser play`: lets trained policies drive their robots, in real time."""

import functools
import time
from typing import Annotated, Any

import numpy as np
import tyro
from etils import epath
from rich.console import Console

from brax_viser.cli.ctrl_c import CtrlC
from brax_viser.cli.loading import Refused, load
from brax_viser.cli.policies import Arguments, Policies, brax_checkpoints, of_checkpoints, of_run
from brax_viser.cli.serving import USUAL, Serving
from brax_viser.runs.reader import open_run
from brax_viser.viewer import Viewer

COMMAND = "command"
"""Where Playground's joystick tasks keep their command in `state.info`."""

COMMAND_LIMIT = 1.0
"""Commands go from minus this to this, where the environment's settings do not tell."""


def play(
    source: Annotated[str, tyro.conf.Positional],
    env: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    backend: str | None = None,
    grid: tuple[int, ...] = (2, 2),
    seed: int = 0,
    page: Annotated[Serving, tyro.conf.arg(name="")] = USUAL,
) -> int:
    """Let a trained policy drive its robots in the page, in real time.

    Another policy of the training is chosen in a list while it plays, and commands are given by
    sliders where the environment has some. A robot that is forked goes on in MuJoCo.

    Args:
        source: run directory of `brax-viser train`, or checkpoints of Brax's PPO.
        env: environment of checkpoints; run directories know theirs.
        backend: physics, if not that of the training.
        grid: columns and rows (and layers) of robots.
        seed: of the resets.
        page: where the page is served, and who may open it.
    """
    console, ctrl_c = Console(), CtrlC()
    with ctrl_c:
        try:
            with console.status(f"Loading {source}"):
                bare, settings, policies = _open(source, env, backend)
            viewer = page.viewer("every_step")
        except (Refused, RuntimeError, ValueError) as error:
            console.print(f"brax-viser: {error}", style="red", markup=False)
            return 2
        with viewer:
            playing = Playing(viewer, bare, settings, policies, grid, seed)
            console.print("Ctrl-C ends it.")
            while not ctrl_c.heard:
                playing.step()
    return 0


def _open(source: str, name: str | None, backend: str | None) -> tuple[Any, Any, Policies]:
    """Returns the environment, the settings of its training, and the policies."""
    path = epath.Path(source).expanduser()
    found = brax_checkpoints(path)
    if found:
        if name is None:
            raise ValueError(
                f"{source} does not say of which environment: brax-viser play {source} ENV"
            )
        bare, settings = load(name, "ppo", backend, None, None, False)
        return bare, settings, of_checkpoints(found)
    run = open_run(source)
    told = Arguments.read(path)
    bare, settings = load(
        name or told.env, told.trainer, backend or told.backend, None, None, False
    )
    return bare, settings, of_run(run, told.trainer, bare, settings)


class Playing:
    """Robots that a policy drives."""

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
            policies: those to choose from; the newest plays first.
            grid: the cells of the robots.
            seed: of their resets.
        """
        import jax
        from brax.envs import training

        from brax_viser.env import VisualizedEnv

        wrapped = VisualizedEnv(bare, grid=grid, viewer=viewer)
        wrap = settings.get("wrap_env_fn") or training.wrap
        self._env = wrap(
            wrapped,
            episode_length=settings.get("episode_length", 1000),
            action_repeat=settings.get("action_repeat", 1),
        )
        self._viewer, self._policies = viewer, policies
        adapter = wrapped._adapter
        assert adapter is not None
        self._dt = adapter.dt * settings.get("action_repeat", 1)
        keys = jax.random.split(jax.random.PRNGKey(seed), int(np.prod(grid)))
        self._state = jax.jit(self._env.reset)(keys)
        self._key = jax.random.PRNGKey(seed + 1)
        self._due = time.monotonic()
        self._command = _Command(viewer, bare, self._state.info.get(COMMAND))
        self._choose(policies.steps[-1])
        if len(policies.steps) > 1:
            names = {f"step {step:,}": step for step in policies.steps}
            choice = viewer.server.gui.add_dropdown(
                "Policy",
                list(names),
                initial_value=list(names)[-1],
                hint="Which policy of the training drives the robots",
                order=-1,  # at the top of the panel
            )
            choice.on_update(lambda _: self._choose(names[choice.value]))

    def _choose(self, step: int) -> None:
        try:
            self._params = self._policies.params(step)
        except (KeyError, ValueError) as error:
            Console().print(f"brax-viser: {error}", style="red", markup=False)
            return
        self._viewer.policy_params_fn(step, self._policies.make_policy, self._params)

    def step(self) -> None:
        """Takes a step, and waits until the next one is due at the page's speed."""
        import jax

        self._key, key = jax.random.split(self._key)
        state = self._command.given(self._state)
        self._state = jax.block_until_ready(self._stepped(self._params, state, key))
        now = time.monotonic()
        self._due = max(self._due + self._dt / self._viewer.speed, now - self._dt)
        time.sleep(max(self._due - now, 0.0))

    @functools.cached_property
    def _stepped(self) -> Any:
        import jax

        def stepped(params: Any, state: Any, key: Any) -> Any:
            policy = self._policies.make_policy(params, deterministic=True)
            return self._env.step(state, policy(state.obs, key)[0])

        return jax.jit(stepped)


class _Command:
    """Sliders for the command that the robots follow, where the environment has one."""

    def __init__(self, viewer: Viewer, bare: Any, command: Any):
        self._given: np.ndarray | None = None
        if command is None or np.ndim(command) != 2:
            return
        limits = _limits(bare, command.shape[-1])
        with viewer.server.gui.add_folder("Command", order=-1):
            follows = viewer.server.gui.add_checkbox(
                "Steer", False, hint="Gives this command, instead of those that the task draws"
            )
            sliders = [
                viewer.server.gui.add_slider(name, -limit, limit, limit / 50, 0.0)
                for name, limit in zip(_names(len(limits)), limits, strict=True)
            ]

        def change(_: object) -> None:
            values = np.array([slider.value for slider in sliders], np.float32)
            self._given = values if follows.value else None

        for control in (follows, *sliders):
            control.on_update(change)

    def given(self, state: Any) -> Any:
        """Returns the state with the command that was set, if any."""
        if self._given is None:
            return state
        command = np.broadcast_to(self._given, state.info[COMMAND].shape)
        return state.replace(info={**state.info, COMMAND: command.copy()})


def _names(count: int) -> list[str]:
    """Returns names of a command's numbers: joystick tasks have two speeds and a rate."""
    if count == 3:
        return ["Forward, m/s", "Left, m/s", "Turn, rad/s"]
    return [f"Command {i + 1}" for i in range(count)]


def _limits(bare: Any, count: int) -> list[float]:
    """Returns the largest command of each number, from Playground's settings where they tell."""
    config = getattr(bare, "_config", {})
    amplitudes = dict(dict(config).get("command_config", {})).get("a", ())
    if len(amplitudes) == count:
        return [float(a) for a in amplitudes]
    return [COMMAND_LIMIT] * count
