"""Adds scripts and styles of our own to viser's page, as it is served.

One script makes keys work wherever no text is being typed, and says when the page has no
connection; another draws the time bar; the third keeps choices made while there is no connection.
viser offers nothing of the kind.
"""

import functools
import gzip
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger("brax_viser")

_END = b"</body>"


@functools.cache
def additions() -> bytes:
    """Returns the HTML of the styles and the scripts."""
    folder = Path(__file__).parent
    styles = [(folder / f"{name}.css").read_bytes() for name in ("browser", "bar")]
    scripts = [(folder / f"{name}.js").read_bytes() for name in ("browser", "bar", "kept")]
    return b"".join(
        [
            *(b"<style>" + style + b"</style>" for style in styles),
            *(b"<script>" + script + b"</script>" for script in scripts),
        ]
    )


@functools.lru_cache(maxsize=8)
def _added(body: bytes, encoding: str) -> bytes:
    plain = gzip.decompress(body) if encoding == "gzip" else body
    before, end, after = plain.rpartition(_END)
    if not end:
        log.warning("viser's page has no closing body tag, so the time bar can't be added")
    plain = before + additions() + end + after if end else plain
    return gzip.compress(plain) if encoding == "gzip" else plain


def add_to(response: Any) -> Any:
    """Returns viser's response, with the additions if it is the page; None stays None."""
    if response is None or not response.headers.get("Content-Type", "").startswith("text/html"):
        return response
    encoding = response.headers.get("Content-Encoding", "identity")
    response.body = _added(response.body, encoding)
    del response.headers["Content-Length"]
    response.headers["Content-Length"] = str(len(response.body))
    return response
