"""Assigns each test file a lane: whether it compiles, runs beside others, and in what order.

`pytest -m unit` compiles nothing and starts no server; `integration` has trainers, servers and
processes; `browser` runs a real browser. Tests marked `alone` need the whole machine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Lane(NamedTuple):
    name: str
    minutes: float = 0.5
    """Rough duration of the file on two idle cores. Long files start first, so that no worker still
    runs one after the others have finished."""
    alone: bool = False
    """Whether the file measures time, uses all cores, or needs a port of a certain number."""
    quick: bool = False
    """Whether optimising the file's programs takes longer than it saves, as they take few steps.
    Not for tests that compare trained parameters bit by bit: users' programs are optimised."""


def unit(minutes: float = 0.1) -> Lane:
    return Lane("unit", minutes)


def integration(minutes: float = 0.5, *, alone: bool = False, quick: bool = False) -> Lane:
    return Lane("integration", minutes, alone, quick)


LANES = {
    "test_access": integration(0.5),
    "test_address": integration(alone=True),
    "test_aside": integration(2),
    "test_backlog": integration(),
    "test_bar": unit(),
    "test_callbacks": unit(),
    "test_cameras": unit(),
    "test_cells": integration(),
    "test_cli": integration(2),
    "test_control": integration(5),
    "test_ctrl_c": integration(4),
    "test_curves": integration(0.2),
    "test_detail": integration(3, quick=True),
    "test_devices": integration(0.7),
    "test_docs": integration(3, quick=True),
    "test_e2e_browser": Lane("browser", 6, alone=True),
    "test_emit": integration(2),
    "test_env": integration(0.7),
    "test_episodes": integration(0.5, quick=True),
    "test_episode": integration(1.5, quick=True),
    "test_examples": integration(0.6),
    "test_export": integration(1),
    "test_export_browser": Lane("browser", 1, alone=True),
    "test_falls": unit(),
    "test_faults": integration(1, quick=True),
    "test_flexes": unit(),
    "test_fork": integration(0.3),
    "test_fuzz": integration(1, quick=True),
    "test_grants": integration(1),
    "test_guard": integration(0.5),
    "test_folding": integration(0.1),
    "test_growth": integration(2, quick=True),
    "test_handles": unit(),
    "test_hold": unit(),
    "test_host_call": integration(),
    "test_hosts": integration(3, alone=True),
    "test_inputs": integration(4),
    "test_interrupt": unit(),
    "test_lanes": unit(),
    "test_launch": integration(4),
    "test_left_behind": integration(0.5),
    "test_likeness": Lane("browser", 2, alone=True),
    "test_looks": integration(),
    "test_memory": integration(0.2),
    "test_metrics": unit(),
    "test_niceness": integration(),
    "test_nonfinite": integration(4, quick=True),
    "test_odd_inputs": integration(0.7),
    "test_notebook": Lane("browser", 1.5, alone=True),
    "test_order": integration(0.7),
    "test_overlays": integration(0.7),
    "test_own_loops": integration(2.5),
    "test_panel": integration(0.3),
    "test_panel_browser": Lane("browser", 1.5, alone=True),
    "test_parts": integration(),
    "test_playback": unit(0.2),
    "test_playground": integration(4),
    "test_policies": integration(1.5),
    "test_randomisation": integration(2),
    "test_run_directory": integration(0.3),
    "test_reader": integration(0.3, quick=True),
    "test_replay": unit(),
    "test_replaced": integration(alone=True),
    "test_rooms": unit(),
    "test_sandbox": integration(2, quick=True),
    "test_scale": integration(alone=True),
    "test_scene": integration(2, quick=True),
    "test_selection": unit(),
    "test_several": integration(quick=True),
    "test_shown": integration(0.5, quick=True),
    "test_starts": integration(0.2, quick=True),
    "test_stream": unit(0.6),
    "test_terrain": integration(0.1),
    "test_trainer": integration(0.5, quick=True),
    "test_trainers": integration(3),
    "test_thinning": unit(),
    "test_training": integration(8),
    "test_transplant": integration(1.5, quick=True),
    "test_twin": integration(3, quick=True),
    "test_viewer": integration(1, quick=True),
    "test_watchdog": integration(0.1),
    "test_words": unit(),
    "test_wrapping": integration(0.2),
}
"""Lanes by file name. The collection fails for a file without a lane."""

ALONE = {
    "test_the_switch_takes_effect_within_a_fifth_of_a_second",
    "test_few_functions_are_called_while_the_shared_states_lock_is_held",
    "test_ctrl_c_ends_a_training_that_is_held",
    "test_ctrl_c_ends_the_command_during_imports",
    "test_the_page_shows_robots_and_says_what_it_waits_for_within_seconds",
}
"""Tests that run `alone` although the rest of their file does not."""


def lane_of(path: Path) -> Lane:
    """Returns the lane of a file. Raises `pytest.Collector.CollectError` if it has none."""
    try:
        return LANES[path.stem]
    except KeyError:
        raise pytest.Collector.CollectError(
            f"{path.name} has no lane: give it one in tests/lanes.py, where unit is what compiles "
            "nothing and starts no server"
        ) from None


def assign(items: Sequence[pytest.Item]) -> None:
    """Marks each test with the lane of its file, and with `alone` if it must run alone."""
    for item in items:
        lane = lane_of(item.path)
        item.add_marker(lane.name)
        if lane.alone or getattr(item, "originalname", item.name) in ALONE:
            item.add_marker("alone")


def longest_first(items: list[pytest.Item]) -> None:
    """Sorts tests by their files' minutes, longest first, in place; keeps the order in a file."""
    items.sort(key=lambda item: -lane_of(item.path).minutes)
