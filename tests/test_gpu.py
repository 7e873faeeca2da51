"""The benchmark of a GPU: it runs to its end, and tells what is measured from what is not."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from benchmarks import gpu, gpu_program, warp_graphs
from benchmarks.gpu import (
    Alike,
    Failed,
    Job,
    Late,
    Run,
    Settings,
    Steps,
    Trainings,
    compared,
    exact,
    invalid,
    perform,
)
from benchmarks.gpu_worker import MODES, Case

GOOD = dict(
    walltime=0.1,
    dispatch=0.05,
    steps=100,
    captures=0,
    spent=0.001,
    frames=0,
    bytes=0,
    at_page=0,
    fault=None,
    way="launch",
    parameters="a",
)


def told(mode: str) -> dict[str, Any]:
    """Returns what a process tells of an epoch in which all went well."""
    frames = 0 if mode in ("off", "no_page", "recording", "closed") else 100
    return {**GOOD, "frames": frames, "bytes": 1000 * (frames > 0 or mode == "recording")}


@pytest.mark.parametrize("mode", MODES)
def test_a_row_counts_only_if_the_viewer_was_well_and_frames_came_where_some_must(mode):
    good = told(mode)
    assert invalid(mode, [good, good]) is None
    fault = {**good, "fault": "CudaError in launch: no"}
    assert "CudaError" in str(invalid(mode, [good, fault]))
    assert invalid(mode, [{**good, "way": "never called"}]) is not None
    nothing = {**good, "frames": 0, "bytes": 0}
    assert (invalid(mode, [nothing]) is None) == (mode in ("off", "no_page", "closed"))
    some = invalid(mode, [{**good, "frames": 50, "bytes": 9}])
    assert (some is None) == (mode in ("realtime", "latest", "twins", "recording", "closed"))


@pytest.mark.parametrize(
    "watched, again, verdict",
    [
        ("aaaa", "aa", "identical in 4 epochs; two stock trainings are identical in 2"),
        ("aaab", "aaaa", "DIFFERENT from epoch 4"),
        ("aaab", "aa", "not known"),
        ("aaab", "abbb", "not comparable"),
        ("aaaa", "abbb", "identical in 4 epochs; two stock trainings differ from epoch 2"),
        ("abbb", "aaab", "DIFFERENT from epoch 2"),
    ],
)
def test_parameters_are_compared_with_how_much_stock_differs_by_itself(watched, again, verdict):
    assert compared("aaaa", watched, again).startswith(verdict)


def test_a_hold_is_exact_only_if_viewer_frame_and_state_agree():
    held = [[[7, 7, 7], [10, 10, 10]], [[20, 20, 20], [23, 23, 23]]]
    assert exact({"held": held, "end": [40, 40]})
    assert not exact({"held": held, "end": [40, 41]})
    for wrong in ([[7, 7, 8], [10, 10, 10]], [[7, 7, 7], [11, 11, 11]]):
        assert not exact({"held": [*held, wrong], "end": [40, 40]})


class Process:
    """Stands in for a process of the benchmark: it tells that all is well, but for what is given by
    the name of the environment."""

    def __init__(self, kind: str, case: Case, flags: str):
        self.kind, self.case, self.flags = kind, case, flags

    def hear(self, timeout: float) -> dict[str, Any]:
        if self.case.env == "unable":
            raise Failed("no such thing\nits last words")
        return {"parameters": "a", "ready": True}

    def do(self, what: str) -> dict[str, Any]:
        if what == "hold":
            at = {"held": [[[7, 7, 7], [10, 10, 10]]], "end": [40, 40]}
            return at | {"fault": None, "way": "launch"}
        if what == "switch":
            return {"error": "TimeoutError: frames flow", "fault": None, "way": "launch"}
        watched = self.kind.endswith("-watched")
        result = told(what)
        if watched and self.case.env == "faulty" and what == "worst":
            result["fault"] = "CudaError in launch: no"
        if watched and self.case.env == "odd" and what == "latest":
            del result["frames"]
        if watched and self.case.env == "unlike" and not self.flags:
            result["parameters"] = "b"
        if watched and self.case.env == "slow":
            result["walltime"] = 0.2
        return result

    def errors(self) -> str:
        return "its last words"

    def stop(self) -> None:
        pass


@pytest.fixture
def run(monkeypatch) -> Run:
    run = Run(Settings(), time.monotonic() + 600, console=Console(file=io.StringIO(), width=250))
    monkeypatch.setattr(run, "worker", lambda kind, case, flags="": Process(kind, case, flags))
    return run


def said(run: Run) -> list[str]:
    return run.console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def case(name: str) -> Case:
    return Case(name, "spring", 64, 2, 2)


def test_cases_that_fail_leave_the_others_alone_and_faults_are_no_figures(run):
    names = ("fine", "unable", "odd", "faulty", "fine")
    gpu.perform(run, [Trainings(run, case(name)) for name in names])
    lines = said(run)
    firsts = [line.split(" ")[0] for line in lines]
    # Of "odd" the rows up to where it fails; of "faulty" all.
    assert firsts.count("every_step") == firsts.count("closed") == 3
    assert firsts.count("stock") == 4 and firsts.count("latest") == 3
    invalid = [line for line in lines if "INVALID" in line]
    assert len(invalid) == 1 and invalid[0].startswith("worst") and "CudaError" in invalid[0]
    assert "1.000" not in invalid[0]
    assert len([line for line in lines if "FAILED" in line]) == 2
    assert len([line for line in lines if line.startswith("parameters: identical")]) == 3
    wrong = " ".join(run.wrong)
    assert all(f"{name}/spring, 64" in wrong for name in ("unable", "odd", "faulty"))
    assert "fine" not in wrong and not run.skipped


def test_trainings_slower_than_wanted_are_named_on_a_gpu_alone(run):
    slower = case("slow")
    gpu.perform(run, [Trainings(run, slower), Trainings(run, case("fine"))])
    rows = [line for line in said(run) if "MISSED" in line]
    assert {row.split(" ")[0] for row in rows} == {"closed", "off", "realtime", "every_step"}
    assert len(run.slow) == 4 and all(slower.name in what for what in run.slow) and not run.wrong
    assert len([line for line in said(run) if "reached" in line]) == 4
    on_cpu = Run(Settings(platform="cpu"), run.until, console=run.console)
    assert on_cpu.judged("any", "off", 0.5) == "" and not on_cpu.slow


def test_steps_are_judged_row_by_row(run):
    gpu.perform(run, [Steps(run, case("fine"))])
    rows = {line.split(" ")[0]: line for line in said(run)}
    assert set(MODES) - {"closed"} <= set(rows)
    assert "exact" in rows["hold"] and "INVALID: TimeoutError" in rows["switch"]
    assert len(run.wrong) == 1


def test_differing_parameters_are_compared_again_with_deterministic_operations(run):
    gpu.perform(run, [Trainings(run, case("unlike")), Trainings(run, case("fine"))])
    assert [unlike.env for unlike in run.unlike] == ["unlike"] and not run.wrong
    gpu.perform(run, [Alike(run, unlike) for unlike in run.unlike])
    verdicts = [line for line in said(run) if line.startswith("parameters")]
    assert [verdict.split(" ")[1] for verdict in verdicts] == [
        "DIFFERENT",
        "identical",
        "identical",
    ]
    assert not run.wrong


def test_cases_beyond_the_time_limit_are_skipped_and_named(run, monkeypatch):
    jobs = [Trainings(run, case("fine")), Steps(run, case("fine"))]
    measured = jobs[0]._pairs

    def slow(mode: str | None) -> Any:
        run.until = 0.0
        return measured(mode)

    monkeypatch.setattr(jobs[0], "_pairs", slow)
    gpu.perform(run, jobs)
    assert [line for line in said(run) if line.startswith("stock again")]
    assert [name.split(": ")[-1] for name in run.skipped[:-1]] == list(MODES)
    assert run.skipped[-1] == jobs[1].name and not run.wrong


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is one")
def test_without_a_gpu_it_says_what_is_missing():
    with pytest.raises(SystemExit, match=r"No GPU that JAX can use.*cuda13") as ended:
        gpu.main(["--patience", "300"])
    assert "nvidia-smi" in str(ended.value)


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--cases", "ant"]])
def test_unknown_cases_are_refused(wrong):
    with pytest.raises(SystemExit, match="must be"):
        gpu.main(wrong)


def test_a_small_case_is_measured_on_a_cpu_beside_one_that_fails():
    options = "--platform cpu --pairs 2 --steps 50 --minutes 60 --patience 600 --cases"
    cases = ("no_such/spring/8", "inverted_pendulum/generalized/8")
    # Compiles in half of the time.
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options.split(), *cases],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "XLA_FLAGS": quick},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in lines if "FAILED" in line]
    assert len(failed) == 2 and all(line.startswith("no_such") for line in failed), done.stdout
    every_step = [line for line in lines if line.startswith("every_step")]
    assert len(every_step) == 2 and "INVALID" not in "".join(every_step), done.stdout
    (hold,) = (line for line in lines if line.startswith("hold"))
    (parameters,) = (line for line in lines if line.startswith("parameters"))
    assert "exact" in hold and "NOT" not in hold, done.stdout
    assert "identical in" in parameters and "two stock trainings are identical" in parameters


PROGRAM = """
HloModule jit_run, is_scheduled=true

%body (arg: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %arg = (s32[], /*index=1*/f32[2,3]{1,0}) parameter(0)
  %old = f32[2,3]{1,0} get-tuple-element(%arg), index=1
  %kept = f32[2,3]{1,0} copy(%old)
  %new = (f32[2,3]{1,0}, pred[2]{0}) fusion(%kept), kind=kLoop, calls=%fused
  %told = s32[] custom-call(%new), custom_call_target="xla_buffer_python_gpu_callback"
  ROOT %tuple = (s32[], f32[2,3]{1,0}) tuple(%told, %kept)
}

ENTRY %main (x: f32[2,3]) -> f32[2,3] {
  %x = f32[2,3]{1,0} parameter(0)
  %all = (s32[], f32[2,3]{1,0}) while(%x), body=%body, config={"known_trip_count":{"n":"20"}}
  ROOT %last = s16[2]{0} copy(%x)
}
"""


def test_the_operations_of_a_program_are_counted_as_often_as_they_run():
    found = gpu_program.operations(PROGRAM)
    assert (found["fusion"], found["copy"], found["while"]) == (20, 21, 1)
    assert found["bytes"] == 20 * 24 + 4
    assert found["to xla_buffer_python_gpu_callback"] == found["custom-call"] == 20
    assert "tuple" not in found and "parameter" not in found


class Compiling(Job):
    """A job that has compiled when it is waited for the `turns`th time."""

    def __init__(self, run: Run, name: str, turns: int, told: list[str]):
        self.run, self.name, self.case = run, name, Case("ant", "spring", 2, 1, 1)
        self._turns, self._told = turns, told
        self.sides = (self,)  # type: ignore[assignment]

    def start(self) -> None:
        self._told.append(f"{self.name} starts")

    def wait(self, timeout: float) -> None:
        self._turns -= 1
        if self._turns > 0:
            raise Late("not yet")
        if self._turns < 0:
            raise Failed("never")

    def measure(self) -> None:
        self._told.append(f"{self.name} is measured")

    def pause(self) -> None:
        self._told.append(f"{self.name} stands still")

    def go_on(self) -> None:
        self._told.append(f"{self.name} goes on")

    def stop(self) -> None:
        pass


def test_what_compiles_for_long_is_measured_after_what_is_ready():
    told: list[str] = []
    run = Run(Settings("cpu"), time.monotonic() + 100, console=Console(file=io.StringIO()))
    names = {"late": 2, "never": 0, "too late": 3, "ready": 1}
    perform(run, [Compiling(run, name, turns, told) for name, turns in names.items()])
    assert told[4:] == [
        "late stands still",
        "too late stands still",
        "ready is measured",
        "late goes on",
        "late is measured",
        "too late goes on",
    ]
    assert run.wrong == ["never", "too late"] and not run.skipped


def test_a_watched_program_calls_warp_at_as_many_addresses_as_a_stock_one():
    """Each set of addresses is a graph that Warp has to capture on a GPU."""
    settings = warp_graphs.Settings("CartpoleBalance", epochs=2)
    stock, watched = (warp_graphs.counted(settings, (name,)) for name in ("stock", "watched"))
    assert [row["calls"] for row in watched] == [row["calls"] for row in stock]
    assert [row["sets"] for row in watched] == [row["sets"] for row in stock]
    assert stock[1]["calls"] == 20 and stock[1]["sets"] == 1
