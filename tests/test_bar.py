"""The terminal's line says how the training goes, at any width."""

import io
import re
import sys
import traceback
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from brax_viser.cli.bar import LOG_SECONDS, TrainingBar, in_words
from brax_viser.host.progress import ProgressView
from brax_viser.host.rewards import RewardView

VIEW = ProgressView(
    algorithm="PPO",
    phase="training",
    phase_seconds=1.0,
    num_steps=1_234_567,
    num_timesteps=3_000_000,
    steps_per_second=14_000.0,
    elapsed=100.0,
    rewards=RewardView("training", 1234.5, 1_200_000, ((1_200_000, 1234.5),), 900.0),
    error=None,
    saved=None,
)


def drawn(view: ProgressView, width: int, *, held: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with TrainingBar(console) as bar:
        bar.update(view, held=held)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_the_line_fits_and_begins_with_state_and_steps(width):
    lines = [line for line in drawn(VIEW, width).splitlines() if "training" in line]
    assert lines
    for line in lines:
        assert len(line.split("\r")[-1].replace("\x1b[2K", "")) <= width
        assert "1.23 M of 3 M steps" in line


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (10, "1.23 M of 3 M steps"),
        (40, "1.23 M of 3 M steps · 2:23 left"),
        (60, "1.23 M of 3 M steps · 2:23 left · training reward 1,234.5"),
        (90, "1.23 M of 3 M steps · 2:23 left · training reward 1,234.5 · 14 k steps/s"),
    ],
)
def test_what_matters_least_is_left_out_first(width, words):
    assert in_words(VIEW, width) == words


def test_the_line_says_that_the_training_is_held():
    assert "held" in drawn(VIEW, 80, held=True)
    assert "held" not in drawn(VIEW, 80)


def screen(written: str) -> list[str]:
    """Returns the lines that a terminal shows of what was written to it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[\d?;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_a_warning_and_a_traceback_come_whole_above_one_bar():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with TrainingBar(console) as bar:
        bar.update(VIEW, held=False)
        sys.stderr.write(warnings.formatwarning("slow", UserWarning, "step.py", 7, ""))
        bar.update(VIEW, held=False)
        try:
            raise ValueError("the last words")
        except ValueError:
            traceback.print_exc()
        bar.update(VIEW, held=True)
    assert isinstance(console.file, io.StringIO)
    shown = screen(console.file.getvalue())
    assert "step.py:7: UserWarning: slow" in shown
    assert "Traceback (most recent call last):" in shown and "ValueError: the last words" in shown
    bars = [line for line in shown if "1.23 M of 3 M steps" in line]
    assert len(bars) == 1 and bars[0].startswith("held ") and shown.index(bars[0]) > 4


@pytest.mark.parametrize(
    ("usual", "words"),
    [
        (None, "for 75 s: a minute or two is normal"),
        (84.0, "75 s of usually 84 s here"),
    ],
)
def test_while_it_compiles_the_line_says_for_how_long_and_what_is_usual(usual, words):
    view = replace(VIEW, phase="compiling", phase_seconds=75.0, num_steps=0, elapsed=0.0)
    view = replace(view, steps_per_second=0.0, rewards=None, usual_seconds=usual)
    assert words in drawn(view, 80)
    assert in_words(view, 80) == f"{words} · 0 of 3 M steps"
    assert in_words(view, 20) == words


def test_a_log_gets_a_line_now_and_then_and_the_last_one_once_and_whole():
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    now = [0.0]
    with TrainingBar(console, lambda: now[0]) as bar:
        bar.update(replace(VIEW, phase="waiting"), held=False)
        bar.update(replace(VIEW, phase="compiling", start_seconds=30.0), held=False)
        for now[0] in (1.0, LOG_SECONDS - 1, LOG_SECONDS + 1, LOG_SECONDS + 2):
            bar.update(replace(VIEW, num_steps=int(now[0])), held=False)
        now[0] += LOG_SECONDS
        for _ in range(2):
            bar.update(VIEW, held=True)
    console.print("next")
    assert isinstance(console.file, io.StringIO)
    compiling, first, last, following = console.file.getvalue().splitlines()
    assert compiling.startswith("compiling: for 1 s · 1.23 M of 3 M steps · 2:23 left")
    assert first.startswith("training: 121 of 3 M steps")
    assert last.startswith("held: 1.23 M of 3 M steps") and following == "next"


def test_whole_updates_beyond_the_goal_are_not_called_a_part_of_it():
    assert in_words(VIEW, 200).startswith("1.23 M of 3 M steps")
    assert in_words(replace(VIEW, num_steps=3_050_000), 200).startswith("3.05 M steps")
