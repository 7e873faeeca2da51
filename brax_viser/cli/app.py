"""`brax-viser`: trains a Brax environment with a stock trainer, to be watched without a script."""

import contextlib
import copy
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any

import tyro
from etils import epath
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding

from brax_viser.cli.bar import TrainingBar
from brax_viser.cli.ctrl_c import STOPPED, CtrlC
from brax_viser.cli.driving import Driving, play_on
from brax_viser.cli.epochs import num_parts, steps_per_policy, training_step
from brax_viser.cli.export import export
from brax_viser.cli.folding import FoldedOutput
from brax_viser.cli.loading import Refused, check, check_shown, load, refuse
from brax_viser.cli.play import play
from brax_viser.cli.policies import Arguments
from brax_viser.cli.presets import DEFAULT_ENV
from brax_viser.cli.remote import hold, resume, snapshot, status, switch
from brax_viser.cli.replay import replay
from brax_viser.cli.serving import USUAL, Serving
from brax_viser.cli.sizes import told
from brax_viser.host.findings import explained
from brax_viser.runs.folder import DISK_BYTES
from brax_viser.viewer import Viewer

app = tyro.extras.SubcommandApp()
console = Console()
ABOUT = "Shows how robots learn, in a browser. --version prints the version."
SENDING_SECONDS = 0.3
"""s within which pages have received what they were sent last."""

app.command(name="play")(play)
app.command(name="replay")(replay)
for command in (status, snapshot, hold, resume, switch):
    app.command(command)
app.command(name="export")(export)


@app.command(name="train")
def train(
    env: Annotated[str, tyro.conf.Positional] = DEFAULT_ENV,
    *,
    trainer: str = "ppo",
    backend: str | None = None,
    num_envs: int | None = None,
    grid: tuple[int, ...] = (4, 4),
    spacing: tuple[float, ...] | None = None,
    num_timesteps: int | None = None,
    seed: int | None = None,
    domain_randomization: bool = False,
    mode: str = "realtime",
    page: Annotated[Serving, tyro.conf.arg(name="")] = USUAL,
    save_dir: Annotated[str | None, tyro.conf.arg(aliases=("--run-dir",))] = None,
    max_run_bytes: int = DISK_BYTES,
    keep_open: bool = True,
) -> int:
    """Train ENV with one of Brax's own trainers, and watch it in a browser.

    Args:
        env: an environment of Brax or Playground, such as ant or CartpoleBalance; see `envs`.
        trainer: ppo, sac, apg, es or ars.
        backend: mjx, generalized, spring or positional; warp or jax for Playground's environments.
        num_envs: number of environments in the training batch.
        grid: columns and rows (and layers) of drawn environments.
        spacing: metres between them, along x and y (and z); set by the robot's reach if not given.
        num_timesteps: environment steps to train for.
        seed: random seed of the training.
        domain_randomization: randomize the robots as Playground does; only for its environments.
        mode: realtime, latest or every_step.
        page: where the page is served, and who may open it.
        save_dir: folder for the policy, recorded episodes and curves; runs/ENV-TIME if not given.
        max_run_bytes: bytes that its files may take; above that, recordings are thinned evenly.
        keep_open: keep the page open after the training, until Ctrl-C.
    """
    where = save_dir or f"runs/{env}-{datetime.now():%Y%m%d-%H%M%S}"

    def work(run: _Run) -> Any:
        check(trainer, num_timesteps)
        with console.status(f"Loading {env}"):  # the page opens when there are robots to see
            limits = num_envs, num_timesteps
            bare, settings = load(env, trainer, backend, *limits, domain_randomization)
            check_shown(bare, grid, spacing)
        made = functools.partial(Viewer, run_dir=where, max_run_bytes=max_run_bytes)
        try:
            viewer = run.viewer = page.viewer(mode, made)
        except (RuntimeError, ValueError) as error:
            refuse(str(error))
        _note(Arguments(env, backend, trainer), where)
        settings |= {"seed": seed} if seed is not None else {}
        viewer._shared.progress.plays_on = keep_open
        return _train(run, viewer, bare, trainer, settings, grid, spacing)

    ctrl_c, run = CtrlC(), _Run()
    with ctrl_c:
        run.start(work)
        _show_progress(run, ctrl_c)
        return _end(run, ctrl_c, where, keep_open)


@app.command(name="envs")
def list_environments(word: Annotated[str, tyro.conf.Positional] = "") -> int:
    """List the environments that can be trained.

    Args:
        word: list only those whose names contain it.
    """
    from brax_viser.cli.names import matching, unknown

    found = matching(word)
    if not found:
        console.print(f"brax-viser: {unknown(word)}", style="red", markup=False)
        return 2
    for where in dict.fromkeys(found.values()):
        console.print(where, style="bold", highlight=False)
        names = [name for name in found if found[name] == where]
        console.print(Padding(Columns(names, equal=True, padding=(0, 2)), (0, 2)), highlight=False)
    return 0


def _note(arguments: Arguments, where: str) -> None:
    try:
        arguments.write(where)
    except OSError as error:  # such as a full disk: the training matters more
        words = f"{where} cannot be written, so it can't be played later: {error}"
        console.print(words, style="red", markup=False)


class _Run:
    """A training on a separate thread, and its results.

    XLA runs an epoch of minutes in one call that Ctrl-C cannot interrupt; the main thread only
    waits, and can always be interrupted.
    """

    def __init__(self) -> None:
        self.viewer: Viewer | None = None
        # The newest finite parameters that the trainer has handed out, on the host, and the
        # function that makes a policy of them.
        self.params: Any = None
        self.make_policy: Callable[..., Any] | None = None
        self.robots: Callable[..., Driving] | None = None  # makes those that go on afterwards
        self.step = 0  # env steps that they were trained for; 0: the final ones
        self.spoilt = False  # whether the newest parameters have a NaN or an Inf
        self.refusal: str | None = None
        self.error: BaseException | None = None
        self.training = threading.Event()  # the trainer has been called
        # Used instead of the thread's `is_alive`, which is wrong after an interrupted `join` on
        # CPython up to 3.12.
        self.over = threading.Event()

    def hand_out(self, params: Any, step: int = 0) -> None:
        """Keeps the trainer's newest parameters, if they are finite."""
        from brax_viser.cli.training import is_finite

        self.spoilt = not is_finite(params)
        if not self.spoilt:
            self.params, self.step = params, step

    def go_on(self) -> None:
        """Has robots go on after the training, driven by its policy, on a separate thread."""
        assert self.viewer is not None
        known = self.params is not None and self.make_policy is not None
        stream = self.viewer.stats().streams.get("train")
        if not known or self.robots is None or stream is None:
            self.viewer._shared.progress.plays_on = False
            return
        robots = functools.partial(self.robots, most=stream.num_envs)
        args = self.viewer, robots, self.make_policy, self.params
        threading.Thread(target=play_on, args=args, name="playing on", daemon=True).start()

    def start(self, work: "Callable[[_Run], Any]") -> None:
        """Starts the thread; `work` returns the trained parameters."""
        threading.Thread(target=self._keep, args=(work,), name="training", daemon=True).start()

    def _keep(self, work: "Callable[[_Run], Any]") -> None:
        try:
            self.hand_out(work(self))
            if self.viewer is not None:
                self.viewer.training_ended()
        except Refused as refused:
            self.refusal = str(refused)
        # Any error of the trainer must be shown in the page and the terminal, not only in the
        # thread's traceback.
        except BaseException as error:
            self.error = error
            words = explained(error, self.viewer.nonfinite if self.viewer is not None else ())
            if self.viewer is not None:
                self.viewer.training_ended(words)
            traceback.print_exc()
            console.print(f"The training has failed: {words}", style="red", markup=False)
        finally:
            self.over.set()


def _train(
    run: _Run,
    viewer: Viewer,
    bare: Any,
    trainer: str,
    settings: dict[str, Any],
    grid: tuple[int, ...],
    spacing: tuple[float, ...] | None,
) -> Any:
    """Shows the environment, trains to the end, and returns the parameters on the host."""
    import jax

    from brax_viser.cli import training
    from brax_viser.env import VisualizedEnv

    env = VisualizedEnv(bare, grid=grid, spacing=spacing, viewer=viewer)

    # A copy, as domain randomisation leaves tracers in the environment that is trained.
    given = viewer, copy.copy(bare), settings, grid, settings.get("seed", 0)
    run.robots = functools.partial(Driving, *given, spacing=spacing)

    def policy_params_fn(num_steps: int, make_policy: Any, params: Any) -> None:
        params = jax.device_get(params)  # the device's may be donated to the next epoch
        if trainer == "apg":  # its `num_steps` counts evaluations
            num_steps = viewer.progress().num_steps
        viewer.policy_params_fn(num_steps, make_policy, params)
        run.make_policy = make_policy
        if num_steps:  # 0 is the untrained policy
            run.hand_out(params, num_steps)

    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and trainer == "ppo":
        console.print(told(settings, training_step(trainer, settings)), soft_wrap=True)
    parts = num_parts(trainer, settings, on_cpu=on_cpu)
    every = steps_per_policy(trainer, settings, parts)
    console.print(f"The trainer hands out its policy every {every:,} steps.")
    run.training.set()
    return jax.device_get(
        training.run(trainer, env, settings, viewer.progress_fn, policy_params_fn, parts)
    )


def _show_progress(run: _Run, ctrl_c: CtrlC) -> None:
    """Shows a bar in the terminal, from the trainer's start until the training is over."""
    while not (run.training.is_set() or run.over.is_set() or ctrl_c.heard):
        run.over.wait(timeout=0.05)
    if not run.training.is_set():
        return
    assert run.viewer is not None
    with FoldedOutput(_native_line), TrainingBar(console) as bar:
        while not (run.over.is_set() or ctrl_c.heard):
            bar.update(run.viewer.progress(), held=run.viewer.stats().held)
            run.over.wait(timeout=0.2)
        bar.update(run.viewer.progress(), held=False)


def _native_line(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _end(run: _Run, ctrl_c: CtrlC, where: str, keep_open: bool) -> int:
    """Saves the policy and keeps the page open, as far as that makes sense; returns the exit
    code."""
    if run.refusal is not None:
        if run.viewer is not None:
            run.viewer.finish_recording()
        console.print(f"brax-viser: {run.refusal}", style="red", markup=False)
        return 2
    stopped = not run.over.is_set()
    if stopped:
        begun = run.training.is_set()
        console.print(f"Stopped {'in mid-training' if begun else 'before the training began'}.")
    if run.training.is_set():
        _save(where, run)
    if run.viewer is not None:
        replay = f"brax-viser replay {where}" if run.viewer.finish_recording() else ""
        if replay:
            console.print(f"Recorded: {replay}", soft_wrap=True, markup=False)
        if stopped:
            _tell_pages(run.viewer, replay)
    if stopped:
        return ctrl_c.code
    if run.viewer is not None:
        if keep_open and not ctrl_c.heard:
            words = f"The page stays open at {run.viewer.url}  (Ctrl-C ends it)"
            console.print(words, soft_wrap=True)  # an address must stay in one piece
            if run.error is None:
                run.go_on()
            while not ctrl_c.heard:
                time.sleep(0.1)
        run.viewer.close()
    return 1 if run.error is not None else 0


def _tell_pages(viewer: Viewer, replay: str) -> None:
    """Says in open pages why they are about to be disconnected, and where the policy is. `replay`
    is the command that shows the training again; empty if nothing was recorded."""
    saved = viewer.progress().saved
    body = f"The policy is saved to {saved}." if saved else "No policy was saved."
    body += f" It can be seen again: {replay}" if replay else ""
    pages = viewer.server.get_clients().values()
    for page in pages:
        page.add_notification("The training was stopped in the terminal", body)
    if pages:
        time.sleep(SENDING_SECONDS)


def _save(where: str, run: _Run) -> None:
    """Writes the newest finite policy in the format of `brax.io.model.load_params`."""
    if run.spoilt and run.params is None:
        console.print("No policy was saved: those that were handed out have a NaN or an Inf.")
        return
    if run.spoilt:
        words = f"What is saved is the newest finite one, of step {run.step:,}."
        console.print(f"The newest policy has a NaN or an Inf. {words}", style="red")
    if run.params is None:
        console.print("No policy was saved: the trainer had not handed one out yet.")
        return
    from brax.io import model

    path = epath.Path(where)
    path.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed, so that an interruption leaves no partial file.
    model.save_params(str(path / "policy.part"), run.params)
    (path / "policy.part").replace(path / "policy")
    console.print(f"Policy saved to {path / 'policy'}", soft_wrap=True)
    if run.viewer is not None:
        run.viewer.policy_saved(str(path / "policy"))


def main() -> None:
    """Runs the command line, and ends the process."""
    if "--version" in sys.argv[1:]:
        print(f"brax-viser {version('brax_viser')}")
        return
    try:
        code = app.cli(prog="brax-viser", description=ABOUT)
    except SystemExit:  # --help, or invalid arguments
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # as below: Python's own shutdown would print an error
            code = 1
        else:
            raise
    except KeyboardInterrupt:
        code = STOPPED
    except BrokenPipeError:  # the reader has gone, as in `brax-viser train --help | head`
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    # Skips Python's own shutdown: threads that return from XLA or MuJoCo to a finalized interpreter
    # make C++ end the process by `std::terminate`.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)
