"""Tests which rooms of the package import which, as read from the source.

Every import counts, including those in functions and under TYPE_CHECKING.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent / "brax_viser"
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

BELOW: dict[str, set[str]] = {
    "compat": set(),
    "process": set(),
    "records": set(),
    "device": {"records", "compat"},
    "host": {"records"},
    "model": {"records"},
    "runs": {"records"},
    "scene": {"records", "model", "compat"},
    "export": {"records", "model", "scene", "compat"},
    "twins": {"records", "model", "process"},
    "sandbox": {"records", "model", "device", "compat"},
    "processes": {"records", "host", "compat"},
    "panel": {"records", "host", "model", "scene", "twins", "sandbox"},
    "page": {
        *("records", "host", "model", "scene", "twins", "sandbox", "processes", "panel"),
        *("compat", "process", "runs", "export"),
    },
    "viewer": {
        *("records", "host", "model", "scene", "twins", "sandbox", "processes", "panel", "page"),
        *("compat", "process", "device", "runs"),
    },
    "replay": {"records", "host", "model", "sandbox", "page", "viewer"},
    "env": {"records", "host", "model", "device", "viewer"},
    "cli": {
        *("records", "device", "host", "model", "page", "export", "viewer", "replay", "runs"),
        *("env", "compat", "sandbox", "process", "brax_viser"),
    },
    "__main__": {"cli", "process"},
    "brax_viser": {"records", "page", "viewer", "env"},
}
"""For each room, the rooms that it may import; "brax_viser" is the package itself."""

AT_HOME = {
    "viser": {"scene", "export", "panel", "page", "compat"},
    "websockets": {"page", "compat"},
    "mujoco": {
        *("device", "model", "runs", "scene", "export", "twins", "sandbox", "panel", "page"),
        *("env", "cli"),
    },
    "mjviser": {"model"},
    "trimesh": {"model", "scene", "export"},
    "PIL": {"model", "scene", "export", "panel", "page"},
    "imageio_ffmpeg": {"export"},
    "rerun": {"export"},
    "jax": {"device", "sandbox", "env", "cli", "processes", "compat"},
    "brax": {"device", "env", "cli", "compat"},
    "mujoco_playground": {"cli", "compat"},
    "etils": {"runs", "cli"},
    "zmq": {"processes"},
    "msgspec": {"processes", "export"},
    "zstandard": {"export"},
    "tyro": {"cli"},
    "rich": {"cli", "compat"},
    "IPython": {"page"},
    "wandb": {"page"},
    # Public modules for which jax's promise of compatibility does not hold.
    "jax.core": {"device", "compat"},
    "jax.experimental": {"device"},
    "jax.extend": {"device", "compat"},
    "jax.interpreters": {"device", "compat"},
}
"""For each foreign package, the rooms that may import it. All rooms may import numpy: `records` and
`host` import nothing else."""

PRIVATE = re.compile(
    r"\b(jax\._(?!_)|mujoco_playground\._|viser\._(?!_)|mujoco\._(?!_)|conversions\._|envs\._)"
    r"|\bfrom (jax|brax|viser|mujoco|mujoco_playground|mjviser)\b.* import .*\b_[a-z]"
    r"|\._(impl\b|websock|broadcast_buffer|mjx_model|PMAP|unpmap)"
    r"|\b(get|set|has|del)attr\([^()]+, [\"']_(?!_|fields\b)"  # named tuples document `_fields`
    r"|\bemit_python_callback\b"  # jax keeps it in a public module for the time being
)
"""Private and provisional names of other packages, which may change at any time."""

PRIVATE_ELSEWHERE = {
    "brax_viser.cli.play": ['settings = dict(getattr(bare, "_config", {}))'],
}
"""Lines outside of `compat.py` that use such a name. Playground's environments have their settings
in no public attribute; without them the sliders of a command get the usual ranges."""


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports_of(path: Path) -> set[str]:
    """Returns the full names of what is imported; within the package, of the very files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which is not looked into here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            own = str(node.module).split(".")[0] == "brax_viser"
            found |= {str(node.module) if own and name not in FILES else name for name in names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            # Only literal names are seen.
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return found


IMPORTS = {module: imports_of(path) for module, path in FILES.items()}
OWN = {m: {i for i in imports if i in FILES and i != m} for m, imports in IMPORTS.items()}


IN_PACKAGE = {
    "PIL": "pillow",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "mujoco_playground": "playground",
    "rerun": "rerun-sdk",
    "zmq": "pyzmq",
}
"""The packages of modules that have another name."""

BROUGHT = {"IPython"}
"""Modules that are there where they are needed: notebooks bring it."""


def forbidden(own: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Returns the pairs of (importing, imported) files in which the importing room is not above."""
    return {
        (module, imported)
        for module, imports in own.items()
        for imported in imports
        if room_of(imported) not in {room_of(module), *BELOW[room_of(module)]}
    }


def out_of_place(imports: dict[str, set[str]], package: str) -> set[str]:
    """Returns the files that import a foreign package, or names in it, outside of its rooms."""
    return {
        module
        for module, names in imports.items()
        if room_of(module) not in AT_HOME[package]
        and any(f"{name}.".startswith(f"{package}.") for name in names)
    }


def unlisted(imports: dict[str, set[str]]) -> set[str]:
    """Returns the foreign packages that have no entry in AT_HOME."""
    packages = {name.split(".")[0] for names in imports.values() for name in names}
    return packages - {*sys.stdlib_module_names, "brax_viser", "numpy", *AT_HOME}


def in_circles(own: dict[str, set[str]]) -> set[str]:
    """Returns the files that import themselves through others."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), list(own[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += own[module]
        return seen

    return {module for module in own if module in reached(module)}


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_only_rooms_below_it(module):
    assert not forbidden({module: OWN[module]})


@pytest.mark.parametrize("package", AT_HOME)
def test_a_foreign_package_is_imported_only_in_its_rooms(package):
    assert not out_of_place(IMPORTS, package)


def test_each_foreign_package_has_its_rooms():
    assert not unlisted(IMPORTS)


def test_every_foreign_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [extra for name, extra in extras.items() if name not in ("test", "docs")]
    declared = {Requirement(one).name for one in sum(lists, project["dependencies"])}
    imported = {i.split(".")[0] for found in IMPORTS.values() for i in found} - BROUGHT
    foreign = imported - {*sys.stdlib_module_names, ROOT.name}
    assert {"jax", "viser", "zmq", "rerun", "wandb"} <= foreign, "imports in functions count"
    assert {IN_PACKAGE.get(name, name) for name in foreign} <= declared


def test_no_file_imports_itself_through_others():
    assert not in_circles(OWN)


def test_an_import_of_a_room_above_would_be_found():
    pair = "brax_viser.host.pacing", "brax_viser.page.loop"
    below = {"brax_viser.host.pacing": {"brax_viser.host.hold", "brax_viser.records.frame"}}
    assert forbidden({pair[0]: {pair[1]}}) == {pair} and not forbidden(below)


def test_an_import_of_a_foreign_package_in_the_wrong_room_would_be_found():
    imports = {
        "brax_viser.host.pacing": {"mujoco.MjModel"},
        "brax_viser.model.shapes": {"viser"},
        "brax_viser.page.loop": {"jax.core.Tracer", "jaxtyping"},
        "brax_viser.records.frame": {"scipy.spatial"},
    }
    assert out_of_place(imports, "mujoco") == {"brax_viser.host.pacing"}
    assert out_of_place(imports, "viser") == {"brax_viser.model.shapes"}
    assert out_of_place(imports, "jax") == {"brax_viser.page.loop"}
    assert out_of_place(imports, "jax.core") == {"brax_viser.page.loop"}
    assert not out_of_place(imports, "jax.extend")
    assert unlisted(imports) == {"jaxtyping", "scipy"}


def test_a_circle_of_files_would_be_found():
    own = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert in_circles(own) == {"b", "c"}


@pytest.mark.parametrize("module", sorted(set(FILES) - {"brax_viser.compat"}))
def test_private_names_of_other_packages_are_only_in_compat(module):
    lines = FILES[module].read_text().splitlines()
    found = [line.strip() for line in lines if PRIVATE.search(line)]
    assert found == PRIVATE_ELSEWHERE.get(module, [])


@pytest.mark.parametrize(
    "line",
    [
        "handle._impl.value = 1",
        "from viser import _messages",
        "from jax._src import core",
        "names = envs._envs",
        "server._websock_server.stop()",
        "env._mjx_model = model",
        'settings = getattr(bare, "_config", {})',
        "if hasattr(self.server, '_clients'):",
        "results = mlir.emit_python_callback(ctx, flat)",
    ],
)
def test_a_private_name_would_be_found(line):
    assert PRIVATE.search(line)


@pytest.mark.parametrize(
    "source, found",
    [
        ("def late():\n    import jax.numpy as jnp", {"jax.numpy"}),
        ("if TYPE_CHECKING:\n    from brax_viser.page import loop", {"brax_viser.page.loop"}),
        ("import_module('viser.infra')", {"viser.infra"}),
        ("from jax import core, numpy", {"jax.core", "jax.numpy"}),
        ("from brax_viser.page.loop import Loop", {"brax_viser.page.loop"}),
    ],
)
def test_an_import_would_be_found_wherever_it_is(source, found, tmp_path):
    path = tmp_path / "made_up.py"
    path.write_text(source)
    assert imports_of(path) == found


def test_a_long_method_would_be_found_beside_a_short_one_of_the_same_name():
    long = "\n".join(["class A:", "    def run(self):", *["        pass"] * 60])
    short = "class B:\n    def run(self):\n        pass"
    sizes = dict(_sizes(ast.parse(f"{long}\n{short}")))
    assert sizes["A.run@2"] == ("function", 61) and sizes["B.run@64"] == ("function", 2)


MOST_LINES = {"file": 400, "class": 300, "function": 60}


def lengths() -> dict[str, tuple[str, int]]:
    """Returns, by name, the kind and the number of lines of each file, class and function."""
    found = {}
    for module, path in FILES.items():
        text = path.read_text()
        found[module] = "file", len(text.splitlines())
        found |= {f"{module}:{name}": size for name, size in _sizes(ast.parse(text))}
    return found


def _sizes(node: ast.AST, within: str = "") -> Iterator[tuple[str, tuple[str, int]]]:
    for inner in ast.iter_child_nodes(node):
        name = within
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{inner.name}".lstrip(".")
            kind = "class" if isinstance(inner, ast.ClassDef) else "function"
            size = (inner.end_lineno or 0) - inner.lineno + 1
            # With its line, as a property and its setter have one name.
            yield f"{name}@{inner.lineno}", (kind, size)
        yield from _sizes(inner, name)


def test_no_file_class_or_function_is_too_long():
    long = {place: size for place, (kind, size) in lengths().items() if size > MOST_LINES[kind]}
    assert not long


def test_the_library_never_imports_the_sample_environments():
    for module, imports in IMPORTS.items():
        assert not {i.split(".")[0] for i in imports} & {"envs", "examples", "benchmarks"}, module


# Attributes of a viewer and of a wrapped environment that only the probe in `support.py` knows.
INSIDE = re.compile(r"\b(?:viewer|env)\._(?:adapter|host|page|shared|server)\b")


def test_only_the_probe_reaches_into_a_viewer():
    here = Path(__file__).parent
    files = set(here.glob("*.py")) - {here / "support.py"}
    assert not [path.name for path in sorted(files) if INSIDE.search(path.read_text())]
    assert INSIDE.search((here / "support.py").read_text())  # else it looks for nothing
