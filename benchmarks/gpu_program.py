"""Counts what a GPU has to do in each step, bare and watched, by compiling for one: none is needed.

python -m benchmarks.gpu_program
python -m benchmarks.gpu_program humanoid/mjx/2048 CartpoleBalance/warp/2048

XLA compiles for an H100 as it would beside one, but for what it chooses by trying. Each operation
of the compiled program is a kernel or a copy, and takes the device a microsecond or two even if
there is little to do. Library calls are Warp's and those of linear algebra. "Watched" is by Brax's
trainers, which keep the whole state; in a loop of one's own XLA must take the call for one with
effects, and keeps loops that it would otherwise undo.

Needs JAX's plugin for CUDA: pip install 'jax[cuda12]', or cuda13.
"""

import functools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_worker import Case, bare_env, wrapped

STEPS = 20
"""Steps in the program."""

TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 device_memory_size: 84978434048
}
"""
"""The card, as XLA describes it (`GpuTargetConfigProto`)."""

FREE = {"get-tuple-element", "tuple", "parameter", "bitcast", "constant", "after-all"}
"""Operations for which the device does nothing."""

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
SIZES |= {"s64": 8, "u64": 8, "f64": 8}
"""Bytes of an element; others have 4."""


def operations(text: str) -> Counter[str]:
    """Returns how often a compiled program executes each operation, and the bytes that its copies
    move, as "bytes". The body of a loop counts as often as it runs, once where XLA does not know.

    Args:
        text: the optimized module as text.
    """
    computations, name, entry = {}, "", ""
    for line in text.splitlines():
        if (begins := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)) is not None:
            name = begins[2]
            entry, computations[name] = name if begins[1] else entry, []
        elif line.startswith(" ") and " = " in line:
            computations[name].append(re.sub(r"/\*.*?\*/", "", line))

    def within(name: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for line in computations[name]:
            shape, operation = _parsed(line.split(" = ", 1)[1])
            if operation in FREE:
                continue
            found[operation] += 1
            if operation == "copy":
                found["bytes"] += _bytes(shape)
            if operation == "custom-call":
                target = re.search(r'custom_call_target="([^"]*)"', line)
                found[f"to {target[1] if target else ''}"] += 1
            for part in re.findall(r"(?:body|to_apply|branch_computations)=\{?%?([\w.\-]+)", line):
                if operation not in ("while", "call", "conditional"):
                    continue
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                for key, count in within(part).items():
                    found[key] += count * int(trips[1] if trips else 1)
        return found

    return within(entry)


def _parsed(text: str) -> tuple[str, str]:
    """Returns the shape and the name of the operation after "=" in a line."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == " ":
            return text[:i], text[i + 1 :].split("(", 1)[0]
    return text, ""


def _bytes(shape: str) -> int:
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return sum(SIZES.get(k, 4) * math.prod(int(n) for n in d.split(",") if n) for k, d in parts)


def compiler() -> Callable[[Any, Case], str]:
    """Returns a function that compiles steps of an environment for the card, and returns the module
    as text. Raises SystemExit if JAX can't."""
    import jax
    from jax._src import compiler as jax_compiler
    from jax.experimental import topologies

    try:
        card = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=TARGET, topology="1x1x1"
        )
    except NotImplementedError as error:
        raise SystemExit(
            f"JAX has no plugin for CUDA: pip install 'jax[cuda12]': {error}"
        ) from None
    there = jax.sharding.SingleDeviceSharding(card.devices[0])
    # What the host would be called with has no place in a program that never runs.
    compile_with = jax_compiler.backend_compile_and_load
    jax_compiler.backend_compile_and_load = lambda *given: compile_with(*given[:-1], [])

    def compiled(env: Any, case: Case) -> str:
        env = wrapped(env, case)
        keys = jax.random.split(jax.random.PRNGKey(0), case.num_envs)
        state = jax.eval_shape(env.reset, keys)
        shape = (STEPS, case.num_envs, env.action_size)
        actions = jax.ShapeDtypeStruct(shape, "float32")

        def run(state: Any, actions: Any) -> Any:
            return jax.lax.scan(lambda s, a: (env.step(s, a), None), state, actions)[0]

        program = jax.jit(run, in_shardings=there, out_shardings=there).trace(state, actions)
        return program.lower(lowering_platforms=("cuda",)).compile().as_text() or ""

    return compiled


def main(
    cases: Annotated[tuple[str, ...], tyro.conf.Positional] = (
        "ant/positional/4096",
        "ant/mjx/2048",
        "Go1JoystickFlatTerrain/warp/8192",
    ),
) -> None:
    """Prints a table.

    Args:
        cases: environment, physics, and number of environments, each.
    """
    import brax_viser.env as watched_env
    from brax_viser import Viewer, VisualizedEnv

    compiled, viewer, emit = compiler(), Viewer(port=0), watched_env.emit
    table = Table(
        "per step", "kernels", "copies", "MB copied", "library calls", "calls of the host"
    )
    for name in cases:
        env, physics, count = name.split("/")
        case = Case(env, physics, int(count), 1, 1)
        bare = bare_env(case)
        for how in ("bare", "watched", "watched, a loop of one's own"):
            watched_env.emit = emit if "own" in how else functools.partial(_kept, emit)
            env = bare if how == "bare" else VisualizedEnv(bare, viewer=viewer)
            found = operations(compiled(env, case))
            ours = sum(n for key, n in found.items() if key.startswith("to xla_buffer_python"))
            kernels = sum(n for key, n in found.items() if key in ("fusion", "reduce", "sort"))
            numbers = (
                kernels,
                found["copy"],
                found["bytes"] / 1e6,
                found["custom-call"] - ours,
                ours,
            )
            row = [f"{n / STEPS:.1f}" for n in numbers]
            table.add_row(f"{name}, {how}", *row)
    Console(width=120).print(table)


def _kept(emit: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Offers a step as under a trainer that keeps the whole state."""
    return emit(*given, **{**named, "state_is_kept": True})


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = ""
    # Nothing is run, so that the libraries of CUDA need not be there.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    tyro.cli(main)
    sys.stdout.flush()
    os._exit(0)  # the viewer's threads must not keep the process
