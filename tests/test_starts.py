"""How long starts have taken is remembered, and said at the next one."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from brax_viser import Viewer, VisualizedEnv
from brax_viser.host.progress import Progress
from brax_viser.host.starts import MOST, Starts, usual_path
from brax_viser.panel.words import compiling
from tests.conftest import eventually
from tests.support import Probe, source_of
from tests.toy import Toy

BEFORE = Progress().view(0.0)
STARTED = replace(BEFORE, start_seconds=42.04)


def test_the_next_page_knows_how_long_a_start_has_taken(tmp_path):
    path = tmp_path / "new" / "starts.json"
    starts = Starts(path)
    assert starts.told(BEFORE, "ant 256").usual_seconds is None
    assert not path.exists()
    starts.told(STARTED, "ant 256")
    starts.told(STARTED, None)  # the batch size is not known yet
    assert Starts(path).told(BEFORE, "ant 256").usual_seconds == 42.0
    assert Starts(path).told(BEFORE, "ant 512").usual_seconds is None
    # It is written once, and not with each update of the panel.
    path.unlink()
    starts.told(STARTED, "ant 256")
    assert not path.exists()


def test_a_file_that_cannot_be_used_is_harmless(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "brax_viser")
    for content in ("{", "[1]", '{"ant": "soon"}', '{"ant": null}'):
        broken = tmp_path / "broken.json"
        broken.write_text(content)
        assert Starts(broken).told(BEFORE, "ant").usual_seconds is None
    (tmp_path / "file").write_text("")
    nowhere = Starts(tmp_path / "file" / "starts.json")  # its folder can't be made
    nowhere.told(STARTED, "ant")
    assert nowhere.told(BEFORE, "ant").usual_seconds == 42.0
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_the_oldest_starts_are_forgotten(tmp_path):
    path = tmp_path / "starts.json"
    path.write_text(json.dumps({str(key): 1.0 for key in range(MOST)}))
    starts = Starts(path)
    starts.told(STARTED, "new")
    known = json.loads(path.read_text())
    assert len(known) == MOST and "0" not in known and known["new"] == 42.0


def test_starts_are_kept_in_the_users_cache_directory(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert usual_path() == Path("/some/cache/brax_viser/starts.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert usual_path() == Path.home() / ".cache/brax_viser/starts.json"


@pytest.mark.parametrize(
    ("seconds", "usual", "start", "words"),
    [
        (7.0, None, None, "for 7 s: a minute or two is normal"),
        (150.0, None, None, "for 150 s: a busy machine takes longer"),
        (7.0, 42.0, None, "7 s of usually 42 s here"),
        (7.0, 42.0, 40.0, "for 7 s"),
    ],
)
def test_the_page_says_what_is_compiled_and_how_long_that_usually_takes(
    seconds, usual, start, words
):
    view = replace(BEFORE, phase_seconds=seconds, usual_seconds=usual, start_seconds=start)
    assert compiling(view) == ("Compiling the training step", words)


def test_a_page_remembers_the_start_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def told(steps: int) -> float | None:
        with Viewer(port=0) as viewer:
            env = VisualizedEnv(Toy(), grid=(2, 1), viewer=viewer)
            Probe(viewer).show_model(source_of(env), "train", 4)
            if steps:
                state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), 4))
                jax.block_until_ready(jax.jit(jax.vmap(env.step))(state, jnp.zeros((4, 1))))
                remembered = tmp_path / "brax_viser" / "starts.json"
                eventually(remembered.exists, "the start is remembered")
            found: list[float | None] = []
            Probe(viewer).now(
                lambda: found.append(Probe(viewer).panel_view().progress.usual_seconds)
            )
            assert viewer.progress().usual_seconds == found[0], "the terminal says the same"
            return found[0]

    assert told(steps=0) is None
    told(steps=1)
    usual = told(steps=0)
    assert usual is not None and usual > 0
