"""`brax-viser`: train a Brax environment with a stock trainer and watch it, no script needed."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, NoReturn

import tyro
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from brax_viser.presets import DEFAULT_ENV, ppo_preset, trainer_settings
from brax_viser.progress import ProgressView, count, duration
from brax_viser.viewer import Viewer

app = tyro.extras.SubcommandApp()
console = Console()

PHASES = {
    "waiting": "starting",
    "compiling": "compiling",
    "training": "training",
    "evaluating": "evaluating",
    "quiet": "updating",
    "done": "finished",
    "failed": "failed",
}


@app.command(name="train")
def train(
    env: Annotated[str, tyro.conf.Positional] = DEFAULT_ENV,
    *,
    trainer: str = "ppo",
    backend: str | None = None,
    num_envs: int | None = None,
    grid: tuple[int, ...] = (8, 8),
    spacing: tuple[float, ...] | None = None,
    num_timesteps: int | None = None,
    seed: int | None = None,
    domain_randomization: bool = False,
    mode: str = "realtime",
    host: str = "127.0.0.1",
    port: int = 8000,
    save_dir: str | None = None,
    keep_open: bool = True,
) -> None:
    """Train ENV with one of Brax's own trainers, and watch it in a browser.

    Args:
        env: name of a registered Brax environment, such as ant, humanoid or inverted_pendulum, or
            of one of MuJoCo Playground's, such as CartpoleBalance or Go1JoystickFlatTerrain.
        trainer: ppo, sac, apg, es or ars.
        backend: mjx, generalized, spring or positional, for Playground's warp or jax; what suits
            the environment if not given.
        num_envs: environments in the training batch.
        grid: columns and rows (and layers) of drawn environments.
        spacing: metres between them, along x and y (and z); from the robot's reach if not given.
        num_timesteps: environment steps to train for.
        seed: of the training.
        domain_randomization: vary the robots as Playground does, where it does.
        mode: realtime, latest or every_step.
        host: address that the page is served on. There is no password.
        port: of the page; the next free one if it is taken.
        save_dir: where the policy goes; runs/ENV-TIME if not given.
        keep_open: keep the page open when the training is over, until Ctrl-C.
    """
    # The page first: it is up before the training's own imports and compilations.
    try:
        viewer = Viewer(host=host, port=port, mode=mode)
    except ValueError as error:
        _refuse(str(error))
    with viewer:
        outcome = _Outcome()
        bare, settings = _load(env, trainer, backend, num_envs, num_timesteps, domain_randomization)
        if seed is not None:
            settings["seed"] = seed
        run = _prepare(viewer, bare, trainer, settings, grid, spacing)
        # On a thread of its own: XLA runs a training epoch of minutes in one call, which Ctrl-C
        # cannot reach, while the main thread can always be interrupted.
        worker = threading.Thread(target=outcome.keep, args=(run, viewer), daemon=True)
        worker.start()
        where = save_dir or f"runs/{env}-{datetime.now():%Y%m%d-%H%M%S}"
        try:
            _show_progress(viewer, worker)
            _save(where, outcome)
            if keep_open:
                console.print(f"The page stays open at {viewer.url}  (Ctrl-C ends it)")
                while True:
                    time.sleep(3600)
        except KeyboardInterrupt:
            if worker.is_alive():
                console.print("Stopped in mid-training.")
                _save(where, outcome)
                _exit_now(viewer, 130)
    if outcome.error is not None:
        sys.exit(1)


class _Outcome:
    """What a training on another thread has come to."""

    def __init__(self) -> None:
        self.params: Any = None  # the newest that the trainer has handed out
        self.error: BaseException | None = None

    def keep(self, run: Callable[["_Outcome"], None], viewer: Viewer) -> None:
        try:
            run(self)
            viewer.training_ended()
        # Whatever the trainer raises belongs on the page and in the terminal, not in a thread's
        # unread traceback.
        except Exception as error:
            self.error = error
            viewer.training_ended(f"{type(error).__name__}: {error}")
            traceback.print_exc()


def _load(
    name: str,
    trainer: str,
    backend: str | None,
    num_envs: int | None,
    num_timesteps: int | None,
    randomise: bool,
) -> tuple[Any, dict[str, Any]]:
    """The environment of that name, and the trainer's settings for it."""
    from brax import envs

    from brax_viser import playground

    ppo = None
    try:
        if name in envs._envs:
            bare = envs.get_environment(name, backend=backend or ppo_preset(name).backend)
            if randomise:
                raise ValueError(f"{name} has no domain randomisation: only Playground's envs do")
        elif (registry := playground.registry()) is None:
            _refuse(
                f"no environment {name!r}; registered: {', '.join(sorted(envs._envs))}. For "
                f"MuJoCo Playground's: {playground.HOW_TO_INSTALL}"
            )
        elif name not in registry.ALL_ENVS:
            known = [*sorted(envs._envs), *registry.ALL_ENVS]
            _refuse(f"no environment {name!r}; registered: {', '.join(known)}")
        else:
            ppo = playground.ppo_settings(name, backend, randomise=randomise)
            bare = playground.load(name, backend)
        return bare, trainer_settings(
            trainer, name, num_envs=num_envs, num_timesteps=num_timesteps, ppo=ppo
        )
    except (TypeError, ValueError) as error:
        _refuse(str(error))


def _prepare(
    viewer: Viewer,
    bare: Any,
    trainer: str,
    settings: dict[str, Any],
    grid: tuple[int, ...],
    spacing: tuple[float, ...] | None,
) -> Callable[[_Outcome], None]:
    """Shows the environment, and returns the training to run."""
    from brax_viser.env import VisualizedEnv

    try:
        env = VisualizedEnv(bare, grid=grid, spacing=spacing, viewer=viewer)
    except (TypeError, ValueError) as error:
        _refuse(str(error))

    def run(outcome: _Outcome) -> None:
        from brax_viser import training

        def policy_params_fn(num_steps: int, make_policy: Any, params: Any) -> None:
            viewer.policy_params_fn(num_steps, make_policy, params)
            if num_steps:  # the first call has the untrained policy
                outcome.params = params

        outcome.params = training.run(trainer, env, settings, viewer.progress_fn, policy_params_fn)

    return run


def _show_progress(viewer: Viewer, worker: threading.Thread) -> None:
    """A bar in the terminal, until the training is over."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=1.0, words="")
        while worker.is_alive():
            _update(bar, task, viewer.progress())
            worker.join(timeout=0.2)
        _update(bar, task, viewer.progress())


def _update(bar: Progress, task: Any, view: ProgressView) -> None:
    words = [f"{count(view.env_steps)} steps", f"{count(view.steps_per_second)} steps/s"]
    if view.remaining is not None and view.phase != "done":
        words.append(f"{duration(view.remaining)} left")
    if view.reward:
        words.append(view.reward)
    fraction = 1.0 if view.phase == "done" else view.fraction or 0.0
    bar.update(task, description=PHASES[view.phase], completed=fraction, words=" · ".join(words))


def _save(where: str, outcome: _Outcome) -> None:
    """Writes the newest policy, as `brax.io.model.load_params` reads it."""
    if outcome.params is None:
        console.print("No policy was saved: the trainer had not handed one out yet.")
        return
    from brax.io import model

    path = epath.Path(where)
    path.mkdir(parents=True, exist_ok=True)
    model.save_params(str(path / "policy"), outcome.params)
    console.print(f"Policy saved to {path / 'policy'}", soft_wrap=True)


def _refuse(message: str) -> NoReturn:
    console.print(f"brax-viser: {message}", style="red", markup=False)
    sys.exit(2)


def _exit_now(viewer: Viewer, code: int) -> NoReturn:
    """Leaves without waiting for XLA, which cannot be told to stop."""
    viewer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """The console script."""
    app.cli(prog="brax-viser")
