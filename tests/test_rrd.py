"""Episodes are exported as recordings of Rerun, and read by its own reader."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brax_viser.cli.export import export
from brax_viser.export.rrd import write_rrd
from brax_viser.runs.folder import RunFolder
from tests.conftest import lacking
from tests.stepped import brax_model, run_info, stepped

CURVES = {"eval/episode_reward": np.array([[0.0, 1000, 3000], [0, 5, 9], [1, -2, 4]])}


@pytest.fixture
def rerun() -> None:
    if importlib.util.find_spec("rerun") is None:
        lacking("no Rerun found: pip install -e '.[rerun]'")


def chunks_of(path: Path) -> dict[str, Any]:
    """Reads what is logged: by entity, columns by name, with a list of values for each row."""
    from rerun.chunk import RrdReader  # type: ignore[import-not-found]

    chunks = RrdReader(path).stream()
    return {chunk.entity_path: chunk.to_record_batch().to_pydict() for chunk in chunks}


@pytest.mark.usefixtures("rerun")
def test_robots_rewards_and_curves_are_those_that_were_given(tmp_path):
    model = brax_model("ant")
    first, second = (stepped(model, seconds=1.0, seed=i, env=i) for i in range(2))
    write_rrd(tmp_path / "ants.rrd", run_info(model), [first, second], CURVES)
    chunks = chunks_of(tmp_path / "ants.rrd")
    for episode in (first, second):
        root = f"/robots/{episode.summary.key}"
        bodies = {path: x for path, x in chunks.items() if path.startswith(root)}
        for link in range(episode.link_pos.shape[1]):
            name = model.body(link + 1).name or f"body\\ {link + 1}"
            body = bodies[f"{root}/{name}"]
            placed = np.concatenate(body["Transform3D:translation"])
            np.testing.assert_array_equal(placed, episode.link_pos[:, link])
            turned = np.concatenate(body["Transform3D:quaternion"])
            np.testing.assert_array_equal(turned, episode.link_rot[:, link][:, [1, 2, 3, 0]])
            times = [time.total_seconds() for time in body["robot_time"]]
            np.testing.assert_allclose(times, np.arange(21) * episode.dt, atol=1e-6)
        shapes = [x for x in bodies.values() if "Mesh3D:vertex_positions" in x]
        assert len(shapes) >= 9, "a torso and eight parts of legs"
        reward = chunks[f"/episodes/{episode.summary.key}/reward"]["Scalars:scalars"]
        np.testing.assert_allclose(np.concatenate(reward), episode.steps["reward"])
    curve = chunks["/training/eval\\/episode_reward"]
    assert curve["num_steps"] == [0, 1000, 3000]
    assert curve["Scalars:scalars"] == [[1], [-2], [4]]


@pytest.mark.usefixtures("rerun")
def test_the_command_writes_one_and_an_error_leaves_nothing_behind(tmp_path):
    model = brax_model("ant")
    run = RunFolder(tmp_path / "run", run_info(model))
    run.add([stepped(model, seconds=0.5)])
    assert run.close()
    assert export(str(tmp_path / "run"), str(tmp_path / "out" / "a.rrd")) == 0
    assert len(chunks_of(tmp_path / "out" / "a.rrd")) > 10
    assert export(str(tmp_path / "run"), str(tmp_path / "b" / "b.rrd"), seconds=(5.0, 6.0)) == 2
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


def test_a_missing_rerun_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    model = brax_model("ant")
    with pytest.raises(RuntimeError, match="pip install"):
        write_rrd(tmp_path / "a.rrd", run_info(model), [stepped(model, seconds=0.5)])
    assert not list(tmp_path.iterdir())
