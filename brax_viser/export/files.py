"""Writes files that are there only once they are complete."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a file to write in place of `path`, which it becomes when the context is left; after
    an error it is gone, and what was there before stays.

    Raises:
        OSError: the folder cannot be made or written into.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a separate folder beside it: encoders choose the format by the name.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        part = Path(folder, path.name)
        yield part
        part.replace(path)
