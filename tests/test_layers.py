"""Who may import whom, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "brax_viser"
DEVICE = (
    "emit.py",
    "callback.py",
    "env.py",
    "episode.py",
    "rank.py",
    "adapters.py",
    "trainer.py",
    "protocol.py",
    "wrapping.py",
    "states.py",
    "models.py",
    "watch.py",
)
PURE = (
    "stream.py",
    "selection.py",
    "playback.py",
    "hold.py",
    "findings.py",
    "frame.py",
    "falls.py",
    "progress.py",
    "mailbox.py",
    "switchboard.py",
    "rollout.py",
    "feed.py",
    "niceness.py",
    "interrupt.py",
    "address.py",
    "stepping.py",
    "twin.py",
    "follower.py",
    "drift.py",
    "transplant.py",
    "sandbox.py",
    "sandbox_thread.py",
    "forks.py",
    "reader.py",
    "hosts/wire.py",
    "hosts/link.py",
    "hosts/meeting.py",
    "hosts/others.py",
    "hosts/relay.py",
)
HOST = tuple(
    str(p.relative_to(PACKAGE)) for d in ("scene", "gui") for p in PACKAGE.glob(f"{d}/*.py")
)


def top_level_imports(path: Path) -> set[str]:
    """Modules imported when the file is, not those within functions or for type checking."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def all_imports(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("name", DEVICE + PURE)
def test_device_and_pure_code_never_imports_viser(name):
    roots = {module.split(".")[0] for module in all_imports(PACKAGE / name)}
    assert "viser" not in roots


@pytest.mark.parametrize("name", HOST)
def test_scene_and_gui_never_import_jax_or_the_viewer(name):
    modules = all_imports(PACKAGE / name)
    assert not {m.split(".")[0] for m in modules} & {"jax", "brax", "flax"}
    assert "brax_viser.viewer" not in modules and "brax_viser.env" not in modules


@pytest.mark.parametrize("name", DEVICE + PURE + HOST)
def test_only_the_viewer_imports_across(name):
    assert "brax_viser.viewer" not in top_level_imports(PACKAGE / name)


def test_importing_starts_no_server_and_touches_no_device():
    code = (
        "import threading, brax_viser, jax; "
        "from brax_viser import Viewer, VisualizedEnv; "
        "from jax._src import xla_bridge; "
        "assert threading.active_count() == 1, threading.enumerate(); "
        "assert not xla_bridge._backends, xla_bridge._backends"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_page_needs_no_brax():
    """So that the command line has it up before Brax's imports are done."""
    code = "import sys, brax_viser.cli; assert 'brax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_library_never_imports_the_sample_environments():
    for path in PACKAGE.rglob("*.py"):
        assert not {m.split(".")[0] for m in all_imports(path)} & {"envs", "examples", "benchmarks"}
