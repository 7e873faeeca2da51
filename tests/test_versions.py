"""The matrix of versions: its tests exist, and its table says what they found."""

import ast
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.versions import SUITES, Cell, measure, table_of

HERE = Path(__file__).parent

CASES = """<suite>
<testcase name="test_one[direct]"/>
<testcase name="test_two"><skipped message="jax 0.9 keeps none"/></testcase>
<testcase name="test_three"><failure message="AssertionError: 40 frames&#10;in line 3"/></testcase>
</suite>"""


@pytest.mark.parametrize("suite", SUITES)
def test_each_column_names_tests_that_exist(suite):
    for test in SUITES[suite]:
        file, _, name = test.partition("::")
        functions = {
            node.name
            for node in ast.parse((HERE / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert not name or name.split("[")[0] in functions


def test_the_table_counts_tests_and_says_why_some_did_not_pass():
    cell = Cell("3.13", "0.12", {"jax": "0.12.1"})
    cases = ElementTree.fromstring(CASES).findall("testcase")
    for case in cases[:2]:
        cell.add("emission", case.attrib["name"], case)
    assert not cell.failed
    cell.add("PPO identical", "test_three", cases[2])
    assert cell.failed
    lines = table_of([cell], ("emission", "PPO identical", "the command")).splitlines()
    assert lines[0] == "|  | Python 3.13, jax 0.12.1 |"
    assert "| emission | 1 passed, 1 skipped |" in lines
    assert "| PPO identical | 1 failed |" in lines
    assert "| the command | not run |" in lines
    where = "* Python 3.13, jax 0.12.1,"
    assert f"{where} emission: test_two skipped: jax 0.9 keeps none" in lines
    assert f"{where} PPO identical: test_three failed: AssertionError: 40 frames" in lines


def test_a_cell_whose_python_is_not_there_says_so_and_fails(tmp_path):
    cell = Cell("2.0", "0.9")
    measure(cell, tmp_path / "venv", ("emission",), timeout=1.0, whole=False)
    assert cell.failed
    assert "* Python 2.0, jax 0.9, not run: no Python 2.0 here" in table_of([cell], ("emission",))
