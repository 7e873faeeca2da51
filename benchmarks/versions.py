"""Tests which versions of jax and Python the package works with, each in its own environment.

python -m benchmarks.versions
python -m benchmarks.versions --cells 3.12:0.11 3.13:0.12 --keep venvs --json versions.json

Each cell makes a virtual environment and installs the package as `docs/compatibility.md` says: as
it comes, then the other jax over it. Then it runs the tests of emission and of bit-identity there,
a few of each kind, so that all cells together take less than half an hour; `--whole` runs these
tests' whole files. It prints a table, as Markdown, and below it why anything failed or was skipped.
The exit code is 1 if a test fails or a cell is not measured. Interpreters are found as
`python3.12`, or among pyenv's.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

ROOT = Path(__file__).parent.parent

CELLS = ("3.11:0.9", "3.13:0.9", "3.12:0.10", "3.12:0.11", "3.12:0.12", "3.13:0.12")
"""Each Python with the jax that most of its users have, and each jax at least once."""

IDENTICAL = "test_trainers.py::test_parameters_are_identical_and_every_state_arrives"
IN_A_LOOP = "test_own_loops.py::test_each_step_is_seen_once_and_results_are_the_same"

SUITES: dict[str, tuple[str, ...]] = {
    "calls to the host": ("test_host_call.py",),
    "emission": (
        "test_emit.py::test_nested_vmaps_three_deep_are_one_batch",
        "test_emit.py::test_the_answer_decides_when_the_host_is_asked_again",
        "test_emit.py::test_chosen_rows_are_gathered_on_the_device",
        "test_emit.py::test_a_granted_step_under_nested_vmaps_is_one_push_of_the_whole_batch",
        "test_emit.py::test_the_call_survives_although_the_state_is_not_used",
        "test_emit.py::test_derivatives_are_unchanged",
        "test_emit.py::test_pmap_passes_on_the_index_of_the_shard",
        "test_emit.py::test_a_batch_sharded_by_the_compiler_is_one_batch",
    ),
    "own loop identical": (
        f"{IN_A_LOOP}[nested_vmap-6-direct]",
        f"{IN_A_LOOP}[nested_vmap-6-io_callback]",
        f"{IN_A_LOOP}[nested_vmap-6-launch]",
    ),
    "PPO identical": (f"{IDENTICAL}[ppo]",),
    "lowered for CUDA": (
        "test_launch.py::test_a_program_for_the_cpu_asks_by_countdown_where_nothing_is_forced",
    ),
    "kept programs": (
        "test_programs.py::test_a_second_start_takes_its_programs_from_the_first_and_every_state_"
        "arrives[direct]",
        "test_programs.py::test_an_older_jax_keeps_nothing",
    ),
    "refusal of PPO": (
        "test_trainer.py::test_a_trainer_that_calls_a_function_missing_from_jax_is_refused_with_"
        "the_remedy",
    ),
    "the command": (
        "test_cli.py::test_train_prints_the_address_first_learns_and_saves_the_policy",
    ),
}
"""The tests of each column. All of them compare with the bare environment where there is one;
Brax's trainers run on a newer jax as `brax-viser train` runs them."""

NEEDED = ("pytest", "pytest-xdist", "hypothesis", "playwright")
"""What these tests import besides the package."""

SHOWN = ("jax", "flax", "brax", "mujoco", "mujoco-mjx", "numpy", "viser")
"""Packages of which the table says the version."""


@dataclass
class Cell:
    """The outcome of one Python with one jax."""

    python: str
    jax: str
    versions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # suite -> outcome -> tests
    reasons: dict[str, list[str]] = field(default_factory=dict)  # suite -> failures and skips
    error: str | None = None  # why no tests were run
    seconds: float = 0.0

    def add(self, suite: str, test: str, case: ElementTree.Element) -> None:
        """Counts a test, and keeps the reason if it did not pass."""
        bad = [x for kind in ("failure", "error") for x in case.iter(kind)]
        skipped = list(case.iter("skipped"))
        outcome = "failed" if bad else "skipped" if skipped else "passed"
        counts = self.counts.setdefault(suite, {"passed": 0, "failed": 0, "skipped": 0})
        counts[outcome] += 1
        for x in [*bad, *skipped]:
            first = x.get("message", "").splitlines() or ["no message"]
            self.reasons.setdefault(suite, []).append(f"{test} {outcome}: {first[0]}")

    @property
    def failed(self) -> bool:
        counts = self.counts.values()
        return not counts or any(x["failed"] or not x["passed"] for x in counts)


def find_python(version: str) -> Path | None:
    """Returns an interpreter of this version, such as 3.12; None if there is none here."""
    if found := shutil.which(f"python{version}"):
        works = subprocess.run([found, "--version"], capture_output=True).returncode == 0
        if works:  # a shim of pyenv's is found for versions that are not chosen, too
            return Path(found)
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next(iter(sorted(kept.glob(f"{version}.*/bin/python"), reverse=True)), None)


def run(command: list[str | Path], timeout: float, **environment: str) -> str:
    """Runs a command from the repository's folder and returns its output.

    Raises:
        RuntimeError: it failed; the message ends with the last line of its output.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CI": "true", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        raise RuntimeError(f"{' '.join(map(str, command[:5]))}: {lines[-1]}")
    return done.stdout


def install(cell: Cell, venv: Path, timeout: float) -> Path:
    """Makes the virtual environment of a cell, or goes on with a kept one. Returns its Python."""
    python = venv / "bin" / "python"
    if not python.exists():
        base = find_python(cell.python)
        if base is None:
            raise RuntimeError(f"no Python {cell.python} here")
        run([base, "-m", "venv", venv], timeout)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
        run([*pip, "-e", f"{ROOT}[playground,hosts]", *NEEDED], timeout)
        run([*pip, "--upgrade", f"jax=={cell.jax}.*", "flax"], timeout)
    code = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    found = run([python, "-c", code], timeout).split()
    cell.versions = dict(zip(SHOWN, found, strict=True))
    return python


def outcomes(python: Path, tests: list[str], timeout: float) -> list[ElementTree.Element]:
    """Runs tests in one process, as most of their time is that of importing JAX. Returns pytest's
    record of each.

    Raises:
        RuntimeError: pytest itself failed.
        subprocess.TimeoutExpired: as its name says; processes of the tests have ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
        with subprocess.Popen(
            [*command, f"--junitxml={report}", *(f"tests/{test}" for test in tests)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CI": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as pytest:
            try:
                output, _ = pytest.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(pytest.pid, signal.SIGKILL)
                raise
        if pytest.returncode > 1 or not report.exists():  # not even its tests' failures
            raise RuntimeError(" ".join(output.strip().splitlines()[-5:]))
        return list(ElementTree.parse(report).iter("testcase"))


def measure(
    cell: Cell, venv: Path, suites: tuple[str, ...], timeout: float, *, whole: bool
) -> None:
    """Fills in the outcome of a cell."""
    start = time.monotonic()
    chosen = {suite: SUITES[suite] for suite in suites}
    if whole:
        files = {suite: [test.split("::")[0] for test in tests] for suite, tests in chosen.items()}
        chosen = {suite: tuple(dict.fromkeys(names)) for suite, names in files.items()}
    try:
        python = install(cell, venv, timeout)
        found = outcomes(python, [test for tests in chosen.values() for test in tests], timeout)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        cell.error, found = str(error), []
    for case in found:
        file, test = case.attrib["classname"].split(".")[-1] + ".py", case.attrib["name"]
        for suite, tests in chosen.items():
            if any(f"{file}::{test}".startswith(one) for one in tests):
                cell.add(suite, test, case)
    cell.seconds = time.monotonic() - start


def table_of(cells: list[Cell], suites: tuple[str, ...]) -> str:
    """Returns the matrix as Markdown, a column per cell, and the reasons below it."""

    def row(head: str, entries: list[str]) -> str:
        return "| " + " | ".join([head, *entries]) + " |"

    def counted(cell: Cell, suite: str) -> str:
        if suite not in cell.counts:
            return "not run"
        return ", ".join(
            f"{number} {what}" for what, number in cell.counts[suite].items() if number
        )

    heads = [f"Python {cell.python}, jax {cell.versions.get('jax', cell.jax)}" for cell in cells]
    lines = [row("", heads), row("---", ["---"] * len(cells))]
    lines += [row(name, [x.versions.get(name, "-") for x in cells]) for name in SHOWN[1:]]
    lines += [row(suite, [counted(cell, suite) for cell in cells]) for suite in suites]
    lines += [row("seconds", [f"{cell.seconds:.0f}" for cell in cells]), ""]
    for head, cell in zip(heads, cells, strict=True):
        found = cell.reasons if cell.error is None else {"not run": [cell.error]}
        lines += [f"* {head}, {suite}: {why}" for suite, whys in found.items() for why in whys]
    return "\n".join(lines)


def main(
    cells: tuple[str, ...] = CELLS,
    suites: tuple[str, ...] = tuple(SUITES),
    whole: bool = False,
    keep: Path | None = None,
    timeout: float = 1200.0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Print the matrix.

    Args:
        cells: PYTHON:JAX, such as 3.12:0.11.
        suites: the columns.
        whole: run the whole files of the columns' tests, which takes an hour and more.
        keep: folder for the virtual environments, which are used again; None: a temporary one.
        timeout: limit on the time of an installation, and on that of a cell's tests, in s.
        json_file: where to save the outcome.
    """
    if unknown := [name for name in suites if name not in SUITES]:
        sys.exit(f"{', '.join(unknown)}: must be among {', '.join(SUITES)}")
    pairs = [cell.split(":") for cell in cells]
    if wrong := [cell for cell, pair in zip(cells, pairs, strict=True) if len(pair) != 2]:
        sys.exit(f"{', '.join(wrong)}: must be PYTHON:JAX, such as {CELLS[0]}")
    done: list[Cell] = []
    with tempfile.TemporaryDirectory() as temporary:
        for python, jax in pairs:
            cell = Cell(python, jax)
            venv = (keep or Path(temporary)) / f"{python}-{jax}"
            measure(cell, venv, suites, timeout, whole=whole)
            done.append(cell)
            print(table_of([cell], suites), flush=True)
            if json_file is not None:  # after each cell, so that an interruption loses nothing
                json_file.write_text(json.dumps([asdict(x) for x in done], indent=1))
    if len(done) > 1:
        print("\n" + table_of(done, suites))
    sys.exit(any(cell.failed for cell in done))


if __name__ == "__main__":
    tyro.cli(main)
