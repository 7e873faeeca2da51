"""Adds a script and a style of our own to viser's page, as it is served.

The script has keys work wherever no text is typed, and says when the page has no connection, which
viser offers nothing for. A page without them lacks just that.
"""

import functools
import gzip
from pathlib import Path
from typing import Any

_END = b"</body>"


@functools.cache
def additions() -> bytes:
    """Returns the HTML of the style and the script."""
    style, script = (
        Path(__file__).with_name(f"browser.{kind}").read_bytes() for kind in ("css", "js")
    )
    return b"<style>" + style + b"</style><script>" + script + b"</script>"


@functools.lru_cache(maxsize=8)
def _added(body: bytes, encoding: str) -> bytes:
    plain = gzip.decompress(body) if encoding == "gzip" else body
    before, end, after = plain.rpartition(_END)
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
