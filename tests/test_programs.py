"""Tests compiled programs that the command keeps: the next start takes them, and sees as much."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from brax_viser.cli.programs import keep_programs
from brax_viser.compat import JAX_KEEPS_CALLS
from brax_viser.device.host_call import LAUNCH, MECHANISMS, VARIABLE

ROOT = Path(__file__).parent.parent
newer = pytest.mark.skipif(
    jax.__version_info__ < JAX_KEEPS_CALLS,
    reason=f"jax {jax.__version__} keeps no programs that call the host",
)

SCRIPT = """
import hashlib, jax, numpy as np
from brax_viser.cli.programs import keep_programs

found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
from brax_viser import Viewer, VisualizedEnv
from examples.own_ppo import make_train
from tests.conftest import Page
from tests.toy import Toy

with Viewer(port=0, mode="every_step") as viewer:
    page = Page(viewer)
    env = VisualizedEnv(Toy(), grid=(2, 2), viewer=viewer)
    train = jax.jit(make_train(env, num_envs=4, num_updates=2, num_steps=3))
    found.clear()
    params = jax.block_until_ready(train(jax.random.PRNGKey(0)))
    whole = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    hits = sum(name.endswith("cache_hits") for name in found)
    print(hits, viewer.stats().frames, hashlib.sha256(whole).hexdigest())
    page.close()
"""


@newer
@pytest.mark.parametrize("mechanism", [*MECHANISMS, LAUNCH])
def test_a_second_start_takes_its_programs_from_the_first_and_every_state_arrives(
    tmp_path, mechanism
):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), VARIABLE: mechanism}
    said = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    (first, *seen), (second, *again) = (words[-3:] for words in said)
    assert (first, seen[0]) == ("0", "6") and int(second) > 0
    assert again == seen


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    """Calls the function, and returns the folder that JAX then uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = [getattr(jax.config, name) for name in names]

    def call() -> str | None:
        keep_programs()
        return jax.config.jax_compilation_cache_dir

    yield call
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@newer
def test_programs_are_kept_in_a_cache_directory_that_only_its_user_can_open(
    nothing_chosen, tmp_path
):
    folder = tmp_path / "brax_viser" / "programs"
    assert nothing_chosen() == str(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_chosen_by_the_user_is_used(nothing_chosen):
    jax.config.update("jax_compilation_cache_dir", "/a/folder/of/mine")
    assert nothing_chosen() == "/a/folder/of/mine"


def test_an_older_jax_keeps_nothing(nothing_chosen, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert nothing_chosen() is None
