"""`brax-viser replay`: shows the episodes of a training that is over, or runs elsewhere."""

import functools
import os
import time
from typing import Annotated

import tyro
from rich.console import Console

from brax_viser.cli.comparing import RunPolicies
from brax_viser.cli.ctrl_c import CtrlC
from brax_viser.cli.policies import Given
from brax_viser.cli.serving import USUAL, Serving
from brax_viser.page.own import RELAYED_BY
from brax_viser.process import end_with
from brax_viser.replay import ReplayViewer
from brax_viser.runs.reader import SavedRun, open_run

LOOK_SECONDS, CURVES_SECONDS = 1.0, 5.0
"""s between two checks for new episodes, and for new points of the curves."""


def replay(
    run_dir: Annotated[str, tyro.conf.Positional],
    env: Annotated[str | None, tyro.conf.Positional] = None,
    *,
    backend: str | None = None,
    trainer: str | None = None,
    page: Annotated[Serving, tyro.conf.arg(name="")] = USUAL,
) -> int:
    """Show the recorded episodes of a training, finished or running, in the page.

    Neither JAX nor a GPU is needed. Episodes of a running training appear as they are recorded.

    Args:
        run_dir: folder in which the training keeps its episodes.
        env: environment of a script's run directory, for comparing its policies; those of
            `brax-viser train` know theirs.
        backend: physics in which policies are compared, if not that of the training.
        trainer: ppo, sac, apg, es or ars, if the run directory does not know.
        page: where the page is served, and who may open it.
    """
    console, ctrl_c = Console(), CtrlC()
    relayed_by = os.environ.get(RELAYED_BY)
    if relayed_by is not None:
        end_with(int(relayed_by))
    with ctrl_c:
        try:
            run = open_run(run_dir)
            policies = RunPolicies(run, Given("replay", env, backend, trainer))
            made = functools.partial(ReplayViewer, run.info, run, policies, run_dir=run.path)
            if relayed_by is not None:
                made = functools.partial(ReplayViewer, run.info, run, relayed=True)
            viewer = page.viewer("realtime", made)
        except (RuntimeError, ValueError) as error:
            console.print(f"brax-viser: {error}", style="red", markup=False)
            return 2
        if relayed_by is None:
            console.print("Ctrl-C ends it.")
        with viewer:
            _follow(run, viewer, ctrl_c)
    return 0


def _follow(run: SavedRun, viewer: ReplayViewer, ctrl_c: CtrlC) -> None:
    """Shows what a running training adds, until Ctrl-C."""
    look = curves = 0.0
    while not ctrl_c.heard:
        now = time.monotonic()
        if now >= look:
            viewer.look()
            look = now + LOOK_SECONDS
        if now >= curves:
            viewer.show_curves(run.curves())
            viewer.show_holds(run.holds())
            curves = now + CURVES_SECONDS
        time.sleep(0.1)
