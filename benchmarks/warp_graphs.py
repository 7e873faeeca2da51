"""Counts the CUDA graphs that Warp needs in each epoch of PPO, stock and watched, without a GPU.

python -m benchmarks.warp_graphs
python -m benchmarks.warp_graphs CartpoleBalance --num-envs 64

On a GPU, Warp captures a graph at the first call with buffers at certain addresses, replays it as
long as calls come with the same ones, and keeps 32 (`graph_cache_max`). Capturing is slow, so a
program that called it with other addresses at each step would train at a fraction of its speed. XLA
lays out a program's buffers when it compiles; the allocator then chooses, at the beginning of each
epoch, where all of them begin. So calls can be counted on a CPU, on which Warp captures nothing.
Where a GPU's compiler and allocator put an epoch is another matter: `benchmarks.gpu` counts what is
captured there.

Each training has a process of its own, but for "in turn", where both take turns in one. The host is
called as on a GPU, unless `BRAX_VISER_CALLBACK` says otherwise.
"""

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_worker import Case, bare_env, ppo_settings, tell

KEPT = 32
"""Graphs that Warp keeps for each function."""

KINDS = (("stock",), ("watched",), ("stock", "watched"))
"""The trainings of each process."""


@dataclass(frozen=True)
class Settings:
    """Options of the benchmark."""

    env: Annotated[str, tyro.conf.Positional] = "Go1JoystickFlatTerrain"
    """Of Playground."""
    num_envs: int = 16
    """Environments that train."""
    epochs: int = 6
    """Epochs of 20 batched steps each."""


class Calls:
    """Warp's calls, each known by its place in a program and its buffers' addresses, as Warp knows
    them."""

    def __init__(self) -> None:
        self.addresses: list[tuple[int, int]] = []
        self._kept: dict[int, OrderedDict[int, None]] = {}
        ffi = importlib.import_module("warp._src.jax.ffi")
        call = ffi.FfiCallable.ffi_callback
        buffers = ctypes.POINTER(ctypes.POINTER(ffi.XLA_FFI_Buffer))
        number = ctypes.POINTER(ctypes.c_int64)

        def counted(function: Any, frame: Any, *platform: Any) -> Any:
            parts = frame.contents
            if not parts.extension_start:  # else XLA asks for the version
                inputs = ctypes.cast(parts.args.args, buffers)
                outputs = ctypes.cast(parts.rets.rets, buffers)
                place = ctypes.cast(parts.attrs.attrs[0], ctypes.POINTER(ffi.XLA_FFI_Scalar))
                places = (
                    # By which Warp tells the places of a program apart, as it does by the buffers.
                    ctypes.cast(place.contents.value, number).contents.value,
                    *(inputs[i].contents.data for i in function.array_input_indices),
                    *(outputs[i].contents.data for i in function.array_output_indices),
                )
                self.addresses.append((id(function), hash(places)))
            return call(function, frame, *platform)

        ffi.FfiCallable.ffi_callback = counted

    def taken(self) -> dict[str, int]:
        """Returns how many calls there were since the last time, with how many sets of addresses,
        and how many graphs Warp would have captured for them."""
        calls, self.addresses = self.addresses, []
        captured = 0
        for function, places in calls:
            kept = self._kept.setdefault(function, OrderedDict())
            captured += places not in kept
            kept[places] = None
            kept.move_to_end(places)
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return {"calls": len(calls), "sets": len(set(calls)), "captured": captured}


def train(case: Case, name: str, epochs: int, calls: Calls, turns: dict[str, Any]) -> None:
    """Trains, and tells after each epoch what was called in it; then others have their turn."""
    import jax
    from brax.training.agents.ppo import train as ppo

    from brax_viser import Viewer, VisualizedEnv
    from brax_viser.cli.training import placed_as_it_comes_back

    viewer = Viewer(port=0) if name == "watched" else None

    def pass_on() -> None:
        for other, turn in turns.items():
            if other != name:
                turn.release()

    def progress_fn(*_: Any) -> None:
        fault = viewer._shared.fault if viewer is not None else None
        tell(name=name, fault=fault, **calls.taken())
        if len(turns) > 1:
            pass_on()
            turns[name].acquire()

    turns[name].acquire()
    env = bare_env(case)
    if viewer is not None:
        env = VisualizedEnv(env, viewer=viewer)
    length = dict(num_timesteps=case.num_envs * 20 * epochs, num_evals=epochs + 1)
    own: dict[str, Any] = ppo_settings(case) | length
    stock = hasattr(jax, "device_put_replicated")  # else as `brax-viser train` does
    with contextlib.nullcontext() if stock else placed_as_it_comes_back(ppo):
        ppo.train(environment=env, progress_fn=progress_fn, **own)
    if viewer is not None:
        viewer.close()
    pass_on()


def work(case: Case, names: list[str], epochs: int) -> None:
    """What one process does."""
    calls = Calls()
    turns = {name: threading.Semaphore(i == 0) for i, name in enumerate(names)}

    def run(name: str) -> None:
        try:
            train(case, name, epochs, calls, turns)
        except BaseException as error:
            traceback.print_exception(error)
            os._exit(1)  # another one would wait for its turn

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def counted(settings: Settings, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns what a process with these trainings tells, an entry for each epoch.

    Raises:
        RuntimeError: if a training fails, or its viewer does.
    """
    case = Case(settings.env, "warp", settings.num_envs, 1, 1)
    arguments = json.dumps([asdict(case), names, settings.epochs])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.warp_graphs", "--worker", arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env={"BRAX_VISER_CALLBACK": "launch", "JAX_PLATFORMS": "cpu", **os.environ},
    )
    # Warp prints lines of its own.
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    faults = [row["fault"] for row in rows if row["fault"]]
    if done.returncode or faults or len(rows) != settings.epochs * len(names):
        raise RuntimeError("\n".join([*faults, done.stderr]))
    return rows


def main(settings: Settings) -> None:
    console = Console()
    console.print(f"{settings.env}, {settings.num_envs} environments, epochs of 20 steps")
    columns = ("", "calls per step", "sets of addresses per epoch", "graphs captured per epoch")
    table = Table(*columns)
    for names in KINDS:
        rows = counted(settings, names)
        for name in names:
            # The first epoch comes with the reset.
            own = [row for row in rows if row["name"] == name][1:]
            per_step = ", ".join(sorted({f"{row['calls'] / 20:.2f}" for row in own}))
            lists = [", ".join(str(row[key]) for row in own) for key in ("sets", "captured")]
            table.add_row(name if len(names) == 1 else f"{name}, in turn", per_step, *lists)
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        case, names, epochs = json.loads(sys.argv[2])
        work(Case(**case), names, epochs)
    else:
        main(tyro.cli(Settings, description=__doc__))
