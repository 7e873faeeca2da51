"""Checks the documentation: its snippets run, and its commands, options and names exist."""

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro
import viser
import websockets.sync.client
from brax import envs
from brax.training.agents.ppo import networks
from brax.training.agents.ppo import train as ppo
from PIL import Image

from benchmarks.client import (
    SUBPROTOCOL,
    hello,
    is_last_of_replay,
    messages_of,
    websocket_of,
)
from brax_viser import Viewer
from brax_viser.cli.app import main
from tests.episodes import written

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

SMALL_TRAINING = "small training"
"""A mark before a Python snippet, `<!-- test: small training -->`: the stock trainer runs with the
snippet's settings, overridden by those of `SMALL`."""

RUN_DIRECTORY = "run directory"
"""A mark before a Python snippet, `<!-- test: run directory -->`: it runs in a folder in which
`runs/ant` is a run directory."""

FRAGMENT = "py"
"""Language of blocks that do not run by themselves: parts of a script of the reader's, or with a
package that the tests do not install. tests/test_other_trainers.py and examples/ run the like."""

SMALL: dict[str, Any] = dict(
    num_timesteps=16,
    num_envs=4,
    num_evals=1,
    run_evals=False,
    episode_length=8,
    unroll_length=2,
    batch_size=4,
    num_minibatches=1,
    num_updates_per_batch=1,
    network_factory=functools.partial(
        networks.make_ppo_networks, policy_hidden_layer_sizes=(8,), value_hidden_layer_sizes=(8,)
    ),
)

TOOLS = {
    "conda",
    "jq",
    "mkdocs",
    "pip",
    "pre-commit",
    "pyright",
    "pytest",
    "python3",
    "ruff",
    "ssh",
    "uv",
}
"""Commands in snippets that are not this project's. `.` is a shell builtin."""


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    page: str
    line: int  # number of its first line, from 1
    language: str
    code: str
    marks: tuple[str, ...]  # from a comment before it

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(*languages: str) -> list[Snippet]:
    pattern = re.compile(
        r"(?:^<!-- test: (?P<marks>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
        re.MULTILINE | re.DOTALL,
    )
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in pattern.finditer(text):
            line = text[: match.start("code")].count("\n") + 1
            marks = tuple(filter(None, (match["marks"] or "").split(", ")))
            one = Snippet(page.name, line, match["language"], match["code"], marks)
            if one.language in languages:
                found.append(one)
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yields the place and the words of each command in a shell snippet or between backticks."""
    for snippet in snippets("sh"):
        for line in snippet.code.splitlines():
            for command in line.split("&&"):
                if words := shlex.split(command, comments=True):
                    yield snippet.name, words
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", text):
            if code.startswith(("python -m benchmarks", "python -m examples", "brax-viser train")):
                yield page.name, shlex.split(code)


def settings_of(module: Any, options: Sequence[str]) -> None:
    """Parses the options of a command of ours; exits if one of them is unknown."""
    entry: Any = getattr(module, "Settings", module.main)
    if inspect.isfunction(entry):  # the options are its arguments; it is not called
        entry = functools.wraps(entry)(lambda *args, **kwargs: None)
    tyro.cli(entry, args=list(options))


WITH_PYTHON = sorted({s.page for s in snippets("python")})


@pytest.mark.parametrize(
    ("page", "swift"),
    [*((page, True) for page in WITH_PYTHON), ("README.md", False)],
    ids=[*WITH_PYTHON, "README.md as it is"],
)
def test_python_snippets_of_a_page_run_one_after_the_other(page, swift, monkeypatch, tmp_path):
    train, calls, make = ppo.train, [], envs.get_environment

    def swiftly(name: str, **settings: Any) -> envs.Env:
        """Makes the environment, and returns it with physics that compile sooner."""
        make(name, **settings)
        return make(name, **{**settings, "backend": "spring"})

    def small(**settings: Any) -> Any:
        inspect.signature(train).bind(**settings)
        calls.append(settings)
        known = inspect.signature(train).parameters
        own = {name: settings.get(name, known[name].default) for name in known}
        assert own["episode_length"], "Brax has no length of its own"
        assert own["batch_size"] * own["num_minibatches"] % own["num_envs"] == 0
        return train(**{**settings, **SMALL})

    opened: list[Viewer] = []
    build = Viewer.__init__

    def noted(viewer: Viewer, **settings: Any) -> None:
        opened.append(viewer)
        build(viewer, **settings)

    monkeypatch.setattr(Viewer, "__init__", noted)
    names: dict[str, Any] = {}
    mine = [snippet for snippet in snippets("python") if snippet.page == page]
    try:
        for snippet in mine:
            assert set(snippet.marks) <= {SMALL_TRAINING, RUN_DIRECTORY}, snippet.name
            with monkeypatch.context() as patch:
                if RUN_DIRECTORY in snippet.marks:
                    patch.chdir(tmp_path)
                    written(tmp_path / "runs" / "ant")
                if SMALL_TRAINING in snippet.marks:
                    patch.setattr(ppo, "train", small)
                    if swift:
                        patch.setattr(envs, "get_environment", swiftly)
                # So that a traceback shows the line number of the page.
                code = "\n" * (snippet.line - 1) + snippet.code
                exec(compile(code, str(ROOT / page), "exec"), names)
    finally:
        for viewer in opened:
            viewer.close()
    assert len(calls) == sum(SMALL_TRAINING in snippet.marks for snippet in mine)


@pytest.mark.parametrize(("where", "words"), list(commands()))
def test_a_command_exists_and_takes_its_options(where, words, capsys, monkeypatch):
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
        if words[2].startswith("benchmarks"):
            settings_of(importlib.import_module(words[2]), words[3:])
    elif words[0] == "brax-viser":
        monkeypatch.setattr(sys, "argv", [*words[:2], "--help"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        known = re.findall(r"--[\w-]+", capsys.readouterr().out)
        assert {word for word in words if word.startswith("--")} <= set(known)
        if words[1] == "train" and len(words) > 2 and re.fullmatch(r"\w+", words[2]):
            from mujoco_playground import registry

            assert words[2] in {*envs._envs, *registry.ALL_ENVS}
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(project["optional-dependencies"])
    else:
        assert words[0] in TOOLS or words[0] == "."


EXPORTS = [words for _, words in commands() if words[:2] == ["brax-viser", "export"]]


def test_commands_that_export_are_found():
    assert {Path(words[3]).suffix for words in EXPORTS} >= {".html", ".mp4", ".png", ".csv", ".rrd"}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            words, marks=pytest.mark.full if ".mp4" in words[3] else (), id=" ".join(words)
        )
        for words in EXPORTS
    ],
)
def test_a_command_that_exports_writes_its_file(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / words[2], length=350)
    command = [sys.executable, "-m", "brax_viser", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / words[3]).stat().st_size > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_viewer_in_a_page_exist(page):
    names = set(re.findall(r"\bviewer\.([a-z]\w*)", page.read_text())) - {"py"}
    assert [name for name in sorted(names) if not hasattr(Viewer, name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_repository_have_a_target(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    paths = [target for target in targets if not target.startswith("http")]
    assert [path for path in paths if not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_and_benchmarks_named_in_a_page_exist(page):
    paths = re.findall(r"`((?:tests|benchmarks|examples)/\w+\.py)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def _private_names() -> set[str]:
    """Returns the last parts of other packages' names in compat.py that begin with an underscore,
    or come from a module that does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "brax_viser" / "compat.py").read_text())):
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr):
            found |= {node.attr} if ast.unparse(node.value) != "self" else set()
        elif isinstance(node, ast.ImportFrom) and "._" in (node.module or ""):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(?:\w+\.)*(_[a-zA-Z]\w*)$", node.value))
    return found


def test_the_table_of_private_names_is_complete():
    names = _private_names()
    assert len(names) > 15
    text = (ROOT / "docs" / "compatibility.md").read_text()
    assert not {name for name in names if not re.search(rf"\b{name}\b", text)}


def test_the_reference_has_each_member_of_the_viewer_and_what_it_returns(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    page = (tmp_path / "api" / "index.html").read_text()
    written_of = set(re.findall(r'id="brax_viser\.([\w.]+)"', page))
    public = {name for name in dir(Viewer) if name[0] != "_" and name != "attach"}
    assert {f"Viewer.{name}" for name in public} <= written_of
    importlib.import_module("brax_viser.sandbox.runner")  # as a fork does, whose thread is returned
    returned = {kind for name in public for kind in _returned(getattr(Viewer, name))}
    assert len(returned) > 4
    for kind in returned:
        home = kind.__module__.removeprefix("brax_viser.")
        assert {f"{home}.{kind.__name__}", kind.__name__} & written_of, kind


def _returned(member: Any) -> Iterator[type]:
    """Yields the package's own types in what a method or a property is annotated to return."""
    function = member.fget if isinstance(member, property) else member
    kind = inspect.signature(function).return_annotation
    if isinstance(kind, str):
        loaded = [vars(m) for name, m in sys.modules.items() if name.startswith("brax_viser.")]
        kind = eval(kind, {"viser": viser, **{k: v for names in loaded for k, v in names.items()}})
    left = [kind]
    while left:
        kind = left.pop()
        left += typing.get_args(kind)
        if isinstance(kind, type) and kind.__module__.startswith("brax_viser"):
            yield kind


def test_the_readme_is_short_and_begins_with_the_command():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 850
    first = "\n".join(text.splitlines()[:14])
    assert "docs/page.webp" in first and "brax-viser train" in first and "http://" in first


def test_the_animation_moves_and_is_quick_to_load():
    path = ROOT / "docs" / "page.webp"
    assert path.stat().st_size < 3_000_000
    with Image.open(path) as animation:
        seconds = 0.0
        for number in range(animation.n_frames):
            animation.seek(number)
            animation.load()  # sets the duration of this picture
            seconds += animation.info["duration"] / 1000
    assert 6 <= seconds <= 10
    assert animation.n_frames > 50


def test_each_control_of_the_panel_is_documented():
    labels = set()
    with Viewer(port=0) as viewer:
        address = websocket_of(viewer.url)
        with websockets.sync.client.connect(
            address, subprotocols=[SUBPROTOCOL], max_size=None, compression=None
        ) as page:
            page.send(hello())
            for window in page:
                assert isinstance(window, bytes)
                for message in messages_of(window):
                    properties = message.get("props") or {}
                    if message["type"].startswith("Gui") and isinstance(properties, dict):
                        labels |= {properties.get("label"), *(properties.get("options") or ())}
                if is_last_of_replay(window):
                    break
    # The text names the first and the last group only; "1 of 1" is the page of environments.
    labels -= {None, "", "1 of 1", *(f"Group {number}" for number in range(1, 5))}
    assert {"Streaming", "Which robots", "Best return"} <= labels
    text = re.sub(r"\*\*", "", (ROOT / "docs" / "page.md").read_text())
    assert sorted(label for label in labels if label not in text) == []


def test_retired_words_stay_out_of_the_documentation():
    retired = re.compile(r"\b(switchboard|clerk|whoever|nobody|anew)\b", re.IGNORECASE)
    for page in PAGES:
        assert retired.findall(page.read_text()) == [], page.name


def test_the_snippets_are_found():
    python, shell = snippets("python"), snippets("sh")
    assert {"README.md", "usage.md", "environments.md"} <= {snippet.page for snippet in python}
    assert {"README.md", "usage.md", "performance.md"} <= {snippet.page for snippet in shell}
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert fences == len(snippets("python", "sh", FRAGMENT))


@pytest.mark.parametrize("fragment", snippets(FRAGMENT), ids=lambda fragment: fragment.name)
def test_fragments_are_python_and_what_they_import_of_ours_exists(fragment):
    tree = ast.parse(fragment.code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("brax"):
            # Without importing it: packages that it needs may be missing here.
            found = importlib.util.find_spec(node.module or "")
            assert found is not None and found.origin is not None
            for alias in node.names:
                assert alias.name in Path(found.origin).read_text() or importlib.util.find_spec(
                    f"{node.module}.{alias.name}"
                )
