"""Checks that each test file has exactly one lane, and that each lane is a registered marker."""

import ast
import functools
from pathlib import Path

import pytest

from tests import lanes

HERE = Path(__file__).parent
FILES = {path.stem: path for path in HERE.glob("test_*.py")}


@functools.cache
def functions(path: Path) -> list[str]:
    """Returns the names of a file's functions."""
    return [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]


def test_every_file_has_a_lane_and_every_lane_a_file():
    assert set(lanes.LANES) == set(FILES)


def test_each_lane_is_a_registered_marker(pytestconfig):
    registered = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert {lane.name for lane in lanes.LANES.values()} | {"alone", "full"} <= registered


def test_tests_listed_as_running_alone_exist():
    shared = [path for name, path in FILES.items() if not lanes.LANES[name].alone]
    assert {name for path in shared for name in functions(path)} >= lanes.ALONE


def test_tests_left_out_by_default_exist_once_and_keep_parameters_that_exist():
    """Of the files that this run has collected, as the names of parameters are known only then."""
    known = [name for path in FILES.values() for name in functions(path)]
    assert {name: known.count(name) for name in lanes.FULL if known.count(name) != 1} == {}
    for name, parameters in lanes.COLLECTED.items():
        assert lanes.FULL[name] <= parameters, f"{name} keeps parameters that it does not have"


def test_a_file_without_a_lane_is_refused_with_the_remedy():
    words = r"test_new\.py has no lane: .* tests/lanes\.py"
    with pytest.raises(pytest.Collector.CollectError, match=words):
        lanes.lane_of(HERE / "test_new.py")
