"""A wheel that installs and runs without the repository. Needs the network, from which pip fetches
what builds it."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import brax_viser

ROOT = Path(__file__).parent.parent


def run(command: Sequence[object], cwd: Path) -> str:
    """Returns what a command prints, run without anything that leads to the repository."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source archive as `python -m build` does."""
    folder = tmp_path_factory.mktemp("build")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "build"], folder)
    run([python, "-m", "build", "--outdir", folder / "dist", ROOT], folder)
    [found] = (folder / "dist").glob("*.whl")
    assert len([*(folder / "dist").glob("*.tar.gz")]) == 1
    return found


def test_the_wheel_has_every_file_of_the_package_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = run(["git", "ls-files", "brax_viser"], ROOT).split()
    assert len(tracked) > 150 and "brax_viser/py.typed" in tracked
    assert {"brax_viser/page/browser.js", "brax_viser/export/player.css"} <= names
    others = {name for name in names if ".dist-info/" not in name}
    assert others == set(tracked)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_there_is_one_version(wheel):
    assert re.fullmatch(rf"brax_viser-{brax_viser.__version__}-py3-none-any.whl", wheel.name)
    assert importlib.metadata.version("brax_viser") == brax_viser.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(brax_viser.__version__)}\b", changes, re.MULTILINE)


def test_the_wheel_installs_and_trains_in_a_clean_environment(wheel, tmp_path):
    place = tmp_path / "clean"
    venv.create(place, with_pip=False)
    run(
        [sys.executable, "-m", "pip", "--python", place, "install", "--quiet", "--no-deps", wheel],
        tmp_path,
    )
    [packages] = place.glob("lib/python*/site-packages")
    # The dependencies, which take minutes to install, are those of the tests; what is installed
    # there to be edited is not: it is found by files that only Python's own folders may have.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python, command = place / "bin" / "python", place / "bin" / "brax-viser"
    where = "import brax_viser, brax_viser.env; print(brax_viser.__file__)"
    assert run([python, "-c", where], tmp_path).strip() == str(packages / "brax_viser/__init__.py")
    assert run([command, "--version"], tmp_path) == f"brax-viser {brax_viser.__version__}\n"
    said = run(
        [
            *f"{command} train inverted_pendulum --trainer ars --backend spring".split(),
            *"--num-envs 4 --num-timesteps 1 --port 0 --grid 2 2".split(),
            *"--save-dir saved --no-keep-open".split(),
        ],
        tmp_path,
    )
    assert said.startswith("brax_viser: http://127.0.0.1:") and "Policy saved to" in said
    assert (tmp_path / "saved" / "policy").exists()


def installed_for(extra: str) -> set[str]:
    """Returns the names of all packages that pip installs with an extra of this project's, by what
    `pyproject.toml` and the packages themselves ask for; of those that are not here, no more than
    their names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo: list[tuple[str, str]] = [("brax-viser", ""), ("brax-viser", extra)]
    done: set[tuple[str, str]] = set()
    while todo:
        name, chosen = one = todo.pop()
        if one in done:
            continue
        done.add(one)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name == "brax-viser":  # what was installed may be older than the checkout
            extras = project["optional-dependencies"]
            wanted = extras[chosen] if chosen else project["dependencies"]
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": chosen}):
                todo += [
                    (canonicalize_name(requirement.name), of) for of in ("", *requirement.extras)
                ]
    return {name for name, _ in done}


def test_ci_installs_no_nightly_build_of_another_package():
    """A bad night of it would fail all checks."""
    names = installed_for("test")
    assert {"brax", "pytest", "evosax", "pyzmq", "mkdocs-material", "jaxlib"} <= names
    assert not [name for name in names if "nightly" in name]
    assert "rejax" in installed_for("rejax")
