"""Docstrings, comments and names are in plain English: retired words do not come back."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("brax_viser", "tests", "benchmarks", "examples", "envs")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != Path(__file__).name
)
RETIRED = re.compile(
    r"\b(whoever|nobody|anew|for good|by the way of|(?:is|are) to be|switchboard|clerk|publisher"
    r"|parcels?)\b",
    re.IGNORECASE,
)
"""Nouns of which the glossary has another, and turns of phrase that hide the noun."""


def prose(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each comment, of each docstring, those of attributes included, and of each
    name, with its words apart."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.NAME:
            yield token.start[0], token.string.replace("_", " ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.lineno, node.value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_retired_words_stay_retired(path):
    source = path.read_text()
    if RETIRED.search(source.replace("_", " ")):  # else there is none; the rest takes long
        assert [
            (line, word) for line, text in prose(source) for word in RETIRED.findall(text)
        ] == []


def test_retired_words_are_found_in_comments_docstrings_and_names():
    source = '"""Whoever asks."""\nx = "nobody"  # anew\nis_clerk = 1\n"""Is to be kept."""\n'
    words = [word for _, text in prose(source) for word in RETIRED.findall(text)]
    assert sorted(words) == ["Is to be", "Whoever", "anew", "clerk"]
