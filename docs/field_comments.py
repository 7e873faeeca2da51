"""For the API reference: fields of dataclasses are documented by the comments beside them.

A comment behind a field belongs to it; where there is none, the lines of comment above it do.
"""

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes docstrings of these comments, where there is no docstring."""

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Griffe has read a field or an attribute."""
        if attr.docstring is None and attr.lineno and (text := _comment_of(attr)):
            attr.docstring = griffe.Docstring(text, parent=attr, lineno=attr.lineno)


def _comment_of(attr: griffe.Attribute) -> str:
    source = attr.lines_collection[attr.filepath]  # type: ignore[index]
    assert attr.lineno is not None
    _, _, behind = source[attr.lineno - 1].partition("  # ")
    if behind:
        return behind.strip()
    above = []
    for line in reversed(source[: attr.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.append(line.strip()[2:])
    return " ".join(reversed(above))
